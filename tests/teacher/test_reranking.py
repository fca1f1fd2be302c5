import pytest
import torch
from transformers import MarianConfig, MarianMTModel, NllbTokenizer, PreTrainedTokenizerFast

from modeling_jmnat import losses_jmnat
from modeling_jmnat.losses_jmnat import ModelReranker
from modeling_jmnat.teacher.reranking import TextReranker, load_reranker
from modeling_jmnat.tokenization_jmnat import train_joint_tokenizer
from modeling_jmnat.utils.id_batches import pad_batch
from tests.helpers.teacher_samples import TINY, random_lines, random_teacher
from tests.helpers.translation_samples import tiny_student

PAD = 1


@pytest.fixture(scope="module")
def tokenizer():
    return train_joint_tokenizer(random_lines(200, seed=5), vocab_size=340)


@pytest.fixture(scope="module")
def other_tokenizer():
    """Another vocabulary, other special ids, a plain class."""
    ours = train_joint_tokenizer(random_lines(200, seed=6), vocab_size=360)
    return PreTrainedTokenizerFast(
        tokenizer_object=ours.backend_tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def slow_score(model, source, candidate):
    """Token by token, one row, no padding: mean of log p(candidate_t | candidate_<t, source)."""
    start = model.generation_config.decoder_start_token_id
    prefix, total = [start], 0.0
    for token in candidate:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([prefix])).logits[0, -1]
        total += logits.double().log_softmax(-1)[token].item()
        prefix.append(token)
    return total / len(candidate)


SOURCES = [[7, 8, 9, 10, 2], [11, 12, 2]]
CANDIDATES = [[20, 21, 22, 2], [20, 2], [23, 24, 25, 26, 27, 2], [28, 2], [29, 30, 2], [31, 2]]


@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize("max_logits", [2**27, 340 * 6 * 2, 1])
def test_scores_equal_a_slow_loop(tokenizer, monkeypatch, normalize_before, max_logits):
    monkeypatch.setattr(losses_jmnat, "MAX_LOGITS", max_logits)
    model = random_teacher(tokenizer, normalize_before)
    input_ids, attention_mask = pad_batch(SOURCES, PAD)
    candidate_ids, _ = pad_batch(CANDIDATES, PAD)
    found = ModelReranker(model, PAD).score(input_ids, attention_mask, candidate_ids)
    expected = [slow_score(model, SOURCES[row // 3], candidate) for row, candidate in enumerate(CANDIDATES)]
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_one_candidate_a_sentence(tokenizer):
    model = random_teacher(tokenizer)
    input_ids, attention_mask = pad_batch(SOURCES, PAD)
    repeated = input_ids.repeat_interleave(3, 0), attention_mask.repeat_interleave(3, 0)
    candidate_ids, _ = pad_batch(CANDIDATES, PAD)
    once = ModelReranker(model, PAD).score(input_ids, attention_mask, candidate_ids)
    assert torch.allclose(once, ModelReranker(model, PAD).score(*repeated, candidate_ids), atol=1e-6)


def test_candidate_without_tokens_is_the_worst(tokenizer):
    scorer = ModelReranker(random_teacher(tokenizer), PAD)
    scores = scorer.score(*pad_batch(SOURCES[:1], PAD), torch.tensor([[PAD, PAD], [9, 2]]))
    assert scores[0] == float("-inf")
    assert torch.isfinite(scores[1])


def test_rows_that_do_not_fit_the_sources_are_refused(tokenizer):
    with pytest.raises(ValueError, match="candidate_ids has 3 rows"):
        ModelReranker(random_teacher(tokenizer), PAD).score(*pad_batch(SOURCES, PAD), torch.full((3, 2), 9))


def test_text_reranker_scores_text_in_its_own_tokens(tokenizer, other_tokenizer):
    torch.manual_seed(2)
    sizes = {name: value for name, value in TINY.items() if name != "max_target_length"}
    config = MarianConfig(
        vocab_size=len(other_tokenizer), pad_token_id=1, eos_token_id=2, decoder_start_token_id=1, **sizes
    )
    model = MarianMTModel(config).eval()
    sources, candidates = random_lines(2, seed=1), random_lines(4, seed=2)
    input_ids, attention_mask = pad_batch(tokenizer(sources)["input_ids"], PAD)
    candidate_ids, _ = pad_batch(tokenizer(candidates)["input_ids"], PAD)
    found = TextReranker(model, other_tokenizer, tokenizer).score(input_ids, attention_mask, candidate_ids)
    assert found.shape == (4,)
    for row, candidate in enumerate(candidates):
        source = other_tokenizer(sources[row // 2])["input_ids"]
        assert found[row].item() == pytest.approx(
            slow_score(model, source, other_tokenizer(candidate)["input_ids"]), abs=1e-4
        )


def test_text_reranker_reads_the_beginning_of_texts_that_are_too_long(tokenizer, other_tokenizer):
    """Marian's positions end somewhere."""
    sizes = {name: value for name, value in TINY.items() if name != "max_target_length"}
    config = MarianConfig(
        vocab_size=len(other_tokenizer), pad_token_id=1, eos_token_id=2, decoder_start_token_id=1, **sizes
    )
    reranker = TextReranker(MarianMTModel(config).eval(), other_tokenizer, tokenizer)
    source, candidates = "ban der " * 60, ["gis " * 100, "gis " * 99 + "lux", "lux " * 100]
    encoded = [pad_batch(tokenizer(texts)["input_ids"], PAD) for texts in ([source], candidates)]
    scores = reranker.score(*encoded[0], encoded[1][0]).tolist()
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert abs(scores[0] - scores[2]) > 1e-3


def test_a_multilingual_reranker_needs_its_languages(tokenizer, tmp_path):
    """NLLB's tokenizer would take English for the target, M2M100's would fail."""
    letters = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    own = NllbTokenizer(vocab={token: index for index, token in enumerate(letters)}, merges=[])
    random_teacher(own).save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is multilingual and would score text as English: set src_lang and tgt_lang"):
        load_reranker(tmp_path, tokenizer)
    own = NllbTokenizer.from_pretrained(tmp_path, src_lang="deu_Latn", tgt_lang="fra_Latn")
    own.save_pretrained(tmp_path)
    reranker = load_reranker(tmp_path, tokenizer)
    ids = reranker.tokenizer(text_target="a")["input_ids"]
    assert ids[0] == own.convert_tokens_to_ids("fra_Latn")


def test_text_reranker_with_the_students_tokenizer_changes_nothing(tokenizer):
    model = random_teacher(tokenizer)
    input_ids, attention_mask = pad_batch(tokenizer(random_lines(2, seed=1))["input_ids"], PAD)
    candidate_ids, _ = pad_batch(tokenizer(random_lines(6, seed=2))["input_ids"], PAD)
    direct = ModelReranker(model, PAD).score(input_ids, attention_mask, candidate_ids)
    through_text = TextReranker(model, tokenizer, tokenizer).score(input_ids, attention_mask, candidate_ids)
    assert torch.allclose(direct, through_text, atol=1e-5)


def test_load_reranker_wraps_models_with_another_tokenizer(tokenizer, other_tokenizer, tmp_path):
    random_teacher(tokenizer).save_pretrained(tmp_path / "same")
    tokenizer.save_pretrained(tmp_path / "same")
    random_teacher(other_tokenizer).save_pretrained(tmp_path / "other")
    other_tokenizer.save_pretrained(tmp_path / "other")
    assert not hasattr(load_reranker(tmp_path / "same", tokenizer), "score")
    assert isinstance(load_reranker(tmp_path / "other", tokenizer), TextReranker)


def test_a_student_is_refused_as_reranker(tokenizer, tmp_path):
    tiny_student(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} is a non-autoregressive model"):
        load_reranker(tmp_path, tokenizer)


@pytest.mark.parametrize("normalize_before", [True, False])
def test_generate_wraps_a_plain_model(tokenizer, normalize_before):
    teacher, student = random_teacher(tokenizer, normalize_before), tiny_student(tokenizer)

    class Scorer:
        def score(self, input_ids, attention_mask, candidate_ids):
            assert len(candidate_ids) == 3 * len(input_ids)
            return ModelReranker(teacher, PAD).score(input_ids, attention_mask, candidate_ids)

    input_ids, attention_mask = pad_batch(tokenizer(random_lines(6, seed=1))["input_ids"], PAD)
    options = {"num_iterations": 2, "num_length_candidates": 3, "return_dict_in_generate": True}
    plain, scored, alone = (
        student.generate(input_ids, attention_mask=attention_mask, reranker=reranker, **options)
        for reranker in (teacher, Scorer(), None)
    )
    assert torch.equal(plain.sequences, scored.sequences)
    assert torch.allclose(plain.sequences_scores, scored.sequences_scores, atol=1e-5)
    assert (plain.best_candidates != alone.best_candidates).any()
    expected = ModelReranker(teacher, PAD).score(input_ids, attention_mask, plain.sequences)
    assert torch.allclose(plain.sequences_scores, expected, atol=1e-5)
