"""Stages side by side: equal bytes for every number of jobs, one failure that stops nothing else, and signals for all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import warm
from processes import environment

from tokensieve.pipeline.recipe import estimate as plan
from tokensieve.pipeline.recipe import run as recipe
from tokensieve.pipeline.recipe.jobs import Ended, StagesFailed, num_threads, side_by_side
from tokensieve.pipeline.recipe.load import RecipeConfig, load
from tokensieve.runs.errors import Stopped, UserError

RECIPE = """
name: side-by-side
threads: 1
stages:
  text: {verb: prepare, vocab_size: 300, length: 32, max_rows: 40, sources: [{path: "%s/*.txt"}]}
  whole: {verb: check, folders: ["@text"]}
  base:
    verb: train
    corpus: "@text"
    model: {model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2,
            num_key_value_heads: 2, max_position_embeddings: 32}
    training: {max_steps: 2, save_strategy: "no", use_cpu: true}
  clm: {verb: train, corpus: "@text", model: "@base", training: {max_steps: %d, use_cpu: true}}
  random: {verb: train, corpus: "@text", model: "@base", objective: {name: random}, training: {max_steps: 6, use_cpu: true}}
  scores: {verb: score, corpus: "@text", model: "@base", device: cpu}
  rho1: {verb: train, corpus: "@text", model: "@base", scores: ["@scores"], objective: {name: rho1},
         training: {max_steps: 6, use_cpu: true}}
  evaluation: {verb: evaluate, models: {clm: "@clm", rho1: "@rho1"}, sets: {text: "@text"}, checkpoints: true, device: cpu}
"""
STOPPED = "import os; print(os.getpid(), flush=True); from tokensieve.cli import main; raise SystemExit(main())"
# What has a clock, or the folder's own path, in it.
WITH_CLOCK = ("manifest.json", "summary.json", "times.jsonl", "train_config.json", "trainer_state.json")


@pytest.fixture(scope="module", autouse=True)
def _warm(warm_pools: None) -> None:
    """A pool's processes need not import torch here, one by one."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import corpora

    folder = tmp_path_factory.mktemp("jobs")
    text = corpora.write_text(folder / "text")
    (folder / "recipe.yaml").write_text(RECIPE % (text, 6), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def two_at_once(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two") / "run"
    recipe.run(RecipeConfig(str(path), out=str(out), jobs=2))
    return out


def bytes_of(out: Path) -> dict[str, bytes]:
    """What stages wrote; names that begin with a dot are nobody's result (.lock, .verified.json)."""
    files = sorted(p for p in out.rglob("[!.]*") if p.is_file() and p.name not in WITH_CLOCK)
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def test_the_number_of_jobs_changes_no_byte(path: Path, two_at_once: Path, tmp_path: Path) -> None:
    """Threads that follow the number of jobs add up sums in another order: other weights for every ``--jobs``."""
    import torch

    before = torch.get_num_threads()
    recipe.run(RecipeConfig(str(path), out=str(tmp_path / "run")))
    assert torch.get_num_threads() == before
    one, two = bytes_of(tmp_path / "run"), bytes_of(two_at_once)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name] and name != "recipe.yaml"] == []
    assert any(name.endswith(".safetensors") for name in one)


def test_what_is_done_is_skipped(path: Path, two_at_once: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe.run(RecipeConfig(str(path), out=str(two_at_once)))
    told = capfd.readouterr().out
    assert told.count("done already") == 7
    assert "rho1: done already" in told


def test_trained_models_are_not_lost(path: Path, two_at_once: Path, tmp_path: Path) -> None:
    """``--allow_code``, a permission, made finished training another work; and a training folder that had lost its manifest was
    removed with its checkpoints, unasked."""
    out = tmp_path / "run"
    shutil.copytree(two_at_once, out)
    before = (out / "clm" / "manifest.json").read_bytes()
    recipe.run(RecipeConfig(str(path), out=str(out), allow_code=True))
    assert (out / "clm" / "manifest.json").read_bytes() == before
    (out / "clm" / "manifest.json").unlink()
    with pytest.raises(UserError, match="does not say what work it belongs to"):
        recipe.run(RecipeConfig(str(path), out=str(out)))
    assert list((out / "clm").glob("checkpoint-*/model.safetensors"))


def test_needs_are_what_is_read_and_what_checks_it(path: Path, tmp_path: Path) -> None:
    """Side by side, training on a corpus whose check fails would begin before the check is through."""
    made = load(RecipeConfig(str(path), out=str(tmp_path / "run")))
    needs = plan.needs_of(made.stages)
    assert needs["base"] == {"text", "whole"}
    assert needs["clm"] == {"text", "whole", "base"}
    assert needs["rho1"] == {"text", "whole", "base", "scores"}
    assert needs["evaluation"] == {"text", "whole", "clm", "rho1"}


def test_a_need_may_be_spelled_in_any_way(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared as text, ``runs/x`` and the same folder from the root, or through a link, did not need each other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for spelled in (tmp_path / "run" / "text", Path("run") / ".." / "run" / "text", tmp_path / "link" / "text"):
        text = path.read_text().replace(
            'base:\n    verb: train\n    corpus: "@text"', f'base:\n    verb: train\n    corpus: "{spelled}"'
        )
        (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
        needs = plan.needs_of(load(RecipeConfig("r.yaml", out="run")).stages)
        assert "text" in needs["base"], spelled


# --- the pool ------------------------------------------------------------------------------------------------------------


def write(folder: str, name: str, seconds: float = 0.0) -> None:
    time.sleep(seconds)
    (Path(folder) / name).write_text(str(time.monotonic()), encoding="utf-8")


def fail(error: str) -> None:
    raise {
        "user": UserError("this is wrong"),
        "code": ZeroDivisionError("by zero"),
        "disk": OSError(28, "No space", "x"),
    }[error]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_all(tasks: dict[str, Any], needs: dict[str, set[str]], jobs: int = 2) -> list[str]:
    begun: list[str] = []
    needed = {name: frozenset(needs.get(name, ())) for name in tasks}
    side_by_side(tasks, needed, jobs=jobs, threads=1, starting=begun.append)
    return begun


@pytest.mark.parametrize(
    ("task", "says", "code"),
    [
        ((fail, ("user",)), "stage bad failed: this is wrong", 2),
        ((fail, ("code",)), "stage bad failed: unexpected ZeroDivisionError: by zero", 1),
        ((fail, ("disk",)), "stage bad failed: x: No space", 2),
        ((die, ()), r"stage bad failed: its process died \(signal SIGKILL\)", 1),
    ],
)
def test_a_failed_stage_lets_the_others_finish(tmp_path: Path, task: Any, says: str, code: int) -> None:
    """And what needs it is not begun; its process, should it have died, is there again for the next one."""
    folder = str(tmp_path)
    tasks = {"bad": task, "long": (write, (folder, "long", 0.4)), "after": (write, (folder, "after")),
             "more": (write, (folder, "more")), "last": (write, (folder, "last"))}  # fmt: skip
    with pytest.raises(StagesFailed, match=f"{says}.*; not begun for want of it: after; all others are done") as e:
        run_all(tasks, {"after": {"bad"}, "last": {"long"}})
    assert e.value.code == code
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "long", "more"]


@pytest.mark.parametrize("times", [1, 2])
def test_what_a_signal_ended_did_not_die_for_want_of_memory(tmp_path: Path, times: int) -> None:
    """What was starting, or ended by a second Ctrl-C: "its process died (signal SIGINT), most likely for want of memory"."""
    folder = str(tmp_path)

    def starting(name: str) -> None:
        if name == "b":
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    tasks = {"a": (write, (folder, "a", 30.0)), "b": (write, (folder, "b", 30.0))}
    with pytest.raises(Stopped, match=r"^stopped; start it again to go on$"):
        side_by_side(tasks, dict.fromkeys(tasks, frozenset()), jobs=2, threads=1, starting=starting)
    assert not list(tmp_path.iterdir())


def kill_idle(folder: str, name: str) -> None:
    """Kill the process that did stage a, which is idle by now."""
    while not (Path(folder) / "a").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(int((Path(folder) / "a").read_text()), signal.SIGKILL)
    time.sleep(0.3)
    write(folder, name)


def note_pid(folder: str) -> None:
    (Path(folder) / "a").write_text(str(os.getpid()), encoding="utf-8")


def test_an_idle_process_that_died_is_there_again(tmp_path: Path) -> None:
    """Its place took the next stage with a broken pipe, and that ended the others unfinished."""
    folder = str(tmp_path)
    tasks = {"a": (note_pid, (folder,)), "b": (kill_idle, (folder, "b")), "c": (write, (folder, "c"))}
    run_all(tasks, {"c": {"b"}}, jobs=2)
    assert (tmp_path / "c").exists()


def test_nothing_begins_after_a_signal(tmp_path: Path) -> None:
    """A stage that was being started while the signal came ran to its end, and so did the one after it."""
    folder, begun = str(tmp_path), []

    def starting(name: str) -> None:
        begun.append(name)
        if name == "b":
            os.kill(os.getpid(), signal.SIGTERM)

    tasks = {name: (write, (folder, name, 30.0)) for name in ("a", "b", "c")}
    with pytest.raises(Stopped):
        side_by_side(tasks, dict.fromkeys(tasks, frozenset()), jobs=3, threads=1, starting=starting)
    assert begun == ["a", "b"]
    assert not list(tmp_path.iterdir())


def test_a_stage_waits_for_what_it_needs(tmp_path: Path) -> None:
    folder = str(tmp_path)
    tasks = {name: (write, (folder, name, 0.2)) for name in ("a", "b", "c")}
    assert run_all(tasks, {"b": {"a"}, "c": {"elsewhere"}}, jobs=3) == ["a", "c", "b"]
    times = {name: float((tmp_path / name).read_text()) for name in tasks}
    assert times["b"] - times["a"] >= 0.2
    assert abs(times["a"] - times["c"]) < times["b"] - times["a"] + 5  # together, as far as two cores can


def test_threads_are_put_back() -> None:
    import torch

    before = torch.get_num_threads()
    with num_threads(1):
        assert torch.get_num_threads() == 1
    with num_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_ended_well_is_code_0() -> None:
    assert Ended().code == 0
    assert issubclass(StagesFailed, UserError)
    assert not issubclass(Stopped, UserError)


# --- refusals and signals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("threads: 0", "threads: a whole number of at least 1 is needed, not 0"),
        ("threads: true", "threads: a whole number of at least 1 is needed, not True"),
    ],
)
def test_threads_that_make_no_sense_are_refused(path: Path, tmp_path: Path, change: str, says: str) -> None:
    (tmp_path / "r.yaml").write_text(path.read_text().replace("threads: 1", change), encoding="utf-8")
    with pytest.raises(UserError, match=says):
        recipe.run(RecipeConfig(str(tmp_path / "r.yaml"), out=str(tmp_path / "run")))


@pytest.mark.parametrize("jobs", [0, -1])
def test_no_jobs_are_refused(path: Path, tmp_path: Path, jobs: int) -> None:
    with pytest.raises(UserError, match=f"jobs must be at least 1, not {jobs}"):
        recipe.run(RecipeConfig(str(path), out=str(tmp_path / "run"), jobs=jobs))
    assert not (tmp_path / "run").exists()


def test_more_models_than_memory_are_refused(path: Path, tmp_path: Path) -> None:
    """Three models of 70 GB at once: the machine kills one of them hours later."""
    large = path.read_text().replace(
        "hidden_size: 32, intermediate_size: 48", "hidden_size: 65536, intermediate_size: 262144"
    )
    (tmp_path / "large.yaml").write_text(large, encoding="utf-8")
    with pytest.raises(UserError, match=r"jobs: 2 models at once \(.*\) take at least .* TB of memory, .* are free"):
        recipe.run(RecipeConfig(str(tmp_path / "large.yaml"), out=str(tmp_path / "run"), jobs=2))
    assert not (tmp_path / "run").exists()


def test_a_signal_stops_all_and_the_next_start_goes_on(path: Path, tmp_path: Path) -> None:
    """Ctrl-C ends every stage at a point from which it goes on, and no process stays behind."""
    text = path.read_text().replace("max_steps: 6", "max_steps: 4000, save_steps: 1000")
    (tmp_path / "long.yaml").write_text(text, encoding="utf-8")
    args = ["run", str(tmp_path / "long.yaml"), "--out", str(tmp_path / "run"), "--jobs", "2"]
    process = subprocess.Popen([warm.python(), "-c", STOPPED, *args], env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    pid = process.stdout.readline().strip()
    logs = [tmp_path / "run" / name / "tokens.jsonl" for name in ("clm", "random")]
    deadline = time.monotonic() + 120
    while not all(p.exists() for p in logs) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", pid], capture_output=True, text=True, check=False).stdout.split()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "start it again to go on" in err
    assert "Traceback" not in err
    assert len(children) >= 2
    deadline = time.monotonic() + 10  # multiprocessing's own helper leaves a moment after its parent
    while (left := [c for c in children if Path(f"/proc/{c}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    for log in logs:
        assert list(log.parent.glob("checkpoint-*/manifest.json")), out + err
