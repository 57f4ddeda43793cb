// The audit log: who did what, with filters and an export.

import { count, find, make, moment } from "./page.js";
import { details } from "./dialogs.js";

const EXPORT_MS = 120000;

export class Audit {
  constructor(session, tell) {
    this.session = session;
    this.tell = tell;
    this.turn = 0; // of the newest request: an older answer that comes later is dropped
    find("audit-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.load();
    });
    find("audit-more").addEventListener("click", () => this.load(this.cursor));
    find("audit-export").addEventListener("click", () => this.export());
  }

  /** The filters of the form as a query; without the empty ones. */
  get query() {
    const query = new URLSearchParams();
    for (const name of ["actor", "action", "object"]) {
      const value = find(`audit-${name}`).value.trim();
      if (value) query.set(name, value);
    }
    const since = find("audit-since").value;
    if (since) query.set("since", new Date(since).toISOString());
    return query;
  }

  async load(cursor = null) {
    const query = cursor ? new URLSearchParams(this.shown) : this.query;
    const turn = ++this.turn;
    try {
      const wanted = new URLSearchParams([...query, ["limit", "50"], ...(cursor ? [["cursor", cursor]] : [])]);
      const page = await this.session.ask("GET", `/v1/audit?${wanted}`);
      if (turn !== this.turn) return;
      if (!cursor) find("audit").replaceChildren();
      find("audit").append(...page.items.map((entry) => this.row(entry)));
      this.shown = query.toString(); // more entries are those of the filters that are shown
      this.cursor = page.next_cursor;
      find("audit-more").hidden = !this.cursor;
      find("audit-none").hidden = find("audit").children.length > 0;
      find("audit-table").hidden = !find("audit").children.length;
    } catch (problem) {
      if (turn === this.turn) this.tell(`Could not load the audit log: ${problem.text}`);
    }
  }

  row(entry) {
    const good = entry.outcome === "done";
    const outcome = entry.times > 1 ? `${entry.outcome} (${count(entry.times)} times)` : entry.outcome;
    return make("tr", { "data-entry": entry.id },
      make("th", { scope: "row" }, moment(entry.at)),
      make("td", { "data-label": "Actor" }, entry.actor),
      make("td", { "data-label": "Action" }, entry.action),
      make("td", { "data-label": "Object" }, entry.object),
      make("td", { "data-label": "Outcome" }, good ? outcome : make("strong", {}, outcome)),
      make("td", {}, make("button", { type: "button", click: () => this.open(entry) }, "Show", make("span", { class: "skip" }, ` ${entry.action} ${entry.id}`))));
  }

  open(entry) {
    const facts = { Actor: entry.actor, Object: entry.object, Outcome: entry.outcome, Client: entry.client, Request: entry.request_id };
    details(`${entry.action}, ${moment(entry.at)}`,
      make("dl", { class: "facts" }, ...Object.entries(facts).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value ?? "–")))),
      ...["before", "after"].filter((name) => entry[name]).flatMap((name) => [
        make("h3", {}, name === "before" ? "Before" : "After"), make("pre", { tabindex: 0 }, JSON.stringify(entry[name], null, 2))]));
  }

  async export() {
    const button = find("audit-export");
    button.disabled = true;
    try {
      const text = await this.session.ask("GET", `/v1/audit/export?${this.query}`, { raw: true, timeoutMs: EXPORT_MS });
      const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      make("a", { href: url, download: "audit.csv" }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
      this.tell("The audit log was exported", "good");
    } catch (problem) {
      this.tell(`Could not export the audit log: ${problem.text}`);
    } finally {
      button.disabled = false;
    }
  }
}
