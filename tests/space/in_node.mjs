// Runs translator.js of a built page in Node: reads what to do as JSON from standard input, and writes the results.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { gunzipSync } from "node:zlib";

const { page, graph, texts, options, languages, feeds } = JSON.parse(readFileSync(0));
const module = name => import(pathToFileURL(`${page}/${name}`));
const unpacked = name => gunzipSync(readFileSync(`${page}/${name}.gz`));
const json = name => JSON.parse(unpacked(`model/${name}.json`));
const ort = await module("vendor/ort.wasm.bundle.min.mjs");
const { Tokenizer } = await module("vendor/tokenizers.min.mjs");
const { Translator, optionFeeds, sentencesOf } = await module("translator.js");

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = unpacked("vendor/ort-wasm-simd-threaded.wasm");
const session = await ort.InferenceSession.create(readFileSync(graph), { logSeverityLevel: 3 });
const [config, tokenizer, tokenizerConfig] = ["config", "tokenizer", "tokenizer_config"].map(json);
const defaults = json("browser_translator");
const files = { config, tokenizer, tokenizerConfig, defaults, spelling: json("spelling") };
const translator = new Translator(ort, session, Tokenizer, files);

const plain = ({ type, dims, data }) => ({ type, dims, data: Array.from(data, one => String(Number(one))) });
const result = { ids: [], reads: [], translations: [], sentences: [], feeds: [] };
for (const text of texts) {
    result.ids.push(translator.encode(text));
    const sentence = translator.read(text);
    result.reads.push([sentence.text, sentence.write("A Dog.")]);
    if (options) result.translations.push(await translator.translate(text, options));
}
for (const [language, text] of languages) result.sentences.push(sentencesOf(text, language, json("sentences")));
for (const each of feeds) {
    try {
        const tensors = Object.entries(optionFeeds(ort.Tensor, defaults, each));
        result.feeds.push(Object.fromEntries(tensors.map(([name, tensor]) => [name, plain(tensor)])));
    } catch (error) {
        result.feeds.push(error.message);
    }
}
console.log(JSON.stringify(result));
