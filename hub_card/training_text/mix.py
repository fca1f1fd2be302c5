"""Write the training text of the shipped German-English model, as two files of aligned lines.

    python hub_card/training_text/mix.py --corpora data --output_dir text

The vocabulary, phrases and templates of this folder are added to three corpora: Tatoeba, LibreOffice help and
Europarl, each a folder of gzipped files `train.de.gz` and `train.en.gz`. Sentences of a test list are left out of what
was written for this text.
"""

import itertools
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modeling_jmnat.utils.command_line import command, parse_arguments
from modeling_jmnat.utils.text_files import read_lines, write_lines

HERE = Path(__file__).resolve().parent
TEST_LISTS = tuple((HERE.parent / "results" / "shipped_models").glob("everyday*.tsv"))
CORPORA = {"tatoeba": 1, "libreoffice-help": 2, "europarl": 1}  # and how often each is repeated
WORD_COPIES, PHRASE_COPIES, TEMPLATE_COPIES = 3, 10, 110
NUM_RENAMED, NUM_JOINED = 25_000, 15_000
NEW_NAMES = 0.12  # share of invented ones
SYLLABLES = (
    *("ka", "le", "mi", "no", "ra", "si", "ta", "ve", "lo", "ri", "ma", "de"),
    *("an", "el", "or", "jo", "ke", "ba"),
)
# First words of clauses that can follow another, in lower case.
CLAUSE_STARTS = ("Ich", "Er", "Sie", "Wir", "Es", "Du", "Das", "Mein", "Meine")
Pair = tuple[str, str]


def table(name: str) -> list[tuple[str, ...]]:
    """The lines of a file of this folder."""
    return [tuple(line.split("\t")) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def by_kind(name: str) -> dict[str, list]:
    """The lines of a file whose first column is their kind."""
    found: dict[str, list] = {}
    for kind, *rest in table(name):
        found.setdefault(kind, []).append(tuple(rest) if rest[1:] else rest[0])
    return found


def blind(text: str) -> str:
    """The words of a text, without case, punctuation and digits."""
    return " ".join(re.findall(r"[^\W\d_]+", text.casefold()))


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


# Numbers, times and names --------------------------------------------------------------------------------------------


def time_of_day(numbers: Sequence[Pair], hour: int, kind: str, minutes: int = 0) -> Pair:
    """A time of the clock; `half` and `to` are named after the hour that follows."""
    german, english = numbers[hour]
    minutes_german, minutes_english = ("Viertel", "a quarter") if minutes == 15 else numbers[minutes]
    if kind == "full":
        return f"{'ein' if hour == 1 else german} Uhr", f"{english} o'clock"
    if kind == "half":
        return f"halb {german}", f"half past {numbers[(hour - 2) % 12 + 1][1]}"
    if kind in ("past", "to"):
        return (
            f"{minutes_german} {'nach' if kind == 'past' else 'vor'} {german}",
            f"{minutes_english} {kind} {english}",
        )
    return f"{hour}{kind}{minutes} Uhr", f"{hour}:{minutes}"


def any_time(draw: random.Random, numbers: Sequence[Pair]) -> Pair:
    kind = draw.choices(["full", "half", "past", "to", ".", ":"], [30, 30, 17, 16, 3.5, 3.5])[0]
    minutes = draw.choice([5, 10, 15, 15, 20] if kind in ("past", "to") else [10, 15, 20, 30, 40, 45, 50])
    return time_of_day(numbers, draw.randint(1, 12), kind, minutes)


def any_name(draw: random.Random, names: Sequence[str]) -> str:
    if draw.random() < NEW_NAMES:
        return "".join(draw.choices(SYLLABLES, k=draw.choice([2, 3]))).capitalize()
    return draw.choice(names)


# Sentences -----------------------------------------------------------------------------------------------------------


def values_of_slots(draw: random.Random, names: dict[str, list], fillers: dict[str, list]) -> dict[str, Pair]:
    """What the slots of one sentence are filled with, on both sides."""
    first = names["female"] + names["male"]
    values = {kind: draw.choice(pairs) for kind, pairs in fillers.items()}
    number = draw.randint(2, 99)
    values["number"] = (str(number),) * 2 if draw.random() < 0.35 else fillers["number"][number]
    values["time"] = any_time(draw, fillers["number"])
    for slot, kinds in (("name", first), ("name2", first), ("surname", names["surname"])):
        values[slot] = (any_name(draw, kinds),) * 2
    return values


def filled(template: Pair, values: dict[str, Pair]) -> Pair:
    """A template with its slots filled; `a` becomes `an` where a vowel follows."""
    sides = [re.sub(r"{(\w+)}", lambda slot, side=side: values[slot[1]][side], template[side]) for side in (0, 1)]
    sides[1] = re.sub(r"\b([Aa]) (?=[aeioAEIO])(?!one )", r"\1n ", sides[1])
    return capital(sides[0]), capital(sides[1])


def renamed(pair: Pair, draw: random.Random, names: dict[str, list]) -> Pair | None:
    """A sentence about others than Tom and Mary; None if it names neither, or not equally often on both sides."""
    german, english = pair
    for theirs, ours, kind in (("Tom", "Tom", "male"), ("Maria", "Mary", "female"), ("Mary", "Mary", "female")):
        count = len(re.findall(rf"\b{theirs}s?\b", german))
        if count and count == len(re.findall(rf"\b{ours}\b", english)):
            name = any_name(draw, [name for name in names[kind] if name[-1] not in "sxzß"])  # whose genitive is in s
            german = re.sub(rf"\b{theirs}(s?)\b", rf"{name}\1", german)
            english = re.sub(rf"\b{ours}\b", name, english)
    return (german, english) if (german, english) != pair else None


def joined(first: Pair, second: Pair, word: str, drop_subject: bool) -> Pair | None:
    """Two sentences as clauses joined by `und` or `aber`; None if they cannot be.

    Args:
        drop_subject: leave out the second `ich` after `und`.
    """
    start = second[0].split(" ")[0]
    if start not in CLAUSE_STARTS or not all(text.endswith(".") for text in (*first, *second)):
        return None
    if start == "Sie" and not second[1].startswith("She"):
        return None
    german, english = first[0][:-1], first[1][:-1]
    of_me = all(pair[0].startswith("Ich ") and pair[1].startswith("I ") for pair in (first, second))
    if of_me and word == "und" and drop_subject:
        return f"{german} und {second[0][4:]}", f"{english} and {second[1][2:]}"
    keeps_case = second[1].startswith(("I ", "I'", "Tom", "Mary", "Maria"))
    clause = second[1] if keeps_case else second[1][0].lower() + second[1][1:]
    comma, theirs = (",", "but") if word == "aber" else ("", "and")
    return f"{german}{comma} {word} {second[0][0].lower()}{second[0][1:]}", f"{english}, {theirs} {clause}"


def varied(pair: Pair, draw: random.Random) -> Pair:
    """Now and then without the last stop, or with a source in lower case."""
    german, english = pair
    kind = draw.random()
    if kind < 0.05 and german.endswith(".") and english.endswith(".") and len(german.split()) <= 12:
        return german[:-1], english[:-1]
    return (german.lower(), english) if 0.05 <= kind < 0.08 else pair


# Vocabulary ----------------------------------------------------------------------------------------------------------


def noun_lines(article: str, noun: str, plural: str, english: str, english_plural: str) -> list[Pair]:
    """A noun with its articles, and in the shortest sentences; a plural of `-` does not exist."""
    lines = [(noun, english)] * 3 + [(f"{article} {noun}", f"the {english}")] * 2
    lines += [(f"{capital(article)} {noun}", f"The {english}"), (f"{noun}.", f"{capital(english)}.")]
    lines += [(f"Wo ist {article} {noun}?", f"Where is the {english}?")]
    if plural == "-" or article not in ("der", "die", "das"):
        return lines
    a = "an" if english[0] in "aeiou" and not english.startswith(("uni", "euro", "use")) else "a"
    ein = "eine" if article == "die" else "ein"
    lines += [(f"{ein} {noun}", f"{a} {english}"), (plural, english_plural)]
    lines += [(f"die {plural}", f"the {english_plural}"), (f"zwei {plural}", f"two {english_plural}")]
    lines += [(f"Das ist {ein} {noun}.", f"That's {a} {english}.")]
    if article != "der" or not plural.endswith("n"):  # others may have an accusative of their own
        lines += [(f"Ich sehe {'einen' if article == 'der' else ein} {noun}.", f"I see {a} {english}.")]
    return lines


def verb_lines(infinitive: str, ich: str, er: str, participle: str, english: str, third: str, past: str) -> list[Pair]:
    """A verb in three persons and two tenses; a first person of `-` does not exist."""
    lines = [(infinitive, f"to {english}")] * 2
    if ich == "-":
        return lines
    auxiliary, _, rest = participle.partition(" ")
    own = {"hat": "habe", "ist": "bin"}.get(auxiliary, auxiliary)
    lines += [(ich, f"I {english}"), (er, f"he {third}"), (f"ich {own} {rest}", f"I {past}")]
    return [*lines, (f"Sie {auxiliary} {rest}.", f"She {past}."), (f"{capital(ich)}.", f"I {english}.")]


def vocabulary() -> list[Pair]:
    lines = [line for row in table("nouns.tsv") for line in noun_lines(*row)]
    lines += [line for row in table("verbs.tsv") for line in verb_lines(*row)]
    for german, english in table("others.tsv"):
        lines += [(german, english)] * 3 + [(f"{capital(german)}.", f"{capital(english)}.")]
    return lines


# The whole text ------------------------------------------------------------------------------------------------------


def corpus(folder: Path, split: str = "train") -> list[Pair]:
    """The pairs of a corpus.

    Raises:
        ValueError: its two files have different numbers of lines.
    """
    sides = [read_lines(folder / f"{split}.{language}.gz") for language in ("de", "en")]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"{folder} has {len(sides[0])} German and {len(sides[1])} English lines: they must be aligned"
        )
    return list(zip(*sides, strict=True))


def write_pairs(folder: Path, name: str, pairs: Sequence[Pair]) -> None:
    """Write aligned lines, NAME.de and NAME.en, into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, language in enumerate(("de", "en")):
        write_lines(folder / f"{name}.{language}", (pair[side] for pair in pairs))


def own_text(draw: random.Random, held_out: Iterable[str]) -> dict[str, list[Pair]]:
    """What was written for this text, without sentences of three words and more that are tests."""
    names, fillers = by_kind("names.tsv"), by_kind("fillers.tsv")
    templates = [template for template in table("templates.tsv") for _ in range(TEMPLATE_COPIES)]
    parts = {
        "vocabulary": vocabulary() * WORD_COPIES,
        "phrases": table("phrases.tsv") * PHRASE_COPIES,
        "templates": [filled(template, values_of_slots(draw, names, fillers)) for template in templates],
    }
    tests = {blind(line.split("\t")[0]) for path in TEST_LISTS for line in path.read_text("utf-8").splitlines()}
    sentences = {text for text in (*tests, *held_out) if len(text.split()) > 2}
    return {name: [pair for pair in pairs if blind(pair[0]) not in sentences] for name, pairs in parts.items()}


def new_sentences(tatoeba: Sequence[Pair], draw: random.Random) -> dict[str, list[Pair]]:
    """Sentences of Tatoeba with other names, and joined ones."""
    names = by_kind("names.tsv")
    others = [pair for pair in (renamed(pair, draw, names) for pair in tatoeba) if pair]
    draw.shuffle(others)
    short = [pair for pair in tatoeba if 3 <= len(pair[0].split()) <= 7]
    clauses = (
        joined(draw.choice(short), draw.choice(short), draw.choice(["und", "und", "aber"]), draw.random() < 0.7)
        for _ in itertools.count()
    )
    return {"names": others[:NUM_RENAMED], "clauses": list(itertools.islice(filter(None, clauses), NUM_JOINED))}


@dataclass
class MixArguments:
    """Where the corpora are, and where the text goes."""

    corpora: str = field(metadata={"help": f"Folder with the folders {', '.join(CORPORA)}."})
    output_dir: str = field(metadata={"help": "Folder for train.de and train.en, which are replaced."})
    seed: int = field(default=1, metadata={"help": "Random seed of names, numbers, joined sentences and the order."})


@command()
def main(argv=None):
    (arguments,) = parse_arguments(argv, MixArguments, __doc__)
    folder, draw = Path(arguments.corpora), random.Random(arguments.seed)
    held_out = {
        blind(german)
        for name in CORPORA
        for split in ("valid", "test")
        if (folder / name / f"{split}.de.gz").is_file()
        for german, _ in corpus(folder / name, split)
    }
    parts = {name: corpus(folder / name) * copies for name, copies in CORPORA.items()}
    parts |= new_sentences(parts["tatoeba"], draw) | own_text(draw, held_out)
    for name, pairs in parts.items():
        print(f"{name}: {len(pairs)} lines, {sum(len(english.split()) for _, english in pairs)} English words")
    lines = [varied(pair, draw) for pairs in parts.values() for pair in pairs]
    draw.shuffle(lines)
    write_pairs(Path(arguments.output_dir), "train", lines)
    print(f"{len(lines)} lines in {arguments.output_dir}")


if __name__ == "__main__":
    main()
