"""Many clients at the page of the Space, and many threads at one model."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.pipeline import JMNatTranslationPipeline
from tests.helpers.static_page import SHIPPED

pytest.importorskip("gradio", reason="the page needs gradio")

from tests.space import load  # noqa: E402


@pytest.mark.slow
def test_answers_are_those_of_one_after_the_other_and_memory_is_flat():
    figures = load.measure(requests=96, clients=16, huge=5, repeat_every=24)
    assert (figures["lost"], figures["other_text"]) == (0, 0)
    assert figures["refused"] > 0  # while others were translated
    assert max(figures["memory_mb"][-3:]) < figures["memory_mb"][1] + 200


@pytest.mark.slow
def test_more_than_can_wait_are_told_so():
    with load.running_page() as (_, port):
        texts = load.odd_texts(24)
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda number: load.send(port, texts[number % len(texts)] + " ja"), range(160)))
        refused = [answer for status, answer, _ in found if status != 200]
        assert 0 < len(refused) < 160
        assert all("Queue is full. Max size is 64" in answer for answer in refused)


def test_sixteen_threads_translate_with_one_model():
    texts = load.odd_texts(48, seed=1)
    pipe = JMNatTranslationPipeline(*load_translator(SHIPPED, device="cpu", dtype="float32"))
    expected = [pipe(text, num_iterations=2)[0]["translation_text"] for text in texts]
    together = threading.Barrier(16)

    def translate(first: int) -> list[str]:
        together.wait()
        return [pipe(text, num_iterations=2)[0]["translation_text"] for text in texts[first::16]]

    with ThreadPoolExecutor(16) as pool:
        for first, translations in enumerate(pool.map(translate, range(16))):
            assert translations == expected[first::16]
