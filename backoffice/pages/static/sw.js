// The service worker of the shop pages: shows web pushes, and opens the page that a push names. Caches nothing.

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("push", (event) => {
  let push = null;
  try {
    push = event.data && event.data.json();
  } catch {
    // Not one of ours.
  }
  // A browser demands that each push shows something.
  const { title = "Flashsale", body = "", url = "", tag = "", lang = "" } = push || {};
  event.waitUntil(self.registration.showNotification(title, { body, tag, lang, icon: "/static/icon.svg", data: { url } }));
});

self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(open(event.notification.data.url));
});

/** Show the page in a tab that has it already, or in a new one. Never a page of another host. */
async function open(address) {
  const url = URL.canParse(address) ? new URL(address) : null;
  if (!url || url.origin !== self.location.origin) return;
  const tabs = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
  const tab = tabs.find((each) => each.url === url.href);
  if (tab) await tab.focus();
  else await self.clients.openWindow(url.href);
}
