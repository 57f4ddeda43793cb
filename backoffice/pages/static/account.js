// The pages behind the links in mails: use a token, or request one. The token stands after the `#`, which browsers do
// not send to servers.

import { ask, find, say } from "./page.js";

const WAY = document.body.dataset.way;
const asks = find("ask-form"); // the undo of a changed address has none
const OVER = asks ? {
  token_invalid: "This link is not valid any more. Request a new one.",
  token_expired: "This link has expired. Request a new one.",
} : {
  token_invalid: "This link is not valid any more.",
  token_expired: "This link has expired.",
};

const token = decodeURIComponent(location.hash.slice(1));
// Keep the token out of the history and off the screen.
if (token) history.replaceState(null, "", location.pathname);

function show(section) {
  for (const name of ["use", "ask", "done"]) find(name).hidden = name !== section;
}

/** Disable the buttons of a form during its request, so that a double click sends one request. */
async function during(form, work) {
  const buttons = form.querySelectorAll("button");
  for (const button of buttons) button.disabled = true;
  try {
    await work();
  } finally {
    for (const button of buttons) button.disabled = false;
  }
}

find("use-form").addEventListener("submit", (event) => {
  event.preventDefault();
  // Only after a click: mail scanners open links as well.
  const body = { token };
  if (find("password")) body.new_password = find("password").value;
  during(event.target, async () => {
    try {
      await ask("POST", WAY, { body });
      show("done");
      find("done-title").focus();
    } catch (problem) {
      if (!OVER[problem.code]) return say(find("use-message"), problem.text);
      show("ask");
      say(find("ask-message"), OVER[problem.code], "warn");
    }
  });
});

asks?.addEventListener("submit", (event) => {
  event.preventDefault();
  during(event.target, async () => {
    try {
      await ask("POST", WAY, { body: { email: find("email").value } });
      say(find("ask-message"), "If an account with this address exists, an e-mail is on its way.", "good");
    } catch (problem) {
      say(find("ask-message"), problem.text);
    }
  });
});

show(token ? "use" : "ask");
