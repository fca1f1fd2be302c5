"""The training benchmark: its parts add up to the step that training takes, its counts by hand, one small run."""

import json

import pytest
import torch
from torch import nn

from tests.helpers.translation_samples import load_script

pytest.importorskip("accelerate", reason="the extra `train` is not installed")

from modeling_jmnat.benchmark import training as training_benchmark  # noqa: E402
from modeling_jmnat.benchmark.options import SIZES, TRAINING_SIZES  # noqa: E402
from modeling_jmnat.benchmark.systems import sized_config  # noqa: E402
from modeling_jmnat.benchmark.training import (  # noqa: E402
    Hardware,
    TrainingStep,
    build_steps,
    operations_of,
    product_peak,
    product_shapes,
    random_features,
    run_training_benchmark,
    step_in_parts,
    training_table,
)

TINY = {"d_model": 16, "ffn": 24, "layers": 2, "heads": 2, "vocab_size": 50}


@pytest.fixture(autouse=True)
def micro(monkeypatch):
    monkeypatch.setitem(TRAINING_SIZES, "micro", TINY)


def gradients_of_optimiser(step, monkeypatch):
    """Collect the gradients that the optimiser gets, instead of a step."""
    found = {}

    def keep():
        found.update({name: p.grad.clone() for name, p in step.model.named_parameters() if p.grad is not None})
        step.optimizer.zero_grad(set_to_none=True)

    monkeypatch.setattr(step, "optimise", keep)
    return found


@pytest.mark.parametrize("ngram_last", [True, False])
def test_the_parts_of_a_step_are_the_step(monkeypatch, ngram_last):
    step = build_steps("micro", Hardware())["student"]
    for module in step.model.modules():  # so that both are the same computation
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    step.model.config.dropout = 0.0
    step.model.config.ngram_loss_weight = weight = 5.0 if ngram_last else 0.0
    features = random_features(step.model.config, 6, 7)
    found = gradients_of_optimiser(step, monkeypatch)
    seconds = step_in_parts(step, features, ngram_last)
    in_parts = dict(found)
    found.clear()
    step.run(step.batch(step.collate(features)))
    assert step.model.config.ngram_loss_weight == weight
    assert in_parts.keys() == found.keys()
    names = {"masks and padding", "encoder", "decoder", "losses", "losses with n-gram term", "optimiser", "unused"}
    assert seconds.keys() == names
    assert min(seconds.values()) >= 0
    for name, grad in found.items():
        torch.testing.assert_close(in_parts[name], grad, rtol=1e-4, atol=1e-5 * grad.abs().max().item() + 1e-7)


def test_operations_and_shapes_by_hand():
    class Collator:
        def __call__(self, features):
            return {"x": torch.ones(3, 5, 8)}

    model = nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False), nn.Linear(4, 16), nn.Linear(16, 4)
    )
    step = TrainingStep(model, lambda batch: model(batch["x"]).sum(), Collator(), Hardware())
    shapes = product_shapes(step, step.batch(step.collate([])))
    assert shapes == {(15, 8, 16): 1, (15, 16, 4): 2, (15, 4, 16): 1}
    forward = sum(count * 2 * rows * a * b for (rows, a, b), count in shapes.items())
    assert (
        operations_of(step, step.batch(step.collate([]))) == 3 * forward - 2 * 15 * 8 * 16
    )  # the input needs no gradient
    assert product_peak(shapes, Hardware()) > 0


def test_sizes_are_those_of_the_benchmark_of_translation_and_tiny():
    assert {name: TRAINING_SIZES[name] for name in SIZES} == SIZES
    assert set(TRAINING_SIZES) - set(SIZES) == {"tiny", "micro"}
    for size, layers in (("small", 5), ("tiny", 3)):
        assert sized_config("size", size, TRAINING_SIZES).decoder_layers == layers


def test_features_have_the_length_and_end():
    features = random_features(build_steps("micro", Hardware())["student"].model.config, 3, 9)
    assert len(features) == 3
    for feature in features:
        for name in ("input_ids", "labels"):
            assert len(feature[name]) == 9
            assert feature[name][-1] == 2
            assert min(feature[name][:-1]) >= 5
    assert len({tuple(feature["labels"]) for feature in features}) == 3


def test_figures_fit_together(monkeypatch):
    monkeypatch.setattr(training_benchmark, "LONGEST_PRODUCT", 0.001)
    first, figures = run_training_benchmark("micro", Hardware(), max_tokens=80, length=8, num_rounds=4)
    assert first["student"]["target_tokens_per_second"] > 0
    assert figures["batch_tokens"] == 80
    assert sum(figures["shares"].values()) == pytest.approx(1.0)
    for name in ("student", "teacher"):
        found = figures[name]
        assert found["rounds"] == 4
        assert found["target_tokens_per_second"] == pytest.approx(80 / found["seconds"])
        assert found["target_tokens_per_core_second"] > 0
        assert found["operations_per_second"] == pytest.approx(found["operations"] / found["seconds"])
        assert found["utilisation"] == pytest.approx(found["operations_per_second"] / found["product_peak"])
    assert figures["student"]["parameters"] > figures["teacher"]["parameters"]
    assert training_table([figures]).count("\n") == 3
    with pytest.raises(ValueError, match="size='huge' is not one of"):
        list(run_training_benchmark("huge", Hardware(), 80))


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_benchmark, "LONGEST_PRODUCT", 0.001)
    script = load_script("benchmark_training")
    arguments = ["--output", str(tmp_path), "--sizes", "micro", "--max_tokens", "60", "--length", "6", "--rounds", "3"]
    script.main([*arguments, "--device", "cpu", "--dtypes", "float32", "bfloat16"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["settings"] == 2
    rows = json.loads((tmp_path / "training.json").read_text())
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    assert (tmp_path / "training.md").read_text().count("| micro, cpu") == 2
    for wrong, message in (
        (["--rounds", "0"], "rounds=0 must be at least 1"),
        (["--length", "1"], "length=1 must be at least 2"),
        (["--sizes", "huge"], "sizes='huge' is not one of tiny, small, base"),
        (["--dtypes", "int8"], "dtypes='int8' is not one of float32, bfloat16"),
    ):
        with pytest.raises(SystemExit):
            script.main([*arguments, *wrong])
        assert message in capsys.readouterr().err
