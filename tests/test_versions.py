"""Versions are written in several files: the ones that pip, pre-commit and the CI read say the same as setup.cfg."""

import configparser
import re
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
# Extras of the CI's run with the lowest versions.
TRIED_TOGETHER = ("train", "bench", "serve", "documents", "cluster", "test")


def requirements(text: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def lowest(requirement: Requirement) -> str:
    (bound,) = requirement.specifier
    assert bound.operator == ">=", requirement
    return bound.version


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def promised(*extras: str) -> dict[str, str]:
    """Lowest version by name: what the package itself needs, and `extras`."""
    parser = setup_cfg()
    texts = [parser["options"]["install_requires"], *(parser["options.extras_require"][extra] for extra in extras)]
    needed = (requirement for text in texts for requirement in requirements(text))
    return {canonicalize_name(requirement.name): lowest(requirement) for requirement in needed}


def pinned(path: str) -> dict[str, list[str]]:
    """Versions by name; several where they depend on the version of Python."""
    versions: dict[str, list[str]] = {}
    for requirement in requirements((ROOT / path).read_text()):
        (pin,) = requirement.specifier
        assert pin.operator == "==", requirement
        versions.setdefault(canonicalize_name(requirement.name), []).append(pin.version)
    return versions


def test_lowest_constraints_are_what_setup_cfg_promises():
    expected = {name: [version] for name, version in promised(*TRIED_TOGETHER).items()}
    assert pinned(".github/lowest-constraints.txt") == expected


def test_tested_versions_are_those_of_setup_cfg_or_later():
    tested = pinned("constraints.txt")
    for name, bound in promised(*setup_cfg()["options.extras_require"]).items():
        assert all(Version(version) >= Version(bound) for version in tested[name]), name


def test_pre_commit_runs_the_tested_ruff():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (revision,) = (repo["rev"] for repo in config["repos"] if repo["repo"].endswith("/ruff-pre-commit"))
    assert [revision.removeprefix("v")] == pinned("constraints.txt")["ruff"]


def test_ci_runs_every_version_of_python_that_is_promised():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    run = {row["python"] for row in jobs["tests"]["strategy"]["matrix"]["include"]}
    classifiers = setup_cfg()["metadata"]["classifiers"]
    assert run == set(re.findall(r"^Programming Language :: Python :: (3\.\d+)$", classifiers, re.MULTILINE))
