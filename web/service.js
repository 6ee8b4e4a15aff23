// The page without a network: its files, kept together under the hash of them all. A server that answers is always asked first, so
// nothing that is shown is older than what it has; the build fills in the two lines below.
const VERSION = "";
const FILES = [];

const places = new Set(FILES.map((file) => new URL(file, location).href));

addEventListener("install", (event) => {
  const kept = async () => {
    await (await caches.open(VERSION)).addAll(FILES.map((file) => new Request(file, { cache: "no-cache" })));
    await skipWaiting();
  };
  event.waitUntil(kept());
});

addEventListener("activate", (event) => {
  const older = async () => {
    // Other pages of the host keep things there, too.
    for (const name of await caches.keys()) if (name.startsWith("moeplan ") && name !== VERSION) await caches.delete(name);
    await clients.claim();
  };
  event.waitUntil(older());
});

addEventListener("fetch", (event) => {
  const place = event.request.url.split(/[?#]/)[0];
  if (event.request.method !== "GET" || !places.has(place)) return;
  const answer = async () => {
    try {
      return await fetch(place, { cache: "no-cache" });
    } catch {
      return (await (await caches.open(VERSION)).match(place)) ?? Response.error();
    }
  };
  event.respondWith(answer());
});
