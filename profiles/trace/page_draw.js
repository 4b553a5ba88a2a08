// Draws a timeline: rows of blocks and nested events, arrows from launches to what they launched, memory.
"use strict";

const GUTTER = 152, AXIS = 22, ROW = 15, BAND = 22, CHART = 44, GAP = 7; // pixels
const ARROWS = 60; // launches on screen at which their arrows are drawn unasked

const draw = (line) => {
  const width = line.canvas.clientWidth, height = place(line);
  if (!width) return;
  const ratio = window.devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  line.canvas.style.height = `${height}px`;
  Object.assign(line.canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  const pen = line.canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  line.scale = (width - GUTTER) / (line.view[1] - line.view[0]);
  drawTicks(line, pen, width, height, colour);
  let drawn = 0;
  line.found = { count: 0, ns: 0 };
  line.canvas.dataset.late = 0;
  for (const row of line.step.rows) {
    pen.fillStyle = colour("lane");
    pen.fillRect(GUTTER, row.y, width - GUTTER, row.height);
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER, row.y, width - GUTTER, row.height);
    pen.clip();
    if (row.chart) drawChart(line, pen, row, width, colour);
    else drawn += drawEvents(line, pen, row, width);
    pen.restore();
    pen.fillStyle = colour(row.own || row.band ? "ink" : "soft");
    drawLabel(pen, row, GUTTER - 12);
  }
  line.canvas.dataset.drawn = drawn;
  line.canvas.dataset.arrows = drawArrows(line, pen, width, colour);
  drawRange(line, pen, width, height, colour);
  return drawn;
};

const place = (line) => {
  const many = line.step.rows.length > 8;
  let y = AXIS;
  for (const row of line.step.rows) {
    row.folded = Boolean(row.folds) && !line.expanded.has(row.key);
    row.shown = row.folded ? 1 : row.folds || line.expanded.has(row.key) ? row.deep : Math.min(row.deep, many && !row.own ? 4 : 12);
    row.drawn = row.folded ? row.pieces : row.events;
    Object.assign(row, { y, height: row.chart ? CHART : row.band ? BAND : row.shown * ROW });
    y += row.height + GAP;
  }
  return y;
};

const drawTicks = (line, pen, width, height, colour) => {
  const rough = (line.view[1] - line.view[0]) / Math.max(2, (width - GUTTER) / 110);
  const power = 10 ** Math.floor(Math.log10(rough)), every = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  for (let at = Math.ceil(line.view[0] / every) * every; at <= line.view[1]; at += every) {
    const x = line.x(at);
    pen.fillStyle = colour("grid");
    pen.fillRect(x, AXIS - 4, 1, height);
    pen.fillStyle = colour("soft");
    pen.fillText(at ? duration(at) : "0", x + 3, AXIS / 2 - 1);
  }
};

const drawEvents = (line, pen, row, width) => {
  const until = new Float64Array(row.shown).fill(-1); // what is thinner than a pixel is drawn once a pixel
  const { matching } = line, chosen = line.chosen;
  if (matching) {
    for (const event of row.events) {
      if (!matching.has(event.number)) continue;
      line.found.count++;
      line.found.ns += event.end - event.start;
    }
  }
  let drawn = 0, late = 0;
  for (const event of row.drawn) {
    if (event.depth >= row.shown) continue;
    const left = Math.max(line.x(event.start), GUTTER - 2), right = Math.min(line.x(event.end), width + 2);
    const hit = !matching || matching.has(event.number);
    if (right < GUTTER || left > width || (right <= until[event.depth] && !(matching && hit))) continue;
    const wide = Math.max(right - left, 1), y = row.y + event.depth * ROW, tall = row.band ? BAND : ROW - 1;
    pen.globalAlpha = hit ? 1 : 0.15;
    pen.fillStyle = event.colour;
    pen.fillRect(left, y, wide > 3 ? wide - 0.5 : wide, tall);
    if (event.late) hatch(pen, left, y, wide, tall), late++;
    if (chosen && (event === chosen || event.of === chosen)) {
      pen.strokeStyle = "#fff";
      pen.lineWidth = 2;
      pen.strokeRect(left + 1, y + 1, Math.max(wide - 2, 1), tall - 2);
      pen.lineWidth = 1;
    }
    if (wide > 26) {
      pen.fillStyle = "#fff";
      const room = Math.floor((wide - 6) / 5.6), { text } = event;
      pen.fillText(text.length <= room ? text : `${text.slice(0, Math.max(1, room - 1))}…`, left + 3, y + tall / 2 + 0.5);
    }
    until[event.depth] = Math.floor(left + wide) + (wide > 1 ? 0 : 1);
    drawn++;
  }
  pen.globalAlpha = 1;
  line.canvas.dataset.late = Number(line.canvas.dataset.late) + late;
  return drawn;
};

// Work of a device that an earlier step launched.
const hatch = (pen, left, y, wide, tall) => {
  pen.save();
  pen.beginPath();
  pen.rect(left, y, wide, tall);
  pen.clip();
  pen.strokeStyle = "rgba(255, 255, 255, 0.6)";
  pen.beginPath();
  for (let x = Math.max(left, GUTTER) - tall; x < left + wide; x += 6) pen.moveTo(x, y + tall), pen.lineTo(x + tall, y);
  pen.stroke();
  pen.restore();
};

const title = (row) => (row.own ? `${row.label.replace(/ \(.*\)$/, "")}, the step's` : row.label);

const drawLabel = (pen, row, room) => {
  const opens = row.deep > row.shown, closes = row.folds && !row.folded;
  let text = row.folds ? row.label : title(row);
  if (row.folds) text = `${row.folded ? "▸" : "▾"} ${text}`;
  while (pen.measureText(text).width > room && text.length > 4) text = `${text.slice(0, -2)}…`;
  pen.fillText(text, 2, row.y + Math.min(row.height, BAND) / 2);
  if (row.chart) return pen.fillText(`up to ${bytes(row.most)}`, 2, row.y + 2.1 * ROW);
  if (closes || row.folded || !opens || row.height < 2 * ROW) return undefined;
  return pen.fillText(`▸ ${row.deep - row.shown} deeper`, 2, row.y + 1.6 * ROW);
};

// Allocated bytes as an area from the least to the most of this step; reserved ones as a line.
const drawChart = (line, pen, row, width, colour) => {
  const top = Math.max(row.most, ...(row.reserved.length ? row.reserved : [0])), bottom = row.y + CHART;
  const y = (value) => bottom - (value / top) * (CHART - 4);
  const path = (values) => {
    pen.beginPath();
    row.at.forEach((at, i) => {
      if (i) pen.lineTo(line.x(at), y(values[i - 1]));
      pen[i ? "lineTo" : "moveTo"](line.x(at), y(values[i]));
    });
    pen.lineTo(line.x(row.ns), y(values[values.length - 1]));
  };
  path(row.allocated);
  pen.strokeStyle = pen.fillStyle = colour("memory");
  pen.stroke();
  pen.lineTo(line.x(row.ns), bottom);
  pen.lineTo(line.x(row.at[0]), bottom);
  pen.globalAlpha = 0.25;
  pen.fill();
  pen.globalAlpha = 1;
  if (!row.reserved.length) return;
  path(row.reserved);
  pen.setLineDash([4, 3]);
  pen.strokeStyle = colour("soft");
  pen.stroke();
  pen.setLineDash([]);
};

// From launches to what they launched: the chosen event's, and all on screen where they are few.
const drawArrows = (line, pen, width, colour) => {
  const middle = (event) => event.row.y + (Math.min(event.depth, event.row.shown - 1) + 0.5) * ROW;
  const arrow = (call, work) => {
    const from = [line.x(call.start), middle(call)], to = [line.x(work.start), middle(work)];
    const bend = Math.max(12, Math.min(90, Math.abs(to[0] - from[0]) / 2)), up = Math.sign(to[1] - from[1]) || 1;
    pen.beginPath();
    pen.moveTo(...from);
    pen.bezierCurveTo(from[0] + bend, from[1], to[0] - bend, to[1] - up * 10, ...to);
    pen.stroke();
    pen.beginPath();
    pen.moveTo(to[0] - 5, to[1] - 3);
    pen.lineTo(...to);
    pen.lineTo(to[0] - 5, to[1] + 3);
    pen.stroke();
  };
  pen.save();
  pen.beginPath();
  pen.rect(GUTTER, AXIS, width - GUTTER, line.canvas.clientHeight);
  pen.clip();
  let drawn = 0;
  const seen = (event) => event.end >= line.view[0] && event.start <= line.view[1];
  const onScreen = [...line.step.launches.values()].filter(({ call }) => call && seen(call));
  if (line.arrows && onScreen.length <= ARROWS) {
    pen.strokeStyle = colour("soft");
    pen.globalAlpha = 0.55;
    for (const { call, works } of onScreen) for (const work of works) arrow(call, work), drawn++;
  }
  pen.strokeStyle = colour("ink");
  pen.globalAlpha = 1;
  pen.lineWidth = 1.5;
  for (const [call, work] of line.pairs) if (seen(call) || seen(work)) arrow(call, work), drawn++;
  pen.restore();
  return drawn;
};

const drawRange = (line, pen, width, height, colour) => {
  if (!line.range) return;
  const [left, right] = line.range.map((at) => Math.max(GUTTER, Math.min(width, line.x(at))));
  pen.fillStyle = colour("accent");
  pen.globalAlpha = 0.14;
  pen.fillRect(left, 0, right - left, height);
  pen.globalAlpha = 1;
  pen.fillRect(left - 1, 0, 1.5, height);
  pen.fillRect(right - 0.5, 0, 1.5, height);
  if (right - left < 60) return;
  const text = duration(line.range[1] - line.range[0]), size = pen.measureText(text).width + 8;
  pen.fillRect((left + right - size) / 2, 1, size, AXIS - 6);
  pen.fillStyle = colour("page");
  pen.fillText(text, (left + right - size) / 2 + 4, AXIS / 2 - 1);
};
