// The buyer's orders: one of them at /shop/orders/{order_id}, where the payment provider sends the buyer back to, and
// the list of all at /shop/orders.

import { ask, find, make, say } from "./page.js";
import { forgetDevice } from "./push.js";
import { Session } from "./session.js";
import { Login } from "./login.js";
import { OrderCard } from "./order-card.js";
import { OrderList } from "./order-list.js";
import { words } from "./problem-words.js";

const EDGE = document.querySelector('meta[name="flashsale-edge"]').content;
const [, ORDER_ID = ""] = location.pathname.match(/^\/shop\/orders\/([^/]+)/) ?? [];
const LIST_LIMIT = 20;
const AGAIN_MS = 5000;

let offsetMs = 0; // from the local clock, which may be wrong, to the server's
let timer = null;

const session = new Session("buyer", (text) => {
  card.hide();
  login.reset(text);
  begin();
});
const login = new Login(session, () => begin());
const card = new OrderCard(session, EDGE, {
  changed: () => {},
  now: () => Date.now() + offsetMs,
  more: make("a", { id: "to-sale", class: "push", hidden: true }, "To the sale"),
});
const list = new OrderList(session, EDGE, { limit: LIST_LIMIT });

function begin() {
  clearTimeout(timer);
  find("login").hidden = session.active;
  find("logout").hidden = !session.active;
  find("who").textContent = session.label;
  find("history").hidden = !session.active || ORDER_ID !== "";
  say(find("trouble"), "");
  if (!session.active) return;
  session.learn(() => (find("who").textContent = session.label));
  if (ORDER_ID) open();
  else list.load();
}

/** Load the order, and try again while the shop cannot tell about it. */
async function open() {
  const { login: asker } = session;
  try {
    const order = await card.fetch(ORDER_ID.toLowerCase());
    if (session.login !== asker) return;
    say(find("trouble"), "");
    await meet(order);
    if (session.login === asker) card.follow(order);
  } catch (problem) {
    if (session.login !== asker) return;
    if (!session.active) return; // the login form is shown
    if (problem.code === "order_not_found") return say(find("trouble"), words(problem), "bad");
    say(find("trouble"), `${words(problem)} Your order is safe. This page tries again automatically.`, "warn");
    timer = setTimeout(open, Math.max(AGAIN_MS, (problem.retryAfterS ?? 0) * 1000) * (0.75 + Math.random() / 2));
  }
}

/** Learn the server's time, and the name of the order's sale. Without an answer the page goes by the local clock. */
async function meet(order) {
  find("to-sale").href = `/shop/${order.sale_id}`;
  find("to-sale").hidden = false;
  try {
    const asked = Date.now();
    const sale = await ask("GET", `${EDGE}/v1/sales/${order.sale_id}`, { timeoutMs: 5000 });
    offsetMs = Date.parse(sale.server_time) - (asked + Date.now()) / 2;
    find("sale-name").textContent = sale.name;
    document.title = `Your order: ${sale.name}`;
  } catch {
    // The order is shown all the same.
  }
}

find("logout").addEventListener("click", async () => {
  await forgetDevice(session);
  await session.logOut();
  card.hide();
  login.reset();
  begin();
});

find("all-orders").hidden = ORDER_ID === "";
begin();
