// A step on a canvas: zoomed, moved, searched; an event and a range of time are chosen on it. No framework.
"use strict";

const LEAST_SPAN = 200; // ns
const MOST_PAIRS = 300; // arrows of one chosen event

class Timeline {
  constructor(section, data) {
    this.data = data;
    this.canvas = section.querySelector("canvas");
    this.output = section.querySelector("output");
    this.chosenBox = section.querySelector(".chosen");
    this.tip = document.getElementById("tip");
    this.stages = new Map(data.stages);
    this.lower = data.names.map((name) => name.toLowerCase());
    this.expanded = new Set();
    this.query = "";
    this.arrows = true;
    this.onLook = () => {}; // what else shows the same stretch of time
    this.wire();
  }

  // Shows a step; its events are unpacked when it is first asked for.
  show(number, title) {
    const step = this.data.steps[number];
    if (!step.rows) Object.assign(step, rowsOf(step, this.data, this.stages));
    Object.assign(this, { step, number, title, view: [0, step.ns], range: null, chosen: null });
    this.choose(null);
  }

  draw() {
    const { query } = this;
    this.matching = query && new Set(this.lower.flatMap((name, i) => (name.includes(query) ? [i] : [])));
    if (draw(this) === undefined) return;
    const shown = this.view[1] - this.view[0], said = [this.title];
    if (shown < this.step.ns) said.push(`shown: ${duration(shown)} from ${duration(this.view[0])}`);
    if (query) said.push(`“${query}”: ${this.found.count} in this step, ${duration(this.found.ns)}`);
    this.output.textContent = said.join(" · ");
    this.onLook();
  }

  x(time) { return GUTTER + (time - this.view[0]) * this.scale; }

  time(x) { return Math.max(0, Math.min(this.step.ns, this.view[0] + (x - GUTTER) / this.scale)); }

  at(x, y) {
    const row = this.step.rows.find((one) => y >= one.y && y < one.y + one.height);
    if (!row || x < GUTTER) return { row };
    const depth = row.band ? 0 : Math.floor((y - row.y) / ROW), reach = 1.5 / this.scale, time = this.time(x);
    if (row.chart) return { row, point: row.at.findLastIndex((at) => at <= time), time };
    const hits = row.drawn.filter((e) => e.depth === depth && e.start <= time + reach && e.end >= time - reach);
    const distance = (e) => Math.max(e.start - time, time - e.end, 0);
    const hit = hits.sort((a, b) => distance(a) - distance(b))[0];
    return { row, event: hit?.of ?? hit };
  }

  text(event) {
    const kind = event.kind === undefined ? "" : `${KINDS[event.kind]}: `;
    const from = event.start < 0 ? "begun before the step" : `from ${duration(event.start)}`;
    const lines = [event.name, `${kind}${duration(event.end - event.start)}, ${from}`];
    if (event.late) lines.push(`late: launched by ${event.late}`);
    if (event.shape >= 0) lines.push(this.data.shapes[event.shape]);
    return lines.join("\n");
  }

  memoryText(row, point, time) {
    if (point < 0) return `${row.label}\nnothing recorded before ${duration(row.at[0])}`;
    const reserved = row.reserved.length ? `, ${bytes(row.reserved[point])} reserved` : "";
    return `${row.label}\n${bytes(row.allocated[point])} allocated${reserved}, at ${duration(time)}`;
  }

  // An event's launches: of a call or of its work that one's, of what holds calls all of theirs.
  launchesOf(event) {
    if (!event || event.kind === undefined) return [];
    if (event.call >= 0) return [this.step.launches.get(event.call)];
    if (DEVICE.has(event.kind)) return [];
    const { lane } = event.row;
    return [...this.step.launches.values()].filter(
      ({ call }) => call && call.row.lane === lane && call.start >= event.start && call.start < event.end,
    );
  }

  choose(event) {
    this.chosen = event;
    const launches = this.launchesOf(event);
    this.pairs = launches.flatMap(({ call, works }) => {
      const shown = event.call >= 0 && event.kind !== RUNTIME ? [event] : works;
      return call ? shown.map((work) => [call, work]) : [];
    }).slice(0, MOST_PAIRS);
    this.chosenBox.hidden = !event;
    if (event) this.chosenBox.textContent = [this.text(event), ...this.told(event, launches)].join("\n");
    this.draw();
  }

  told(event, launches) {
    const works = launches.flatMap((one) => [...one.works, ...one.away]);
    if (event.call >= 0 && event.kind !== RUNTIME) {
      const { call } = launches[0];
      return call ? [`launched by ${call.name}, ${duration(event.start - call.start)} before`] : [];
    }
    if (!works.length) return [];
    const ns = works.reduce((sum, work) => sum + work.end - work.start, 0), after = works[0].start - event.start;
    const late = launches.some((one) => one.away.length) ? "; in part after this step" : "";
    if (works.length === 1) return [`launches ${works[0].name}, ${duration(after)} later${late.replace("in part ", "")}`];
    return [`launches ${works.length} events of the device, ${duration(ns)} in all, from ${duration(after)} later on${late}`];
  }

  zoom(factor, time = (this.view[0] + this.view[1]) / 2) {
    const [a, b] = this.view, span = Math.min(Math.max((b - a) * factor, LEAST_SPAN), this.step.ns);
    this.look(time - ((time - a) / (b - a)) * span, span);
  }

  look(start, span) {
    const from = Math.max(0, Math.min(start, this.step.ns - span));
    this.view = [from, from + span];
    this.draw();
  }

  move(share) { this.look(this.view[0] + share * (this.view[1] - this.view[0]), this.view[1] - this.view[0]); }

  turnArrows() {
    this.arrows = !this.arrows;
    this.draw();
  }

  select(range) {
    this.range = range;
    this.draw();
  }

  wire() {
    const canvas = this.canvas, keys = {
      w: () => this.zoom(0.7), s: () => this.zoom(1 / 0.7), a: () => this.move(-0.15), d: () => this.move(0.15),
      0: () => this.look(0, this.step.ns),
      escape: () => { this.range = null; this.choose(null); },
      r: () => this.chosen && this.select([Math.max(0, this.chosen.start), Math.min(this.step.ns, this.chosen.end)]),
    };
    Object.assign(keys, { arrowup: keys.w, arrowdown: keys.s, arrowleft: keys.a, arrowright: keys.d });
    Object.assign(keys, { "+": keys.w, "-": keys.s, home: keys[0] });
    this.act = { in: keys.w, out: keys.s, all: keys[0], arrows: () => this.turnArrows() };
    canvas.addEventListener("keydown", (event) => {
      const key = keys[event.key.toLowerCase()];
      if (!key || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      key();
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
      if (sideways) this.move((event.deltaX || event.deltaY) / 800);
      else this.zoom(1.0018 ** event.deltaY, this.view[0] + Math.max(0, event.offsetX - GUTTER) / this.scale);
    }, { passive: false });
    this.wirePointer(canvas);
  }

  wirePointer(canvas) {
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      const { offsetX: x } = event, selects = x >= GUTTER && (event.shiftKey || event.offsetY < AXIS);
      drag = { x, from: this.view[0], moved: false, selects };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const { offsetX: x, offsetY: y } = event;
      if (drag && (drag.moved ||= Math.abs(x - drag.x) > 3)) {
        this.tip.hidden = true;
        if (drag.selects) this.select([this.time(Math.min(x, drag.x)), this.time(Math.max(x, drag.x))]);
        else this.look(drag.from - (x - drag.x) / this.scale, this.view[1] - this.view[0]);
        return;
      }
      const { row, event: hit, point, time } = this.at(x, y), folds = row && (row.deep > 1 || row.folds);
      canvas.style.cursor = x < GUTTER && folds ? "pointer" : y < AXIS ? "ew-resize" : "crosshair";
      this.tip.hidden = !hit && point === undefined;
      if (this.tip.hidden) return;
      this.tip.textContent = hit ? this.text(hit) : this.memoryText(row, point, time);
      const box = this.tip.getBoundingClientRect();
      this.tip.style.left = `${Math.min(event.clientX + 14, innerWidth - box.width - 8)}px`;
      const below = event.clientY + 18, above = event.clientY - box.height - 10;
      this.tip.style.top = `${below + box.height > innerHeight ? above : below}px`;
    });
    canvas.addEventListener("pointerup", (event) => {
      const still = drag && !drag.moved, { row, event: hit } = this.at(event.offsetX, event.offsetY);
      drag = null;
      if (!still) return;
      if (event.offsetY < AXIS) this.range = null;
      if (event.offsetX < GUTTER && row?.key) this.expanded[this.expanded.has(row.key) ? "delete" : "add"](row.key);
      this.choose(hit ?? null);
    });
    canvas.addEventListener("pointercancel", () => { drag = null; });
    canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    canvas.addEventListener("dblclick", (event) => {
      const { event: hit } = this.at(event.offsetX, event.offsetY);
      if (!hit) return;
      const span = Math.min(Math.max((hit.end - hit.start) * 1.2, LEAST_SPAN), this.step.ns);
      this.look((hit.start + hit.end - span) / 2, span);
    });
  }
}
