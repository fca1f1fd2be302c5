"""A student with an autoregressive model's weights computes what that model computes."""

import pytest
import torch
from torch import nn
from transformers import M2M100Config, M2M100ForConditionalGeneration, MarianConfig, MarianMTModel

from modeling_jmnat import JMNatConfig, JMNatForConditionalGeneration
from modeling_jmnat.training.initial_weights import copy_teacher_weights, output_bias_of, tables_of
from tests.helpers.random_models import pad, random_sources

SIZES = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 40,
    "scale_embedding": True,
    "activation_function": "relu",
    "max_position_embeddings": 160,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
TEACHERS = {
    "marian": (MarianConfig, MarianMTModel, False),
    "m2m100": (M2M100Config, M2M100ForConditionalGeneration, True),
}
LENGTHS = (3, 17, 150)  # the longest tells apart tables whose frequencies are rounded otherwise


@torch.no_grad()
def random_teacher(kind, **fields):
    """In evaluation mode; every bias, norm and the output's bias have values that a copy must not lose."""
    torch.manual_seed(3)
    config_class, model_class, _ = TEACHERS[kind]
    teacher = model_class(config_class(**{**SIZES, "decoder_start_token_id": 2, "init_std": 0.2, **fields})).eval()
    for name, parameter in teacher.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.1)
        elif "layer_norm" in name:
            parameter.uniform_(0.7, 1.3)
    return teacher


def student_of(teacher, **fields):
    names = {*SIZES, "pad_token_id"}
    config = {name: getattr(teacher.config, name) for name in names}
    normalize_before = getattr(teacher.get_encoder(), "layer_norm", None) is not None
    config |= {"max_target_length": 160, "normalize_before": normalize_before}
    return JMNatForConditionalGeneration(JMNatConfig(**{**config, **fields})).eval()


@torch.no_grad()
def encoder_states(student, input_ids, attention_mask):
    """Without `[LEN]`, which no token may attend to."""

    def hide_length_token(layer, args):
        hidden_states, mask = args
        mask = mask.clone()
        mask[..., 0] = torch.finfo(mask.dtype).min
        return hidden_states, mask

    hooks = [layer.register_forward_pre_hook(hide_length_token) for layer in student.get_encoder().layers]
    states = student.get_encoder()(input_ids, attention_mask).last_hidden_state
    for hook in hooks:
        hook.remove()
    return states


def batch_for(teacher):
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(5, teacher.config.vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]
    return pad(rows, value=teacher.config.pad_token_id)


def largest_difference(student, teacher):
    input_ids, attention_mask = batch_for(teacher)
    with torch.no_grad():
        expected = teacher.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    actual = encoder_states(student, input_ids, attention_mask)
    return (actual - expected)[attention_mask.bool()].abs().max().item()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("marian", {}),
        ("marian", {"pad_token_id": 60, "activation_function": "swish", "scale_embedding": False}),
        ("m2m100", {}),
        ("m2m100", {"pad_token_id": 3, "activation_function": "gelu"}),
    ],
)
def test_the_encoder_computes_the_teachers_states(kind, fields):
    teacher = random_teacher(kind, **fields)
    student = student_of(teacher)
    report = copy_teacher_weights(student, teacher)
    assert all("embed_lengths" in name or "position_attn" in name for name in report.left)
    assert largest_difference(student, teacher) < 1e-5
    right = student.get_encoder().position_offset
    student.config.position_offset = right + 2
    assert largest_difference(student, teacher) > 1e-2


@pytest.mark.parametrize("shared", [False, True])
def test_each_of_several_tables_is_the_teachers(shared):
    """Encoder, decoder and output projection with embeddings of their own, or only the output projection."""
    teacher = random_teacher("marian", tie_word_embeddings=False, share_encoder_decoder_embeddings=shared)
    assert tables_of(teacher) == {"output_bias": False, "tie_word_embeddings": False}
    student = student_of(teacher, tie_word_embeddings=False)
    copy_teacher_weights(student, teacher)
    assert largest_difference(student, teacher) < 1e-5
    for ours, theirs in (
        (student.get_decoder().embed_tokens, teacher.get_decoder().embed_tokens),
        (student.lm_head, teacher.lm_head),
    ):
        assert torch.equal(ours.weight, theirs.weight)
    with pytest.raises(ValueError, match="tie_word_embeddings is False in the teacher and True here"):
        copy_teacher_weights(student_of(teacher), teacher)


@pytest.mark.parametrize("kind", TEACHERS)
def test_blocks_of_a_decoder_layer_are_the_teachers(kind):
    """Cross-attention and feed-forward, with their norms and residuals, for the same queries."""
    teacher = random_teacher(kind)
    student = student_of(teacher)
    copy_teacher_weights(student, teacher)
    states, queries = torch.randn(2, 7, 32), torch.randn(2, 5, 32)
    for ours, theirs in zip(student.get_decoder().layers, teacher.get_decoder().layers, strict=True):
        with torch.no_grad():
            expected = theirs.encoder_attn(queries, key_value_states=states)[0]
            torch.testing.assert_close(ours.encoder_attn(queries, None, states)[0], expected, rtol=0, atol=1e-5)
            expected = theirs.fc2(theirs.activation_fn(theirs.fc1(queries)))
            torch.testing.assert_close(ours.feed_forward(queries), expected, rtol=0, atol=1e-5)
            for name in ("encoder_attn_layer_norm", "final_layer_norm", "self_attn_layer_norm"):
                torch.testing.assert_close(getattr(ours, name)(queries), getattr(theirs, name)(queries))


@torch.no_grad()
def test_the_output_bias_is_the_teachers(tmp_path):
    teacher = random_teacher("marian")
    assert output_bias_of(teacher) is None  # zeros, as in every model that this package trains
    assert copy_teacher_weights(student_of(teacher, output_bias=True), teacher).left["lm_head.bias"]
    teacher.final_logits_bias.normal_()
    student = student_of(teacher, output_bias=True)
    assert "lm_head.bias" in copy_teacher_weights(student, teacher).copied
    states = torch.randn(3, 32)
    expected = teacher.lm_head(states) + teacher.final_logits_bias
    torch.testing.assert_close(student.lm_head(states), expected)
    student.save_pretrained(tmp_path)
    loaded = JMNatForConditionalGeneration.from_pretrained(tmp_path)
    assert (loaded.config.position_offset, loaded.config.output_bias) == (0, True)
    torch.testing.assert_close(loaded.lm_head(states), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_function": "gelu"}, "activation_function is relu in the teacher and gelu here"),
        ({"encoder_attention_heads": 2}, "encoder_attention_heads is 4 in the teacher and 2 here"),
        ({"scale_embedding": False}, "scale_embedding is True"),
        ({"normalize_before": True}, "normalize_before is False"),
        ({"position_offset": 2}, "position_offset=2 is not the teacher's, 0"),
    ],
)
def test_layers_that_would_compute_something_else_are_refused(fields, message):
    teacher = random_teacher("marian")
    with pytest.raises(ValueError, match=message):
        copy_teacher_weights(student_of(teacher, **fields), teacher)


@pytest.mark.parametrize("position_embedding_type", ["sinusoidal", "learned"])
def test_a_large_pad_id_adds_no_positions(position_embedding_type, monkeypatch):
    """Vocabularies of Marian put `<pad>` last: the sinusoids of one call are as many as its tokens."""
    made = []
    monkeypatch.setattr(
        "modeling_jmnat.modeling_jmnat.sinusoidal_positions",
        lambda count, dim, *args, **kwargs: made.append(count) or torch.zeros(count, dim),
    )
    fields = {name: value for name, value in SIZES.items() if name not in ("vocab_size", "pad_token_id")}
    fields |= {"vocab_size": 58101, "pad_token_id": 58100, "max_target_length": 100}
    offset = None if position_embedding_type == "sinusoidal" else 0
    config = JMNatConfig(**fields, position_embedding_type=position_embedding_type, position_offset=offset)
    model = JMNatForConditionalGeneration(config).eval()
    input_ids, attention_mask = pad(random_sources(model, 3), value=58100)
    model.generate(input_ids, attention_mask=attention_mask, num_iterations=2, num_length_candidates=2)
    if position_embedding_type == "sinusoidal":
        assert made
        assert max(made) <= config.max_target_length
    else:
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        assert sum(table.num_embeddings == config.max_position_embeddings for table in tables) == 1
        assert model.get_encoder().embed_positions.padding_idx is None
