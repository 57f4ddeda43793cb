// Orders for staff: find them, show one with its history and its money, cancel and refund it.

import { find, make, moment, money, newKey, say } from "./page.js";
import { choice, confirm } from "./dialogs.js";

const LIMIT = 20;
const POLL_MS = 2000;
const POLLS_MAX = 15; // of a refund that is under way; then a button asks
const BADGES = { reserved: "warn", paid: "good", cancelled: "quiet", expired: "quiet", rejected: "bad" };
const REASONS = {
  late: "came late", second: "second payment", mismatch: "another amount or currency", lost: "order lost", staff: "by staff",
};

/**
 * The Idempotency-Key of an action. It is kept until the action is answered, also over a reload, so that a second click
 * and a repeat after a lost answer change nothing more.
 */
const keyOf = (action) => {
  const place = `flashsale.action.${action}`;
  if (!sessionStorage.getItem(place)) sessionStorage.setItem(place, newKey());
  return { key: sessionStorage.getItem(place), answered: () => sessionStorage.removeItem(place) };
};

export class StaffOrders {
  constructor(session) {
    this.session = session;
    this.turn = 0; // of the newest request: an older answer that comes later is dropped
    this.order = null;
    this.timer = null;
    this.busy = false;
    find("orders-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const id = find("orders-id").value.trim();
      if (id) this.open(id);
      else this.load();
    });
    find("orders-more").addEventListener("click", () => this.load(this.cursor));
  }

  // ---- the list ----

  get query() {
    const query = new URLSearchParams();
    for (const [name, place] of [["user_id", "user"], ["sale_id", "sale"], ["status", "status"]]) {
      const value = find(`orders-${place}`).value.trim();
      if (value) query.set(name, value);
    }
    return query;
  }

  async load(cursor = null) {
    const query = cursor ? new URLSearchParams(this.shown) : this.query;
    const turn = ++this.turn;
    try {
      const wanted = new URLSearchParams([...query, ["limit", LIMIT], ...(cursor ? [["cursor", cursor]] : [])]);
      const page = await this.session.ask("GET", `/v1/orders?${wanted}`);
      if (turn !== this.turn) return;
      say(find("orders-message"), "");
      if (!cursor) find("orders").replaceChildren();
      find("orders").append(...page.items.map((order) => this.row(order)));
      this.shown = query.toString(); // more orders are those of the filters that are shown
      this.cursor = page.next_cursor;
      find("orders-more").hidden = !this.cursor;
      find("orders-none").hidden = find("orders").children.length > 0;
      find("orders-table").hidden = !find("orders").children.length;
    } catch (problem) {
      if (turn === this.turn) say(find("orders-message"), `Could not load the orders: ${problem.text}`);
    }
  }

  row(order) {
    return make("tr", { "data-order": order.order_id },
      make("th", { scope: "row" }, moment(order.reserved_at)),
      make("td", { "data-label": "Buyer" }, order.user_id),
      make("td", { "data-label": "Items" }, order.items.map((line) => `${line.quantity} × ${line.sku}`).join(", ")),
      make("td", { "data-label": "Total", class: "n" }, money(order.total_minor, order.currency)),
      make("td", { "data-label": "State" }, make("span", { class: `badge ${BADGES[order.status]}` }, order.status)),
      make("td", {}, make("button", { type: "button", click: () => this.open(order.order_id) }, "Show", make("span", { class: "skip" }, ` order ${order.order_id}`))));
  }

  // ---- one order ----

  async open(orderId) {
    try {
      this.polls = 0;
      this.show(await this.session.ask("GET", `/v1/orders/${encodeURIComponent(orderId)}`));
      say(find("orders-message"), "");
      find("order-title").focus();
    } catch (problem) {
      this.close();
      say(find("orders-message"), `Order ${orderId}: ${problem.text}`);
    }
  }

  close() {
    clearTimeout(this.timer);
    this.order = null;
    find("order").hidden = true;
    find("order").replaceChildren();
  }

  show(order) {
    this.order = order;
    const amount = (minor) => money(minor, order.currency);
    const facts = { Buyer: order.user_id, Sale: order.sale_id, Reserved: moment(order.reserved_at), "Hold until": moment(order.expires_at), Total: amount(order.total_minor), Payment: order.payment.replace("_", " ") };
    find("order").replaceChildren(
      make("div", { class: "row" },
        make("h3", { id: "order-title", tabindex: -1 }, `Order ${order.order_id}`),
        make("span", { id: "order-status", class: `badge ${BADGES[order.status]}` }, order.status),
        make("button", { class: "push", type: "button", click: () => this.close() }, "Close", make("span", { class: "skip" }, " the order"))),
      make("dl", { class: "facts" }, ...Object.entries(facts).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { class: "small" }, value)))),
      table("Lines", ["SKU", "Units", "Price", "Refund"], order.items.map((line) =>
        [line.sku, String(line.quantity), amount(line.unit_price_minor), this.refundOf(line)?.state ?? "–"])),
      table("Payments", ["Received", "Event", "Amount", "State", "Due back", "Refunded"], order.payments.map((payment) =>
        [moment(payment.received_at), payment.event_id, money(payment.amount_minor, payment.currency), payment.state.replace("_", " "), money(payment.due_minor, payment.currency), money(payment.refunded_minor, payment.currency)])),
      table("Refunds", ["Asked for", "Amount", "Reason", "Lines", "State"], order.refunds.map((refund) =>
        [moment(refund.created_at), money(refund.amount_minor, refund.currency), REASONS[refund.reason], (refund.lines?.join(", ") ?? "all") + (refund.restock ? ", back on sale" : ""), refund.state])),
      table("History", ["Time", "State"], order.history.map((step) => [moment(step.at), step.status])),
      make("div", { class: "row" },
        order.status === "reserved" && make("button", { id: "order-cancel", class: "danger", type: "button", click: () => this.cancel() }, "Cancel order"),
        this.refundable.length > 0 && make("button", { id: "order-refund", class: "danger", type: "button", click: () => this.refund() }, "Refund"),
        make("button", { id: "order-refresh", class: "push", type: "button", click: () => this.open(order.order_id) }, "Refresh", make("span", { class: "skip" }, " the order"))));
    find("order").hidden = false;
    this.later();
  }

  /** The refund that staff asked for a line; undefined without one. */
  refundOf(line) {
    return this.order.refunds.find((refund) => refund.lines?.includes(line.sku));
  }

  /** The lines whose money can go back, and cost something. */
  get refundable() {
    const { order } = this;
    const captured = order.payments.some((payment) => payment.state === "captured");
    return order.status === "paid" && captured ? order.items.filter((line) => line.unit_price_minor > 0 && !this.refundOf(line)) : [];
  }

  /** Look again for a while at a refund that is under way. */
  later() {
    clearTimeout(this.timer);
    const { order } = this;
    if (!order.refunds.some((refund) => refund.state === "due") || this.polls >= POLLS_MAX) return;
    this.timer = setTimeout(async () => {
      this.polls++;
      const newest = await this.session.ask("GET", `/v1/orders/${order.order_id}`).catch(() => null);
      if (this.order !== order || this.busy) return;
      if (!newest || JSON.stringify(newest) === JSON.stringify(order)) return this.later();
      this.show(newest);
      say(find("orders-message"), ...refundWords(newest));
    }, POLL_MS);
  }

  async cancel() {
    const { order } = this;
    if (!(await confirm(`Cancel order ${order.order_id}? Its units go back on sale.`, "Cancel order", { danger: true }))) return;
    this.change(order, "cancel", {}, keyOf(`${order.order_id}.cancel`), () => ["The order is cancelled", "good"]);
  }

  async refund() {
    const { order } = this;
    const open = this.refundable;
    const lines = open.map((line) => choice(
      `${line.quantity} × ${line.sku}, ${money(line.quantity * line.unit_price_minor, order.currency)}`, { name: `line ${line.sku}`, checked: true }));
    const chosen = await confirm("Refund these lines? This cannot be undone.", "Refund", {
      danger: true, fields: [...lines, choice("Put the units back on sale", { name: "restock" })],
    });
    if (!chosen) return;
    const skus = open.map((line) => line.sku).filter((sku) => chosen[`line ${sku}`]);
    if (!skus.length) return say(find("orders-message"), "No line was chosen. Nothing is refunded.", "warn");
    const body = { lines: skus, restock: chosen.restock };
    this.change(order, "refund", { body }, keyOf(`${order.order_id}.refund.${skus.join(",")}.${chosen.restock}`), refundWords);
  }

  /** Send a change; `told(order)` returns the text and the kind of the message after it. */
  async change(order, act, options, { key, answered }, told) {
    if (this.busy) return;
    this.busy = true;
    for (const button of find("order").querySelectorAll("button")) button.disabled = true;
    try {
      const changed = await this.session.ask("POST", `/v1/orders/${order.order_id}/${act}`, { ...options, headers: { "Idempotency-Key": key } });
      answered();
      this.polls = 0;
      this.show(changed);
      say(find("orders-message"), ...told(changed));
      find("order-title").focus();
      const row = find("orders").querySelector(`[data-order="${order.order_id}"]`);
      row?.replaceWith(this.row(changed));
    } catch (problem) {
      const final = problem.status && problem.status < 500 && problem.status !== 429;
      if (final) answered();
      say(find("orders-message"), final ? problem.text : `${problem.text}. Try again: a repeat changes nothing twice.`);
      if (this.order === order) this.show(order);
    } finally {
      this.busy = false;
    }
  }
}

/** The state of an order's refunds, and its kind. */
function refundWords(order) {
  const states = new Set(order.refunds.map((refund) => refund.state));
  if (states.has("refused")) return ["The provider refused a refund: see the dead letters", "bad"];
  return states.has("due") ? ["The refund is under way", "good"] : ["The refund is done", "good"];
}

/** A table with a caption; nothing without rows. */
function table(caption, columns, rows) {
  if (!rows.length) return make("p", { class: "quiet small" }, `${caption}: none`);
  return make("div", { class: "scroll" }, make("table", { class: "cards", "data-part": caption.toLowerCase() },
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...columns.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((cell, place) => make("td", { "data-label": columns[place] }, cell)))))));
}
