"""The page of `hub_card/space` in a real browser, Debian's headless Chromium.

Needs `pip install -e '.[space]'` and `apt-get install chromium chromium-driver`, and is skipped without.
JMNAT_SCREENSHOTS=1 writes the pictures in `hub_card/space` anew.
"""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import passes
import pytest
from transformers import AutoTokenizer

from tests.helpers.browser import (
    DESKTOP,
    PHONE,
    emulate,
    find_all,
    is_no_wider_than_the_screen,
    picture_of,
    start_browser,
    type_into,
    wait_for,
    worst_contrast,
)
from tests.helpers.teacher_samples import random_teacher

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "hub_card" / "space"

SENTENCE = "Er hat mir gesagt, dass er morgen nicht kommen kann."


def start_app(log, **variables):
    """The page's process and address, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    offline = {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SERVER_PORT": str(port)}
    environment = {name: value for name, value in os.environ.items() if name not in ("MODEL", "TEACHER")}
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=SPACE, stdout=output, stderr=output, env=environment | offline | variables
        )
    address = f"http://127.0.0.1:{port}/"
    for _ in range(480):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return process, address
        except OSError:
            time.sleep(0.25)
    process.kill()
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[space]'")
    browser = start_browser()
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    """The page with the shipped model and an untrained teacher."""
    folder = tmp_path_factory.mktemp("page")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "hub_card" / "de-en")
    random_teacher(tokenizer).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    process, address = start_app(folder / "log", TEACHER=str(folder / "teacher"))
    yield address
    process.terminate()
    process.wait(timeout=30)


def open_page(browser, address, size=DESKTOP, theme="light", still=True):
    emulate(browser, size, theme, still)
    browser.get(f"{address}?__theme={theme}")
    wait_for(lambda: find_all(browser, "#translate") and find_all(browser, "#text textarea"))


def press_translate(browser):
    """Wait until a new result replaces the old one, which is marked first."""
    browser.execute_script("document.querySelectorAll('#result .jmnat').forEach(old => old.classList.add('old'))")
    find_all(browser, "#translate")[0].click()
    wait_for(lambda: find_all(browser, "#result .jmnat:not(.old)"))


def ask(browser, sentence, num_passes=None):
    type_into(browser, "#text textarea", sentence)
    if num_passes is not None:
        type_into(browser, "#passes input[type=number]", str(num_passes))
    press_translate(browser)


def message(browser):
    return find_all(browser, "#result .message")[0].text


def test_a_sentence_is_translated_in_k_passes(browser, address):
    open_page(browser, address)
    ask(browser, SENTENCE, num_passes=4)
    expected = passes.translate(*passes.load(passes.model_name()), SENTENCE, 4, 4)
    assert find_all(browser, "#final-text")[0].text == expected.text
    rows = find_all(browser, "#best .pass")
    assert len(rows) == 4
    heads = [row.find_element("css selector", "header").text for row in rows]
    for number, (head, tokens) in enumerate(zip(heads, expected.candidates[0].passes, strict=True), start=1):
        masked = sum(token.masked for token in tokens)
        assert re.fullmatch(rf"Pass {number}\s+{masked} of {len(tokens)} masked\s+[\d.]+ ms", head), head
    assert len(find_all(browser, "#lengths .card")) == 4
    assert len(find_all(browser, "#teacher .chip")) > 1
    assert find_all(browser, ".times")[1].text.startswith("Word by word:")

    type_into(browser, "#passes input[type=number]", "7")
    press_translate(browser)
    assert len(find_all(browser, "#best .pass")) == 7
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_enter_an_example_and_the_other_options(browser, address):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, address)
    type_into(browser, "#lengths input[type=number]", "2")
    own, other = (
        browser.find_element("xpath", f"//label[contains(., '{label}')]")
        for label in ("words one by one", "neighbours together")
    )
    assert own.find_element("tag name", "input").is_selected()  # what is tuned for the shipped model
    other.click()
    type_into(browser, "#text textarea", "Hallo." + Keys.ENTER)
    wait_for(lambda: find_all(browser, "#final-text"))
    assert len(find_all(browser, "#lengths .card")) == 2
    find_all(browser, "#lengths summary")[1].click()
    assert find_all(browser, "#lengths details")[1].find_element("css selector", ".pass").is_displayed()

    example = "Wenn es morgen regnet, bleiben wir zu Hause."
    browser.find_element("xpath", f"//button[contains(., '{example}')]").click()
    wait_for(lambda: find_all(browser, "#text textarea")[0].get_property("value") == example)
    press_translate(browser)
    expected = passes.translate(*passes.load(passes.model_name()), example, 4, 2, adjacent=True)
    assert find_all(browser, "#final-text")[0].text == expected.text


def test_mistakes_get_one_sentence(browser, address):
    open_page(browser, address)
    ask(browser, "")
    assert message(browser) == "Please type a German sentence first."
    paste = "const box = document.querySelector('#text textarea'); box.value = arguments[0];"
    browser.execute_script(paste + "box.dispatchEvent(new Event('input', {bubbles: true}))", "sehr " * 600)
    press_translate(browser)
    assert re.fullmatch(r"This text has \d{3,} tokens, but the model reads at most 512: .*", message(browser))
    assert is_no_wider_than_the_screen(browser)
    ask(browser, "Hallo.", num_passes="2.5")
    assert message(browser) == "The number of passes must be a whole number from 1 to 10, not 2.5."
    ask(browser, "Hallo.", num_passes="99")  # the box itself keeps to its range
    assert len(find_all(browser, "#best .pass")) == 10


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_fits_and_can_be_read(browser, address, size, theme):
    """No horizontal scrolling even with a very long word; the contrast of text is at least 4.5 to 1."""
    open_page(browser, address, size, theme)
    ask(browser, "Die Donaudampfschifffahrtsgesellschaft meldete " + "xqz" * 25 + " 3,5 % Gewinn <b>.", num_passes=3)
    assert is_no_wider_than_the_screen(browser)
    assert message(browser).startswith("Word by word: This text has")  # only the teacher reads less at a time
    top = "return document.querySelector('#final-text').getBoundingClientRect().top"
    wait_for(lambda: 0 <= browser.execute_script(top) < size[1])  # on a phone the page scrolls to it
    colours = "return [...document.querySelectorAll('.chip')].map(chip => getComputedStyle(chip).backgroundColor)"
    assert len(set(browser.execute_script(colours))) == 5
    assert browser.execute_script("return document.body.classList.contains('dark')") == (theme == "dark")
    for selector in ("#result *", "#translate", "#text *, #passes *, h1, .prose p"):
        ratio, element = worst_contrast(browser, selector)
        assert 4.5 <= ratio < 99, (ratio, element)


def test_passes_appear_one_after_the_other_from_their_masks(browser, address):
    open_page(browser, address, still=False)
    ask(browser, SENTENCE, num_passes=5)
    style = "return getComputedStyle(document.querySelectorAll('#best .pass')[arguments[0]])"
    delays = [browser.execute_script(f"{style}.animationDelay", turn) for turn in range(5)]
    assert [float(delay.rstrip("s")) for delay in delays] == pytest.approx([0, 0.45, 0.9, 1.35, 1.8])
    chips = "return [...document.querySelectorAll('#best .chip')]"
    masked = browser.execute_script(f"{chips}.map(chip => chip.classList.contains('masked'))")
    animations = browser.execute_script(f"{chips}.map(chip => getComputedStyle(chip).animationName)")
    assert animations == ["unmask" if mask else "none" for mask in masked]
    assert 0 < sum(masked) < len(masked)
    wait_for(lambda: browser.execute_script(f"{style}.opacity", 4) == "1", seconds=20)


@pytest.mark.skipif("JMNAT_SCREENSHOTS" not in os.environ, reason="pictures are written with JMNAT_SCREENSHOTS=1 only")
@pytest.mark.parametrize(
    ("name", "size", "theme"), [("light", DESKTOP, "light"), ("dark", DESKTOP, "dark"), ("phone", (375, 812), "light")]
)
def test_screenshots(tmp_path, browser, name, size, theme):
    """With the shipped model, and a teacher where TEACHER names one."""
    variables = {"TEACHER": os.environ["TEACHER"]} if os.environ.get("TEACHER") else {}
    process, address = start_app(tmp_path / "log", **variables)
    try:
        open_page(browser, address, size, theme)
        ask(browser, SENTENCE, num_passes=4)
        find_all(browser, "h1")[0].click()  # nothing is pointed at or focused
        picture = picture_of(browser, size[0])
    finally:
        process.terminate()
        process.wait(timeout=30)
    path = SPACE / f"screenshot_{name}.png"
    path.write_bytes(picture)
    assert path.stat().st_size < 300_000
