// A chat with any model, streamed, with its timings.

import { ask, events, reason } from "./api.js";
import { $, make, say, seconds, sync } from "./dom.js";

let turns = [];
let running = null;

/** Offer the models that can chat. */
export function offer(models) {
  const chosen = $("play-model").value;
  const able = models.filter((m) => !m.capabilities || !m.capabilities.length || m.capabilities.includes("chat") || m.capabilities.includes("completion"));
  sync($("play-model"), able, (m) => m.id, (m) => { const o = make("option", "", m.id); o.value = m.id; return o; }, () => {});
  if (!chosen) {
    const loaded = able.find((m) => m.status && m.status.value === "loaded");
    if (loaded) $("play-model").value = loaded.id;
  }
}

function show(role, text) {
  const turn = make("div", `turn ${role}`);
  turn.append(make("span", "thought"), make("span", "text", text));
  $("play-log").append(turn);
  turn.scrollIntoView({ block: "nearest" });
  return turn;
}

async function send() {
  const text = $("play-text").value.trim();
  if (!text || running) return;
  const model = $("play-model").value;
  turns.push({ role: "user", content: text });
  show("user", text);
  $("play-text").value = "";
  const turn = show("assistant", "");
  const abort = (running = new AbortController());
  $("play-send").disabled = true;
  $("play-stop").disabled = false;
  let answer = "";
  try {
    answer = await stream(turn, { model, messages: turns, stream: true, stream_options: { include_usage: true }, max_tokens: Number($("play-tokens").value) || 256, temperature: Number($("play-heat").value) }, abort.signal);
  } catch (error) {
    if (error.name !== "AbortError") turn.append(make("p", "bad", error.message));
    answer = turn.querySelector(".text").textContent;
  } finally {
    if (answer) turns.push({ role: "assistant", content: answer });
    else turns.pop();
    running = null;
    $("play-send").disabled = false;
    $("play-stop").disabled = true;
  }
}

async function stream(turn, body, signal) {
  const began = performance.now();
  const answer = await ask("/v1/chat/completions", { method: "POST", signal, body: JSON.stringify(body), headers: { "content-type": "application/json" } });
  if (!answer.ok) throw new Error(await reason(answer));
  let text = "", thought = "", first = 0, last = 0, pieces = 0, usage = null, timings = null;
  const report = () => {
    const tokens = usage ? usage.completion_tokens : pieces;
    const rate = timings && timings.predicted_per_second ? timings.predicted_per_second : last > first ? ((pieces - 1) * 1000) / (last - first) : 0;
    say($("play-timings"), first ? `first token ${seconds((first - began) / 1000)} · ${tokens} tokens · ${rate.toFixed(1)} tokens/s · ${seconds((last - began) / 1000)} in all${usage && usage.prompt_tokens_details ? ` · prompt ${usage.prompt_tokens}, cached ${usage.prompt_tokens_details.cached_tokens}` : ""}` : "waiting …");
  };
  report();
  for await (const { data } of events(answer)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    usage = chunk.usage || usage;
    timings = chunk.timings || timings;
    const delta = (chunk.choices && chunk.choices[0] && chunk.choices[0].delta) || {};
    if (delta.content || delta.reasoning_content) {
      last = performance.now();
      first = first || last;
      pieces += 1;
      text += delta.content || "";
      thought += delta.reasoning_content || "";
      say(turn.querySelector(".text"), text);
      say(turn.querySelector(".thought"), thought ? `${thought}\n` : "");
      $("play-log").scrollTop = $("play-log").scrollHeight;
    }
    report();
  }
  return text;
}

/** Make the form work. */
export function begin() {
  $("play").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("play-text").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); send(); } });
  $("play-stop").addEventListener("click", () => running && running.abort());
  $("play-clear").addEventListener("click", () => { turns = []; $("play-log").replaceChildren(); say($("play-timings"), ""); $("play-text").focus(); });
}
