"""The command line under torchrun and accelerate launch, as a user starts it: whole processes, one folder.

The launchers and what they start are forks of the warm process, but for a rank of one run of torchrun.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import corpora
import pytest
import tiny as tiny_models
import warm
from folders import assert_same_files
from processes import environment, run_warm
from safetensors.torch import load_file

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
TRAIN = (
    *("--training.max_steps", "3", "--training.optim", "sgd", "--training.learning_rate", "0.1"),
    *("--training.lr_scheduler_type", "constant", "--training.save_strategy", "no", "--training.use_cpu", "true"),
    *("--training.logging_steps", "1", "--objective.name", "rho1", "--objective.ratio", "0.4"),
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tokensieve: Any) -> Path:
    """A corpus of several shards, a model, and the scores that one process gives them."""
    folder = tmp_path_factory.mktemp("launchers")
    corpora.corpus(folder / "corpus", corpora.write_text(folder / "text"))
    corpora.model_folder(folder / "model")
    done = tokensieve(*score(folder, "alone"))
    assert done.code == 0, done.err
    return folder


def score(folder: Path, out: str) -> tuple[object, ...]:
    return (
        "score",
        "--out",
        folder / out,
        "--model",
        folder / "model",
        "--corpus",
        folder / "corpus",
        "--device",
        "cpu",
    )


def train(folder: Path, out: Path, *more: object) -> tuple[object, ...]:
    places = ("--corpus", folder / "corpus", "--model", folder / "model", "--scores", folder / "alone")
    return ("train", "--out", out, *places, *TRAIN, *more)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_scores_do_not_depend_on_the_number_of_processes(size: int, scored: Path, tmp_path: Path) -> None:
    """Batches cut by what a process has to do, not by the shard: other shapes, other last bits."""
    done = run_warm(*TORCHRUN, size, "-m", "tokensieve", *score(scored, f"by-{size}"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"by-{size}") == 1, "the first process speaks"
    assert_same_files(scored / "alone", scored / f"by-{size}")


# --cpu would start one process, whatever --num_processes says; several without a GPU are --multi_gpu and use_cpu
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0),
)


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate launch"])
def test_two_processes_train_as_one_does(launcher: str, scored: Path, tmp_path: Path, tokensieve: Any) -> None:
    """Half the rows each: the weights and logs of one process with all of them."""
    command = train(scored, tmp_path / "two", "--training.per_device_train_batch_size", 2)
    if launcher == "torchrun":  # one rank is cold: with its own seed of string hashes, and its own order of imports
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\n[ "$RANK" = 0 ] && exec {warm.python()} "$@"\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        done = run_warm(*TORCHRUN, 2, "--no-python", python, "-m", "tokensieve", *command)
    else:
        done = run_warm(*ACCELERATE, "-m", "tokensieve", *command)
    assert done.returncode == 0, done.stderr[-3000:]
    one = tokensieve(*train(scored, tmp_path / "one", "--training.per_device_train_batch_size", 4))
    assert one.code == 0, one.err
    found, wanted = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("two", "one"))
    assert tiny_models.gap(found, wanted) < 1e-5
    lines, expected = (tiny_models.log_lines(tmp_path / name) for name in ("two", "one"))
    assert [line["kept"] for line in lines] == [line["kept"] for line in expected]
    assert len(lines) == 3
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["kind"] == "model"


def test_the_first_process_does_what_cannot_be_shared(scored: Path, tmp_path: Path) -> None:
    """Every rank did all of it, into the same folder, and said so."""
    done = run_warm(*TORCHRUN, 2, "-m", "tokensieve", "evaluate", "--out", tmp_path / "eval", "--device", "cpu",
                    "--models.m", scored / "model", "--sets.t", scored / "corpus")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bits/byte") == 1
    assert len(json.loads((tmp_path / "eval" / "evaluation.json").read_text())) == 1


def test_dynamics_is_shared_out(scored: Path, tmp_path: Path, tokensieve: Any) -> None:
    """The other ranks left, as they do for verbs of one process, and the first waited for them for ever."""
    corpora.model_folder(tmp_path / "later", seed=1)

    def command(out: str) -> tuple[object, ...]:
        models = f"[{scored}/model, {tmp_path}/later]"
        return "dynamics", "--out", tmp_path / out, "--models", models, "--corpus", scored / "corpus", "--device", "cpu"

    done = run_warm(*TORCHRUN, 2, "-m", "tokensieve", *command("two"))
    assert done.returncode == 0, done.stderr
    assert tokensieve(*command("one")).code == 0
    assert_same_files(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("verb", [("run", "demo", "--dry-run"), ("demo",)])
def test_a_recipe_is_one_process(verb: tuple[str, ...], tokensieve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks would remove each other's stages."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = tokensieve(*verb)
    assert (done.code, "start its train and score stages by themselves" in done.error) == (2, True)


# --- docs/cluster.md --------------------------------------------------------------------------------------------------------

SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do shift; done
[ -n "$STAND_IN_CODE" ] && exit $STAND_IN_CODE
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & ranks="$ranks $!"; done
highest=0
for rank in $ranks; do wait $rank; code=$?; [ $code -gt $highest ] && highest=$code; done
exit $highest
"""


def slurm_job(folder: Path, **env: str) -> tuple[int, str]:
    """(exit code, stderr) of the page's job script, on stand-ins for Slurm's commands; ``requeued`` is there if it was."""
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    (folder / "job.sh").write_text(page.split("```bash\n")[1].split("```")[0])
    requeue = f'[ "$1" = requeue ] && echo "$@" >> {folder}/requeued || echo localhost\n'
    tokensieve = f'exec {warm.python()} -m tokensieve "$@"\n'
    for name, text in (
        ("srun", SRUN),
        ("scontrol", "#!/bin/bash\n" + requeue),
        ("tokensieve", "#!/bin/bash\n" + tokensieve),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    given = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "x", **env}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "job.sh"], cwd=folder, env=environment(PATH=path, **given), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def test_the_slurm_script_trains(scored: Path, tmp_path: Path, tokensieve: Any) -> None:
    """Two tasks with what Slurm sets are the two ranks of one run."""
    fields = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "use_cpu": True}
    config = {
        **{name: str(scored / name) for name in ("corpus", "model")},
        "out": str(tmp_path / "two"),
        "scores": [str(scored / "alone")],
        "objective": {"name": "rho1", "ratio": 0.4},
        "training": {**fields, "save_strategy": "no", "logging_steps": 1, "per_device_train_batch_size": 2},
    }
    (tmp_path / "train.yaml").write_text(json.dumps(config))
    code, said = slurm_job(tmp_path)
    assert (code, (tmp_path / "requeued").exists()) == (0, False), said
    assert tokensieve(*train(scored, tmp_path / "one", "--training.per_device_train_batch_size", 4)).code == 0
    found, wanted = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("two", "one"))
    assert tiny_models.gap(found, wanted) < 1e-5


@pytest.mark.parametrize(("code", "again"), [("138", True), ("143", True), ("1", True), ("2", False), ("3", False)])
def test_the_slurm_script_requeues_what_can_go_on(code: str, again: bool, tmp_path: Path) -> None:
    """A job that is requeued for bad input or NaN comes back for ever."""
    assert slurm_job(tmp_path, STAND_IN_CODE=code)[0] == int(code)
    assert (tmp_path / "requeued").exists() == again


def test_the_slurm_script_gives_up(tmp_path: Path) -> None:
    assert slurm_job(tmp_path, STAND_IN_CODE="1", SLURM_RESTART_COUNT="20")[0] == 1
    assert not (tmp_path / "requeued").exists()


def test_ranks_wait_for_longer_than_gloo_does(tmp_path: Path) -> None:
    """gloo gives up after half an hour, and the Trainer's group after ``ddp_timeout``: a rank with more shards to score, or a
    first rank that hashes a large model, was taken for dead. Here the group's own patience is 1 s and the first takes 3."""
    script = tmp_path / "late.py"
    script.write_text(
        "import datetime, sys, time\n"
        "import torch.distributed as dist\n"
        "from tokensieve.pipeline import launch\n"
        "here = launch.ranks()\n"
        "dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=1))\n"
        "if here.rank == 0: time.sleep(3)\n"
        "launch.wait_for_all(here)\n"
        "open(sys.argv[1] + str(here.rank), 'w').close()\n"
    )
    done = run_warm(*TORCHRUN, 2, script, tmp_path / "done-")
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in tmp_path.glob("done-*")) == ["done-0", "done-1"]
    assert os.environ.get("WORLD_SIZE") is None
