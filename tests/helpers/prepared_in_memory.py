"""Preparation in plain lists, all of it in memory: the slow twin of `modeling_jmnat.data.preparation`."""

from modeling_jmnat.plain_text import clean_text, protect_pair
from modeling_jmnat.tokenization_jmnat import train_joint_tokenizer
from modeling_jmnat.utils.text_files import read_lines


def prepared_in_memory(arguments, appended=()):
    """The columns of the training split, the counts, and the tokenizer, which is trained on the texts as a list."""
    sides = (map(clean_text, read_lines(path)) for path in (arguments.train_source, arguments.train_target))
    pairs = [*zip(*sides, strict=True), *appended]
    counts = {"read": len(pairs), "empty_side": 0, "copy": 0, "duplicate": 0, "too_long": 0, "length_ratio": 0}
    kept, seen = [], set()
    for pair in pairs:
        if not all(pair):
            counts["empty_side"] += 1
        elif arguments.drop_copies and pair[0] == pair[1]:
            counts["copy"] += 1
        elif arguments.drop_duplicates and pair in seen:
            counts["duplicate"] += 1
        else:
            kept.append(pair)
            seen.add(pair)
    tokenizer = train_joint_tokenizer(
        [source for source, _ in kept] + [target for _, target in kept],
        arguments.vocab_size,
        arguments.lowercase,
        unicode_form=arguments.unicode_form,
        marks=arguments.mark_copied,
        model_max_length=arguments.max_model_tokens,
    )
    rows = []
    for source, target in kept:
        marked_source, marked_target = protect_pair(tokenizer, source, target)
        encoded = tokenizer(marked_source, text_target=marked_target)
        longer, shorter = sorted((len(encoded["input_ids"]), len(encoded["labels"])), reverse=True)
        if longer > arguments.max_tokens_per_sentence:
            counts["too_long"] += 1
        elif arguments.max_length_ratio and longer > arguments.max_length_ratio * shorter:
            counts["length_ratio"] += 1
        else:
            texts = {"source": tokenizer.normalize_text(source), "target": tokenizer.normalize_text(target)}
            rows.append({"id": len(rows), **texts, "input_ids": encoded["input_ids"], "labels": encoded["labels"]})
    return rows, {**counts, "kept": len(rows)}, tokenizer
