// Lets the page open without a network: it keeps what the page is made of. worker.js keeps the model itself.

const CACHE = `page of ${self.registration.scope}`;
const FILES = [
    "./",
    "index.html",
    "style.css",
    "passes.css",
    "page.js",
    "worker.js",
    "translator.js",
    "files.json",
    "vendor/ort.wasm.bundle.min.mjs",
    "vendor/tokenizers.min.mjs",
];

self.addEventListener("install", event => {
    self.skipWaiting();
    event.waitUntil(caches.open(CACHE).then(cache => cache.addAll(FILES)));
});

self.addEventListener("activate", event => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", event => {
    const { origin, searchParams } = new URL(event.request.url);
    if (event.request.method !== "GET" || origin !== location.origin || searchParams.has("sha256")) return;
    event.respondWith(newest(event.request));
});

/** What the server has now, else what it had. */
async function newest(request) {
    const cache = await caches.open(CACHE);
    try {
        const response = await fetch(request, { cache: "no-cache" }); // asks the server whether there is a newer one
        if (response.ok) await cache.put(new URL(request.url).pathname, response.clone());
        return response;
    } catch {
        return (await cache.match(request, { ignoreSearch: true })) ?? Response.error();
    }
}
