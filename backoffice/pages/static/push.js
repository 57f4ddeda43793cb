// Web push in a page: asks the browser for permission, and tells the backoffice of the subscription. A page calls
// `subscribe` from a click, after an order: browsers refuse to ask otherwise, and buyers decline.

import { pause } from "./page.js";

const WORKER = "/shop/sw.js";
const SCOPE = "/shop/";
const SUBSCRIPTIONS = "/v1/users/me/push-subscriptions";
const FORGET_MS = 2000;

/** Whether this browser can show pushes, and its user has not refused them. */
export const canSubscribe = () =>
  "serviceWorker" in navigator && "PushManager" in window && "Notification" in window && Notification.permission !== "denied";

/** Whether this browser shows pushes to this account. A subscription of another account, which used it before, ends. */
export async function isSubscribed(session) {
  const subscription = canSubscribe() && Notification.permission === "granted" ? await current() : null;
  if (!subscription) return false;
  const { items } = await session.ask("GET", SUBSCRIPTIONS);
  if (items.some((item) => item.endpoint === subscription.endpoint)) return true;
  await subscription.unsubscribe(); // its push service answers 410 from now on
  return false;
}

/** The key that `subscribe` needs; null where this installation sends no pushes. */
export async function publicKey(session) {
  try {
    return (await session.ask("GET", "/v1/push-key")).public_key;
  } catch (problem) {
    if (problem.code === "not_found") return null;
    throw problem;
  }
}

/**
 * Subscribe this browser; returns false when its user refuses. `session` is the buyer's, `key` the public key. Throws
 * Problem or NoAnswer of the backoffice, and DOMException of the browser.
 */
export async function subscribe(session, key) {
  if ((await Notification.requestPermission()) !== "granted") return false; // first: the click must not be long ago
  const registration = await registered();
  let subscription = await registration.pushManager.getSubscription();
  if (subscription && !sameKey(subscription.options.applicationServerKey, key)) {
    await subscription.unsubscribe(); // of a key that was replaced
    subscription = null;
  }
  subscription ??= await registration.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: key });
  await session.ask("POST", SUBSCRIPTIONS, { body: subscription.toJSON() });
  return true;
}

/** Before a log out, which nothing may prevent: the next user of this browser must not see the notices of this one. */
export const forgetDevice = (session) => Promise.race([unsubscribe(session).catch(() => {}), pause(FORGET_MS)]);

/** Unsubscribe this browser. */
export async function unsubscribe(session) {
  const subscription = await current();
  if (!subscription) return;
  await subscription.unsubscribe(); // first: it counts also when the backoffice does not answer
  await session.ask("DELETE", `${SUBSCRIPTIONS}?endpoint=${encodeURIComponent(subscription.endpoint)}`);
}

async function current() {
  const registration = "serviceWorker" in navigator ? await navigator.serviceWorker.getRegistration(SCOPE) : null;
  return registration ? registration.pushManager.getSubscription() : null;
}

let policy = null;

/** The registration of the service worker, active. */
export async function registered() {
  policy ??= window.trustedTypes
    ? window.trustedTypes.createPolicy("service-worker", { createScriptURL: () => WORKER })
    : { createScriptURL: () => WORKER };
  await navigator.serviceWorker.register(policy.createScriptURL(WORKER), { scope: SCOPE });
  return navigator.serviceWorker.ready;
}

function sameKey(known, key) {
  if (!known) return false;
  const text = btoa(String.fromCharCode(...new Uint8Array(known)));
  return text.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "") === key;
}
