// The buyer's orders: the current order, updated until it is final, and the list of all orders.

import { clock, find, make, moment, money, say } from "./page.js";
import { confirm } from "./dialogs.js";

const POLL_MS = 2000;
const POLL_HIDDEN_MS = 10000;
const STATES = {
  reserved: ["Reserved for you.", "warn"],
  paid: ["Paid. Thank you!", "good"],
  cancelled: ["Cancelled.", "quiet"],
  expired: ["Expired: the hold has ended and the units are on sale again.", "bad"],
  rejected: ["We are sorry, this order could not be fulfilled. You will not be charged.", "bad"],
};

export class Orders {
  /**
   * `closed()` is called when the current order is shown or hidden; `now()` returns the server's time; `words(problem)`
   * returns the text of a problem; `place()` returns the storage key of the id of the current order, which survives a
   * reload.
   */
  constructor(session, edge, { closed, now, words, place }) {
    this.session = session;
    this.place = place;
    this.edge = edge;
    this.closed = closed;
    this.now = now;
    this.words = words;
    this.order = null;
    this.timer = null;
    this.cursor = null;
    find("cancel").addEventListener("click", () => this.cancel());
    find("more").addEventListener("click", () => this.close());
    find("history-refresh").addEventListener("click", () => this.load());
    find("history-more").addEventListener("click", () => this.load(this.cursor));
    setInterval(() => this.tick(), 250);
  }

  get open() {
    return this.order !== null;
  }

  /** Show an order and update it until it is final. */
  follow(order) {
    this.order = order;
    sessionStorage.setItem(this.place(), order.order_id);
    say(find("order-message"), "");
    this.show();
    this.later();
  }

  /** Show the order again that was shown before a reload. */
  async resume() {
    const orderId = sessionStorage.getItem(this.place());
    if (!orderId || this.order) return;
    try {
      const order = await this.session.ask("GET", `${this.edge}/v1/orders/${orderId}`, { timeoutMs: 10000 });
      if (this.order) return;
      this.follow(order);
      this.closed();
    } catch {
      // The order is in the list as well.
    }
  }

  /** Hide the order for good, so that the buyer can buy again. */
  close() {
    sessionStorage.removeItem(this.place());
    this.hide();
  }

  hide() {
    clearTimeout(this.timer);
    this.order = null;
    find("order").hidden = true;
    this.closed();
  }

  show() {
    const { order } = this;
    const [text, kind] = STATES[order.status] ?? [order.status, "quiet"];
    find("order").hidden = false;
    const state = find("order-state");
    if (state.textContent !== text) state.textContent = text;
    state.className = kind;
    state.dataset.status = order.status;
    find("order-lines").replaceChildren(...order.items.map((line) => make("li", {}, `${line.quantity} × ${line.sku}, ${money(line.unit_price_minor, order.currency)} each`)));
    find("order-total").textContent = `Total: ${money(order.total_minor, order.currency)}`;
    find("order-id").textContent = `Order ${order.order_id}, ${moment(order.reserved_at)}`;
    find("cancel").hidden = order.status !== "reserved";
    this.tick();
  }

  tick() {
    const counts = this.order?.status === "reserved";
    find("order-countdown").hidden = !counts;
    if (!counts) return;
    const leftMs = Date.parse(this.order.expires_at) - this.now();
    find("order-countdown").textContent = `Held for ${clock(leftMs)}`;
  }

  later() {
    clearTimeout(this.timer);
    if (this.order?.status !== "reserved") return;
    this.timer = setTimeout(() => this.poll(), document.hidden ? POLL_HIDDEN_MS : POLL_MS);
  }

  async poll() {
    const { order } = this;
    try {
      const newest = await this.session.ask("GET", `${this.edge}/v1/orders/${order.order_id}`, { timeoutMs: 10000 });
      if (this.order?.order_id !== newest.order_id) return;
      const changed = newest.status !== this.order.status;
      this.order = newest;
      say(find("order-message"), "");
      this.show();
      if (changed) this.load();
    } catch (problem) {
      if (this.order === order) say(find("order-message"), `${this.words(problem)} Your order is safe. This page checks again.`, "warn");
    }
    this.later();
  }

  async cancel() {
    if (!(await confirm("Cancel this order? Its units go back on sale.", "Cancel order", { danger: true }))) return;
    if (!this.order) return;
    find("cancel").disabled = true;
    try {
      // Safe to repeat.
      this.order = await this.session.ask("POST", `${this.edge}/v1/orders/${this.order.order_id}/cancel`, { timeoutMs: 10000 });
      say(find("order-message"), "");
      this.show();
      find("order-title").focus();
      this.load();
    } catch (problem) {
      say(find("order-message"), problem.code === "order_state_conflict" ? problem.text : this.words(problem));
      this.poll();
    } finally {
      find("cancel").disabled = false;
    }
  }

  async load(cursor = null) {
    if (!this.session.active) return;
    try {
      const page = await this.session.ask("GET", `${this.edge}/v1/orders?limit=10${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
      if (!cursor) find("history-rows").replaceChildren();
      find("history-rows").append(...page.items.map((order) => this.row(order)));
      this.cursor = page.next_cursor;
      find("history-more").hidden = !this.cursor;
    } catch (problem) {
      if (problem.status === 401) return;
      // Not essential: the list is loaded again later.
    }
    const none = !find("history-rows").children.length;
    find("history-none").hidden = !none;
    find("history-table").hidden = none;
  }

  row(order) {
    return make("tr", { "data-order": order.order_id },
      make("th", { scope: "row" }, moment(order.reserved_at)),
      make("td", { "data-label": "Items" }, order.items.map((line) => `${line.quantity} × ${line.sku}`).join(", ")),
      make("td", { "data-label": "Total", class: "n" }, money(order.total_minor, order.currency)),
      make("td", { "data-label": "State" }, order.status),
      make("td", {}, make("button", { type: "button", click: () => this.pick(order) }, "Show", make("span", { class: "skip" }, ` order of ${moment(order.reserved_at)}`))));
  }

  pick(order) {
    this.follow(order);
    this.closed();
    find("order-title").focus();
  }
}
