// A form for a new item, with the columns of the item table that the model reads.

import { byId, el } from "./dom.js";
import { call } from "./api.js";
import * as format from "./format.js";
import { features } from "./known.js";

const OFFERED = 60; // known values that a field suggests, at most

/**
 * @param model the answer of /v1/model.
 * @param sample () -> an item whose features may fill the form, or undefined.
 * @param added called with the id and the answer once the item can be ranked.
 */
export function newItem({ model, sample, added }) {
  const dialog = byId("new-item");
  const byColumn = new Map(model.item_features.map((one) => [one.column, one]));
  const rest = model.item_columns.filter((column) => column !== model.item_id);
  let fields = new Map();

  const close = () => dialog.close();

  function open() {
    if (model.item_id === null) {
      dialog.replaceChildren(
        el("h2", { id: "new-title" }, "No items can be added"),
        el("p", {}, "The run’s data had no item table, so the model knows only the items that it was trained on."),
        el("div", { class: "actions" }, el("button", { type: "button", onclick: close }, "Close")),
      );
      dialog.showModal();
      return;
    }
    const like = sample();
    fields = new Map();
    const wrong = el("p", { class: "wrong", role: "alert", hidden: true });
    const go = el("button", { type: "submit", class: "first" }, "Add and rank it");
    const form = el(
      "form",
      {},
      el("h2", { id: "new-title" }, "Add an item"),
      el("p", { class: "hint" }, "The model encodes the item’s content without training, and the next request ranks it. A known id changes that item."),
      wrong,
      field(model.item_id, null, "id"),
      rest.map((column) => field(column, byColumn.get(column))),
      like && el("button", { type: "button", class: "plain", onclick: () => fill(like.features) }, `Fill in the features of ${like.item}`),
      el("div", { class: "actions" }, go, el("button", { type: "button", class: "plain", onclick: close }, "Cancel")),
    );
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      wrong.hidden = true;
      go.disabled = true;
      try {
        const item = values();
        const answer = await call("PUT", "v1/items", { body: { items: [item] } });
        dialog.close();
        added(item[model.item_id], answer);
      } catch (problem) {
        if (problem.status === undefined) throw problem;
        wrong.textContent = problem.words;
        wrong.hidden = false;
      } finally {
        go.disabled = false;
      }
    });
    dialog.replaceChildren(form);
    dialog.showModal();
    fields.get(model.item_id).focus();
  }

  function field(column, feature, kind = feature?.kind) {
    const name = `new-of-${column}`;
    const shape = feature ? example(feature.name) : undefined;
    const many = Array.isArray(shape);
    const input = el("input", {
      id: name,
      type: kind === "numeric" ? "number" : "text",
      step: kind === "numeric" ? "any" : null,
      required: kind === "id",
      maxlength: kind === "numeric" ? null : kind === "text-vector" ? 100_000 : 256,
      autocomplete: "off",
      spellcheck: "false",
      autocapitalize: "off",
      list: kind === "categorical" && !many ? `${name}-known` : null,
    });
    fields.set(column, input);
    const hint =
      kind === "id"
        ? "a new one"
        : kind === "text-vector"
          ? "numbers, separated by commas"
          : feature?.split
            ? `several are separated by ${feature.split}`
            : many
              ? "several are separated by commas"
              : model.display.includes(column)
                ? "shown, and not read by the model"
                : feature === undefined
                  ? "0: never ranked; 1 or empty: ranked"
                  : "";
    return el(
      "div",
      { class: "field" },
      el("label", { for: name }, column, hint && el("span", { class: "quiet" }, ` ${hint}`)),
      input,
      kind === "categorical" && !many && el("datalist", { id: `${name}-known` }, known(feature.name).map((one) => el("option", { value: one }))),
    );
  }

  /** An example of a feature's value, from a known item. */
  function example(name) {
    for (const of of features.values()) if (of[name] !== null && of[name] !== undefined) return of[name];
    return undefined;
  }

  function known(name) {
    const found = new Set();
    for (const of of features.values()) {
      const given = of[name];
      if (given !== null && given !== undefined && !Array.isArray(given)) found.add(String(given));
      if (found.size >= OFFERED) break;
    }
    return [...found].sort();
  }

  function fill(of) {
    for (const column of rest) {
      const feature = byColumn.get(column);
      const given = feature && of[feature.name];
      if (given === undefined || given === null) continue;
      fields.get(column).value = Array.isArray(given) ? given.join(", ") : String(given);
    }
  }

  function values() {
    const item = { [model.item_id]: format.id(fields.get(model.item_id).value.trim()) };
    for (const column of rest) {
      const feature = byColumn.get(column);
      const text = fields.get(column).value.trim();
      const shape = feature ? example(feature.name) : undefined;
      if (text === "") item[column] = null;
      else if (feature === undefined && model.display.includes(column)) item[column] = text;
      else if (feature === undefined || feature.kind === "numeric") item[column] = Number(text);
      else if (feature.kind === "text-vector") item[column] = parts(text).map(Number);
      else if (Array.isArray(shape)) item[column] = parts(text).map((part) => (typeof shape[0] === "number" ? Number(part) : part));
      else item[column] = typeof shape === "number" ? Number(text) : text;
    }
    return item;
  }

  return open;
}

function parts(text) {
  return text
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "");
}
