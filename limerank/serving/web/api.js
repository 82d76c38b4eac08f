// Requests to the page's server: the API key, and errors as problems.

const STORED = "limerank-key";

/** The API key, stored until the tab closes; it is never part of an address. */
export const key = {
  get: () => sessionStorage.getItem(STORED) ?? "",
  set: (text) => sessionStorage.setItem(STORED, text),
  forget: () => sessionStorage.removeItem(STORED),
};

/** An error that the server answered. Status 0: there was no answer. */
export class Problem extends Error {
  constructor(status, detail, wait = 0) {
    super(detail);
    this.status = status;
    this.detail = detail;
    this.wait = wait;
  }

  /** The error, and what to do, as a sentence. */
  get words() {
    const wait = this.wait ? `in ${this.wait} s` : "in a moment";
    switch (this.status) {
      case 0:
        return "The server cannot be reached. Check that it runs and that the network works, then try again.";
      case 401:
        return `The server needs a valid key (${this.detail}).`;
      case 403:
        return `This key does not allow it: ${this.detail}. Use another key.`;
      case 404:
        return `Not found: ${this.detail}.`;
      case 422:
      case 400:
        return `The server refused the request: ${this.detail}.`;
      case 429:
        return `Too many requests (${this.detail}). Try again ${wait}.`;
      case 503:
        return `The server cannot answer now: ${this.detail}. Try again ${wait}.`;
      default:
        return `The server answered ${this.status}: ${this.detail}.`;
    }
  }
}

/** Call the server. `path` is relative to this page, so that a proxy may serve both under a prefix. */
export async function call(method, path, { query, body, signal, text = false } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const asked = query ? `${path}?${new URLSearchParams(query)}` : path;
  let answer;
  let received;
  try {
    answer = await fetch(asked, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" });
    received = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, error.message);
  }
  if (!answer.ok) throw problem(answer, received);
  return text ? received : parsed(received);
}

function problem(answer, received) {
  let detail = answer.statusText || "no reason was given";
  try {
    detail = JSON.parse(received).detail ?? detail;
  } catch {
    // Not from the server: a proxy's error page.
  }
  return new Problem(answer.status, String(detail).replace(/\.$/, ""), Number(answer.headers.get("Retry-After")) || 0);
}

/** Parse JSON; integers that JavaScript cannot represent stay text, since ids have 64 bits. */
export function parsed(text) {
  return JSON.parse(text, (name, value, context) => {
    const large = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
    return large && /^-?\d+$/.test(context?.source ?? "") ? context.source : value;
  });
}

/** Runs requests of one kind, of which only the latest counts; earlier ones are aborted. */
export class Latest {
  #running = null;

  /** The answer of `ask(signal)`, or undefined where a later request has started. */
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
