"""A hook of MkDocs: the site has every document of the repository under its own path, and the files they link to.

Headings get the anchors that a code host gives them, so that the same links work in both places.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)[^)\s]*\)")


def on_config(config):
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files, config):
    theirs = [file for file in files if file.src_dir != config.docs_dir]  # of the theme
    documents = [ROOT / "README.md", *ROOT.glob(".github/C*.md"), *ROOT.glob("hub_card/**/*.md")]
    linked = {found for path in documents for found in files_linked_in(path)}
    own = [
        File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls)
        for path in sorted(linked.union(documents))
    ]
    return Files([*theirs, *own])


def files_linked_in(document: Path) -> set[Path]:
    """Files of the repository, such as pictures; links to elsewhere are left alone."""
    places = LINK.findall(document.read_text(encoding="utf-8"))
    paths = {(document.parent / place).resolve() for place in places if "://" not in place}
    return {path for path in paths if path.is_file() and ROOT in path.parents}
