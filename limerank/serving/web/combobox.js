// A text field that offers what is found, after the ARIA pattern of a combobox with a list.

import { el } from "./dom.js";
import { Latest } from "./api.js";

const PAUSE = 120;

/**
 * @param input the text field; `list` its empty listbox.
 * @param find text -> promise of [{ value, name, detail }].
 * @param choose called with what was chosen; `typed` with text that Enter was pressed on.
 * @param failed called with a problem.
 */
export function combobox(input, list, { find, choose, typed, failed }) {
  const latest = new Latest();
  let found = [];
  let active = -1;
  let timer = 0;

  input.setAttribute("role", "combobox");
  input.setAttribute("aria-autocomplete", "list");
  input.setAttribute("aria-controls", list.id);
  input.setAttribute("aria-expanded", "false");
  list.setAttribute("role", "listbox");

  function close() {
    clearTimeout(timer);
    latest.stop();
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function mark(place) {
    active = place;
    [...list.children].forEach((one, at) => one.setAttribute("aria-selected", String(at === place)));
    const chosen = list.children[place];
    if (chosen && found.length) {
      input.setAttribute("aria-activedescendant", chosen.id);
      chosen.scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  }

  function take(place) {
    const chosen = found[place];
    close();
    choose(chosen);
  }

  function show() {
    list.replaceChildren(
      ...found.map((one, place) =>
        el(
          "li",
          {
            role: "option",
            id: `${list.id}-${place}`,
            "aria-selected": "false",
            // mousedown would take the focus, and with it the list, away
            onmousedown: (event) => event.preventDefault(),
            onclick: () => take(place),
          },
          el("span", { class: "name" }, one.name),
          one.detail && el("span", { class: "detail" }, one.detail),
        ),
      ),
    );
    if (!found.length) list.append(el("li", { class: "nothing", role: "option", "aria-disabled": "true", "aria-selected": "false" }, typed && input.value ? "Nobody is known by this: Enter ranks for someone new" : "Nothing found"));
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    mark(-1);
  }

  async function look() {
    try {
      const answer = await latest.run((signal) => find(input.value.trim(), signal));
      if (answer === undefined || document.activeElement !== input) return;
      found = answer;
      show();
    } catch (problem) {
      close();
      failed(problem);
    }
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, PAUSE);
  });
  input.addEventListener("focus", look);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const open = !list.hidden && found.length > 0;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!open) look();
      else mark((active + (event.key === "ArrowDown" ? 1 : active < 0 ? 0 : -1) + found.length) % found.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (open && active >= 0) take(active);
      else if (typed && input.value.trim()) {
        const text = input.value.trim();
        close();
        typed(text);
      } else if (open && !typed) take(0);
    } else if (event.key === "Escape" && !list.hidden) {
      event.preventDefault();
      event.stopPropagation();
      close();
    }
  });
}
