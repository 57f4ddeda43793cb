// Live figures from a stream of server-sent events. Read with fetch, because EventSource cannot send the token.

import { count, draw, find, make, pause, Problem } from "./page.js";

const HISTORY = 300; // seconds of the charts; they show one minute until more is known
const RETRY_MS = [1000, 2000, 5000, 10000];
const SILENT_MS = 40000; // longer than any pause of the server
const EVENT_MAX = 4 * 1024 * 1024; // characters

export class Live {
  constructor(session) {
    this.session = session;
    this.stopping = null;
    this.sales = new Map(); // id -> SaleCard
    this.shown = "";
  }

  start() {
    this.stop();
    this.stopping = new AbortController();
    this.run(this.stopping.signal);
  }

  stop() {
    this.stopping?.abort();
    for (const card of this.sales.values()) card.element.remove();
    this.sales.clear();
  }

  async run(stopped) {
    for (let failures = 0; !stopped.aborted; ) {
      try {
        this.state("connecting …");
        await this.read(stopped, () => (failures = 0));
      } catch (problem) {
        if (stopped.aborted) return;
        this.state(`not live: ${problem.text ?? "the connection was lost"}`);
        this.forgetVerdicts();
        if (problem.status === 401 && !this.session.active) return;
        if (problem.code === "token_expired") await this.session.renew().catch(() => {});
      }
      if (stopped.aborted) return;
      await pause(RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
    }
  }

  /** Read one stream to its end. */
  async read(stopped, heard) {
    const token = await this.session.token();
    const own = new AbortController();
    const stop = () => own.abort();
    stopped.addEventListener("abort", stop);
    let watch = setTimeout(stop, SILENT_MS);
    try {
      const answer = await fetch("/v1/operations/live", { headers: { Authorization: `Bearer ${token}` }, signal: own.signal, cache: "no-store", credentials: "omit" });
      if (!answer.ok) throw new Problem(answer.status, await answer.json().catch(() => ({})));
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let buffer = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        clearTimeout(watch);
        watch = setTimeout(stop, SILENT_MS);
        heard();
        buffer += value;
        for (let end; (end = buffer.indexOf("\n\n")) >= 0; buffer = buffer.slice(end + 2)) this.take(buffer.slice(0, end));
        if (buffer.length > EVENT_MAX) throw new Error("event too long");
      }
    } finally {
      clearTimeout(watch);
      stopped.removeEventListener("abort", stop);
      own.abort();
    }
  }

  take(block) {
    let name = "message", data = "";
    for (const line of block.split("\n")) {
      if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (name === "figures") this.show(JSON.parse(data));
    else if (name === "end") this.state("reconnecting …");
  }

  show(figures) {
    this.state("live");
    const shown = new Set();
    for (const sale of figures.sales) {
      shown.add(sale.id);
      if (!this.sales.has(sale.id)) this.sales.set(sale.id, new SaleCard(sale));
      const card = this.sales.get(sale.id);
      card.show(sale, figures.invariants.G);
      if (!card.element.isConnected) find("running").append(card.element);
    }
    // While Redis does not answer, the list of sales is unknown: keep the cards, but not their verdicts.
    if (figures.at === null) {
      this.forgetVerdicts();
    } else {
      for (const [id, card] of this.sales) {
        if (shown.has(id)) continue;
        card.element.remove();
        this.sales.delete(id);
      }
    }
    find("running-none").hidden = this.sales.size > 0;
    find("running-more").hidden = !figures.sales_left_out;
    find("running-more").textContent = `${figures.sales_left_out} more sales are not shown.`;
    this.showLags(figures);
  }

  /** An old verdict proves nothing. */
  forgetVerdicts() {
    for (const card of this.sales.values()) card.forgetVerdicts();
  }

  showLags(figures) {
    const sum = (parts, member) => (parts ? parts.reduce((total, part) => total + part[member], 0) : null);
    const outboxes = figures.outboxes.filter(Boolean);
    const facts = [
      ["Entries not relayed", count(sum(figures.lanes, "unrelayed")), spread(figures.lanes, "lane", "unrelayed")],
      ["Oldest entry not relayed", oldest(figures.lanes), ""],
      ["Queued messages", count(sum(figures.queues, "messages")), spread(figures.queues, "shard", "messages")],
      ["Waiting for a retry", count(sum(figures.queues, "retrying")), ""],
      ["Outbox rows", count(sum(outboxes, "rows")), spread(outboxes, "shard", "rows")],
      ["Oldest outbox row", oldest(outboxes), ""],
      ["Dead letters", count(figures.dead_letters), ""],
    ];
    const lags = find("lags");
    if (lags.children.length !== facts.length) lags.replaceChildren(...facts.map(([name]) => make("div", {}, make("dt", {}, name), make("dd"))));
    facts.forEach(([, value, title], place) => {
      const box = lags.children[place].querySelector("dd");
      box.textContent = value;
      box.title = title;
    });
    const away = find("unavailable");
    const texts = [
      figures.invariants.G === false ? "Invariant G is VIOLATED: money is not accounted for" : "",
      figures.unavailable.length ? `Not responding: ${figures.unavailable.join(", ")}` : "",
    ];
    const text = texts.filter(Boolean).join(". ");
    away.hidden = !text;
    if (away.textContent !== text) away.textContent = text;
  }

  /** Screen readers announce each change of the text: write it only when it changes. */
  state(text) {
    if (this.shown === text) return;
    this.shown = text;
    find("live-state").textContent = text;
  }
}

const spread = (parts, name, member) => (parts ? parts.map((part) => `${name} ${part[name]}: ${part[member]}`).join(", ") : "");

const oldest = (parts) => (parts?.length ? `${Math.max(...parts.map((part) => part.age_s)).toFixed(1)} s` : "–");

class SaleCard {
  constructor(sale) {
    this.history = [];
    this.name = make("h3");
    this.badge = make("span", { class: "badge" });
    this.facts = make("dl", { class: "facts" });
    this.chart = draw("svg", { class: "chart", viewBox: "0 0 600 120", preserveAspectRatio: "none", role: "img" });
    this.refused = make("p", { class: "small quiet" });
    this.stock = make("table", {}, make("thead", {}, make("tr", {}, ...["Available", "Reserved", "Paid", "Rejected"].map((name) => make("th", { scope: "col", class: "n" }, name)))));
    this.span = make("span", { class: "quiet" });
    this.element = make("article", { class: "card", "data-running": sale.id, "aria-label": sale.name },
      make("div", { class: "row" }, this.name, this.badge, make("a", { class: "push small", href: `/shop/${sale.id}` }, "Shop page")),
      this.facts,
      make("p", { class: "small" }, make("span", { class: "key accepted" }, "accepted/s "), make("span", { class: "key refused" }, "refused/s"), this.span),
      this.chart,
      this.refused,
      make("div", { class: "scroll" }, this.stock),
      make("p", { class: "small" }, ...["paid", "reserved", "available"].map((name) => make("span", { class: `key ${name}` }, `${name} `))));
  }

  /** `verdictG` is that of all sales. */
  show(sale, verdictG) {
    this.name.textContent = sale.name;
    this.badge.textContent = sale.state;
    this.badge.className = `badge ${{ open: "good", paused: "warn", scheduled: "warn" }[sale.state] ?? "quiet"}`;
    this.history.push([sale.accepted_per_s ?? 0, sale.refused_per_s ?? 0]);
    if (this.history.length > HISTORY) this.history.shift();
    this.showFacts(sale, verdictG);
    this.showChart();
    const codes = Object.entries(sale.refused).map(([code, times]) => `${code.replaceAll("_", " ")}: ${count(times)}`);
    this.refused.textContent = codes.length ? `Refused: ${codes.join(", ")}` : "No refusals.";
    this.showStock(sale);
  }

  forgetVerdicts() {
    for (const box of this.facts.querySelectorAll('[data-fact^="verdict-"]')) {
      box.textContent = "unknown";
      box.className = "quiet";
    }
  }

  showFacts(sale, verdictG) {
    const refused = Object.values(sale.refused).reduce((total, times) => total + times, 0);
    const verdict = (value) => (value === null ? "not checked yet" : value ? "holds" : "VIOLATED");
    const facts = [
      ["accepted", "Accepted", count(sale.accepted)],
      ["accepted-per-s", "Accepted/s", count(sale.accepted_per_s)],
      ["refused", "Refused", count(refused)],
      ["refused-per-s", "Refused/s", count(sale.refused_per_s)],
      ["verdict-a", "A: no oversell", verdict(sale.invariants.A)],
      ["verdict-b", "B: nothing lost", verdict(sale.invariants.B)],
      ["verdict-g", "G: no money lost", verdict(verdictG)],
      ["deep-look", "All orders read", sale.deep_look_age_s === null ? "not checked yet" : `${Math.round(sale.deep_look_age_s)} s ago`],
    ];
    if (!this.facts.children.length) this.facts.append(...facts.map(([id, name]) => make("div", {}, make("dt", {}, name), make("dd", { "data-fact": id }))));
    facts.forEach(([, , value], place) => {
      const box = this.facts.children[place].querySelector("dd");
      box.textContent = value;
      box.className = { holds: "good", VIOLATED: "bad", "not checked yet": "quiet" }[value] ?? "";
    });
  }

  showChart() {
    const top = Math.max(1, ...this.history.flat());
    const shown = this.history.length > 60 ? HISTORY : 60;
    const path = (series) => this.history.map((point, place) => {
      const x = 600 - (this.history.length - 1 - place) * (600 / (shown - 1));
      return `${place ? "L" : "M"}${x.toFixed(1)} ${(116 - (point[series] / top) * 104).toFixed(1)}`;
    }).join("");
    const [accepted, refused] = this.history.at(-1);
    const span = shown > 60 ? "five minutes" : "one minute";
    this.span.textContent = ` over ${span}`;
    this.chart.setAttribute("aria-label", `Accepted: ${accepted} per second. Refused: ${refused} per second. Maximum within ${span}: ${top}`);
    this.chart.replaceChildren(
      draw("line", { class: "grid", x1: 0, x2: 600, y1: 116, y2: 116 }),
      draw("line", { class: "grid", x1: 0, x2: 600, y1: 12, y2: 12 }),
      draw("path", { class: "refused", d: path(1), "vector-effect": "non-scaling-stroke" }),
      draw("path", { class: "accepted", d: path(0), "vector-effect": "non-scaling-stroke" }));
    if (!this.scale) this.chart.after((this.scale = make("p", { class: "small quiet number" })));
    this.scale.textContent = `Upper line: ${count(top)} per second`;
  }

  showStock(sale) {
    if (this.stock.tBodies.length !== sale.items.length) {
      for (const body of [...this.stock.tBodies]) body.remove();
      this.stock.append(...sale.items.map((item) => make("tbody", { "data-sku": item.sku },
        make("tr", {}, make("th", { scope: "rowgroup", colspan: 4 }, item.sku, bar())),
        make("tr", {}, ...["available", "reserved", "paid", "rejected"].map((name) => make("td", { class: "n", "data-count": name }))))));
    }
    sale.items.forEach((item, place) => {
      const body = this.stock.tBodies[place];
      for (const cell of body.querySelectorAll("td")) cell.textContent = sale.stock_known ? count(item[cell.dataset.count]) : "–";
      fill(body.querySelector("svg"), item);
    });
  }
}

function bar() {
  const svg = draw("svg", { class: "bar", "aria-hidden": "true", viewBox: "0 0 1000 10", preserveAspectRatio: "none" });
  svg.append(...["ground", "paid", "reserved", "available"].map((name) => draw("rect", { class: name, x: 0, y: 0, width: name === "ground" ? 1000 : 0, height: 10 })));
  return svg;
}

function fill(svg, item) {
  const whole = Math.max(1, (item.available ?? 0) + (item.reserved ?? 0) + (item.paid ?? 0) + (item.rejected ?? 0));
  let left = 0;
  for (const name of ["paid", "reserved", "available"]) {
    const rect = svg.querySelector(`.${name}`);
    const width = (1000 * (item[name] ?? 0)) / whole;
    rect.setAttribute("x", left);
    rect.setAttribute("width", width);
    left += width;
  }
}
