// Why an item has its rank: events -> links -> item, drawn with the model's weights.

import { byId, el, svg } from "./dom.js";
import * as format from "./format.js";
import { features, title } from "./known.js";

const EVENTS = 10; // drawn, with the greatest shares
const LINKS = 6;
const ROW = 36; // pixels of a drawn event
const LISTED = 8; // events in the table at first

/**
 * @param model the answer of /v1/model.
 * @param closed called when the dialog closes; `report` with the row and the type of an event;
 *   `similar` with an item, to show the items that are similar; `remove` with an added item;
 *   `changed` with the row when values of its impression features are given.
 */
export function whyView({ model, closed, report, similar, remove, changed }) {
  const dialog = byId("why");
  const wide = matchMedia("(min-width: 1180px)");
  let row = null;
  let all = false;
  let given = {}; // impression feature -> value, of this item

  function open(of) {
    if (row === null || String(row.item) !== String(of.item)) {
      all = false;
      given = {};
    }
    row = of;
    if (!dialog.open) {
      if (wide.matches) dialog.show();
      else dialog.showModal();
    }
    byId("why-empty").hidden = true;
  }

  dialog.addEventListener("close", () => {
    if (dialog.open) return; // opened again meanwhile
    byId("why-empty").hidden = false;
    const was = row;
    row = null;
    closed(was);
  });
  // A dialog that is not modal does not close on Escape.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && dialog.open && !event.defaultPrevented && !document.querySelector("dialog:modal")) dialog.close();
  });
  wide.addEventListener("change", () => {
    if (dialog.open) dialog.close();
  });

  function head() {
    return el(
      "div",
      { class: "heading" },
      el("h2", { id: "why-title" }, "Why ", el("span", { class: "id" }, title(row.item) || String(row.item))),
      el("button", { type: "button", class: "plain", onclick: () => dialog.close(), "aria-label": "Close (Escape)" }, "Close"),
    );
  }

  function loading(of) {
    const was = dialog.open;
    open(of);
    if (was && dialog.dataset.item === String(of.item) && dialog.childElementCount > 1) return; // the previous explanation stays until then
    dialog.dataset.item = String(of.item);
    dialog.replaceChildren(head(), el("p", { class: "quiet" }, "Asking the model …"));
    dialog.querySelector("button").focus({ preventScroll: wide.matches });
  }

  /** @param found one item of the answer of /v1/explain. */
  function show(found) {
    const had = dialog.contains(document.activeElement);
    const at = document.activeElement?.dataset?.what;
    const gained = found.value - found.without_history;
    const parts = [
      head(),
      el("p", { class: "quiet" }, [title(found.item) && String(found.item), format.features(features.get(String(found.item)))].filter(Boolean).join(" · ")),
      el(
        "dl",
        { class: "sum" },
        el("div", {}, el("dt", {}, "without a history"), el("dd", {}, format.value(found.without_history))),
        el("div", { class: "sign" }, el("dt", {}, "the history"), el("dd", { class: gained >= 0 ? "up" : "down" }, format.signed(gained))),
        el("div", { class: "strong" }, el("dt", {}, "ranking value"), el("dd", {}, format.value(found.value))),
      ),
    ];
    if (model.impression.length) parts.push(...shown(found));
    if (found.anchored.length) parts.push(anchored(found));
    if (found.events.length) parts.push(...diagram(found), table(found));
    else parts.push(el("p", { class: "note" }, "There is no history: the value comes from the item and from the context of the request."));
    parts.push(
      el(
        "div",
        { class: "actions" },
        model.event_types.map((type, at) => el("button", { type: "button", class: at === 0 && "first", "data-what": `post-${at}`, onclick: () => report(row, type) }, type.name)),
        found.live && el("button", { type: "button", "data-what": "remove", onclick: () => remove(row.item) }, "Remove the item"),
      ),
      similarItems(found),
    );
    dialog.dataset.item = String(found.item);
    dialog.replaceChildren(...parts);
    if (had) (dialog.querySelector(at ? `[data-what=${at}]` : "button") ?? dialog.querySelector("button")).focus({ preventScroll: true });
  }

  /** The items that are similar to this one, loaded when the list is opened. */
  function similarItems(found) {
    const list = el("ol", { class: "alike" });
    const of = found.item;
    const open = async () => {
      if (!box.open || list.childElementCount) return;
      const near = await similar(of);
      if (near === undefined) return;
      list.replaceChildren(
        ...near.map((one) =>
          el(
            "li",
            {},
            el("span", { class: "id" }, title(one.item) || String(one.item)),
            el("span", { class: "detail" }, [title(one.item) && String(one.item), format.features(one.features)].filter(Boolean).join(" · ")),
            el("span", { class: "number", title: "similarity" }, format.value(one.similarity)),
          ),
        ),
      );
      if (!near.length) list.append(el("li", { class: "quiet" }, "No item is similar."));
    };
    const box = el("details", { class: "alike-box", ontoggle: open }, el("summary", { "data-what": "alike" }, "Similar items"), list);
    return box;
  }

  /** Fields for the item's impression features, and the effect of each value that is given. */
  function shown(found) {
    const effects = new Map(found.impression.map((one) => [one.feature, one.effect]));
    const fields = model.impression.map((one) => {
      const name = `shown-${one.name}`;
      const field =
        one.kind === "categorical"
          ? el("select", { id: name, "data-what": name }, el("option", { value: "" }, "unknown"), one.values.map((known) => el("option", { value: known, selected: given[one.name] === known }, known)))
          : el("input", { id: name, "data-what": name, type: "number", step: "any", placeholder: "unknown", value: given[one.name] });
      field.addEventListener("change", () => {
        if (field.value === "") delete given[one.name];
        else given[one.name] = one.kind === "categorical" ? field.value : Number(field.value);
        changed(row);
      });
      const effect = effects.get(one.name);
      return el("div", { class: "context" }, el("label", { for: name }, one.name), field, effect !== undefined && el("output", { for: name, class: effect >= 0 ? "up" : "down" }, format.signed(effect)));
    });
    return [
      el("h3", {}, "As it is shown"),
      el("p", { class: "hint" }, "The ranking does not know these values. Give them to see the effect of each: the ranking value minus the value without it."),
      el("div", { class: "choices" }, fields),
    ];
  }

  /** What the item has in common with items of the history. */
  function anchored(found) {
    const rows = found.anchored.map((one) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, one.kind === "item" ? "this very item" : `${one.kind}: ${cut((one.kind === "neighbour" && title(one.value)) || String(one.value), 40)}`, el("span", { class: "detail" }, one.text)),
        el("td", { class: one.effect >= 0 ? "up" : "down" }, format.signed(one.effect)),
      ),
    );
    return el(
      "div",
      { class: "effects anchored" },
      el("h3", {}, "In common with the history"),
      el("p", { class: "hint" }, "Effect: the ranking value minus the value without this anchored link."),
      el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "item or feature"), el("th", { scope: "col" }, "effect"))), el("tbody", {}, rows)),
    );
  }

  function diagram(found) {
    const linked = found.links.length > 0;
    const drawn = linked ? flows(found) : straight(found);
    const share = format.percent(drawn.share, 0);
    const what = !linked
      ? `This model has no links. Width: the size of each event’s effect, scaled to one. Drawn: ${share}.`
      : `Width: the share in the item’s value, by the size of the model’s weights over all heads. Drawn: the ${drawn.paths} widest paths, ${share} of all.`;
    const sign = "Blue: the event raised the value; orange: it lowered it.";
    return [el("h3", {}, linked ? "Events → links → item" : "Events → item"), el("p", { class: "hint" }, `${what} ${sign}`), drawn.picture];
  }

  /** Events on the left, links in the middle, the item on the right, all in one scale. */
  function flows(found) {
    const links = found.links.slice(0, LINKS);
    const order = new Map(links.map((one, at) => [one.link, at]));
    const total = new Map();
    for (const path of found.paths) if (order.has(path.link)) total.set(path.event, (total.get(path.event) ?? 0) + path.weight);
    const shown = [...total].sort((a, b) => b[1] - a[1]).slice(0, EVENTS).map(([event]) => event).sort((a, b) => a - b);
    const paths = found.paths.filter((path) => order.has(path.link) && shown.includes(path.event));
    const { width, left, right, middle } = columns();
    const height = Math.max(shown.length, links.length, 4) * ROW;
    const gap = 14;
    const sum = links.reduce((so_far, one) => so_far + one.weight, 0);
    const widest = Math.max(...shown.map((event) => total.get(event)));
    const scale = Math.min((ROW - 10) / widest, (height - gap * (links.length + 1) - 20) / sum);
    // Positions of the links and of the item.
    let y = (height - sum * scale - gap * (links.length - 1)) / 2;
    const tops = links.map((one) => {
      const top = y;
      y += one.weight * scale + gap;
      return top;
    });
    const itemTop = (height - sum * scale) / 2;
    const step = height / shown.length;
    const reached = links.map(() => 0);
    const groups = shown.map((event, at) => {
      const own = paths.filter((path) => path.event === event).sort((a, b) => order.get(a.link) - order.get(b.link));
      let from = step * (at + 0.5) - (total.get(event) * scale) / 2;
      const ribbons = own.map((path) => {
        const link = order.get(path.link);
        const thick = path.weight * scale;
        const to = tops[link] + reached[link];
        reached[link] += thick;
        const drawn = ribbon(left + 5, from, middle, to, thick);
        from += thick;
        return drawn;
      });
      return eventGroup(found.events[event], step * (at + 0.5), total.get(event) * scale, left, ribbons);
    });
    let into = itemTop;
    const outs = links.map((one, at) => {
      const thick = one.weight * scale;
      const drawn = ribbon(middle + 5, tops[at], right, into, thick, "out");
      into += thick;
      return svg(
        "g",
        { class: "link" },
        svg("title", {}, `link ${one.link} carries ${format.percent(one.weight)} of the item’s value`),
        drawn,
        svg("rect", { x: middle, y: tops[at], width: 5, height: Math.max(1, thick), rx: 1.5 }),
        svg("text", { x: middle + 10, y: tops[at] + Math.max(1, thick) / 2 + 4 }, `link ${one.link}`, svg("tspan", { class: "quiet" }, `  ${format.percent(one.weight, 0)}`)),
      );
    });
    const share = paths.reduce((so_far, path) => so_far + path.weight, 0);
    return {
      paths: paths.length,
      share,
      picture: picture(width, height, found, [groups, outs, itemNode(found, right, itemTop, sum * scale)], `${shown.length} events, ${links.length} links and item ${found.item}`),
    };
  }

  function straight(found) {
    const order = found.events.map((_, at) => at).sort((a, b) => found.events[b].share - found.events[a].share);
    const shown = order.slice(0, EVENTS).sort((a, b) => a - b);
    const { width, left, right } = columns();
    const height = Math.max(shown.length, 4) * ROW;
    const step = height / shown.length;
    const sum = shown.reduce((so_far, event) => so_far + found.events[event].share, 0);
    const widest = Math.max(...shown.map((event) => found.events[event].share));
    const scale = Math.min((ROW - 10) / widest, (height - 40) / sum);
    let into = (height - sum * scale) / 2;
    const top = into;
    const groups = shown.map((event, at) => {
      const thick = found.events[event].share * scale;
      const drawn = ribbon(left + 5, step * (at + 0.5) - thick / 2, right, into, thick);
      into += thick;
      return eventGroup(found.events[event], step * (at + 0.5), thick, left, [drawn]);
    });
    return { paths: shown.length, share: sum, picture: picture(width, height, found, [groups, itemNode(found, right, top, sum * scale)], `${shown.length} events and item ${found.item}`) };
  }

  function columns() {
    const width = Math.max(300, Math.min(560, dialog.clientWidth - 2 * parseFloat(getComputedStyle(dialog).paddingLeft)));
    const left = Math.round(width * 0.34);
    return { width, left, right: width - 7, middle: Math.round(left + (width - left) * 0.42) };
  }

  function picture(width, height, found, parts, label) {
    return svg("svg", { class: "flow", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${label}; the table below has the same numbers` }, ...parts.flat());
  }

  function eventGroup(event, y, thick, left, ribbons) {
    const of = features.get(String(event.item));
    const raised = event.effect === null || event.effect >= 0;
    const more = format.features(of).split(" · ")[0];
    return svg(
      "g",
      { class: raised ? "event" : "event against" },
      svg("title", {}, `${event.item}: share ${format.percent(event.share)}${event.effect === null ? "" : `, effect ${format.signed(event.effect)}`}`),
      ribbons,
      svg("rect", { x: left, y: y - Math.max(1.5, thick) / 2, width: 5, height: Math.max(1.5, thick), rx: 1.5 }),
      svg("text", { x: left - 8, y: y - 2, "text-anchor": "end" }, svg("tspan", { class: "id" }, cut(title(event.item) || String(event.item), 16))),
      svg("text", { x: left - 8, y: y + 12, "text-anchor": "end", class: "quiet" }, cut(more, 18) || format.percent(event.share)),
    );
  }

  function itemNode(found, right, top, tall) {
    return svg(
      "g",
      { class: "item" },
      svg("rect", { x: right, y: top, width: 7, height: Math.max(2, tall), rx: 2 }),
      svg("text", { x: right + 7, y: Math.max(12, top - 8), "text-anchor": "end", class: "id" }, cut(title(found.item) || String(found.item), 20)),
    );
  }

  function table(found) {
    const timed = model.clock;
    const order = [...found.events].sort((a, b) => Math.abs(b.effect ?? 0) - Math.abs(a.effect ?? 0) || b.share - a.share);
    const most = Math.max(1e-9, ...order.map((event) => Math.abs(event.effect ?? 0)));
    const rows = order.slice(0, all ? order.length : LISTED).map((event) => {
      const bar = el("span", { class: "effect-bar", "aria-hidden": "true" }, el("span", {}));
      bar.firstChild.style.width = `${(50 * Math.abs(event.effect ?? 0)) / most}%`;
      const sign = event.effect === null ? "" : event.effect >= 0 ? "up" : "down";
      bar.classList.add(sign || "none");
      return el(
        "tr",
        {},
        el("th", { scope: "row" }, el("span", { class: "id" }, title(event.item) || String(event.item)), el("span", { class: "detail" }, format.features(features.get(String(event.item))))),
        timed && el("td", { class: "when" }, format.day(event.time)),
        el("td", {}, format.percent(event.share)),
        el("td", { class: sign }, event.effect === null ? "–" : format.signed(event.effect), bar),
      );
    });
    const more =
      order.length > LISTED &&
      el(
        "button",
        {
          type: "button",
          class: "plain all",
          "data-what": "all",
          onclick: () => {
            all = !all;
            show(found);
          },
        },
        all ? "Show fewer" : `Show all ${order.length} events`,
      );
    return el(
      "div",
      { class: "effects" },
      el("h3", {}, "Effect of each event"),
      el("p", { class: "hint" }, "Effect: the ranking value minus the value without the event. Effects do not add up, since similar events overlap."),
      el(
        "table",
        {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "event"), timed && el("th", { scope: "col" }, "day"), el("th", { scope: "col" }, "share"), el("th", { scope: "col" }, "effect"))),
        el("tbody", {}, rows),
      ),
      more,
    );
  }

  return {
    loading,
    show,
    /** The item as the API takes it: its id, or with the values given here. */
    asked: (of) => (row !== null && String(row.item) === String(of.item) && Object.keys(given).length ? { item: of.item, ...given } : of.item),
    current: () => (dialog.open ? row : null),
    close: () => dialog.open && dialog.close(),
  };
}

function ribbon(x0, y0, x1, y1, thick, kind = "path") {
  const m = (x0 + x1) / 2;
  const t = Math.max(0.7, thick);
  return svg("path", { class: kind, d: `M${x0} ${y0}C${m} ${y0} ${m} ${y1} ${x1} ${y1}V${y1 + t}C${m} ${y1 + t} ${m} ${y0 + t} ${x0} ${y0 + t}Z` });
}

function cut(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
