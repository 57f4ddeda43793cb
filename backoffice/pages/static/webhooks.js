// Webhooks: list, create, enable, disable, test, new secret, delete; their deliveries with replay.

import { count, find, make, moment, newKey } from "./page.js";
import { confirm, details } from "./dialogs.js";

const REASONS = { staff: "by staff", gone: "the receiver wants no more events", failing: "the receiver kept failing" };

export class Webhooks {
  constructor(session, tell) {
    this.session = session;
    this.tell = tell;
    this.shown = null; // the webhook with its deliveries on the page
    this.key = newKey(); // of the next creation: a repeated click creates once
    find("webhooks-refresh").addEventListener("click", () => this.load());
    find("deliveries-refresh").addEventListener("click", () => this.loadDeliveries());
    find("deliveries-more").addEventListener("click", () => this.loadDeliveries(this.cursor));
    find("webhook-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.create();
    });
  }

  async load() {
    try {
      const page = await this.session.ask("GET", "/v1/webhooks?limit=200");
      find("webhooks").replaceChildren(...page.items.map((webhook) => this.row(webhook)));
      find("webhooks-none").hidden = page.items.length > 0;
      find("webhooks-table").hidden = !page.items.length;
      if (this.shown && !page.items.some((webhook) => webhook.id === this.shown.id)) this.show(null);
    } catch (problem) {
      this.tell(`Could not load the webhooks: ${problem.text}`);
    }
  }

  row(webhook) {
    const about = make("span", { class: "skip" }, ` ${webhook.url}`);
    const button = (text, act, danger) => make("button", { type: "button", class: danger ? "danger" : null, click: act }, text, about.cloneNode(true));
    const state = webhook.enabled ? (webhook.failures ? `enabled, failing since ${moment(webhook.failing_since)}` : "enabled") : `disabled: ${REASONS[webhook.disabled_reason]}`;
    const skipped = webhook.skipped ? `, ${count(webhook.skipped)} skipped` : "";
    return make("tr", { "data-webhook": webhook.id },
      make("th", { scope: "row" }, webhook.url, webhook.description ? make("div", { class: "quiet small" }, webhook.description) : null),
      make("td", { "data-label": "Event types" }, webhook.event_types.join(", ")),
      make("td", { "data-label": "State" }, state),
      make("td", { "data-label": "Waiting", class: "n" }, count(webhook.waiting) + skipped),
      make("td", {}, make("div", { class: "row" },
        button("Deliveries", () => this.show(webhook)),
        button("Test", () => this.test(webhook)),
        webhook.enabled ? button("Disable", () => this.act(webhook, "disable")) : button("Enable", () => this.act(webhook, "enable")),
        button("New secret", () => this.rotate(webhook)),
        button("Delete", () => this.remove(webhook), true))));
  }

  async create() {
    const event_types = find("webhook-types").value.split(",").map((type) => type.trim()).filter((type) => type);
    const body = { url: find("webhook-url").value, event_types, description: find("webhook-about").value };
    try {
      const made = await this.session.ask("POST", "/v1/webhooks", { body, headers: { "Idempotency-Key": this.key } });
      this.key = newKey();
      find("webhook-form").reset();
      this.tell("The webhook was created", "good");
      this.secret(made.secret);
    } catch (problem) {
      if (problem.status) this.key = newKey();
      this.tell(`The webhook was not created: ${problem.text}`);
    }
    await this.load();
  }

  secret(secret, note = "") {
    details("Secret of the webhook",
      make("p", {}, `Give it to the receiver now: it is not shown again. ${note}`),
      make("pre", { tabindex: 0, id: "webhook-secret" }, secret));
  }

  async act(webhook, verb) {
    try {
      await this.session.ask("POST", `/v1/webhooks/${webhook.id}/${verb}`);
      this.tell(`${webhook.url} was ${verb}d`, "good");
    } catch (problem) {
      this.tell(`${webhook.url}: ${problem.text}`);
    }
    await this.load();
  }

  async test(webhook) {
    try {
      await this.session.ask("POST", `/v1/webhooks/${webhook.id}/ping`);
      this.tell("A test event is on its way: see the deliveries", "good");
    } catch (problem) {
      this.tell(`${webhook.url}: ${problem.text}`);
    }
    await this.show(webhook);
  }

  async rotate(webhook) {
    if (!(await confirm(`Make a new secret for ${webhook.url}? For 24 hours both secrets sign.`, "New secret"))) return;
    try {
      const made = await this.session.ask("POST", `/v1/webhooks/${webhook.id}/secret`);
      this.secret(made.secret, `The old one signs, too, until ${moment(made.previous_secret_until)}.`);
    } catch (problem) {
      this.tell(`${webhook.url}: ${problem.text}`);
    }
  }

  async remove(webhook) {
    if (!(await confirm(`Delete the webhook ${webhook.url}? Its deliveries are deleted, too.`, "Delete", { danger: true }))) return;
    try {
      await this.session.ask("DELETE", `/v1/webhooks/${webhook.id}`);
      this.tell(`${webhook.url} was deleted`, "good");
      find("webhooks-refresh").focus();
    } catch (problem) {
      this.tell(`${webhook.url}: ${problem.text}`);
    }
    await this.load();
  }

  async show(webhook) {
    this.shown = webhook;
    find("deliveries-part").hidden = !webhook;
    if (!webhook) return;
    find("deliveries-title").textContent = `Deliveries to ${webhook.url}`;
    await this.loadDeliveries();
  }

  async loadDeliveries(cursor = null) {
    const more = cursor ? `&cursor=${encodeURIComponent(cursor)}` : "";
    try {
      const page = await this.session.ask("GET", `/v1/webhooks/${this.shown.id}/deliveries?limit=50${more}`);
      if (!cursor) find("deliveries").replaceChildren();
      find("deliveries").append(...page.items.map((delivery) => this.deliveryRow(delivery)));
      this.cursor = page.next_cursor;
      find("deliveries-more").hidden = !this.cursor;
      find("deliveries-none").hidden = find("deliveries").children.length > 0;
      find("deliveries-table").hidden = !find("deliveries").children.length;
    } catch (problem) {
      this.tell(`Could not load the deliveries: ${problem.text}`);
    }
  }

  deliveryRow(delivery) {
    const about = make("span", { class: "skip" }, ` ${delivery.event_id}`);
    const answer = delivery.status ? ` (${delivery.status})` : "";
    return make("tr", { "data-delivery": delivery.id },
      make("th", { scope: "row" }, moment(delivery.created_at)),
      make("td", { "data-label": "Event" }, delivery.event_type),
      make("td", { "data-label": "State" }, delivery.state + answer),
      make("td", { "data-label": "Attempts", class: "n" }, count(delivery.attempts)),
      make("td", {}, make("div", { class: "row" },
        make("button", { type: "button", click: () => this.open(delivery) }, "Show", about),
        make("button", { type: "button", click: () => this.replay(delivery) }, "Replay", about.cloneNode(true)))));
  }

  open(delivery) {
    details(delivery.event_id,
      make("ul", {}, ...delivery.history.map((attempt) => make("li", {}, `${moment(attempt.at)}: ${attempt.status ?? "no answer"} ${attempt.answer}`))),
      make("pre", { tabindex: 0 }, delivery.body));
  }

  async replay(delivery) {
    try {
      await this.session.ask("POST", `/v1/webhooks/${this.shown.id}/deliveries/${delivery.id}/replay`);
      this.tell(`${delivery.event_id} is sent again`, "good");
    } catch (problem) {
      this.tell(`${delivery.event_id}: ${problem.text}`);
    }
    await this.loadDeliveries();
  }
}
