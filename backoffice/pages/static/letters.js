// Dead letters: list, show, replay, delete.

import { count, find, make, moment } from "./page.js";
import { confirm, details } from "./dialogs.js";

export class Letters {
  constructor(session, tell) {
    this.session = session;
    this.tell = tell;
    find("letters-refresh").addEventListener("click", () => this.load());
    find("letters-more").addEventListener("click", () => this.load(this.cursor));
  }

  async load(cursor = null) {
    try {
      const page = await this.session.ask("GET", `/v1/dead-letters?limit=50${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
      if (!cursor) find("letters").replaceChildren();
      find("letters").append(...page.items.map((letter) => this.row(letter)));
      this.cursor = page.next_cursor;
      find("letters-more").hidden = !this.cursor;
      this.showNone();
    } catch (problem) {
      this.tell(`Could not load the dead letters: ${problem.text}`);
    }
  }

  showNone() {
    const none = !find("letters").children.length;
    find("letters-none").hidden = !none;
    find("letters-table").hidden = none;
  }

  row(letter) {
    const about = make("span", { class: "skip" }, ` ${letter.id}`);
    const row = make("tr", { "data-letter": letter.id },
      make("th", { scope: "row" }, letter.queue),
      make("td", { "data-label": "Dead since" }, moment(letter.died_at)),
      make("td", { "data-label": "Reason" }, letter.reason),
      make("td", { "data-label": "Attempts", class: "n" }, count(letter.attempt)),
      make("td", {}, make("div", { class: "row" },
        make("button", { type: "button", click: () => this.open(letter) }, "Show", about),
        letter.replayable ? make("button", { type: "button", click: () => this.replay(letter, row) }, "Replay", about.cloneNode(true)) : null,
        make("button", { type: "button", class: "danger", click: () => this.remove(letter, row) }, "Delete", about.cloneNode(true)))));
    return row;
  }

  async open(letter) {
    try {
      const whole = await this.session.ask("GET", `/v1/dead-letters/${encodeURIComponent(letter.id)}`);
      details(whole.id,
        make("p", {}, whole.reason),
        make("ul", {}, ...whole.history.map((failure) => make("li", {}, `${moment(failure.at)}: ${failure.reason}`))),
        make("pre", { tabindex: 0 }, whole.body ?? whole.body_base64));
    } catch (problem) {
      this.tell(`${letter.id}: ${problem.text}`);
    }
  }

  async replay(letter, row) {
    await this.act("POST", `/v1/dead-letters/${encodeURIComponent(letter.id)}/replay`, letter, row, "was put back into its queue");
  }

  async remove(letter, row) {
    if (!(await confirm(`Delete the dead letter ${letter.id}? Its content will be lost. If it changes an order, invariant B of the sale will be violated.`, "Delete", { danger: true }))) return;
    await this.act("DELETE", `/v1/dead-letters/${encodeURIComponent(letter.id)}`, letter, row, "was deleted");
  }

  async act(method, url, letter, row, outcome) {
    try {
      await this.session.ask(method, url);
      row.remove();
      this.showNone();
      find("letters-refresh").focus();
      this.tell(`${letter.id} ${outcome}`, "good");
    } catch (problem) {
      if (problem.status === 404) row.remove();
      this.showNone();
      this.tell(`${letter.id}: ${problem.text}`);
    }
  }
}
