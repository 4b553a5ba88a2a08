// Events as the page embeds them, and how they are named, coloured and measured.
"use strict";

const KINDS = [
  "operator", "annotation", "runtime call", "kernel", "copy", "memset", "Python",
  "annotation, as the device saw it", "profiler's own work", "communication kernel",
];
const [ANNOTATION, RUNTIME, PYTHON, DEVICE] = [1, 2, 6, new Set([3, 4, 5, 9])];
const KEYS = ["#3f74c4", "#6f7a8a", "#b98232", "#1f8a83", "#2f9e58", "#7bb26a", "#a8894a", "#6f7a8a", "#a0a7b3", "#8957e5"];

const duration = (ns) => {
  const [scale, unit] = ns >= 1e9 ? [1e9, "s"] : ns >= 1e6 ? [1e6, "ms"] : ns >= 1e3 ? [1e3, "µs"] : [1, "ns"];
  return `${(ns / scale).toLocaleString("en", { maximumFractionDigits: unit === "ns" ? 0 : 3 })} ${unit}`;
};

const bytes = (count) => {
  const power = Math.min(3, Math.max(0, Math.floor(Math.log2(Math.abs(count) || 1) / 10)));
  const digits = { maximumFractionDigits: power < 3 ? 1 : 2 };
  return `${(count / 1024 ** power).toLocaleString("en", digits)} ${["B", "KiB", "MiB", "GiB"][power]}`;
};

// Lightness and hue vary a little with the name, so that neighbours stay apart.
const shade = (colour, name) => {
  let hash = 7;
  for (let i = 0; i < name.length; i++) hash = (hash * 31 + name.charCodeAt(i)) | 0;
  const mix = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) + (((hash >> at) & 15) - 8) * 3);
  return `rgb(${mix.map((value) => Math.max(0, Math.min(255, value))).join()})`;
};

// "folder/train.py(12): step" is read as "step train.py:12": the function tells more than the folder.
const brief = (name) => {
  const found = /^(?:.*[\\/])?([^\\/]+)\((\d+)\): (.+)$/.exec(name);
  return found ? `${found[3]}  ${found[1]}:${found[2]}` : name;
};

// Columns into events in order of start, outer before inner; "call" numbers a launch and what it launched.
const unpack = (lane, names, stages) => {
  let start = 0;
  const looks = new Map();
  return lane.s.map((delta, i) => {
    start += delta;
    const kind = lane.k[i], number = lane.n[i], name = names[number], key = number * KINDS.length + kind;
    let look = looks.get(key);
    if (!look) {
      look = { colour: stages.get(name) ?? shade(KEYS[kind], name), text: kind === PYTHON ? brief(name) : name };
      looks.set(key, look);
    }
    const call = lane.c.length ? lane.c[i] : -1;
    return { start, end: start + lane.d[i], kind, name, number, call, shape: lane.h[i], depth: 0, ...look };
  });
};

// What starts within another event lies below it, as deep as others hold it; returns how deep they go.
const nest = (events) => {
  const open = [];
  let deep = 1;
  for (const event of events) {
    while (open.length && open[open.length - 1] <= event.start) open.pop();
    event.depth = open.length;
    open.push(event.end);
    deep = Math.max(deep, open.length);
  }
  return deep;
};

// Nested events as one strip: at every moment the innermost one, as a piece of it.
const flatten = (events) => {
  const pieces = [], open = [];
  let at = 0;
  const until = (time) => {
    while (open.length && open[open.length - 1].end <= time) {
      const event = open.pop();
      if (event.end > at) pieces.push({ ...event, start: at, end: event.end, depth: 0, of: event });
      at = Math.max(at, event.end);
    }
    const event = open[open.length - 1];
    if (event && time > at) pieces.push({ ...event, start: at, end: time, depth: 0, of: event });
    at = Math.max(at, time);
  };
  for (const event of events) {
    until(event.start);
    if (!open.length) at = event.start;
    open.push(event);
  }
  until(Infinity);
  return pieces;
};
