"""The metric for the library `evaluate`: from its folder without this package, and with unusual inputs."""

import ast
import filecmp
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from modeling_jmnat import utils
from modeling_jmnat.utils.imports import import_library
from modeling_jmnat.utils.translation_scores import METRICS, score_translations
from tests.helpers.fresh_process import run_without_package

evaluate = import_library("evaluate")
ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "hub_card" / "metrics" / "nat_translation"
PACKAGE = Path(utils.__file__).parent
PREDICTIONS, REFERENCES = (
    ["The dog is is asleep.", "I have no time.", ""],
    ["The dog is asleep.", "I've no time.", "No"],
)
OFFLINE = """
import json, socket
def refuse(*args, **options):
    raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
import evaluate
"""


def without_version(scores):
    """The scores without sacreBLEU's version, which changes."""
    return {name: value.split("|version:")[0] if isinstance(value, str) else value for name, value in scores.items()}


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    from modeling_jmnat.utils.nat_translation import NatTranslation

    return NatTranslation(cache_dir=str(tmp_path_factory.mktemp("metric")))


def test_the_folder_holds_the_packages_own_files():
    """If not: cp modeling_jmnat/utils/{bleu,translation_scores,nat_translation}.py hub_card/metrics/nat_translation"""
    names = {path.name for path in FOLDER.glob("*.py")} - {"app.py"}
    assert names == {"bleu.py", "translation_scores.py", "nat_translation.py"}
    for name in names:
        assert filecmp.cmp(FOLDER / name, PACKAGE / name, shallow=False), name
    imports = {path.stem: re.findall(r"^from \.(\w+) import", path.read_text(), re.M) for path in FOLDER.glob("*.py")}
    assert set().union(*imports.values()) == set(imports["nat_translation"])  # what `evaluate` copies


def test_it_loads_from_its_folder_offline_and_without_the_package(tmp_path):
    code = f"""{OFFLINE}
metric = evaluate.load({str(FOLDER)!r})
known = {{"predictions": {PREDICTIONS!r}, "references": {REFERENCES!r}}}
alone = metric.compute(**known, resamples=50, baselines={{"other": {REFERENCES[::-1]!r}}})
for prediction, reference in zip(known["predictions"], known["references"]):
    metric.add(prediction=prediction, reference=reference)
added = metric.compute(resamples=50, baselines={{"other": {REFERENCES[::-1]!r}}})
several = metric.compute(predictions=known["predictions"], references=[[one, "It"] for one in known["references"]])
combined = evaluate.combine([metric, {str(tmp_path / "rows" / "rows.py")!r}]).compute(**known)
print(json.dumps([alone, added, several, combined, metric.inputs_description, metric.citation]))
"""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.py").write_text(
        "import datasets\nimport evaluate\n\n\n"
        "class Rows(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        text = datasets.Value('string')\n"
        "        features = datasets.Features({'predictions': text, 'references': text})\n"
        "        return evaluate.MetricInfo('', '', features, inputs_description='')\n\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'rows': len(predictions)}\n"
    )
    printed = run_without_package(code, tmp_path / "home", tmp_path)
    alone, added, several, combined, inputs, citation = json.loads(printed.splitlines()[-1])
    expected = score_translations(PREDICTIONS, REFERENCES, resamples=50, baselines={"other": REFERENCES[::-1]})
    assert alone == added == json.loads(json.dumps(expected))
    assert several == score_translations(PREDICTIONS, [[one, "It"] for one in REFERENCES])
    plain = score_translations(PREDICTIONS, REFERENCES)
    assert combined == {**plain, "rows": 3}
    assert all(name in inputs for name in (*METRICS, "target_language", "resamples"))
    assert "Guo, Junliang" in citation


def test_the_example_of_its_description_and_of_its_card(tmp_path):
    block, printed = re.search(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", (FOLDER / "README.md").read_text(encoding="utf-8"), re.DOTALL
    ).groups()
    block = block.replace("metric.compute", "found = metric.compute", 1)
    (tmp_path / "hub_card").symlink_to(ROOT / "hub_card")
    code = f"""{OFFLINE}
import doctest
{block}
test = doctest.DocTestParser().get_doctest(metric.info.inputs_description, globals(), "", "", 0)
results = doctest.DocTestRunner().run(test)
print(json.dumps([found, results.failed, results.attempted]))
"""
    found, failed, attempted = json.loads(run_without_package(code, tmp_path / "home", tmp_path).splitlines()[-1])
    assert without_version(found) == without_version(ast.literal_eval(printed))
    assert (failed, attempted) == (0, 3)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({}, "there are no predictions: give predictions and references, or add some before"),
        ({"predictions": [], "references": []}, "0 predictions and 0 references: give equally many, at least one"),
        ({"predictions": ["a"], "references": ["a", "b"]}, "1 predictions and 2 references"),
        ({"predictions": ["a"]}, "1 predictions and 0 references"),
        ({"references": ["a"]}, "None instead of a list of predictions and 1 references"),
        ({"predictions": "ab", "references": ["a", "b"]}, "'ab' instead of a list of predictions"),
        ({"predictions": ["a", None], "references": ["a", "b"]}, r"predictions\[1\] is None \(NoneType\)"),
        ({"predictions": [["a"]], "references": ["a"]}, r"predictions\[0\] is \['a'\] \(list\)"),
        ({"predictions": ["a"], "references": [None]}, r"references\[0\] is None"),
        ({"predictions": ["a"], "references": [[]]}, r"references\[0\] is empty"),
        ({"predictions": ["a"], "references": [["a", None]]}, r"references\[0\] is None"),
        ({"predictions": ["a"], "references": ["a"], "metrics": ["bleu"]}, r"metrics=\['bleu'\] must be"),
        ({"predictions": ["a"], "references": ["a"], "target_language": "English"}, "Moses language 'English'"),
        ({"predictions": ["a"], "references": ["a"], "target_language": None}, "target_language=None must be a code"),
        ({"predictions": ["a"], "references": ["a"], "lowercase": "no"}, "and lowercase='no' True or False"),
        ({"predictions": ["\ud800"], "references": ["a"]}, r"predictions\[0\] is '.ud800', which has half of a"),
        ({"predictions": ["a"], "references": {"a": 1}}, "references={'a': 1} must be a list"),
    ],
)
def test_what_cannot_be_scored_gets_a_sentence_and_the_next_call_works(metric, inputs, sentence):
    with pytest.raises(ValueError, match=sentence):
        metric.compute(**inputs)
    assert metric.compute(predictions=["a b"], references=["a"], metrics=["length_ratio"]) == {"length_ratio": 2.0}


def test_other_forms_of_input_give_the_same(metric):
    expected = score_translations(PREDICTIONS, REFERENCES)
    for form in (tuple, np.array):
        assert metric.compute(predictions=form(PREDICTIONS), references=form(REFERENCES)) == expected
    mixed = [REFERENCES[0], [REFERENCES[1]], REFERENCES[2]]  # the library would read "['...']"
    assert metric.compute(predictions=PREDICTIONS, references=mixed) == expected
    assert metric.compute(predictions=[""], references=[""], metrics=["ter"])["ter"] == 0.0


def test_the_spaces_page(monkeypatch):
    header = yaml.safe_load((FOLDER / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert {"evaluate", "metric"} <= set(header["tags"])
    assert (FOLDER / header["app_file"]).is_file()
    assert f"gradio=={header['sdk_version']}\n" in (ROOT / "constraints.txt").read_text()
    made = []
    stand_in = SimpleNamespace(Textbox=dict, JSON=dict, Interface=lambda *args, **options: made.append(options))
    monkeypatch.setitem(sys.modules, "gradio", stand_in)
    monkeypatch.setitem(sys.modules, "evaluate", evaluate)
    monkeypatch.chdir(FOLDER)
    page: dict = {"__name__": "app"}
    exec((FOLDER / "app.py").read_text(), page)
    assert made[0]["title"] == "nat_translation"
    assert page["score"]("a b\nc", "a b\nd")["length_ratio"] == 1.0
    assert page["score"]("a", "a\nb") == {"error": "1 predictions and 2 references: give equally many, at least one"}
