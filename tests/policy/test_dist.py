"""What is packed and cited: every file that the package reads is in the wheel, and one version is said everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import tokensieve

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "tokensieve"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_every_file_of_the_package_is_packed() -> None:
    """A template that no pattern names is there in a checkout and missing in a wheel."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["tokensieve"]
    packed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    files = {p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert files - packed == set()
    rooms = {p.parent for p in PACKAGE.rglob("*.py")}
    assert [room for room in rooms if not (room / "__init__.py").is_file()] == []


def test_one_version_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(cited)
    assert PROJECT["project"]["version"] == cited["version"] == tokensieve.__version__
    assert cited["license"] == PROJECT["project"]["license"]
    assert re.search(r"2404\.07965", str(cited["references"]))
