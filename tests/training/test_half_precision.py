"""bf16 and fp16 on real text: every loss, every gradient that is applied and every weight stays finite.

A few steps by default; the figures of hub_card/docs/many-devices.md are those of

    JMNAT_HALF_PRECISION_STEPS=1000 python -m pytest -s tests/training/test_half_precision.py
"""

import gzip
import itertools
import os
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from modeling_jmnat import (
    DataCollatorForJMNat,
    JMNatConfig,
    JMNatForConditionalGeneration,
    JMNatTrainer,
    JMNatTrainingArguments,
)
from modeling_jmnat.data.preparation import PreparationArguments, load_prepared, prepare
from modeling_jmnat.utils.finite import not_finite

pytestmark = pytest.mark.usefixtures("one_thread")

CORPUS = Path(__file__).resolve().parents[2] / "run_scripts" / "demo_data" / "libreoffice-help"
STEPS = int(os.environ.get("JMNAT_HALF_PRECISION_STEPS", "8"))
SIZES = {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "normalize_before": True}
SIZES |= {f"{half}_{name}": 2 for half in ("encoder", "decoder") for name in ("layers", "attention_heads")}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """(data set, tokenizer) of software help"""
    folder, files = tmp_path_factory.mktemp("text"), {}
    for split, name, count in (("train", "train", 2000), ("valid", "validation", 100)):
        for language, side in (("de", "source"), ("en", "target")):
            with gzip.open(CORPUS / f"{split}.{language}.gz", "rt", encoding="utf-8") as lines:
                (folder / f"{name}.{side}").write_text("".join(itertools.islice(lines, count)), encoding="utf-8")
            files[f"{name}_{side}"] = str(folder / f"{name}.{side}")
    prepare(PreparationArguments(output_dir=str(folder / "data"), vocab_size=800, **files))
    return load_prepared(folder / "data")


class Watch(TrainerCallback):
    """Records the losses and gradients of each step."""

    def __init__(self):
        self.norms, self.losses, self.types = [], [], set()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "grad_norm" in logs:
            self.norms.append(logs["grad_norm"])
            self.losses.append(logs["loss"])


def train(text, output_dir, precision):
    data, tokenizer = text
    settings = {"max_steps": STEPS, "max_tokens": 256, "learning_rate": 2e-3, "warmup_steps": 100, "logging_steps": 1}
    settings |= {"use_cpu": True, "disable_tqdm": True, "report_to": [], "save_strategy": "no", "seed": 3}
    arguments = JMNatTrainingArguments(str(output_dir), **settings, bf16=precision != "no")
    torch.manual_seed(0)
    watch = Watch()
    trainer = JMNatTrainer(
        JMNatForConditionalGeneration(JMNatConfig.for_tokenizer(tokenizer, **SIZES)),
        arguments,
        DataCollatorForJMNat(tokenizer, seed=3),
        processing_class=tokenizer,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        callbacks=[watch],
    )
    if precision == "fp16":  # which Accelerate has for GPUs alone, PyTorch for CPUs as well
        trainer.accelerator.state._mixed_precision = "fp16"
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=100)
    project = trainer.model.lm_head.register_forward_hook(lambda *call: watch.types.add(call[2].dtype))
    trainer.train()
    project.remove()
    assert not_finite(trainer.model) is None
    return watch, trainer.evaluate()["eval_loss"]


def test_half_precision_stays_finite(text, tmp_path):
    exact, expected = train(text, tmp_path, "no")
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        watch, loss = train(text, tmp_path, precision)
        assert watch.types == {dtype}
        norms = torch.tensor(watch.norms)
        assert len(norms) == len(watch.losses) == STEPS
        assert torch.tensor(watch.losses).isfinite().all()
        skipped = int((~norms.isfinite()).sum())
        # The scale of the loss is lowered until nothing overflows, and tried again every 100 steps.
        assert skipped <= (5 + STEPS // 50 if precision == "fp16" else 0)
        print(f"{precision}: {STEPS} steps, {skipped} skipped, validation loss {loss:.4f} (float32: {expected:.4f})")
        assert loss == pytest.approx(expected, rel=0.02)
        assert watch.losses[0] == pytest.approx(exact.losses[0], rel=0.01)


def test_fp16_on_a_cpu_is_refused(tmp_path):
    """Accelerate would silently train in float32."""
    with pytest.raises(ValueError, match="fp16=True is not possible on a CPU, .* choose bf16"):
        JMNatTrainingArguments(str(tmp_path), fp16=True, use_cpu=True)
