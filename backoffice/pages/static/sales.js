// The list of sales with their actions, and the form for a new sale.

import { ask, count, find, make, moment, newKey, say } from "./page.js";
import { confirm, field } from "./dialogs.js";

const PAGE = 20;
const STATES = { draft: "quiet", scheduled: "warn", open: "good", paused: "warn", ended: "quiet" };
const ACTS = {
  draft: ["publish", "change", "delete"],
  scheduled: ["end", "restock", "change"],
  open: ["pause", "end", "restock", "change"],
  paused: ["resume", "end", "restock", "change"],
  ended: [],
};
// Fields of the change dialog by state: a past start cannot move, and the hold time is fixed by publishing.
const CHANGES = {
  draft: ["name", "starts_at", "ends_at", "hold_seconds", "lanes"],
  scheduled: ["name", "starts_at", "ends_at"],
  open: ["name", "ends_at"],
  paused: ["name", "ends_at"],
};
const time = { type: "datetime-local", step: 1, shown: (iso) => local(Date.parse(iso)), read: (text) => new Date(text).toISOString() };
const MEMBERS = {
  name: { label: "Name", maxlength: 200, shown: String, read: String },
  starts_at: { label: "Starts (local time)", ...time },
  ends_at: { label: "Ends (local time)", ...time },
  hold_seconds: { label: "Hold in seconds", type: "number", min: 1, max: 86400, inputmode: "numeric", shown: String, read: Number },
  lanes: { label: "Lanes (a number, or auto)", pattern: "auto|[1-9][0-9]?|100", shown: String, read: (text) => (text === "auto" ? text : Number(text)) },
};
const QUESTIONS = {
  publish: (sale) => [`Publish “${sale.name}”? Items, prices, hold time and lanes cannot be changed afterwards.`, false],
  pause: (sale) => [`Pause “${sale.name}”? Orders are refused until it is resumed.`, true],
  delete: (sale) => [`Delete the draft “${sale.name}”? This cannot be undone.`, true],
  end: (sale) => [`End “${sale.name}”? This cannot be undone.`, true],
};

export class Sales {
  /** `figures(sale)` shows the charts of a sale. */
  constructor(session, tell, figures) {
    this.session = session;
    this.tell = tell;
    this.figures = figures;
    this.rows = new Map();
    this.keys = new Map(); // one Idempotency-Key per requested restock, until it is answered
    find("sales-refresh").addEventListener("click", () => this.load());
    find("sales-more").addEventListener("click", () => this.load(this.cursor));
  }

  async load(cursor = null) {
    try {
      const page = await this.session.ask("GET", `/v1/sales?limit=${PAGE}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
      if (!cursor) {
        this.rows.clear();
        find("sales").replaceChildren();
      }
      for (const sale of page.items) this.put(sale);
      this.cursor = page.next_cursor;
      find("sales-more").hidden = !this.cursor;
    } catch (problem) {
      this.tell(`Could not load the sales: ${problem.text}`);
    }
  }

  put(sale) {
    const acts = ACTS[sale.state].map((act) =>
      make("button", { type: "button", class: act === "end" || act === "delete" ? "danger" : null, "data-act": act, click: () => this.act(sale, act) },
        act[0].toUpperCase() + act.slice(1), make("span", { class: "skip" }, ` ${sale.name}`)));
    const shop = sale.state === "draft" ? null : make("a", { href: `/shop/${sale.id}` }, "Shop");
    const figures = sale.state === "draft" ? null : make("button", { type: "button", click: () => this.figures(sale) }, "Figures", make("span", { class: "skip" }, ` ${sale.name}`));
    const row = make("tr", { "data-sale": sale.id },
      make("th", { scope: "row" }, sale.name),
      make("td", { "data-label": "State" }, make("span", { class: `badge ${STATES[sale.state]}` }, sale.state)),
      make("td", { "data-label": "Window" }, `${moment(sale.starts_at)} – ${moment(sale.ends_at)}`),
      make("td", { "data-label": "Items" }, sale.items.map((item) => `${item.sku}: ${count(item.stock)}`).join(", ") + (sale.lanes > 1 ? ` over ${sale.lanes} lanes` : "")),
      make("td", {}, make("div", { class: "row" }, ...acts, figures, shop)));
    const before = this.rows.get(sale.id);
    this.rows.set(sale.id, row);
    if (before) before.replaceWith(row);
    else find("sales").append(row);
    return row;
  }

  async act(sale, act) {
    const options = {};
    if (act === "restock") {
      const skus = make("select", { name: "sku" }, ...sale.items.map((item) => make("option", { value: item.sku }, item.sku)));
      const units = field("Units to add", { name: "quantity", type: "number", min: 1, max: 1000000000, value: 1, required: true, inputmode: "numeric" });
      const chosen = await confirm(`Restock “${sale.name}”`, "Add units", { fields: [make("label", {}, "SKU", skus), units] });
      if (!chosen) return;
      options.body = { sku: chosen.sku, quantity: Number(chosen.quantity) };
      const restock = `${sale.id} ${chosen.sku} ${chosen.quantity}`;
      if (!this.keys.has(restock)) this.keys.set(restock, newKey());
      options.headers = { "Idempotency-Key": this.keys.get(restock) };
      options.done = () => this.keys.delete(restock);
    } else if (act === "change") {
      options.body = await this.changes(sale);
      if (!Object.keys(options.body).length) return;
    } else if (QUESTIONS[act]) {
      const [text, danger] = QUESTIONS[act](sale);
      if (!(await confirm(text, act[0].toUpperCase() + act.slice(1), { danger }))) return;
    }
    try {
      const [method, place] = { change: ["PATCH", ""], delete: ["DELETE", ""] }[act] ?? ["POST", `/${act}`];
      const changed = await this.session.ask(method, `/v1/sales/${sale.id}${place}`, options);
      options.done?.();
      if (act === "delete") return this.removed(sale);
      const row = this.put(changed);
      row.querySelector("button, a")?.focus();
      this.tell(`${act[0].toUpperCase() + act.slice(1)}: “${changed.name}” is now ${changed.state}`, "good");
    } catch (problem) {
      // Without an answer the key is kept, so that a repeat cannot add the units twice.
      if (problem.status && problem.status < 500) options.done?.();
      this.tell(`${sale.name}: ${problem.text}`);
    }
  }

  removed(sale) {
    this.rows.get(sale.id)?.remove();
    this.rows.delete(sale.id);
    find("sales-refresh").focus();
    this.tell(`The draft “${sale.name}” is deleted`, "good");
  }

  /** The changed members. The others are not sent: fields show whole seconds, and stored times are finer. */
  async changes(sale) {
    const offered = CHANGES[sale.state].map((name) => {
      const { label, shown, read, ...attributes } = MEMBERS[name];
      return { name, label, read, attributes: { ...attributes, name, required: true, value: shown(sale[name]) } };
    });
    const chosen = await confirm(`Change “${sale.name}”`, "Change", { fields: offered.map(({ label, attributes }) => field(label, attributes)) });
    if (!chosen) return {};
    const changed = offered.filter(({ name, read, attributes }) => read(chosen[name]) !== read(attributes.value));
    return Object.fromEntries(changed.map(({ name, read }) => [name, read(chosen[name])]));
  }
}

export class CreateForm {
  constructor(session, tell, created) {
    this.session = session;
    this.tell = tell;
    this.created = created;
    this.products = new Map();
    this.places = 0;
    this.attempt = null; // {text, key}: submitting the same form again creates no second sale
    find("item-add").addEventListener("click", () => this.addItem().querySelector("input").focus());
    find("create-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.clear();
  }

  clear() {
    find("create-form").reset();
    find("items").replaceChildren();
    this.addItem();
    const now = Date.now();
    find("starts").value = local(now);
    find("ends").value = local(now + 2 * 3600 * 1000);
  }

  async load() {
    await this.suggest("");
  }

  /** Suggest products for the SKU fields. */
  async suggest(text) {
    try {
      const page = await ask("GET", `/v1/products?limit=50${text ? `&q=${encodeURIComponent(text)}` : ""}`);
      const active = page.items.filter((product) => product.active);
      for (const product of active) this.products.set(product.sku, product);
      find("products").replaceChildren(...active.map((product) => make("option", { value: product.sku }, product.name)));
    } catch {
      // Suggestions are optional; the server checks the SKU.
    }
  }

  addItem() {
    const place = ++this.places;
    let timer = null;
    const price = make("input", { id: `price-${place}`, type: "number", min: 0, required: true, inputmode: "numeric" });
    const unit = make("span", { class: "quiet" });
    const sku = make("input", {
      id: `sku-${place}`, list: "products", required: true, maxlength: 64, autocomplete: "off", pattern: "[A-Za-z0-9._\\-]+",
      input: () => {
        const product = this.products.get(sku.value);
        if (product) {
          if (!price.value) price.value = product.price_minor;
          unit.textContent = ` (${product.currency}, minor units)`;
        } else {
          clearTimeout(timer);
          timer = setTimeout(() => this.suggest(sku.value), 250);
        }
      },
    });
    const set = make("fieldset", { "data-item": place },
      make("legend", {}, `Item ${place}`),
      make("div", { class: "fields" },
        make("div", {}, make("label", { for: sku.id }, "SKU"), sku),
        labelled(`stock-${place}`, "Stock", { type: "number", min: 0, max: 1000000000, required: true, inputmode: "numeric" }),
        make("div", {}, make("label", { for: price.id }, "Price", unit), price),
        labelled(`limit-${place}`, "Limit per buyer (0: none)", { type: "number", min: 0, max: 65535, value: 0, required: true, inputmode: "numeric" }),
        make("div", {}, make("button", { type: "button", click: () => this.removeItem(set) }, "Remove", make("span", { class: "skip" }, ` item ${place}`)))));
    find("items").append(set);
    return set;
  }

  removeItem(set) {
    if (find("items").children.length > 1) set.remove();
    find("item-add").focus();
  }

  async submit() {
    const box = find("create-message");
    say(box, "");
    const form = find("create-form");
    const wrong = [...form.querySelectorAll("input")].filter((input) => {
      input.setAttribute("aria-invalid", String(!input.checkValidity()));
      return !input.checkValidity();
    });
    if (wrong.length) {
      say(box, `${wrong[0].labels[0].textContent}: ${wrong[0].validationMessage}`);
      wrong[0].focus();
      return;
    }
    const body = {
      name: find("name").value,
      starts_at: new Date(find("starts").value).toISOString(),
      ends_at: new Date(find("ends").value).toISOString(),
      hold_seconds: Number(find("hold").value),
      items: [...find("items").children].map((set) => {
        const value = (name) => find(`${name}-${set.dataset.item}`).value;
        return { sku: value("sku"), stock: Number(value("stock")), price_minor: Number(value("price")), per_user_limit: Number(value("limit")) };
      }),
    };
    const text = JSON.stringify(body);
    if (this.attempt?.text !== text) this.attempt = { text, key: newKey() };
    const button = form.querySelector("button[type=submit]");
    button.disabled = true;
    try {
      const sale = await this.session.ask("POST", "/v1/sales", { body, headers: { "Idempotency-Key": this.attempt.key } });
      this.attempt = null;
      this.clear();
      this.tell(`“${sale.name}” was created as a draft. Publish it to start selling`, "good");
      await this.created();
      document.querySelector(`[data-sale="${sale.id}"] button`)?.focus();
    } catch (problem) {
      say(box, problem.text);
    } finally {
      button.disabled = false;
    }
  }
}

function labelled(id, label, attributes) {
  return make("div", {}, make("label", { for: id }, label), make("input", { id, ...attributes }));
}

/** A time in the format of `datetime-local`. */
function local(ms) {
  const time = new Date(ms);
  return new Date(ms - time.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}
