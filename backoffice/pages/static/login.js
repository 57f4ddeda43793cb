// The login form of buyers, which also creates accounts.

import { ask, clock, find, say } from "./page.js";
import { words } from "./problem-words.js";

export class Login {
  /** `done()` is called after a login. */
  constructor(session, done) {
    this.session = session;
    this.done = done;
    find("login-switch").addEventListener("click", () => {
      this.setRegisters(!this.registers);
      find(this.registers ? "name" : "email").focus();
    });
    find("login-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.setRegisters(false);
  }

  /** Ask for a login again, with a reason. */
  reset(text = "") {
    this.setRegisters(false);
    say(find("login-message"), text, "warn");
  }

  setRegisters(wanted) {
    this.registers = wanted;
    find("name-field").hidden = !wanted;
    find("name").required = wanted;
    find("login-submit").textContent = wanted ? "Register and log in" : "Log in";
    find("login-switch").textContent = wanted ? "Log in instead" : "Create an account";
    find("password").autocomplete = wanted ? "new-password" : "current-password";
  }

  async submit() {
    const [email, password] = [find("email").value, find("password").value];
    find("login-submit").disabled = true;
    try {
      if (this.registers) await ask("POST", "/v1/auth/register", { body: { email, password, name: find("name").value } });
      await this.session.logIn(email, password);
      find("password").value = "";
      say(find("login-message"), "");
      this.done();
      find("content").focus();
    } catch (problem) {
      const wait = problem.code === "rate_limited" && problem.retryAfterS ? ` Try again in ${clock(problem.retryAfterS * 1000)}.` : "";
      say(find("login-message"), words(problem) + wait);
    } finally {
      find("login-submit").disabled = false;
    }
  }
}
