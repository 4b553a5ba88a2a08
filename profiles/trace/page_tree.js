// What a stretch of a thread's time went into: a tree by who called whom, or one line a name; sorted, searched.
"use strict";

const TREE_ROWS = 500; // drawn at once
const LITTLE = 0.01; // of the stretch
const OPEN_SHARE = 0.1; // what takes this much of the stretch is shown unfolded at first
const TREE_COLUMNS = [
  ["name", "what ran"], ["whole", "with what it called"], ["share", "share"], ["own", "of its own"],
  ["calls", "calls"], ["device", "device, launched"],
];

const treeNode = (name, kind, text, parent) => (
  { name, kind, text, parent, whole: 0, own: 0, calls: 0, device: 0, children: new Map() }
);

// Times are of the range alone; a name inside itself counts once in "whole".
const callTree = (events, [from, to], launches, { frames, flat }) => {
  const root = treeNode("", -1, "", null), open = [], inside = new Map();
  const leave = (time) => {
    while (open.length && open[open.length - 1].end <= time) {
      const { node } = open.pop();
      inside.set(node, inside.get(node) - 1);
    }
  };
  for (const event of events) {
    if (event.start >= to) break;
    if (event.end <= from || (!frames && event.kind === PYTHON)) continue;
    leave(event.start);
    const holder = open[open.length - 1], place = flat || !holder ? root : holder.node, key = `${event.kind} ${event.name}`;
    let node = place.children.get(key);
    if (!node) place.children.set(key, node = treeNode(event.name, event.kind, event.text, place));
    const end = Math.min(event.end, to, holder?.end ?? Infinity), spent = Math.max(0, end - Math.max(event.start, from));
    const outer = !inside.get(node);
    node.calls++;
    node.own += spent;
    if (outer) node.whole += spent;
    if (holder) holder.node.own -= spent;
    else root.whole += spent;
    open.push({ node, end: Math.min(event.end, holder?.end ?? Infinity) });
    inside.set(node, (inside.get(node) ?? 0) + 1);
    if (event.kind !== RUNTIME || event.start < from) continue;
    const { works = [], away = [] } = launches.get(event.call) ?? {};
    const ns = [...works, ...away].reduce((sum, work) => sum + work.end - work.start, 0);
    if (ns) for (const one of new Set(open.map((entry) => entry.node))) one.device += ns;
  }
  return root;
};

// Frames and marks that hold everything and do nothing themselves are told in one line: the tree begins below them.
const belowFrames = (root) => {
  const above = [];
  let node = root;
  for (;;) {
    const [only, ...others] = node.children.values();
    const holds = only && !others.length && [PYTHON, ANNOTATION].includes(only.kind) && only.children.size;
    if (!holds || only.own > LITTLE * root.whole) break;
    above.push(only.text.split("  ")[0]);
    node = only;
  }
  return above.length > 1 ? [node, above] : [root, []];
};

class Tree {
  constructor(block, timeline) {
    Object.assign(this, { block, timeline, query: "", by: "whole", falling: true, open: new Map() });
    [this.lanes, this.form] = block.querySelectorAll("select");
    this.frames = block.querySelector("input[type=checkbox]");
    this.head = block.querySelector("thead tr");
    this.body = block.querySelector("tbody");
    this.said = block.querySelector("output");
    for (const [key, text] of TREE_COLUMNS) this.addHead(key, text);
    const again = () => this.build();
    for (const one of [this.lanes, this.form, this.frames]) one.addEventListener("change", again);
    block.querySelector("input[type=search]").addEventListener("input", (event) => {
      this.query = event.target.value.trim().toLowerCase();
      this.show();
    });
    block.querySelector("button[data-do=clear]").addEventListener("click", () => timeline.select(null));
    timeline.onLook = () => this.later();
    block.hidden = false;
  }

  addHead(key, text) {
    const head = document.createElement("th"), button = document.createElement("button");
    head.scope = "col";
    head.dataset.by = key;
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => {
      this.falling = this.by === key ? !this.falling : key !== "name";
      this.by = key;
      this.show();
    });
    head.append(button);
    this.head.append(head);
  }

  // While the view moves the tree waits.
  later() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.build(), 120);
  }

  build() {
    clearTimeout(this.waiting);
    const { timeline } = this, { step } = timeline, range = timeline.range ?? timeline.view;
    if (this.step !== step) this.fill(step);
    const row = step.rows.find((one) => one.key === this.lanes.value && one.all);
    const flat = this.form.value === "list", frames = this.frames.checked;
    this.root = row ? callTree(row.all, range, step.launches, { flat, frames }) : treeNode("", -1, "", null);
    this.span = range[1] - range[0];
    this.block.querySelector("button[data-do=clear]").hidden = !timeline.range;
    const where = timeline.range ? "the chosen range" : this.span < step.ns ? "what is shown" : "the whole step";
    this.said.textContent = `${where}: ${duration(this.span)}${range[0] > 0 ? ` from ${duration(range[0])}` : ""}`;
    this.show();
  }

  // The threads and streams of a step; the one that was chosen stays, at first the step's own thread.
  fill(step) {
    const before = this.lanes.value, rows = step.rows.filter((row) => row.all);
    this.lanes.replaceChildren(...rows.map((row) => {
      const option = document.createElement("option");
      option.value = row.key;
      option.textContent = title(row);
      return option;
    }));
    const keep = rows.find((row) => row.key === before) ?? rows.find((row) => row.own) ?? rows[0];
    if (keep) this.lanes.value = keep.key;
    const stacks = rows.some((row) => row.all.some((event) => event.kind === PYTHON));
    this.frames.parentElement.hidden = !stacks;
    this.step = step;
  }

  show() {
    const lines = [], key = this.by === "share" ? "whole" : this.by;
    const order = key === "name" ? (a, b) => (a.text < b.text ? -1 : Number(a.text > b.text)) : (a, b) => a[key] - b[key];
    const found = new Map(); // which nodes have the query in their name or below them
    const finds = (node) => {
      let hit = node.name.toLowerCase().includes(this.query);
      for (const child of node.children.values()) hit = finds(child) || hit;
      found.set(node, hit);
      return hit;
    };
    if (this.query) finds(this.root);
    let left = 0;
    const walk = (node, depth, path) => {
      const children = [...node.children.values()].filter((one) => !this.query || found.get(one));
      children.sort((a, b) => (this.falling ? -order(a, b) : order(a, b)));
      for (const child of children) {
        if (lines.length >= TREE_ROWS) { left++; continue; }
        const id = `${path}/${child.kind} ${child.name}`;
        const inner = this.query ? [...child.children.values()].some((one) => found.get(one)) : child.children.size > 0;
        const opened = inner && (this.open.get(id) ?? (Boolean(this.query) || child.whole > OPEN_SHARE * this.span));
        lines.push(this.line(child, depth, id, inner, opened));
        if (opened) walk(child, depth + 1, id);
      }
    };
    const [top, above] = this.query ? [this.root, []] : belowFrames(this.root);
    if (above.length > 6) above.splice(2, above.length - 5, "…");
    if (above.length) lines.push(this.note(`below ${above.join(" › ")}`, "above"));
    walk(top, 0, "");
    if (!lines.length) lines.push(this.note(this.query ? "no name here holds that" : "nothing of this thread here"));
    if (left) lines.push(this.note(`and ${left} more lines: search, or choose a shorter range`));
    this.body.replaceChildren(...lines);
    for (const head of this.head.cells) {
      head.removeAttribute("aria-sort");
      if (head.dataset.by === this.by) head.setAttribute("aria-sort", this.falling ? "descending" : "ascending");
      if (head.dataset.by === "device") head.hidden = !this.hasDevice();
    }
  }

  hasDevice() { return this.step.launches.size > 0; }

  line(node, depth, id, inner, opened) {
    const row = document.createElement("tr"), name = document.createElement("td"), swatch = document.createElement("i");
    const toggle = document.createElement(inner ? "button" : "span");
    toggle.className = "toggle";
    toggle.textContent = inner ? (opened ? "▾" : "▸") : "";
    if (inner) {
      toggle.type = "button";
      toggle.setAttribute("aria-expanded", String(opened));
      toggle.setAttribute("aria-label", node.text);
      const turn = () => { this.open.set(id, !opened); this.show(); };
      name.addEventListener("click", turn);
      name.className = "opens";
    }
    swatch.className = "swatch";
    swatch.style.backgroundColor = KEYS[node.kind];
    name.style.paddingLeft = `${0.4 + Math.min(depth, 24) * 0.9}rem`;
    name.title = `${KINDS[node.kind]}: ${node.name}`;
    name.append(toggle, swatch, node.text);
    row.append(name);
    const share = this.span ? node.whole / this.span : 0;
    const texts = [duration(node.whole), `${(share * 100).toFixed(1)}%`, duration(Math.max(0, node.own)), node.calls.toLocaleString("en")];
    if (this.hasDevice()) texts.push(node.device ? duration(node.device) : "");
    texts.forEach((text, column) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      if (column === 1) cell.style.setProperty("--share", `${Math.min(100, share * 100).toFixed(1)}%`);
      if (column === 1) cell.className = "share";
      row.append(cell);
    });
    return row;
  }

  note(text, kind = "note") {
    const row = document.createElement("tr"), cell = document.createElement("td");
    cell.colSpan = TREE_COLUMNS.length;
    cell.className = kind;
    cell.textContent = text;
    row.append(cell);
    return row;
  }
}
