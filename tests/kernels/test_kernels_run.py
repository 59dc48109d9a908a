"""What `make test-kernels` says of a test that is right under one combination only."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import warm


@pytest.fixture
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernels_run", Path(__file__).with_name("run.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_bad_combination_is_a_failure(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last combination's exit code, or a variable that never reached the tests, would look like six good ones."""
    test = tmp_path / "test_machine.py"
    test.write_text("""
import os
def test_machine():
    assert os.environ["ATEN_CPU_CAPABILITY"] == "default"
    assert os.environ["OMP_NUM_THREADS"] == "1", "two threads"
""")
    monkeypatch.setattr(runner, "TESTS", [str(test)])
    monkeypatch.setattr("sys.executable", warm.python())
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # a worker is a start of pytest, and one is enough here
    assert runner.main(["default", "--threads", "2", "1"]) == 1
    said = capsys.readouterr().out
    lines = [line.split()[:3] for line in said.splitlines() if line.startswith(("FAILED  ", "passed  "))]
    assert lines == [["FAILED", "default", "2"], ["passed", "default", "1"]]
    assert "two threads" in said


def test_what_a_processor_lacks_is_said(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch takes ATEN_CPU_CAPABILITY at its word and dies of the first instruction."""
    monkeypatch.setattr("torch.cpu._is_avx512_supported", lambda: False)
    assert runner.main(["avx512"]) == 0
    assert "LEFT OUT  avx512" in capsys.readouterr().out


def test_the_list_is_of_tests_that_exist(runner: ModuleType) -> None:
    assert [test for test in runner.TESTS if not (runner.ROOT / test).exists()] == []
