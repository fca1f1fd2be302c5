"""A tiny vocabulary and random models whose translations depend on the source, for tests that decode whole files."""

import importlib.util
import sys
from pathlib import Path

import torch

from modeling_jmnat import JMNatConfig, JMNatForConditionalGeneration
from modeling_jmnat.tokenization_jmnat import train_joint_tokenizer
from tests.helpers.teacher_samples import TINY, random_lines, random_teacher, rarely_write_bytes

SCRIPTS = Path(__file__).resolve().parents[2] / "run_scripts"


def tiny_tokenizer(vocab_size=340):
    return train_joint_tokenizer(random_lines(200, seed=5), vocab_size=vocab_size)


def tiny_student(tokenizer, seed=0, **fields):
    """Random weights with strong cross-attention and length embeddings, so that text and length follow the source."""
    torch.manual_seed(seed)
    config = JMNatConfig(**{**TINY, "vocab_size": len(tokenizer), "max_target_length": 20, **fields})
    model = JMNatForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("encoder_attn.q_proj.weight", "encoder_attn.out_proj.weight", "embed_lengths.weight")):
                parameter *= 4
    rarely_write_bytes(model, tokenizer)
    return model


def save_translators(folder):
    """A student and a teacher with one tokenizer, in `folder / "student"` and `folder / "teacher"`."""
    tokenizer = tiny_tokenizer()
    for name, model in (("student", tiny_student(tokenizer)), ("teacher", random_teacher(tokenizer))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def command_line(options):
    """Options by name as a command takes them."""
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


def load_script(name):
    """The module whose `main` the command `run_scripts/NAME.py` calls, to run it in this process."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", SCRIPTS / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return sys.modules[script.main.__module__]
