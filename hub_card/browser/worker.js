// Loads the model and translates, on a thread of its own, so that the page stays alive meanwhile.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { Tokenizer } from "./vendor/tokenizers.min.mjs";
import { Translator, sentencesOf } from "./translator.js";

const MODEL = "model/";
const MOST_THREADS = 4; // more have too little to do with one sentence
let newest; // number of the translation that was asked for last

/**
 * The contents of all files that files.json names, unpacked: from the cache, else downloaded.
 *
 * The digest is a part of a file's address, so that a new model is downloaded, and an old one is not mistaken for it.
 */
async function loadFiles({ files }) {
    // None in private windows of some browsers, and without https.
    const cache = await self.caches?.open(`files of ${new URL(".", location)}`).catch(() => undefined);
    const names = Object.keys(files);
    const addresses = names.map(name => new URL(`${name}?sha256=${files[name].sha256}`, location).href);
    for (const old of (await cache?.keys()) ?? []) {
        if (!addresses.includes(old.url)) await cache.delete(old);
    }
    const total = Object.values(files).reduce((sum, { bytes }) => sum + bytes, 0);
    let [loaded, fromCache] = [0, true];
    const contents = await Promise.all(
        names.map(async (name, index) => {
            const address = addresses[index];
            const kept = await cache?.match(address);
            fromCache &&= Boolean(kept);
            const data = await read(kept ?? (await fetched(address, name)), bytes => {
                loaded += bytes;
                postMessage({ kind: "progress", loaded: Math.min(loaded, total), total });
            });
            await checkDigest(data, files[name].sha256, name);
            if (!kept) await cache?.put(address, new Response(data)).catch(() => {}); // the disk may be full
            return [name, await unpacked(data)];
        }),
    );
    return { contents: Object.fromEntries(contents), fromCache };
}

async function fetched(address, name, options) {
    const response = await fetch(address, options).catch(() => {
        throw new Error(`${name} could not be downloaded: please check the connection.`);
    });
    if (!response.ok) throw new Error(`${name} could not be downloaded (the server answered ${response.status}).`);
    return response;
}

async function read(response, progress) {
    const chunks = [];
    for (let reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read().catch(() => {
            throw new Error("The download was interrupted: please check the connection.");
        });
        if (done) return new Uint8Array(await new Blob(chunks).arrayBuffer());
        chunks.push(value);
        progress(value.length);
    }
}

/** Not where a server says that a .gz file is packed for the way: then the browser has unpacked it. */
const isPacked = data => data[0] === 0x1f && data[1] === 0x8b;

async function checkDigest(data, sha256, name) {
    if (!self.crypto?.subtle || !isPacked(data)) return; // no https
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
    if (Array.from(digest, byte => byte.toString(16).padStart(2, "0")).join("") !== sha256) {
        throw new Error(`${name} was damaged during the download.`);
    }
}

async function unpacked(data) {
    if (!isPacked(data)) return data;
    const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load() {
    const list = await (await fetched("files.json", "files.json", { cache: "no-cache" })).json();
    const { contents, fromCache } = await loadFiles(list);
    const json = name => JSON.parse(new TextDecoder().decode(contents[`${MODEL}${name}.gz`]));
    // Threads share memory, which browsers allow to isolated pages alone. Half of the cores stay free for all else.
    const half = Math.min(MOST_THREADS, Math.ceil(navigator.hardwareConcurrency / 2));
    const asked = Number(new URLSearchParams(location.search).get("threads"));
    const threads = self.crossOriginIsolated ? asked || half : 1;
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmBinary = contents["vendor/ort-wasm-simd-threaded.wasm.gz"];
    const session = await ort.InferenceSession.create(contents[`${MODEL}browser_translator_int8.onnx.gz`], {
        executionProviders: ["wasm"],
        logSeverityLevel: 3,
    });
    const translator = new Translator(ort, session, Tokenizer, {
        config: json("config.json"),
        tokenizer: json("tokenizer.json"),
        tokenizerConfig: json("tokenizer_config.json"),
        defaults: json("browser_translator.json"),
        spelling: json("spelling.json"),
    });
    await translator.translate(".", { num_iterations: 1 }); // the first one takes longer: nobody waits for this one
    const { source_language: source, target_language: target } = translator.config;
    postMessage({ kind: "ready", source, target, fromCache, threads });
    return { translator, source: source ?? "en", rules: json("sentences.json") };
}

async function translate({ translator, source, rules }, { job, text, options }) {
    const pieces = sentencesOf(text, source, rules);
    for (const piece of pieces) translator.encode(translator.read(piece.text).text); // what is too long is said first
    const count = pieces.filter(piece => piece.text).length;
    let milliseconds = 0;
    for (const { before, text, after } of pieces) {
        // What has no letter stays as it is: 7, 12:30.
        const sentence = translator.read(text);
        const isWritten = /\p{L}/u.test(sentence.text);
        const translation = isWritten ? await translator.translate(sentence.text, options) : { text };
        if (isWritten) translation.text = sentence.write(translation.text);
        milliseconds += translation.milliseconds ?? 0;
        await new Promise(resolve => setTimeout(resolve)); // a newer job may have come
        if (job !== newest) return;
        postMessage({ kind: "sentence", job, before, after, translation, count });
    }
    postMessage({ kind: "done", job, milliseconds, count });
}

const loading = load();
loading.catch(({ message }) =>
    postMessage({ kind: "failed", fatal: true, message: `The model could not be loaded. ${message}` }),
);
self.addEventListener("message", async ({ data }) => {
    newest = data.job;
    try {
        await translate(await loading, data);
    } catch (error) {
        postMessage({ kind: "failed", job: data.job, message: error.message });
    }
});
