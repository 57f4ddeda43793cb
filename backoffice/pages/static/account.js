// Where the links in mails lead: use a token, or have one sent. The token is behind the `#`, which no server ever gets to see.

import { ask, find, say } from "./page.js";

const WAY = document.body.dataset.way;
const OVER = { token_invalid: "This link was used before, or a newer one was sent.", token_expired: "This link is too old." };

const token = decodeURIComponent(location.hash.slice(1));
// Not in the history either, and not on the screen of whoever looks over a shoulder.
if (token) history.replaceState(null, "", location.pathname);

function show(section) {
  for (const name of ["use", "ask", "done"]) find(name).hidden = name !== section;
}

/** The buttons of a form rest while its request is on the way: a click too many asks for nothing. */
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
  // Only now, by a person's click: programs that look into mails follow links, too.
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

find("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  during(event.target, async () => {
    try {
      await ask("POST", WAY, { body: { email: find("email").value } });
      say(find("ask-message"), "If there is an account with this address, a mail is on its way to it.", "good");
    } catch (problem) {
      say(find("ask-message"), problem.text);
    }
  });
});

show(token ? "use" : "ask");
