// Questions before something is done that cannot be undone, and details to look at.

import { find, make } from "./page.js";

/**
 * Ask, and wait for the answer: null for no, else the fields' values by name. `fields`: elements with `name`s, each in a
 * label. The focus goes back to where it was.
 */
export function confirm(text, yes, { danger = false, fields = [] } = {}) {
  const dialog = find("confirm");
  const back = document.activeElement;
  find("confirm-text").textContent = text;
  find("confirm-fields").replaceChildren(...fields);
  const button = find("confirm-yes");
  button.textContent = yes;
  button.className = danger ? "danger push" : "main push";
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      if (back instanceof HTMLElement) back.focus();
      if (dialog.returnValue !== "yes") return resolve(null);
      resolve(Object.fromEntries([...dialog.querySelectorAll("[name]")].map((field) => [field.name, field.value])));
    }, { once: true });
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
