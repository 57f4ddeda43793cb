// Confirmation dialogs with optional fields, and a dialog for details.

import { find, make } from "./page.js";

let answer = null; // resolves the open question with no

/**
 * Ask and wait for the answer: null for no, else the values of the fields by name. `fields`: labels around elements
 * with a `name`. The focus returns to its previous element.
 */
export function confirm(text, yes, { danger = false, fields = [] } = {}) {
  const dialog = find("confirm");
  const back = document.activeElement;
  answer?.(); // the previous dialog may be closed while its close event is still to come
  find("confirm-text").textContent = text;
  find("confirm-fields").replaceChildren(...fields);
  const button = find("confirm-yes");
  button.textContent = yes;
  button.className = danger ? "danger push" : "main push";
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    const done = (values) => {
      answer = null;
      dialog.removeEventListener("close", closed);
      resolve(values);
    };
    const closed = () => {
      if (dialog.open) return; // the event of the previous question
      if (back instanceof HTMLElement) back.focus();
      if (dialog.returnValue !== "yes") return done(null);
      done(Object.fromEntries([...dialog.querySelectorAll("[name]")].map((field) => [field.name, field.type === "checkbox" ? field.checked : field.value])));
    };
    answer = () => done(null);
    dialog.addEventListener("close", closed);
  });
}

/** Show details; `content` are elements. */
export function details(title, ...content) {
  find("details-title").textContent = title;
  find("details-content").replaceChildren(...content);
  find("details").showModal();
}

/** A labelled input of a dialog. */
export function field(label, attributes) {
  return make("label", {}, label, make("input", attributes));
}

/** A labelled checkbox of a dialog. */
export function choice(label, attributes) {
  return make("label", { class: "choice" }, make("input", { type: "checkbox", ...attributes }), label);
}
