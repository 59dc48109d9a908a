"""The tables of docs/systems.md: their rows, and the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tokensieve.pipeline.verbs import VERBS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "systems.md"
RUN_AS_PRINTED = "## Before selection"
"""The section whose commands a test runs as they stand."""


def table_rows(section: str = "") -> list[list[str]]:
    """The cells of each row of the page's tables: system, command, works, verified by, does not. ``section``: how the heading
    begins under which they stand; all of them if not given."""
    rows, heading = [], ""
    for line in PAGE.read_text("utf-8").splitlines():
        heading = line if line.startswith("#") else heading
        if line.startswith("|") and heading.startswith(section):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [row for row in rows if row[0] != "system" and set(row[0]) - set("-: ")]


def commands(cell: str) -> list[list[str]]:
    """The words of each command in a cell: what stands in backticks and begins with a verb."""
    quoted = [shlex.split(text) for text in re.findall(r"`([^`]+)`", cell)]
    words = [q[1:] if q[0] == "tokensieve" else q for q in quoted]
    return [w for w in words if w[0] in VERBS]
