// Speaks to the gateway that served this page, and to nobody else.

let key = sessionStorage.getItem("cortex-key") || "";

/** Remember a key until the tab is closed. */
export function useKey(value) {
  key = value;
  if (value) sessionStorage.setItem("cortex-key", value);
  else sessionStorage.removeItem("cortex-key");
}

/** Say whether there is a key. */
export const hasKey = () => key !== "";

/** Fetch with the key. */
export function ask(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (key) headers.authorization = `Bearer ${key}`;
  return fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
}

/** Return what an answer that is no success says. */
export async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the gateway answers ${answer.status}`;
  }
}

/** Yield the lines of a body as they come, without their ends. */
export async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      yield* parts;
    }
    if (rest) yield rest;
  } finally {
    reader.cancel().catch(() => {}); // also when the loop over the lines is left early
  }
}

/** Yield {event, data} of a stream of server-sent events; data is text. */
export async function* events(answer) {
  let event = "message", data = [];
  for await (const line of lines(answer)) {
    if (line === "") {
      if (data.length) yield { event, data: data.join("\n") };
      event = "message";
      data = [];
    } else if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
}

/** Give an order to the fleet; `told` gets each step that a neuron tells. Throws what is refused. */
export async function order(verb, wanted, told) {
  const answer = await ask(`/fleet/${verb}`, { method: "POST", body: JSON.stringify(wanted), headers: { "content-type": "application/json" } });
  if (!answer.ok) throw new Error(await reason(answer));
  const refused = [];
  for await (const line of lines(answer)) {
    if (!line) continue;
    const step = JSON.parse(line);
    if (step.state === "refused") refused.push(`${step.node}: ${step.text}`);
    told(step);
  }
  if (refused.length) throw new Error(refused.join("; "));
}
