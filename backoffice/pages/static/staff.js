// The staff page: the login, and the parts that are shown while logged in.

import { find, say } from "./page.js";
import { Session } from "./session.js";
import { Audit } from "./audit.js";
import { SaleFigures } from "./figures.js";
import { Letters } from "./letters.js";
import { Live } from "./live.js";
import { StaffOrders } from "./staff-orders.js";
import { CreateForm, Sales } from "./sales.js";
import { Samples } from "./samples.js";
import { Webhooks } from "./webhooks.js";

const session = new Session("staff", (text) => show(text));
const tell = (text, kind) => say(find("message"), text, kind);
const live = new Live(session);
const figures = new SaleFigures(session, tell);
const sales = new Sales(session, tell, (sale) => figures.open(sale));
const orders = new StaffOrders(session);
const letters = new Letters(session, tell);
const audit = new Audit(session, tell);
const samples = new Samples(session, tell);
const webhooks = new Webhooks(session, tell);
const create = new CreateForm(session, tell, () => sales.load());

function show(text = "") {
  find("login").hidden = session.active;
  find("desk").hidden = !session.active;
  find("logout").hidden = !session.active;
  find("who").textContent = session.label;
  say(find("login-message"), text, "warn");
  tell("");
  if (session.active) {
    session.learn(() => (find("who").textContent = session.label));
    live.start();
    sales.load();
    orders.load();
    letters.load();
    audit.load();
    samples.load();
    webhooks.load();
    create.load();
  } else {
    live.stop();
    orders.close();
    figures.close();
    find("email").focus();
  }
}

find("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.submitter || event.target.querySelector("button");
  button.disabled = true;
  try {
    await session.logIn(find("email").value, find("password").value);
    find("password").value = "";
    await session.ask("GET", "/v1/sales?limit=1"); // refused for a buyer
    show();
    find("content").focus();
  } catch (problem) {
    if (session.active) await session.logOut();
    say(find("login-message"), problem.code === "forbidden" ? "This page is for staff only" : problem.text);
  } finally {
    button.disabled = false;
  }
});

find("logout").addEventListener("click", async () => {
  await session.logOut();
  show();
});

show();
