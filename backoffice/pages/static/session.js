// A login: tokens in the localStorage of this site, shared by all tabs, and renewed before they expire. A lock over the
// tabs lets one of them renew, and the others use its tokens: a refresh token that is used twice counts as stolen.

import { ask, newKey, Problem } from "./page.js";

const loggedOut = () => new Problem(401, { code: "token_missing", detail: "Please log in" });
const EARLY_MS = 60000; // renew a token so long before it expires, or a quarter of its lifetime if that is shorter
const IDLE_MS_MAX = 12 * 3600 * 1000; // a login that no tab has renewed for so long is not taken up again
const ASK_WITHIN_MS = 3000; // tabs ask at random moments whether the address is verified

/**
 * Run `work` in one tab at a time. A tab may see the tokens of another one a little late, and pages without TLS have no
 * locks. For both, the server accepts a refresh token again within some seconds.
 */
const inTurn = (name, work) => (navigator.locks ? navigator.locks.request(name, work) : work());

export class Session {
  /** `name` keeps staff and buyers apart. `onChange(text)`: the server or another tab changed or ended the login. */
  constructor(name, onChange) {
    this.key = `flashsale.${name}`;
    this.verifiedKey = `${this.key}.verified`;
    this.onChange = onChange;
    this.renewing = null;
    // On a shared computer: the storage outlives the browser.
    if (this.kept && Date.now() - this.kept.renewAt > IDLE_MS_MAX) this.logOut();
    this.login = this.kept?.login;
    const changed = (event) => event.persisted === false || this.changed();
    addEventListener("storage", changed);
    addEventListener("pageshow", changed); // a page from the history has missed events
  }

  /** The tokens and their login, as the newest tab left them; null without a login. */
  get kept() {
    return JSON.parse(localStorage.getItem(this.key) || "null");
  }

  get active() {
    return this.kept !== null;
  }

  get email() {
    return this.kept?.email ?? "";
  }

  /** The address, and a note while it is known not to be verified. */
  get label() {
    return this.email + (localStorage.getItem(this.verifiedKey) === "no" ? " (address not verified)" : "");
  }

  async logIn(email, password) {
    const tokens = await ask("POST", "/v1/auth/login", { body: { email, password } });
    this.login = newKey();
    localStorage.removeItem(this.verifiedKey);
    this.keep(tokens, email, this.login);
  }

  async logOut() {
    const { kept } = this;
    this.end();
    if (kept) await ask("POST", "/v1/auth/logout", { body: { refresh_token: kept.refresh } }).catch(() => {});
  }

  /** Ask whether the address is verified, until it is; `show()` is called after an answer. */
  learn(show) {
    if (!this.active || localStorage.getItem(this.verifiedKey) === "yes") return;
    setTimeout(async () => {
      const { login } = this;
      const account = await this.ask("GET", "/v1/users/me").catch(() => null); // a synthetic buyer has no account
      if (!account || this.kept?.login !== login) return;
      localStorage.setItem(this.verifiedKey, account.email_verified ? "yes" : "no");
      show();
    }, Math.random() * ASK_WITHIN_MS);
  }

  /** An access token that is valid for a while; throws Problem (401) without a login. */
  async token() {
    const { kept } = this;
    if (!kept) throw loggedOut();
    return Date.now() < kept.renewAt ? kept.access : this.renew(kept.access);
  }

  /** Send a request with a token; after `token_expired` renew the token and send the request once more. */
  async ask(method, url, options = {}) {
    const token = await this.token();
    try {
      return await ask(method, url, { ...options, token });
    } catch (problem) {
      if (problem.code !== "token_expired") throw problem;
      return ask(method, url, { ...options, token: await this.renew(token) });
    }
  }

  /** A newer access token than `old`, from the server or from another tab. */
  renew(old) {
    this.renewing ??= inTurn(this.key, () => this.exchange(old)).finally(() => (this.renewing = null));
    return this.renewing;
  }

  async exchange(old) {
    const begun = this.kept;
    if (!begun) throw loggedOut();
    if (begun.access !== old) return begun.access; // another tab has renewed it meanwhile
    let tokens;
    try {
      tokens = await ask("POST", "/v1/auth/refresh", { body: { refresh_token: begun.refresh } });
    } catch (problem) {
      if (problem.status === 401 && this.kept?.refresh === begun.refresh) {
        this.end();
        this.onChange("Your session has ended. Please log in again");
      }
      throw problem;
    }
    if (this.kept?.login !== begun.login) {
      // Logged out while the renewal was under way: do not log in again, and end the new tokens.
      ask("POST", "/v1/auth/logout", { body: { refresh_token: tokens.refresh_token } }).catch(() => {});
      throw loggedOut();
    }
    this.keep(tokens, begun.email, begun.login);
    return tokens.access_token;
  }

  keep(tokens, email, login) {
    // The local clock may be wrong: count the lifetime from now.
    const lifeMs = tokens.expires_in * 1000;
    const renewAt = Date.now() + lifeMs - Math.min(EARLY_MS, lifeMs / 4);
    const kept = { access: tokens.access_token, refresh: tokens.refresh_token, renewAt, email, login };
    localStorage.setItem(this.key, JSON.stringify(kept));
  }

  end() {
    this.login = undefined;
    localStorage.removeItem(this.key);
    localStorage.removeItem(this.verifiedKey);
  }

  /** Follow a login or a log out of another tab. */
  changed() {
    const login = this.kept?.login;
    if (login === this.login) return;
    this.login = login;
    this.onChange(login ? "" : "You have logged out in another tab");
  }
}
