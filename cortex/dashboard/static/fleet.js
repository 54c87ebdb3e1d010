// Nodes, their devices with memory by model, the models, and what can be done with them.

import { order } from "./api.js";
import { $, make, mib, say, sync } from "./dom.js";

const LOOKS = { ready: "good", idle: "good", loaded: "good", up: "good", serving: "good", ok: "good", quarantined: "bad", unavailable: "bad", failed: "bad", down: "bad", refused: "bad", degraded: "bad", unloaded: "dim", stopped: "dim" };
const look = (state) => LOOKS[state] || "warn";
const colors = new Map();

function color(model) {
  if (!colors.has(model)) colors.set(model, colors.size % 8);
  return `c${colors.get(model)}`;
}

/** Show a text above everything. */
export function notify(text, isBad = false) {
  const notice = $("notice");
  notice.hidden = !text;
  notice.classList.toggle("bad", isBad);
  say(notice, text);
}

function confirmed(text) {
  say($("confirm-text"), text);
  const dialog = $("confirm");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

async function act(button, verb, wanted, question) {
  const what = [verb, wanted.model || wanted.device || "", wanted.node ? `on ${wanted.node}` : ""].filter(Boolean).join(" ");
  if (question && !(await confirmed(question))) return;
  button.disabled = true;
  notify(`${what} …`);
  try {
    let last = "there is nothing to do";
    await order(verb, wanted, (step) => {
      last = `${step.node}: ${step.text}`;
      notify(step.fraction == null ? last : `${last} ${Math.round(step.fraction * 100)} %`);
    });
    notify(last);
  } catch (error) {
    notify(`${what}: ${error.message}`, true);
  } finally {
    button.disabled = false;
  }
}

function button(text, does) {
  const element = make("button", "small", text);
  element.type = "button";
  element.addEventListener("click", () => does(element));
  return element;
}

/** Show whether the fleet serves. */
export function showHealth(health) {
  const badge = $("health");
  say(badge, health.status);
  badge.className = `badge ${look(health.status)}`;
  sync($("reasons"), health.reasons.map((text, i) => [i, text]), (r) => r[0], () => make("li"), (li, r) => say(li, r[1]));
}

/** Show the nodes. */
export function showNodes(nodes) {
  sync($("nodes"), nodes, (n) => n.name, makeNode, updateNode);
}

function makeNode(node) {
  const card = make("article", "node");
  const head = make("div", "row");
  const title = make("h3", "", node.name);
  const state = make("span", "state");
  const drain = button("Drain", (b) => {
    const verb = card.dataset.draining ? "undrain" : "drain";
    act(b, verb, { node: node.name }, verb === "drain" ? `Drain ${node.name}? It takes no new work until it is undrained.` : "");
  });
  drain.classList.add("drain");
  head.append(title, state, drain);
  card.append(head, make("p", "dim what"), make("div", "devices"));
  return card;
}

function updateNode(card, node) {
  const told = node.state || {};
  const isDraining = told.state === "draining";
  card.dataset.draining = isDraining ? "yes" : "";
  const state = card.querySelector(".state");
  say(state, node.link !== "up" ? node.link : isDraining ? "draining" : "up");
  state.className = `state ${look(node.link !== "up" ? node.link : isDraining ? "draining" : "up")}`;
  say(card.querySelector(".drain"), isDraining ? "Undrain" : "Drain");
  card.querySelector(".drain").setAttribute("aria-label", `${isDraining ? "undrain" : "drain"} ${node.name}`);
  say(card.querySelector(".what"), [node.endpoint, told.version && `neuron ${told.version}`, told.build, node.error].filter(Boolean).join(" · "));
  sync(card.querySelector(".devices"), node.link === "down" ? [] : told.devices || [], (d) => d.uuid, (d) => makeDevice(node.name, d.uuid), (box, d) => updateDevice(box, d, told.models || []));
}

function makeDevice(node, uuid) {
  const box = make("div", "device");
  const head = make("p");
  const pause = button("Pause", (b) => {
    const verb = box.dataset.paused ? "resume" : "pause";
    act(b, verb, { node, device: uuid }, verb === "pause" ? `Pause ${uuid} on ${node}? Its jobs end first, its models are unloaded, and it is left alone until it is resumed.` : "");
  });
  const restart = button("Restart", (b) => act(b, "restart", { node, device: uuid }, `Restart the worker of ${uuid} on ${node}? Its running jobs go on elsewhere, or from where they were.`));
  pause.className = "small pause";
  restart.className = "small restart";
  restart.setAttribute("aria-label", `restart ${uuid} on ${node}`);
  const set = make("span", "do");
  set.append(pause, restart);
  head.append(make("span", "label"), make("span", "state"), set);
  const bar = make("div", "bar");
  bar.setAttribute("role", "img");
  const foot = make("p", "dim");
  foot.append(make("span", "memory"), make("span", "load"));
  box.append(head, bar, foot, make("ul", "legend"), make("p", "warn reason"));
  return box;
}

function updateDevice(box, device, models) {
  const here = [];
  for (const model of models) {
    for (const replica of model.replicas || []) {
      const places = [replica.device, ...(replica.also_on || [])];
      if (!places.includes(device.uuid)) continue;
      const memory_mb = replica.memory_mb == null ? null : Math.round(replica.memory_mb / places.length);
      here.push({ id: model.id, ...replica, memory_mb, places: places.length, kv_tokens: model.kv_tokens });
    }
  }
  const held = here.reduce((sum, r) => sum + (r.memory_mb || 0), 0);
  const total = device.memory_mb || Math.max(held, device.used_mb || 0, 1);
  const other = Math.max(0, (device.used_mb || 0) - held);
  say(box.querySelector(".label"), `${device.name} · ${device.uuid}`);
  const busy = device.phase && !["idle", "starting"].includes(device.phase) ? `, ${device.phase}` : "";
  const state = box.querySelector(".state");
  say(state, device.state + busy + (device.restarts ? ` · ${device.restarts} restarts` : ""));
  state.className = `state ${look(device.state)}`;
  const isPaused = /^paused/.test(device.reason || "");
  box.dataset.paused = isPaused ? "yes" : "";
  const pause = box.querySelector(".pause");
  say(pause, isPaused ? "Resume" : "Pause");
  pause.setAttribute("aria-label", `${isPaused ? "resume" : "pause"} ${device.uuid}`);
  const parts = [...here.map((r) => ({ key: r.id, mb: r.memory_mb || 0, className: color(r.id) + (r.status === "loaded" ? "" : " moving") })), { key: "\u0000other", mb: other, className: "other" }];
  const bar = box.querySelector(".bar");
  sync(bar, parts.filter((p) => p.mb > 0), (p) => p.key, () => make("span"), (span, p) => {
    span.className = p.className;
    span.style.width = `${Math.min(100, (p.mb / total) * 100)}%`;
    span.title = p.key === "\u0000other" ? `others: ${mib(p.mb)}` : `${p.key}: ${mib(p.mb)}`;
  });
  bar.setAttribute("aria-label", parts.filter((p) => p.mb > 0).map((p) => `${p.key === "\u0000other" ? "others" : p.key} ${mib(p.mb)}`).join(", ") || "empty");
  say(box.querySelector(".memory"), `${mib(held + other)} of ${mib(device.memory_mb)}`);
  say(box.querySelector(".load"), [device.utilization != null && `${Math.round(device.utilization * 100)} %`, device.temperature_c != null && `${Math.round(device.temperature_c)} °C`, device.power_w != null && `${Math.round(device.power_w)} W`].filter(Boolean).join(" · "));
  sync(box.querySelector(".legend"), here, (r) => r.id, () => { const li = make("li"); li.append(make("i"), make("span")); return li; }, (li, r) => {
    li.firstChild.className = color(r.id);
    const progress = r.progress == null ? "" : ` ${Math.round(r.progress * 100)} %`;
    const kv = r.kv_used && r.kv_tokens ? `, KV ${Math.round((r.kv_used / r.kv_tokens) * 100)} %` : "";
    const busy = (r.running ? `, ${r.running} running` : "") + kv + (r.places > 1 ? `, over ${r.places} devices` : "");
    const note = r.status === "loaded" ? busy : `, ${r.status}${progress}`;
    say(li.lastChild, `${r.id} ${mib(r.memory_mb)}${note}`);
  });
  const reason = box.querySelector(".reason");
  reason.hidden = !device.reason;
  say(reason, device.reason || "");
}

/** Show the models; `nodes` tell how many requests each has. */
export function showModels(models, nodes) {
  const work = new Map();
  for (const node of nodes) {
    for (const model of (node.state && node.state.models) || []) {
      const sum = work.get(model.id) || { running: 0, queued: 0 };
      work.set(model.id, { running: sum.running + (model.running || 0), queued: sum.queued + (model.queued || 0) });
    }
  }
  sync($("models"), models.filter((m) => !m.alias_of), (m) => m.id, makeModel, (row, m) => updateModel(row, m, work.get(m.id) || { running: 0, queued: 0 }));
}

function makeModel(model) {
  const row = make("tr");
  for (const name of ["name", "status", "where", "number context", "number running", "number queued"]) row.append(make("td", name));
  const actions = make("td", "admin");
  const set = make("div", "row");
  const load = button("Load", (b) => act(b, "load", { model: model.id }));
  const unload = button("Unload", (b) => act(b, "unload", { model: model.id }, `Unload ${model.id}? Its running requests end first.`));
  const pin = button("Pin", (b) => act(b, row.dataset.pinned ? "unpin" : "pin", { model: model.id }));
  load.className = "small load";
  unload.className = "small unload";
  pin.className = "small pin";
  set.append(load, unload, pin);
  actions.append(set);
  row.append(actions);
  return row;
}

function updateModel(row, model, work) {
  const status = model.status || { value: "unloaded" };
  const places = model.locations || [];
  row.dataset.pinned = model.pinned ? "yes" : "";
  say(row.children[0], model.id + (model.aliases && model.aliases.length ? ` (${model.aliases.join(", ")})` : ""));
  const progress = status.progress == null ? "" : ` ${Math.round(status.progress * 100)} %`;
  say(row.children[1], status.value + progress + (model.pinned ? ", pinned" : "") + (status.reason ? `: ${status.reason}` : ""));
  row.children[1].className = `status ${look(status.value)}`;
  say(row.children[2], places.length ? places.map((p) => `${p.node}/${(p.devices || []).join(",")}`).join(" ") : `fits ${(model.feasible_on || []).join(", ") || "nowhere"}`);
  say(row.children[3], model.meta && model.meta.n_ctx ? model.meta.n_ctx : "–");
  say(row.children[4], work.running);
  say(row.children[5], work.queued);
  const isHere = places.length > 0;
  row.querySelector(".load").hidden = isHere;
  row.querySelector(".unload").hidden = !isHere;
  say(row.querySelector(".pin"), model.pinned ? "Unpin" : "Pin");
  for (const name of ["load", "unload", "pin"]) {
    const element = row.querySelector(`.${name}`);
    element.setAttribute("aria-label", `${element.textContent.toLowerCase()} ${model.id}`);
  }
}
