// A login: tokens in the sessionStorage of this tab, renewed before they expire, one renewal at a time.

import { ask, Problem } from "./page.js";

const loggedOut = () => new Problem(401, { code: "token_missing", detail: "Please log in" });
const EARLY_MS = 60000; // renew a token so long before it expires, or a quarter of its lifetime if that is shorter

export class Session {
  /** `name` keeps staff and buyers of one tab apart; `onEnd(text)` is called when the server ends the login. */
  constructor(name, onEnd) {
    this.key = `flashsale.${name}`;
    this.onEnd = onEnd;
    this.renewing = null;
    this.kept = JSON.parse(sessionStorage.getItem(this.key) || "null");
  }

  get active() {
    return this.kept !== null;
  }

  get email() {
    return this.kept ? this.kept.email : "";
  }

  async logIn(email, password) {
    this.keep(await ask("POST", "/v1/auth/login", { body: { email, password } }), email);
  }

  async logOut() {
    const kept = this.kept;
    this.end();
    if (kept) await ask("POST", "/v1/auth/logout", { body: { refresh_token: kept.refresh } }).catch(() => {});
  }

  /** An access token that is valid for a while; throws Problem (401) without a login. */
  async token() {
    if (!this.kept) throw loggedOut();
    if (Date.now() < this.kept.renewAt) return this.kept.access;
    return this.renew();
  }

  /** Send a request with a token; after `token_expired` renew the token and send the request once more. */
  async ask(method, url, options = {}) {
    const token = await this.token();
    try {
      return await ask(method, url, { ...options, token });
    } catch (problem) {
      if (problem.code !== "token_expired") throw problem;
      return ask(method, url, { ...options, token: await this.renew() });
    }
  }

  renew() {
    this.renewing ??= this.exchange().finally(() => (this.renewing = null));
    return this.renewing;
  }

  async exchange() {
    const begun = this.kept;
    if (!begun) throw loggedOut();
    let tokens;
    try {
      tokens = await ask("POST", "/v1/auth/refresh", { body: { refresh_token: begun.refresh } });
    } catch (problem) {
      if (problem.status === 401 && this.kept === begun) {
        this.end();
        this.onEnd("Your session has ended. Please log in again");
      }
      throw problem;
    }
    if (this.kept !== begun) {
      // Logged out while the renewal was under way: do not log in again, and end the new tokens.
      ask("POST", "/v1/auth/logout", { body: { refresh_token: tokens.refresh_token } }).catch(() => {});
      throw loggedOut();
    }
    this.keep(tokens, begun.email);
    return this.kept.access;
  }

  keep(tokens, email) {
    // The local clock may be wrong: count the lifetime from now.
    const lifeMs = tokens.expires_in * 1000;
    const renewAt = Date.now() + lifeMs - Math.min(EARLY_MS, lifeMs / 4);
    this.kept = { access: tokens.access_token, refresh: tokens.refresh_token, renewAt, email };
    sessionStorage.setItem(this.key, JSON.stringify(this.kept));
  }

  end() {
    this.kept = null;
    sessionStorage.removeItem(this.key);
  }
}
