// Questions before something is done that cannot be undone, and details to look at.

import { find, make } from "./page.js";

let answer = null; // of the question that was asked last, until it is answered

/**
 * Ask, and wait for the answer: null for no, else the fields' values by name. `fields`: elements with `name`s, each in a
 * label. The focus goes back to where it was.
 */
export function confirm(text, yes, { danger = false, fields = [] } = {}) {
  const dialog = find("confirm");
  const back = document.activeElement;
  answer?.(); // closed already, but its event is still to come: whoever is quick asks again before
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
      if (dialog.open) return; // the event of the question before
      if (back instanceof HTMLElement) back.focus();
      if (dialog.returnValue !== "yes") return done(null);
      done(Object.fromEntries([...dialog.querySelectorAll("[name]")].map((field) => [field.name, field.value])));
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
