"""A student made from a teacher of opus-mt's layout computes what the teacher computes, and can be trained."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, MarianMTModel, T5Config

from modeling_jmnat import JMNatForConditionalGeneration, JMNatTranslationPipeline
from modeling_jmnat.commands import init, prepare, train
from modeling_jmnat.hub.publishing import load_for_publishing, save_for_everyone
from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.onnx_export.export import export_onnx
from modeling_jmnat.teacher.reranking import load_reranker
from modeling_jmnat.training.teacher_start import start_from_teacher
from tests.helpers.fresh_process import run_without_package
from tests.helpers.marian_teacher import opus_model, train_segmenter, write_tokenizer
from tests.helpers.teacher_samples import random_teacher
from tests.helpers.translation_samples import random_lines, tiny_tokenizer
from tests.training.test_initial_weights import encoder_states

OF_A_HALF = {"layers": 6, "ffn_dim": 48, "attention_heads": 4}
SIZES = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in OF_A_HALF.items()} | {
    "d_model": 32
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six layers a side, every number its own."""
    folder = tmp_path_factory.mktemp("teacher")
    lines = random_lines(400, seed=7)
    segmenters = [train_segmenter(side, 120) for side in (lines, [line[::-1] for line in lines])]
    tokenizer = write_tokenizer(folder, *segmenters, prefixes=(">>eng<<",))
    torch.manual_seed(3)
    model = opus_model(tokenizer, tokenizer(lines)["input_ids"], **SIZES)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "layer_norm" in name:
                parameter.uniform_(0.7, 1.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(folder):
    return MarianMTModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def start(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("start") / "start"
    start_from_teacher(folder, output)
    return output


def student_at(start):
    return JMNatForConditionalGeneration.from_pretrained(start).eval()


def largest_difference(student, teacher, tokenizer):
    batch = tokenizer(random_lines(6, seed=9), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = teacher.get_encoder()(**batch).last_hidden_state
    actual = encoder_states(student, batch["input_ids"], batch["attention_mask"])
    return (actual - expected)[batch["attention_mask"].bool()].abs().max().item()


def test_the_encoder_gives_the_teachers_states(start, teacher, folder):
    student = student_at(start)
    assert student.config.pad_token_id == teacher.config.vocab_size - 1  # last, as in opus-mt
    assert teacher.final_logits_bias.any()
    for tokenizer in (AutoTokenizer.from_pretrained(start), AutoTokenizer.from_pretrained(folder)):  # the same ids
        assert largest_difference(student, teacher, tokenizer) < 1e-5
    student.config.position_offset = 2
    assert largest_difference(student, teacher, tokenizer) > 1e-2


@torch.no_grad()
def test_cross_attention_and_the_output_are_the_teachers(start, teacher):
    student = student_at(start)
    states, queries = torch.randn(2, 7, 32), torch.randn(2, 5, 32)
    for ours, theirs in zip(student.get_decoder().layers, teacher.get_decoder().layers, strict=True):
        expected = theirs.encoder_attn(queries, key_value_states=states)[0]
        torch.testing.assert_close(ours.encoder_attn(queries, None, states)[0], expected, rtol=0, atol=1e-5)
        assert not ours.position_attn.out_proj.weight.any()
    size = teacher.config.vocab_size
    expected = teacher.lm_head(queries) + teacher.final_logits_bias
    torch.testing.assert_close(student.lm_head(queries)[..., :size], expected, rtol=0, atol=1e-5)


def test_new_tokens_start_at_the_mean_embedding(start, teacher):
    student = student_at(start)
    table, theirs = student.get_input_embeddings().weight, teacher.get_input_embeddings().weight
    assert table.shape[0] == theirs.shape[0] + 2  # <s> and <mask>
    torch.testing.assert_close(table[:-2], theirs)
    torch.testing.assert_close(table[-2:], theirs.mean(dim=0, keepdim=True).expand(2, -1))
    bias = teacher.final_logits_bias[0]
    torch.testing.assert_close(student.lm_head.bias[-2:], bias.mean().expand(2))


def test_layers_may_be_more_or_fewer(folder, teacher, tmp_path):
    report = start_from_teacher(folder, tmp_path / "deep", encoder_layers=7, decoder_layers=2)
    student = student_at(tmp_path / "deep")
    assert (len(student.get_encoder().layers), len(student.get_decoder().layers)) == (7, 2)
    for mine, theirs in zip(student.get_encoder().layers, teacher.get_encoder().layers, strict=False):
        assert torch.equal(mine.fc1.weight, theirs.fc1.weight)
    assert "model.encoder.layers.6.fc1.weight" in report.left


def test_the_folder_loads_and_translates(start, capsys):
    model, tokenizer = load_translator(start, device="cpu")
    ids = model.generate(**tokenizer([">>eng<< ab"], return_tensors="pt"), num_iterations=2, max_length=20)
    assert tokenizer.mask_token_id not in ids
    assert model.generation_config.repeatable_tokens
    assert not model.config.split_sentences  # the second sentence of a text would have no language


def test_a_published_start_needs_neither_the_package_nor_sentencepiece(start, tmp_path):
    model, tokenizer = load_for_publishing(start)
    save_for_everyone(model, tokenizer, tmp_path / "published")
    lines = [*random_lines(8, seed=2), ">>eng<< ab", "", "\u2581 a\u00a0b"]
    code = """
import json, sys
sys.modules["sentencepiece"] = None  # not installed
from transformers import AutoTokenizer, pipeline
folder, lines = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
translate = pipeline("translation", model=folder, trust_remote_code=True)
texts = [row["translation_text"] for row in translate(lines, num_iterations=2, max_length=20)]
print(json.dumps([tokenizer(lines)["input_ids"], tokenizer(text_target=lines)["input_ids"], texts]))
"""
    found = json.loads(run_without_package(code, tmp_path, tmp_path, tmp_path / "published", json.dumps(lines)))
    translate = JMNatTranslationPipeline(model=model, tokenizer=tokenizer)
    texts = [row["translation_text"] for row in translate(lines, num_iterations=2, max_length=20)]
    assert found == [tokenizer(lines)["input_ids"], tokenizer(text_target=lines)["input_ids"], texts]


def test_the_command_reports_copied_weights(folder, tmp_path, capsys):
    init.main(["--from", str(folder), "--output", str(tmp_path / "start"), "--language_code", ">>eng<<"])
    output = capsys.readouterr().out.splitlines()
    assert "Set to zero" in output[0]
    assert json.loads(output[-1])["copied"] > 0.7 * json.loads(output[-1])["parameters"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    assert tokenizer("ab")["input_ids"][0] == tokenizer.convert_tokens_to_ids(">>eng<<")
    with pytest.raises(SystemExit):
        init.main(["--teacher", str(folder), "--output", str(tmp_path / "start")])
    assert student_at(tmp_path / "start").config.split_sentences
    assert "start exists already: name a new folder" in capsys.readouterr().err


def of_another_kind(folder):
    T5Config().save_pretrained(folder)


def of_another_vocabulary(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 40, "pad_token_id": 39}))
    MarianMTModel(AutoConfig.from_pretrained(folder)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_another_kind, "is a t5 model, whose layers a JM-NAT does not have"),
        (of_another_vocabulary, "the tokenizer has .* tokens and the model 40"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "is damaged or cut short"),
        (lambda folder: (folder / "source.spm").unlink(), "source.spm is missing"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(folder, change, message, tmp_path):
    shutil.copytree(folder, tmp_path / "teacher")
    change(tmp_path / "teacher")
    with pytest.raises(ValueError, match=message):
        start_from_teacher(tmp_path / "teacher", tmp_path / "start")
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_other_commands_name_jmnat_init(folder, tmp_path, capsys):
    """Where a Marian folder is given in the place of a start, or of a teacher with the tokenizer of the data."""
    files = [f"{split}_{side}" for split in ("train", "validation") for side in ("source", "target")]
    for name in files:
        (tmp_path / name).write_text("".join(f"{line}\n" for line in random_lines(30, seed=4)))
    texts = [word for name in files for word in (f"--{name}", str(tmp_path / name))]
    with pytest.raises(SystemExit):
        prepare.main([*texts, "--output_dir", str(tmp_path / "data"), "--tokenizer", str(folder)])
    assert f"make an initial model with `jmnat init --from {folder} --output DIR`" in capsys.readouterr().err
    prepare.main([*texts, "--output_dir", str(tmp_path / "data"), "--vocab_size", "340"])
    words = ["--data", str(tmp_path / "data"), "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    with pytest.raises(SystemExit):
        train.main([*words, "--init_from_teacher", str(folder)])
    assert f"which is not the data's tokenizer: make an initial model with `jmnat init --from {folder}" in (
        capsys.readouterr().err
    )


def test_the_exported_graph_translates_as_the_model(start, tmp_path):
    """Post-layer-norm, positions from 0 and a bias of the output, in ONNX Runtime."""
    model, tokenizer = load_translator(start, device="cpu")
    export_onnx(model, tmp_path / "graphs", tokenizer=tokenizer)
    exported, same = load_translator(tmp_path / "graphs", device="cpu", backend="onnx")
    lines = random_lines(8, seed=2)
    options = {"num_iterations": 3, "num_length_candidates": 2, "max_length": 20}
    expected, actual = (
        engine.generate(**tokens(lines, padding=True, return_tensors="pt"), **options)
        for engine, tokens in ((model, tokenizer), (exported, same))
    )
    assert expected.tolist() == actual.tolist()


def test_the_teacher_chooses_among_the_candidates(start, teacher, folder):
    """By its own mean log-probability of their text, computed here sentence by sentence."""
    model, tokenizer = load_translator(start, device="cpu")
    theirs = AutoTokenizer.from_pretrained(folder)
    lines = random_lines(4, seed=5)
    output = model.generate(
        **tokenizer(lines, padding=True, return_tensors="pt"),
        **{"num_iterations": 2, "num_length_candidates": 3, "num_return_sequences": 3, "max_length": 20},
        reranker=load_reranker(folder, tokenizer),
        return_dict_in_generate=True,
    )
    texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    for row, (text, score) in enumerate(zip(texts, output.sequences_scores.tolist(), strict=True)):
        batch = theirs(lines[row // 3], text_target=text, return_tensors="pt")
        with torch.no_grad():
            assert score == pytest.approx(-teacher(**batch).loss.item(), abs=1e-4)
    assert output.sequences_scores.view(4, 3).diff(dim=1).le(0).all()


def test_a_teacher_whose_sinusoids_are_no_parameters(tmp_path):
    """As those of M2M100 and NLLB."""
    tokenizer = tiny_tokenizer()
    theirs = random_teacher(tokenizer)
    theirs.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    start_from_teacher(tmp_path / "teacher", tmp_path / "start")
    ours = student_at(tmp_path / "start")
    assert ours.config.position_embedding_type == "sinusoidal"
    ids = torch.tensor([[9, 30, 17, 2]])
    torch.testing.assert_close(
        encoder_states(ours, ids, torch.ones_like(ids)), theirs.get_encoder()(ids).last_hidden_state
    )
