"""Suites: every stage's options are taken by its command, reads what earlier stages write, and is shown in a table."""

import json
import os
import re
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from modeling_jmnat import JMNatConfig
from modeling_jmnat.baselines.training import parse_system
from modeling_jmnat.commands.prepare import parse_preparation
from modeling_jmnat.configuration_jmnat import OPTION_NAMES
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.evaluation.plots import COLOURS
from modeling_jmnat.experiments.inputs import export_held_out_text, held_out_text
from modeling_jmnat.experiments.pictures import PICTURES, write_pictures
from modeling_jmnat.experiments.runner import chosen_stages, flags
from modeling_jmnat.experiments.settings import SuiteSettings
from modeling_jmnat.experiments.suites import SUITES, SuiteBuilder
from modeling_jmnat.experiments.systems import (
    ABLATIONS,
    ADDITIONS,
    AUTOREGRESSIVE,
    JM_CRF,
    MAIN_STUDENTS,
    NAT,
    OTHERS,
    RECIPES,
)
from modeling_jmnat.experiments.tables import CASE_STUDY, TABLES, cell, write_tables
from modeling_jmnat.inference.loading import load_teacher
from modeling_jmnat.teacher.command import parse_teacher_command
from modeling_jmnat.teacher.distillation import DistillationArguments
from modeling_jmnat.teacher.model import build_teacher, can_start
from modeling_jmnat.training.command import parse_command
from modeling_jmnat.training.presets import load_preset
from modeling_jmnat.utils.markdown import markdown
from tests.helpers.tiny_runs import prepare_tiny_data
from tests.helpers.translation_samples import load_script


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared data with a test split of 12 sentences."""
    folder = prepare_tiny_data(tmp_path_factory.mktemp("tiny"), num_train=30)
    from datasets import load_from_disk

    dataset = load_from_disk(str(folder / "dataset"))
    dataset["test"] = dataset["train"].select(range(12))
    dataset.save_to_disk(str(folder / "new"))
    (folder / "dataset").rename(folder / "old")
    (folder / "new").rename(folder / "dataset")
    return folder


def settings(data, output, **fields):
    return SuiteSettings(**{"preset": "multi30k_tiny", "data": data, "output": output, **fields})


def parse(stage):
    arguments = flags(stage.options)
    if stage.command == "train" and "system" in stage.options:
        return parse_system(stage.options["system"], arguments, "")
    if stage.command == "train":
        return parse_command(arguments, "")
    if stage.command == "train_teacher":
        return parse_teacher_command(arguments, "")
    if stage.command == "prepare":
        return parse_preparation(arguments, "")[0]
    dataclass = {
        "evaluate": lambda: load_script("evaluate").EvaluationArguments,
        "tune": lambda: load_script("tune_decoding").TuningArguments,
        "translate": lambda: load_script("translate").TranslationArguments,
        "distill": lambda: DistillationArguments,
    }[stage.command]()
    (parsed,) = HfArgumentParser(dataclass).parse_args_into_dataclasses(arguments)
    return parsed


def save_starts(output):
    """The models that others start with; --init_from is read at once."""
    for name in ("nat_scratch", JM_CRF.start):
        for seed in (1, 2):
            JMNatConfig(vocab_size=320).save_pretrained(output / f"{name}-{seed}")


VARIANTS = {
    "cpu": {},
    "gpu": {"training_options": {"tf32": False, "dataloader_num_workers": 1}, "batch_tokens": 8192},
    "other teacher": {"teacher_preset": "multi30k_small", "teacher_steps": 40, "student_steps": 30},
    "from scratch": {"from_teacher": False, "num_length_candidates": 3, "latency_sentences": 0},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_command_takes_its_options(data, tmp_path, variant):
    output = tmp_path / "run"
    save_starts(output)
    builder = SuiteBuilder(settings(data, output, **VARIANTS[variant]))
    stages = builder.build(list(SUITES))
    assert len({stage.name for stage in stages}) == len(stages) > 100
    for stage in stages:
        parsed = parse(stage)
        assert json.loads(json.dumps(stage.options)).keys() == stage.options.keys()  # as a mark holds them
        if "generation_options" in stage.options:
            assert set(json.loads(stage.options["generation_options"])) <= set(OPTION_NAMES)
        if stage.trains:
            assert parsed.training.max_steps > 0
            JMNatConfig(vocab_size=320, **parsed.model)


def test_settings_reach_the_commands(data, tmp_path):
    builder = SuiteBuilder(settings(data, tmp_path / "run", student_steps=30))
    save_starts(tmp_path / "run")
    stages = {stage.name: stage for stage in builder.build(list(SUITES))}
    cm = parse(stages["cm-2"])
    assert (cm.masking["target_mask"], cm.masking["mask_token_prob"], cm.masking["source_mask_ratio"]) == (
        "random",
        1,
        0,
    )
    assert (cm.model["ngram_loss_weight"], cm.training.seed, cm.training.max_steps) == (0, 2, 30)
    assert json.loads(parse(stages["evaluate_cm-2.reranked.test"]).generation_options) == {"remask_adjacent": False}
    tuning, tuned = parse(stages["tune_jm-2.reranked"]), parse(stages["evaluate_jm-2.reranked.tuned.test"])
    assert (Path(tuning.source).name, tuning.save, tuning.grid) == (
        "validation.src",
        False,
        '{"remask_adjacent": [true, false]}',
    )
    assert (tuned.tuning, tuned.reranker, Path(tuned.source).name) == (tuning.output, tuning.reranker, "test.src")
    assert stages["evaluate_jm-2.reranked.tuned.test"].needs == ("jm-2", "teacher", "tune_jm-2.reranked")
    assert parse(stages["evaluate_teacher.tuned.test"]).num_beams == [5]
    assert "tune_cm_both-1" in stages
    weak = parse(stages["evaluate_cm_weak-1.reranked.validation"])
    assert (Path(weak.reranker).name, Path(weak.model).name) == ("weak_teacher", "cm_weak-1")
    assert json.loads(weak.generation_options) == {"remask_adjacent": False}
    deeper = parse(stages["nat_encoder_15-1"])
    assert (deeper.model["encoder_layers"], deeper.model["decoder_layers"]) == (18, 3)
    assert deeper.run.init_from_teacher is None
    assert parse(stages["jm_correction-1"]).masking["correction_ratio"] == 0.3
    glancing = parse(stages["cm_glancing-1"]).masking
    assert (glancing["glancing_ratio"], glancing["full_mask_ratio"], glancing["target_mask"]) == (0.5, 0.2, "random")
    amom = parse(stages["jm_recipe_amom-2"])
    assert (amom.masking["source_mask_ratio"], amom.masking["source_mask_ratio_full"]) == (0.2, 0.0)
    assert (amom.masking["second_mask_ratio"], amom.model["encoder_loss_weight"]) == (0.5, 1.0)
    assert Path(amom.run.data) == tmp_path / "run" / "both" / "data"
    falling = parse(stages["jm_recipe_encoder_weight_falling-1"])
    assert (falling.training.encoder_loss_weight_start, falling.model["encoder_loss_weight"]) == (1.0, 0.01)
    aligned, imitating = parse(stages["nat_ft-2"]), parse(stages["imitate_nat-1"])
    assert (
        aligned.run.guide == imitating.run.guide == aligned.run.init_from_teacher == str(tmp_path / "run" / "teacher")
    )
    assert (aligned.model["max_fertility"], aligned.masking["target_mask"]) == (50, "all")
    assert parse(stages["nat_reg-1"]).run.guide == str(tmp_path / "run" / "backward_teacher")
    backward = parse(stages["prepare_reversed"])
    assert [Path(path).name for path in (backward.train_source, backward.validation_target)] == [
        "distilled.tgt",
        "validation.src",
    ]
    assert parse(stages["nat_ir-1"]).model["decoder_input"] == "mask"
    many = parse(stages["evaluate_nat_ft-1.npd100.test"])
    assert (many.num_iterations, many.num_length_candidates, Path(many.reranker).name) == ([1], None, "teacher")
    assert json.loads(many.generation_options) == {"num_length_candidates": 100}
    both = parse(stages["jm_both-1"])
    assert (both.run.data, both.training.max_steps) == (str(tmp_path / "run" / "both" / "data"), 30)
    preparation = parse(stages["prepare_both"])
    assert (preparation.append_train_of, Path(preparation.output_dir)) == (str(data), Path(both.run.data))
    assert Path(preparation.train_target) == tmp_path / "run" / "distilled" / "distilled.tgt"
    assert parse(stages["jm_long-1"]).training.max_steps == 60
    assert parse(stages["jm_weak-1"]).run.init_from_teacher == str(tmp_path / "run" / "weak_teacher")
    frozen = parse(stages["nat_frozen_decoder-1"]).run
    assert (frozen.freeze, frozen.restart, Path(frozen.init_from).name) == ("decoder", "encoder", "nat_scratch-1")
    noise = parse(stages["evaluate_cm-1.drop.validation"])
    assert (noise.noise, noise.noise_levels[-1], noise.num_iterations) == ("drop", 0.1, [10])
    assert parse(stages["evaluate_jm-1.candidates_8.validation"]).num_length_candidates is None
    assert stages["evaluate_jm_both_encoder_weight_1-1.latency.validation"].alone
    assert parse(stages["ngram_gold-1"]).model["ngram_alignment"] == "gold"
    mask = parse(stages["cm_both_encoder_mask-2"])
    assert (mask.masking["target_mask"], mask.masking["source_mask_ratio"]) == ("random", 0.1)
    assert (mask.model["encoder_loss_weight"], mask.model["ngram_loss_weight"]) == (1, 0)


def test_autoregressive_baselines_have_the_text_and_updates_of_the_students(data, tmp_path):
    run = tmp_path / "run"
    stages = {stage.name: stage for stage in SuiteBuilder(settings(data, run)).build(["table2"])}
    student, teacher = parse(stages["jm_both-2"]), parse(stages["teacher"])
    for baseline in AUTOREGRESSIVE:
        twin = parse(stages[f"{baseline.name}-2"])
        assert twin.training.max_steps == student.training.max_steps + teacher.training.max_steps == 3200 + 3600
        assert twin.training.max_tokens == student.training.max_tokens == 1024
        assert (twin.training.seed, twin.run.data) == (2, str(run / baseline.data / "data"))
        assert twin.training.label_smoothing_factor == teacher.training.label_smoothing_factor
        assert stages[f"evaluate_{baseline.name}-2.test"].needs == (f"{baseline.name}-2",)
    deep = parse(stages["ar_both_6_1-1"]).model
    assert (deep["encoder_layers"], deep["decoder_layers"]) == (6, 1)


def test_choices_are_made_on_the_validation_text(data, tmp_path):
    """Only the final rows of table 2 are scored on the test text, and only for systems in the table."""
    save_starts(tmp_path)
    for suite in SUITES:
        stages = SuiteBuilder(settings(data, tmp_path)).build([suite])
        scored = [stage for stage in stages if stage.command in ("evaluate", "tune")]
        splits = {Path(stage.options["reference"]).stem for stage in scored}
        assert splits == ({"validation", "test"} if suite in ("main", "table2") else {"validation"})
        for stage in scored:
            assert Path(stage.options["source"]).stem == Path(stage.options["reference"]).stem
            if stage.command == "evaluate":
                assert Path(stage.options["output"]).parent.name == Path(stage.options["reference"]).stem
            else:
                assert Path(stage.options["reference"]).stem == "validation"


def test_every_ranked_system_has_all_seeds_and_both_ways_to_remask(data, tmp_path):
    stages = SuiteBuilder(settings(data, tmp_path, seeds=3)).build(["table2", "table4"])
    trained = {stage.name for stage in stages if stage.command == "train"}
    assert {name.rsplit("-", 1)[1] for name in trained} == {"1", "2", "3"}
    assert len({name.rsplit("-", 1)[0] for name in trained}) * 3 == len(trained)
    names = {stage.name for stage in stages}
    for student in MAIN_STUDENTS:
        other = "adjacent" if student.decoding else "independent"
        for seed in (1, 2, 3):
            for split in ("validation", "test"):
                assert {f"evaluate_{student.name}-{seed}{kind}.{split}" for kind in ("", f".{other}")} <= names


def test_every_score_is_of_the_tokenizer_that_is_asked_for(data, tmp_path):
    stages = SuiteBuilder(settings(data, tmp_path / "run", bleu_tokenize="zh")).build(list(SUITES))
    scored = [stage for stage in stages if stage.command in ("train", "train_teacher", "evaluate", "tune")]
    assert {stage.options["bleu_tokenize"] for stage in scored} == {"zh"}
    assert parse(scored[0]).training.bleu_tokenize == "zh"
    for stage in SuiteBuilder(settings(data, tmp_path / "run")).build(list(SUITES)):
        assert "bleu_tokenize" not in stage.options


def reads_and_writes(stage):
    """Folders of models and data that a stage reads, and the one that it writes."""
    options = stage.options
    names = ("model", "teacher", "reranker", "init_from", "init_from_teacher", "data", "train_source")
    names += ("append_train_of", "guide")
    reads = {Path(options[name]) for name in names if name in options}
    reads = {path.parent if path.name.startswith("distilled") else path for path in reads}
    return reads, Path(options["output_dir"]) if "output_dir" in options else None


def test_stages_need_what_they_read(data, tmp_path):
    stages = {stage.name: stage for stage in SuiteBuilder(settings(data, tmp_path)).build(list(SUITES))}
    writers = {reads_and_writes(stage)[1]: stage.name for stage in stages.values()}
    position = {name: place for place, name in enumerate(stages)}
    for stage in stages.values():
        for path in reads_and_writes(stage)[0] - {data}:
            assert writers[path] in stage.needs, (stage.name, path)
        for need in stage.needs:
            assert position[need] < position[stage.name]


def save_teacher(data, folder, **sizes):
    tokenizer = load_prepared(data)[1]
    build_teacher({**load_preset("multi30k_tiny").model, **sizes}, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_teacher_that_is_there_is_not_trained(data, tmp_path, monkeypatch):
    usual = {stage.name: stage for stage in SuiteBuilder(settings(data, tmp_path / "run")).build(list(SUITES))}
    save_teacher(data, tmp_path / "mine", dropout=0.3)
    monkeypatch.chdir(tmp_path)
    builder = SuiteBuilder(settings(data, tmp_path / "run", teacher="mine"))
    stages = {stage.name: stage for stage in builder.build(list(SUITES))}
    assert set(usual) - set(stages) == {"teacher"}
    before, now = str(tmp_path / "run" / "teacher"), str(tmp_path / "mine")
    for name, stage in stages.items():
        assert stage.command == usual[name].command
        expected = {key: now if value == before else value for key, value in usual[name].options.items()}
        assert stage.options == expected
        assert stage.needs == tuple(need for need in usual[name].needs if need != "teacher")
    assert stages["jm-1"].options["init_from_teacher"] == now
    assert stages["evaluate_jm-1.reranked.test"].options["reranker"] == now


def test_teacher_of_a_larger_vocabulary_does_not_fit(data, tmp_path):
    save_teacher(data, tmp_path)
    preset, tokenizer = load_preset("multi30k_tiny"), load_prepared(data)[1]
    assert can_start(tmp_path, preset.model, tokenizer)
    model, _ = load_teacher(tmp_path)
    model.resize_token_embeddings(len(tokenizer) + 7)
    model.save_pretrained(tmp_path)
    assert not can_start(tmp_path, preset.model, tokenizer)


@pytest.mark.parametrize("sizes", [{"encoder_layers": 4}, {"d_model": 64}, {"normalize_before": False}])
def test_students_start_with_a_teacher_of_their_size(data, tmp_path, sizes):
    save_teacher(data, tmp_path / "mine", **sizes)
    builder = SuiteBuilder(settings(data, tmp_path / "run", teacher=str(tmp_path / "mine")))
    stages = {stage.name: stage for stage in builder.build(["main"])}
    assert {name for name, stage in stages.items() if stage.trains} == {"small_teacher", "jm-1", "jm-2"}
    assert stages["distill_distilled"].options["teacher"] == str(tmp_path / "mine")
    assert stages["jm-1"].options["init_from_teacher"] == str(tmp_path / "run" / "small_teacher")
    assert stages["jm-1"].needs == ("prepare_distilled", "small_teacher")
    scratch = SuiteBuilder(settings(data, tmp_path / "run", teacher=str(tmp_path / "mine"), from_teacher=False))
    assert [stage.name for stage in scratch.build(["main"]) if stage.trains] == ["jm-1", "jm-2"]


def test_unknown_suites_and_presets_without_steps_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="suite='table9' is not one of main, table1"):
        SuiteBuilder(settings(data, tmp_path)).build(["table9"])
    preset = tmp_path / "endless.yaml"
    preset.write_text("training: {num_train_epochs: 3}\n")
    with pytest.raises(ValueError, match="has no max_steps: give --teacher_steps and --student_steps"):
        SuiteBuilder(settings(data, tmp_path, preset=str(preset))).build(["main"])
    assert SuiteBuilder(settings(data, tmp_path, preset=str(preset), teacher_steps=5, student_steps=5)).build(["main"])


def test_paths_are_absolute(data, tmp_path, monkeypatch):
    preset = tmp_path / "mine.yaml"
    preset.write_text("training: {max_steps: 3}\n")
    monkeypatch.chdir(tmp_path)
    absolute = SuiteBuilder(settings(data, tmp_path / "run", preset=str(preset))).build(["main"])
    relative = SuiteSettings("mine.yaml", Path(os.path.relpath(data)), Path("run"))
    assert SuiteBuilder(relative).build(["main"]) == absolute


def test_names_of_systems_differ():
    students = (*ADDITIONS, *ABLATIONS, *RECIPES)
    names, labels = ([getattr(student, field) for student in students] for field in ("name", "label"))
    assert len(set(names)) == len(names)
    assert len(set(labels)) == len(labels)


# Tables --------------------------------------------------------------------------------------------------------------


def fake_results(builder, stages):
    """A result for each evaluation; every BLEU is a different number."""
    scores, number = {}, 1000
    for stage in stages:
        if not stage.name.startswith("evaluate_"):
            continue
        parsed = parse(stage)
        teacher = Path(parsed.model).name.startswith(("teacher", "weak_teacher", "small_teacher", "ar_"))
        setting, default = ("num_beams", [1, 5]) if teacher else ("num_iterations", [1, 4, 10])
        rows = []
        for level in parsed.noise_levels if parsed.noise else [None]:
            for value in getattr(parsed, setting) or default:
                number += 1
                row = {setting: value, "sacrebleu": number / 100, "chrf": 1.0, "sacrebleu_signature": "sig"}
                row["repeated_tokens_per_sentence"] = number / 1000
                if level is not None:
                    row["noise_level"] = level
                if parsed.latency_sentences:
                    row["latency_ms"] = {"mean": number / 10, "p50": 1.0, "p99": 2.0}
                rows.append(row)
        scores[stage.name] = rows
        path = Path(parsed.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"results": rows}))
    return scores


@pytest.mark.parametrize("suite", SUITES)
def test_every_evaluation_is_shown(data, tmp_path, suite):
    export_held_out_text(held_out_text(data), tmp_path)
    save_starts(tmp_path)
    builder = SuiteBuilder(settings(data, tmp_path))
    stages = builder.build([suite])
    scores = fake_results(builder, stages)
    (text,) = write_tables(tmp_path, [suite]).values()
    assert (tmp_path / "results" / f"{suite}.md").read_text() == text
    shown = set(re.findall(r"\d+\.\d+", text))
    # What only prepares a suite is evaluated, too, but not shown by every suite.
    preparing = {f"evaluate_{name}" for name in ("teacher", "jm-1", "cm-1", "jm-2", "cm-2")}
    preparing |= {f"evaluate_{student.name}-{seed}" for student in OTHERS for seed in (1, 2)}
    for name, rows in scores.items():
        name = name.removesuffix(".validation").removesuffix(".test")
        if suite not in ("main", "table2", "table3", "table4") and name in preparing:
            continue
        if suite == "table3" and "teacher" in name:
            continue
        if suite == "table4" and name == "evaluate_teacher":
            continue
        for row in rows:
            if "latency_ms" in row:
                assert f"{row['latency_ms']['mean']:.1f}" in shown, (name, row)
            elif suite == "table3":
                assert f"{row['repeated_tokens_per_sentence']:.3f}" in shown, (name, row)
            else:
                assert f"{row['sacrebleu']:.2f}" in shown, (name, row)


def write_result(results, name, setting, bleu, **fields):
    """An evaluation with a BLEU for each value of the setting; each of `fields` holds values by the same."""
    rows = [
        {setting: value, "sacrebleu": score, "chrf": 50.0, "repeated_tokens_per_sentence": 0.1}
        | {"sacrebleu_signature": "nrefs:1"}
        | {key: values[value] for key, values in fields.items()}
        for value, score in bleu.items()
    ]
    (results / f"{name}.json").parent.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps({"results": rows}))


def test_table2_by_hand(tmp_path):
    results = tmp_path / "results"

    def write(name, setting, bleu, **fields):
        write_result(results, name, setting, bleu, **fields)

    write("test/teacher", "num_beams", {1: 39.11, 5: 40.23})
    write("test/jm-1", "num_iterations", {1: 30.0, 4: 36.0, 10: 38.0})
    write("test/jm-2", "num_iterations", {1: 31.0, 4: 37.0, 10: 38.5})
    write("validation/jm-1", "num_iterations", {1: 29.0, 4: 35.0, 10: 37.0})
    latency = {1: {"mean": 40.0, "p50": 38.0, "p99": 70.0}, 5: {"mean": 60.0, "p50": 55.0, "p99": 90.0}}
    write("validation/teacher.latency", "num_beams", {1: 0.0, 5: 0.0}, latency_ms=latency)
    write("test/ar_both_10_2-1", "num_beams", {1: 38.5, 5: 39.75})
    latency = {1: {"mean": 20.0, "p50": 19.0, "p99": 35.0}, 5: {"mean": 30.0, "p50": 28.0, "p99": 45.0}}
    write("validation/ar_both_10_2-1.latency", "num_beams", {1: 0.0, 5: 0.0}, latency_ms=latency)
    latency = {4: {"mean": 8.0, "p50": 7.0, "p99": 9.0}}
    write("validation/jm_both_encoder_weight_1-1.latency", "num_iterations", {4: 0.0}, latency_ms=latency)
    write("test/nat-1", "num_iterations", {1: 20.0})
    write("test/jm_weak-1.reranked", "num_iterations", {1: 25.0, 4: 26.0, 10: 27.0})
    text = write_tables(tmp_path, ["table2"])["table2"]
    assert "| basic NAT (section 3) | 20.00 | - | - | - | 0.100 at k=1 | 50.00 at k=1 |\n" in text
    assert "| teacher | 39.11 | 40.23 | 0.100 |\n" in text
    assert "| JM-NAT | 30.50 (30.00 to 31.00) | 36.50 (36.00 to 37.00) | 38.25 (38.00 to 38.50) |" in text
    assert "| JM-NAT | 29.00 | 35.00 | 37.00 |" in text
    assert "| JM-NAT, weak teacher, reranked by the weak teacher | 25.00 | 26.00 | 27.00 |" in text
    assert "| JM-NAT, distilled and raw text, a1 = 1, k = 4 | 8.0 | 7.0 | 9.0 | 7.5 |\n" in text
    assert "| teacher, beam = 1 | 40.0 | 38.0 | 70.0 | 1.5 |\n" in text
    label = "autoregressive, 10 encoder and 2 decoder layers, distilled and raw text"
    assert f"| {label} | 38.50 | 39.75 | 0.100 |\n" in text
    assert f"| {label}, beam = 5 | 30.0 | 28.0 | 45.0 | 2.0 |\n" in text
    assert "CM-NAT" not in text
    assert text.endswith("\nnrefs:1\n")


def test_other_systems_stand_beside_their_papers(tmp_path):
    results = tmp_path / "results" / "test"
    write_result(results, "nat-1", "num_iterations", {1: 20.0})
    assert "its paper" not in write_tables(tmp_path, ["table2"])["table2"]  # the basic NAT alone has no such table
    write_result(results, "nat_ft-1", "num_iterations", {1: 22.0})
    write_result(results, "nat_ft-2", "num_iterations", {1: 23.0})
    write_result(results, "nat_ft-1.npd100", "num_iterations", {1: 25.0})
    write_result(results, "nat_ir-1", "num_iterations", {1: 19.0, 5: 24.0, 10: 24.5})
    latency = {1: {"mean": 4.0, "p50": 3.0, "p99": 5.0}}
    write_result(results.parent / "validation", "nat_ft-1.latency", "num_iterations", {1: 0.0}, latency_ms=latency)
    text = write_tables(tmp_path, ["table2"])["table2"]
    none = "| - | - | - | - | - | - |"
    assert f"| basic NAT (section 3) | 20.00 | 0.100 | 50.00 {none}\n" in text
    cited = "| 17.69 | 21.47 | 27.29 | 29.06 | - | 2.30 |"
    assert f"| NAT-FT | 22.50 (22.00 to 23.00) | 0.100 (0.100 to 0.100) | 50.00 (50.00 to 50.00) {cited}\n" in text
    assert f"| NAT-FT, 100 candidates reranked | 25.00 | 0.100 | 50.00 {none}\n" in text
    assert f"| NAT-IR, k = 5 | 24.00 | 0.100 | 50.00 {none}\n" in text
    assert "| NAT-IR, k = 10 | 24.50 | 0.100 | 50.00 | 21.61 | 25.48 | 29.32 | 30.19 | - | - |\n" in text
    assert "| NAT-FT, k = 1 | 4.0 | 3.0 | 5.0 | - |\n" in text
    assert "10 candidates" not in text.replace("100 candidates", "")


def test_other_systems_can_be_run_alone(data, tmp_path):
    stages = SuiteBuilder(settings(data, tmp_path)).build(["table2"])
    chosen = chosen_stages(stages, "nat_(ft|ir|reg|dcrf)|fcl_nat|imitate_nat|evaluate_nat-")
    trained = {stage.name for stage in chosen if stage.command == "train"}
    assert trained == {f"{student.name}-{seed}" for student in (NAT, *OTHERS) for seed in (1, 2)}
    others = {stage.name for stage in chosen if stage.command not in ("train", "evaluate")}
    assert others == {"teacher", "distill_distilled", "prepare_distilled", "prepare_reversed", "backward_teacher"}
    alone = chosen_stages(stages, "^evaluate_nat_ft-1.latency")
    assert [stage.alone for stage in alone if stage.command == "evaluate"] == [True]


def test_table4_puts_decodings_side_by_side(tmp_path):
    for name, shift in (("random_mask-1", 0), ("random_mask-1.independent", 1), ("cm_correction-1", 2)):
        bleu = {k: 30.0 + shift + k / 10 for k in ((4, 10) if "." in name else (1, 4, 10))}
        repeats = dict.fromkeys(bleu, shift / 10)
        write_result(
            tmp_path / "results" / "validation", name, "num_iterations", bleu, repeated_tokens_per_sentence=repeats
        )
    found = {
        "difference": 0.25,
        "interval": [-0.5, 1.0],
        "p": 0.23,
        "sacrebleu": [30.4],
        "baseline_sacrebleu": [30.15],
    }
    ours = {"split": "validation", "system": "random_mask", "num_iterations": 4, "variant": "independent"}
    theirs = {"baseline_system": "jm", "baseline_num_iterations": 4, "baseline_variant": "independent"}
    adjacent = theirs | {"baseline_variant": "adjacent"}  # of other ways to re-mask, which the table does not show
    rows = [ours | theirs | found, ours | adjacent | found | {"difference": 9.0}]
    (tmp_path / "results" / "comparisons.json").write_text(json.dumps({"resamples": 1000, "comparisons": rows}))
    text = write_tables(tmp_path, ["table4"])["table4"]
    assert "| JM-NAT, without consecutive mask | JM-NAT | - | +0.25 (-0.50 to 1.00), p = 0.230 | - |" in text
    assert "9.00" not in text
    assert "| JM-NAT, without consecutive mask | 30.10 | 30.40 | 31.00 | 31.40 | 32.00 | 0.100 |" in text
    assert "tokens corrected (not in the paper) | 32.10 | - | - | 32.40 | 33.00 | 0.200 |" in text


def test_case_study_shows_every_pass(data, tmp_path):
    export_held_out_text(held_out_text(data), tmp_path)
    sources = (tmp_path / "text" / "cases.src").read_text().splitlines()
    assert len(sources) == 8
    (tmp_path / "results" / "teacher.cases.txt").write_text("".join(f"best {i}\n" for i in range(8)))
    block = "source  {}\npass 1   __ __ </s>\npass 2  a|b __ </s>\nresult  a b\n\n"
    (tmp_path / "results" / "jm-1.cases.txt").write_text("".join(block.format(source) for source in sources))
    text = write_tables(tmp_path, ["case_study"])["case_study"]
    assert text.count("Sentence ") == 8
    assert "| teacher | best 7 |" in text
    assert "| JM-NAT, pass 2 | a\\|b \\_\\_ &lt;/s> |" in text
    assert text.count("| JM-NAT, result | a b |") == 8


def test_cells_and_tables():
    assert cell([]) == "-"
    assert cell([1.0]) == "1.00"
    assert cell([1.0, 2.0], 1) == "1.5 (1.0 to 2.0)"
    assert markdown(("a", "b"), [["1", "2"], None]) == "| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert markdown(("a",), [None]) == "(no result yet)\n"


def test_pictures_show_what_is_there(data, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: drawn.append(self) or original(self, *args, **kw))
    (tmp_path / "results").mkdir()
    assert write_pictures(tmp_path, list(SUITES)) == []
    builder = SuiteBuilder(settings(data, tmp_path))
    save_starts(tmp_path)
    scores = fake_results(builder, builder.build(["figure1", "figure3"]))
    history = [{"step": 10, "eval_bleu": 3.0}, {"step": 20, "eval_bleu": 5.0}]
    for name in ("nat_scratch-1", "nat_frozen_encoder-1"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    written = write_pictures(tmp_path, ["figure1", "figure3", "table2"])
    assert [path.name for path in written] == ["figure1.png", "figure3.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    curves, states = drawn[0].axes
    lines = {line.get_label(): line for line in curves.get_lines()}
    assert lines["basic NAT"].get_ydata().tolist() == [3.0, 5.0]
    assert len(lines) == 2
    assert len(states.get_lines()) == 3
    dropped, replaced = drawn[1].axes
    jm = next(line for line in dropped.get_lines() if line.get_label().startswith("JM-NAT"))
    assert jm.get_xdata().tolist() == pytest.approx([0, 2, 4, 6, 8, 10])
    assert jm.get_ydata().tolist() == [row["sacrebleu"] for row in scores["evaluate_jm-1.drop.validation"]]
    assert len(replaced.get_lines()) == 3 + len(OTHERS)
    assert {line.get_color() for line in replaced.get_lines()} == set(COLOURS)


def test_every_suite_has_a_table():
    assert set(TABLES) | {CASE_STUDY} == set(SUITES)
    assert set(PICTURES) <= set(SUITES)
