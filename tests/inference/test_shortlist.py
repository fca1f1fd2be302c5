"""Shortlists: the lexical table against plain loops, decoding with them against decoding with suppressed tokens."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.inference import shortlist as shortlist_module
from modeling_jmnat.inference.shortlist import Shortlist, build_shortlist, translation_links, translation_probabilities
from modeling_jmnat.inference.translation import translate_lines
from modeling_jmnat.teacher.model import tokenizer_digest
from modeling_jmnat.tokenization_jmnat import JMNatTokenizer
from tests.helpers.random_models import pad, random_model, random_sources
from tests.helpers.tiny_runs import WORDS, prepare_tiny_data, tiny_model
from tests.helpers.translation_samples import load_script, tiny_tokenizer

PAIRS = [([5, 6, 2], [7, 8, 2]), ([5, 2], [7, 2]), ([6, 9, 9, 2], [8, 10, 7, 2]), ([9, 2], [10, 10, 2])]


def random_tokenizer(vocab_size, reverse=False):
    words = [f"w{index}" for index in range(vocab_size - 5)]
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(reversed(words) if reverse else words)]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    return JMNatTokenizer(tokenizer_object=backend)


def slow_model_1(pairs, rounds=3):
    """IBM model 1 by loops over sentences and tokens: {source: {target: probability}}."""
    probs = {s: {t: 1.0 for source, target in pairs if s in source for t in target} for s in {5, 6, 9, 2}}
    for _ in range(rounds):
        counts = {s: dict.fromkeys(probs[s], 0.0) for s in probs}
        for source, target in pairs:
            for t in target:
                total = sum(probs[s][t] for s in source)
                for s in source:
                    counts[s][t] += probs[s][t] / total
        probs = {s: {t: c / sum(row.values()) for t, c in row.items()} for s, row in counts.items()}
    return probs


def test_translation_probabilities_equal_plain_loops():
    source, target, probs = translation_probabilities(PAIRS, vocab_size=20)
    found = {(s, t): p for s, t, p in zip(source.tolist(), target.tolist(), probs.tolist(), strict=True)}
    expected = {(s, t): p for s, row in slow_model_1(PAIRS).items() for t, p in row.items()}
    assert found == pytest.approx(expected)
    assert max((p, t) for (s, t), p in found.items() if s == 5)[1] == 7
    assert max((p, t) for (s, t), p in found.items() if s == 9)[1] == 10
    with pytest.raises(ValueError, match="at least one pair of sentences"):
        translation_probabilities([], vocab_size=20)


def test_much_data_are_counted_from_beginning_to_end(monkeypatch):
    pairs = [([5 + part, 2], [15 + part, 2]) for part in range(10) for _ in range(70)]  # 4 links each
    for limit, taken in ((2800, 700), (2799, 699), (100, 25), (3, 1)):
        monkeypatch.setattr(shortlist_module, "MAX_LINKS", limit)
        keys, owners = translation_links(pairs, vocab_size=25)
        assert len(keys) == 4 * taken
        assert owners.max() == 2 * taken - 1
    monkeypatch.setattr(shortlist_module, "MAX_LINKS", 100)
    table = build_shortlist(pairs, vocab_size=25).table
    for part in range(10):
        assert set(table[5 + part].tolist()) == {2, 15 + part, -1}


def test_the_table_holds_the_most_probable(tmp_path):
    shortlist = build_shortlist(PAIRS, vocab_size=20, per_token=2, frequent=1)
    for token, row in slow_model_1(PAIRS).items():
        best = sorted(row, key=lambda t: -row[t])[:2]
        assert set(shortlist.table[token].tolist()) == {*best, *([-1] * (2 - len(best)))}
    assert shortlist.table[11].tolist() == [-1, -1]
    everything = build_shortlist(PAIRS, vocab_size=20, per_token=10**12, frequent=1).table
    assert everything.shape == (20, 20)
    assert torch.equal(everything[:, :2], shortlist.table)
    assert shortlist.always.tolist() == [0, 1, 2, 3, 4]  # `</s>` is the most frequent
    ids = shortlist.ids(torch.tensor([[5, 2], [11, 1]]))
    assert ids.tolist() == sorted({0, 1, 2, 3, 4} | set(shortlist.table[[5, 2]].flatten().tolist()) - {-1})
    shortlist.save(tmp_path)
    again = Shortlist.load(tmp_path)
    assert torch.equal(again.table, shortlist.table)
    assert torch.equal(again.always, shortlist.always)
    for call, message in (
        (lambda: shortlist.ids(torch.tensor([[20]])), "input_ids holds 20, the shortlist knows tokens below 20"),
        (lambda: Shortlist.load(tmp_path / "none"), "build_shortlist.py writes it"),
        (lambda: build_shortlist(PAIRS, 20, per_token=0), "per_token=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_shortlist_of_another_tokenizer_is_refused(tmp_path):
    ours, reordered, smaller = random_tokenizer(20), random_tokenizer(20, reverse=True), random_tokenizer(15)
    shortlist = build_shortlist(PAIRS, vocab_size=20, frequent=3)
    path = shortlist.save(tmp_path)  # without a digest, as files were before
    for tokenizer in (ours, reordered):
        assert torch.equal(Shortlist.load(path, tokenizer).table, shortlist.table)
    with pytest.raises(ValueError, match="up to 10, the tokenizer has 10 tokens: they do not belong together"):
        Shortlist.load(path, random_tokenizer(10))
    with pytest.raises(ValueError, match="has 20 source tokens .*, the tokenizer has 21 tokens"):
        Shortlist.load(path, random_tokenizer(21))
    assert Shortlist.load(path, smaller).digest is None  # all targets are within its vocabulary
    shortlist.digest = tokenizer_digest(ours)
    shortlist.save(tmp_path)
    assert Shortlist.load(path, ours).digest == Shortlist.load(path).digest == tokenizer_digest(ours)
    for tokenizer in (reordered, smaller):
        with pytest.raises(ValueError, match="was built with another tokenizer"):
            Shortlist.load(path, tokenizer)


def test_what_is_no_shortlist_is_refused(tmp_path):
    path = build_shortlist(PAIRS, vocab_size=20).save(tmp_path)
    content = path.read_bytes()
    wrong = {"text": b"haus house\n", "empty": b"", "cut": content[:-3]}
    for name, written in wrong.items():
        (tmp_path / name).write_bytes(written)
    save_file({"weight": torch.zeros(3, 2)}, tmp_path / "weights")
    save_file({"table": torch.zeros(3), "always": torch.zeros(3)}, tmp_path / "flat")
    for name in (*wrong, "weights", "flat"):
        with pytest.raises(ValueError, match=f"shortlist=.*{name} is no shortlist"):
            Shortlist.load(tmp_path / name)


class Fixed:
    def __init__(self, *ids):
        self.found = torch.tensor(ids)

    def ids(self, input_ids):
        return self.found


def assert_as_suppressed(model, sources):
    """A shortlist is the same as suppressing what it lacks, which is how it is checked."""
    input_ids, attention_mask = pad(sources)
    kept = [0, 1, 2, 4, 7, 9, 12, 15, 20]
    for options in ({}, {"num_return_sequences": 2, "early_stop": True}, {"num_iterations": 1}):
        options = {"num_iterations": 5, "return_dict_in_generate": True, **options}
        suppressed = [i for i in range(model.config.vocab_size) if i not in kept or i in (0, 1, 4)]
        expected = model.generate(input_ids, attention_mask=attention_mask, suppress_tokens=suppressed, **options)
        found = model.generate(input_ids, attention_mask=attention_mask, shortlist=Fixed(*kept), **options)
        assert torch.equal(found.sequences, expected.sequences)
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=1e-4, atol=1e-5)
    plain = model.generate(input_ids, attention_mask=attention_mask)
    everything = model.generate(input_ids, attention_mask=attention_mask, shortlist=Fixed(*range(23)))
    assert torch.equal(plain, everything)
    assert not torch.equal(plain, found.sequences)


def test_decoding_equals_suppression():
    model = random_model(41)
    sources = random_sources(model, 8, 41)
    assert_as_suppressed(model, sources)
    projected = []
    model.lm_head.register_forward_hook(lambda *args: projected.append(1))
    model.generate(*pad(sources)[:1], shortlist=Fixed(2, 7, 8))
    assert projected == []
    with pytest.raises(ValueError, match="shortlist needs input_ids"):
        model.generate(inputs_embeds=torch.zeros(1, 2, model.config.d_model), shortlist=Fixed(2, 7))


def test_ids_beyond_the_vocabulary_are_refused():
    model = random_model(3)
    input_ids, mask = pad(random_sources(model, 2, 3))
    shortlist = Shortlist(torch.full((model.config.vocab_size, 2), 6), torch.tensor([2, 99]))
    with pytest.raises(ValueError, match="shortlist gives token 99, the model has 23"):
        model.generate(input_ids, attention_mask=mask, shortlist=shortlist)


def test_decoding_in_onnx_runtime_equals_suppression(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `bench` is not installed")
    onnx_export = pytest.importorskip("modeling_jmnat.onnx_export.export", reason="the extra `bench` is not installed")
    from modeling_jmnat import ORTJMNatForConditionalGeneration
    from modeling_jmnat.onnx_export import graph_writer as onnx_graph

    model = random_model(41)
    sources = random_sources(model, 8, 41)
    onnx_export.export_onnx(model, tmp_path)
    with pytest.raises(ValueError, match=r"decoder_states.onnx does not exist: .*export_onnx.py --shortlist"):
        ORTJMNatForConditionalGeneration.from_pretrained(tmp_path).generate(*pad(sources)[:1], shortlist=Fixed(2, 7))
    onnx_export.export_onnx(model, tmp_path, int8=True, shortlist=True)
    exported = ORTJMNatForConditionalGeneration.from_pretrained(tmp_path)
    assert_as_suppressed(exported, sources)
    quantised = ORTJMNatForConditionalGeneration.from_pretrained(tmp_path, int8=True)
    weight, rows = model.lm_head.weight.detach(), torch.tensor([3, 7])
    _, steps = onnx_graph.quantise_rows(weight[rows])
    assert ((quantised.output_weight(rows) - weight[rows]).abs() <= steps[:, None] / 2 + 1e-7).all()
    found = quantised.generate(*pad(sources)[:1], shortlist=Fixed(2, 7, 9))
    assert set(found.flatten().tolist()) <= {1, 2, 7, 9}


def test_commands_build_and_use_it(tmp_path, capsys):
    data = prepare_tiny_data(tmp_path)
    _, tokenizer = load_prepared(data)
    model = tiny_model(tokenizer).eval()
    model.save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    numbers = ["--per_token", "1", "--frequent", "2"]
    build = load_script("build_shortlist").main
    build(["--data", str(data), "--output", str(tmp_path / "short"), *numbers])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["vocabulary"] == len(tokenizer)
    assert figures["source_tokens_without_row"] == 0
    assert 2 < figures["mean_shortlist"] < len(tokenizer)
    shortlist = Shortlist.load(tmp_path / "short")
    for word, translation in WORDS.items():  # the first token of a word calls for that of its translation
        source, target = tokenizer(word)["input_ids"], tokenizer(translation)["input_ids"]
        if len(source) == len(target) == 2:
            assert int(shortlist.table[source[0], 0]) == target[0]
    lines = ["eins zwei", "haus und baum"]
    (tmp_path / "source.txt").write_text("\n".join(lines) + "\n")
    output = tmp_path / "output.txt"
    arguments = ["--model", str(tmp_path / "short"), "--input", str(tmp_path / "source.txt"), "--output", str(output)]
    load_script("translate").main([*arguments, "--shortlist", str(tmp_path / "short")])
    expected = translate_lines(model, tokenizer, lines, shortlist=shortlist)
    plain = [translation.text for translation in translate_lines(model, tokenizer, lines)]
    assert output.read_text().splitlines() == [translation.text for translation in expected] != plain
    tiny_tokenizer(len(tokenizer)).save_pretrained(tmp_path / "short")
    with pytest.raises(SystemExit):
        load_script("translate").main([*arguments, "--shortlist", str(tmp_path / "short")])
    assert "was built with another tokenizer" in capsys.readouterr().err
