"""All metadata stand in setup.cfg, but the text for the package index: the README, whose links end there."""

import configparser
import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
RELATIVE_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def with_absolute_links(text: str, repository: str | None) -> str:
    """Markdown whose links into the repository are absolute ones, or without an address only their words."""

    def mended(link: re.Match) -> str:
        picture, words, target = link.groups()
        if repository is None:
            return "" if picture else words
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/HEAD/{target})"

    return RELATIVE_LINK.sub(mended, text)


def repository() -> str | None:
    """The address `Source` among the `project_urls` of setup.cfg."""
    config = configparser.ConfigParser()
    config.read(HERE / "setup.cfg", encoding="utf-8")
    urls = dict(line.split(" = ") for line in config["metadata"]["project_urls"].strip().splitlines())
    return urls.get("Source")


if __name__ == "__main__":
    setup(long_description=with_absolute_links((HERE / "README.md").read_text(encoding="utf-8"), repository()))
