// The page's state, and its reactions to the user. The other modules have no state of the page.

import * as address from "./address.js";
import { Latest, Problem, call, key } from "./api.js";
import { combobox } from "./combobox.js";
import { byId, el } from "./dom.js";
import * as format from "./format.js";
import { learn } from "./known.js";
import { newItem } from "./newitem.js";
import { operationsView } from "./operations.js";
import { userView } from "./user.js";
import { facts, rankingView, usual as usualSettings, weightsView } from "./ranking.js";
import { whyView } from "./why.js";

const FIRST = 20; // rows at first, and so many more each time
const MOST = 10_000; // items that one request ranks, at most
const OFFERED = 12; // results that a search shows, at most
const PAUSE = 90; // ms after which a moved slider takes effect
const MESSAGE_MS = 6000; // ms that a message is shown
const USUAL_SECONDS = 30; // of a watched event, where no history has durations
const SIMILAR = 8; // similar items that are shown
const NO_OUTCOME = { name: "event", labels: {}, features: {}, good: true, main: true };
const LAST = "limerank-user";

const requests = { rank: new Latest(), user: new Latest(), why: new Latest(), similar: new Latest() };

let model;
let settings;
let views;
let subject = { kind: "user", user: null }; // or { kind: "made", history: [...] }
let made = [];
let shown = FIRST;
let pins = new Set();
let ranking = null;
let usual = USUAL_SECONDS;
let tab = "rank";

// Messages

function report(text) {
  const status = byId("status");
  status.textContent = text;
  status.classList.add("on");
  clearTimeout(report.timer);
  report.timer = setTimeout(() => status.classList.remove("on"), MESSAGE_MS);
}

/** Show a problem of the server, with a button that calls `again`. Other errors are thrown again. */
function failed(problem, again) {
  if (!(problem instanceof Problem)) throw problem;
  byId("ranked").setAttribute("aria-busy", "false");
  if (problem.status === 401) {
    askForKey(key.get() ? `The server does not know this key (${problem.detail}).` : "");
    return;
  }
  byId("banner-text").textContent = problem.words;
  byId("banner-again").hidden = !again || problem.status === 403;
  byId("banner-again").onclick = () => {
    calm();
    again();
  };
  byId("banner-key").hidden = problem.status !== 403;
  byId("banner").hidden = false;
}

function calm() {
  byId("banner").hidden = true;
}

// Keys

function askForKey(wrong = "") {
  const dialog = byId("key");
  byId("key-wrong").textContent = wrong;
  byId("key-wrong").hidden = !wrong;
  byId("key-forget").hidden = !key.get();
  byId("key-text").value = "";
  if (!dialog.open) dialog.showModal();
  byId("key-text").focus();
}

function keys() {
  byId("change-key").addEventListener("click", () => askForKey());
  byId("banner-key").addEventListener("click", () => askForKey());
  byId("banner-close").addEventListener("click", calm);
  byId("key-cancel").addEventListener("click", () => byId("key").close());
  byId("key-forget").addEventListener("click", () => {
    key.forget();
    byId("change-key").hidden = true;
    byId("key").close();
    report("The key was removed.");
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(byId("key-text").value.trim());
    byId("key-text").value = "";
    byId("change-key").hidden = false;
    byId("key").close();
    calm();
    if (model) {
      refresh({ user: true });
      views.operations.again();
    } else start();
  });
  byId("change-key").hidden = !key.get();
}

// Ranking

/** The user and the settings, as the API takes them. */
function request() {
  const who = subject.kind === "made" ? { history: subject.history } : subject.user === null ? {} : { user: subject.user };
  return { ...who, task_weights: settings.weights, context: settings.context };
}

/** Rank again. user: the history may have changed, too; compare: mark changes of rank. */
async function refresh({ user = false, compare = false } = {}) {
  views.ranking.busy();
  const began = performance.now();
  try {
    const k = pins.size ? MOST : shown;
    const answer = await requests.rank.run((signal) => call("POST", "v1/rank", { signal, body: { ...request(), k, exclude_seen: !settings.seen } }));
    if (answer === undefined) return;
    calm();
    learn(answer.items);
    ranking = answer;
    link();
    facts(answer, performance.now() - began);
    views.ranking.show(answer, { shown, pins, compare });
    note(answer);
    byId("more").hidden = answer.items.length < shown || shown >= Math.min(answer.candidates, MOST);
    if (user) await showUser(answer);
    const why = views.why.current();
    if (why) await explain(answer.items.find((one) => String(one.item) === String(why.item)) ?? why);
  } catch (problem) {
    failed(problem, () => refresh({ user, compare }));
  }
}

function note(answer) {
  const element = byId("ranking-note");
  let text = "";
  if (answer.items.length === 0) text = "No items are left to rank: the user has seen all of them. Tick “include seen items”.";
  else if (subject.kind === "made" && !subject.history.length) text = "An empty history: the model ranks as for a new user. Pick items on the left, or press Watched here.";
  else if (subject.kind === "user" && subject.user === null) text = "No user is chosen: the model ranks as for a new user.";
  else if (subject.kind === "user" && !answer.known)
    text = `User ${subject.user} has no events: a cold start. With an empty history, values come from the items alone. Press Watched on an item to begin the history.`;
  element.textContent = text;
  element.hidden = !text;
}

async function showUser(answer) {
  requests.user.stop(); // a late answer about the previous user must not replace this one
  if (subject.kind === "made") {
    views.user.made(subject.history);
    return;
  }
  if (!answer.known) {
    views.user.unknown(subject.user);
    return;
  }
  const stored = await requests.user.run((signal) => call("GET", `v1/users/${encodeURIComponent(subject.user)}`, { signal }));
  if (stored === undefined) return;
  learn(stored.items);
  const durations = model.tasks.filter((task) => task.kind === "duration");
  const watched = stored.history.flatMap((event) => durations.map((task) => event.labels[task.name] ?? 0)).filter((one) => one > 0);
  if (watched.length) usual = Math.round(watched.sort((a, b) => a - b)[Math.floor(0.75 * (watched.length - 1))]) || 1;
  views.user.user(stored);
}

/** Put what is shown into the page's address. */
function link() {
  address.write({ tab, subject, why: views.why.current()?.item ?? null, settings }, usualSettings(model));
}

async function explain(row) {
  views.ranking.choose(row.item);
  views.why.loading(row);
  link();
  try {
    const answer = await requests.why.run(async (signal) => {
      const body = { ...request(), items: [views.why.asked(row)] };
      const of = encodeURIComponent(row.item);
      return Promise.all([call("POST", "v1/explain", { signal, body }), call("GET", `v1/items/${of}`, { signal })]);
    });
    if (answer === undefined || views.why.current() === null) return;
    const [found, item] = [answer[0].items[0], answer[1]];
    learn([item, found, ...found.events]);
    views.why.show({ ...found, live: item.live && item.rankable });
  } catch (problem) {
    views.why.close();
    failed(problem, () => explain(row));
  }
}

async function similar(item) {
  try {
    const answer = await requests.similar.run((signal) => call("GET", `v1/items/${encodeURIComponent(item)}/similar`, { signal, query: { k: SIMILAR } }));
    if (answer === undefined) return undefined;
    learn(answer.items);
    return answer.items;
  } catch (problem) {
    if (problem.status === 422) return []; // the model describes no items
    failed(problem, () => similar(item));
    return undefined;
  }
}

/** Remove a live item from the index. */
async function remove(item) {
  try {
    await call("DELETE", `v1/items/${encodeURIComponent(item)}`);
    pins.delete(String(item));
    if (views.why.current()) views.why.close();
    report(`Removed: ${item} is not ranked any more.`);
    await refresh({ compare: true });
  } catch (problem) {
    failed(problem, () => remove(item));
  }
}

/** An outcome of a type of event: its labels, with the usual duration where it is a good one. */
function outcomeOf(type) {
  const labels = { ...type.labels };
  for (const task of model.tasks) if (task.kind === "duration" && type.main) labels[task.name] = type.good ? usual : 0;
  return { labels, features: type.features };
}

/** The most frequent type of good events. */
function first() {
  return model.event_types.find((type) => type.good);
}

async function post(row, type) {
  const { labels, features } = outcomeOf(type);
  const outcome = `${type.name}: ${row.item}`;
  if (subject.kind === "made" || subject.user === null) {
    if (subject.kind !== "made") await choose({ kind: "made", history: made }, { quiet: true });
    pick(row.item, { labels, features });
    report(`${outcome}. It is in the made-up history now.`);
    return;
  }
  const event = { user: subject.user, item: row.item, time: moment(), labels, features, context: settings.context, id: randomId() };
  const send = async () => {
    try {
      await call("POST", "v1/events", { body: event });
      const values = Object.entries({ ...features, ...labels }).map(([name, value]) => `${name} ${value}`);
      report(`${outcome}. An event of user ${event.user} (${values.join(", ")}).`);
      if (views.why.current() && !settings.seen) views.why.close();
      await refresh({ user: true, compare: true });
    } catch (problem) {
      failed(problem, send); // with the same id, so that it counts once
    }
  };
  await send();
}

/** The time of a new event: now, or after all others where the log has an order and no clock. */
function moment() {
  if (model.clock) return Date.now();
  moment.last = Math.max((moment.last ?? 0) + 1, 1_000_000_000 + (ranking?.events ?? 0));
  return moment.last;
}

/** A random id for an event. */
function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Who

async function choose(next, { quiet = false } = {}) {
  const same = next.kind === subject.kind && next.user === subject.user;
  subject = next;
  if (!same) {
    views.why.close();
    views.ranking.forget();
    shown = FIRST;
  }
  const user = next.kind === "user";
  byId("who-user").hidden = !user;
  byId("who-made").hidden = user;
  document.querySelector(`#kind input[value=${next.kind}]`).checked = true;
  if (user) {
    byId("user-search").value = next.user === null ? "" : String(next.user);
    if (next.user !== null) sessionStorage.setItem(LAST, String(next.user));
  }
  if (!quiet) await refresh({ user: true });
}

function pick(item, outcome = outcomeOf(first() ?? NO_OUTCOME)) {
  made = [...made, { item, ...outcome }];
  subject = { kind: "made", history: made };
  return refresh({ user: true, compare: true });
}

/** Enable the searches. The first user is loaded before, since it would replace a choice. */
function searches() {
  for (const one of document.querySelectorAll("#kind, #user-search, #item-search")) one.disabled = false;
  combobox(byId("user-search"), byId("user-options"), {
    find: async (text, signal) => {
      const same = subject.kind === "user" && text === String(subject.user ?? "");
      const answer = await call("GET", "v1/users", { signal, query: { q: same ? "" : text, limit: OFFERED } });
      return answer.users.map((user) => ({ value: user, name: String(user) }));
    },
    choose: (found) => choose({ kind: "user", user: found.value }),
    typed: (text) => choose({ kind: "user", user: format.id(text) }),
    failed,
  });
  byId("user-search").addEventListener("focus", (event) => event.target.select());
  combobox(byId("item-search"), byId("item-options"), {
    find: async (text, signal) => {
      const answer = await call("GET", "v1/items", { signal, query: { q: text, limit: OFFERED } });
      learn(answer.items);
      return answer.items.map((one) => ({ value: one.item, name: String(one.item), detail: format.described(one) }));
    },
    choose: (found) => {
      byId("item-search").value = "";
      pick(found.value);
    },
    failed,
  });
  for (const one of document.querySelectorAll("#kind input"))
    one.addEventListener("change", () => {
      if (one.value === "made") choose({ kind: "made", history: made });
      else {
        const last = sessionStorage.getItem(LAST);
        choose({ kind: "user", user: last === null ? null : format.id(last) });
      }
    });
}

// Tabs

function tabs() {
  const all = [...document.querySelectorAll("[role=tab]")];
  const select = (chosen, focus = true) => {
    for (const one of all) {
      const on = one === chosen;
      one.setAttribute("aria-selected", String(on));
      one.tabIndex = on ? 0 : -1;
      byId(one.getAttribute("aria-controls")).hidden = !on;
    }
    if (focus) chosen.focus();
    tab = chosen.id === "tab-operations" ? "operations" : "rank";
    link();
    views.operations.show(tab === "operations");
  };
  all.forEach((one, at) => {
    one.addEventListener("click", () => select(one));
    one.addEventListener("keydown", (event) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      select(all[(to + all.length) % all.length]);
    });
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input:not([type=range], [type=checkbox], [type=radio]), select, textarea");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog:modal")) return;
    event.preventDefault();
    select(all[0], false);
    byId(subject.kind === "made" ? "item-search" : "user-search").focus();
  });
  if (tab === "operations") select(all[1], false);
}

// Start

async function start() {
  try {
    model = await call("GET", "v1/model");
  } catch (problem) {
    failed(problem, start);
    return;
  }
  calm();
  const links = model.links === null ? "" : ` · ${model.links} links`;
  byId("served").replaceChildren(el("b", {}, model.model), `${links} · history of ${model.history} · run ${model.run.slice(0, 8)}`);
  let timer = 0;
  const linked = address.read(format.id);
  settings = usualSettings(model);
  tab = linked.tab;
  settings.seen = linked.seen ?? false;
  for (const task of model.tasks) settings.weights[task.name] = linked.weights[task.name] ?? settings.weights[task.name];
  for (const one of model.context) {
    const given = linked.context[one.name];
    if (given !== undefined) settings.context[one.name] = one.kind === "categorical" ? given : Number(given);
  }
  weightsView(model, settings, () => {
    clearTimeout(timer);
    timer = setTimeout(() => refresh({ compare: true }), PAUSE);
  });
  views = {
    ranking: rankingView({ tasks: model.tasks, type: first(), explain, report: post, remove }),
    user: userView(byId("user"), {
      model,
      remove: (at) => {
        made = made.filter((_, position) => position !== at);
        choose({ kind: "made", history: made });
      },
      clear: () => {
        made = [];
        choose({ kind: "made", history: made });
      },
    }),
    why: whyView({
      model,
      report: post,
      similar,
      remove,
      changed: explain,
      closed: (row) => {
        requests.why.stop();
        views.ranking.choose(null);
        link();
        const at = document.activeElement; // the event comes late: the user may have moved the focus
        if (row && (at === document.body || at.closest(".ranked"))) views.ranking.focus(row.item);
      },
    }),
    operations: operationsView(byId("panel-operations"), { failed, alarms: model.alarms ?? [] }),
  };
  const open = newItem({
    model,
    sample: () => ranking?.items.find((one) => Object.keys(one.features).length),
    added: async (item, answer) => {
      pins = new Set([...pins, String(item)]);
      await refresh({ compare: true });
      const row = ranking.items.find((one) => String(one.item) === String(item));
      const where = row ? `ranks ${format.count(row.rank)} of ${format.count(ranking.candidates)}` : `is not among the first ${format.count(ranking.items.length)} here`;
      report(`${answer.added ? "Added" : "Changed"}: ${item} ${where}. The index has version ${answer.index_version} now.`);
      views.ranking.focus(item);
    },
  });
  byId("open-new").addEventListener("click", open);
  byId("more").addEventListener("click", () => {
    shown += FIRST;
    refresh();
  });
  tabs();
  const last = sessionStorage.getItem(LAST);
  let user = linked.user ?? (last === null ? null : format.id(last));
  let wrong = null;
  try {
    if (user === null && linked.kind !== "made") [user = null] = (await call("GET", "v1/users", { query: { limit: 1 } })).users;
  } catch (problem) {
    wrong = problem;
  }
  searches();
  if (wrong) failed(wrong, () => choose({ kind: "user", user: null }));
  else if (linked.kind === "made") {
    made = linked.items.map((item) => ({ item, ...outcomeOf(first() ?? NO_OUTCOME) }));
    await choose({ kind: "made", history: made });
  } else await choose({ kind: "user", user });
  if (linked.why !== undefined && ranking) await explain(ranking.items.find((one) => String(one.item) === String(linked.why)) ?? { item: linked.why });
}

// A link that is opened in this tab; other addresses are those of parts of the page.
addEventListener("hashchange", () => {
  if (location.hash.includes("=") || location.hash === "#operations") location.reload();
  else link();
});

keys();
start();
