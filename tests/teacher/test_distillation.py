import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from transformers import GenerationConfig, MarianConfig, MarianMTModel, NllbTokenizer, PreTrainedTokenizerFast

from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.inference.engines import TransformersEngine, decode
from modeling_jmnat.teacher.distillation import (
    DistillationArguments,
    DistillationPlan,
    ShardStore,
    decode_shards,
    default_shards,
    distill,
    keep_pair,
    merge,
)
from modeling_jmnat.teacher.text_decoder import TextDecoder
from modeling_jmnat.tokenization_jmnat import train_joint_tokenizer
from modeling_jmnat.utils.fingerprints import model_digest
from modeling_jmnat.utils.locks import folder_lock
from modeling_jmnat.utils.text_files import read_lines
from tests.helpers.teacher_samples import TINY, prepare_words, random_teacher, rarely_write_bytes, write_text
from tests.helpers.translation_samples import SCRIPTS, load_script

SHIPPED = SCRIPTS.parent / "hub_card" / "multi30k_tiny" / "jmnat"
PAIRS = 25  # training pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`data` (prepared) and `teacher`."""
    folder = tmp_path_factory.mktemp("distillation")
    data = prepare_words(folder, train=PAIRS)
    tokenizer = load_prepared(data)[1]
    random_teacher(tokenizer).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    return folder


def arguments(folder, output_dir, **options):
    defaults = {
        "teacher": str(folder / "teacher"),
        "data": str(folder / "data"),
        "num_beams": 2,
        "shards": 4,
        "backend": "transformers",
        "device": "cpu",
        "max_length_ratio": 0,
    }
    return DistillationArguments(output_dir=str(output_dir), **{**defaults, **options})


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("distilled.*")}


def test_every_training_line_once_and_in_order(folder, tmp_path):
    figures = distill(arguments(folder, tmp_path))
    splits, tokenizer = load_prepared(folder / "data")
    assert read_lines(tmp_path / "distilled.src") == splits["train"]["source"][:]
    expected = decode(
        TransformersEngine(random_teacher(tokenizer)), splits["train"]["input_ids"][:], 2, batch_tokens=1
    )
    texts = [text.strip() for text in tokenizer.batch_decode(expected, skip_special_tokens=True)]
    found = (tmp_path / "distilled.tgt").read_text(encoding="utf-8").split("\n")[:-1]
    assert found == [text.replace("\n", " ").replace("\r", " ").strip() for text in texts]
    assert figures["sentences"] == figures["kept"] == figures["decoded_now"] == PAIRS
    assert figures["sentences_per_second"] > 0
    assert json.loads((tmp_path / "distillation.json").read_text()) == figures


def run_and_die(options, calls, before):
    """Distil in a child process that kills itself with SIGKILL around the `calls`-th file that gets its name."""
    child = os.fork()
    if child == 0:
        counter, rename = 0, Path.replace

        def replace(self, target):
            nonlocal counter
            counter += 1
            if counter == calls and before:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(self, target)
            if counter == calls:
                os.kill(os.getpid(), signal.SIGKILL)

        Path.replace = replace
        torch.set_num_threads(1)
        distill(options)
        os._exit(7)  # not reached
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_five_kills_do_not_change_the_text(folder, tmp_path):
    distill(arguments(folder, tmp_path / "whole"))
    options = arguments(folder, tmp_path / "killed")
    # Renames of one run: plan, 4 shards, 2 texts and summary aside, then to their places. Each run begins where the
    # last one died.
    run_and_die(options, calls=1, before=True)  # nothing is written
    run_and_die(options, calls=3, before=True)  # plan and shard 0 are there, shard 1 is half written
    run_and_die(options, calls=1, before=False)  # shard 1 as well
    run_and_die(options, calls=3, before=True)  # all shards, no text
    run_and_die(options, calls=5, before=True)  # one text of two
    assert len(files_of(tmp_path / "killed")) == 1
    assert not (tmp_path / "killed" / "distillation.json").exists()
    figures = distill(options)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert (figures["kept"], figures["decoded_now"]) == (PAIRS, 0)


def test_texts_and_figures_are_replaced_together(folder, tmp_path):
    """A kill leaves the old ones, the new ones, or no figures; never the figures of other texts."""
    before = distill(arguments(folder, tmp_path))
    old, figures = files_of(tmp_path), tmp_path / "distillation.json"
    options = arguments(folder, tmp_path, append_raw=True)
    run_and_die(options, calls=3, before=True)  # the new ones are not complete
    assert files_of(tmp_path) == old
    assert json.loads(figures.read_text()) == before
    run_and_die(options, calls=5, before=True)  # one text of two has been replaced
    assert [name for name, text in files_of(tmp_path).items() if text != old[name]] == ["distilled.src"]
    assert not figures.exists()
    assert distill(options)["raw"] == PAIRS
    assert {len(text.splitlines()) for text in files_of(tmp_path).values()} == {2 * PAIRS}
    assert not (tmp_path / ".unfinished").exists()


def test_a_second_process_is_refused_until_the_first_one_ends(folder, tmp_path):
    with folder_lock(tmp_path / "out", "output_dir"):
        message = (
            f"output_dir={tmp_path / 'out'} is in use by another process: wait until it ends or choose another folder"
        )
        with pytest.raises(ValueError, match=message):
            distill(arguments(folder, tmp_path / "out"))
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert distill(arguments(folder, tmp_path / "out"))["kept"] == PAIRS
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_distillation_with_unversioned_fingerprints_resumes(tmp_path):
    """With the digest of data and tokenizer that the code wrote then."""
    data = prepare_words(tmp_path, train=PAIRS, tokenizer=str(SHIPPED), lowercase=True)
    tokenizer = load_prepared(data)[1]
    for model in (random_teacher(tokenizer), tokenizer):
        model.save_pretrained(tmp_path / "teacher")
    options = arguments(tmp_path, tmp_path / "out", num_beams=1, shards=2)
    figures, text = distill(options), files_of(tmp_path / "out")
    path = tmp_path / "out" / "distillation_plan.json"
    plan = json.loads(path.read_text())
    assert plan["data"].startswith("2:")
    before = "bea8aa0df93199401b70ca3e8203b50eb86f60f80d63fdf28374d2294d5f313b"
    path.write_text(json.dumps(plan | {"data": before}))
    again = distill(options)
    assert (again["kept"], again["decoded_now"]) == (figures["kept"], 0)
    assert files_of(tmp_path / "out") == text
    path.write_text(json.dumps(plan | {"data": before[::-1]}))
    with pytest.raises(ValueError, match=f"with data={before[::-1]}, and now data is 2:"):
        distill(options)


def test_number_of_shards_does_not_matter(folder, tmp_path):
    distill(arguments(folder, tmp_path / "one", shards=1))
    for shards in (PAIRS, 5000):
        distill(arguments(folder, tmp_path / str(shards), shards=shards))
        assert files_of(tmp_path / "one") == files_of(tmp_path / str(shards))
        assert len(list((tmp_path / str(shards) / "shards").iterdir())) == PAIRS


def test_processes_share_the_shards(folder, tmp_path):
    """Three processes by fork, each with its own rank, write what one process writes."""
    distill(arguments(folder, tmp_path / "one"))

    class State:
        num_processes = 3
        device = torch.device("cpu")

        def __init__(self, rank):
            self.process_index = rank
            self.is_main_process = rank == 0

        def wait_for_everyone(self):
            pass

    splits, tokenizer = load_prepared(folder / "data")
    plan = DistillationPlan("t", "d", "transformers", 2, 4, PAIRS, "float32", 1.0, None, None)
    store = ShardStore(tmp_path / "three", plan)
    decoder = TextDecoder(TransformersEngine(random_teacher(tokenizer)), tokenizer, True, 2)
    written = []
    missing = store.missing()
    for rank in range(3):
        store.missing = lambda: missing  # as all processes saw it at the start
        decode_shards(store, splits["train"], decoder, tokenizer, State(rank))
        written.append(len(list(store.folder.iterdir())))
    assert written == [2, 3, 4]
    merge(store, tmp_path / "three", splits["train"]["source"], "src", "tgt")
    assert files_of(tmp_path / "three") == files_of(tmp_path / "one")


def test_damaged_shards_and_plans_are_named(folder, tmp_path):
    options = arguments(folder, tmp_path)
    distill(options)
    shard = sorted((tmp_path / "shards").iterdir())[0]
    whole = shard.read_bytes()
    damages = [whole[:-30], whole[:-200], b"", whole.replace(b"[", b"{", 1), b"3\n" + whole, b"\xff" + whole]
    damages.append(re.sub(rb", (\d+)]\n", rb', "\1"]\n', whole, count=1))
    for damaged in damages:
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"^{shard} .*: delete it and run the same command again$"):
            distill(options)
    shard.unlink()
    distill(options)
    assert shard.read_bytes() == whole
    (tmp_path / "distillation_plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"distillation_plan\.json is damaged or cut short"):
        distill(options)


def lines_of(shard):
    return shard.read_text(encoding="utf-8").splitlines(keepends=True)


def test_altered_shards_are_refused(folder, tmp_path):
    """A letter of a hypothesis, a source, or the order: each row is well-formed."""
    options = arguments(folder, tmp_path)
    distill(options)
    text = files_of(tmp_path)
    shard = sorted((tmp_path / "shards").iterdir())[1]
    whole = lines_of(shard)
    row = json.loads(whole[0])
    for changed in (
        [json.dumps([row[0], row[1] + "x", *row[2:]]) + "\n", *whole[1:]],
        [json.dumps([row[0] + "x", *row[1:]]) + "\n", *whole[1:]],
        [whole[1], whole[0], *whole[2:]],
    ):
        shard.write_text("".join(changed), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"^{shard} was changed after it was written: delete it and run"):
            distill(options)
        assert files_of(tmp_path) == text
    shard.write_text("".join([*whole, whole[0]]), encoding="utf-8")  # behind the digest
    with pytest.raises(ValueError, match=f"is damaged or cut short in line {len(whole) + 1}: delete it"):
        distill(options)


def test_shards_of_earlier_versions_have_no_digest(folder, tmp_path):
    options = arguments(folder, tmp_path)
    distill(options)
    text = files_of(tmp_path)
    for shard in (tmp_path / "shards").iterdir():
        *rows, last = lines_of(shard)
        assert json.loads(last).keys() == {"sha256"}
        shard.write_text("".join(rows), encoding="utf-8")
    assert distill(options)["decoded_now"] == 0
    assert files_of(tmp_path) == text
    shard.write_text("".join([rows[0], rows[0], *rows[2:]]), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{shard} has another source than the data in line 2: delete it and run"):
        distill(options)


def test_only_the_training_split_is_distilled(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        load_script("distill").main(
            ["--teacher", "t", "--data", str(folder / "data"), "--output_dir", str(tmp_path), "--split", "test"]
        )
    assert stop.value.code != 0
    assert "--split" in capsys.readouterr().err


def test_length_filter_and_raw_pairs_need_no_new_decoding(folder, tmp_path):
    all_pairs = distill(arguments(folder, tmp_path))
    text = read_lines(tmp_path / "distilled.tgt")
    splits, tokenizer = load_prepared(folder / "data")
    lengths = [len(ids) for ids in tokenizer(text)["input_ids"]]
    pairs = list(zip([len(ids) for ids in splits["train"]["input_ids"]], lengths, strict=True))
    ratio = sorted(max(pair) / min(pair) for pair in pairs)[PAIRS // 2]
    figures = distill(arguments(folder, tmp_path, max_length_ratio=ratio, append_raw=True))
    kept = [max(pair) / min(pair) <= ratio for pair in pairs]
    assert 0 < sum(kept) < PAIRS == all_pairs["kept"]
    assert (figures["kept"], figures["length_ratio"], figures["raw"]) == (sum(kept), PAIRS - sum(kept), PAIRS)
    assert figures["decoded_now"] == 0
    expected = [line for line, keep in zip(text, kept, strict=True) if keep] + splits["train"]["target"][:]
    assert read_lines(tmp_path / "distilled.tgt") == expected


@pytest.mark.parametrize(
    ("text", "source", "target", "ratio", "verdict"),
    [
        (None, 5, 0, 3.0, "too_long"),
        ("", 5, 1, 3.0, "empty"),
        ("a", 2, 6, 3.0, "kept"),
        ("a", 2, 7, 3.0, "length_ratio"),
        ("a", 7, 2, 3.0, "length_ratio"),
        ("a", 70, 2, None, "kept"),
    ],
)
def test_reasons_for_leaving_out_a_pair(text, source, target, ratio, verdict):
    assert keep_pair(text, source, target, ratio) == verdict


def test_shard_ranges_cover_everything_once():
    for sentences, shards in ((PAIRS, 4), (3, 5), (8192, 2), (1, 1)):
        plan = DistillationPlan("t", "d", "transformers", 5, shards, sentences, "float32", 1.0, None, None)
        assert [n for shard in range(shards) for n in plan.shard_range(shard)] == list(range(sentences))
    assert (default_shards(1), default_shards(4096), default_shards(4097)) == (1, 1, 2)


def test_other_settings_in_the_same_folder_are_refused(folder, tmp_path):
    distill(arguments(folder, tmp_path))
    with pytest.raises(ValueError, match="num_beams=2, and now num_beams is 3"):
        distill(arguments(folder, tmp_path, num_beams=3))
    (tmp_path / "other").mkdir()
    write_text(tmp_path / "other", "mine.txt", ["text"])
    with pytest.raises(ValueError, match="does not hold an earlier distillation"):
        distill(arguments(folder, tmp_path / "other"))


def test_number_type_and_length_penalty_belong_to_the_plan(folder, tmp_path):
    teacher, output = tmp_path / "teacher", tmp_path / "out"
    shutil.copytree(folder / "teacher", teacher)
    options = {"teacher": str(teacher)}
    distill(arguments(folder, output, dtype="float32", **options))
    next((output / "shards").iterdir()).unlink()  # as after a kill
    with pytest.raises(ValueError, match="dtype=float32, and now dtype is bfloat16"):
        distill(arguments(folder, output, dtype="bfloat16", **options))
    distill(arguments(folder, output, **options))  # auto is float32 on a CPU
    generation = GenerationConfig.from_pretrained(teacher)
    generation.length_penalty = 1.5
    generation.save_pretrained(teacher)
    with pytest.raises(ValueError, match="length_penalty=1.0, and now length_penalty is 1.5"):
        distill(arguments(folder, output, **options))


def test_generation_options_of_the_teacher_belong_to_the_plan(folder, tmp_path):
    teacher, output = tmp_path / "teacher", tmp_path / "out"
    shutil.copytree(folder / "teacher", teacher)
    options = arguments(folder, output, teacher=str(teacher))
    distill(options)
    path = output / "distillation_plan.json"
    plan = json.loads(path.read_text())

    def change(**fields):
        generation = GenerationConfig.from_pretrained(teacher)
        generation.update(**fields)
        generation.save_pretrained(teacher)

    change(repetition_penalty=5.0)
    now = plan["generation"] | {"repetition_penalty": 5.0}
    with pytest.raises(ValueError, match=re.escape(f"with generation={plan['generation']}, and now generation is ")):
        distill(options)
    assert json.loads(path.read_text()) == plan
    before = {name: value for name, value in plan.items() if name != "generation"}
    path.write_text(json.dumps(before))  # as an earlier version wrote it
    assert distill(options)["decoded_now"] == 0
    assert json.loads(path.read_text()) == before | {"generation": now}
    change(repetition_penalty=1.0)
    with pytest.raises(ValueError, match=r"now generation is .*choose another folder or delete this one"):
        distill(options)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_missing_device_is_named(folder, tmp_path, device):
    with pytest.raises(ValueError, match=f"^device='{device}' cannot be used here: choose auto, cpu or cuda"):
        distill(arguments(folder, tmp_path / "out", device=device))
    assert not (tmp_path / "out").exists()


def test_cut_shard_is_named(folder, tmp_path):
    distill(arguments(folder, tmp_path))
    shard = sorted((tmp_path / "shards").iterdir())[1]
    shard.write_text("".join(lines_of(shard)[:-2]), encoding="utf-8")  # the digest and a row
    with pytest.raises(ValueError, match=f"{shard.name} has {PAIRS // 4 - 1} lines instead of {PAIRS // 4}"):
        distill(arguments(folder, tmp_path))


def test_teacher_of_other_data_is_refused(folder, tmp_path, capsys):
    other = prepare_words(tmp_path, train=30, vocab_size=320)
    with pytest.raises(SystemExit) as stop:
        load_script("distill").main(
            ["--teacher", str(folder / "teacher"), "--data", str(other), "--output_dir", str(tmp_path / "out")]
            + ["--device", "cpu"]
        )
    assert stop.value.code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(r"error: the teacher's tokenizer \(hash \w+\) is not the data's \(hash \w+\): .*", message)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def stranger(folder, tmp_path_factory):
    """A teacher with a tokenizer of its own, and both of them."""
    splits = load_prepared(folder / "data")[0]
    ours = train_joint_tokenizer([*splits["train"]["source"], *splits["train"]["target"]], vocab_size=300)
    own = PreTrainedTokenizerFast(
        tokenizer_object=ours.backend_tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(1)
    sizes = {name: value for name, value in TINY.items() if name != "max_target_length"}
    config = MarianConfig(
        vocab_size=len(own),
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
        **{**sizes, "max_position_embeddings": 12},
    )
    model = MarianMTModel(config).eval()
    rarely_write_bytes(model, own)
    assert len(own) < len(load_prepared(folder / "data")[1])
    path = tmp_path_factory.mktemp("stranger")
    model.save_pretrained(path)
    own.save_pretrained(path)
    return path, model, own


@pytest.mark.parametrize("prefix", [None, "ba de "])
def test_teacher_with_a_tokenizer_of_its_own(folder, stranger, tmp_path, prefix):
    """Text goes in and text comes out: nothing of the data's token ids reaches such a teacher."""
    path, model, own = stranger
    sources = load_prepared(folder / "data")[0]["train"]["source"][:]
    figures = distill(arguments(folder, tmp_path, teacher=str(path), teacher_prefix=prefix))
    read = [own((prefix or "") + line)["input_ids"] for line in sources]
    assert figures["too_long"] == sum(len(ids) > 12 for ids in read) > 0
    assert figures["kept"] + figures["too_long"] + figures["empty"] == PAIRS
    fitting = [(line, ids) for line, ids in zip(sources, read, strict=True) if len(ids) <= 12]
    texts = own.batch_decode(
        decode(TransformersEngine(model), [ids for _, ids in fitting], 2), skip_special_tokens=True
    )
    pairs = [(line, text.strip()) for (line, _), text in zip(fitting, texts, strict=True) if text.strip()]
    assert read_lines(tmp_path / "distilled.src") == [line for line, _ in pairs]
    assert read_lines(tmp_path / "distilled.tgt") == [text for _, text in pairs]


def test_multilingual_teacher_uses_the_given_languages(folder, tmp_path):
    letters = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    own = NllbTokenizer(vocab={token: index for index, token in enumerate(letters)}, merges=[])
    random_teacher(own, seed=3).save_pretrained(tmp_path / "teacher")
    own.save_pretrained(tmp_path / "teacher")
    options = {"teacher": str(tmp_path / "teacher"), "teacher_languages": ["deu_Latn", "eng_Latn"], "num_beams": 1}
    distill(arguments(folder, tmp_path / "out", **options))
    own.src_lang = "deu_Latn"
    sources = load_prepared(folder / "data")[0]["train"]["source"][:]
    english = own.convert_tokens_to_ids("eng_Latn")
    found = decode(
        TransformersEngine(random_teacher(own, seed=3)), own(sources)["input_ids"], 1, forced_bos_token_id=english
    )
    assert {ids[0] for ids in found} == {english}
    texts = [text.strip() for text in own.batch_decode(found, skip_special_tokens=True)]
    pairs = [(line, text) for line, text in zip(sources, texts, strict=True) if text]
    assert len({tuple(ids) for ids in found}) > 5
    assert read_lines(tmp_path / "out" / "distilled.src") == [line for line, _ in pairs]
    assert read_lines(tmp_path / "out" / "distilled.tgt") == [text for _, text in pairs]
    with pytest.raises(ValueError, match=r"holds a distillation with teacher_languages=\['deu_Latn', 'eng_Latn'\]"):
        distill(arguments(folder, tmp_path / "out", **options | {"teacher_languages": ["deu_Latn", "fra_Latn"]}))
    for wrong, reason in (
        (["</s>", "eng_Latn"], "='</s> eng_Latn' are not languages of the model's NllbTokenizer"),
        (["deu_Latn"], "='deu_Latn' must be two codes, of source and target"),
        (["de", "eng_Latn"], "='de eng_Latn' are not languages of the model's NllbTokenizer"),
    ):
        with pytest.raises(ValueError, match=f"teacher_languages{reason}"):
            distill(arguments(folder, tmp_path / "wrong", **options | {"teacher_languages": wrong}))
    with pytest.raises(ValueError, match="teacher is multilingual: give its source and target language"):
        distill(arguments(folder, tmp_path / "wrong", teacher=options["teacher"]))
    assert not (tmp_path / "wrong").exists()


def test_another_prefix_in_the_same_folder_is_refused(folder, stranger, tmp_path):
    options = {"teacher": str(stranger[0])}
    distill(arguments(folder, tmp_path, **options))
    with pytest.raises(
        ValueError, match="with teacher_prefix=None, and now teacher_prefix is ba: choose another folder"
    ):
        distill(arguments(folder, tmp_path, teacher_prefix="ba", **options))


def test_changed_tokenizer_is_another_teacher(folder, stranger, tmp_path):
    path = shutil.copytree(stranger[0], tmp_path / "teacher")
    before = model_digest(path)
    (path / "notes.txt").write_text("mine")
    assert model_digest(path) == before
    (path / "tokenizer_config.json").write_text("{}")
    assert model_digest(path) != before


def test_teacher_that_reads_token_ids_takes_neither_prefix_nor_languages(folder, tmp_path):
    with pytest.raises(ValueError, match="teacher_prefix='x ' is for teachers with another tokenizer"):
        distill(arguments(folder, tmp_path / "out", teacher_prefix="x "))
    with pytest.raises(ValueError, match="teacher_languages='de en' are not languages of the model's JMNatTok"):
        distill(arguments(folder, tmp_path / "out", teacher_languages=["de", "en"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams=0 must be at least 1"),
        ({"shards": 0}, "shards=0 must be at least 1"),
        ({"max_length_ratio": 0.5}, "max_length_ratio=0.5 must be 0"),
        ({"dtype": "int8"}, "dtype='int8' is not one of auto, float32"),
    ],
)
def test_bad_arguments_are_named(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(folder, tmp_path, **options)


def test_equal_language_endings_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="both 'en'"):
        distill(arguments(folder, tmp_path, source_lang="en", target_lang="en"))


def test_endings_that_files_cannot_have_are_refused_before_decoding(folder, tmp_path):
    with pytest.raises(ValueError, match="target_lang='zh/hans' cannot be the ending of a file name here"):
        distill(arguments(folder, tmp_path / "out", target_lang="zh/hans"))
    assert not (tmp_path / "out").exists()


def test_script_prints_json_last(folder, tmp_path, capsys):
    load_script("distill").main(
        ["--teacher", str(folder / "teacher"), "--data", str(folder / "data"), "--output_dir", str(tmp_path)]
        + ["--device", "cpu", "--num_beams", "1", "--source_lang", "de", "--target_lang", "en"]
    )
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [Path(name).name for name in figures["files"]] == ["distilled.de", "distilled.en"]
    assert PartialState().num_processes == 1
