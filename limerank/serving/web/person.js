// Who is ranked for: what is known of them, and their history as a timeline, newest first.

import { el, fill, svg } from "./dom.js";
import * as format from "./format.js";

const SHORT = 6;
/** Events that a narrow screen shows at first. */

/**
 * @param place where it is shown.
 * @param tasks of the model; `timed` whether its log has a clock.
 * @param items item id (as text) -> its features.
 * @param remove called with the place of an event of a made-up history.
 */
export function personView(place, { tasks, timed, items, remove, clear }) {
  let whole = false;

  /** A user of the store: the answer of /v1/users/ID. */
  function user(held) {
    const history = held.history.map((event, at) => ({ ...event, at }));
    const kept = held.events > history.length ? `, the latest ${format.count(history.length)} shown` : "";
    const known = Object.entries(held.features ?? {}).filter(([, one]) => one !== null && one !== "");
    fill(
      place,
      el("h3", { class: "person" }, "User ", el("span", { class: "id" }, String(held.user))),
      el("p", { class: "quiet" }, `${format.count(held.events)} event${held.events === 1 ? "" : "s"}${kept}`),
      known.length > 0 && el("dl", { class: "tags" }, known.map(([name, one]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(one))))),
      strip(history),
      timeline(history, false),
    );
  }

  /** Someone whom the store does not hold. */
  function stranger(id) {
    fill(
      place,
      el("h3", { class: "person" }, id === null ? "Someone new" : "User ", id !== null && el("span", { class: "id" }, String(id))),
      el("p", { class: "quiet" }, "No events are held. The first one that is posted makes the history begin."),
    );
  }

  /** A history that is made up here: events oldest first. */
  function made(history) {
    const numbered = history.map((event, at) => ({ ...event, at }));
    fill(
      place,
      el(
        "div",
        { class: "heading" },
        el("h3", { class: "person" }, "A made-up user"),
        history.length > 0 && el("button", { type: "button", class: "plain", onclick: clear }, "Clear"),
      ),
      el("p", { class: "quiet" }, history.length ? `${history.length} picked, the newest first` : "Nothing is picked yet."),
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
      const outcomes = format.labels(event.labels, tasks);
      const good = outcomes.length ? outcomes[0].good : true;
      list.append(
        el(
          "li",
          { class: good ? "event" : "event not", "data-late": order >= SHORT },
          el(
            "div",
            { class: "what" },
            el("span", { class: "id" }, String(event.item)),
            el("span", { class: "detail" }, format.features(items.get(String(event.item)))),
          ),
          el(
            "div",
            { class: "labels" },
            timed && event.time !== undefined && el("time", { datetime: new Date(event.time).toISOString() }, format.clock(event.time)),
            outcomes.map((one) => el("span", { class: one.good ? "label" : "label not" }, one.text)),
          ),
          removable && el("button", { type: "button", class: "plain remove", "aria-label": `Take ${event.item} out`, onclick: () => remove(event.at) }, "×"),
        ),
      );
    });
    list.classList.toggle("whole", whole);
    if (newest.length <= SHORT) return list;
    const all = el("button", { type: "button", class: "plain all", "aria-expanded": String(whole) }, whole ? "Show fewer" : `Show all ${newest.length}`);
    all.addEventListener("click", () => {
      whole = !whole;
      list.classList.toggle("whole", whole);
      all.textContent = whole ? "Show fewer" : `Show all ${newest.length}`;
      all.setAttribute("aria-expanded", String(whole));
    });
    return el("div", { class: "timeline-place" }, list, all);
  }

  /** When the events were: a tick each, over the time from the first to the last. */
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

  return { user, stranger, made, empty: () => place.replaceChildren() };
}
