// Keeps the page live: the fleet's stream with an admin key, else the public lists now and then.

import { ask, events, hasKey, reason, useKey } from "./api.js";
import { $ } from "./dom.js";
import { notify, showHealth, showModels, showNodes } from "./fleet.js";
import * as playground from "./playground.js";
import { addHappened, addPulse, addRequests, reset } from "./traffic.js";

const AGAIN_MS = 2000;
const LOOK_MS = 5000;
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
let turn = 0;

const TAKE = {
  state(state) {
    showHealth(state.health);
    showNodes(state.nodes);
    showModels(state.models, state.nodes);
    playground.offer(state.models);
  },
  requests: addRequests,
  happened: addHappened,
  pulse: addPulse,
};

/** Follow the fleet; return false if this key does not open it. */
async function follow(mine) {
  const answer = await ask("/fleet/live");
  if (answer.status === 401 || answer.status === 403 || answer.status === 404) {
    notify(answer.status === 404 ? "This gateway has no admin interface: set gateway.admin_keys to see and steer the fleet here." : `No admin key: ${await reason(answer)}`, true);
    return false;
  }
  if (!answer.ok) throw new Error(await reason(answer));
  notify("");
  document.body.classList.add("is-admin");
  reset();
  for await (const { event, data } of events(answer)) {
    if (mine !== turn) return true;
    if (TAKE[event]) TAKE[event](JSON.parse(data));
  }
  return true;
}

/** Show what everybody may see. */
async function look() {
  const health = await (await ask("/health")).json();
  showHealth(health);
  const answer = await ask("/v1/models");
  if (!answer.ok) return notify(await reason(answer), true);
  const models = (await answer.json()).data;
  showModels(models, []);
  playground.offer(models);
}

async function live() {
  const mine = ++turn;
  document.body.classList.remove("is-admin");
  let isAdmin = hasKey();
  while (mine === turn) {
    try {
      if (isAdmin) isAdmin = await follow(mine);
      else await look();
    } catch (error) {
      showHealth({ status: "no answer", reasons: [] });
      if (mine === turn) notify(`The gateway does not answer (${error.message}); trying again.`, true);
    }
    await pause(isAdmin ? AGAIN_MS : LOOK_MS);
  }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
  $("key").value = "";
  notify("");
  live();
});
playground.begin();
live();
