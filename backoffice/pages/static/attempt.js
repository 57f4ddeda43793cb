// One attempt to buy. Its Idempotency-Key survives reloads and retries, so that the attempt makes at most one order.

import { newKey, pause } from "./page.js";

const TRIES_MAX = 12;
const WAIT_FIRST_MS = 400;
const WAIT_LONGEST_MS = 8000;
// After these the order may exist or may be accepted soon: send the same key again. All other problems are final.
const REPEATED = new Set([
  "no_answer", "overloaded", "dependency_unavailable", "outcome_unknown", "internal_error", "rate_limited", "request_timeout",
]);
const SOON_S = 10; // the longest wait for a sale that is about to open

export class Attempt {
  /** The attempt of this buyer in this sale that has no answer yet; null without one. */
  static unfinished(saleId, email) {
    const kept = sessionStorage.getItem(place(saleId, email));
    return kept ? new Attempt(saleId, email, JSON.parse(kept)) : null;
  }

  /** A new attempt, stored before its first request is sent. */
  static begin(saleId, email, items) {
    const attempt = new Attempt(saleId, email, { key: newKey(), items });
    sessionStorage.setItem(place(saleId, email), JSON.stringify(attempt.kept));
    return attempt;
  }

  constructor(saleId, email, kept) {
    this.saleId = saleId;
    this.email = email;
    this.kept = kept;
  }

  get items() {
    return this.kept.items;
  }

  /**
   * Return the order, or throw the problem that ends the attempt. After a thrown problem of `REPEATED` the attempt is
   * still unfinished: `send` may be called again. Calls `waiting(problem, ms)` before each pause.
   */
  async send(session, edge, waiting) {
    for (let tries = 1; ; tries++) {
      try {
        const order = await session.ask("POST", `${edge}/v1/sales/${this.saleId}/orders`, {
          body: { items: this.items }, headers: { "Idempotency-Key": this.kept.key }, timeoutMs: 10000,
        });
        this.forget();
        return order;
      } catch (problem) {
        const opens = problem.code === "sale_not_open" && problem.retryAfterS !== null && problem.retryAfterS <= SOON_S;
        const repeated = REPEATED.has(problem.code) || opens;
        if (!repeated && problem.status !== 401) this.forget();
        if (!repeated || tries >= TRIES_MAX) throw problem;
        const ownMs = Math.min(WAIT_FIRST_MS * 2 ** (tries - 1), WAIT_LONGEST_MS);
        // Jitter, so that buyers refused at the same moment do not retry at the same moment.
        const ms = Math.max((problem.retryAfterS ?? 0) * 1000, ownMs) * (1 + Math.random() / 4);
        waiting(problem, ms);
        await pause(ms);
      }
    }
  }

  static repeats(problem) {
    return REPEATED.has(problem.code);
  }

  forget() {
    sessionStorage.removeItem(place(this.saleId, this.email));
  }
}

const place = (saleId, email) => `flashsale.attempt.${saleId}.${email.toLowerCase()}`;
