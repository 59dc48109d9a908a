"""Where things are in a run folder, and what its logs may look like when they are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tokensieve.runs import layout
from tokensieve.runs.errors import UserError

LINE = '{"step": 1, "tokens_seen": 10}\n'


def test_names_are_read_as_they_are_written(tmp_path: Path) -> None:
    """In order of numbers: a sort of names puts checkpoint-10 before checkpoint-9, and step-100000000 before step-99999999."""
    steps = (100_000_000, 9, 99_999_999, 10)
    for step in steps:
        layout.checkpoint(tmp_path, step).mkdir()
        layout.token_file(tmp_path, step).parent.mkdir(exist_ok=True)
        layout.token_file(tmp_path, step).touch()
        layout.nll_file(tmp_path, step).touch()
    for name in (
        "checkpoint-x",
        "checkpoint-",
        "damaged-checkpoint-7",
        "tokens/step-x.parquet",
        "tokens/step-3.parquet.1.tmp",
    ):
        (tmp_path / name).mkdir()
    assert list(layout.checkpoints(tmp_path).items()) == [(s, layout.checkpoint(tmp_path, s)) for s in sorted(steps)]
    assert list(layout.token_files(tmp_path).items()) == [(s, layout.token_file(tmp_path, s)) for s in sorted(steps)]
    assert layout.nll_files(tmp_path) == [layout.nll_file(tmp_path, s) for s in sorted(steps)]
    assert layout.step_of(tmp_path / "damaged-checkpoint-7") == 7
    assert layout.token_file(tmp_path, 10) == tmp_path / "tokens" / "step-00000010.parquet"


def test_a_folder_without_logs(tmp_path: Path) -> None:
    assert layout.token_lines(tmp_path) == []
    assert (layout.checkpoints(tmp_path), layout.token_files(tmp_path), layout.nll_files(tmp_path)) == ({}, {}, [])


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (LINE + '{"step": 2, "tok', "line 2 is not JSON"),
        (LINE + "\n" + LINE, "line 2 is not JSON"),
        (LINE + "\0\0\0\n", "line 2 is not JSON"),
        (LINE + '{"step": 2, "x": "\udcff"}\n', "line 2 is not JSON"),
        ("[" * 100_000 + "\n", "line 1 is not JSON"),
        ("7\n", "line 1 does not say its step"),
        ('{"seen": 7}\n', "line 1 does not say its step"),
        ('{"step": null}\n', "line 1 does not say its step"),
    ],
)
def test_a_damaged_log_is_named(written: str, said: str, tmp_path: Path) -> None:
    """Of seven readers one said what was wrong; the others ended in a JSONDecodeError, a TypeError or a KeyError."""
    (tmp_path / layout.TOKEN_LOG).write_bytes(written.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=rf"tokens\.jsonl is damaged: {said}"):
        layout.token_lines(tmp_path)


def test_a_run_at_work_may_be_writing_its_last_line(tmp_path: Path) -> None:
    """Half a line at the end of a log whose run goes on is no damage; in its middle it is."""
    log = tmp_path / layout.TOKEN_LOG
    log.write_text(LINE + '{"step": 2, "tok')
    assert layout.token_lines(tmp_path, live=True) == [json.loads(LINE)]
    log.write_text(LINE + '{"step": 2, "tok\n' + LINE)
    with pytest.raises(UserError, match="line 2 is not JSON"):
        layout.token_lines(tmp_path, live=True)


def test_seconds_add_up_over_processes(tmp_path: Path) -> None:
    times = [(1, 1, 2.0), (1, 2, 5.0), (2, 2, 1.5), (2, 3, 4.25)]
    (tmp_path / layout.TIMES).write_text(
        "".join(json.dumps({"process": p, "step": s, "seconds": t}) + "\n" for p, s, t in times)
    )
    assert layout.seconds(tmp_path) == 9.25


def test_a_damaged_log_through_the_command_line(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """A finished run is refused by name; of an unfinished one, whose last line is torn, the checkpoints are evaluated."""
    shutil.copytree(tiny.clm, tmp_path / "run")
    with open(tmp_path / "run" / "tokens.jsonl", "a") as f:
        f.write('{"step": 5, "tok')
    command = ("evaluate", "--models.run", tmp_path / "run", "--sets.target", tiny.target)
    done = tokensieve(*command, "--out", tmp_path / "out")
    assert done.code == 2
    assert "tokens.jsonl is damaged: line 5 is not JSON" in done.error
    (tmp_path / "run" / "manifest.json").unlink()
    done = tokensieve(*command, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    records = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [r["step"] for r in records] == [4]
