// A step as rows: blocks of stages and of the device, streams, threads with Python's frames folded, memory.
"use strict";

const block = (label, [starts, ends, ids], kinds) => ({
  label, band: true, deep: 1,
  events: starts.map((start, i) => {
    const [name, colour] = kinds[ids[i]];
    return { start, end: ends[i], depth: 0, shape: -1, call: -1, number: -1, name, text: name, colour };
  }),
});

// Where stacks were recorded a thread is two rows: its frames, one strip until it is unfolded, and all else below.
const laneRows = (lane, key, all) => {
  const frames = lane.kind === "thread" ? all.filter((event) => event.kind === PYTHON) : [];
  const rest = frames.length ? all.filter((event) => event.kind !== PYTHON) : all;
  const rows = [{ ...lane, key: String(key), lane: key, all, events: rest, deep: nest(rest) }];
  if (frames.length) {
    const strip = { label: rest.length ? "Python" : `Python, ${lane.label}`, key: `${key} Python`, lane: key, folds: true };
    rows.unshift({ ...strip, own: lane.own, kind: "frames", events: frames, pieces: flatten(frames), deep: nest(frames) });
  }
  return rows;
};

const memoryRow = (where, [at, allocated, reserved], ns) => ({
  label: `memory, ${where}`, chart: true, deep: 1, events: [], at, allocated, reserved,
  ns, most: Math.max(1, ...allocated), least: Math.min(...allocated),
});

// The rows that hold something, and the launches: of each call its event and the events of its work.
const rowsOf = (step, data, stages) => {
  const lanes = data.lanes.map((lane, i) => ({ ...lane, all: unpack(step.lanes[i], data.names, stages) }));
  const rows = [
    block("stages", step.stages, data.stages),
    ...(step.device ? [block("device", step.device, data.parts)] : []),
    ...lanes.flatMap((lane, i) => laneRows(lane, i, lane.all)),
  ].filter((row) => row.events.length);
  const late = new Map(step.late);
  for (const row of rows) {
    for (const event of row.events) {
      event.row = row;
      if (DEVICE.has(event.kind) && late.has(event.call)) event.late = late.get(event.call) || "an earlier step";
    }
  }
  for (const [where, columns] of Object.entries(step.memory)) {
    if (columns[0].length) rows.push(memoryRow(where, columns, step.ns));
  }
  return { rows, launches: launchesOf(rows, step.away, data.names) };
};

const launchesOf = (rows, away, names) => {
  const found = new Map();
  const of = (call) => found.get(call) ?? found.set(call, { call: null, works: [], away: [] }).get(call);
  for (const row of rows) {
    for (const event of row.events) {
      if (event.call < 0) continue;
      if (event.kind === RUNTIME) of(event.call).call = event;
      else of(event.call).works.push(event);
    }
  }
  for (const [call, name, start, length] of away) of(call).away.push({ name: names[name], start, end: start + length });
  return found;
};
