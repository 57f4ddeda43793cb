// The shop page of one sale: wait for the start, log in, buy, follow the order, pay.

import { ask, clock, find, make, moment, money, say } from "./page.js";
import { forgetDevice } from "./push.js";
import { Session } from "./session.js";
import { Login } from "./login.js";
import { Attempt } from "./attempt.js";
import { OrderCard } from "./order-card.js";
import { OrderList } from "./order-list.js";
import { words } from "./problem-words.js";

const EDGE = document.querySelector('meta[name="flashsale-edge"]').content;
const SALE_ID = location.pathname.split("/").at(-1).toLowerCase();
// Polling intervals. Very many pages poll at once, and start and end need no poll: they follow from the clock.
const POLL_MS = { open: 3000, paused: 4000, scheduled: 5000, ended: 30000 };
const POLL_EARLY_MS = 20000;
const EARLY_MS = 60000;
const POLL_HIDDEN_MS = 30000;
const POLL_FAILED_MS = 3000;
const LINES_MAX = 8;
const UNITS_MAX = 100;
// Each name costs a search in the catalogue. Tabs ask at random moments, and a busy shop is not asked again soon.
const NAMED_MAX = 8;
const NAMES_WITHIN_MS = 3000;
const NAMES_AGAIN_MS = 60000;
const NAMES_KEY = `flashsale.products.${SALE_ID}`;

const LIST_LIMIT = 10;

const session = new Session("buyer", (text) => {
  showLogin(text);
  begin();
});
const login = new Login(session, () => begin());
const list = new OrderList(session, EDGE, { limit: LIST_LIMIT });
const card = new OrderCard(session, EDGE, {
  changed: () => {
    show();
    list.load();
  },
  now: () => Date.now() + shop.offsetMs,
  more: make("button", { id: "more", class: "push", type: "button", click: () => close() }, "Buy more"),
});
// The order that is shown, of this buyer in this sale: it survives a reload.
const place = () => `flashsale.order.${SALE_ID}.${session.email.toLowerCase()}`;
const shop = { sale: null, offsetMs: 0, pollTimer: null, sending: false, state: "", products: namesKept() };

// ---- the sale ----

async function poll() {
  clearTimeout(shop.pollTimer);
  let nextMs = POLL_FAILED_MS;
  try {
    const asked = Date.now();
    const sale = await ask("GET", `${EDGE}/v1/sales/${SALE_ID}`, { timeoutMs: 10000 });
    // The server's clock at the middle of the exchange; the local clock may be wrong.
    shop.offsetMs = Date.parse(sale.server_time) - (asked + Date.now()) / 2;
    const first = !shop.sale;
    shop.sale = sale;
    if (first) setTimeout(name, Math.random() * NAMES_WITHIN_MS);
    say(find("trouble"), "");
    showItems();
    show();
    const state = stateNow();
    const early = state === "scheduled" && Date.parse(sale.starts_at) - Date.now() - shop.offsetMs > EARLY_MS;
    nextMs = document.hidden ? POLL_HIDDEN_MS : early ? POLL_EARLY_MS : POLL_MS[state];
  } catch (problem) {
    if (problem.code === "sale_not_found") {
      find("sale-state").textContent = words(problem);
      nextMs = POLL_HIDDEN_MS;
    } else {
      const text = `${words(problem)} This page tries again automatically.`;
      if (find("trouble").textContent !== text) say(find("trouble"), text, "warn");
    }
    nextMs = Math.max(nextMs, (problem.retryAfterS ?? 0) * 1000);
  }
  shop.pollTimer = setTimeout(poll, nextMs * (0.75 + Math.random() / 2));
}

/** Load names and currency of the first items, which the edge does not have: once per tab, one item after the other. */
async function name() {
  for (const { sku } of shop.sale.items.slice(0, NAMED_MAX)) {
    if (shop.products.has(sku)) continue;
    try {
      const page = await ask("GET", `/v1/products?limit=10&q=${encodeURIComponent(sku)}`, { timeoutMs: 10000 });
      const product = page.items.find((found) => found.sku === sku);
      if (product) shop.products.set(sku, { sku, name: product.name, currency: product.currency });
    } catch (problem) {
      // Names are optional; the page shows the SKU as well.
      setTimeout(name, Math.max(NAMES_AGAIN_MS, (problem.retryAfterS ?? 0) * 1000) * (0.75 + Math.random()));
      break;
    }
  }
  sessionStorage.setItem(NAMES_KEY, JSON.stringify([...shop.products.values()]));
  showItems();
}

function namesKept() {
  const kept = JSON.parse(sessionStorage.getItem(NAMES_KEY) || "[]");
  return new Map(kept.map((product) => [product.sku, product]));
}

/** The current state of the sale: it opens and ends by the clock, between two polls as well. */
function stateNow() {
  const { sale } = shop;
  const now = Date.now() + shop.offsetMs;
  if (sale.state === "ended" || now >= Date.parse(sale.ends_at)) return "ended";
  if (sale.state === "scheduled" && now >= Date.parse(sale.starts_at)) return "open";
  return sale.state;
}

const soldOut = () => shop.sale.items.every((item) => item.availability === "sold_out");

function showSale() {
  const { sale } = shop;
  const now = Date.now() + shop.offsetMs;
  const state = stateNow();
  const text = {
    scheduled: "The sale opens soon.",
    open: soldOut() ? "Sold out. Units may become available again when holds end. This page keeps checking." : "The sale is open.",
    paused: "The sale is paused.",
    ended: "The sale has ended.",
  }[state];
  if (shop.state !== text) {
    shop.state = text;
    find("sale-state").textContent = text;
  }
  find("sale-name").textContent = sale.name;
  if (document.title !== sale.name) document.title = sale.name;
  find("sale-window").textContent = `${moment(sale.starts_at)} – ${moment(sale.ends_at)}`;
  const counts = state === "scheduled";
  find("countdown").hidden = !counts;
  if (counts) find("countdown").textContent = `Opens in ${clock(Date.parse(sale.starts_at) - now)}`;
  return state;
}

function showItems() {
  const { sale } = shop;
  const box = find("items");
  if (box.children.length !== sale.items.length) {
    const only = sale.items.length === 1;
    box.replaceChildren(...sale.items.map((item, place) =>
      make("div", { class: "row", "data-sku": item.sku },
        make("label", { for: `units-${place}` }, make("span", { "data-name": true }, item.sku), make("span", { class: "quiet small", "data-about": true })),
        make("input", { id: `units-${place}`, class: "push units", type: "number", inputmode: "numeric", min: only ? 1 : 0, max: UNITS_MAX, value: only ? 1 : 0, required: true, input: show }))));
  }
  sale.items.forEach((item, place) => {
    const row = box.children[place];
    const about = { sold_out: "sold out", low: "few left", available: "available" }[item.availability];
    const product = shop.products.get(item.sku);
    const price = product ? money(item.unit_price_minor, product.currency) : (item.unit_price_minor / 100).toFixed(2);
    row.querySelector("[data-name]").textContent = product ? `${product.name} (${item.sku})` : item.sku;
    row.querySelector("[data-about]").textContent = ` ${price} · ${about}`;
  });
}

function show() {
  find("login").hidden = session.active;
  find("logout").hidden = !session.active;
  find("who").textContent = session.label;
  find("history").hidden = !session.active;
  find("all-orders").hidden = !session.active;
  find("buying").hidden = !session.active || card.open || !shop.sale;
  if (!shop.sale) return;
  const state = showSale();
  const may = state === "open" && !soldOut() && !shop.sending && lines().length > 0;
  find("buy").disabled = !may;
  find("buy").textContent = shop.sending ? "Buying …" : state === "open" && soldOut() ? "Sold out" : "Buy";
}

// ---- buying ----

function lines() {
  return [...find("items").children]
    .map((row) => ({ sku: row.dataset.sku, quantity: Number(row.querySelector("input").value) }))
    .filter((line) => Number.isInteger(line.quantity) && line.quantity > 0);
}

find("buy-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (shop.sending || find("buy").disabled) return;
  const wanted = lines();
  // Refuse instead of cutting the list: the order must have every item that the buyer chose.
  if (wanted.length > LINES_MAX) say(find("buy-message"), `One order takes at most ${LINES_MAX} different items. Buy the others in another order.`, "warn");
  else buy(Attempt.begin(SALE_ID, session.email, wanted));
});

find("again").addEventListener("click", () => resume());

/** Send an attempt until it ends. Only one attempt is sent at a time. */
async function buy(attempt) {
  if (shop.sending) return;
  shop.sending = true;
  find("again").hidden = true;
  say(find("buy-message"), "Placing your order …", "quiet");
  show();
  try {
    const order = await attempt.send(session, EDGE, (problem, ms) =>
      say(find("buy-message"), `${words(problem)} Trying again in ${Math.ceil(ms / 1000)} s. This cannot place a second order.`, "warn"));
    say(find("buy-message"), "");
    follow(order);
    list.load();
  } catch (problem) {
    say(find("buy-message"), words(problem), "bad");
    find("again").hidden = !Attempt.repeats(problem);
  } finally {
    shop.sending = false;
    show();
    // Keyboard and screen reader users continue at the order.
    if (card.open) find("order-title").focus();
    poll();
  }
}

/** Continue an attempt without an answer, after a reload or a lost connection, under its key. */
function resume() {
  const attempt = session.active ? Attempt.unfinished(SALE_ID, session.email) : null;
  if (attempt) buy(attempt);
  else reopen();
}

// ---- the order ----

function follow(order) {
  sessionStorage.setItem(place(), order.order_id);
  card.follow(order);
}

/** Show the order again that was shown before a reload. */
async function reopen() {
  const orderId = sessionStorage.getItem(place());
  if (!orderId || card.open) return;
  try {
    const order = await card.fetch(orderId);
    if (card.open) return;
    follow(order);
    show();
  } catch {
    // The order is in the list as well.
  }
}

/** Hide the order for good, so that the buyer can buy again. */
function close() {
  sessionStorage.removeItem(place());
  card.hide();
  show();
}

// ---- logging in ----

function showLogin(text = "") {
  card.hide();
  login.reset(text);
  show();
}

find("logout").addEventListener("click", async () => {
  await forgetDevice(session);
  await session.logOut();
  showLogin();
});

function begin() {
  show();
  if (!session.active) return;
  session.learn(show);
  list.load();
  resume();
}

setInterval(() => shop.sale && show(), 250);
document.addEventListener("visibilitychange", () => document.hidden || poll());
poll();
begin();
