// What the page does beside its timelines: one trace at a time, steps to choose from, tables that sort.
"use strict";

const sections = [...document.querySelectorAll("section.trace")];
const content = JSON.parse(document.getElementById("timelines").textContent);

const trees = [];
const timelines = sections.map((section, number) => {
  const timeline = new Timeline(section, content[number]);
  const buttons = [...section.querySelectorAll(".strip button")], here = buttons.filter((one) => !one.disabled);
  const show = (button) => {
    for (const one of here) one.setAttribute("aria-pressed", String(one === button));
    timeline.show(Number(button.dataset.step), button.title);
  };
  for (const button of here) button.addEventListener("click", () => show(button));
  section.querySelector("canvas").addEventListener("keydown", (event) => {
    const by = { "[": -1, "]": 1 }[event.key];
    const next = by && here[here.findIndex((one) => one.getAttribute("aria-pressed") === "true") + by];
    if (next) show(next);
  });
  const tools = section.querySelector(".tools"), arrows = tools.querySelector("[data-do=arrows]");
  tools.hidden = false;
  for (const button of tools.querySelectorAll("button")) {
    button.addEventListener("click", () => timeline.act[button.dataset.do]());
  }
  arrows.hidden = !Object.values(content[number].steps).some((step) => step.lanes.some((lane) => lane.c.length));
  trees.push(new Tree(section.querySelector(".tree"), timeline));
  tools.querySelector("input").addEventListener("input", (event) => {
    timeline.query = event.target.value.trim().toLowerCase();
    timeline.draw();
  });
  const keys = section.querySelector(".keys");
  const present = new Set(Object.values(content[number].steps).flatMap((step) => step.lanes.flatMap((lane) => lane.k)));
  for (const kind of [...present].sort((a, b) => a - b)) {
    if (kind === 7) continue; // looks as the annotation does
    const key = document.createElement("span"), swatch = document.createElement("i");
    swatch.className = "swatch";
    swatch.style.backgroundColor = KEYS[kind];
    key.append(swatch, KINDS[kind]);
    keys.append(key);
  }
  keys.hidden = false;
  show(here.find((one) => Number(one.dataset.step) === content[number].first));
  return timeline;
});

const redraw = () => timelines.forEach((timeline, number) => { if (!sections[number].hidden) timeline.draw(); });

const choose = () => {
  const wanted = Math.max(0, sections.findIndex((section) => `#${section.id}` === location.hash));
  sections.forEach((section, number) => { section.hidden = number !== wanted; });
  document.querySelectorAll("nav a").forEach((tab, number) => {
    if (number === wanted) tab.setAttribute("aria-current", "true");
    else tab.removeAttribute("aria-current");
  });
  redraw();
};

// Numbers by value, largest first; text by its letters.
const sort = (head, column) => {
  const table = head.closest("table"), body = table.tBodies[0];
  const rows = [...body.rows], cells = rows.map((row) => row.cells[column]);
  const numeric = cells.some((cell) => cell.dataset.v !== undefined);
  const falling = head.getAttribute("aria-sort") === (numeric ? "descending" : "ascending") ? !numeric : numeric;
  const value = (row) => Number(row.cells[column].dataset.v ?? -Infinity);
  const text = (row) => row.cells[column].textContent.toLowerCase();
  const byText = (a, b) => (text(a) < text(b) ? -1 : Number(text(a) > text(b)));
  const order = numeric ? (a, b) => value(a) - value(b) || 0 : byText; // -Infinity less itself is NaN
  rows.sort((a, b) => (falling ? -order(a, b) : order(a, b)));
  body.append(...rows);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
};

for (const head of document.querySelectorAll("table:not(.calls) th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head, head.cellIndex));
  head.append(button);
}

addEventListener("hashchange", choose);
addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
choose();
document.body.dataset.ready = String(timelines.length);
