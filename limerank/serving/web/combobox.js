// A text field with a list of search results: the ARIA pattern "combobox with listbox".

import { el } from "./dom.js";
import { Latest } from "./api.js";

const PAUSE = 120;

/**
 * @param input the text field; `list` its empty listbox.
 * @param find text -> promise of [{ value, name, detail }], the search results.
 * @param choose called with the chosen result; `typed` with the text where Enter was pressed.
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

  function mark(index) {
    active = index;
    [...list.children].forEach((one, at) => one.setAttribute("aria-selected", String(at === index)));
    const chosen = list.children[index];
    if (chosen && found.length) {
      input.setAttribute("aria-activedescendant", chosen.id);
      chosen.scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  }

  function take(index) {
    const chosen = found[index];
    close();
    choose(chosen);
  }

  function show() {
    list.replaceChildren(
      ...found.map((one, index) =>
        el(
          "li",
          {
            role: "option",
            id: `${list.id}-${index}`,
            "aria-selected": "false",
            // mousedown would move the focus, which closes the list
            onmousedown: (event) => event.preventDefault(),
            onclick: () => take(index),
          },
          el("span", { class: "name" }, one.name),
          one.detail && el("span", { class: "detail" }, one.detail),
        ),
      ),
    );
    if (!found.length) list.append(el("li", { class: "nothing", role: "option", "aria-disabled": "true", "aria-selected": "false" }, typed && input.value ? "No such user: Enter ranks for a new user" : "Nothing found"));
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
