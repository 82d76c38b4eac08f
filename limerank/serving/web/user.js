// The user who is ranked for: features, and the history as a timeline, newest first.

import { el, fill, svg } from "./dom.js";
import * as format from "./format.js";
import { features, title } from "./known.js";

const SHORT = 6;
/** Events that a narrow screen shows at first, at most. */

/**
 * @param root the element to fill.
 * @param model the answer of /v1/model.
 * @param remove called with the position of an event of a made-up history; `clear` to remove all.
 */
export function userView(root, { model, remove, clear }) {
  const { tasks, clock: timed } = model;
  let expanded = false;

  /** A user of the store: the answer of /v1/users/ID. */
  function user(stored) {
    const history = stored.history.map((event, at) => ({ ...event, at }));
    const part = stored.events > history.length ? `, the latest ${format.count(history.length)} shown` : "";
    const known = Object.entries(stored.features ?? {}).filter(([, one]) => one !== null && one !== "");
    fill(
      root,
      el("h3", { class: "user-title" }, "User ", el("span", { class: "id" }, String(stored.user))),
      el("p", { class: "quiet" }, `${format.count(stored.events)} event${stored.events === 1 ? "" : "s"}${part}`),
      known.length > 0 && el("dl", { class: "tags" }, known.map(([name, one]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(one))))),
      strip(history),
      timeline(history, false),
    );
  }

  /** A user without events and features. */
  function unknown(id) {
    fill(
      root,
      el("h3", { class: "user-title" }, id === null ? "A new user" : "User ", id !== null && el("span", { class: "id" }, String(id))),
      el("p", { class: "quiet" }, "No events yet. The first posted event begins the history."),
    );
  }

  /** A made-up history: events, oldest first. */
  function made(history) {
    const numbered = history.map((event, at) => ({ ...event, at }));
    fill(
      root,
      el(
        "div",
        { class: "heading" },
        el("h3", { class: "user-title" }, "A made-up user"),
        history.length > 0 && el("button", { type: "button", class: "plain", onclick: clear }, "Clear"),
      ),
      el("p", { class: "quiet" }, history.length ? `${history.length} picked, newest first` : "No items are picked yet."),
      timeline(numbered, true),
    );
  }

  function timeline(history, removable) {
    const list = el("ol", { class: "timeline", "aria-label": "History, newest first", tabindex: "0" });
    let last = "";
    const newest = [...history].reverse();
    newest.forEach((event, order) => {
      const when = timed && event.time !== undefined ? format.day(event.time) : "";
      if (when && when !== last) list.append(el("li", { class: "day", "data-late": order >= SHORT }, when));
      last = when;
      const outcomes = format.outcomes(event, model);
      const good = outcomes.length ? outcomes[0].good : true;
      list.append(
        el(
          "li",
          { class: good ? "event" : "event not", "data-late": order >= SHORT },
          el(
            "div",
            { class: "what" },
            el("span", { class: "id" }, title(event.item) || String(event.item)),
            el("span", { class: "detail" }, [title(event.item) && String(event.item), format.features(features.get(String(event.item)))].filter(Boolean).join(" · ")),
          ),
          el(
            "div",
            { class: "labels" },
            timed && event.time !== undefined && el("time", { datetime: new Date(event.time).toISOString() }, format.clock(event.time)),
            outcomes.map((one) => el("span", { class: one.good ? "label" : "label not" }, one.text)),
          ),
          removable && el("button", { type: "button", class: "plain remove", "aria-label": `Remove ${event.item}`, onclick: () => remove(event.at) }, "×"),
        ),
      );
    });
    list.classList.toggle("full", expanded);
    if (newest.length <= SHORT) return list;
    const all = el("button", { type: "button", class: "plain all", "aria-expanded": String(expanded) }, expanded ? "Show fewer" : `Show all ${newest.length}`);
    all.addEventListener("click", () => {
      expanded = !expanded;
      list.classList.toggle("full", expanded);
      all.textContent = expanded ? "Show fewer" : `Show all ${newest.length}`;
      all.setAttribute("aria-expanded", String(expanded));
    });
    return el("div", { class: "timeline-panel" }, list, all);
  }

  /** The times of the events, as ticks between the first and the last. */
  function strip(history) {
    if (!timed || history.length < 3) return null;
    const from = history[0].time;
    const to = history.at(-1).time;
    if (to <= from) return null;
    const main = tasks[0].name;
    const ticks = history.map((event) => {
      const good = (event.labels?.[main] ?? 0) > 0;
      const x = 4 + (292 * (event.time - from)) / (to - from);
      return svg("line", { class: good ? "good" : "", x1: x, x2: x, y1: good ? 4 : 12, y2: 22 });
    });
    return el(
      "figure",
      { class: "strip" },
      svg(
        "svg",
        { viewBox: "0 0 300 26", preserveAspectRatio: "none", role: "img", "aria-label": `Events from ${format.day(from)} to ${format.day(to)}` },
        svg("line", { class: "base", x1: 0, x2: 300, y1: 23, y2: 23 }),
        ticks,
      ),
      el("figcaption", {}, el("span", {}, format.day(from)), el("span", {}, format.day(to))),
    );
  }

  return { user, unknown, made, empty: () => root.replaceChildren() };
}
