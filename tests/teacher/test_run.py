import gzip
import json

import pytest
import torch

from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.inference.loading import load_teacher
from modeling_jmnat.teacher.command import parse_teacher_command
from modeling_jmnat.teacher.trainer import DataCollatorForTeacher, TeacherTrainer
from modeling_jmnat.training.arguments import TeacherTrainingArguments
from modeling_jmnat.training.presets import Preset
from modeling_jmnat.utils.fingerprints import tokenizer_fingerprint
from tests.helpers.teacher_samples import TINY, prepare_words, random_teacher, write_text
from tests.helpers.translation_samples import SCRIPTS, load_script

PRESET = """
model: {{d_model: 32, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, decoder_attention_heads: 2,
  encoder_ffn_dim: 64, decoder_ffn_dim: 64, normalize_before: {normalize_before}}}
masking: {{target_mask: random}}
training: {{max_tokens: 400, learning_rate: 1e-3, warmup_steps: 4, eval_num_iterations: [4], max_steps: 999}}
teacher: {{learning_rate: 5e-3, max_steps: 30, eval_strategy: steps, eval_steps: 15, save_steps: 15, keep_best: 2,
  eval_sentences: 8, logging_steps: 5}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`data` and the presets `pre.yaml` and `post.yaml` (layer norm before and after each block)."""
    folder = tmp_path_factory.mktemp("teacher")
    prepare_words(folder, train=40)
    for name, value in (("pre", "true"), ("post", "false")):
        (folder / f"{name}.yaml").write_text(PRESET.format(normalize_before=value))
    return folder


def command_line(folder, output_dir, preset="pre", **options):
    options = {"preset": folder / f"{preset}.yaml", "data": folder / "data", "output_dir": output_dir, **options}
    return [text for name, value in {"use_cpu": True, **options}.items() for text in (f"--{name}", str(value))]


def train(*arguments, **options):
    load_script("train_teacher").main(command_line(*arguments, **options))


def last_json(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_collator_shifts_the_target(folder):
    tokenizer = load_prepared(folder / "data")[1]
    batch = DataCollatorForTeacher(tokenizer)(
        [{"input_ids": [7, 8, 2], "labels": [9, 2]}, {"input_ids": [5, 2], "labels": [6, 7, 8, 2]}]
    )
    assert batch["input_ids"].tolist() == [[7, 8, 2], [5, 2, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[9, 2, -100, -100], [6, 7, 8, 2]]
    assert batch["decoder_input_ids"].tolist() == [[2, 9, 1, 1], [2, 6, 7, 8]]
    for column, other in (("input_ids", "labels"), ("labels", "input_ids")):
        with pytest.raises(ValueError, match=rf"id 3\) has the token id {len(tokenizer)} in '{column}'"):
            DataCollatorForTeacher(tokenizer)([{"id": 3, column: [5, len(tokenizer), 2], other: [5, 2]}])


@pytest.mark.parametrize("normalize_before", [True, False])
def test_loss_is_the_models_own_and_smoothed_as_torch_does(folder, tmp_path, normalize_before):
    data, tokenizer = load_prepared(folder / "data")
    model = random_teacher(tokenizer, normalize_before)
    arguments = TeacherTrainingArguments(str(tmp_path), label_smoothing_factor=0.2, use_cpu=True)
    trainer = TeacherTrainer(model, arguments, processing_class=tokenizer, train_dataset=data["train"])
    batch = trainer.data_collator([data["train"][index] for index in range(5)])
    tokens = batch["labels"].ne(-100).sum()
    with torch.no_grad():
        outputs = trainer.loss_outputs(model, batch, torch.tensor([2.0 * tokens, 5.0]))
        own = model(**batch)
    smoothed = torch.nn.functional.cross_entropy(
        own.logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.2
    )
    assert outputs.nll_loss.item() == pytest.approx(own.loss.item() / 2, rel=1e-5)
    assert outputs.loss.item() == pytest.approx(smoothed.item() / 2, rel=1e-5)


def test_gradients_do_not_depend_on_how_a_step_is_cut(folder, tmp_path):
    """One batch of 8, or 4 of 2 with other padding and other token counts: the same first step."""
    data, tokenizer = load_prepared(folder / "data")
    weights = []
    for size, accumulation in ((8, 1), (2, 4)):
        model = random_teacher(tokenizer)
        model.config.dropout = 0.0
        for module in model.modules():
            if hasattr(module, "dropout"):
                module.dropout = 0.0
        arguments = TeacherTrainingArguments(
            str(tmp_path / str(size)),
            max_steps=1,
            warmup_steps=0,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0,
            use_cpu=True,
            save_strategy="no",
        )
        part = data["train"].select(range(8))
        TeacherTrainer(model, arguments, processing_class=tokenizer, train_dataset=part).train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    start = torch.cat([parameter.detach().flatten() for parameter in random_teacher(tokenizer).parameters()])
    assert (weights[0] - start).abs().max() > 1e-3
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


@pytest.mark.parametrize("preset", ["pre", "post"])
def test_run_writes_a_usable_teacher(folder, tmp_path, capsys, preset):
    train(folder, tmp_path, preset, decoder_layers=2)
    figures = last_json(capsys)
    assert figures["finished"] is True
    assert figures["steps"] == 30
    assert {"validation_bleu_greedy", "validation_bleu_beam5", "final_model"} <= figures.keys()
    model, tokenizer = load_teacher(tmp_path)
    assert model.config.model_type == {"pre": "m2m_100", "post": "marian"}[preset]
    assert (model.config.encoder_layers, model.config.decoder_layers) == (1, 2)
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(load_prepared(folder / "data")[1])
    assert model.generation_config.num_beams == 5
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    losses = [entry["nll_loss"] for entry in log if "nll_loss" in entry]
    assert losses[-1] < losses[0] - 0.5
    train(folder, tmp_path, preset, decoder_layers=2)  # finished: nothing is done again
    assert last_json(capsys) == figures


def test_a_stopped_run_ends_with_the_same_weights(folder, tmp_path, capsys):
    train(folder, tmp_path / "whole")
    whole = last_json(capsys)
    train(folder, tmp_path / "stopped", time_budget=1e-9)
    assert last_json(capsys)["finished"] is False
    train(folder, tmp_path / "stopped")
    output = capsys.readouterr()
    stopped = json.loads(output.out.splitlines()[-1])
    pairs = len(load_prepared(folder / "data")[0]["train"])
    assert f"training {stopped['parameters']:,} parameters on {pairs:,} pairs" in output.err
    assert "stopped holds an unfinished run: resuming from its newest whole checkpoint" in output.err
    assert f"scoring the {len(load_prepared(folder / 'data')[0]['validation'])} validation sentences" in output.err
    assert stopped["validation_bleu_beam5"] == whole["validation_bleu_beam5"]
    weights = [load_teacher(tmp_path / name)[0].state_dict() for name in ("whole", "stopped")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_other_settings_in_the_same_folder_are_refused(folder, tmp_path, capsys):
    train(folder, tmp_path, time_budget=1e-9)
    for options in ({"decoder_layers": 2}, {"label_smoothing_factor": 0.0}, {"max_steps": 31}):
        with pytest.raises(SystemExit) as stop:
            train(folder, tmp_path, **options)
        assert stop.value.code == 1
        assert "holds a run with" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["pre", "post"])
def test_start_with_the_weights_of_a_teacher_or_of_its_student(folder, tmp_path, capsys, preset):
    """A student begins with its teacher's weights, and gives them back: not one update changes them on the way."""
    train(folder, tmp_path / "first", preset)
    student = ["--preset", str(folder / f"{preset}.yaml"), "--data", str(folder / "data"), "--use_cpu", "True"]
    student += ["--init_from_teacher", str(tmp_path / "first"), "--output_dir", str(tmp_path / "student")]
    load_script("train_jmnat").main([*student, "--max_steps", "1", "--learning_rate", "0", "--weight_decay", "0"])
    weights = load_teacher(tmp_path / "first")[0].state_dict()
    for start in ("first", "student"):
        unchanged = {"init_from": tmp_path / start, "max_steps": 1, "learning_rate": 0, "weight_decay": 0}
        train(folder, tmp_path / f"as_{start}", preset, keep_best=0, eval_strategy="no", **unchanged)
        again = load_teacher(tmp_path / f"as_{start}")[0].state_dict()
        assert weights.keys() == again.keys()
        assert all(torch.equal(weights[name], again[name]) for name in weights)
    capsys.readouterr()
    other = {"pre": "post", "post": "pre"}[preset]
    for start, kind in (("first", "model_type"), ("student", "normalize_before")):
        for changes, name in (({"preset": other}, kind), ({"decoder_layers": 2}, "decoder_layers")):
            with pytest.raises(SystemExit):
                train(folder, tmp_path / "refused", **{"preset": preset, "init_from": tmp_path / start, **changes})
            assert f"error: {name} is " in capsys.readouterr().err


def test_preset_gives_defaults_and_options_override(folder, tmp_path):
    command = parse_teacher_command(command_line(folder, tmp_path, max_steps=7, dropout=0.25), "")
    assert (command.training.max_steps, command.training.learning_rate, command.training.max_tokens) == (7, 5e-3, 400)
    assert (command.model["dropout"], command.model["d_model"]) == (0.25, TINY["d_model"])
    preset = Preset("p", training={"max_steps": 5, "eval_num_iterations": [4]}, teacher={"seed": 3})
    assert preset.teacher_training() == {"max_steps": 5, "seed": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_layers": 0}, "decoder_layers=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must lie in"),
        ({"eval_num_beams": 0}, "eval_num_beams="),
        ({"preset": "no_such_preset"}, "no_such_preset.yaml"),
    ],
)
def test_bad_options_are_named(folder, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        train(folder, tmp_path, **options)
    assert stop.value.code == 1
    assert message in capsys.readouterr().err


def write_demo_text(folder, split, count):
    """The first short pairs of the demonstration data; returns the paths of both sides."""
    sides = []
    for language in ("de", "en"):
        with gzip.open(SCRIPTS / "demo_data" / "libreoffice-help" / f"{split}.{language}.gz", "rt", "utf-8") as file:
            sides.append(file.read().split("\n")[:-1])
    pairs = [pair for pair in zip(*sides, strict=True) if max(map(len, pair)) < 80][:count]
    return [write_text(folder, f"{split}.{side}", lines) for side, lines in enumerate(zip(*pairs, strict=True))]


def test_chain_from_text_to_distilled_data(tmp_path, capsys):
    """500 real pairs: prepare, train 100 steps, distil, prepare the distilled text with the same tokenizer."""
    train_text, validation_text = write_demo_text(tmp_path, "train", 500), write_demo_text(tmp_path, "valid", 20)
    held_out = ["--validation_source", validation_text[0], "--validation_target", validation_text[1]]
    prepare = load_script("prepare_data").main
    prepare(
        ["--train_source", train_text[0], "--train_target", train_text[1], *held_out, "--max_length_ratio", "0"]
        + ["--vocab_size", "800", "--output_dir", str(tmp_path / "data")]
    )
    (tmp_path / "pre.yaml").write_text(PRESET.format(normalize_before="true"))
    train(tmp_path, tmp_path / "teacher", eval_strategy="no", keep_best=0, max_tokens=1500, max_steps=100)
    load_script("distill").main(
        ["--teacher", str(tmp_path / "teacher"), "--data", str(tmp_path / "data"), "--device", "cpu"]
        + ["--output_dir", str(tmp_path / "distilled"), "--num_beams", "2", "--max_length_ratio", "0"]
    )
    figures = last_json(capsys)
    assert figures["sentences"] == figures["kept"] + figures["empty"] == 500
    distilled = tmp_path / "distilled" / "distilled"
    prepare(
        ["--train_source", f"{distilled}.src", "--train_target", f"{distilled}.tgt", *held_out]
        + ["--tokenizer", str(tmp_path / "teacher"), "--max_length_ratio", "0", "--output_dir", str(tmp_path / "new")]
    )
    raw, raw_tokenizer = load_prepared(tmp_path / "data")
    new, new_tokenizer = load_prepared(tmp_path / "new")
    assert tokenizer_fingerprint(raw_tokenizer) == tokenizer_fingerprint(new_tokenizer)
    assert len(new["train"]) == figures["kept"] > 100  # a teacher this young leaves some lines empty
    assert set(new["train"]["source"]) <= set(raw["train"]["source"])
    assert new["train"]["target"][:] != raw["train"]["target"][: len(new["train"])]
    assert new["validation"]["labels"][:] == raw["validation"]["labels"][:]
