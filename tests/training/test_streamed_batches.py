"""Token batches of a stream: every example once a round, whoever reads it, and training that resumes at its place."""

import itertools

import datasets
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from modeling_jmnat import DataCollatorForJMNat, JMNatTrainer, JMNatTrainingArguments
from modeling_jmnat.data.preparation import load_prepared
from modeling_jmnat.training.streamed_batches import StreamedTokenBatches
from modeling_jmnat.training.token_batches import TokenBatchSampler
from tests.helpers.tiny_runs import prepare_tiny_data, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "seed": 3, "max_tokens": 60, "stream_buffer": 20}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_prepared(prepare_tiny_data(tmp_path_factory.mktemp("tiny"), num_train=48))


@pytest.fixture(scope="module")
def rows(tiny):
    return [{name: row[name] for name in ("id", "input_ids", "labels")} for row in tiny[0]["train"]]


def read(batches, examples):
    """Batches until so many examples have come, as ids of source and target."""
    found = []
    iterator = iter(batches)
    while sum(map(len, found)) < examples:
        found.append([(tuple(row["input_ids"]), tuple(row["labels"])) for row in next(iterator)])
    return found


def identities(rows):
    return sorted((tuple(row["input_ids"]), tuple(row["labels"])) for row in rows)


def test_a_round_has_each_example_once_and_another_order(rows):
    batches = StreamedTokenBatches(rows, 60, buffer_size=20)
    found = read(batches, 2 * len(rows))
    ends = list(itertools.accumulate(map(len, found)))
    cut = ends.index(len(rows)) + 1  # a batch never spans two rounds
    first, second = found[:cut], found[cut:]
    for round_of_batches in (first, second):
        assert sorted(itertools.chain(*round_of_batches)) == identities(rows)
    assert first != second
    assert read(batches, 2 * len(rows)) == found
    assert read(StreamedTokenBatches(rows, 60, seed=1, buffer_size=20), len(rows)) != first
    for batch in found:
        assert len(batch) * max(len(side) for pair in batch for side in pair) <= 60


def test_a_buffer_is_batched_as_a_data_set_is(rows):
    """The plain twin: a sampler over the same examples; their masks follow the round."""
    streamed = next(iter(StreamedTokenBatches(rows, 60, buffer_size=len(rows))))
    lengths = ([len(row[name]) for row in rows] for name in ("input_ids", "labels"))
    sampled = {tuple(sorted(batch)) for batch in TokenBatchSampler(*lengths, 60, shuffle=False)}
    sizes = sorted(map(len, sampled))
    assert len(streamed) in sizes
    batches = read(StreamedTokenBatches(rows, 60, buffer_size=len(rows)), len(rows))
    assert sorted(map(len, batches)) == sizes
    ids = [row["id"] for batch in itertools.islice(StreamedTokenBatches(rows, 60), 2 * len(sizes)) for row in batch]
    assert len(set(ids)) == 2 * len(rows)


def test_no_more_is_read_than_the_buffer_holds(rows):
    taken = []

    class Stream:
        def __iter__(self):
            for row in itertools.cycle(rows):
                taken.append(row)
                yield row

    batches = iter(StreamedTokenBatches(Stream(), 60, buffer_size=30))
    for _ in range(3):
        next(batches)
    assert len(taken) == 30


@pytest.mark.parametrize("shards", [None, 1, 4])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_read_different_parts(rows, shards, processes):
    """A list, a stream of one shard, which is divided by examples, and one of four."""
    stream = rows if shards is None else datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)
    parts = [
        StreamedTokenBatches(stream, 60, buffer_size=20, process=process, num_processes=processes)
        for process in range(processes)
    ]
    sizes = [len(rows) // processes] * processes if shards in (None, 1) or processes == 2 else None
    found = []
    for process, part in enumerate(parts):
        count = sizes[process] if sizes else len(list(itertools.chain(*part._buffers(0))))
        found += itertools.chain(*read(part, count))
    assert sorted(found) == identities(rows)


@pytest.mark.parametrize("shards", [None, 2])
def test_workers_read_different_parts(rows, shards):
    stream = rows if shards is None else datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)
    loader = DataLoader(StreamedTokenBatches(stream, 60, buffer_size=20), batch_size=None, num_workers=2)
    found, expected = [], identities(rows)
    for batch in loader:
        found += [(tuple(row["input_ids"]), tuple(row["labels"])) for row in batch]
        if set(found) == set(expected):
            break
    assert len(found) < 2 * len(rows)  # none twice before the other worker has had its round


def test_streams_that_cannot_be_batched_are_refused(rows):
    with pytest.raises(ValueError, match="train_dataset has no example for process 1 of 1"):
        next(iter(StreamedTokenBatches([], 60)))
    with pytest.raises(ValueError, match="train_dataset has no example for process 2 of 2"):
        next(iter(StreamedTokenBatches(rows[:1], 60, process=1, num_processes=2)))
    with pytest.raises(ValueError, match="max_tokens=5: leave the example out or raise max_tokens"):
        next(iter(StreamedTokenBatches(rows, 5)))


# Training ------------------------------------------------------------------------------------------------------------


def make_trainer(tiny, stream, output_dir, **fields):
    data, tokenizer = tiny
    arguments = JMNatTrainingArguments(output_dir=str(output_dir), **{**BASE, **fields})
    collator = DataCollatorForJMNat(tokenizer, seed=3)
    model = tiny_model(tokenizer)
    return JMNatTrainer(model, arguments, collator, stream, data["validation"], processing_class=tokenizer)


def text_stream(folder, tiny):
    """Text files, tokenised on the way."""
    data, tokenizer = tiny
    folder.mkdir()
    pairs = zip(data["train"]["source"], data["train"]["target"], strict=True)
    lines = [f"{source}\t{target}" for source, target in pairs]
    for part in range(2):
        (folder / f"{part}.txt").write_text("".join(f"{line}\n" for line in lines[part::2]))
    stream = datasets.load_dataset("text", data_files=str(folder / "*.txt"), split="train", streaming=True)

    def tokenised(row):
        source, target = row["text"].split("\t")
        return dict(tokenizer(source, text_target=target))

    return stream.map(tokenised, remove_columns=["text"]).shuffle(seed=1, buffer_size=10)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_ends_with_the_weights_of_an_uninterrupted_one(tiny, tmp_path, workers):
    fields = {"save_steps": 5, "dataloader_num_workers": workers, "gradient_accumulation_steps": 2}
    fields["lr_scheduler_type"] = "constant"  # which does not depend on the number of steps
    stream = text_stream(tmp_path / "text", tiny)
    make_trainer(tiny, stream, tmp_path / "once", max_steps=14, **fields).train()
    make_trainer(tiny, stream, tmp_path / "stopped", max_steps=5, **fields).train()
    make_trainer(tiny, stream, tmp_path / "stopped", max_steps=14, **fields).train(resume_from_checkpoint=True)
    weights = [load_file(tmp_path / run / "checkpoint-14" / "model.safetensors") for run in ("once", "stopped")]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_a_stream_needs_max_tokens_and_max_steps(tiny, rows, tmp_path):
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    with pytest.raises(ValueError, match="train_dataset is a stream: give max_tokens"):
        make_trainer(tiny, stream, tmp_path, max_tokens=None, max_steps=2)
    with pytest.raises(ValueError, match="max_steps"):
        make_trainer(tiny, stream, tmp_path)
