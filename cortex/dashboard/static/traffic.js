// Requests that have ended, lifecycle events, and how fast it all is.

import { $, clock, make, plot, say, seconds, sync } from "./dom.js";

const KEPT = 60;
const RATES = 120;
let requests = [];
let happened = [];
const rates = new Array(RATES).fill(0);

/** Forget everything, as before a new connection. */
export function reset() {
  requests = [];
  happened = [];
}

/** Take requests that have ended. */
export function addRequests(rows) {
  requests = [...rows.reverse(), ...requests].slice(0, KEPT);
  sync($("requests"), requests, (r) => r.serial, makeRequest, () => {});
  const times = requests.map((r) => r.ttft_s).filter((s) => s != null);
  const most = Math.max(0, ...times);
  plot($("ttft-line"), [...times].reverse(), most);
  say($("ttft-peak"), times.length ? `most ${seconds(most)}` : "");
  const middle = [...times].sort((a, b) => a - b)[Math.floor(times.length / 2)];
  say($("ttft"), seconds(middle));
}

function makeRequest(r) {
  const row = make("tr");
  const cell = (text, className = "") => row.append(make("td", className, text));
  cell(clock(r.at));
  cell(r.model || "–", "name");
  cell(r.node || "–");
  cell(r.dialect);
  cell(r.outcome + (r.recoveries ? `, ${r.recoveries} recoveries` : "") + (r.cold ? ", cold" : ""), r.outcome === "ok" ? "good" : r.outcome === "client gone" ? "dim" : "bad");
  cell(seconds(r.ttft_s), "number");
  cell(seconds(r.seconds), "number");
  cell(r.prompt_tokens || 0, "number");
  cell(r.cached_tokens || 0, "number");
  cell(r.tokens || 0, "number");
  cell(r.tokens_per_s == null ? "–" : r.tokens_per_s.toFixed(1), "number");
  cell(r.request_id, "dim");
  return row;
}

/** Take lifecycle events. */
export function addHappened(rows) {
  happened = [...rows, ...happened].sort((a, b) => b.at - a.at).slice(0, KEPT);
  sync($("events"), happened, (h) => h.serial, makeEvent, () => {});
}

function makeEvent(h) {
  const item = make("li");
  const about = [h.node, h.model || h.device].filter(Boolean).join("/");
  item.append(make("time", "", clock(h.at)), make("span", h.level === "info" ? "dim" : h.level === "warning" ? "warn" : "bad", h.level));
  const detail = Object.entries(h.details || {}).map(([k, v]) => `${k}=${v}`).join(" ");
  item.append(make("span", "", `${about}: ${h.what}${h.reason ? ` — ${h.reason}` : ""}${detail ? ` (${detail})` : ""}`));
  return item;
}

/** Take a second's measurement. */
export function addPulse(pulse) {
  rates.push(pulse.tokens_per_s);
  rates.shift();
  say($("rate"), pulse.tokens_per_s.toFixed(pulse.tokens_per_s < 10 ? 1 : 0));
  say($("running"), pulse.running);
  const most = Math.max(...rates);
  plot($("rate-line"), rates, most);
  say($("rate-peak"), `most ${most.toFixed(0)}`);
}
