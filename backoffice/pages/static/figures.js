// Charts of a sale: figures per second or minute with axes, a value under the pointer, and earlier times.

import { count, draw, find, make, moment, money } from "./page.js";

const WIDTH = 640, HEIGHT = 150;
const LEFT = 70, RIGHT = 10, TOP = 8, BOTTOM = 22; // around the plot, for the labels of the axes
const STEP_MS = { second: 1000, minute: 60000 };
const POINTS_MIN = 60, POINTS_MAX = 3600; // of a range; the service refuses a longer one
const X_TICKS = 4, Y_TICKS = 2;

export class SaleFigures {
  constructor(session, tell) {
    this.session = session;
    this.tell = tell;
    this.sale = null;
    this.range = null; // [from, to] in ms; null: the newest points
    find("figures-refresh").addEventListener("click", () => this.load());
    find("figures-resolution").addEventListener("change", () => this.move(0));
    find("figures-earlier").addEventListener("click", () => this.move(-1));
    find("figures-later").addEventListener("click", () => this.move(1));
    find("figures-newest").addEventListener("click", () => this.move(0));
  }

  async open(sale) {
    this.sale = sale;
    this.range = null;
    find("figures-title").textContent = `Figures of “${sale.name}”`;
    await this.load();
    find("figures-title").focus();
  }

  close() {
    this.sale = null;
    find("figures").hidden = true;
  }

  /** One range earlier (-1) or later (1), or the newest points (0). */
  async move(direction) {
    if (direction && this.shown) {
      const [from, to] = this.shown;
      const step = STEP_MS[find("figures-resolution").value];
      const length = Math.min(POINTS_MAX, Math.max(POINTS_MIN, (to - from) / step)) * step;
      this.range = direction < 0 ? [from - length, from] : [to, to + length];
    } else {
      this.range = null;
    }
    await this.load();
  }

  async load() {
    const sale = this.sale;
    const query = new URLSearchParams({ resolution: find("figures-resolution").value });
    if (this.range) {
      query.set("from", new Date(this.range[0]).toISOString());
      query.set("to", new Date(this.range[1]).toISOString());
    }
    try {
      const figures = await this.session.ask("GET", `/v1/analytics/sales/${sale.id}?${query}`);
      if (this.sale === sale) this.show(figures);
    } catch (problem) {
      this.tell(`Could not load the figures of “${sale.name}”: ${problem.text}`);
    }
  }

  show(figures) {
    const { points, summary } = figures;
    this.shown = [Date.parse(figures.from), Date.parse(figures.to)];
    find("figures").hidden = false;
    find("figures-line").textContent = [soldText(summary), ...endText(summary), paidText(summary)].filter(Boolean).join(", ");
    find("figures-as-of").textContent = figures.as_of
      ? `All events until ${moment(figures.as_of)} are counted${figures.lag.records ? `; ${count(figures.lag.records)} wait` : ""}.`
      : "No event is counted yet.";
    find("figures-range").textContent = points.length || this.range ? `${moment(figures.from)} – ${moment(figures.to)} (local time)` : "";
    find("figures-none").hidden = points.length > 0;
    find("figures-values").hidden = !points.length;
    const currencies = Object.keys(summary.revenue_minor);
    const series = [
      ["Reserved orders", (point) => point.orders, count],
      ["Paid orders", (point) => point.paid, count],
      ...currencies.map((currency) => [`Revenue in ${currency}`, (point) => point.revenue_minor[currency] ?? 0, (minor) => money(Math.round(minor), currency)]),
      ["Refused orders", refused, count],
    ];
    find("figures-charts").replaceChildren(...(points.length ? series.map((one) => chart(one, figures)) : []));
    find("figures-rows").replaceChildren(...points.map((point) => row(point)));
  }
}

/** `sold 83 % in 4.2 s`. */
function soldText(summary) {
  if (summary.sold_percent === null) return "the figures of the start of the sale are deleted";
  return `sold ${summary.sold_percent} %` + (summary.sold_in_s === null ? "" : ` in ${summary.sold_in_s.toFixed(1)} s`);
}

function endText(summary) {
  const ends = (summary.sell_outs ?? []).map((end) => `${end.sku} sold out at ${moment(end.at)}`);
  if (summary.projected_sell_out_at) ends.push(`projected sell-out at ${moment(summary.projected_sell_out_at)}`);
  return ends;
}

function paidText(summary) {
  const { reserved, paid, paid_percent } = summary.funnel;
  return paid_percent === null ? "" : `${count(paid)} of ${count(reserved)} orders paid (${paid_percent} %)`;
}

const refused = (point) => Object.values(point.refused).reduce((sum, orders) => sum + orders, 0);

const time = (ms) => new Date(ms).toLocaleTimeString();

function row(point) {
  const revenue = Object.entries(point.revenue_minor).filter(([, minor]) => minor).map(([currency, minor]) => money(minor, currency));
  return make("tr", {},
    make("th", { scope: "row" }, moment(point.at)),
    make("td", { "data-label": "Reserved", class: "n" }, count(point.orders)),
    make("td", { "data-label": "Paid", class: "n" }, count(point.paid)),
    make("td", { "data-label": "Revenue", class: "n" }, revenue.join(", ") || "–"),
    make("td", { "data-label": "Refused", class: "n" }, count(refused(point))));
}

/** A chart of one series. The table has the same values for readers who do not see it. */
function chart([name, value, text], figures) {
  const from = Date.parse(figures.from), to = Date.parse(figures.to);
  const points = figures.points.map((point) => [Date.parse(point.at), value(point)]);
  const top = niceAbove(Math.max(1, ...points.map(([, amount]) => amount)));
  const x = (ms) => LEFT + ((ms - from) / Math.max(1, to - from)) * (WIDTH - LEFT - RIGHT);
  const y = (amount) => HEIGHT - BOTTOM - (amount / top) * (HEIGHT - TOP - BOTTOM);
  const step = STEP_MS[figures.resolution];
  const line = points.filter(([, amount]) => amount).map(([at, amount]) => `M${x(at + step / 2).toFixed(1)} ${y(0)}V${y(amount).toFixed(1)}`).join("");
  const bar = Math.max(1, (x(from + step) - x(from)) * 0.8);
  const cursor = draw("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const output = make("output", {});
  const svg = draw("svg", { class: "figure", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: 0, "aria-label": `${name}: highest ${text(Math.max(0, ...points.map(([, amount]) => amount)))} per ${figures.resolution}. Arrow keys show the values.` },
    ...ticks(Y_TICKS).flatMap((part) => [
      draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(part * top), y2: y(part * top) }),
      draw("text", { x: LEFT - 6, y: y(part * top) + 4, "text-anchor": "end" }, text(part * top)),
    ]),
    ...ticks(X_TICKS).map((part) =>
      draw("text", { x: x(from + part * (to - from)), y: HEIGHT - 6, "text-anchor": part === 1 ? "end" : part ? "middle" : "start" }, time(from + part * (to - from)))),
    draw("path", { class: "values", d: line, "stroke-width": bar.toFixed(1) }),
    cursor);
  let place = -1;
  const point = (chosen) => {
    place = Math.min(points.length - 1, Math.max(0, chosen));
    const [at, amount] = points[place];
    cursor.setAttribute("x1", x(at + step / 2));
    cursor.setAttribute("x2", x(at + step / 2));
    cursor.setAttribute("visibility", "visible");
    output.textContent = `${time(at)}: ${text(amount)}`;
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = from + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (to - from) - step / 2;
    point(nearest(points, at));
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    output.textContent = "";
  });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    point(place + move);
  });
  return make("figure", { "data-chart": name }, make("figcaption", {}, name, output), svg);
}

const ticks = (parts) => Array.from({ length: parts + 1 }, (_, place) => place / parts);

/** The place of the point whose time is nearest. */
function nearest(points, at) {
  let best = 0;
  points.forEach(([ms], place) => {
    if (Math.abs(ms - at) < Math.abs(points[best][0] - at)) best = place;
  });
  return best;
}

/** The next of 2, 4, 10, 20, 40, 100, ... */
function niceAbove(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 10].map((factor) => factor * power).find((nice) => nice >= value && nice % 2 === 0) ?? 10 * power;
}
