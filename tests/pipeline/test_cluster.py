"""``score`` in parts and a recipe's stages in levels, as an engine for many small tasks runs them: the bytes of one process.

The tests of datatrove and Ray need the extra [cluster] and are skipped without it: they start the programs of examples/.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import corpora
import faults
import pytest
import yaml
from folders import assert_same_files
from processes import environment

from tokensieve.data.corpus import open_corpus
from tokensieve.pipeline import score
from tokensieve.pipeline.cluster import ScoreShards, recipe_levels
from tokensieve.pipeline.configs.run import RecipeConfig
from tokensieve.runs.errors import StaleFolder, UserError
from tokensieve.runs.manifest import is_done, read_manifest

EXAMPLE = Path(__file__).parents[2] / "examples" / "score_cluster.py"
STUDY = EXAMPLE.with_name("study_cluster.py")


class Made(NamedTuple):
    corpus: Path
    model: Path
    scores: Path

    def config(self, out: Path, **fields: str) -> score.ScoreConfig:
        return score.ScoreConfig(str(out), str(self.corpus), str(self.model), device="cpu", **fields)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("cluster")
    corpus = corpora.corpus(folder / "corpus", corpora.write_text(folder / "text"))
    assert len(open_corpus(corpus).manifest["shards"]) >= 5
    found = Made(corpus, corpora.model_folder(folder / "model"), folder / "scores")
    score.run(found.config(found.scores))
    return found


def test_parts_in_any_order_and_then_one_alone(made: Made, tmp_path: Path) -> None:
    """Ranks of one command write the manifest when all have come: tasks that never meet would wait, or seal too early."""
    step = pickle.loads(pickle.dumps(ScoreShards(made.config(tmp_path / "out"))))
    for rank in (2, 0, 7, 1):  # task 7 of 8 has no shard here
        step(rank=rank, world_size=8 if rank == 7 else 3)
        assert not is_done(tmp_path / "out")
    assert step("data") == "data"
    assert_same_files(made.scores, tmp_path / "out")
    assert step(rank=1, world_size=3) is None, "a task that is started again finds the folder done"


def test_a_part_that_failed_is_made_up_for(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shard damaged after its task was through would be sealed as it is, with the hash of the damage."""
    step = ScoreShards(made.config(tmp_path / "out"))
    step(rank=0, world_size=2)
    first = min((tmp_path / "out").glob("rows-*.arrow"))
    faults.flip_bit(first)
    step()
    assert f"{first} has other bytes than were written" in capsys.readouterr().err
    assert_same_files(made.scores, tmp_path / "out")


def test_parts_of_other_work_are_refused(made: Made, tmp_path: Path) -> None:
    """Only rank 0 wrote down whose parts these are; here any task may be the first."""
    ScoreShards(made.config(tmp_path / "out"))(rank=1, world_size=2)
    with pytest.raises(StaleFolder, match="holds unfinished work of another config"):
        ScoreShards(made.config(tmp_path / "out", dtype="float32"))(rank=0, world_size=2)


# --- a recipe's stages -------------------------------------------------------------------------------------------------------


def small_study(folder: Path) -> Path:
    """Two seeds of two arms, a step each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": f"{i}", "text": f"{i} of {i * i} and {i % 7}"}) for i in range(60)]
    (folder / "t.jsonl").write_text("\n".join(lines))
    text = {"verb": "prepare", "length": 16, "sources": [{"path": str(folder / "t.jsonl"), "split": [0.0, 0.7]}]}
    target = {**text, "tokenizer": "@corpus", "sources": [{"path": str(folder / "t.jsonl"), "split": [0.7, 1.0]}]}
    model = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 1, "max_position_embeddings": 16}  # fmt: skip
    training = {"max_steps": 1, "per_device_train_batch_size": 1, "save_strategy": "no"}
    stages = {"corpus": {**text, "vocab_size": 270}, "target": target,
              "base": {"verb": "train", "corpus": "@corpus", "model": model, "training": training}}  # fmt: skip
    study = {"student": {"training": training}, "sets": {"target": "@target"}, "target": "target"}
    source = {"name": "s", "out": str(folder / "run"), "seeds": [0, 1], "stages": stages, "study": study,
              "arms": {"clm": {}, "random": {}}}  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(source, sort_keys=False))
    return folder / "study.yaml"


def assert_finished(run: Path) -> None:
    manifest = read_manifest(run, "run")
    assert [name for name in manifest["stages"] if name.startswith("random")] == ["random-seed0", "random-seed1"]
    for name in manifest["stages"]:
        read_manifest(run / name)
    assert "before the first run, and not changed since" in (run / "table" / "table.txt").read_text()
    assert read_manifest(run / "clm-seed0")["summary"]["ran_alone"] is False


def test_levels_of_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks of a level in any order, one of them killed and done again; the cells in the folder are those of a plain run."""
    levels = recipe_levels(RecipeConfig(str(small_study(tmp_path))))
    assert (tmp_path / "run" / "registration.json").is_file()
    assert [set(step.names) for step in levels] == [
        {"corpus"},
        {"target", "base"},
        {"clm-seed0", "clm-seed1", "random-seed0", "random-seed1"},
        {"evaluation-seed0", "evaluation-seed1"},
        {"table"},
        set(),
    ]
    for step in levels[:2]:
        for rank in reversed(range(2)):  # a level of one has nothing for the second task
            step(rank=rank, world_size=2)
    cells = pickle.loads(pickle.dumps(levels[2]))
    cells(rank=1, world_size=4)
    with pytest.raises(UserError, match="clm-seed0 does not exist"):
        levels[3](rank=0, world_size=2)
    assert cells("data", rank=0, world_size=1) == "data"
    assert "clm-seed1: done already" in capsys.readouterr().out
    for step in levels[3:]:
        step()
    assert_finished(tmp_path / "run")


# --- engines ----------------------------------------------------------------------------------------------------------------


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}: pip install 'tokensieve[cluster]'")


def example(engine: str, made: Made, out: Path, *more: object, **env: str) -> subprocess.CompletedProcess[str]:
    return started(
        EXAMPLE, engine, "--out", out, "--model", made.model, "--corpus", made.corpus, *more, cwd=out.parent, **env
    )


def started(program: Path, *words: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, program, *words]
    return subprocess.run(
        [str(word) for word in command],
        env=environment(CUDA_VISIBLE_DEVICES="", RAY_USAGE_STATS_ENABLED="0", **env),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@needs("datatrove")
def test_datatrove_on_this_machine(made: Made, tmp_path: Path) -> None:
    done = example("local", made, tmp_path / "out", "--tasks", 3, "--workers", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_files(made.scores, tmp_path / "out")
    # Again, with the folder gone and the logs of the first time still there.
    shutil.rmtree(tmp_path / "out")
    assert example("local", made, tmp_path / "out", "--tasks", 2, "--workers", 1).returncode == 0
    assert_same_files(made.scores, tmp_path / "out")


@needs("datatrove", "ray")
def test_datatrove_on_ray(made: Made, tmp_path: Path) -> None:
    done = example("ray", made, tmp_path / "out", "--tasks", 3, "--workers", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_files(made.scores, tmp_path / "out")


@needs("datatrove", "ray")
def test_a_failed_task_on_ray_is_told(made: Made, tmp_path: Path) -> None:
    """The executor ends with a warning in its log; one that depends on it then waits for it for ever."""
    shutil.copytree(made.corpus, tmp_path / "corpus")
    faults.truncate(tmp_path / "corpus" / "rows-00001.arrow")
    done = example("ray", made._replace(corpus=tmp_path / "corpus"), tmp_path / "out", "--tasks", 2)
    assert done.returncode == 1
    assert "2 of 2 tasks failed" in done.stderr
    assert not is_done(tmp_path / "out")


SBATCH = """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
last = int(re.search(r"--array=0-(\\d+)", script)[1])
open("{log}", "a").write(" ".join(sys.argv[1:-1]) + "\\n")
if "merge_stats" not in script:
    for task in range(last + 1):
        env = dict(os.environ, SLURM_ARRAY_TASK_ID=str(task), RUN_OFFSET="0", SLURM_NODELIST="here")
        subprocess.run(["bash", sys.argv[-1]], env=env, check=True, stdout=2)
print("Submitted batch job 7")
"""


@needs("datatrove")
def test_a_study_of_datatrove_on_this_machine(tmp_path: Path, tokensieve: Any, warm_pools: None) -> None:
    """Its tasks come to the table of ``run --jobs 2``; and again after a cell was lost: it alone is done again."""
    path = small_study(tmp_path)
    done = started(STUDY, "local", path, "--workers", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_finished(tmp_path / "run")
    plain = tokensieve("run", path, "--out", tmp_path / "plain", "--jobs", 2)
    assert plain.code == 0, plain.err
    for name in ("comparison.json", "table.txt"):  # verdict.json has minutes
        assert (tmp_path / "run" / "table" / name).read_bytes() == (tmp_path / "plain" / "table" / name).read_bytes()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*/manifest.json")}
    shutil.rmtree(tmp_path / "run" / "random-seed1")
    done = started(STUDY, "local", path, "--workers", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    changed = {p.parent.name for p, time in before.items() if p.stat().st_mtime_ns != time}
    assert changed == {"random-seed1"}


@needs("datatrove", "ray")
def test_a_study_on_ray(tmp_path: Path) -> None:
    done = started(STUDY, "ray", small_study(tmp_path), "--workers", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_finished(tmp_path / "run")


@needs("datatrove")
def test_a_failed_cell_is_told(tmp_path: Path) -> None:
    path = small_study(tmp_path)
    (tmp_path / "t.jsonl").write_text("no JSON")
    done = started(STUDY, "local", path, "--workers", 1, cwd=tmp_path)
    assert done.returncode != 0
    assert "t.jsonl" in done.stderr
    assert not (tmp_path / "run" / "target").exists()


@needs("datatrove")
def test_datatrove_on_slurm(made: Made, tmp_path: Path) -> None:
    """There is no Slurm here: stand-ins for its three commands run the job scripts that it would be given."""
    commands = tmp_path / "bin"
    commands.mkdir()
    log = tmp_path / "sbatch.log"
    launch = f'#!/bin/bash\nexec {sys.executable} -m datatrove.tools.launch_pickled_pipeline "$@"\n'
    scripts = {
        "sbatch": SBATCH.format(python=sys.executable, log=log),
        "srun": '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho here\n",
        "launch_pickled_pipeline": launch,
    }
    for name, text in scripts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    done = example("slurm", made, tmp_path / "out", "--tasks", 2, "--partition", "p", PATH=path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_files(made.scores, tmp_path / "out")
    assert "--dependency=afterok:7" in log.read_text()
