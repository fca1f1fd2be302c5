"""What a translation copies: which parts of a text are found, how marks stand for them, and how they come back."""

import gzip
import random
import time
from pathlib import Path

import pytest

from modeling_jmnat.plain_text import MARKS, MOST_NAMES, Sentence, mend_copies, protect, protect_pair, restore
from modeling_jmnat.tokenization_jmnat import train_joint_tokenizer

CORPUS = Path(__file__).resolve().parents[2] / "run_scripts" / "demo_data" / "libreoffice-help"
COPIED = {
    "numbers": ["7", "42", "1.234,50", "1,234.50", "10 000", "10\u00a0000,25", "-5", "3/4", "1990", "007", "1'000"],
    "amounts": ["1.234,50 €", "$19.99", "€\u202f20", "5 £", "12,5\u00a0€"],
    "dates and times": ["24.12.2023", "2023-12-24", "12/24/2023", "5:30", "14.30", "2024-01-15T10:30:00Z", "23:59:59"],
    "telephone numbers": ["+49 30 123456", "+1 (555) 123-4567", "0170/1234567"],
    "addresses": [
        "http://www.example.org/a?b=1",
        "https://example.de",
        "www.example.org",
        "ftp://a.b/c_d",
        "mailto:a@b.de",
        "example.com",
        "info@example.de",
        "first.last+tag@sub.example.co.uk",
    ],
    "placeholders": [
        "$FILE_NAME$",
        "${name}",
        "$HOME",
        "$(PWD)",
        "%PATH%",
        "%s",
        "%1$s",
        "%d",
        "%(name)s",
        "%1",
        "%.2f",
    ]
    + ["{0}", "{name}", "{{user}}", "{}", "@VERSION@", "[[link]]"],
    "markup": ["<emph>", "</emph>", '<a href="x">', "<br/>", "&amp;", "&#160;", "&#xA0;"],
    "identifiers": [
        "snake_case",
        "MAX_VALUE",
        "--help",
        "--long-option",
        "/usr/bin/env",
        "~/x.txt",
        "C:\\\\Temp\\\\a.txt",
    ]
    + ["file_name.txt", "report.pdf", "libfoo.so", "A4", "MP3", "B-52", "v1.2.3", "0x1F"]
    + ["3f2504e0-4f89-11d3-9a0c-0305e82c3301"],
    "other scripts and signs": [
        "👍",
        "👍🏽",
        "👩\u200d👩\u200d👧",
        "🇩🇪",
        "日本語",
        "العربية",
        "السلام عليكم",
        "Ωμέγα",
        "ñandú",
        "™",
    ],
}
WORDS = [
    "Er kam am 3. Oktober.",
    "am 21. Mai",
    "Leser_innen und a < b oder b > c",
    "Das ist z. B. ein Test (siehe oben), usw.",
    "10%ige Lösung"[3:],
    "e-mail, E-Mail-Adresse und 100-prozentig"[:22],
    "Wie bitte?! — „Nein“, sagte er …",
    "und/oder",
    "Tom & Maria",
]


@pytest.fixture(scope="module")
def tokenizer():
    lines = [*WORDS, "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz ÄÖÜäöüß 0123456789"]
    lines += ["".join(map(chr, range(0x21, 0x7F))), "€£§°–—„“”‚‘’…«»"]
    return train_joint_tokenizer(lines * 3, 1000, marks=True)


@pytest.mark.parametrize(("kind", "item"), [(kind, item) for kind, items in COPIED.items() for item in items])
def test_items_are_found_whole(tokenizer, kind, item):
    for text in ("Das ist {} hier.", "({})", "{}", "Siehe: {}", "Es war „{}“!"):
        marked, items = protect(tokenizer, text.replace("{}", item))
        assert items == [item], text
        assert marked == text.replace("{}", MARKS[0])
        assert restore(marked, items) == text.replace("{}", item)


@pytest.mark.parametrize("text", WORDS)
def test_words_are_left_alone(tokenizer, text):
    assert protect(tokenizer, text) == (text, [])


def test_a_long_text_without_spaces_takes_no_longer_than_its_length(tokenizer):
    begin = time.perf_counter()
    for run in ("Haus", "Dr.", "a-", "5:", "²", "__", "+"):
        assert restore(*protect(tokenizer, run * (16_000 // len(run)))) == run * (16_000 // len(run))
    assert time.perf_counter() - begin < 4  # 0.3; tried at each character, it is more than ten


def test_equal_items_share_a_mark_and_ten_are_marked(tokenizer):
    a, b = MARKS[:2]
    assert protect(tokenizer, "Von 10 bis 20, nicht bis 10") == (f"Von {a} bis {b}, nicht bis {a}", ["10", "20"])
    text = " ".join(map(str, range(10, 25)))
    marked, items = protect(tokenizer, text)
    assert items == text.split()[:10]
    assert marked.split() == [*MARKS, *text.split()[10:]]
    assert restore(marked, items) == text


def test_any_text_is_restored(tokenizer):
    with gzip.open(CORPUS / "test.de.gz", "rt", encoding="utf-8", newline="\n") as file:
        texts = [line.rstrip("\n") for line in file]
    generator = random.Random(1)
    items = [item for kind in COPIED.values() for item in kind]
    texts += [
        "".join(generator.choices([*items, " ", "a", ".", MARKS[0], MARKS[9], "\u200b"], k=8)) for _ in range(2000)
    ]
    for text in texts:
        assert restore(*protect(tokenizer, text)) == text or len(protect(tokenizer, text)[1]) == len(MARKS)


def test_marks_in_the_text_are_copied_like_any_unknown_sign(tokenizer):
    text = f"Das Zeichen {MARKS[3]} hier"
    marked, items = protect(tokenizer, text)
    assert (marked, items) == (f"Das Zeichen {MARKS[0]} hier", [MARKS[3]])
    assert restore(marked, items) == text


def test_marks_without_an_item_are_dropped():
    assert restore(f"a {MARKS[0]} b{MARKS[5]}", ["x"]) == "a x b"


def test_items_of_both_sides_of_a_pair_are_marked(tokenizer):
    source, target = "Am 19. Mai 1990 kam er um 14.30 Uhr auf Seite 12.", "On May 19, 1990 he came at 2:30 to page 12."
    marked_source, marked_target = protect_pair(tokenizer, source, target)
    marks = [character for character in marked_source if character in MARKS]
    assert sorted(marks) == sorted(character for character in marked_target if character in MARKS)
    assert len(marks) == 2
    assert "14.30" in marked_source
    assert "2:30" in marked_target
    assert restore(marked_source, ["x"] * 10).count("x") == 2
    firsts = {protect_pair(tokenizer, f"Seite {n} von n", f"Page {n} of n")[0] for n in range(11, 99)}
    assert {character for text in firsts for character in text if character in MARKS} == {*MARKS}


def test_ordinals_of_the_target_share_the_mark_of_the_number(tokenizer):
    marked = protect_pair(tokenizer, "Die 90er Jahre", "The 90s")
    assert [text[4] in MARKS for text in marked] == [True, True]
    assert marked[0][5:] == "er Jahre"
    assert marked[1][5:] == "s"


def test_some_names_are_marked(tokenizer):
    pairs = [
        (f"{name} schläft.", f"{name} is asleep.") for name in ("Tom", "Maria", "Anna", "Otto", "Ida", "Paul", "Eva")
    ]
    pairs += [(f"{a} und {b}", f"{a} and {b}") for (a, _), (b, _) in zip(pairs, pairs[1:], strict=False)]
    marked = [protect_pair(tokenizer, *pair) for pair in pairs * 1]
    changed = [pair for pair, new in zip(pairs, marked, strict=True) if pair != new]
    for pair in changed:
        source, target = protect_pair(tokenizer, *pair)
        assert [c for c in source if c in MARKS] == [c for c in target if c in MARKS]
    many = [protect_pair(tokenizer, f"Tom kam {n * 'sehr '}spät.", f"Tom came {n * 'very '}late.") for n in range(200)]
    assert 10 < sum(pair[0][0] in MARKS for pair in many) < 45  # one in eight


def test_text_without_a_word_is_its_own_translation(tokenizer):
    for text in ("7", "12:30", "https://example.org", "👍 👍", "10 + 5 = 15", "%s: {0}", "x", "b)", "3 x 4", "…"):
        assert Sentence.read(text, tokenizer).translation == text
    for text in ("I", "a", "7 Katzen", "Danke.", "Seite 7", "ab"):
        assert Sentence.read(text, tokenizer).translation is None
    for text in ("", "\u200b\ufeff"):
        assert Sentence.read(text, tokenizer).translation == ""


@pytest.mark.parametrize(
    "signs", ["👩\u200d👩\u200d👧", "❤\ufe0f\u200d🔥", "🏴\U000e0067\U000e0062\U000e007f", "👍🏽", "• 👍", "•\u3000"]
)
def test_emoji_and_bullets_stay_whole(tokenizer, signs):
    for text in (f"{signs} Maria", f"Maria {signs}", f"Tom {signs} Maria", signs.strip()):
        sentence = Sentence.read(text, tokenizer)
        assert sentence.write(sentence.text) == text
    assert Sentence.read(f"{signs}\u200b Maria\u200b {signs.strip()}\u200d", tokenizer) == Sentence.read(
        f"{signs} Maria {signs.strip()}", tokenizer
    )


def test_a_vocabulary_without_marks_has_nothing_marked():
    plain = train_joint_tokenizer(["ab 12 cd"] * 3, 400)
    assert protect(plain, "ab 12 👍") == ("ab 12 👍", [])
    assert protect_pair(plain, "ab 12", "cd 12") == ("ab 12", "cd 12")


def test_marks_without_an_item_stand_for_missing_ones():
    a, b, c = MARKS[:3]
    assert restore(f"{c} und {b}", ["1", "2"]) == "1 und 2"  # a mark that stands for nothing
    assert restore(f"{b} und {b}", ["1", "2"]) == "2 und 1"  # one that comes twice while another is missing
    assert restore(f"{a} {b} {b}", ["1", "2"]) == "1 2 2"  # none is missing
    assert restore(f"{a} {c}", ["1"]) == "1 "


@pytest.mark.parametrize(
    ("translation", "mended"),
    [
        ("The price is 1.234,505000.", "The price is 1.234,50 €."),
        ("The price is (1.23.50 €).", "The price is (1.234,50 €)."),
        ("The price is 1.234,50 €.", "The price is 1.234,50 €."),
        ("The price.", "The price 1.234,50 €."),
        ("", "1.234,50 €"),
    ],
)
def test_garbled_and_lost_items_are_repaired(tokenizer, translation, mended):
    sentence = Sentence.read("Der Preis beträgt 1.234,50 €.", tokenizer)
    assert sentence.write(translation) == mended
    assert sentence.write(translation, is_draft=True) == translation


def test_lost_items_are_inserted_at_their_place_in_the_source(tokenizer):
    sentence = Sentence.read("$HOME ist der Ordner, {0} die Datei und info@example.de die Adresse", tokenizer)
    found = sentence.write("the folder is here and the file is there and so on")
    assert found.startswith("$HOME the folder")
    assert found.index("$HOME") < found.index("{0}") < found.index("info@example.de")
    assert found.replace("$HOME ", "").replace("{0} ", "").replace("info@example.de ", "") == (
        "the folder is here and the file is there and so on"
    )


def test_a_short_number_may_become_a_word(tokenizer):
    sentence = Sentence.read("Es sind 3 Katzen und 12 Hunde.", tokenizer)
    assert sentence.write("There are three cats and twelve dogs.") == "There are three cats and twelve dogs."
    assert sentence.write("There are 33 cats and 12 dogs.") == "There are 3 cats and 12 dogs."


def test_items_are_exact_whatever_the_model_writes(tokenizer):
    """Except numbers of one or two digits."""
    generator = random.Random(2)
    items = [item for kind in COPIED.values() for item in kind if not item.isdigit()]
    words = ["der", "die", "das", "Haus", "geht", "mit", "und", "kam", ".", ",", "3", "%"]
    for _ in range(500):
        chosen = generator.sample(items, 3)
        pieces = [*generator.choices(words, k=9), *chosen]
        generator.shuffle(pieces)
        sentence = Sentence.read(" ".join(pieces), tokenizer)
        kept = [piece for piece in pieces if generator.random() < 0.5]
        spoilt = [piece[: generator.randint(0, len(piece))] if piece in chosen else piece for piece in kept]
        found = sentence.write(" ".join(spoilt))
        for item in sentence.items:
            assert item in found or (item.isdigit() and len(item) < 3), (spoilt, found)


def test_unknown_signs_around_a_sentence_are_kept(tokenizer):
    for before, after in (
        ("• ", ""),
        ("👍🏽 ", " 🎉"),
        ("▪\u00a0", ""),
        ("", " ❤\ufe0f"),
        ("👩\u200d👩\u200d👧 ", ""),
    ):
        sentence = Sentence.read(f"{before}Tom & Maria kam{after}", tokenizer)
        assert sentence.text == "Tom & Maria kam"
        assert sentence.write("Tom & Maria came") == f"{before}Tom & Maria came{after}"


# Capitals and small letters ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cased():
    with gzip.open(CORPUS / "train.de.gz", "rt", encoding="utf-8", newline="\n") as file:
        return train_joint_tokenizer([line.rstrip("\n") for line, _ in zip(file, range(6000), strict=False)], 3000)


def test_capitals_are_truecased_and_come_back(cased):
    sentence = Sentence.read("DIE DATEI WIRD GEÖFFNET UND IM ORDNER GESPEICHERT.", cased)
    assert sentence.text == "Die Datei wird geöffnet und im Ordner gespeichert."
    assert sentence.write("The file is opened.") == "THE FILE IS OPENED."
    assert Sentence.read("die datei wird geöffnet.", cased).text == "Die Datei wird geöffnet."
    assert Sentence.read("die datei wird geöffnet.", cased).write("The file is opened.") == "The file is opened."
    assert Sentence.read("eine neue datei", cased).text == "eine neue Datei"


def test_words_in_capitals_are_calmed(cased):
    assert Sentence.read("Die DATEI wird geöffnet.", cased).text == "Die Datei wird geöffnet."
    assert Sentence.read("Die neue-DATEI ist im ORDNER.", cased).text == "Die neue-DATEI ist im Ordner."


@pytest.mark.parametrize("end", ["", ".", "!", "?"])
def test_lone_words_in_capitals_are_read_in_usual_letters(cased, end):
    for word, read, translation in (("DATEI", "Datei", "file"), ("NICHT", "nicht", "not"), ("ODER", "oder", "or")):
        sentence = Sentence.read(word + end, cased)
        assert sentence.text.casefold() == (read + end).casefold()
        assert sentence.text != word + end
        assert sentence.write(translation + end) == translation.upper() + end


def test_capitals_have_no_sharp_s_and_abbreviations_stay(cased):
    for text in ("DIE GROSSE DATEI IST DA.", "DIE GRÖSSE DER DATEI", "DAS IST GROSS."):
        assert "ß" in Sentence.read(text, cased).text
    for text, read in (
        ("DIE HTML DATEI UND DIE URL.", "Die HTML Datei und die URL."),
        ("die html datei und die url.", "Die HTML Datei und die URL."),
        ("WIR MÜSSEN, DASS.", "Wir müssen, dass."),
    ):
        assert Sentence.read(text, cased).text == read


def test_most_words_of_real_text_get_their_capitals_back(cased):
    with gzip.open(CORPUS / "test.de.gz", "rt", encoding="utf-8", newline="\n") as file:
        lines = [line.rstrip("\n") for line in file]
    lines = [line for line in lines if len(line.split()) > 5 and not any(character.isdigit() for character in line)][
        :300
    ]
    right = total = 0
    for line in lines:
        text = Sentence.read(line.upper(), cased).text
        pairs = list(zip(line.split(), text.split(), strict=True))
        right += sum(a == b for a, b in pairs)
        total += len(pairs)
    assert right > 0.75 * total
    small = sum(word == word.lower() for line in lines for word in line.split())
    assert right > small * 1.2  # better than small letters alone


@pytest.mark.parametrize(
    "text",
    ["NATO", "OK", "A4", "Die NATO kam", "iPhone", "x = Y", "Ä", "datei", "日本", "§ 5"]
    + ["Die DATEI-Größe", "Eine neue PDF-DATEI-Ansicht", "DATEI-Menü"],
)
def test_other_text_keeps_its_letters(cased, text):
    sentence = Sentence.read(text, cased)
    assert sentence.text == text
    assert not sentence.capitals


def test_addresses_in_capitals_keep_their_letters(tokenizer):
    sentence = Sentence.read("KOMMT ZU http://www.Example.org HEUTE", tokenizer)
    assert sentence.capitals
    assert sentence.write(sentence.text) == "KOMMT ZU http://www.Example.org HEUTE"


def test_a_lower_case_tokenizer_restores_no_capitals():
    lower = train_joint_tokenizer(["die datei wird geöffnet"] * 3, 500, lowercase=True)
    assert Sentence.read("DIE DATEI WIRD GEÖFFNET", lower) == Sentence(
        "DIE DATEI WIRD GEÖFFNET", "DIE DATEI WIRD GEÖFFNET"
    )


def test_tokenizers_of_other_models_get_unchanged_text():
    assert Sentence.read("EIN TEXT 12", object()).text == "EIN TEXT 12"
    assert Sentence.read("", object()).translation == ""


def test_no_replacement_character_is_written(tokenizer):
    for text in ("Das \ufffd ist 日\ufffd hier", "👍\ufffd", "\ufffd", "12\ufffd", "Ein Wort"):
        sentence = Sentence.read(text, tokenizer)
        assert "\ufffd" not in sentence.write("The \ufffd\ufffd word")
    assert Sentence.read("\ufffd", tokenizer).translation == ""


# Text as people have it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "item",
    [
        *("DE89 3704 0044 0532 0130 00", "030 123456", "0049 30 123456", "4111 1111 1111 1111", "EUR 20,00"),
        *("20,00 EUR", "CHF 20.-", "10 m²", "20 °C", "−5 °C", "1939–1945", "§ 5", "VIII", "1920x1080", "v1.2.3-rc1"),
        *("@max_muster", "#wetter2024", "1️⃣", "`git commit -m`", "#{name}", "{name:>10}", "<%= name %>", "__name__"),
        *("{n, plural, one {# Datei} other {# Dateien}}", "example.org/a?b=1#c", "C:\\Program Files\\App"),
        *(
            "https://de.example.org/wiki/Haus_(Film)",
            "00:1A:2B:3C:4D:5E",
            "fe80::1",
            "::1",
            "foo.bar()",
            "std::vector",
        ),
        *("toString", "AT&T", "getElementById", "2,5%", "3,5 %", "2 ‰", "2,5 m", "120 km/h", "12 kB", "3,5 GHz"),
        *("README.MD", "CONFIG.TXT", ".gitignore", ".bashrc", "0800/123 45 67", "(030) 123 456-78", "030-12345678"),
        *("19,-- EUR", "19,– €", "&lt;", "&gt;", "500 g", "20 kWh", "230 V", "1,5 l", "9,58 s"),
    ],
)
def test_further_kinds_are_found_whole(tokenizer, item):
    for text in ("Das ist {} hier.", "({})", "{}"):
        marked, items = protect(tokenizer, text.replace("{}", item))
        assert items == [item], text
        assert restore(marked, items) == text.replace("{}", item)


@pytest.mark.parametrize(
    "text",
    [
        "Ex-/Import",
        "Das Haus .",
        "Er kam...dann",
        "Wie geht`s und was macht`s?",
        "Er sagte: Hallo :: Welt",
        "C# und F#",
        "a -> b",
        "IIII",
        "Leser:innen",
        ":D",
    ],
)
def test_what_only_looks_like_them_is_left_alone(tokenizer, text):
    assert protect(tokenizer, text) == (text, [])


@pytest.mark.parametrize("run", ["a->", "a::", "`a", "{a, plural {", "http://(a", "1 ", "0 12 ", "C:\\a ", "@", "<%"])
def test_further_patterns_take_no_longer_than_the_text(tokenizer, run):
    begin = time.perf_counter()
    protect(tokenizer, run * (8_000 // len(run)))
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize("signs", ["...", "---", "!", "***", "=====", "?!", "–", "(…)", "1. 2. 3.", "%", "\u200b!"])
def test_signs_alone_need_no_model(tokenizer, signs):
    assert Sentence.read(signs, tokenizer).translation == signs.replace("\u200b", "")


@pytest.mark.parametrize("invisible", ["\ufe0f", "\ufe0e\u200b", "\u180b", "\u17b4", "\U000e0100", "\ufeff\ufe00"])
def test_selectors_of_variants_are_not_read(cased, invisible):
    assert Sentence.read(invisible, cased).translation == ""
    sentence = Sentence.read(f"Die{invisible} Datei", cased)
    assert cased.normalize_text(sentence.text) == "Die Datei"


@pytest.mark.parametrize("before", ["\u2060 ", "\xad ", "\u2800", "\ufeff\u2009"])
def test_nothing_invisible_is_left_at_the_edges(cased, before):
    sentence = Sentence.read(f"{before}Die Datei{before[::-1]}", cased)
    assert sentence.write(" The file ") == "The file"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("die ﬁndigen Köpfe öﬀnen", "die findigen Köpfe öffnen"),
        ("Ｄｉｅ Ｄａｔｅｉ", "Die Datei"),
        ("𝐃𝐢𝐞 𝐃𝐚𝐭𝐞𝐢", "Die Datei"),
        ("Die E‑Mail‐Datei", "Die E-Mail-Datei"),
        ("Wie geht´s", "Wie geht's"),
        ("F&uuml;r die Gr&ouml;&szlig;e und mehr", "Für die Größe und mehr"),
        ("Die DATEI wird GESPEICHERT", "Die Datei wird gespeichert"),
        ("DIE STRAßE UND DIE GRÖẞE.", "Die Straße und die Größe."),
    ],
)
def test_letters_are_read_in_forms_that_the_vocabulary_knows(cased, text, read):
    assert Sentence.read(text, cased).text == read


def test_copied_words_keep_their_own_letters(cased):
    sentence = Sentence.read("Die ﬁne‐Datei und Ｄａｔｅｉ, nicht Datei", cased)
    assert sentence.write("The fine-Datei and not Datei but Datei,") == "The ﬁne‐Datei and not Datei but Ｄａｔｅｉ,"
    assert Sentence.read("Siehe http://a.de/ﬁle", cased).items == ("http://a.de/ﬁle",)


@pytest.mark.parametrize(
    ("item", "raw", "mended"),
    [
        ("10 m²", "It is 10% big", "It is 10 m² big"),
        ("5 ₹", "It costs 5 today", "It costs 5 ₹ today"),
        ("€ 5", "It costs € 5.", "It costs € 5."),
        ("€ 5", "It costs 5.", "It costs € 5."),
        ("€ 5", "It costs 5 €.", "It costs € 5."),
        ("€99,99", "It costs 99,99 a piece.", "It costs €99,99 a piece."),
        ("-5 °C", "It is -5°C today.", "It is -5 °C today."),
        ("-5 °C", "It is 5 C.", "It is -5 °C."),
        ("2,5%", "It is at 2,5 %.", "It is at 2,5%."),
        ("120 km/h", "He drove 120.", "He drove 120 km/h."),
        ("19,-- EUR", "The price is 19, EUR.", "The price is 19,-- EUR."),
        ("5€", "It costs 5€.00 a piece.", "It costs 5€ a piece."),
        ("10 kB", "It has 10.5 and 10 kilobytes", "It has 10.5 and 10 kB kilobytes"),
    ],
)
def test_an_amount_takes_the_place_of_its_number_with_any_sign_and_unit(item, raw, mended):
    assert mend_copies(raw, f"Das ist {item} und mehr.", [item]) == mended


@pytest.mark.parametrize(
    ("item", "raw", "mended"),
    [
        ("https://a.de/Haus_(Film)", "See https://a.de/Haus (Film).", "See https://a.de/Haus_(Film)."),
        ("https://a.de/Haus_(Film)", "See (https://a.de/Haus_(Film)).", "See (https://a.de/Haus_(Film))."),
        ("&amp;", "Tom &; Maria", "Tom &amp; Maria"),
        ("(030) 123456", "Call (030) 12345, Tom.", "Call (030) 123456, Tom."),
        ("{name}", "Call {nam}}!", "Call {name}!"),
        ("a_b", "See a_bb.", "See a_b."),
        ("https://a.de/a_b", "See https://a.de/a_bb and so on", "See https://a.de/a_b and so on"),
        ("1990", "In the 1990s", "In the 1990s"),
        ("24.12.2023", "On 24.12.20233 it is", "On 24.12.2023 it is"),
        ("😀", "That is good.", "That is good 😀."),
    ],
)
def test_signs_that_belong_to_an_item_and_longer_words_are_told_apart(item, raw, mended):
    assert mend_copies(raw, f"Das ist gut {item}.", [item]) == mended


def test_nothing_replaces_what_is_to_be_kept():
    assert mend_copies("The file_nam is here", "Die file_name ist da", ["file_name"]) == "The file_name is here"
    found = mend_copies("The file_nam is here", "Die file_name ist da", ["file_name"], ["file_nam"])
    assert "file_nam is here" in found
    assert "file_name" in found


# Names that stand for items where the vocabulary has no marks --------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Die Datei $FILE$ und %s", "Die Datei F1 und F2"),
        ("Die 👍🏽 Datei wird 👩\u200d👩\u200d👧 geöffnet", "Die F1 Datei wird F2 geöffnet"),
        ("Das ist 日本語, العربية und 日本語.", "Das ist F1, F2 und F3."),
        ("Die <b>Datei</b> ist da", "Die F1 Datei F2 ist da"),
        ("Im Ordner ${HOME}/bin", "Im Ordner F1"),
        ("Taste F1 oder %d", "Taste F1 oder F2"),
        ("Die\u200b<b>Datei</b> \u200b%d", "Die F1 Datei F2 F3"),
        ("Von 1990, 2,5, 18:30, 1/3, -1 und A4", "Von 1990, 2,5, 18:30, 1/3, -1 und A4"),
        ("Die Datei von 1990 hat 20 Seiten", "Die Datei von 1990 hat 20 Seiten"),
        ("DIE DATEI %s IST DA.", "Die Datei F1 ist da."),
    ],
)
def test_names_stand_for_items_without_marks(cased, text, read):
    sentence = Sentence.read(text, cased)
    assert sentence.text == read
    for is_draft in (False, True):
        assert sentence.write(sentence.text, is_draft).casefold() == text.replace("\u200b", "").casefold()


def test_the_number_of_names_is_limited_and_no_item_is_lost(cased):
    text = f"Hier {' und '.join('https://example.org/a_b' for _ in range(50))} sehen."
    sentence = Sentence.read(text, cased)
    assert len(sentence.stand_ins) == MOST_NAMES
    assert sentence.write(sentence.text) == text


@pytest.mark.parametrize("sign", ["😀", "❤\ufe0f", "👍🏽", "🇩🇪", "😀😀"])
@pytest.mark.parametrize("end", [".", "!", "?!", "..."])
def test_signs_before_the_end_of_a_sentence_are_not_read(cased, sign, end):
    sentence = Sentence.read(f"Die Datei ist da {sign}{end}", cased)
    assert sentence.text == f"Die Datei ist da{end}"
    assert sentence.write("The file is here.") == f"The file is here {sign}."
    twice = Sentence.read(f"Die {sign} Datei ist da {sign}{end}", cased)
    assert twice.write(twice.text) == f"Die {sign} Datei ist da {sign}{end}"


@pytest.mark.parametrize(
    ("translation", "written"),
    [
        ("The file F1 of F2", "The file %s of {name}"),
        ("The file F2 of F1", "The file {name} of %s"),
        ("The file F1s of (XF2).", "The file %s of ({name})."),
        ("The file F1.", "The file %s {name}."),
        ("The file %s of F2", "The file %s of {name}"),
        ("The file F1gg of F2B", "The file %s of {name}"),
        ("F12 files", "%s files {name}"),
    ],
)
def test_names_that_are_spoilt_or_lost_are_mended_like_items(cased, translation, written):
    sentence = Sentence.read("Die Datei %s von {name}", cased)
    assert sentence.text == "Die Datei F1 von F2"
    assert sentence.write(translation) == written


def test_vocabularies_without_the_letters_of_names_get_the_items():
    small = train_joint_tokenizer(["abc deg hij 12"] * 3, 400)
    sentence = Sentence.read("abc 😀 deg, %s hij 👍.", small)
    assert sentence.text == "abc deg, %s hij."
    assert sentence.write("abc deg, %s hij.") == "abc 😀 deg, %s hij 👍."
    lower = train_joint_tokenizer(["abcdefghijklmnopqrstuvwxyz 0123456789 der hund"] * 3, 500, lowercase=True)
    sentence = Sentence.read("Der Hund %s", lower)
    assert sentence.text == "Der Hund f1"
    assert sentence.write("the dog f1") == "the dog %s"


def test_text_in_capitals_keeps_what_is_copied(cased):
    sentence = Sentence.read("DIE DATEI UNTER http://a.de/b ÖFFNEN", cased)
    assert sentence.capitals
    for translation in ("Open the file at http://a.de/b now", "Open the file at F1 now"):
        assert sentence.write(translation) == "OPEN THE FILE AT http://a.de/b NOW"


# Signs around a sentence ---------------------------------------------------------------------------------------------

MARKS_OF_LISTS = [
    "- ",
    "– ",
    "— ",
    "* ",
    "· ",
    "+ ",
    "> ",
    ">> ",
    "# ",
    "### ",
    "| ",
    "~ ",
    "-> ",
    "1. ",
    "10. ",
    "IV. ",
]
MARKS_OF_LISTS += ["1) ", "12) ", "a) ", "B) ", "ii) ", "(1) ", "(a) ", "[1] ", "[ ] ", "[x] ", "[] ", "a. ", "- [ ] "]
MARKS_OF_LISTS += ["*** ", "=== ", "• – ", "- 👍 ", "-\u00a0", "- - "]


@pytest.mark.parametrize("mark", MARKS_OF_LISTS)
def test_list_marks_stay_in_front(cased, tokenizer, mark):
    for of_model in (cased, tokenizer):
        for text in ("Die Datei", "Eine Datei ist da."):
            sentence = Sentence.read(f"{mark}{text}", of_model)
            assert sentence.text == text
            assert sentence.write("The file.") == f"{mark}The file."


@pytest.mark.parametrize(
    ("before", "after"),
    [("*** ", " ***"), ("+++ ", " +++"), ("=== ", " ==="), ("--- ", " ---"), ("", " –"), ("| ", " |")],
)
def test_rules_around_a_sentence_stay(cased, before, after):
    sentence = Sentence.read(f"{before}Die Datei ist da{after}", cased)
    assert sentence.text == "Die Datei ist da"
    assert sentence.write("The file is here") == f"{before}The file is here{after}"


@pytest.mark.parametrize(
    "text",
    [
        "3. Oktober ist bald",
        "1. Mai",
        "24. Dez. und mehr",
        "z. B. Anna",
        "d. h. Die Datei",
        "J. R. R. Anna",
        "3. und 4. Datei",
    ]
    + ["(der) Hund", "ja) Hund", "-Hund", "Hund - Anna", "Hund.", "Dr. Anna", "-5 Grad", "a. D. Anna", "Nr. 5 Hund"],
)
def test_what_only_looks_like_a_list_mark_is_read(tokenizer, text):
    sentence = Sentence.read(text, tokenizer)
    assert sentence.around == ("", "")
    assert sentence.write(sentence.text) == text


@pytest.mark.parametrize("item", ["§ 1", "§§ 3", "(030) 123456", "-5 °C", "€ 5", "5 ₹", "→/a/b"[1:]])
def test_a_sign_of_an_item_at_the_edge_belongs_to_it(cased, item):
    for text in (f"{item} Die Datei", f"Die Datei {item}", f"• {item} Die Datei"):
        assert Sentence.read(text, cased).items[0] == item
        assert Sentence.read(text, cased).write(Sentence.read(text, cased).text) == text


def test_bullets_of_word_processors_stay_in_front(cased):
    for sign in ("\uf0b7", "\uf0a7\t", "→", "§"):
        sentence = Sentence.read(f"{sign} Die Datei", cased)
        assert sentence.text == "Die Datei"
        assert sentence.write("The file") == f"{sign} The file"
