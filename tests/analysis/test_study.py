"""benchmarks/study.py on made-up seeds: what it compares comes from the rows, not from names that it knows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

STUDY = Path(__file__).resolve().parents[2] / "benchmarks" / "study.py"


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("study", STUDY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(arm: str, objective: str, nll: float) -> dict[str, Any]:
    return {
        "arm": arm, "objective": objective, "nll": nll, "bits_per_byte": nll / 3, "others": {}, "speedup": None,
        "tokens_seen": 1e6, "tokens_trained": 6e5, "flops_student": 8e12, "flops_scoring": 0.0, "flops_reference": 0.0,
        "seconds": 10.0, "kept_share": 1.0, "kept_share_by_source": {"a": 1.0},
    }  # fmt: skip


def seed(shift: float) -> list[dict[str, Any]]:
    arms = [("plain", "clm", 5.0), ("coin", "random", 5.1), ("entropy", "entropy", 4.8 + shift)]
    return [{"arm": "base", "nll": 6.0, "bits_per_byte": 2.0, "others": {}}, *(row(*a) for a in arms)]


def test_arms_by_any_name(study: Any) -> None:
    """Only arms called rho1, random, rho1_mixed and clm_mixed were compared with anything but the baseline."""
    text = study.render("made", {i: seed(s) for i, s in enumerate((0.0, 0.02, 0.01))}, "plain", "target")
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if " - " in line]
    assert [line[0] for line in lines] == ["coin - plain", "entropy - plain", "entropy - coin"]
    assert lines[1][1:] == ["-0.2000, -0.1800, -0.1900", "0.0100", "-0.1900 ± 0.0248"]
    assert "± is half of the 95 % t interval over seeds." in text
    assert "\n\nPays: entropy ends 0.190 ± 0.025 nats below plain and 0.290 ± 0.025 nats below coin on target" in text


def test_one_seed(study: Any) -> None:
    text = study.render("made", {0: seed(0.0)}, "plain", "target")
    assert "One seed decides nothing: entropy ends" in text
    assert text.count("±") == 2  # in what it is, and in a heading
