import json
import os
import runpy
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from modeling_jmnat import JMNatForConditionalGeneration
from modeling_jmnat.hub.fairseq_conversion import convert_fairseq_checkpoint, load_fairseq_model, read_checkpoint
from modeling_jmnat.utils.locks import folder_lock
from tests.helpers.fairseq_samples import (
    SPECIAL,
    fairseq_forward,
    fairseq_settings,
    fairseq_state,
    random_batch,
    save_checkpoint,
    write_dictionary,
)
from tests.helpers.random_models import CMLM, random_model

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(os.environ.get("JMNAT_FIXTURES", ROOT.parent / "shared" / "fixtures"))
needs_fixtures = pytest.mark.skipif(
    not (FIXTURES / "jmnat_fairseq").is_dir(), reason="the releases' own outputs are not here (JMNAT_FIXTURES)"
)
MASK_PREDICT = {**CMLM, "layer_norm_eps": 1e-12}
VARIANTS = {  # what the checkpoint is of: Mask-Predict or JM-NAT, and our configuration of it
    "jmnat": (False, {}),
    "jmnat_pre_norm": (False, {"normalize_before": True}),
    "jmnat_gelu": (False, {"activation_function": "gelu"}),
    "jmnat_gelu_tanh": (False, {"activation_function": "gelu_new", "normalize_before": True}),
    "jmnat_tanh": (False, {"activation_function": "tanh"}),
    "jmnat_no_positional": (False, {"positional_attention": False}),
    "jmnat_learned": (False, {"position_embedding_type": "learned", "vocab_size": 31}),
    "jmnat_wide": (False, {"d_model": 24, "encoder_attention_heads": 4, "decoder_layers": 3, "encoder_layers": 1}),
    "mask_predict": (True, MASK_PREDICT),
    "mask_predict_pre_norm": (True, {**MASK_PREDICT, "normalize_before": True}),
    "mask_predict_wide": (True, {**MASK_PREDICT, "d_model": 32, "encoder_layers": 3, "decoder_ffn_dim": 8}),
}


def words(vocab_size):
    return [f"w{number}" + ("@@" if number % 3 == 0 else "") for number in range(vocab_size - len(SPECIAL))]


class Sample:
    """Checkpoint and dictionaries of a random model in a folder."""

    def __init__(self, folder, mask_predict=False, seed=0, **overrides):
        self.folder, self.mask_predict = folder, mask_predict
        self.model = random_model(seed, **overrides)
        self.settings = fairseq_settings(self.model.config, mask_predict)
        self.state = fairseq_state(self.model, mask_predict)
        self.dictionary = write_dictionary(folder / "dict.txt", words(self.model.config.vocab_size))
        self.output = folder / "converted"

    def convert(self, settings=None, state=None, **options):
        """Write the checkpoint, with settings and tensors changed as told (None takes one away), and convert it."""
        self.change(settings, state)
        path = save_checkpoint(self.folder / "checkpoint.pt", self.settings, self.state)
        paths = {"source_dict": self.dictionary, "target_dict": self.dictionary, "output_dir": self.output}
        return convert_fairseq_checkpoint([path], **{**paths, **options})

    def change(self, settings=None, state=None):
        for target, changes in ((vars(self.settings), settings), (self.state, state)):
            for name, value in (changes or {}).items():
                if value is None:
                    del target[name]
                else:
                    target[name] = value(target[name]) if callable(value) else value

    def load(self):
        return AutoModelForSeq2SeqLM.from_pretrained(self.output)


@pytest.fixture
def jmnat(tmp_path):
    return Sample(tmp_path)


@pytest.fixture
def mask_predict(tmp_path):
    return Sample(tmp_path, mask_predict=True, **MASK_PREDICT)


def assert_computes(model, settings, state, left_padding):
    """The model in float64 computes what the checkpoint computes, at every position that is not padding."""
    model = model.double()
    src, prev = random_batch(model.config.vocab_size, left_padding)
    encoded, length_log_probs, logits = fairseq_forward(settings, state, src, prev)
    with torch.no_grad():
        outputs = model(input_ids=src, decoder_input_ids=prev)
    close = {"atol": 1e-8, "rtol": 1e-8}
    torch.testing.assert_close(outputs.encoder_last_hidden_state[src != 1], encoded[src != 1], **close)
    ours = outputs.length_logits.log_softmax(-1)
    torch.testing.assert_close(ours[:, 1:], length_log_probs[:, 1:], **close)
    assert ours[:, 0].max() < -1e30  # a length of 0 is impossible
    torch.testing.assert_close(outputs.logits[prev != 1], logits[prev != 1], **close)


# ------------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_compute_what_the_checkpoint_computes(tmp_path, variant):
    mask_predict, overrides = VARIANTS[variant]
    sample = Sample(tmp_path, mask_predict, **overrides)
    figures = sample.convert()
    assert figures["release"] == ("Mask-Predict" if mask_predict else "JM-NAT")
    assert figures["parameters"] == sample.model.num_parameters()
    model = sample.load()
    for name, tensor in sample.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    changed = {"dropout": 0.25, "activation_dropout": 0.05, "label_smoothing": 0.1}
    if mask_predict:
        changed.update(encoder_loss_weight=0.0, ngram_loss_weight=0.0, init_std=0.02)
    expected = {**sample.model.config.to_dict(), **changed}
    for name in ("architectures", "dtype", "_name_or_path"):
        expected.pop(name, None)
    assert {name: model.config.to_dict()[name] for name in expected} == expected
    for left_padding in (False, True):
        assert_computes(model, sample.settings, sample.state, left_padding)


def test_half_precision_weights_become_single_precision(jmnat):
    jmnat.convert(state=dict.fromkeys(jmnat.state, torch.Tensor.half))
    model = jmnat.load()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_computes(model, jmnat.settings, jmnat.state, True)


def test_old_file_format_and_training_statistics_are_read(jmnat, monkeypatch):
    """fairseq keeps its meters in the file: objects of classes that are not installed here."""
    module = type(sys)("fairseq.meters")
    module.AverageMeter = type("AverageMeter", (), {"__module__": "fairseq.meters"})
    meter = module.AverageMeter()
    meter.avg, meter.count = 3.5, torch.tensor(2)
    monkeypatch.setitem(sys.modules, "fairseq", type(sys)("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.meters", module)
    checkpoint = {"args": jmnat.settings, "model": jmnat.state, "extra_state": {"train_meters": {"loss": meter}}}
    path = jmnat.folder / "old.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    monkeypatch.undo()
    settings, state = read_checkpoint(path)
    assert settings == jmnat.settings
    assert all(torch.equal(state[name], tensor) for name, tensor in jmnat.state.items())


def test_average_of_several_checkpoints(tmp_path):
    paths, states = [], []
    for seed in range(3):
        sample = Sample(tmp_path, seed=seed)
        states.append(sample.state)
        paths.append(save_checkpoint(tmp_path / f"{seed}.pt", sample.settings, sample.state))
    model, _ = load_fairseq_model(paths)
    mean = {name: sum(state[name].double() for state in states) / 3 for name in states[0]}
    assert_computes(model, sample.settings, {name: tensor.float() for name, tensor in mean.items()}, False)

    sample.change(state={"encoder.layers.0.fc1.bias": None})
    other = save_checkpoint(tmp_path / "other.pt", sample.settings, sample.state)
    with pytest.raises(ValueError, match=r"other.pt lacks the tensor encoder.layers.0.fc1.bias that .*0.pt has"):
        load_fairseq_model([paths[0], other])
    sample.state["encoder.layers.0.fc1.bias"] = states[0]["encoder.layers.0.fc1.bias"]
    sample.change(state={"encoder.layers.0.fc1.weight": torch.zeros(3, 3)})
    other = save_checkpoint(tmp_path / "other.pt", sample.settings, sample.state)
    with pytest.raises(ValueError, match=r"tensor encoder.layers.0.fc1.weight has shape \[3, 3\] in .*other.pt and"):
        load_fairseq_model([paths[0], other])
    sample.settings.encoder_attention_heads = 8
    other = save_checkpoint(tmp_path / "other.pt", sample.settings, states[1])
    with pytest.raises(ValueError, match="different settings: only checkpoints of one model can be averaged"):
        load_fairseq_model([paths[0], other])
    with pytest.raises(ValueError, match="0.pt is given twice"):
        load_fairseq_model([paths[0], paths[1], paths[0]])
    with pytest.raises(ValueError, match="at least one file"):
        load_fairseq_model([])


@pytest.mark.parametrize("told", [5, 2000])
def test_tables_decide_and_not_the_settings(mask_predict, told):
    mask_predict.convert(settings={"max_source_positions": told, "max_target_positions": told})
    model = mask_predict.load()
    assert (model.config.max_position_embeddings, model.config.max_target_length) == (40, 12)
    assert_computes(model, mask_predict.settings, mask_predict.state, False)


def test_decoder_with_fewer_positions_than_lengths(mask_predict):
    """The release fails beyond its table; here such lengths are not tried, and everything else is equal."""
    mask_predict.convert(state={"decoder.embed_positions.weight": lambda table: table[: 10 + 2]})
    model = mask_predict.load()
    assert model.config.max_target_length == 12
    assert model.generation_config.max_length == 10
    assert model.model.decoder.embed_positions.weight[12:].eq(0).all()
    src, _ = random_batch(model.config.vocab_size, False)
    lengths = model.generate(src, num_length_candidates=10, return_dict_in_generate=True).candidate_lengths
    assert lengths.amax(dim=1).tolist() == [10] * 4
    assert_computes(model, mask_predict.settings, mask_predict.state, False)


def test_decoder_with_more_positions_than_lengths(mask_predict):
    mask_predict.convert(state={"decoder.embed_positions.weight": lambda table: torch.cat([table, table])})
    assert torch.equal(
        mask_predict.load().model.decoder.embed_positions.weight,
        mask_predict.state["decoder.embed_positions.weight"][:14],
    )


def test_decoding_options_are_the_release_s(tmp_path):
    options = {"num_iterations": 10, "remask_adjacent": False, "suppress_tokens": [], "early_stop": False}
    both = {
        False: {**options, "num_length_candidates": 4, "length_normalization": 1.1, "length_offset": 5.0},
        True: {**options, "num_length_candidates": 5, "length_normalization": 1.0, "length_offset": 0.0},
    }
    for mask_predict, expected in both.items():
        folder = tmp_path / str(mask_predict)
        folder.mkdir()
        sample = Sample(folder, mask_predict, **(MASK_PREDICT if mask_predict else {}))
        sample.convert()
        saved = sample.load().generation_config
        assert {name: getattr(saved, name) for name in expected} == expected


def test_score_of_candidates_is_the_release_s(jmnat):
    """fairseq's penalty ((5 + T) / 6)**1.1 and ours choose alike and differ by one constant."""
    jmnat.convert()
    model = jmnat.load()
    src, _ = random_batch(model.config.vocab_size, True)
    output = model.generate(src, num_length_candidates=8, num_return_sequences=8, output_history=True)
    log_probs = output.history[-1].log_probs.sum(dim=-1)  # (B, C)
    theirs = log_probs / ((5 + output.candidate_lengths) / 6) ** 1.1
    scores, order = theirs.sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(output.sequences_scores.view_as(scores) * 6**1.1, scores)
    mean = (log_probs / output.candidate_lengths).argsort(dim=1, descending=True, stable=True)
    assert not torch.equal(mean, order)  # the mean would choose otherwise


# ------------------------------------------------------------------------------------------------------------- errors

SETTINGS_ERRORS = {
    "no_heads": ({"encoder_attention_heads": None}, "settings lack encoder_attention_heads"),
    "odd_heads": ({"decoder_attention_heads": 3}, "d_model=16 is not a multiple of decoder_attention_heads=3"),
    "other_architecture": ({"arch": "transformer_iwslt_de_en"}, "has the architecture 'transformer_iwslt_de_en'"),
    "other_release": ({"arch": "bert_transformer_seq2seq"}, "has the architecture 'bert_transformer_seq2seq'"),
    "activation": ({"activation_fn": "swish"}, "activation_fn='swish' is not one of relu, gelu"),
    "widths": ({"decoder_embed_dim": 32}, "encoder_embed_dim=16 and decoder_embed_dim=32 differ"),
    "norms": ({"decoder_normalize_before": True}, "encoder_normalize_before=False and decoder_normalize_before=True"),
    "no_positions": ({"no_token_positional_embeddings": True}, "no_token_positional_embeddings=True"),
    "pre_norm": (
        {"encoder_normalize_before": True, "decoder_normalize_before": True},
        "lacks the tensor encoder.layer_norm.weight",
    ),
    "more_layers": ({"encoder_layers": 3}, "lacks the tensor encoder.layers.2.self_attn.in_proj_weight"),
    "fewer_layers": ({"decoder_layers": 1}, "holds the tensor decoder.layers.1.self_attn.in_proj_weight"),
    "ffn": (
        {"encoder_ffn_embed_dim": 25},
        r"tensor encoder.layers.0.fc1.weight has shape \[24, 16\], but its settings require \[25, 16\]",
    ),
    "learned": (
        {"encoder_learned_pos": True, "decoder_learned_pos": True},
        "lacks the tensor encoder.embed_positions",
    ),
}
TENSOR_ERRORS = {
    "missing": ({"decoder.layers.1.fc2.bias": None}, "lacks the tensor decoder.layers.1.fc2.bias"),
    "no_lengths": ({"encoder.embed_lengths.weight": None}, "lacks the tensor encoder.embed_lengths.weight"),
    "no_embedding": ({"encoder.embed_tokens.weight": None}, "lacks the tensor encoder.embed_tokens.weight"),
    "no_target_embedding": ({"decoder.embed_tokens.weight": None}, "lacks the tensor decoder.embed_tokens.weight"),
    "shape": (
        {"encoder.layers.0.self_attn.in_proj_bias": torch.zeros(7)},
        r"tensor encoder.layers.0.self_attn.in_proj_bias has shape \[7\], but its settings require \[48\]",
    ),
    "lengths_shape": ({"encoder.embed_lengths.weight": torch.zeros(7)}, r"embed_lengths.weight has shape \(7,\)"),
    "narrow_lengths": (
        {"encoder.embed_lengths.weight": torch.zeros(13, 8)},
        r"encoder.embed_lengths.weight has shape \[13, 8\], but its settings require \[13, 16\]",
    ),
    "separate": (
        {"decoder.embed_tokens.weight": lambda table: table + 1},
        "decoder.embed_tokens.weight differs from encoder.embed_tokens.weight: only --share-all-embeddings",
    ),
    "separate_sizes": ({"decoder.embed_tokens.weight": torch.zeros(9, 16)}, "only --share-all-embeddings"),
    "no_tensor": ({"encoder.version": 3.0}, "'encoder.version' in 'model' is not a tensor"),
}


def assert_refused(sample, message, **options):
    with pytest.raises(ValueError, match=message) as raised:
        sample.convert(**options)
    assert "\n" not in str(raised.value)
    assert not sample.output.exists()
    assert not list(sample.folder.glob(".*"))  # nothing half-written


@pytest.mark.parametrize("name", SETTINGS_ERRORS)
def test_settings_that_do_not_fit_are_named(jmnat, name):
    settings, message = SETTINGS_ERRORS[name]
    assert_refused(jmnat, message, settings=settings)


@pytest.mark.parametrize("name", TENSOR_ERRORS)
def test_tensors_that_do_not_fit_are_named(jmnat, name):
    state, message = TENSOR_ERRORS[name]
    assert_refused(jmnat, message, state=state)


def test_weights_that_are_not_finite_are_refused(jmnat):
    jmnat.state["encoder.layers.0.fc1.bias"][2] = float("nan")
    assert_refused(jmnat, r"are not finite \(model\.encoder\.layers\.0\.fc1\.bias\)")


def test_superfluous_tensors_are_named(jmnat):
    jmnat.state["decoder.project_out_dim.weight"] = torch.zeros(16, 16)
    assert_refused(jmnat, "holds the tensor decoder.project_out_dim.weight, which does not fit its settings")
    jmnat.change(state={"decoder.project_out_dim.weight": None})
    jmnat.state["decoder.embed_out"] = torch.zeros_like(jmnat.state["encoder.embed_tokens.weight"])
    assert_refused(jmnat, "decoder.embed_out differs from encoder.embed_tokens.weight")


def test_dictionaries_that_do_not_fit_are_refused(jmnat):
    shorter = write_dictionary(jmnat.folder / "shorter.txt", words(22))
    message = r"shorter.txt has 22 symbols .* but encoder.embed_tokens.weight has 23 rows"
    assert_refused(jmnat, message, source_dict=shorter, target_dict=shorter)
    assert_refused(jmnat, r"dict.txt and .*shorter.txt differ \(23 and 22 symbols\)", target_dict=shorter)
    other = write_dictionary(jmnat.folder / "other.txt", [*words(22), "zzz"])
    assert_refused(jmnat, r"differ \('w17' and 'zzz' as symbol 22\)", target_dict=other)
    for line, message in (
        ("word", "line 1 must be a symbol"),
        ("w x", "line 1 must be a symbol"),
        ("</s> 3", "repeats the symbol"),
    ):
        other.write_text(f"{line}\n")
        assert_refused(jmnat, message, source_dict=other, target_dict=other)
    with pytest.raises(OSError, match="nowhere"):
        jmnat.convert(source_dict=jmnat.folder / "nowhere.txt")


def test_folder_with_content_is_kept(jmnat):
    jmnat.output.mkdir()
    jmnat.convert()  # an empty one is filled
    before = {path: path.read_bytes() for path in jmnat.output.iterdir()}
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        jmnat.convert()
    assert {path: path.read_bytes() for path in jmnat.output.iterdir()} == before


def test_what_is_written_while_converting_is_kept(jmnat, monkeypatch):
    save = JMNatForConditionalGeneration.save_pretrained

    def in_the_midst(model, folder):
        with pytest.raises(ValueError, match="in use"), folder_lock(jmnat.output, "output_dir"):  # as a training does
            pass
        jmnat.output.mkdir()
        (jmnat.output / "results.json").write_text("of another program")
        save(model, folder)

    monkeypatch.setattr(JMNatForConditionalGeneration, "save_pretrained", in_the_midst)
    with pytest.raises(FileExistsError, match=f"^{jmnat.output} has been written by another process"):
        jmnat.convert()
    assert [path.name for path in jmnat.output.iterdir()] == ["results.json"]


def test_a_second_process_is_refused(jmnat):
    message = f"output_dir={jmnat.output} is in use by another process: wait until it ends or choose another folder"
    with folder_lock(jmnat.output, "output_dir", beside=True), pytest.raises(ValueError, match=message):
        jmnat.convert()
    assert not jmnat.output.exists()
    jmnat.convert()
    assert not list(jmnat.folder.glob(".*"))


class Dangerous:
    def __reduce__(self):
        return os.system, ("touch executed",)


class Harmless:
    pass


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Dangerous(), "posix.system|nt.system"),
        (Harmless(), "tests.hub.test_fairseq_conversion.Harmless"),
        (eval, r"eval|builtins\.eval"),
    ],
)
def test_files_with_code_are_refused(jmnat, monkeypatch, value, name, zipped):
    monkeypatch.chdir(jmnat.folder)
    path = jmnat.folder / "code.pt"
    checkpoint = {"args": jmnat.settings, "model": jmnat.state, "extra_state": {"value": value}}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"code.pt is refused: it holds ({name}), but only tensors, plain values"):
        read_checkpoint(path)
    assert not Path("executed").exists()


def test_files_other_than_checkpoints_are_refused(jmnat):
    path = jmnat.folder / "file.pt"
    whole = save_checkpoint(path, jmnat.settings, jmnat.state).read_bytes()
    for content in (b"", b"text", whole[:3000], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="file.pt is not a complete checkpoint of PyTorch"):
            read_checkpoint(path)
    for content, message in (
        ([1], "is a list, not a dictionary"),
        ({"model": jmnat.state}, "its 'args' is not an argparse.Namespace"),
        ({"args": vars(jmnat.settings), "model": jmnat.state}, "its 'args' is not an argparse.Namespace"),
        ({"args": Namespace(), "model": None}, "its 'model' is not a dictionary of tensors"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            read_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(jmnat.folder / "nowhere.pt")


def test_ids_are_those_of_the_dictionary(jmnat):
    jmnat.convert()
    tokenizer = AutoTokenizer.from_pretrained(jmnat.output)
    symbols = SPECIAL + words(23)
    assert tokenizer.get_vocab() == {symbol: number for number, symbol in enumerate(symbols)}
    assert len(tokenizer) == 23
    assert tokenizer.all_special_ids == [0, 2, 3, 1, 4]
    assert tokenizer.model_max_length == 12
    batch = tokenizer(["w0@@  w1\tw2", "nowhere"], text_target=["w3@@ w3@@ w4 w5", "w1"])
    assert batch["input_ids"] == [[5, 6, 7, 2], [3, 2]]
    assert batch["labels"] == [[8, 8, 9, 10, 2], [6, 2]]
    assert tokenizer.decode([5, 6, 7, 8, 2], skip_special_tokens=True) == "w0w1 w2 w3"
    assert tokenizer.decode([8, 8, 9, 10, 2, 1], skip_special_tokens=True) == "w3w3w4 w5"
    assert tokenizer.batch_decode([[2], []], skip_special_tokens=True) == ["", ""]


# ------------------------------------------------------------------------------------------------------------ command


def test_command(jmnat, capsys):
    script = ROOT / "run_scripts" / "convert_fairseq_checkpoint.py"
    main = runpy.run_path(str(script))["main"]
    options = ["--source_dict", str(jmnat.dictionary), "--target_dict", str(jmnat.dictionary)]
    options += ["--output_dir", str(jmnat.output), "--checkpoint"]
    with pytest.raises(SystemExit, match="1"):
        main([*options, "nowhere.pt"])
    error = capsys.readouterr().err
    assert "nowhere.pt" in error
    assert error.count("\n") == 1
    paths = [str(save_checkpoint(jmnat.folder / name, jmnat.settings, jmnat.state)) for name in ("1.pt", "2.pt")]
    main([*options, *paths])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "release": "JM-NAT",
        "checkpoints": 2,
        "parameters": jmnat.model.num_parameters(),
        "vocab_size": 23,
        "output": str(jmnat.output),
    }
    assert_computes(jmnat.load(), jmnat.settings, jmnat.state, True)


# ------------------------------------------------------------------------------------------- the releases' own outputs


def convert_fixture(name, folder):
    source = FIXTURES / name
    convert_fairseq_checkpoint(
        [source / "checkpoint.pt"], source / "dict.de.txt", source / "dict.en.txt", folder / "model"
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model")
    return model, load_file(source / "expected.safetensors")


def differences(model, expected):
    """Largest difference of each output at positions that are not padding."""
    src, prev = expected["src_tokens"], expected["prev_output_tokens"]
    with torch.no_grad():
        outputs = model(input_ids=src, decoder_input_ids=prev)
        pairs = {
            "encoder_hidden": (outputs.encoder_last_hidden_state, src != 1),
            "encoder_logits": (model.lm_head(outputs.encoder_last_hidden_state), src != 1),
            "length_log_probs": (outputs.length_logits.log_softmax(-1)[:, 1:], slice(None)),
            "decoder_logits": (outputs.logits, prev != 1),
        }
    theirs = {**expected, "length_log_probs": expected["length_log_probs"][:, 1:]}
    return {
        name: float((ours[valid] - theirs[name][valid]).abs().max())
        for name, (ours, valid) in pairs.items()
        if name in theirs
    }


def rounding_noise(model, expected):
    """What half a unit in the last place of float32 in the weights alone, all else exact, does to each output."""
    model = model.double()
    src, prev = expected["src_tokens"], expected["prev_output_tokens"]
    exact = dict(model.state_dict())
    exact = {name: tensor.clone() for name, tensor in exact.items()}
    noise = {}
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            outputs = model(input_ids=src, decoder_input_ids=prev)
            here = {**expected, "encoder_hidden": outputs.encoder_last_hidden_state, "decoder_logits": outputs.logits}
            here["length_log_probs"] = outputs.length_logits.log_softmax(-1)
            here["encoder_logits"] = model.lm_head(outputs.encoder_last_hidden_state)
            for name, parameter in model.named_parameters():
                unit = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 2 - 1
                parameter.copy_(exact[name] * (1 + unit * 2**-24))
        for name, value in differences(model, here).items():
            noise[name] = max(noise.get(name, 0.0), value)
        model.load_state_dict(exact)
    return noise


@needs_fixtures
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_outputs_of_the_jmnat_release(tmp_path, attention):
    model, expected = convert_fixture("jmnat_fairseq", tmp_path)
    model.set_attn_implementation(attention)
    found = differences(model, expected)
    assert set(found) == {"encoder_hidden", "encoder_logits", "length_log_probs", "decoder_logits"}
    assert max(found.values()) < 1e-5, found
    flipped = expected["src_tokens"].clone()  # the same sources, padded on the right
    for row, tokens in enumerate(flipped):
        flipped[row] = torch.cat([tokens[tokens != 1], tokens[tokens == 1]])
    with torch.no_grad():
        logits = model(input_ids=flipped, decoder_input_ids=expected["prev_output_tokens"]).logits
    valid = expected["prev_output_tokens"] != 1
    assert float((logits - expected["decoder_logits"])[valid].abs().max()) < 1e-5


@needs_fixtures
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_outputs_of_mask_predict(tmp_path, attention):
    """Within 1e-5, or within what rounding does to this model: its attention scores are so large that the release's
    own code gives decoder logits that differ by 6e-5 from one machine to the next."""
    model, expected = convert_fixture("cmlm_fairseq", tmp_path)
    model.set_attn_implementation(attention)
    found = differences(model, expected)
    noise = rounding_noise(model, expected)
    for name, difference in found.items():
        assert difference < max(1e-5, 2 * noise[name]), (name, difference, noise[name])
        assert difference < 1e-4


@needs_fixtures
def test_texts_of_mask_predict(tmp_path):
    model, expected = convert_fixture("cmlm_fairseq", tmp_path)
    names = [name for name in expected if name.startswith("mask_predict")]
    assert len(names) == 5
    for name in names:
        passes, candidates = name.removeprefix("mask_predict_k").split("_b")
        options = {"num_iterations": int(passes), "num_length_candidates": int(candidates)}
        texts = model.generate(expected["src_tokens"], **options)
        for text, theirs in zip(texts.tolist(), expected[name].tolist(), strict=True):
            theirs = theirs[: theirs.index(2) + 1] if 2 in theirs else [token for token in theirs if token != 1]
            assert [token for token in text if token != 1] == theirs, name
