// Events as the page embeds them, and how they are named, coloured and measured.
"use strict";

const KINDS = [
  "operator", "annotation", "runtime call", "kernel", "copy", "memset", "Python",
  "annotation, as the device saw it", "profiler's own work", "communication kernel",
];
const [RUNTIME, DEVICE] = [2, new Set([3, 4, 5, 9])];
const KEYS = ["#3f74c4", "#6f7a8a", "#b98232", "#1f8a83", "#2f9e58", "#7bb26a", "#a8894a", "#6f7a8a", "#a0a7b3", "#8957e5"];

const duration = (ns) => {
  const [scale, unit] = ns >= 1e9 ? [1e9, "s"] : ns >= 1e6 ? [1e6, "ms"] : ns >= 1e3 ? [1e3, "µs"] : [1, "ns"];
  return `${(ns / scale).toLocaleString("en", { maximumFractionDigits: unit === "ns" ? 0 : 3 })} ${unit}`;
};

// Lightness and hue vary a little with the name, so that neighbours stay apart.
const shade = (colour, name) => {
  let hash = 7;
  for (let i = 0; i < name.length; i++) hash = (hash * 31 + name.charCodeAt(i)) | 0;
  const mix = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) + (((hash >> at) & 15) - 8) * 3);
  return `rgb(${mix.map((value) => Math.max(0, Math.min(255, value))).join()})`;
};

// Columns into events; what starts within another lies below it, as deep as others hold it.
const unpack = (lane, names, stages) => {
  const open = [];
  let start = 0;
  return lane.s.map((delta, i) => {
    start += delta;
    const end = start + lane.d[i], kind = lane.k[i], name = names[lane.n[i]];
    while (open.length && open[open.length - 1] <= start) open.pop();
    const depth = open.length;
    open.push(end);
    const colour = stages.get(name) ?? shade(KEYS[kind], name);
    return { start, end, kind, name, depth, colour, shape: lane.h[i], tie: lane.c.length ? lane.c[i] : -1 };
  });
};
