// The list of the buyer's orders, newest first.

import { find, make, moment, money, say } from "./page.js";
import { inShort } from "./order-words.js";
import { words } from "./problem-words.js";

const COLUMNS = ["Date", "Items", "Total", "State", "Actions"];

export class OrderList {
  /** Fills the section `history`; `limit`: orders that are loaded at once. */
  constructor(session, edge, { limit }) {
    this.session = session;
    this.edge = edge;
    this.limit = limit;
    this.cursor = null;
    this.turn = 0; // of the newest request: an older answer that comes later is dropped
    find("history").append(
      make("div", { class: "row" },
        make("h2", { id: "history-title" }, "Your orders"),
        make("button", { id: "history-refresh", class: "push", type: "button", click: () => this.load() }, "Refresh")),
      make("p", { id: "history-none", class: "quiet" }, "No orders yet."),
      make("p", { id: "history-message", role: "status", hidden: true }),
      make("div", { class: "scroll" },
        make("table", { class: "cards", id: "history-table", hidden: true },
          make("thead", {}, make("tr", {}, ...COLUMNS.map((name) => make("th", { scope: "col", class: name === "Total" && "n" }, name)))),
          make("tbody", { id: "history-rows" }))),
      make("p", { class: "row" }, make("button", { id: "history-more", type: "button", hidden: true, click: () => this.load(this.cursor) }, "Show more")));
  }

  async load(cursor = null) {
    if (!this.session.active) return;
    const turn = ++this.turn;
    const rows = find("history-rows");
    try {
      const page = await this.session.ask("GET", `${this.edge}/v1/orders?limit=${this.limit}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
      if (turn !== this.turn) return;
      if (!cursor) rows.replaceChildren();
      rows.append(...page.items.map((order) => this.row(order)));
      this.cursor = page.next_cursor;
      find("history-more").hidden = !this.cursor;
      say(find("history-message"), "");
    } catch (problem) {
      if (turn !== this.turn || problem.status === 401) return;
      say(find("history-message"), `${words(problem)} The list may lack your newest orders. Refresh it later.`, "warn");
    }
    const none = !rows.children.length;
    find("history-none").hidden = !none;
    find("history-table").hidden = none;
  }

  row(order) {
    return make("tr", { "data-order": order.order_id },
      make("th", { scope: "row" }, moment(order.reserved_at)),
      make("td", { "data-label": "Items" }, order.items.map((line) => `${line.quantity} × ${line.sku}`).join(", ")),
      make("td", { "data-label": "Total", class: "n" }, money(order.total_minor, order.currency)),
      make("td", { "data-label": "State" }, inShort(order)),
      make("td", {}, make("a", { href: `/shop/orders/${order.order_id}` }, "Show", make("span", { class: "skip" }, ` order of ${moment(order.reserved_at)}`))));
  }
}
