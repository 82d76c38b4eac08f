// Requests to the server that this page came from: keys, and problems as they are told.

const HELD = "limerank-key";

/** The key, for as long as the tab lives; it never stands in an address. */
export const key = {
  get: () => sessionStorage.getItem(HELD) ?? "",
  set: (text) => sessionStorage.setItem(HELD, text),
  forget: () => sessionStorage.removeItem(HELD),
};

/** An answer that is none. Status 0: there was no answer at all. */
export class Problem extends Error {
  constructor(status, detail, wait = 0) {
    super(detail);
    this.status = status;
    this.detail = detail;
    this.wait = wait;
  }

  /** What went wrong and what to do, in words. */
  get words() {
    const wait = this.wait ? `in ${this.wait} s` : "in a moment";
    switch (this.status) {
      case 0:
        return "The server cannot be reached. Is it running, and is the network there? Then try again.";
      case 401:
        return `The server wants a key that it knows (${this.detail}).`;
      case 403:
        return `This key does not allow it: ${this.detail}. Use another key.`;
      case 404:
        return `Not found: ${this.detail}.`;
      case 422:
      case 400:
        return `The server does not take this: ${this.detail}.`;
      case 429:
        return `Too many requests (${this.detail}). Try again ${wait}.`;
      case 503:
        return `The server cannot answer now: ${this.detail}. Try again ${wait}.`;
      default:
        return `The server answered ${this.status}: ${this.detail}.`;
    }
  }
}

/** Call the server. `path` is relative to this page, so that both may stand behind a prefix. */
export async function call(method, path, { query, body, signal, text = false } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const asked = query ? `${path}?${new URLSearchParams(query)}` : path;
  let answer;
  let said;
  try {
    answer = await fetch(asked, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" });
    said = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, error.message);
  }
  if (!answer.ok) throw problem(answer, said);
  return text ? said : parsed(said);
}

function problem(answer, said) {
  let detail = answer.statusText || "no reason was given";
  try {
    detail = JSON.parse(said).detail ?? detail;
  } catch {
    // Not from the server itself: a proxy's own page.
  }
  return new Problem(answer.status, String(detail).replace(/\.$/, ""), Number(answer.headers.get("Retry-After")) || 0);
}

/** JSON in which whole numbers that JavaScript cannot hold stay text: ids have 64 bits. */
export function parsed(text) {
  return JSON.parse(text, (name, value, context) => {
    const large = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
    return large && /^-?\d+$/.test(context?.source ?? "") ? context.source : value;
  });
}

/** Runs of one question of which only the latest counts: earlier ones are given up. */
export class Latest {
  #running = null;

  /** The answer of `ask(signal)`, or undefined where a later question was asked meanwhile. */
  async run(ask) {
    this.stop();
    const mine = new AbortController();
    this.#running = mine;
    try {
      const answer = await ask(mine.signal);
      return this.#running === mine ? answer : undefined;
    } catch (error) {
      if (this.#running !== mine || error.name === "AbortError") return undefined;
      throw error;
    }
  }

  stop() {
    this.#running?.abort();
    this.#running = null;
  }
}
