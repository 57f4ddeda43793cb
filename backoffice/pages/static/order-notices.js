// Offers notices about an order on this device, by web push. Only after an order: a page that asks at once is declined,
// and a browser does not ask again. Declined here, it is not offered again in this tab.

import { find, make, say } from "./page.js";
import { canSubscribe, isSubscribed, publicKey, subscribe } from "./push.js";

const OFFER_WITHIN_MS = 3000; // pages of a crowd that has just ordered ask at random moments
const LATER = "flashsale.notices.later";

export class OrderNotices {
  /** `box`: the element to fill. */
  constructor(session, box) {
    this.session = session;
    this.key = undefined; // not asked for yet; null: this shop sends no pushes
    box.append(
      make("div", { id: "notices", hidden: true },
        make("p", {}, "Would you like a message on this device when something happens to your order?"),
        make("div", { class: "row" },
          make("button", { id: "notices-yes", type: "button", click: () => this.accept() }, "Notify me"),
          make("button", { id: "notices-no", type: "button", click: () => this.decline() }, "Not now"))),
      make("p", { id: "notices-message", role: "status", hidden: true }));
  }

  /** Show the offer soon, unless it is of no use: refused, accepted or declined before, or not possible. */
  offer() {
    this.hide();
    if (canSubscribe() && !sessionStorage.getItem(LATER)) this.timer = setTimeout(() => this.show(), Math.random() * OFFER_WITHIN_MS);
  }

  async show() {
    try {
      if (this.key === undefined) this.key = await publicKey(this.session);
      if (this.key === null || (await isSubscribed(this.session))) return;
      find("notices").hidden = false;
    } catch {
      // Not while the shop does not answer; the next order asks again.
    }
  }

  hide() {
    clearTimeout(this.timer);
    find("notices").hidden = true;
    say(find("notices-message"), "");
  }

  decline() {
    sessionStorage.setItem(LATER, "yes");
    this.hide();
    find("order-title").focus();
  }

  async accept() {
    for (const name of ["notices-yes", "notices-no"]) find(name).disabled = true;
    try {
      const done = await subscribe(this.session, this.key);
      find("notices").hidden = true;
      if (done) say(find("notices-message"), "You get messages about your orders on this device.", "good");
      else say(find("notices-message"), "The browser does not allow messages. You can change that in its settings.", "quiet");
    } catch {
      say(find("notices-message"), "Messages on this device are not possible at the moment. Your order is not affected.", "warn");
    } finally {
      for (const name of ["notices-yes", "notices-no"]) find(name).disabled = false;
    }
  }
}
