// Letters and web pushes as buyers get them, with sample data.

import { find, make } from "./page.js";

const KEPT_MS = 60000; // of the HTML that another tab shows

export class Samples {
  constructor(session, tell) {
    this.session = session;
    this.tell = tell;
    this.turn = 0; // of the newest request: an older answer that comes later is dropped
    for (const name of ["sample-kind", "sample-language"]) find(name).addEventListener("change", () => this.show());
    find("sample-html").addEventListener("click", () => this.open());
  }

  async load() {
    try {
      const { kinds, languages } = await this.session.ask("GET", "/v1/notice-samples");
      find("sample-kind").replaceChildren(...kinds.map((kind) => make("option", { value: kind }, kind.replaceAll("_", " "))));
      find("sample-language").replaceChildren(...languages.map(({ code, name }) => make("option", { value: code, lang: code }, name)));
      find("sample-kind").value = "order_paid";
      find("sample-language").value = document.documentElement.lang;
      await this.show();
    } catch (problem) {
      this.tell(`Could not load the letters: ${problem.text}`);
    }
  }

  async show() {
    const turn = ++this.turn;
    const language = find("sample-language").value;
    try {
      const sample = await this.session.ask("GET", `/v1/notice-samples/${find("sample-kind").value}/${language}`);
      if (turn !== this.turn) return;
      this.html = sample.html;
      find("sample-subject").textContent = sample.subject;
      find("sample-text").textContent = sample.text;
      find("sample-push").textContent = sample.push ? `${sample.push.title}: ${sample.push.body}` : "none";
      for (const name of ["sample-subject", "sample-text", "sample-push"]) find(name).lang = language;
    } catch (problem) {
      if (turn === this.turn) this.tell(`Could not load the letter: ${problem.text}`);
    }
  }

  /** The HTML in a tab of its own, which has this page's security policy and so runs nothing. */
  open() {
    const url = URL.createObjectURL(new Blob([this.html], { type: "text/html" }));
    window.open(url, "_blank", "noopener");
    setTimeout(() => URL.revokeObjectURL(url), KEPT_MS);
  }
}
