// Shared by all pages: building elements, times, money, requests and problems. Text never becomes markup.

/** An element: `make("p", {class: "quiet"}, "text", child)`. Functions become listeners; null and false are omitted. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false || value === undefined) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An SVG element; attributes only. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

export const find = (id) => document.getElementById(id);

/** Show a message in a live region; an empty text hides it. `kind`: good, bad, warn, quiet. */
export function say(box, text, kind = "bad") {
  box.className = `message ${kind}`;
  box.hidden = !text;
  // Screen readers announce changes only: clear the text before repeating it.
  if (box.textContent === text) box.textContent = "";
  box.textContent = text;
}

// Decimal places of minor units by ISO 4217, where they are not two. Browsers have other ones for some currencies.
const PLACES = {
  BIF: 0, CLP: 0, DJF: 0, GNF: 0, ISK: 0, JPY: 0, KMF: 0, KRW: 0, PYG: 0, RWF: 0, UGX: 0, VND: 0, VUV: 0, XAF: 0, XOF: 0, XPF: 0,
  BHD: 3, IQD: 3, JOD: 3, KWD: 3, LYD: 3, OMR: 3, TND: 3,
};

export function money(minor, currency) {
  const places = PLACES[currency] ?? 2;
  const digits = { minimumFractionDigits: places, maximumFractionDigits: places };
  return new Intl.NumberFormat(undefined, { style: "currency", currency, ...digits }).format(minor / 10 ** places);
}

export const count = (value) => (value === null || value === undefined ? "–" : new Intl.NumberFormat().format(value));

export const moment = (iso) => new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" }).format(new Date(iso));

/** Milliseconds as `1:02:03`, rounded up, so that 0:00 appears only at the end. */
export function clock(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, place) => (place ? String(part).padStart(2, "0") : String(part))).join(":");
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** A new idempotency key. */
export function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  // randomUUID exists only in secure contexts.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** An answer that is not 2xx: the members of the problem, and the seconds of Retry-After. */
export class Problem extends Error {
  constructor(status, document, retryAfterS = null) {
    super(document.detail || document.title || `Status ${status}`);
    this.status = status;
    this.code = document.code || "";
    this.errors = document.errors || [];
    this.retryAfterS = retryAfterS;
  }

  get text() {
    const places = this.errors.map((error) => `${error.pointer.slice(1).replaceAll("/", " ")}: ${error.detail}`);
    return [this.message, ...places].join(" · ");
  }
}

/** No answer: the server or the network is down. The request may have taken effect. */
export class NoAnswer extends Error {
  constructor() {
    super("No connection to the server");
    this.code = "no_answer";
    this.retryAfterS = null;
    this.text = this.message;
  }
}

/**
 * Send a request with `body` as JSON; return the parsed body, null for an empty one; with `raw` its text. Throws
 * Problem or NoAnswer.
 */
export async function ask(method, url, { token = null, body, headers = {}, timeoutMs = 30000, raw = false } = {}) {
  const sent = { ...headers };
  if (token) sent.Authorization = `Bearer ${token}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let answer, text;
  try {
    answer = await fetch(url, {
      method, headers: sent, body: body === undefined ? undefined : JSON.stringify(body), credentials: "omit",
      cache: "no-store", signal: AbortSignal.timeout(timeoutMs),
    });
    text = await answer.text();
  } catch {
    throw new NoAnswer();
  }
  if (raw && answer.ok) return text;
  let document = null;
  try {
    document = text ? JSON.parse(text) : null;
  } catch {
    document = {};
  }
  if (answer.ok) return document;
  const wait = Number(answer.headers.get("Retry-After"));
  throw new Problem(answer.status, document || {}, Number.isFinite(wait) && wait > 0 ? wait : null);
}
