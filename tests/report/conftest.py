"""Made runs and their pages, built once, that the tests of the report look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from made_run import make_run
from shared import once

from tokensieve.pipeline.report import ReportConfig, run

WORDS = "the token that is worth its loss is kept and every other one is dropped while noise stays noise".split()  # noqa: SIM905
# What text can try on a page: elements, handlers, the end of a script, line separators, bidirectional controls, a long run.
HOSTILE = (
    "<script>window.pwned = 1</script> and </script><script>window.pwned = 2</script> ]]> <!-- --> <!--<script>",
    '<img src=x onerror="window.pwned = 3"> <svg onload=window.pwned=4> " onmouseover="window.pwned=5" {{body}} {{script}}',
    "line \u2028 and paragraph \u2029 separators, \u202eright to left override\u202c, \u2066isolate\u2069, \u200bno width",
    "emoji 👩‍👩‍👧 and 🏳️‍🌈, 数学, naïve, שלום, e\u0301, \ufffd genuine, $x^2$ and \\frac{1}{2}",
    "a" * 10_000,
    "&lt;b&gt; javascript:window.pwned=6 %3Cscript%3E \\u003cscript\\u003e",
)


def documents(count: int, seed: int) -> list[str]:
    return [
        "\n".join(" ".join(WORDS[(i * 7 + j * 3 + k * k + seed) % len(WORDS)] for k in range(9)) for j in range(4))
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two sources, one of them a needle: "zebra" stands in one document only. Its page is beside it."""

    def make(folder: Path) -> None:
        texts = {"plain": [*documents(8, 0), "a zebra crosses here, the only zebra of all"], "noise": documents(6, 1)}
        run(ReportConfig([str(make_run(folder / "run", texts, frames=5))]))

    return once(tmp_path_factory, "report", make) / "run"


@pytest.fixture(scope="session")
def page(made: Path) -> Path:
    return made / "report.html"


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose texts, document names and sources attack it."""

    def make(folder: Path) -> None:
        texts = {"<b>bold<b> $x$": list(HOSTILE), "script>alert(1)<": documents(2, 0)}
        run(ReportConfig([str(make_run(folder / "run", texts, name="</title><script>window.pwned = 7</script>"))]))

    return once(tmp_path_factory, "hostile-report", make) / "run" / "report.html"


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    lacks = chromium.missing()
    if lacks and not chromium.required():
        pytest.skip(lacks)
    assert lacks is None, f"REQUIRE_BROWSER is set, but {lacks}"
    with chromium.browser() as opened:
        yield opened
