"""The card of a published model, with figures from result files of `evaluate.py` and text from a file of facts.

Its metadata are for the Hub (languages, licence, scores as a `model-index`); its snippets show the model's answers
when the card was made.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.scores import machine_in_words
from ..inference.onnx_runtime import GRAPHS_FOLDER
from ..pipeline import JMNatTranslationPipeline
from ..utils.json_files import read_json, read_json_lines
from ..utils.markdown import markdown

TEMPLATE = Path(__file__).with_name("model_card.md")
PICTURE = "bleu_latency.png"
TAGS = ["jmnat", "non-autoregressive", "custom_code"]
EXAMPLE_PASSES = 4  # of the snippet that shows every pass


@dataclass(frozen=True)
class TestSet:
    """A test set of the card.

    Args:
        name: name for people, such as "Tatoeba German-English (2,000 held-out pairs)".
        dataset: identifier in the metadata, of this test set alone.
        results: JSON file of `jmnat evaluate` for the published model, or results.jsonl of `jmnat tables`.
        run: which run of results.jsonl.
        latency: another such file with `latency_ms`, if `results` has none.
        teacher: such a file of an autoregressive model, for comparison.
    """

    __test__ = False  # pytest would collect it by its name

    name: str
    dataset: str
    results: str
    run: str | None = None
    latency: str | None = None
    teacher: str | None = None


@dataclass(frozen=True)
class CardFacts:
    """Facts for a card that no result file holds, read from YAML; its paths are relative to that file.

    Args:
        name: name of the model.
        languages: codes of source and target language, two letters each.
        language_names: their names for people.
        license: the Hub's identifier for the license of the weights.
        domain: the kind of text that the model was trained on.
        training_text: sources with name, license, license_name, url, pairs and by (whom to credit).
        training: how the model was trained, one or more paragraphs.
        tests: see `TestSet`.
        examples: sentences for the snippets; the shortest snippet has the first.
        limits: sentences about what it does badly, with examples, for the second paragraph.
    """

    name: str
    languages: list[str]
    language_names: list[str]
    license: str
    domain: str
    training_text: list[dict]
    training: str
    tests: list[TestSet]
    examples: list[str]
    limits: list[str] = field(default_factory=list)


def read_facts(path: str | Path) -> CardFacts:
    """The facts in a YAML file.

    Raises:
        ValueError: something is missing or unknown; the message names it.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({str(error).splitlines()[0]})") from None
    facts = _checked(CardFacts, content, str(path))
    for number, source in enumerate(facts.training_text, start=1):
        missing = {"name", "license", "license_name", "url", "pairs", "by"} - set(source)
        if missing:
            raise ValueError(f"{path}: training_text {number} lacks {', '.join(sorted(missing))}")
    if len(facts.languages) != 2 or len(facts.language_names) != 2 or len(facts.examples) < 2 or not facts.tests:
        raise ValueError(f"{path} needs two languages, two language_names, two or more examples, and tests")
    tests = [_checked(TestSet, test, f"{path}, tests {number}") for number, test in enumerate(facts.tests, start=1)]
    if len({test.dataset for test in tests}) < len(tests):
        raise ValueError(f"{path}: two tests have the same dataset, under which the Hub would merge their scores")
    return CardFacts(**{**vars(facts), "tests": tests})


def _checked(cls, content, where: str):
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must be a mapping of names to values, not {type(content).__name__}")
    unknown = set(content) - {option.name for option in fields(cls)}
    needed = {option.name for option in fields(cls) if option.default is MISSING and option.default_factory is MISSING}
    for problem, names in (("does not know", unknown), ("lacks", needed - set(content))):
        if names:
            raise ValueError(f"{where} {problem} {', '.join(sorted(map(str, names)))}")
    return cls(**content)


@dataclass(frozen=True)
class Scores:
    """The rows of a test set by number of passes, and those of the teacher by number of beams."""

    test: TestSet
    by_passes: dict[int, dict]
    teacher: dict[int, dict]

    @property
    def best(self) -> dict:
        return self.by_passes[max(self.by_passes)]


def read_scores(test: TestSet, folder: Path) -> Scores:
    """All figures of a test set; raises ValueError for a file that `evaluate.py` has not written."""
    rows = _read_report(folder / test.results, "num_iterations", test.run)
    if test.latency:
        timed = _read_report(folder / test.latency, "num_iterations", test.run)
        for passes in rows:
            if "latency_ms" in timed.get(passes, {}):
                rows[passes]["latency_ms"] = timed[passes]["latency_ms"]
    teacher = _read_report(folder / test.teacher, "num_beams", test.run) if test.teacher else {}
    return Scores(test, rows, teacher)


def _read_report(path: Path, key: str, run: str | None) -> dict[int, dict]:
    """The rows of a file by their number of passes or beams (`key`), with their settings."""
    try:
        if path.suffix == ".jsonl":
            rows = _stored_rows(path, key, run)
        else:
            report = read_json(path)
            settings, device = report["settings"], report["device"]
            shared = {"sentences": settings["sentences"], "generation": settings["generation"]}
            shared |= {"machine": machine_in_words(device)}
            rows = [row | shared for row in report["results"]]
        for row in rows:
            row[key], row["sacrebleu"], row["sacrebleu_signature"], row["chrf"], row["chrf_signature"]
            row["sentences"], row["machine"]
    except (KeyError, TypeError):
        raise ValueError(
            f"{path} is not a result file of `jmnat evaluate` with {key}, sacreBLEU and chrF in each row"
        ) from None
    if not rows:
        raise ValueError(f"{path} has no results{'' if run is None else f' of {run}'}: run `jmnat evaluate` again")
    return {row[key]: row for row in rows}


def _stored_rows(path: Path, key: str, run: str | None) -> list[dict]:
    """Of a results.jsonl of `jmnat tables`, the rows of a run with `key` that were decoded as the model is."""
    rows = read_json_lines(path)
    chosen = [row for row in rows if row["run"] == run and row["variant"] == "" and key in row]
    return [{"generation": {}} | row | {"sacrebleu_signature": row["signature"]} for row in chosen]


def score_tables(all_scores: Sequence[Scores]) -> list[str]:
    """Markdown tables, one per figure: a row per test set, a column per number of passes and of beams."""
    rows = [{**by_column(scores.by_passes, "passes"), **by_column(scores.teacher, "beams")} for scores in all_scores]
    columns = sorted({column for row in rows for column in row}, key=lambda column: (column[0] == "beams", column[1]))
    figures = (
        ("sacreBLEU", lambda row: with_interval(row, "sacrebleu")),
        ("chrF", lambda row: with_interval(row, "chrf")),
        ("repeated words per sentence", lambda row: f"{row['repeated_tokens_per_sentence']:.2f}"),
        ("milliseconds per sentence, one at a time", lambda row: f"{row['latency_ms']['mean']:.0f}"),
    )
    tables = []
    for name, show in figures:
        lines = []
        for scores, row in zip(all_scores, rows, strict=True):
            cells = []
            for column in columns:
                try:
                    cells.append(show(row[column]))
                except KeyError:  # not measured
                    cells.append("")
            if any(cells):
                lines.append([scores.test.name, *cells])
        if lines:
            tables.append(markdown([name, *map(title, columns)], lines).rstrip("\n"))
    return tables


def by_column(rows: Mapping[int, dict], kind: str) -> dict[tuple[str, int], dict]:
    return {(kind, number): row for number, row in rows.items()}


def title(column: tuple[str, int]) -> str:
    """The title of a column: of a number of passes, or of a beam of the autoregressive model."""
    kind, number = column
    if kind == "passes":
        return f"k = {number}"
    return f"autoregressive, {'greedy' if number == 1 else f'beam {number}'}"


def conditions(all_scores: Sequence[Scores]) -> list[str]:
    """Machine and signatures of all test sets, each once."""
    rows = (scores.best for scores in all_scores)
    found = (
        f"{row['machine']}; sacreBLEU `{row['sacrebleu_signature']}`, chrF `{row['chrf_signature']}`." for row in rows
    )
    return list(dict.fromkeys(found))


def with_interval(row: dict, metric: str) -> str:
    """A score, with its 95% interval in parentheses if the row has one."""
    score = f"{row[metric]:.1f}"
    if metric not in row.get("intervals", {}):
        return score
    low, high = row["intervals"][metric]
    return f"{score} ({low:.1f} to {high:.1f})"


def card_metadata(facts: CardFacts, all_scores: Sequence[Scores]) -> ModelCardData:
    """Metadata for the Hub: of each test set the scores with the most passes."""
    results = []
    for scores in all_scores:
        for metric, title in (("sacrebleu", "sacreBLEU"), ("chrf", "chrF")):
            results.append(
                EvalResult(
                    task_type="translation",
                    dataset_type=scores.test.dataset,
                    dataset_name=scores.test.name,
                    metric_type=metric,
                    metric_name=f"{title}, k = {max(scores.by_passes)}",
                    metric_value=round(scores.best[metric], 2),
                    metric_config=scores.best[f"{metric}_signature"],
                )
            )
    return ModelCardData(
        language=facts.languages,
        license=facts.license,
        library_name="transformers",
        pipeline_tag="translation",
        tags=TAGS,
        datasets=list(dict.fromkeys(source["name"] for source in facts.training_text)),
        metrics=["sacrebleu", "chrf"],
        model_name=facts.name,
        eval_results=results,
    )


def latency_rows(all_scores: Sequence[Scores]) -> list[dict]:
    """Rows for `plot_bleu_against_latency`: those timed one sentence at a time."""
    rows = []
    for scores in all_scores:
        for system, by_setting, label in (
            (scores.test.name, scores.by_passes, "k = {}"),
            (f"teacher, {scores.test.name}", scores.teacher, "beam {}"),
        ):
            for setting, row in by_setting.items():
                if "latency_ms" in row:
                    point = {"bleu": row["sacrebleu"], "latency_ms": row["latency_ms"]["mean"]}
                    rows.append({"system": system, "label": label.format(setting), **point})
    return rows


def quoted(text: str) -> str:
    """A string as Python source for a snippet."""
    return json.dumps(text, ensure_ascii=False)


def write_card(
    facts_file: str | Path, folder: str | Path, model_id: str, model, tokenizer, template: str | Path = TEMPLATE
) -> None:
    """Write `README.md` and, if latencies were measured, their picture into `folder`.

    Args:
        model_id: the model that the snippets load: a folder, or a name on the Hub.
        model, tokenizer: the published model and tokenizer, which translate the examples of the snippets.

    Raises:
        ValueError: a file of facts or results lacks something.
        OSError: a file is missing.
    """
    facts = read_facts(facts_file)
    all_scores = [read_scores(test, Path(facts_file).parent) for test in facts.tests]
    translate = JMNatTranslationPipeline(model, tokenizer, device="cpu")
    rows = latency_rows(all_scores)
    if rows:
        from ..evaluation.plots import plot_bleu_against_latency

        plot_bleu_against_latency(rows, Path(folder) / PICTURE)
    first, *others = facts.examples
    card = ModelCard.from_template(
        card_metadata(facts, all_scores),
        template_path=str(template),
        facts=facts,
        config=model.config,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        model_id=model_id,
        picture=PICTURE if rows else None,
        scores=all_scores,
        tables=score_tables(all_scores),
        conditions=conditions(all_scores),
        intervals=any("intervals" in row for scores in all_scores for row in scores.by_passes.values()),
        first=quoted(first),
        first_answer=translate(first),
        texts=[quoted(text) for text in others],
        answers=[record["translation_text"] for record in translate(others)],
        passes=EXAMPLE_PASSES,
        onnx=(Path(folder) / GRAPHS_FOLDER).is_dir(),
        history=translate(first, num_iterations=EXAMPLE_PASSES, return_history=True)[0]["history"],
    )
    card.save(Path(folder) / "README.md")
