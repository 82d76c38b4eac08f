// The page's address: the user and the settings after "#", so that a link shows the same. Keys are
// never part of it.

const MOST = 100; // items of a made-up history that an address contains, at most

/**
 * The state in an address.
 *
 * @returns { tab, kind, user, items, why, seen, weights, context }, each undefined or empty where
 *   the address does not contain it.
 */
export function read(id) {
  const found = { weights: {}, context: {}, tab: "rank" };
  const text = location.hash.slice(1);
  if (text === "operations") return { ...found, tab: "operations" };
  for (const [name, given] of new URLSearchParams(text)) {
    const [kind, of] = [name.slice(0, name.indexOf(".")), name.slice(name.indexOf(".") + 1)];
    if (name === "tab") found.tab = given === "operations" ? given : "rank";
    else if (name === "user") Object.assign(found, { kind: "user", user: id(given) });
    else if (name === "items") Object.assign(found, { kind: "made", items: given.split("\u001f").filter(Boolean).slice(0, MOST).map(id) });
    else if (name === "why") found.why = id(given);
    else if (name === "seen") found.seen = given === "1";
    else if (kind === "weight" && Number.isFinite(Number(given))) found.weights[of] = Number(given);
    else if (kind === "context") found.context[of] = given;
  }
  return found;
}

/** Put a state into the address; what is as `usual` is left out. */
export function write({ tab, subject, why, settings }, usual) {
  const of = new URLSearchParams();
  if (tab !== "rank") of.set("tab", tab);
  if (subject.kind === "made") of.set("items", subject.history.slice(-MOST).map((event) => event.item).join("\u001f"));
  else if (subject.user !== null) of.set("user", subject.user);
  if (why !== null) of.set("why", why);
  if (settings.seen) of.set("seen", "1");
  for (const [name, weight] of Object.entries(settings.weights)) if (weight !== usual.weights[name]) of.set(`weight.${name}`, weight);
  for (const [name, given] of Object.entries(settings.context)) of.set(`context.${name}`, given);
  history.replaceState(null, "", `#${of}`);
}
