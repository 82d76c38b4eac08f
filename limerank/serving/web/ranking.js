// The ranking: rows with each task's prediction, the task weights, and changes of rank.

import { byId, el } from "./dom.js";
import * as format from "./format.js";

const MOVE_MS = 320;

/**
 * @param tasks of the model.
 * @param type of the events that the button of a row posts: its most frequent good one.
 * @param explain called with a row of the answer; `report` with a row and the type of an event;
 *   `remove` with an added item, to remove it.
 */
export function rankingView({ tasks, type, explain, report, remove }) {
  const list = byId("ranked");
  const pinned = byId("pinned");
  let chosen = null;
  let ranks = null; // item -> rank, of the previous ranking

  byId("ranking").style.setProperty("--tasks", String(tasks.length));
  byId("rank-head").replaceChildren(
    el("span", { class: "rank" }, "#"),
    el("span", { class: "what" }, "Item"),
    ...tasks.map((task) => el("span", { class: "score" }, task.name)),
    el("span", { class: "value" }, "value"),
  );

  function row(one, most, added) {
    const mine = String(one.item);
    const scores = tasks.map((task) => {
      const predicted = one.scores[task.name];
      const bar = el("span", { class: "bar", "aria-hidden": "true" }, el("span", {}));
      bar.firstChild.style.width = `${Math.max(0, Math.min(100, (100 * predicted) / (task.kind === "duration" ? most[task.name] : 1)))}%`;
      return el("span", { class: "score" }, el("span", { class: "name" }, task.name), el("span", { class: "number" }, format.score(task, predicted)), bar);
    });
    return el(
      "li",
      { "data-item": mine, class: mine === chosen ? "chosen" : null },
      el("span", { class: "rank" }, format.count(one.rank), moved(one)),
      el(
        "button",
        { type: "button", class: "what", "aria-haspopup": "dialog", "data-what": "why", onclick: () => explain(one) },
        el("span", { class: "id" }, titled(one) || mine),
        el("span", { class: "unseen" }, ", why?"),
        el("span", { class: "detail" }, [titled(one) && mine, format.features(one.features)].filter(Boolean).join(" · ")),
      ),
      ...scores,
      el("span", { class: "value" }, el("span", { class: "name" }, "value"), el("span", { class: "number" }, format.value(one.value))),
      el(
        "div",
        { class: "events" },
        added && el("button", { type: "button", class: "plain", "data-what": "remove", "aria-label": `Remove ${mine} from the index`, onclick: () => remove(one.item) }, "Remove"),
        type && el("button", { type: "button", class: "post", "data-what": "post", "aria-label": `${type.name}: ${mine}`, onclick: () => report(one, type) }, type.name),
      ),
    );
  }

  const titled = (one) => format.title(one.display);

  function moved(one) {
    if (ranks === null) return null;
    const before = ranks.get(String(one.item));
    if (before === undefined) return el("span", { class: "moved new", title: "was not shown before" }, "new");
    const by = before - one.rank;
    if (by === 0) return null;
    const text = by > 0 ? `▲${by}` : `▼${-by}`;
    return el("span", { class: by > 0 ? "moved up" : "moved down", title: `was ${before}` }, text);
  }

  /**
   * @param answer of /v1/rank; `shown` rows of it are shown, those of `pins` above them.
   * @param compare whether to mark changes of rank since the previous ranking.
   */
  function show(answer, { shown, pins, compare }) {
    const focus = focused();
    const before = positions();
    const rows = answer.items.slice(0, shown);
    if (!compare) ranks = null;
    const most = {};
    for (const task of tasks) most[task.name] = Math.max(1e-9, ...rows.map((one) => one.scores[task.name]));
    list.replaceChildren(...rows.map((one) => row(one, most)));
    const added = answer.items.filter((one) => pins.has(String(one.item)));
    pinned.replaceChildren(...added.map((one) => row(one, most, true)));
    pinned.hidden = added.length === 0;
    list.setAttribute("aria-busy", "false");
    byId("rank-head").hidden = rows.length === 0;
    ranks = new Map(rows.map((one) => [String(one.item), one.rank]));
    refocus(focus);
    animate(before);
  }

  function choose(item) {
    chosen = item === null ? null : String(item);
    for (const one of document.querySelectorAll(".ranked > li")) one.classList.toggle("chosen", one.dataset.item === chosen);
  }

  function focused() {
    const at = document.activeElement?.closest?.(".ranked > li");
    if (!at) return null;
    const what = document.activeElement.dataset.what;
    return { list: at.parentElement, item: at.dataset.item, index: [...at.parentElement.children].indexOf(at), what };
  }

  /** Focus the same item again; where it is no longer shown, the row at its position. */
  function refocus(was) {
    if (was === null || document.querySelector("dialog:modal")) return;
    const rows = [...was.list.children];
    const to = rows.find((one) => one.dataset.item === was.item) ?? rows[Math.min(was.index, rows.length - 1)];
    to?.querySelector(`[data-what=${was.what}]`)?.focus({ preventScroll: true });
  }

  function positions() {
    return new Map([...list.children].map((one) => [one.dataset.item, one.getBoundingClientRect().top]));
  }

  function animate(before) {
    if (!before.size || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    for (const one of list.children) {
      const was = before.get(one.dataset.item);
      const by = was === undefined ? null : was - one.getBoundingClientRect().top;
      if (by === 0) continue;
      const from = by === null ? { opacity: 0 } : { transform: `translateY(${by}px)` };
      one.animate([from, by === null ? { opacity: 1 } : { transform: "none" }], { duration: MOVE_MS, easing: "cubic-bezier(.2,.7,.3,1)" });
    }
  }

  function keys(event) {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const at = focused();
    if (at === null) return;
    const rows = [...document.querySelectorAll(".ranked:not([hidden]) > li")];
    const position = rows.findIndex((one) => one.contains(document.activeElement));
    const to = rows[position + (event.key === "ArrowDown" ? 1 : -1)];
    if (!to) return;
    event.preventDefault();
    to.querySelector(`[data-what=${at.what}]`)?.focus();
  }
  list.addEventListener("keydown", keys);
  pinned.addEventListener("keydown", keys);

  return {
    show,
    choose,
    busy: () => list.setAttribute("aria-busy", "true"),
    forget: () => {
      ranks = null;
    },
    focus: (item) => [...document.querySelectorAll(".ranked > li")].find((one) => one.dataset.item === String(item))?.querySelector(".what")?.focus(),
  };
}

/** The facts of a ranking that the server reported: time by stage, index version and run. */
export function facts(answer, travelled) {
  const { total, ...stages } = answer.milliseconds;
  const entries = [
    ["ranked", `${format.count(answer.candidates)} item${answer.candidates === 1 ? "" : "s"}`],
    ["in", format.milliseconds(total), "strong"],
    ...Object.entries(stages).map(([name, one]) => [name, format.milliseconds(one)]),
    ["round trip", format.milliseconds(travelled)],
    ["index version", String(answer.index_version)],
    ["run", answer.run.slice(0, 8)],
  ];
  byId("facts").replaceChildren(...entries.map(([name, one, strong]) => el("div", { class: strong ?? null }, el("dt", {}, name), el("dd", {}, one))));
}

/** The settings of a ranking before any is changed. */
export function usual(model) {
  return { weights: Object.fromEntries(model.tasks.map((task, at) => [task.name, at === 0 ? 1 : 0])), context: {}, seen: false };
}

/**
 * The settings of a ranking: a slider for each task weight, a field for each context feature, and
 * whether seen items are ranked. They begin as `state`; `changed` is called with all of them.
 */
export function weightsView(model, state, changed) {
  const sliders = model.tasks.map((task) => {
    const output = el("output", { for: `weight-${task.name}` }, format.value(state.weights[task.name]).slice(0, -1));
    const input = el("input", { type: "range", id: `weight-${task.name}`, min: "-1", max: "2", step: "0.05", value: state.weights[task.name] });
    input.addEventListener("input", () => {
      state.weights[task.name] = Number(input.value);
      output.textContent = format.value(Number(input.value)).slice(0, -1);
      changed(state);
    });
    return el("div", { class: "weight" }, el("label", { for: input.id }, task.name), input, output);
  });
  const choices = model.context.map((one) => {
    const name = `context-${one.name}`;
    const field =
      one.kind === "categorical"
        ? el("select", { id: name }, el("option", { value: "" }, "unknown"), one.values.map((known) => el("option", { value: known }, known)))
        : el("input", { id: name, type: "number", step: "any", placeholder: "unknown" });
    if (state.context[one.name] !== undefined) field.value = state.context[one.name];
    field.addEventListener("input", () => {
      if (field.value === "") delete state.context[one.name];
      else state.context[one.name] = one.kind === "categorical" ? field.value : Number(field.value);
      changed(state);
    });
    return el("div", { class: "context" }, el("label", { for: name }, one.name), field);
  });
  const seen = el("input", { type: "checkbox", id: "seen", checked: state.seen });
  seen.addEventListener("input", () => {
    state.seen = seen.checked;
    changed(state);
  });
  byId("weights").replaceChildren(
    el("p", { class: "weights-title" }, "Task weights", el("span", { class: "quiet" }, " in the ranking value, for each task’s logit")),
    el("div", { class: "sliders" }, sliders),
    el("div", { class: "choices" }, choices, el("div", { class: "context check" }, seen, el("label", { for: "seen" }, "include seen items"))),
  );
  byId("weights").addEventListener("submit", (event) => event.preventDefault());
  return state;
}
