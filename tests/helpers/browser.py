"""A real browser for tests of pages, Debian's headless Chromium, and what they ask it."""

import base64
import shutil
import time

import pytest

PHONE = (375, 700)
DESKTOP = (1100, 900)
BROWSER_FLAGS = (
    "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync hide-scrollbars"
)
# Smallest contrast (WCAG 2) between a text and the nearest background behind it, among all that can be seen.
CONTRAST = """
const numbers = color => (color.match(/[\\d.]+/g) || []).map(Number);
const luminance = rgb => rgb.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
let worst = [99, "nothing seen"];
for (const element of document.querySelectorAll(arguments[0])) {
    const own = element.value || [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    let background = [255, 255, 255, 1];
    for (let behind = element; behind; behind = behind.parentElement) {
        const found = numbers(getComputedStyle(behind).backgroundColor);
        if (found.length === 3 || found[3] === 1) { background = found; break; }
    }
    const front = numbers(getComputedStyle(element).color);
    const [low, high] = [luminance(front), luminance(background)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < worst[0]) worst = [ratio, element.outerHTML.slice(0, 200)];
}
return worst;
"""


def find_browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with its driver here: apt-get install chromium chromium-driver")
    return browser, driver


def start_browser():
    """Headless Chromium, driven by selenium; the test is skipped where one of them is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install -e '.[space]'")
    program, driver = find_browser()
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in BROWSER_FLAGS.split():
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def emulate(browser, size, theme="light", still=True):
    """Set the size of the screen and the preferences of the device."""
    resize(browser, *size)
    motion = {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"}
    features = [motion, {"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def worst_contrast(browser, selector):
    """The smallest contrast among the texts of these elements, and the element."""
    return browser.execute_script(CONTRAST, selector)


def picture_of(browser, width):
    """PNG of the whole page."""
    resize(browser, width, browser.execute_script("return document.documentElement.scrollHeight"))
    time.sleep(1)  # for what moves on the page
    return base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])


def find_all(browser, selector):
    return browser.find_elements("css selector", selector)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return value


def resize(browser, width, height):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def is_no_wider_than_the_screen(browser):
    return browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def type_into(browser, selector, text):
    from selenium.webdriver.common.keys import Keys

    box = find_all(browser, selector)[0]
    box.send_keys(Keys.CONTROL + "a")
    box.send_keys(Keys.DELETE)
    box.send_keys(text)
