// From text to translations and their passes. ONNX Runtime and the tokenizer are given, so that this runs in Node, too.

export const END = "</s>"; // how the end of a sentence is written here, whatever the tokenizer calls it
const ARRAYS = { int64: BigInt64Array, float32: Float32Array, bool: Uint8Array };

/**
 * What the options of the graph are fed with: those of `options`, and for the others `defaults`, the contents of
 * browser_translator.json. The twin of `translator_feeds` in Python.
 */
export function optionFeeds(Tensor, defaults, options = {}) {
    for (const name in options) {
        if (!(name in defaults)) {
            throw new Error(`option "${name}" is not an input of this graph, only ${Object.keys(defaults).join(", ")}`);
        }
    }
    const feeds = {};
    for (const [name, { type, value, runs }] of Object.entries(defaults)) {
        const given = options[name] ?? value ?? runs.flatMap(([one, count]) => Array(count).fill(one));
        const isVector = Array.isArray(given);
        const values = (isVector ? given : [given]).map(one => converted(one, type));
        if (isVector !== Boolean(runs) || values.includes(undefined)) {
            const rank = runs ? "vector" : "scalar";
            throw new Error(`${name}=${JSON.stringify(given)} must be a ${rank} of type ${type}`);
        }
        feeds[name] = new Tensor(type, ARRAYS[type].from(values), isVector ? [values.length] : []);
    }
    return feeds;
}

/** A value as the array of its type holds it; undefined if it is of another type. */
function converted(value, type) {
    if (type === "bool") return typeof value === "boolean" ? Number(value) : undefined;
    if (type === "int64") return Number.isInteger(value) ? BigInt(value) : undefined;
    return typeof value === "number" || value === "-Infinity" ? Number(value) : undefined;
}

/** A model and its tokenizer: `await translator.translate(sentence, options)`. */
export class Translator {
    /**
     * @param ort onnxruntime-web or onnxruntime-node.
     * @param session of `browser_translator.onnx` or its int8 twin.
     * @param Tokenizer of @huggingface/tokenizers.
     * @param files what config.json, tokenizer.json, tokenizer_config.json, browser_translator.json and spelling.json
     *     hold.
     */
    constructor(ort, session, Tokenizer, { config, tokenizer, tokenizerConfig, defaults, spelling }) {
        const known = new Set(Object.keys(tokenizer.model.vocab)); // characters among them have a piece of their own
        Object.assign(this, { ort, session, config, defaults, spelling, known, lowercase: tokenizerConfig.lowercase });
        // Special tokens that are written out in a text are plain text, as in Python; so this tokenizer has none.
        this.tokenizer = new Tokenizer({ ...tokenizer, added_tokens: [] }, tokenizerConfig);
        this.special = new Set(tokenizer.added_tokens.filter(token => token.special).map(token => token.id));
    }

    /**
     * A sentence as the model knows it, and `write`, which makes of its translation that of the sentence: the twin of
     * `Sentence` in plain_text.py for capitals, plain letters, and bullets and emoji at the ends.
     */
    read(sentence) {
        const [before, core, after] = this.withoutEdges(sentence);
        if (!core) return { text: "", write: () => sentence };
        let text = Array.from(core, one => this.plainForm(one)).join("");
        const capitals = !this.lowercase && (inCapitals(text) || this.isLoudWord(text));
        if (capitals || (!this.lowercase && inSmallLetters(text))) text = this.truecased(text.toLowerCase());
        const write = translation => before + (capitals ? translation.toUpperCase() : translation) + after;
        return { text, write };
    }

    /** A text in three parts: signs and list marks before its words, the words, and signs after them. */
    withoutEdges(text) {
        const isOuter = one => /[\s\u200d\ufe0f]/.test(one) || (this.isSign(one) && !this.known.has(one));
        const inner = part => {
            const characters = Array.from(part);
            const begin = characters.findIndex(one => !isOuter(one));
            const end = characters.findLastIndex(one => !isOuter(one)) + 1;
            return begin < 0 ? [part, ""] : [characters.slice(0, begin).join(""), characters.slice(begin, end).join("")];
        };
        const [signs, rest] = inner(text);
        const mark = rest.match(new RegExp(this.spelling.listMarks, "u"))?.[0] ?? "";
        const [more, whole] = inner(rest.slice(mark.length));
        const [, core] = inner(whole.replace(new RegExp(this.spelling.lastSigns, "u"), ""));
        const before = signs + mark + more;
        const after = text.slice(before.length + core.length);
        return [before.trim() ? before : "", core, after.trim() ? after : ""];
    }

    isSign(character) {
        return /[\p{So}\p{Sk}\p{Sm}\p{Co}]/u.test(character) || this.spelling.bullets.includes(character);
    }

    /** A letter or sign that the vocabulary lacks in a form that it has, if there is one. */
    plainForm(character) {
        if (character < "\x80" || this.known.has(character)) return character;
        const isVariant = /[\u2026\ufb00-\ufb06\uff01-\uff5e\u{1d400}-\u{1d7ff}]/u.test(character);
        const form = this.spelling.plain[character] ?? (isVariant ? character.normalize("NFKC") : character);
        return Array.from(form).every(one => this.known.has(one)) ? form : character;
    }

    /** A text in small letters with the capitals that the vocabulary suggests; see `truecased` in spelling.py. */
    truecased(text) {
        text = text.replace(/\p{L}+/gu, word => this.inUsualLetters(word));
        if (!/[.!?]["'“”»)]*$/.test(text)) return text;
        return text.replace(/\p{L}/u, first => (this.known.has(first.toUpperCase()) ? first.toUpperCase() : first));
    }

    /** A word in small letters, with a capital or in capitals, also with ß for ss: with the fewest, earliest pieces. */
    inUsualLetters(word) {
        const forms = [word, word.replaceAll("ss", "ß")].flatMap(one => [one, capitalised(one), one.toUpperCase()]);
        return forms.reduce((best, form) => (isEarlier(this.pieces(form), this.pieces(best)) ? form : best));
    }

    /** Whether a text is one word in capitals that is several pieces, but one in other letters. */
    isLoudWord(text) {
        const found = text.match(/\p{L}+/gu) ?? [];
        if (found.length !== 1 || Array.from(found[0]).length < 2 || !isUpper(found[0])) return false;
        const usual = this.inUsualLetters(found[0].toLowerCase());
        return this.pieces(found[0]).length > 1 && this.pieces(usual).length === 1;
    }

    pieces(word) {
        return this.tokenizer.encode(word, { add_special_tokens: false }).ids;
    }

    /** Ids of a sentence; an Error for one that is too long. */
    encode(sentence) {
        const { ids } = this.tokenizer.encode(sentence);
        const longest = this.config.max_position_embeddings;
        if (ids.length > longest) {
            throw new Error(
                `A sentence of this text has ${ids.length} tokens, but the model reads at most ${longest}: ` +
                    "please split it.",
            );
        }
        return ids;
    }

    /** The text of a translation, in one line. */
    decode(ids) {
        const words = ids.filter(id => !this.special.has(id));
        return words.length ? this.tokenizer.decode(words).replace(/[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/g, " ") : "";
    }

    /** A token as it stands in the text, the first of a word with a space before it. */
    piece(id) {
        return id === this.config.eos_token_id ? END : this.tokenizer.id_to_token(id).replaceAll("▁", " ");
    }

    /**
     * Translate one sentence and tell all that the passes did.
     *
     * @param options of the graph, such as `{num_iterations: 4, num_length_candidates: 2}`.
     * @returns `{text, milliseconds, candidates}`, the best candidate first; each has its `length`, the mean `logProb`
     *     of its tokens, and `passes[i][t] = {text, prob, masked, replaced}`: `masked` before the pass, `replaced` the
     *     text that this one took the place of.
     */
    async translate(sentence, options = {}) {
        const { Tensor } = this.ort;
        const ids = this.encode(sentence);
        const count = options.num_length_candidates ?? this.defaults.num_length_candidates.value;
        const feeds = {
            input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
            attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), [1, ids.length]),
            ...optionFeeds(Tensor, this.defaults, { ...options, num_return_sequences: count }), // all are shown
        };
        const start = performance.now();
        const output = await this.session.run(feeds);
        const milliseconds = performance.now() - start;
        const best = numbers(output.best_candidates);
        const width = output.sequences.dims[2];
        return {
            text: this.decode(numbers(output.sequences).slice(0, width)),
            milliseconds,
            candidates: best.map(index => this.readCandidate(output, index)),
        };
    }

    /** One candidate of the history (k, 1, C, T). */
    readCandidate({ candidate_lengths, history_canvas, history_tokens, history_log_probs }, index) {
        const length = numbers(candidate_lengths)[index];
        const [count, , candidates, positions] = history_tokens.dims;
        const passes = [];
        for (let turn = 0; turn < count; turn++) {
            const begin = (turn * candidates + index) * positions;
            const [canvas, tokens, logProbs] = [history_canvas, history_tokens, history_log_probs].map(values =>
                numbers(values, begin, begin + length),
            );
            const before = passes.at(-1);
            passes.push(
                tokens.map((token, position) => {
                    const text = this.piece(token);
                    const old = before?.[position].text ?? text;
                    const masked = canvas[position] === this.config.mask_token_id;
                    return { text, prob: Math.exp(logProbs[position]), masked, replaced: old === text ? null : old };
                }),
            );
        }
        const last = numbers(history_log_probs).slice(-candidates * positions);
        const logProbs = last.slice(index * positions, index * positions + length);
        return { length, logProb: logProbs.reduce((sum, one) => sum + one, 0) / length, passes };
    }
}

/** `Katze` of `katze`. */
function capitalised(word) {
    const [first, ...others] = word;
    return first.toUpperCase() + others.join("");
}

/** Whether ids are fewer than others, or as many and earlier in the vocabulary at the first difference. */
function isEarlier(ids, others) {
    const place = ids.findIndex((id, index) => id !== others[index]);
    return ids.length === others.length ? place >= 0 && ids[place] < others[place] : ids.length < others.length;
}

/** Whether letters are capitals; `ß` counts as one among others. */
function isUpper(letters) {
    const cased = letters.replaceAll("ß", "");
    return cased === cased.toUpperCase() && cased !== cased.toLowerCase();
}

/** Whether a text is in capitals; a single word of up to four letters, perhaps an abbreviation, does not count. */
function inCapitals(text) {
    const letters = text.match(/\p{L}/gu) ?? [];
    if (!isUpper(letters.join(""))) return false;
    return letters.length > 4 || (letters.length > 1 && /\S\s+\S/.test(text));
}

/** Whether a text has at least two words and no capital. */
function inSmallLetters(text) {
    const words = text.split(/\s+/).filter(word => /\p{L}/u.test(word));
    return text === text.toLowerCase() && text !== text.toUpperCase() && words.length > 1;
}

/** Plain numbers of a tensor: int64 ones come as BigInt. */
function numbers(tensor, begin, end) {
    return Array.from(tensor.data.slice(begin, end), Number);
}

// Sentences -----------------------------------------------------------------------------------------------------------

/**
 * Cut a text after each line and each sentence: `[{before, text, after}]`, which joined are the text again.
 *
 * @param rules of `language`, see `goesOn`; undefined for a language without any.
 */
export function sentencesOf(text, language, rules) {
    const words = rules && { ...rules, dates: [...rules.dates, ...monthsOf(language)] };
    const pieces = [];
    for (const line of text.match(/[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$/g) ?? []) {
        const begin = pieces.length; // sentences of other lines are never joined
        for (const piece of segments(line, language)) {
            if (pieces.length && (!piece.trim() || (pieces.length > begin && goesOn(pieces.at(-1), piece, words)))) {
                pieces[pieces.length - 1] += piece;
            } else {
                pieces.push(piece);
            }
        }
    }
    return pieces.map(piece => {
        const [, before, inside, after] = piece.match(/^(\s*)(.*?)(\s*)$/s);
        return { before, text: inside, after };
    });
}

function segments(line, language) {
    if (!("Segmenter" in Intl)) return [line]; // Firefox before 125
    return Array.from(new Intl.Segmenter(language, { granularity: "sentence" }).segment(line), each => each.segment);
}

function monthsOf(language) {
    const { format } = new Intl.DateTimeFormat(language, { month: "long" });
    return Array.from({ length: 12 }, (_, month) => format(new Date(2000, month)));
}

/**
 * Whether no sentence ends between two pieces: the twin of `sentence_goes_on` in pipeline.py, whose lists of words for
 * German or English `rules` holds.
 */
function goesOn(before, after, rules) {
    if (/[^\s。！？]$/.test(before)) return true; // no white space: `Dipl.-Ing.`
    const word = after.match(/^[^\p{L}\p{N}_]*([\p{L}\p{N}_]+)/u)?.[1];
    if (!word) return false;
    if (/^\p{Ll}/u.test(word)) return true;
    if (!rules) return false;
    if (/^\s*\d{1,3}\.\s*$/.test(before)) return true; // the number of an item in a list
    const isDate = rules.dates.includes(word);
    const ordinal = before.match(/(?:^|([\p{L}\p{N}_]+)\s+|[^\p{L}\p{N}_])\d{1,3}\.\s*$/u);
    if (rules.ordinals && ordinal) {
        const belongs = rules.ordinals.includes((ordinal[1] ?? "").toLowerCase()) && !rules.beginnings.includes(word);
        return isDate || belongs;
    }
    const last = before.match(/(\p{L}[\p{L}\p{N}_.]*)\.\s*$/u)?.[1];
    if (!last) return false;
    if (/^\p{Ll}$/u.test(last)) return true; // `z. B.`
    const isIn = words => words.includes(last) || words.includes(last[0].toLowerCase() + last.slice(1));
    const isNumber = /^\p{N}/u.test(word);
    if (isIn(rules.dates)) return isNumber || isDate;
    if (isIn(rules.abbreviations)) return isNumber || Boolean(rules.beginnings && !rules.beginnings.includes(word));
    return isIn(rules.titles);
}
