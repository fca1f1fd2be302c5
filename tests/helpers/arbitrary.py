"""Arbitrary text for tests of properties, and how many examples they get.

`JMNAT_PROPERTY_EXAMPLES=100` gives each property a hundred times as many examples, drawn anew in each run; without it
they are few and the same in every run.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from modeling_jmnat.plain_text import MARKS

TIMES = int(os.environ.get("JMNAT_PROPERTY_EXAMPLES", "0"))
LINE_BREAKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
ODD_CHARACTERS = [
    *MARKS,
    *LINE_BREAKS,
    *" \t\xa0\u1680\u2009\u202f\u2800\u3000",
    *"\x00\x1f\x7f\xad\u034f\u061c\u115f\u1160\u180e\u200b\u200c\u200d\u200e\u2028\u202e\u2060\u3164\ufeff\uffa0\ufffd",
    *"\u0301\u0307\u0308\u0323\u0338\u0345\u064b\u0651\u093c\u094d\u20e3\ufe0f\U000e0067\U000e0062\U000e007f",
    *"ÄäßẞİıſǅŉΣσςΐJTWYHK\u212aĳﬁ²½①Ⓐ㊙™℡Ａ\u1e9bΩ\u2329\u2adc\u1ec7",
    *"مرحبаकषரবংকᠠ日本한\u1112\u1161\u11ab\u3099か",
    *"👍🏽👩🔥🏴🇩🇪❤•‣→▁Ġ\u0120@",
    *".,;:!?…()[]{}<>\"'“”„«»-–—/\\%$€#&*_~|",
]
WORDS = [
    *(
        "Haus",
        "Häuser",
        "und",
        "DATEI",
        "ÖFFNEN",
        "öffnen",
        "Straße",
        "STRASSE",
        "die",
        "z. B.",
        "Dr.",
        "am 3. Okt.",
        "ok",
    ),
    *("ban", "der", "gis", "Kon", "LUX", "mar.", "ban der gis.", "I", "A"),
    *("<s>", "</s>", "<mask>", "<pad>", "<unk>", "<0x41>", "<0xE4>", "[LEN]", "@@", "</w>", "__"),
    *("7", "42", "1.234,50", "10 000", "-5", "3/4", "24.12.2023", "1.234,50 €", "$19.99", "+49 30 123456", "90er"),
    *(
        "http://www.example.org/a?b=1",
        "info@example.de",
        "$FILE_NAME$",
        "${name}",
        "%PATH%",
        "%1$s",
        "{0}",
        "{{user}}",
    ),
    *("[[link]]", "<emph>", '<a href="x">', "&amp;", "snake_case", "--help", "/usr/bin/env", "report.pdf", "v1.2.3"),
    *(
        "👩\u200d👩\u200d👧",
        "🏴\U000e0067\U000e0062\U000e007f",
        "❤\ufe0f\u200d🔥",
        "می\u200cخواهم",
        "क्\u200dष",
        "Ωμέγα",
        "日本語",
    ),
]
CHARACTERS = st.characters(exclude_categories=["Cs"])


def texts(largest=10, extra=()):
    """Any Unicode text: of `largest` parts at most, which are words, odd characters and whatever else there is."""
    parts = st.one_of(
        st.sampled_from([*WORDS, *extra]),
        st.sampled_from([" ", " ", ". ", *ODD_CHARACTERS]),
        st.lists(st.sampled_from(ODD_CHARACTERS), max_size=4).map("".join),
        st.text(CHARACTERS, max_size=3),
    )
    return st.lists(parts, max_size=largest).map("".join)


def examples(count: int):
    """Settings of a property that is tested on `count` examples."""
    return settings(
        max_examples=count * max(1, TIMES),
        derandomize=not TIMES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
