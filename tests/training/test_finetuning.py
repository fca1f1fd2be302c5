"""Fine-tuning with the trainers of Transformers themselves: the example script, callbacks, TensorBoard, Hub, LoRA."""

import gzip
import json
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from modeling_jmnat import DataCollatorForJMNat, JMNatForConditionalGeneration, JMNatTrainer, JMNatTrainingArguments
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.training.checkpoints import list_checkpoints
from tests.helpers.tiny_runs import WORDS, prepare_tiny_data, tiny_model
from tests.helpers.translation_samples import SCRIPTS, load_script

OTHER_WORDS = {**WORDS, "und": "plus", "haus": "baum"}  # the new domain


def write_corpus(folder):
    rng = random.Random(8)
    folder.mkdir()
    for split, count in (("train", 200), ("valid", 12)):
        sources = [" ".join(rng.choices(list(WORDS), k=rng.randint(2, 6))) for _ in range(count)]
        targets = [" ".join(OTHER_WORDS[word] for word in line.split()) for line in sources]
        for language, lines in (("de", sources), ("en", targets)):
            (folder / f"{split}.{language}.gz").write_bytes(gzip.compress("".join(f"{x}\n" for x in lines).encode()))
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`model`: random weights; `corpus`: the new one; `data`: the old one, prepared."""
    folder = tmp_path_factory.mktemp("finetuning")
    write_corpus(folder / "corpus")
    _, tokenizer = load_prepared(prepare_tiny_data(folder))
    model = tiny_model(tokenizer, ngram_loss_weight=0.0)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def quiet(output, **fields):
    return TrainingArguments(
        str(output), use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, **{"save_strategy": "no", **fields}
    )


def trainer(folder, arguments, model=None, **kwargs):
    data, tokenizer = load_prepared(folder / "data")
    model = model or JMNatForConditionalGeneration.from_pretrained(folder / "model")
    return Trainer(model, arguments, DataCollatorForJMNat(tokenizer), data["train"], **kwargs)


# The script ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def example(capsys):
    script = load_script("finetune_example")

    def run(*arguments):
        common = ["--use_cpu", "True", "--disable_tqdm", "True", "--dataloader_pin_memory", "False"]
        script.main([*common, *(str(argument) for argument in arguments)])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return SimpleNamespace(run=run, script=script)


def test_script_improves_bleu_and_logs_to_tensorboard(folder, tmp_path, example, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    output = tmp_path / "output"
    arguments = ["--data", folder / "corpus", "--output_dir", output, "--max_steps", 30, "--logging_steps", 10]
    arguments += ["--learning_rate", 1e-3, "--report_to", "tensorboard", "--per_device_train_batch_size", 16]
    result = example.run(*arguments)  # the shipped model
    assert result["bleu_before"] < 30
    assert result["bleu_after"] > 60
    assert result["output_dir"] == str(output)
    tuned = JMNatForConditionalGeneration.from_pretrained(output)
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    assert tuned.generation_config.max_length == tuned.config.max_target_length  # not Seq2SeqTrainer's 20
    ids = tuned.generate(**tokenizer(["zwei und vier und eins"], return_tensors="pt"))
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "two plus four plus one"
    events = [EventAccumulator(str(path.parent)).Reload() for path in (tmp_path / "logs").rglob("events.out*")]
    series = {tag: log.Scalars(tag) for log in events for tag in log.Tags()["scalars"]}
    assert [event.step for event in series["train/loss"]] == [10, 20, 30]
    assert series["train/loss"][-1].value < series["train/loss"][0].value
    assert [event.step for event in series["eval/bleu"]] == [0, 30]
    assert [event.value for event in series["eval/bleu"]] == pytest.approx(
        [result["bleu_before"], result["bleu_after"]], rel=1e-4
    )


def test_script_imports_the_library_evaluate_despite_evaluate_py(folder, tmp_path):
    options = ["--model", folder / "model", "--data", folder / "corpus", "--output_dir", tmp_path, "--use_cpu", "True"]
    options += ["--train_pairs", 4, "--valid_pairs", 2, "--max_steps", 1]
    command = [sys.executable, SCRIPTS / "finetune_example.py", *options]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {"bleu_before", "ter_after"} < json.loads(done.stdout.splitlines()[-1]).keys()


def test_text_without_umlauts_is_the_default(folder, tmp_path, example, monkeypatch):
    sides = []
    make = Dataset.from_dict
    monkeypatch.setattr(Dataset, "from_dict", lambda columns: sides.append(columns) or make(columns))
    arguments = ["--model", folder / "model", "--output_dir", tmp_path, "--train_pairs", 4, "--valid_pairs", 2]
    arguments += ["--max_steps", 1, "--per_device_train_batch_size", 2]
    example.run(*arguments)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    valid, train = ([tokenizer.decode(ids, skip_special_tokens=True) for ids in side["input_ids"]] for side in sides)
    assert (len(valid), len(train)) == (2, 4)
    assert valid[0] == "wiki-seite zu definieren eines datenbereichs"
    for text in valid + train:
        assert text == text.lower()
        assert not set(text) & set("äöüß")


def test_script_says_what_is_missing(folder, tmp_path, example, capsys):
    with pytest.raises(SystemExit) as stopped:
        example.run("--model", folder / "model", "--data", tmp_path / "nowhere", "--output_dir", tmp_path / "output")
    assert stopped.value.code == 1
    assert "nowhere/valid.de.gz" in capsys.readouterr().err


# Trainer ------------------------------------------------------------------------------------------------------------


def test_callbacks_of_the_library_work(folder, tmp_path):
    seen = []

    class Recorder(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            seen.append("epoch")

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            seen.append(metrics["eval_loss"])

    data, _ = load_prepared(folder / "data")
    every_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    arguments = quiet(
        tmp_path,
        max_steps=20,
        learning_rate=0.0,  # nothing can get better
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        **every_step,
    )
    callbacks = [Recorder(), EarlyStoppingCallback(early_stopping_patience=2)]
    tuning = trainer(folder, arguments, eval_dataset=data["validation"].select(range(4)), callbacks=callbacks)
    tuning.data_collator = tuning.data_collator.evaluation()  # the same masks at each evaluation
    tuning.train()
    assert tuning.state.global_step == 3
    assert seen[0] == "epoch"
    losses = [entry for entry in seen if entry != "epoch"]
    assert len(losses) == 3
    assert losses == pytest.approx([losses[0]] * 3)


def test_pushes_to_the_hub_when_told_to(folder, tmp_path, monkeypatch):
    created, uploaded = [], []

    class Hub:
        def create_repo(self, name, **options):
            created.append((name, options["private"], options["exist_ok"]))
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, repo_id, folder_path, commit_message, **options):
            uploaded.append((repo_id, commit_message, {path.name for path in tmp_path.iterdir()}))

    monkeypatch.setattr(transformers.trainer, "hf_api", Hub)
    pushed = {"push_to_hub": True, "hub_model_id": "somebody/tuned", "hub_private_repo": True}
    tuning = trainer(folder, quiet(tmp_path, max_steps=1, hub_token="hf_none", **pushed))
    assert created == [("somebody/tuned", True, True)]
    tuning.train()
    assert uploaded == []
    tuning.save_model()
    ((repository, message, files),) = uploaded
    assert (repository, message) == ("somebody/tuned", "Model save")
    assert {"model.safetensors", "config.json", "generation_config.json", "README.md"} <= files


def test_gradients_do_not_depend_on_the_accumulation(folder, tmp_path):
    """`Trainer` divides by the number of batches; with equal batches that is the gradient of all of them."""
    norms = []
    for size, steps in ((8, 1), (4, 2)):
        arguments = quiet(
            tmp_path,
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            train_sampling_strategy="sequential",
        )
        model = JMNatForConditionalGeneration.from_pretrained(folder / "model", dropout=0.0)
        tuning = trainer(folder, arguments, model)
        # Eight times one sentence: every batch has as many masked tokens per sentence.
        tuning.train_dataset = tuning.train_dataset.select([0] * 8)
        tuning.train()
        norms.append([row["grad_norm"] for row in tuning.state.log_history if "grad_norm" in row])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


# LoRA ---------------------------------------------------------------------------------------------------------------


def lora_of(peft, folder):
    base = JMNatForConditionalGeneration.from_pretrained(folder / "model")
    torch.manual_seed(0)
    return peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]))


def lora_trainer(peft, folder, output, masks=None, **fields):
    data, tokenizer = load_prepared(folder / "data")
    options = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 0.03, "max_steps": 4, "warmup_steps": 1}
    arguments = JMNatTrainingArguments(str(output), use_cpu=True, disable_tqdm=True, **options | fields)
    collator = DataCollatorForJMNat(tokenizer, **(masks or {}))
    datasets = {"train_dataset": data["train"], "eval_dataset": data["validation"]}
    return JMNatTrainer(lora_of(peft, folder), arguments, collator, processing_class=tokenizer, **datasets)


def test_lora_resumes_from_its_checkpoints(folder, tmp_path):
    """Stopped and resumed, it equals an uninterrupted run; the best checkpoint is loaded, averaging is refused."""
    peft = pytest.importorskip("peft")
    weights = []
    for name, stops in (("whole", (4,)), ("parts", (2, 4))):
        for steps in stops:
            options = {"lr_scheduler_type": "constant", "ema_decay": 0.9, "max_steps": steps}
            run = lora_trainer(peft, folder, tmp_path / name, **options)
            run.train(resume_from_checkpoint=True)
        assert [path.name for path in list_checkpoints(tmp_path / name)] == ["checkpoint-2", "checkpoint-4"]
        weights.append({name: weight for name, weight in run.model.state_dict().items() if "lora_" in name})
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-5, atol=1e-6)
    best = {"eval_num_iterations": [1], "eval_strategy": "steps", "eval_steps": 2, "eval_sentences": 2}
    run = lora_trainer(peft, folder, tmp_path / "best", max_steps=2, keep_best=1, **best)
    run.train()
    trained = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    for name, weight in run.model.named_parameters():
        if "lora_" in name:
            weight.data.zero_()
    assert run.choose_final_weights()["final_model"] == "step 2"
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight, trained[name])
    with pytest.raises(ValueError, match="keep_best=2 must be 0 or 1 here: adapters are not averaged"):
        lora_trainer(peft, folder, tmp_path / "two", keep_best=2, **best)


@pytest.mark.parametrize("masks", [{"full_mask_ratio": 0.5, "glancing_ratio": 0.5}, {"correction_ratio": 0.5}])
def test_lora_trains_from_its_own_mistakes(folder, tmp_path, masks):
    peft = pytest.importorskip("peft")
    run = lora_trainer(peft, folder, tmp_path, masks, max_steps=2)
    assert run.train().global_step == 2


def test_lora_trains_merges_saves_and_generates(folder, tmp_path):
    peft = pytest.importorskip("peft")
    base = JMNatForConditionalGeneration.from_pretrained(folder / "model")
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    lora = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(base, lora)
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trainable
    assert all("lora_" in name and (".q_proj." in name or ".v_proj." in name) for name in trainable)
    for block in ("encoder.layers.0.self_attn", "decoder.layers.0.self_attn", "position_attn", "encoder_attn"):
        assert any(block in name for name in trainable), block

    arguments = quiet(tmp_path, max_steps=30, learning_rate=0.03, logging_steps=10)
    tuning = trainer(folder, arguments, model)
    tuning.train()
    losses = [row["loss"] for row in tuning.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    for name, weight in model.named_parameters():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(weight, before[plain]), name

    model.eval()
    _, tokenizer = load_prepared(folder / "data")
    inputs = tokenizer(["zwei und drei", "haus"], return_tensors="pt", padding=True)
    options = {"num_iterations": 3, "num_length_candidates": 2}
    adapted = model.generate(**inputs, **options)
    canvas = torch.full((2, 5), base.config.mask_token_id)
    logits = model(**inputs, decoder_input_ids=canvas).logits
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 100_000

    merged = model.merge_and_unload()
    assert isinstance(merged, JMNatForConditionalGeneration)
    assert torch.equal(merged.generate(**inputs, **options), adapted)
    merged.save_pretrained(tmp_path / "merged")
    fresh = JMNatForConditionalGeneration.from_pretrained(folder / "model")
    untuned = fresh(**inputs, decoder_input_ids=canvas).logits
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    for same in (merged, JMNatForConditionalGeneration.from_pretrained(tmp_path / "merged"), again):
        torch.testing.assert_close(same(**inputs, decoder_input_ids=canvas).logits, logits, rtol=1e-4, atol=1e-4)
    assert (untuned - logits).abs().max() > 0.1
