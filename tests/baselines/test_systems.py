"""Every system through the commands on tiny text: it learns, it is saved, loaded, translated with and scored."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from modeling_jmnat.baselines import SYSTEMS
from modeling_jmnat.baselines.training import system_class
from modeling_jmnat.commands import benchmark, evaluate, export_onnx, serve, train, translate
from modeling_jmnat.inference.loading import load_translator
from tests.baselines.tiny_systems import random_system
from tests.helpers.tiny_runs import prepare_tiny_data
from tests.helpers.tiny_runs import translate as reference

AUTO = "from transformers import AutoModelForSeq2SeqLM"

pytestmark = pytest.mark.usefixtures("one_thread")


def run(command, *arguments):
    command.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module", params=SYSTEMS)
def trained(request, data, preset, teacher, backward_teacher, tmp_path_factory):
    output = tmp_path_factory.mktemp(request.param) / "run"
    guide = ["--guide", backward_teacher] if request.param == "nat_reg" else []
    run(train, "--system", request.param, "--preset", preset, "--data", data, "--output_dir", output,
        "--init_from_teacher", teacher, *guide)  # fmt: skip
    return request.param, output


def test_a_system_learns(trained):
    name, output = trained
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    losses = [row["eval_loss"] for row in log if "eval_loss" in row]
    assert losses[-1] < losses[0]
    scores = [row["eval_bleu"] for row in log if "eval_bleu" in row]
    assert scores[-1] > 30, scores
    assert json.loads((output / "results.json").read_text())["finished"]
    assert json.loads((output / "run_settings.json").read_text())["start"]["system"] == name


def test_a_system_is_loaded_as_its_own_class(trained, tmp_path):
    name, output = trained
    model = AutoModelForSeq2SeqLM.from_pretrained(output).eval()
    assert type(model) is system_class(name)
    assert model.config.model_type == name
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again").eval()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    source = torch.tensor([[5, 6, 7, 2]])
    assert torch.equal(model.generate(source), again.generate(source))


def test_a_system_translates_and_is_scored(trained, data, teacher, tmp_path):
    _, output = trained
    sources = ["eins zwei drei", "haus und baum", "", "vier"]
    (tmp_path / "in").write_text("\n".join(sources) + "\n")
    run(translate, "--model", output, "--input", tmp_path / "in", "--output", tmp_path / "out")
    lines = (tmp_path / "out").read_text().splitlines()
    assert len(lines) == 4
    assert lines[2] == ""
    assert {word for line in lines for word in line.split()} & set(reference("eins zwei drei haus und").split())
    run(evaluate, "--model", output, "--data", data, "--output", tmp_path / "scores.json", "--resamples", 0,
        "--num_length_candidates", 5, "--reranker", teacher)  # fmt: skip
    rows = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert max(row["sacrebleu"] for row in rows) > 40


def test_the_translation_of_a_sentence_depends_on_nothing_beside_it(trained):
    model, tokenizer = load_translator(trained[1])
    lines = ["eins zwei drei vier und haus", "baum", "haus und baum und haus und eins zwei drei"]
    batch = tokenizer(lines, return_tensors="pt", padding=True)
    options = {"num_length_candidates": 4, "return_dict_in_generate": True}
    together = model.generate(batch["input_ids"], batch["attention_mask"], **options)
    for row, line in enumerate(lines):
        alone = model.generate(**tokenizer(line, return_tensors="pt"), **options)
        length = alone.sequences.shape[1]
        assert torch.equal(together.sequences[row, :length], alone.sequences[0])
        assert torch.isclose(together.sequences_scores[row], alone.sequences_scores[0], atol=1e-4)


def test_what_works_for_jmnat_alone_is_refused(trained, data, preset, teacher, tmp_path, capsys):
    name, output = trained
    with pytest.raises(SystemExit):
        run(export_onnx, output, "--output", tmp_path / "graphs")
    assert f"is a {name} model: only JM-NAT can be exported" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(serve, "--model", output, "--port", 0)
    assert f"is a {name} model: only JM-NAT can be served" in capsys.readouterr().err
    line = tmp_path / "line"
    line.write_text("eins zwei\n")
    with pytest.raises(SystemExit):
        run(benchmark, "--student", output, "--teacher", teacher, "--source", line, "--reference", line,
            "--output", tmp_path / "figures")  # fmt: skip
    assert f"is a {name} model but must be a JM-NAT" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # nor is it autoregressive
        run(train, "--system", "nat_ft", "--guide", output, "--preset", preset, "--data", data,
            "--output_dir", tmp_path / "run")  # fmt: skip
    assert "is a non-autoregressive model: give an autoregressive one" in capsys.readouterr().err
    with pytest.raises(ValueError, match="must be a JMNatForConditionalGeneration"):
        load_translator(output, backend="cuda_graphs")
    model, _ = load_translator(output)
    with pytest.raises(ValueError, match=f"decoder_input_ids is not supported by a {name} model"):
        model.generate(torch.tensor([[5, 2]]), decoder_input_ids=torch.tensor([[4, 4]]))
    with pytest.raises(ValueError, match="labels is missing"):
        model(torch.tensor([[5, 2]]))


@pytest.mark.parametrize(
    "first", ["import modeling_jmnat", f"{AUTO}\nimport modeling_jmnat", "import modeling_jmnat.baselines.nat_ft"]
)
def test_the_auto_classes_know_a_system_whatever_is_imported_first(first, tmp_path):
    random_system("nat_ft").save_pretrained(tmp_path)
    code = f"{first}\n{AUTO}\nprint(type(AutoModelForSeq2SeqLM.from_pretrained({str(tmp_path)!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "NatFTForConditionalGeneration\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--system", "nat_crf"], "system='nat_crf' is not one of"),
        (["--system", "nat_ir", "--init_from", "x"], "init_from is not possible with system=nat_ir"),
        (["--system", "nat_ir", "--guide", "x"], "guide=x has no use with system=nat_ir"),
        (["--system", "nat_ft"], "guide is missing: system=nat_ft needs an autoregressive teacher"),
        (["--system", "imitate_nat", "--guide", "./nowhere"], "./nowhere"),
        (["--system", "fcl_nat", "--source_mask_ratio", "0.2"], "source_mask_ratio=0.2 is of JM-NAT alone"),
        (["--system", "nat_ft", "--glancing_ratio", "0.5"], "glancing_ratio=0.5 is of JM-NAT alone"),
        (["--system", "nat_ir", "--target_mask", "random"], "must be all with system=nat_ir: leave it out"),
        (
            ["--system", "nat_reg", "--crf_rank", "8"],
            "crf_rank=8 is of JM-NAT alone, and must be 0",
        ),
        (["--system", "nat_dcrf", "--ngram_loss_weight", "1"], "ngram_loss_weight=1.0 is of JM-NAT alone"),
        (["--system", "nat_reg", "--decoder_input", "mask"], "decoder_input=mask is of JM-NAT alone"),
        (["--system", "nat_ft", "--eval_num_iterations", "4"], "eval_num_iterations=[4] must be 1"),
        (["--system", "nat_ft", "--init_from_teacher", "./nowhere"], "./nowhere"),
        (["--system", "nat_dcrf", "--crf_rank", "0"], "crf_rank=0 must be at least 1"),
        (["--system", "nat_ir", "--corruption", "1.5"], "corruption=1.5 must be in [0, 1]"),
        (
            ["--system", "nat_reg"],
            "guide is missing: system=nat_reg needs an autoregressive model that translates back",
        ),
        (["--guide", "x"], "guide"),
    ],
)
def test_bad_input_has_a_sentence(arguments, sentence, data, preset, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(train, "--preset", preset, "--data", data, "--output_dir", tmp_path / "run", *arguments)
    assert stopped.value.code
    assert sentence in capsys.readouterr().err


def test_a_guide_of_other_token_ids_or_another_size_is_refused_before_anything_is_written(
    data, preset, teacher, tmp_path, capsys
):
    other = prepare_tiny_data(tmp_path, num_train=60)
    sizes = ["--decoder_layers", "3"]
    for folder, options, sentence in (
        (other, [], f"the tokenizer of {teacher}"),
        (data, sizes, "decoder layers, the model 64 and 3: a demonstrator must be of the same size"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(train, "--system", "imitate_nat", "--guide", teacher, "--preset", preset, "--data", folder,
                "--output_dir", tmp_path / "run", *options)  # fmt: skip
        assert stopped.value.code
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "run" / "run_settings.json").exists()


def test_help_lists_the_options_of_a_system(capsys):
    with pytest.raises(SystemExit) as stopped:
        run(train, "--system", "nat_dcrf", "--help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "--crf_rank" in shown
    assert "--guide" in shown
