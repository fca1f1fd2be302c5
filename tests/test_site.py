"""The documents as a site: every page is built, every link works there, and it loads nothing from other servers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_documents import DOCUMENTS, ROOT

pytest.importorskip("material", reason="the extra `docs` is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", ".github/mkdocs.yml"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, "--site-dir", str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_document_is_a_page(site):
    for path in DOCUMENTS:
        if path.stem == "PULL_REQUEST_TEMPLATE":
            continue
        place = path.relative_to(ROOT).with_suffix("")
        page = place.parent if place.name == "README" else place
        assert (site / page / "index.html").is_file(), path


def test_anchors_are_those_of_a_code_host(site):
    """The strict build has checked the links; this checks that it could."""
    page = (site / "hub_card" / "docs" / "decoding" / "index.html").read_text(encoding="utf-8")
    assert 'id="what-should-i-set"' in page
    page = (site / "hub_card" / "docs" / "faq" / "index.html").read_text(encoding="utf-8")
    assert 'href="../decoding/#what-should-i-set"' in page


def test_pages_load_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|link)[^>]* (?:src|href)=\"?https?://(?!127)[^>]*>", page), path
