// Numbers, times, ids and features as text.

const COUNT = new Intl.NumberFormat("en");
const SIGNED = new Intl.NumberFormat("en", { signDisplay: "exceptZero", minimumFractionDigits: 3, maximumFractionDigits: 3 });
const DAY = new Intl.DateTimeFormat("en", { dateStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

export const count = (value) => COUNT.format(value);
export const signed = (value) => SIGNED.format(value).replace("-", "−");
export const day = (time) => DAY.format(new Date(time));
export const clock = (time) => CLOCK.format(new Date(time));
export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

export function value(number) {
  return number.toFixed(3).replace("-", "−");
}

export function seconds(number) {
  if (number >= 600) return `${(number / 60).toFixed(0)} min`;
  return `${number.toFixed(number < 10 ? 1 : 0)} s`;
}

export function milliseconds(number) {
  if (number >= 1000) return `${(number / 1000).toFixed(number < 10_000 ? 2 : 1)} s`;
  return `${number.toFixed(number < 1 ? 2 : number < 100 ? 1 : 0)} ms`;
}

/** A task's prediction: a probability, or seconds. */
export function score(task, number) {
  return task.kind === "duration" ? seconds(number) : percent(number);
}

/** The features of an item in one line: texts alone, numbers with their names. */
export function features(of) {
  const texts = [];
  const numbers = [];
  for (const [name, given] of Object.entries(of ?? {})) {
    if (given === null || given === undefined || given === "") continue;
    const parts = Array.isArray(given) ? given : [given];
    if (parts.every((part) => typeof part === "string")) texts.push(...parts.map((part) => part.replaceAll("|", ", ")));
    else if (parts.length > 4) numbers.push(`${name} of ${parts.length} numbers`);
    else numbers.push(`${name} ${parts.map((part) => (typeof part === "number" && !name.toLowerCase().includes("id") ? count(part) : part)).join(", ")}`);
  }
  return [...texts, ...numbers].join(" · ");
}

/** The title of an item: the first text that is shown of it and is no address; else "". */
export function title(display) {
  return Object.values(display ?? {}).find((text) => !/^\w+:\/\//.test(text)) ?? "";
}

/** An item in one line: its title and its features. */
export function described(one) {
  return [title(one.display), features(one.features)].filter(Boolean).join(" · ");
}

/** The outcomes of an event, each as { text, good }: its type, or its labels. */
export function outcomes(event, { tasks, event_types: types }) {
  const of = event.labels;
  const typed = types.find((one) => Object.entries(one.features).some(([name, given]) => event.features?.[name] === given));
  if (typed) return [{ text: typed.name, good: typed.good }];
  const outcomes = [];
  for (const task of tasks) {
    const given = of?.[task.name];
    if (given === undefined) continue;
    if (task.kind === "duration") {
      if (given > 0) outcomes.push({ text: `${task.name} ${seconds(given)}`, good: true });
    } else if (given > 0) outcomes.push({ text: task.name, good: true });
    else if (task === tasks[0]) outcomes.push({ text: `no ${task.name}`, good: false });
  }
  return outcomes;
}

/** A typed id: an integer becomes a number where JavaScript can represent it. */
export function id(text) {
  return /^-?(0|[1-9]\d{0,14})$/.test(text) ? Number(text) : text;
}
