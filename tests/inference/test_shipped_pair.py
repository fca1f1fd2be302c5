"""The teacher and the student in hub_card/multi30k_tiny, which allow measurements without training."""

from pathlib import Path

import torch

from modeling_jmnat import JMNatForConditionalGeneration, JMNatTokenizer
from modeling_jmnat.inference.loading import load_teacher
from modeling_jmnat.inference.translation import translate_lines
from modeling_jmnat.utils.fingerprints import tokenizer_fingerprint

PAIR = Path(__file__).resolve().parents[2] / "hub_card" / "multi30k_tiny"


def test_student_and_teacher_translate_a_caption_alike():
    teacher, tokenizer = load_teacher(PAIR / "teacher")
    student = JMNatForConditionalGeneration.from_pretrained(PAIR / "jmnat").eval()
    assert {parameter.dtype for parameter in [*teacher.parameters(), *student.parameters()]} == {torch.float32}
    caption = ["ein mann fährt mit dem fahrrad eine straße entlang."]
    (expected,) = translate_lines(teacher, tokenizer, caption, num_beams=5)
    (result,) = translate_lines(student, JMNatTokenizer.from_pretrained(PAIR / "jmnat"), caption)
    assert result.text == expected.text == "a man is riding a bicycle down a street."


def test_they_share_one_tokenizer():
    assert tokenizer_fingerprint(PAIR / "jmnat") == tokenizer_fingerprint(PAIR / "teacher")
