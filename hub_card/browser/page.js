// The page: its form, and the passes as hub_card/space/rendering.py shows them. All translating is done in worker.js.

import { END } from "./translator.js";

// Lower bounds of the probabilities that share a colour, the surest first; passes.css has a class for each.
const STEPS = [0.9, 0.7, 0.5, 0.3, 0.0];
const STEP_NAMES = ["over 90 %", "70–90", "50–70", "30–50", "under 30 %"];
const find = id => document.getElementById(id);
const MAX_CHARACTERS = 10_000; // some minutes on a phone
const text = find("text");
let job = 0; // number of the translation that is asked for

// The passes ----------------------------------------------------------------------------------------------------------

/** An element; `lang`, `title` and other attributes by name. Text is never read as HTML. */
function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (value !== null) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
}

const written = piece => (piece === END ? "end" : piece.trim() || "␣");
const percent = prob => `${Math.round(100 * prob)} %`;

/** A chip: its colour and bar tell the probability; in pass `turn` a frame also tells that it was masked before. */
function showToken(token, turn = null) {
    const masked = turn !== null && token.masked;
    const old = masked && token.replaced !== null ? written(token.replaced) : null;
    const title = percent(token.prob) + (masked ? ", masked before this pass" : "");
    const attributes = {
        class: `chip p${STEPS.findIndex(bound => token.prob >= bound)}${masked ? " masked" : ""}`,
        style: `--p:${token.prob.toFixed(2)};--turn:${turn ?? 0}`,
        title,
        role: "img", // to a screen reader one thing with this name
        "aria-label": `${written(token.text)}, ${title}${old === null ? "" : `, was ${old}`}`,
    };
    const word = token.text === END ? make("i", {}, "end") : written(token.text);
    return make("span", attributes, ...(old === null ? [] : [make("del", {}, old)]), make("b", {}, word));
}

/** Chips in a row; the pieces of a word stay together. */
function showTokens(tokens, turn) {
    const row = make("p", { class: "chips", lang: find("final-text").lang });
    for (const token of tokens) {
        const begins = !row.lastChild || token.text.startsWith(" ") || token.text === END;
        if (begins) row.append(make("span", { class: "word" }));
        row.lastChild.append(showToken(token, turn));
    }
    return row;
}

function showPasses(passes) {
    const rows = passes.map((tokens, turn) => {
        const masked = `${tokens.filter(token => token.masked).length} of ${tokens.length} masked`;
        const head = make("header", {}, make("b", {}, `Pass ${turn + 1}`), make("span", {}, masked));
        return make("li", { class: "pass", style: `--turn:${turn}` }, head, showTokens(tokens, turn));
    });
    return make("ol", { class: "passes", role: "list" }, ...rows); // Safari takes a list without numbers for none
}

/** A card: the final tokens of one length, its passes folded away. */
function showCandidate({ length, logProb, passes }, isBest) {
    const head = [make("b", {}, `${length} tokens`), make("span", {}, `${percent(Math.exp(logProb))} sure`)];
    if (isBest) head.push(make("b", { class: "chosen" }, "chosen"));
    const folded = make("details", {}, make("summary", {}, "its passes"), showPasses(passes));
    const parts = [make("header", {}, ...head), showTokens(passes.at(-1), null), folded];
    return make("div", { class: isBest ? "card best" : "card" }, ...parts);
}

/** The passes of one sentence; those of one among several are folded away. */
function showSentence({ text, candidates }, isOnly) {
    const best = make("section", { id: isOnly ? "best" : null }, make("h3", {}, "All words at once")); // moves there
    best.append(showPasses(candidates[0].passes));
    const cards = make("div", { class: "cards" }, ...candidates.map((each, rank) => showCandidate(each, rank === 0)));
    const lengths = make("section", { class: "lengths" }, make("h3", {}, "Lengths that were tried"), cards);
    return isOnly ? [best, lengths] : [make("details", {}, make("summary", {}, text), best, lengths)];
}

function showLegend() {
    const chip = (name, step, prob, masked) =>
        make("span", { class: `chip p${step}${masked ? " masked" : ""}`, style: `--p:${prob}` }, ...name);
    const chips = STEPS.map((bound, step) => chip([make("b", {}, STEP_NAMES[step])], step, bound + 0.1));
    chips.push(chip([make("b", {}, "was masked")], 1, 0.8, true));
    chips.push(chip([make("del", {}, "old"), make("b", {}, "new")], 1, 0.8, true));
    find("legend").replaceChildren(make("span", {}, "How sure:"), ...chips);
}

// What the worker tells -----------------------------------------------------------------------------------------------

const told = {
    progress({ loaded, total }) {
        find("progress").value = loaded / total;
        find("loading").firstElementChild.textContent =
            `Loading the model: ${Math.round(loaded / 1e6)} of ${Math.round(total / 1e6)} MB`;
    },
    ready({ source, target, fromCache, threads }) {
        const names = new Intl.DisplayNames(["en"], { type: "language" });
        find("text-label").textContent = source ? names.of(source) : "Text"; // a model may not know its languages
        find("result-title").textContent = target ? names.of(target) : "Translation";
        [text.lang, find("final-text").lang] = [source ?? "", target ?? ""];
        if (find("examples").lang !== source) {
            find("examples").remove();
            if (text.value === text.defaultValue) text.value = "";
        }
        find("loading").hidden = true;
        find("translate").disabled = false;
        const where = fromCache ? "loaded from this device" : "downloaded";
        const uses = threads > 1 ? ` and uses ${threads} threads` : "";
        find("status").textContent = `Ready: the model is ${where}${uses}.`;
    },
    sentence({ before, after, translation, count }) {
        find("final-text").append(before + translation.text + after);
        find("result").classList.toggle("several", count > 1);
        if (translation.candidates) find("sentences").append(...showSentence(translation, count === 1));
    },
    done({ milliseconds, count }) {
        const spent = `${Math.round(milliseconds)} ms`;
        find("times").textContent =
            count === 1 ? `One sentence, ${spent}.` : `${count} sentences, ${spent}. Open one to see its passes.`;
        find("result").ariaBusy = "false";
        find("status").textContent = "";
        const { top } = find("result").getBoundingClientRect();
        if (top > 0.6 * innerHeight) find("result").scrollIntoView(); // on a phone it lies below
    },
    failed({ message, fatal }) {
        find("message").textContent = message;
        find("message").hidden = false;
        find("result").hidden = true;
        find("status").textContent = "";
        if (fatal) {
            find("loading").hidden = true;
            const again = make("button", { type: "button" }, "Try again");
            again.addEventListener("click", () => location.reload());
            find("message").append(" ", again);
        }
    },
};

function translate(worker) {
    job++;
    find("message").hidden = true;
    find("final-text").replaceChildren();
    find("sentences").replaceChildren();
    find("times").textContent = "";
    const { length } = text.value;
    let mistake = null;
    if (!text.value.trim()) mistake = `Please type a text first: the field ${find("text-label").textContent} is empty.`;
    if (length > MAX_CHARACTERS) {
        const limit = `but the page reads at most ${MAX_CHARACTERS}: please split it.`;
        mistake = `This text has ${length} characters, ${limit}`;
    }
    if (mistake) {
        told.failed({ message: mistake });
        text.focus();
        return;
    }
    find("result").hidden = false;
    find("result").ariaBusy = "true";
    find("status").textContent = "Translating …";
    const [passes, lengths] = ["passes", "lengths"].map(id => find(id).valueAsNumber);
    const options = { num_iterations: passes, num_length_candidates: lengths };
    worker.postMessage({ job, text: text.value, options });
}

function start() {
    showLegend();
    for (const needed of ["WebAssembly", "DecompressionStream"]) {
        if (needed in window) continue;
        const advice = "please take a newer browser, or allow it.";
        const message = `This browser has no ${needed}, which the translator needs: ${advice}`;
        return told.failed({ message, fatal: true });
    }
    const worker = new Worker(`worker.js${location.search}`, { type: "module" }); // ?threads=2
    worker.addEventListener("error", () => {
        const reason = "this browser may be too old, or a file could not be loaded.";
        told.failed({ message: `The translator could not be started: ${reason}`, fatal: true });
    });
    worker.addEventListener("message", ({ data }) => {
        if (data.job === undefined || data.job === job) told[data.kind](data); // what an earlier job tells is late
    });
    const form = find("form");
    form.addEventListener("submit", event => {
        event.preventDefault();
        translate(worker);
    });
    text.addEventListener("keydown", event => {
        const asked = event.key === "Enter" && (event.ctrlKey || event.metaKey);
        if (asked && !find("translate").disabled) form.requestSubmit();
    });
    find("examples").addEventListener("click", ({ target }) => {
        if (!target.matches("button")) return;
        text.value = target.textContent;
        if (!find("translate").disabled) form.requestSubmit();
    });
    for (const slider of form.querySelectorAll("input[type=range]")) {
        slider.addEventListener("input", () => (slider.labels[0].querySelector("output").value = slider.value));
        slider.addEventListener("change", () => find("result").hidden || form.requestSubmit());
    }
}

start();
// Without it (a private window, an address without https) the page works, but not offline.
navigator.serviceWorker?.register("service_worker.js").catch(() => {});
