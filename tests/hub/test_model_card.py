"""The card of a published model: its figures are those of the result files, its metadata is what the Hub reads."""

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

import modeling_jmnat
from modeling_jmnat import JMNatTranslationPipeline
from modeling_jmnat.experiments.rows import collect, select
from modeling_jmnat.hub.model_card import PICTURE, read_facts, write_card
from modeling_jmnat.utils.json_files import read_json_lines
from tests.helpers.teacher_samples import random_lines
from tests.helpers.translation_samples import tiny_student, tiny_tokenizer

HUB_CARD = Path(modeling_jmnat.__file__).parent.parent / "hub_card"
FACTS = {
    "name": "tiny",
    "languages": ["de", "en"],
    "language_names": ["German", "English"],
    "license": "mit",
    "domain": "numbers",
    "training_text": [
        {
            "name": "counting",
            "url": "https://example.org/counting",
            "pairs": 12345,
            "license": "cc0-1.0",
            "license_name": "CC0",
            "by": "nobody",
        }
    ],
    "training": "In a minute.",
    "tests": [{"name": "Numbers", "dataset": "counting", "results": "results.json"}],
    "examples": [*random_lines(2, seed=1), 'sagt "eins"'],
    "limits": ["It cannot subtract."],
}


def row(setting, value, bleu, **more):
    return {
        setting: value,
        "sacrebleu": bleu,
        "sacrebleu_signature": "nrefs:1|version:2",
        "chrf": bleu + 20.04,
        "chrf_signature": "nrefs:1|nc:6",
        "repeated_tokens_per_sentence": 0.126,
        **more,
    }


def report(*rows):
    return {
        "settings": {"sentences": 1500, "generation": {"num_length_candidates": 4}},
        "device": {"type": "cpu", "name": "a processor", "threads": 2, "dtype": "float32"},
        "results": list(rows),
    }


@pytest.fixture(scope="module")
def translator():
    tokenizer = tiny_tokenizer()
    return tiny_student(tokenizer), tokenizer


@pytest.fixture
def write(tmp_path, translator):
    """Write a card from facts and result files; its folder."""

    def write_with(facts=None, **reports):
        (tmp_path / "facts.yaml").write_text(yaml.safe_dump({**FACTS, **(facts or {})}), encoding="utf-8")
        reports.setdefault("results", report(row("num_iterations", 1, 10.06), row("num_iterations", 4, 20.123)))
        for name, content in reports.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        (tmp_path / "model").mkdir(exist_ok=True)
        write_card(tmp_path / "facts.yaml", tmp_path / "model", "someone/tiny", *translator)
        return tmp_path / "model"

    return write_with


def test_metadata_is_what_the_hub_reads(write):
    data = ModelCard.load(write() / "README.md").data
    assert data.language == ["de", "en"]
    assert (data.license, data.pipeline_tag, data.library_name) == ("mit", "translation", "transformers")
    assert {"jmnat", "custom_code"} <= set(data.tags)
    assert data.datasets == ["counting"]
    assert data.metrics == ["sacrebleu", "chrf"]
    assert data.model_name == "tiny"
    found = [
        (r.dataset_type, r.metric_type, r.metric_value, r.metric_config, r.metric_name) for r in data.eval_results
    ]
    assert found == [
        ("counting", "sacrebleu", 20.12, "nrefs:1|version:2", "sacreBLEU, k = 4"),
        ("counting", "chrf", 40.16, "nrefs:1|nc:6", "chrF, k = 4"),
    ]
    assert all(r.task_type == "translation" and r.dataset_name == "Numbers" for r in data.eval_results)


def test_text_tells_scores_sources_and_limits(write):
    text = (write() / "README.md").read_text(encoding="utf-8")
    assert (
        "\n| sacreBLEU | k = 1 | k = 4 |\n|---|---|---|\n| Numbers | 10.1 | 20.1 |\n\n"
        "| chrF | k = 1 | k = 4 |\n|---|---|---|\n| Numbers | 30.1 | 40.2 |\n" in text
    )
    assert "\n| repeated words per sentence | k = 1 | k = 4 |\n|---|---|---|\n| Numbers | 0.13 | 0.13 |\n" in text
    assert "milliseconds" not in text
    assert "\n| [counting](https://example.org/counting) | 12,345 | CC0 | nobody |\n" in text
    assert "- Numbers: 1,500 pairs. `num_length_candidates=4`.\n- a processor, 2 threads, float32; sacreBLEU" in text
    second_paragraph = " ".join(text.split("---\n")[2].split("\n\n")[2].split())
    assert second_paragraph.startswith("It was trained on numbers: on other subjects it translates badly")
    assert "without a warning. It cannot subtract. It translates single sentences" in second_paragraph
    assert "Guo, Junliang and Xu, Linli and Chen, Enhong" in text
    assert "{{" not in text
    assert "{%" not in text


def test_scores_have_the_intervals_of_the_result_file(write):
    scored = row("num_iterations", 4, 20.123, intervals={"sacrebleu": [18.96, 21.44], "ter": [1, 2]})
    text = (write(results=report(row("num_iterations", 1, 10.06), scored)) / "README.md").read_text(encoding="utf-8")
    assert "\n| Numbers | 10.1 | 20.1 (19.0 to 21.4) |\n" in text
    assert "\n| Numbers | 30.1 | 40.2 |\n" in text
    assert "95% interval" in text
    assert "95% interval" not in (write() / "README.md").read_text(encoding="utf-8")


def test_snippets_show_what_the_model_answers(write, translator):
    text = (write() / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        compile(block, "snippet", "exec")
        assert '"someone/tiny", trust_remote_code=True' in block
    translate = JMNatTranslationPipeline(*translator, device="cpu")
    first, *others = FACTS["examples"]
    assert f"# {translate(first)}\n" in blocks[0]
    for record in translate(others):
        assert f"# {record['translation_text']}\n" in blocks[0]
    assert r'"sagt \"eins\""' in blocks[0]
    for canvas in translate(first, num_iterations=4, return_history=True)[0]["history"]:
        assert f"# {canvas}\n" in blocks[1]


def test_latencies_get_a_row_and_a_picture(write):
    """From the result file itself or, where another was timed, from that one."""
    timed = report(*(row("num_iterations", k, 0.0, latency_ms={"mean": 12.4 * k}) for k in (1, 4)))
    teacher = report(row("num_beams", 1, 30.0, latency_ms={"mean": 99.9}), row("num_beams", 5, 31.0))
    test = {**FACTS["tests"][0], "latency": "timed.json", "teacher": "teacher.json"}
    folder = write({"tests": [test]}, timed=timed, teacher=teacher)
    text = (folder / "README.md").read_text(encoding="utf-8")
    titles = "| k = 1 | k = 4 | autoregressive, greedy | autoregressive, beam 5 |\n|---|---|---|---|---|\n"
    assert f"| sacreBLEU {titles}| Numbers | 10.1 | 20.1 | 30.0 | 31.0 |\n" in text
    assert f"| milliseconds per sentence, one at a time {titles}| Numbers | 12 | 50 | 100 |  |\n" in text
    assert f"]({PICTURE})" in text
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_test_sets_share_a_table(write):
    """Also if one was scored with other numbers of passes; what is not measured stays empty."""
    second = {"name": "Dates", "dataset": "days", "results": "dates.json"}
    dates = report(row("num_iterations", 4, 12.0), row("num_iterations", 10, 13.0))
    folder = write({"tests": [*FACTS["tests"], second]}, dates=dates)
    text = (folder / "README.md").read_text(encoding="utf-8")
    rows = "| Numbers | 10.1 | 20.1 |  |\n| Dates |  | 12.0 | 13.0 |\n"
    assert f"| sacreBLEU | k = 1 | k = 4 | k = 10 |\n|---|---|---|---|\n{rows}" in text
    assert text.count("a processor, 2 threads, float32; sacreBLEU") == 1


def test_rows_of_stored_results(write):
    """The card has the figures of a results.jsonl that it has of the files of `evaluate` it was made from."""
    teacher = report(row("num_beams", 5, 31.0))
    reports = {"results": report(row("num_iterations", 1, 10.06)), "teacher": teacher}
    test = {**FACTS["tests"][0], "teacher": "teacher.json"}
    folder = write({"tests": [test]}, **reports)
    expected = (folder / "README.md").read_text(encoding="utf-8")
    rows = [one for name in reports for one in collect(folder.parent / f"{name}.json", "numbers")]
    rows += [row | {"variant": "other", "sacrebleu": 1.0} for row in rows] + [row | {"run": "dates"} for row in rows]
    stored = folder.parent / "results.jsonl"
    stored.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    test |= {"results": "results.jsonl", "teacher": "results.jsonl", "run": "numbers"}
    assert (write({"tests": [test]}) / "README.md").read_text(encoding="utf-8") == expected
    with pytest.raises(ValueError, match=r"results.jsonl has no results of times: run `jmnat evaluate` again"):
        write({"tests": [test | {"run": "times"}]})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"tests": FACTS["tests"] * 2}, "two tests have the same dataset"),
        ({"licence": "mit"}, "facts.yaml does not know licence"),
        ({"tests": [{"name": "Numbers", "results": "results.json"}]}, "tests 1 lacks dataset"),
        ({"tests": []}, "two or more examples, and tests"),
        ({"examples": ["eins"]}, "two or more examples"),
        ({"training_text": [{"name": "counting", "url": "x", "pairs": 1, "by": "y", "license": "z"}]}, "license_name"),
        ({"tests": [{**FACTS["tests"][0], "teacher": "results.json"}]}, "with num_beams, sacreBLEU and chrF"),
    ],
)
def test_facts_that_do_not_fit_are_named(write, facts, message):
    with pytest.raises(ValueError, match=message):
        write(facts)


def test_files_that_do_not_fit_are_named(write, tmp_path):
    with pytest.raises(ValueError, match=r"results.json is not a result file of `jmnat evaluate` with num_iterations"):
        write(results={"results": [{"num_iterations": 1}]})
    with pytest.raises(ValueError, match=r"results.json has no results"):
        write(results=report())
    with pytest.raises(FileNotFoundError, match=r"missing.json"):
        write({"tests": [{**FACTS["tests"][0], "results": "missing.json"}]})
    (tmp_path / "facts.yaml").write_text("- a list")
    with pytest.raises(ValueError, match="must be a mapping of names to values"):
        read_facts(tmp_path / "facts.yaml")
    (tmp_path / "facts.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        read_facts(tmp_path / "facts.yaml")


def test_shipped_card_holds_the_measured_figures():
    """As `publish.py` makes it from the files beside it."""
    facts = read_facts(HUB_CARD / "de-en.yaml")
    card = ModelCard.load(HUB_CARD / "de-en" / "README.md")
    values = {(result.dataset_type, result.metric_type): result for result in card.data.eval_results}
    for test in facts.tests:
        stored = select(read_json_lines(HUB_CARD / test.results), run=test.run, variant="")
        rows = [row for row in stored if "num_iterations" in row]
        best = max(rows, key=lambda row: row["num_iterations"])
        for metric in ("sacrebleu", "chrf"):
            result = values[test.dataset, metric]
            assert result.metric_value == round(best[metric], 2)
            assert result.metric_config == best["signature" if metric == "sacrebleu" else "chrf_signature"]
            cells = []
            for row in sorted(rows, key=lambda row: row["num_iterations"]):
                low, high = row["intervals"][metric]
                cells.append(f"{row[metric]:.1f} ({low:.1f} to {high:.1f})")
            assert " | ".join(cells) in card.text
    for source in facts.training_text:
        assert source["license_name"] in card.text
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert (HUB_CARD / "de-en" / picture).is_file()
