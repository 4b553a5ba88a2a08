// A step on a canvas: lanes of blocks and of nested events, zoomed and moved without a framework.
"use strict";

const GUTTER = 152, AXIS = 22, ROW = 15, BAND = 22, GAP = 7, LEAST_SPAN = 200; // pixels; the last in ns

class Timeline {
  constructor(section, data) {
    this.data = data;
    this.canvas = section.querySelector("canvas");
    this.output = section.querySelector("output");
    this.chosenBox = section.querySelector(".chosen");
    this.tip = document.getElementById("tip");
    this.stages = new Map(data.stages);
    this.expanded = new Set();
    this.query = "";
    this.wire();
  }

  // Shows a step; its events are unpacked when it is first asked for.
  show(number, title) {
    const step = this.data.steps[number], { lanes, names, parts, stages } = this.data;
    const blocks = (label, [starts, ends, ids], kinds) => ({
      label, band: true,
      events: starts.map((start, i) => {
        const [name, colour] = kinds[ids[i]];
        return { start, end: ends[i], depth: 0, shape: -1, tie: -1, name, colour };
      }),
    });
    step.rows ??= [
      blocks("stages", step.stages, stages),
      ...(step.device ? [blocks("device", step.device, parts)] : []),
      ...lanes.map((lane, i) => ({ ...lane, key: i, events: unpack(step.lanes[i], names, this.stages) })),
    ].filter((row) => row.events.length);
    for (const row of step.rows) row.deep = 1 + row.events.reduce((most, event) => Math.max(most, event.depth), 0);
    Object.assign(this, { step, number, title, view: [0, step.ns], chosen: null });
    this.choose(null);
  }

  place() {
    const cap = this.step.rows.length > 8 ? 3 : 10;
    let y = AXIS;
    for (const row of this.step.rows) {
      row.shown = this.expanded.has(row.key) ? row.deep : Math.min(row.deep, cap);
      Object.assign(row, { y, height: row.band ? BAND : row.shown * ROW });
      y += row.height + GAP;
    }
    return y;
  }

  draw() {
    const width = this.canvas.clientWidth, height = this.place();
    if (!width) return;
    const ratio = window.devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.canvas.style.height = `${height}px`;
    Object.assign(this.canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    this.scale = (width - GUTTER) / (this.view[1] - this.view[0]);
    this.ticks(pen, width, height, colour);
    let drawn = 0;
    this.found = { count: 0, ns: 0 };
    for (const row of this.step.rows) {
      pen.fillStyle = colour("lane");
      pen.fillRect(GUTTER, row.y, width - GUTTER, row.height);
      pen.save();
      pen.beginPath();
      pen.rect(GUTTER, row.y, width - GUTTER, row.height);
      pen.clip();
      drawn += this.events(pen, row, width);
      pen.restore();
      pen.fillStyle = colour(row.own || row.band ? "ink" : "soft");
      this.label(pen, row, GUTTER - 12);
    }
    this.tie(pen, colour("ink"));
    this.canvas.dataset.drawn = drawn;
    const shown = this.view[1] - this.view[0], said = [this.title];
    if (shown < this.step.ns) said.push(`shown: ${duration(shown)} from ${duration(this.view[0])}`);
    if (this.query) said.push(`“${this.query}”: ${this.found.count} in this step, ${duration(this.found.ns)}`);
    this.output.textContent = said.join(" · ");
  }

  x(time) { return GUTTER + (time - this.view[0]) * this.scale; }

  ticks(pen, width, height, colour) {
    const rough = (this.view[1] - this.view[0]) / Math.max(2, (width - GUTTER) / 110);
    const power = 10 ** Math.floor(Math.log10(rough)), every = power * [1, 2, 5, 10].find((m) => m * power >= rough);
    for (let at = Math.ceil(this.view[0] / every) * every; at <= this.view[1]; at += every) {
      const x = this.x(at);
      pen.fillStyle = colour("grid");
      pen.fillRect(x, AXIS - 4, 1, height);
      pen.fillStyle = colour("soft");
      pen.fillText(at ? duration(at) : "0", x + 3, AXIS / 2 - 1);
    }
  }

  events(pen, row, width) {
    const until = new Float64Array(row.deep).fill(-1); // what is thinner than a pixel is drawn once a pixel
    let drawn = 0;
    for (const event of row.events) {
      const hit = !this.query || (!row.band && event.name.toLowerCase().includes(this.query));
      if (this.query && hit) {
        this.found.count++;
        this.found.ns += event.end - event.start;
      }
      if (event.depth >= row.shown) continue;
      const left = Math.max(this.x(event.start), GUTTER - 2), right = Math.min(this.x(event.end), width + 2);
      if (right < GUTTER || left > width || (right <= until[event.depth] && !(this.query && hit))) continue;
      const wide = Math.max(right - left, 1), y = row.y + event.depth * ROW, tall = row.band ? BAND : ROW - 1;
      pen.globalAlpha = hit ? 1 : 0.15;
      pen.fillStyle = event.colour;
      pen.fillRect(left, y, wide > 3 ? wide - 0.5 : wide, tall);
      if (event === this.chosen) {
        pen.strokeStyle = "#fff";
        pen.strokeRect(left + 0.5, y + 0.5, wide - 1, tall - 1);
      }
      if (wide > 26) {
        pen.fillStyle = "#fff";
        const room = Math.floor((wide - 6) / 5.6), { name } = event;
        const text = name.length <= room ? name : `${name.slice(0, Math.max(1, room - 1))}…`;
        pen.fillText(text, left + 3, y + tall / 2 + 0.5);
      }
      until[event.depth] = Math.floor(left + wide) + (wide > 1 ? 0 : 1);
      drawn++;
    }
    pen.globalAlpha = 1;
    return drawn;
  }

  label(pen, row, room) {
    let text = row.own ? `${row.label.replace(/ \(.*\)$/, "")}, the step's` : row.label;
    while (pen.measureText(text).width > room && text.length > 4) text = `${text.slice(0, -2)}…`;
    pen.fillText(text, 2, row.y + Math.min(row.height, BAND) / 2);
    if (row.deep <= row.shown || row.height < 2 * ROW) return;
    pen.fillText(`+ ${row.deep - row.shown} deeper`, 2, row.y + 1.6 * ROW);
  }

  // A line from a launch to what it launched.
  tie(pen, ink) {
    if (!this.chosen || !this.partner) return;
    const ends = [this.chosen, this.partner].sort((a, b) => a.start - b.start);
    const [from, to] = ends.map((event) => {
      const row = this.step.rows.find((one) => one.events.includes(event));
      return [Math.max(this.x(event.start), GUTTER), row.y + (Math.min(event.depth, row.shown - 1) + 0.5) * ROW];
    });
    pen.strokeStyle = ink;
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.moveTo(...from);
    pen.bezierCurveTo((from[0] + to[0]) / 2, from[1], (from[0] + to[0]) / 2, to[1], ...to);
    pen.stroke();
    pen.lineWidth = 1;
  }

  at(x, y) {
    const row = this.step.rows.find((one) => y >= one.y && y < one.y + one.height);
    if (!row || x < GUTTER) return { row };
    const depth = row.band ? 0 : Math.floor((y - row.y) / ROW), reach = 1.5 / this.scale;
    const time = this.view[0] + (x - GUTTER) / this.scale;
    const hits = row.events.filter((e) => e.depth === depth && e.start <= time + reach && e.end >= time - reach);
    const distance = (e) => Math.max(e.start - time, time - e.end, 0);
    return { row, event: hits.sort((a, b) => distance(a) - distance(b))[0] };
  }

  text(event) {
    const kind = event.kind === undefined ? "" : `${KINDS[event.kind]}: `;
    const from = event.start < 0 ? "begun before the step" : `from ${duration(event.start)}`;
    const lines = [event.name, `${kind}${duration(event.end - event.start)}, ${from}`];
    if (event.shape >= 0) lines.push(this.data.shapes[event.shape]);
    return lines.join("\n");
  }

  choose(event) {
    this.chosen = event;
    this.partner = null;
    if (event && event.tie > 0) {
      const wanted = event.kind === RUNTIME ? DEVICE : new Set([RUNTIME]);
      const other = (one) => one.tie === event.tie && wanted.has(one.kind);
      for (const row of this.step.rows) this.partner ??= row.events.find(other);
    }
    this.chosenBox.hidden = !event;
    if (event) {
      const lines = [this.text(event)], { partner } = this;
      if (partner) {
        const [word, when] = event.kind === RUNTIME ? ["launches", "later"] : ["launched by", "before"];
        lines.push(`${word} ${partner.name}, ${duration(Math.abs(partner.start - event.start))} ${when}`);
      }
      this.chosenBox.textContent = lines.join("\n");
    }
    this.draw();
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

  wire() {
    const canvas = this.canvas, keys = {
      w: () => this.zoom(0.7), s: () => this.zoom(1 / 0.7), a: () => this.move(-0.15), d: () => this.move(0.15),
      0: () => this.look(0, this.step.ns), escape: () => this.choose(null),
    };
    Object.assign(keys, { arrowup: keys.w, arrowdown: keys.s, arrowleft: keys.a, arrowright: keys.d });
    Object.assign(keys, { "+": keys.w, "-": keys.s, home: keys[0] });
    this.act = { in: keys.w, out: keys.s, all: keys[0] };
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
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      drag = { x: event.offsetX, from: this.view[0], moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const { offsetX: x, offsetY: y } = event;
      if (drag && (drag.moved ||= Math.abs(x - drag.x) > 3)) {
        this.tip.hidden = true;
        this.look(drag.from - (x - drag.x) / this.scale, this.view[1] - this.view[0]);
        return;
      }
      const { row, event: hit } = this.at(x, y);
      canvas.style.cursor = x < GUTTER && row && row.deep > 1 ? "pointer" : "crosshair";
      this.tip.hidden = !hit;
      if (!hit) return;
      this.tip.textContent = this.text(hit);
      const box = this.tip.getBoundingClientRect();
      this.tip.style.left = `${Math.min(event.clientX + 14, innerWidth - box.width - 8)}px`;
      const below = event.clientY + 18, above = event.clientY - box.height - 10;
      this.tip.style.top = `${below + box.height > innerHeight ? above : below}px`;
    });
    canvas.addEventListener("pointerup", (event) => {
      const still = drag && !drag.moved, { row, event: hit } = this.at(event.offsetX, event.offsetY);
      drag = null;
      if (!still) return;
      if (event.offsetX < GUTTER && row) this.expanded[this.expanded.has(row.key) ? "delete" : "add"](row.key);
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
