// One attempt to buy: its Idempotency-Key outlives reloads and repeats, so whatever happens on the way, it is one order.

import { newKey, pause } from "./page.js";

const TRIES_MAX = 12;
const WAIT_FIRST_MS = 400;
const WAIT_LONGEST_MS = 8000;
// After these the order may exist, or may be taken in a moment: the same key asks again. All others are final.
const REPEATED = new Set(["no_answer", "overloaded", "dependency_unavailable", "outcome_unknown", "internal_error", "rate_limited", "request_timeout"]);
const SOON_S = 10; // so long a sale that is about to open is waited for

export class Attempt {
  /** The attempt of this buyer in this sale that has no answer yet; null when there is none. */
  static unfinished(saleId, email) {
    const kept = sessionStorage.getItem(place(saleId, email));
    return kept ? new Attempt(saleId, email, JSON.parse(kept)) : null;
  }

  /** A new one, kept before its first request leaves. */
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
   * The order, or the problem that ends it; either way the attempt is over then. A problem of `REPEATED` that is thrown
   * leaves it unfinished: `send` may be called again. `waiting(problem, ms)` is told of each pause.
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
        // Spread out: those who were refused together shall not come back together.
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
