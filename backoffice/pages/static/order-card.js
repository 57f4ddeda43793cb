// One order of the buyer: its state, the countdown of its hold, paying and cancelling. Follows the order until nothing
// about it can change any more, and asks less and less often.

import { clock, find, make, moment, money, say } from "./page.js";
import { confirm } from "./dialogs.js";
import { OrderNotices } from "./order-notices.js";
import { told } from "./order-words.js";
import { payingWords, words } from "./problem-words.js";

const POLL_FIRST_MS = 1000;
const POLL_GROWTH = 1.3;
const POLL_LONGEST_MS = 30000;
const POLL_HIDDEN_MS = 30000;
const HOLD_OVER_MS = 300; // the order is asked for so long after the end of its hold
const CONFIRM_MS = 60000; // a payment may take so long from the provider's page to the order
const FOLLOW_MS = 300000; // so long the money of a final order is followed
const LEAVE_MS = 15000; // the browser leaves for the provider's page within this time, or the buyer may click again

/** The mark of an order whose payment page this tab has opened: it survives the way to the provider and back. */
const visit = (order) => `flashsale.paying.${order.order_id}`;

export class OrderCard {
  /**
   * Fills the section `order`. `changed()` is called when the order is shown or hidden, or its state changes; `now()`
   * returns the server's time. `more`: an element that leads to the next order.
   */
  constructor(session, edge, { changed, now, more }) {
    this.session = session;
    this.edge = edge;
    this.changed = changed;
    this.now = now;
    this.order = null;
    this.timer = null;
    this.busy = false;
    find("order").append(
      make("h2", { id: "order-title", tabindex: -1 }, "Your order"),
      make("div", { role: "status", "aria-live": "polite" }, make("p", { id: "order-state" }), make("div", { id: "order-notes" })),
      make("p", { id: "order-countdown", class: "countdown", role: "timer", hidden: true }),
      make("ul", { id: "order-lines" }),
      make("p", { id: "order-total" }),
      make("p", { class: "quiet small" }, make("a", { id: "order-link" })),
      make("p", { id: "order-message", role: "alert", hidden: true }),
      make("button", { id: "pay", class: "main big", type: "button", hidden: true, click: () => this.pay() }, "Pay now"),
      make("div", { class: "row" },
        make("button", { id: "cancel", class: "danger", type: "button", hidden: true, click: () => this.cancel() }, "Cancel order"),
        make("button", { id: "check", type: "button", hidden: true, click: () => this.check() }, "Check again"),
        more));
    this.notices = new OrderNotices(session, find("order"));
    setInterval(() => this.order && this.tick(), 250);
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
    // Back from the provider's page with the page as it was left.
    addEventListener("pageshow", (event) => event.persisted && this.order && this.follow(this.order));
  }

  get open() {
    return this.order !== null;
  }

  /** Show an order and follow it. */
  follow(order) {
    this.order = order;
    this.visited = sessionStorage.getItem(visit(order)) !== null;
    this.since = Date.now();
    this.polls = 0;
    this.setBusy(false);
    say(find("order-message"), "");
    this.show();
    this.later();
    if (order.status === "reserved" || order.status === "paid") this.notices.offer();
  }

  hide() {
    clearTimeout(this.timer);
    this.order = null;
    this.notices.hide();
    find("order").hidden = true;
  }

  async fetch(orderId) {
    return this.session.ask("GET", `${this.edge}/v1/orders/${orderId}`, { timeoutMs: 10000 });
  }

  show() {
    const { order } = this;
    if (order.status === "paid") sessionStorage.removeItem(visit(order));
    find("order").hidden = false;
    find("order-state").dataset.status = order.status;
    find("order-lines").replaceChildren(...order.items.map((line) =>
      make("li", {}, `${line.quantity} × ${line.sku}, ${money(line.unit_price_minor, order.currency)} each`)));
    find("order-total").textContent = `Total: ${money(order.total_minor, order.currency)}`;
    find("order-link").textContent = `Order ${order.order_id}, ${moment(order.reserved_at)}`;
    find("pay").textContent = order.total_minor ? "Pay now" : "Confirm the free order";
    find("order-link").href = `/shop/orders/${order.order_id}`;
    this.tick();
  }

  /** Show the parts that depend on the time. Texts are written when they change: screen readers announce each write. */
  tick() {
    const { order } = this;
    const confirming = this.visited && Date.now() - this.since < CONFIRM_MS;
    const { text, kind, notes } = told(order, { visited: this.visited, confirming });
    const state = find("order-state");
    if (state.textContent !== text) state.textContent = text;
    state.className = kind;
    if (find("order-notes").textContent !== notes.join("")) find("order-notes").replaceChildren(...notes.map((note) => make("p", {}, note)));
    const reserved = order.status === "reserved";
    const leftMs = Date.parse(order.expires_at) - this.now();
    find("order-countdown").hidden = !reserved;
    if (reserved) find("order-countdown").textContent = `Held for ${clock(leftMs)}`;
    find("pay").hidden = !reserved || leftMs <= 0;
    find("cancel").hidden = !reserved;
  }

  // ---- following ----

  /** Whether nothing about the order can change any more, as far as this page knows. */
  get settled() {
    const { status, payment, refund_due_minor: due } = this.order;
    return status !== "reserved" && !due && (status === "paid" || payment !== "none" || !this.visited);
  }

  later() {
    clearTimeout(this.timer);
    const { order } = this;
    const ends = this.settled || (order.status !== "reserved" && Date.now() - this.since > FOLLOW_MS);
    find("check").hidden = this.settled || !ends;
    if (ends) return;
    const leftMs = Date.parse(order.expires_at) - this.now();
    const ownMs = document.hidden ? POLL_HIDDEN_MS : Math.min(POLL_FIRST_MS * POLL_GROWTH ** this.polls, POLL_LONGEST_MS);
    const ms = Math.max(ownMs, (this.waitS ?? 0) * 1000) * (0.75 + Math.random() / 2);
    this.timer = setTimeout(() => this.poll(), leftMs > 0 ? Math.min(ms, leftMs + HOLD_OVER_MS) : ms);
  }

  async poll() {
    const { order } = this;
    this.polls++;
    this.waitS = 0;
    try {
      const newest = await this.fetch(order.order_id);
      if (this.order?.order_id !== newest.order_id) return;
      if (!this.busy && find("order-message").dataset.of === "poll") say(find("order-message"), "");
      this.take(newest);
    } catch (problem) {
      if (this.order !== order) return;
      this.waitS = problem.retryAfterS;
      this.tell(`${words(problem)} Your order is safe. This page checks again.`, "warn", "poll");
    }
    if (this.order) this.later();
  }

  /** Show a newer version of the order. */
  take(newest) {
    const before = this.order;
    this.order = newest;
    this.show();
    const changed = ["status", "payment", "refund_due_minor", "refunded_minor"].some((name) => before[name] !== newest[name]);
    if (!changed) return;
    this.polls = 0;
    if (!this.busy) say(find("order-message"), "");
    this.changed();
  }

  /** Ask at once: the buyer looks at the page again. */
  look() {
    if (!this.order || this.settled) return;
    this.polls = 0;
    clearTimeout(this.timer);
    this.poll();
  }

  check() {
    this.since = Date.now();
    this.look();
  }

  // ---- acting ----

  setBusy(busy) {
    this.busy = busy;
    for (const name of ["pay", "cancel"]) find(name).disabled = busy;
  }

  /** Show a message; `of` tells which part of the card may take it away again. */
  tell(text, kind, of) {
    find("order-message").dataset.of = of;
    say(find("order-message"), text, kind);
  }

  /** Open the provider's page. A click while a request is under way does nothing. */
  async pay() {
    if (this.busy || !this.order) return;
    const { order } = this;
    this.setBusy(true);
    this.tell("Opening the payment page …", "quiet", "pay");
    try {
      const { payment_url: address } = await this.session.ask("POST", `${this.edge}/v1/orders/${order.order_id}/payment`, { timeoutMs: 15000 });
      const url = new URL(address);
      if (url.protocol !== "https:" && url.protocol !== "http:") throw new Error("the payment page has no web address");
      sessionStorage.setItem(visit(order), "opened");
      location.assign(url);
      setTimeout(() => this.setBusy(false), LEAVE_MS);
    } catch (problem) {
      this.setBusy(false);
      this.tell(problem.code === "order_state_conflict" ? problem.text : payingWords(problem), "warn", "pay");
      if (problem.code === "order_state_conflict") this.look();
    }
  }

  async cancel() {
    if (!(await confirm("Cancel this order? Its units go back on sale.", "Cancel order", { danger: true }))) return;
    if (!this.order || this.busy) return;
    this.setBusy(true);
    try {
      // Safe to repeat.
      this.take(await this.session.ask("POST", `${this.edge}/v1/orders/${this.order.order_id}/cancel`, { timeoutMs: 10000 }));
      say(find("order-message"), "");
      this.later();
      find("order-title").focus();
    } catch (problem) {
      this.tell(problem.code === "order_state_conflict" ? problem.text : words(problem), "bad", "cancel");
      this.look();
    } finally {
      this.setBusy(false);
    }
  }
}
