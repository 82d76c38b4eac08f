// What is known of items: features and titles, from all answers.

import * as format from "./format.js";

export const features = new Map(); // item id as text -> features
const titles = new Map(); // item id as text -> title

/** Remember what answers contain of items. */
export function learn(found) {
  for (const one of found) {
    if (Object.keys(one.features ?? {}).length) features.set(String(one.item), one.features);
    const known = format.title(one.display) || one.title;
    if (known) titles.set(String(one.item), known);
  }
}

export const title = (item) => titles.get(String(item)) ?? "";
