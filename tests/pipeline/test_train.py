"""train: the folder it leaves, what it goes on from, and that a kill costs nothing but time."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import hurt
import pytest
import torch
from processes import environment, run_warm
from safetensors.torch import load_file

from tokensieve.data.corpus import open_corpus
from tokensieve.modeling.load import load_causal_lm
from tokensieve.runs.files import MANIFEST
from tokensieve.runs.manifest import is_done, read_manifest

STEPS = ("--training.max_steps", "2", "--training.logging_steps", "1")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model" / "model.safetensors")
    return found


# --- the folder ---------------------------------------------------------------------------------------------------------


def test_summary_is_the_log_added_up(tiny: Any) -> None:
    log, summary = lines(tiny.rho1 / "tokens.jsonl"), json.loads((tiny.rho1 / "summary.json").read_text())
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert summary["steps"] == 4
    assert summary["tokens_seen"] == sum(line["valid"] for line in log)
    assert summary["tokens_trained"] == sum(line["kept"] for line in log)
    assert summary["kept_share"] == pytest.approx(0.6, abs=0.01)
    assert summary["kept_share_by_source"] == {"corpus": summary["kept_share"]}
    scores = read_manifest(tiny.scores)
    assert (summary["flops_scoring"], summary["flops_reference"]) == (scores["flops"], scores["reference_flops"])
    assert summary["flops_reference"] == json.loads((tiny.base / "summary.json").read_text())["flops_student"] > 0
    assert (summary["objective"], summary["scope"]) == ("rho1", "batch")
    assert summary == read_manifest(tiny.rho1)["summary"]


def test_logs_carry_no_clock(tiny: Any) -> None:
    """Two equal runs must write equal files: a comparison of runs is then a comparison of files."""
    for name in ("tokens.jsonl", "metrics.jsonl"):
        keys = {key for line in lines(tiny.rho1 / name) for key in line}
        assert not {k for k in keys if any(word in k for word in ("time", "second", "clock", "speed", "date"))}
    assert {"loss", "grad_norm", "learning_rate", "ratio", "step"} <= {
        k for x in lines(tiny.rho1 / "metrics.jsonl") for k in x
    }
    assert [set(line) for line in lines(tiny.rho1 / "times.jsonl")] == [{"process", "step", "seconds"}] * 4


def test_equal_runs_write_equal_files(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    command = ("train", "--corpus", tiny.corpus, "--model", tiny.model, "--seed", 3, "--token_log_every", 1, *STEPS)
    command = (*command, "--objective.name", "random")
    for name in ("a", "b"):
        assert tokensieve(*command, "--out", tmp_path / name).code == 0
    for file in read_manifest(tmp_path / "a")["files"]:
        if file["file"] not in ("train_config.json", "summary.json"):  # these name the folder, and the seconds
            assert (tmp_path / "a" / file["file"]).read_bytes() == (tmp_path / "b" / file["file"]).read_bytes()
    assert (tmp_path / "a" / "tokens" / "step-00000002.parquet").is_file()
    assert tokensieve(*command, "--out", tmp_path / "c", "--seed", 4).code == 0
    assert not torch.equal(*(next(iter(weights(tmp_path / n).values())) for n in "ac"))


def test_the_config_beside_it_is_resolved(tiny: Any) -> None:
    config = json.loads((tiny.rho1 / "train_config.json").read_text())
    assert (config["objective"], config["seed"]) == ({"name": "rho1", "ratio": 0.6}, 0)
    arguments = config["training_arguments"]
    assert (arguments["max_steps"], arguments["learning_rate"], arguments["lr_scheduler_type"]) == (4, 5e-5, "cosine")
    assert not (tiny.rho1 / "model" / "training_args.bin").exists()  # a pickle


def test_a_model_from_a_config_takes_vocabulary_and_eos_from_the_corpus(tiny: Any) -> None:
    config, corpus = load_causal_lm(tiny.base).config, open_corpus(tiny.corpus)
    assert (config.vocab_size, config.eos_token_id) == (corpus.vocab_size, corpus.eos_id)


def test_a_sparse_backward_is_other_work(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """It trains another model for fewer FLOPs; what does not go with it is told before anything is read."""
    command = ("train", "--corpus", tiny.corpus, "--model", tiny.base, "--objective.name", "random", *STEPS)
    for name in ("exact", "sparse"):
        assert tokensieve(*command, "--out", tmp_path / name, "--backward", name).code == 0
    flops = [json.loads((tmp_path / n / "summary.json").read_text())["flops_student"] for n in ("exact", "sparse")]
    assert flops[1] < 0.9 * flops[0]
    found = [read_manifest(tmp_path / n)["fingerprint"] for n in ("exact", "sparse")]
    assert found[0] != found[1]
    done = tokensieve(*command, "--out", tmp_path / "strict", "--strict", "true")
    assert (done.code, "set backward: sparse" in done.error) == (2, True)


# --- going on -----------------------------------------------------------------------------------------------------------


def test_it_goes_on_from_a_folder_that_train_wrote(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """With a learning rate of 0 the weights that come out are those that went in, by name of run or of model folder."""
    for name, model in (("run", tiny.base), ("hf", tiny.base / "model")):
        command = ("train", "--out", tmp_path / name, "--corpus", tiny.target, "--model", model, *STEPS)
        assert tokensieve(*command, "--training.learning_rate", 0, "--training.weight_decay", 0).code == 0
        before, after = weights(tiny.base), weights(tmp_path / name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)
    assert read_manifest(tmp_path / "run")["fingerprint"] == read_manifest(tmp_path / "hf")["fingerprint"]


def test_a_finished_run_is_skipped_and_another_config_refused(tiny: Any, tokensieve: Any) -> None:
    command = ("train", "--out", tiny.clm, "--corpus", tiny.corpus, "--model", tiny.base, "--token_log_rows", 3)
    training = ("--training", "{max_steps: 4, save_steps: 2, logging_steps: 1}")
    before = (tiny.clm / MANIFEST).stat().st_mtime_ns
    done = tokensieve(*command, *training, "--token_log_every", 2)
    assert (done.code, (tiny.clm / MANIFEST).stat().st_mtime_ns) == (0, before)
    assert done.out.startswith(f"{tiny.clm}: 4 steps, ")
    for change, said in (
        (("--seed", 1), "(seed 0 -> 1)"),
        (("--objective.name", "random"), '(objective.name "clm" -> "random")'),
        (("--training.learning_rate", 1), "(training.learning_rate not set -> 1)"),
        (("--corpus", tiny.target), "(input corpus)"),
        (("--model", tiny.rho1), "(input model)"),
    ):
        done = tokensieve(*command, *training, "--token_log_every", 2, *change)
        assert done.code == 2
        assert f"{tiny.clm} is done, but from other inputs {said}" in done.error
    assert (tiny.clm / MANIFEST).stat().st_mtime_ns == before


LONG = (
    *(
        "--objective.name",
        "random",
        "--token_log_every",
        "5",
        "--training.max_steps",
        "36",
        "--training.save_steps",
        "10",
    ),
    *("--training.logging_steps", "5", "--training.per_device_train_batch_size", "4"),
)


@pytest.fixture(scope="module")
def killed(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed with -9 some steps after its first checkpoint, when what it had begun to write was written."""
    out: Path = tmp_path_factory.mktemp("killed") / "out"
    faults = json.dumps({"signals": [[17, 0], [17, signal.SIGKILL]]})
    done = run_warm(hurt.__file__, faults, "train", "--out", out, "--corpus", tiny.corpus, "--model", tiny.base, *LONG)
    assert done.returncode == -9, done.stderr[-3000:]
    return out


def test_a_killed_run_ends_as_if_nothing_had_been(tiny: Any, killed: Path, tokensieve: Any, tmp_path: Path) -> None:
    assert [p.name for p in killed.glob("checkpoint-*")] == ["checkpoint-10"]
    assert len(lines(killed / "tokens.jsonl")) == 15  # five steps that no checkpoint remembers
    command = ("train", "--corpus", tiny.corpus, "--model", tiny.base, *LONG)
    refused = tokensieve(*command, "--out", killed, "--seed", 1)
    assert (refused.code, "has checkpoints of another config or other inputs (seed 0 -> 1)" in refused.error) == (
        2,
        True,
    )
    refused = tokensieve(*command, "--out", killed, "--resume", "never")
    assert (refused.code, "has checkpoints of an unfinished run" in refused.error) == (2, True)
    assert tokensieve(*command, "--out", tmp_path / "whole").code == 0
    assert tokensieve(*command, "--out", killed).code == 0
    files = [f["file"] for f in read_manifest(tmp_path / "whole")["files"]]
    assert files == [f["file"] for f in read_manifest(killed)["files"]]
    for name in files:
        if name not in ("train_config.json", "summary.json"):
            assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    summaries = [json.loads((p / "summary.json").read_text()) for p in (killed, tmp_path / "whole")]
    assert [{**s, "seconds": 0} for s in summaries] == [{**summaries[0], "seconds": 0}] * 2
    assert summaries[0]["seconds"] > 0


def test_a_run_killed_after_its_last_step_does_not_do_one_more(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """The Trainer, resumed from the checkpoint of its last step in the middle of an epoch, trains one step too many."""
    command = (
        "train",
        "--out",
        tmp_path,
        "--corpus",
        tiny.corpus,
        "--model",
        tiny.base,
        *STEPS,
        "--training.save_steps",
        1,
    )
    assert tokensieve(*command).code == 0
    before = {
        p: p.read_bytes()
        for p in (*(tmp_path / "model").iterdir(), tmp_path / "tokens.jsonl", tmp_path / "metrics.jsonl")
    }
    fingerprint = read_manifest(tmp_path)["fingerprint"]
    (tmp_path / MANIFEST).unlink()
    done = tokensieve(*command)
    assert (done.code, "does not say what work it belongs to" in done.error) == (2, True)
    (tmp_path / "work.json").write_text(json.dumps({"fingerprint": fingerprint}))
    assert tokensieve(*command).code == 0
    assert {p: p.read_bytes() for p in before} == before
    assert not (tmp_path / "checkpoint-3").exists()


# --- what the Trainer and its friends bring -----------------------------------------------------------------------------


def test_lora_leaves_an_adapter_and_a_whole_model(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    command = ("train", "--out", tmp_path / "lora", "--corpus", tiny.corpus, "--model", tiny.base, *STEPS)
    done = tokensieve(
        *command, "--lora.r", 2, "--lora.target_modules", "[q_proj, v_proj]", "--training.learning_rate", 0.1
    )
    assert done.code == 0, done.err
    merged, base = load_causal_lm(tmp_path / "lora"), load_causal_lm(tiny.base)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "lora" / "adapter").eval()
    ids = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
        assert (merged(ids).logits - load_causal_lm(tiny.base)(ids).logits).abs().max() > 0.01
    changed = {k for k, v in weights(tmp_path / "lora").items() if not torch.equal(v, weights(tiny.base)[k])}
    assert {k.split(".")[-2] for k in changed} == {"q_proj", "v_proj"}
    assert "adapter/adapter_model.safetensors" in {f["file"] for f in read_manifest(tmp_path / "lora")["files"]}
    done = tokensieve("evaluate", "--out", tmp_path / "eval", "--models.lora", tmp_path / "lora", "--sets.t", tiny.target,
                      "--checkpoints")  # fmt: skip
    assert done.code == 0, done.err
    assert "checkpoints hold no whole model and are left out" in done.err
    assert (
        tokensieve(
            "train", "--out", tmp_path / "on", "--corpus", tiny.target, "--model", tmp_path / "lora", *STEPS
        ).code
        == 0
    )


# docs/formats.md, "While a run trains"
LOGGED = [
    *("train/loss", "train/nll", "train/kept_nll", "train/dropped_nll", "train/ratio", "train/threshold"),
    *("train/tokens_seen", "train/tokens_trained", "train/learning_rate", "train/grad_norm", "eval/target_nll"),
]


def reported(tiny: Any, out: Path, tracker: str) -> list[str]:
    """The arguments of a short selective run with an evaluation set, reported to ``tracker``."""
    where = ["train", "--out", out, "--corpus", tiny.corpus, "--model", tiny.base, "--scores", f"[{tiny.scores}]"]
    how = ["--objective.name", "rho1", "--objective.ratio", 0.6, *STEPS, "--eval_sets.target", tiny.target]
    return [str(a) for a in (*where, *how, "--training.eval_steps", 1, "--training.report_to", tracker)]


def test_a_run_that_trained_on_nothing_is_no_run(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """It ended with exit code 0 and a model that was the one it had begun with."""
    corpus, source = tmp_path / "corpus", f"[{{path: {tiny.text}/target.jsonl, name: t}}]"
    dropped = ("--weights", "[{source: t, weight: 0}]", "--tokenizer", tiny.corpus, "--length", 32)
    assert tokensieve("prepare", "--out", corpus, "--sources", source, *dropped).code == 0
    done = tokensieve(
        "train", "--out", tmp_path / "run", "--corpus", corpus, "--model", tiny.base, "--training.max_steps", 1
    )
    assert (done.code, "tokens seen not one was trained on" in done.error) == (2, True)
    assert not is_done(tmp_path / "run")


def test_tensorboard(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """Every documented name, with the values of tokens.jsonl; the bar shows them; the last nll is what evaluate says."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = tokensieve(*reported(tiny, tmp_path / "run", "tensorboard"))
    assert done.code == 0, done.err
    (folder,) = {p.parent for p in tmp_path.rglob("events.out.tfevents.*")}
    found = events.EventAccumulator(str(folder)).Reload()
    assert set(LOGGED) <= set(found.Tags()["scalars"])
    log = lines(tmp_path / "run" / "tokens.jsonl")
    for name in ("tokens_seen", "ratio", "kept_nll", "dropped_nll", "nll", "threshold"):
        assert [e.value for e in found.Scalars(f"train/{name}")] == pytest.approx([line[name] for line in log])
    measured = [
        line["eval_target_nll"] for line in lines(tmp_path / "run" / "metrics.jsonl") if "eval_target_nll" in line
    ]
    assert len(measured) == 2
    assert [e.value for e in found.Scalars("eval/target_nll")] == pytest.approx(measured)
    assert f"target_nll={measured[-1]:.3f}" in done.err
    assert f"kept_nll={log[-1]['kept_nll']:.3f}" in done.err
    command = ("evaluate", "--out", tmp_path / "e", "--models.m", tmp_path / "run", "--sets.target", tiny.target)
    assert tokensieve(*command).code == 0
    (record,) = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert measured[-1] == pytest.approx(record["nll"], rel=1e-5)


@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_trackers_that_keep_their_files_here(tracker: str, tiny: Any, tmp_path: Path) -> None:
    """Both offline, each with a store of its own: all names are in it. Runs where the tracker is installed."""
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    store = {"TRACKIO_DIR": str(tmp_path / "store"), "WANDB_DIR": str(tmp_path), "WANDB_MODE": "offline"}
    command = [sys.executable, "-m", "tokensieve", *reported(tiny, tmp_path / "run", tracker)]
    done = subprocess.run(command, env=environment(**store), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    files = [*tmp_path.glob("store/*.db*"), *tmp_path.glob("wandb/offline-run-*/*.wandb")]
    written = b"".join(path.read_bytes() for path in files)
    assert [name for name in LOGGED if name.encode() not in written] == []


def test_evaluation_sets_change_nothing_else(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """A clock in metrics.jsonl, and evaluation steps that leave the model in eval mode: weights came out different."""
    command = reported(tiny, tmp_path / "with", "none")
    assert tokensieve(*command).code == 0
    at = command.index("--eval_sets.target")
    without = [a for i, a in enumerate(command) if not at <= i < at + 4]
    without[without.index("--out") + 1] = str(tmp_path / "without")
    done = tokensieve(*without)
    assert done.code == 0, done.err
    for name, value in weights(tmp_path / "without").items():
        assert torch.equal(weights(tmp_path / "with")[name], value), name
    keys = {key for line in lines(tmp_path / "with" / "metrics.jsonl") for key in line}
    assert {k for k in keys if k.startswith("eval_")} == {"eval_target_nll", "eval_target_loss"}
    assert "eval_sets" not in read_manifest(tmp_path / "without")["inputs"]
    assert list(read_manifest(tmp_path / "with")["inputs"]["eval_sets"]) == ["target"]


def test_an_objective_of_ones_own(tiny: Any, tokensieve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_objective.py").write_text(
        "from tokensieve.core import Objective\n"
        "def make(every=2):\n"
        "    return Objective('mine', weigh=lambda s: (s.valid & (s.position % every == 0)).float(),\n"
        "                     needs=frozenset({'position'}), scope='sequence')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    command = (
        "train",
        "--corpus",
        tiny.corpus,
        "--model",
        tiny.base,
        *STEPS,
        "--objective.name",
        "mine_objective:make",
        "--allow-code",
    )
    assert tokensieve(*command, "--out", tmp_path / "out", "--objective.every", 4).code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["objective"], summary["kept_share"]) == ("mine", pytest.approx(0.25, abs=0.04))
    done = tokensieve(*command, "--out", tmp_path / "wrong", "--objective.evry", 4)
    assert (done.code, "got an unexpected keyword argument 'evry'" in done.error) == (2, True)


def test_a_scores_folder_without_the_column(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    score = (
        "score",
        "--out",
        tmp_path / "s",
        "--model",
        tiny.base,
        "--corpus",
        tiny.corpus,
        "--columns",
        "ref_entropy",
    )
    assert tokensieve(*score).code == 0
    done = tokensieve("train", "--out", tmp_path / "out", "--corpus", tiny.corpus, "--model", tiny.base, "--scores",
                      tmp_path / "s", "--objective.name", "rho1")  # fmt: skip
    assert done.code == 2
    assert "needs a column 'ref_nll'; the data set has input_ids" in done.error


def test_scores_of_another_corpus(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    done = tokensieve("train", "--out", tmp_path / "out", "--corpus", tiny.target, "--model", tiny.base, "--scores",
                      tiny.scores, "--objective.name", "rho1")  # fmt: skip
    assert done.code == 2
    assert f"{tiny.scores} was computed from another corpus than {tiny.target}" in done.error


def test_a_killed_run_without_optimizer_state_starts_again(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """save_only_model leaves checkpoints that resume with a new optimizer and the learning rate schedule from its start: the
    run that came out was neither the interrupted one nor a new one."""
    command = ("train", "--corpus", tiny.corpus, "--model", tiny.base, *STEPS, "--training.save_only_model", "true")
    command += ("--training.max_steps", "4", "--training.save_steps", "1")
    assert tokensieve(*command, "--out", tmp_path / "whole").code == 0
    assert tokensieve(*command, "--out", tmp_path / "killed").code == 0
    fingerprint = read_manifest(tmp_path / "killed")["fingerprint"]
    (tmp_path / "killed" / MANIFEST).unlink()
    (tmp_path / "killed" / "work.json").write_text(json.dumps({"fingerprint": fingerprint}))
    last = sorted((tmp_path / "killed").glob("checkpoint-*"))[-1]
    shutil.rmtree(last)
    assert tokensieve(*command, "--out", tmp_path / "killed").code == 0
    for name in ("tokens.jsonl", "model/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
