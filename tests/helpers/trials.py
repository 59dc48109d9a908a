"""One fault each, on a fresh copy of the small experiment: (what happened, None or what should not have)."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults import DAMAGES, Bench, Zygote, half_write, make_bench, outcome


@dataclass
class Stand:
    """The experiment, a warm process, and what runs without a fault leave."""

    root: Path
    bench: Bench
    zygote: Zygote
    whole: dict[str, Any] = field(default_factory=dict)
    """Outcome of train."""
    scored: dict[str, Any] = field(default_factory=dict)
    train_events: int = 0
    score_events: int = 0
    number: int = 0

    def folder(self, name: str) -> Path:
        self.number += 1
        return self.root / f"{name}-{self.number}"


def make_stand(root: Path) -> Stand:
    stand = Stand(root, make_bench(root), Zygote(root))
    stand.train_events = stand.zygote.events(*stand.bench.train(root / "whole"), folder=root / "whole")
    stand.score_events = stand.zygote.events(*stand.bench.score(root / "scored"), folder=root / "scored")
    stand.whole, stand.scored = outcome(root / "whole"), outcome(root / "scored")
    assert len(stand.whole) >= 10, stand.whole.keys()
    return stand


def differences(stand: Stand, out: Path) -> list[str]:
    """What a train came to that the run without a fault did not."""
    found = outcome(out)
    return [name for name in stand.whole if found.get(name) != stand.whole[name]]


# --- kills ----------------------------------------------------------------------------------------------------------------


def kill_train(stand: Stand, seed: int) -> str | None:
    """SIGKILL somewhere, in every third trial twice; then the same command once more."""
    return _kill(stand, seed, "train", stand.train_events)


def kill_score(stand: Stand, seed: int) -> str | None:
    return _kill(stand, seed, "score", stand.score_events)


def _kill(stand: Stand, seed: int, verb: str, events: int) -> str | None:
    rng, out = random.Random(f"{verb} {seed}"), stand.folder(f"kill-{verb}")
    command = getattr(stand.bench, verb)(out)
    for _ in range(2 if seed % 3 == 0 else 1):
        # Half of them a moment later, which may be inside of a write that Python does not see.
        kill = {"folder": str(out), "at": rng.randint(1, events), "delay": rng.choice([0.0, rng.uniform(0, 0.02)])}
        killed = stand.zygote(*command, kill=kill)
        if killed.code not in (-9, 0):
            return f"{kill}: exit code {killed.code}: {killed.log[-800:]}"
    done = stand.zygote(*command)
    if done.code != 0:
        return f"{kill}: went on with exit code {done.code}: {done.log[-800:]}"
    wanted = stand.whole if verb == "train" else stand.scored
    found = outcome(out)
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    shutil.rmtree(out)
    return f"{kill}: other {', '.join(wrong)}" if wrong else None


# --- damage ---------------------------------------------------------------------------------------------------------------


def interrupted(stand: Stand, step: int = 10) -> Path:
    """A run that a signal stopped: checkpoints 4, 8 and ``step``."""
    out = stand.root / f"interrupted-{step}"
    if not out.exists():
        stopped = stand.zygote(*stand.bench.train(out), signals=[[step, 15]])
        assert stopped.code == 143, stopped.log
    copy = stand.folder("copy")
    shutil.copytree(out, copy)
    return copy


def checkpoint_files(stand: Stand) -> list[str]:
    run = interrupted(stand)
    return sorted(str(p.relative_to(run / "checkpoint-10")) for p in (run / "checkpoint-10").rglob("*") if p.is_file())


def damage_checkpoint(stand: Stand, file: str, how: str) -> str | None:
    """The last checkpoint damaged: the message names it, the one before is taken, and the run ends as if nothing had been."""
    out = interrupted(stand)
    path = out / "checkpoint-10" / file
    if path.name == "manifest.json" and how == "half-written":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        DAMAGES[how](path)
    half = how == "half-written" or path.name == "manifest.json"  # then the manifest is what is wrong
    done = stand.zygote(*stand.bench.train(out))
    told = " ".join(done.told)
    named = "checkpoint-10 has no manifest.json" in told or str(path) in told
    if done.code or not named or "going on from checkpoint-8" not in told:
        return f"{file} {how} ({half}): exit code {done.code}, said: {told or done.log[-500:]}"
    wrong = differences(stand, out)
    left = [p.name for p in out.glob("damaged-*")]
    shutil.rmtree(out)
    if left != ["damaged-checkpoint-10"]:
        return f"{file} {how}: set aside: {left}"
    return f"{file} {how}: other {', '.join(wrong)}" if wrong else None


def damage_all_checkpoints(stand: Stand) -> str | None:
    out = interrupted(stand)
    for checkpoint in out.glob("checkpoint-*"):
        half_write(checkpoint / "optimizer.pt")
    done = stand.zygote(*stand.bench.train(out))
    if done.code or "no good checkpoint, from the start" not in " ".join(done.told):
        return f"exit code {done.code}, said: {done.told}"
    wrong = differences(stand, out)
    return f"other {', '.join(wrong)}" if wrong else None


def damage_token_log(stand: Stand, how: str) -> str | None:
    """Without its log a checkpoint cannot be gone on from exactly; the lines before an earlier one may be whole."""
    out = interrupted(stand)
    path = out / "tokens.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    spoiled = {"truncated": lines[:9], "deleted": None, "bit flipped": [*lines[:8], b"x" + lines[8][1:], *lines[9:]]}[
        how
    ]
    if spoiled is None:
        path.unlink()
    else:
        path.write_bytes(b"".join(spoiled))
    done = stand.zygote(*stand.bench.train(out))
    wanted = "no good checkpoint" if spoiled is None else "going on from checkpoint-8"
    told = " ".join(done.told)
    if done.code or str(path) not in told or wanted not in told:
        return f"tokens.jsonl {how}: exit code {done.code}, said: {told or done.log[-500:]}"
    wrong = differences(stand, out)
    return f"tokens.jsonl {how}: other {', '.join(wrong)}" if wrong else None


def damage_shard(stand: Stand, kind: str, how: str) -> str | None:
    """A shard of the corpus or of the scores is refused by name before anything is trained."""
    copies = stand.folder("shards")
    for name in ("corpus", "scores"):
        shutil.copytree(stand.root / name, copies / name)
    path = copies / kind / "rows-00002.arrow"
    if how == "swapped":
        other = path.with_name("rows-00003.arrow")
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
    else:
        DAMAGES[how](path)
    out = stand.folder("out")
    done = stand.zygote(*stand.bench.train(out, corpus=copies / "corpus", scores=copies / "scores"))
    if done.code != 2 or str(path) not in done.error or (out.exists() and any(out.iterdir())):
        return f"{kind} {how}: exit code {done.code}, said: {done.error}"
    return None


FOREIGN: dict[str, tuple[dict[str, object], str]] = {
    "corpus": ({"seed": 1}, "another corpus"),
    "tokenizer": ({"tokenizer": None, "vocab_size": 290}, "another tokenizer"),
    "length of rows": ({"length": 16, "shard_tokens": 64}, "another window (row length)"),
    "packing": ({"isolate_documents": True}, "another window (isolate_documents)"),
}


def foreign_scores(stand: Stand, what: str) -> str | None:
    """Scores of the same text packed or tokenized otherwise, of other text, or a shard of another model's: refused by name."""
    import corpora

    folder, out = stand.folder("foreign"), stand.folder("out")
    scores, says = folder / "scores", "has other bytes than were written (hash differs)"
    corpus, model = stand.bench.corpus, stand.bench.model
    if what == "model":
        model = corpora.model_folder(folder / "model", seed=1)
    else:
        fields, says = FOREIGN[what]
        text = corpora.write_text(folder / "text", num_files=12, seed=1) if what == "corpus" else stand.root / "text"
        given = {"tokenizer": str(corpus), "vocab_size": None, **{k: v for k, v in fields.items() if k != "seed"}}
        corpus = corpora.corpus(folder / "corpus", text, **given)
    scored = stand.zygote("score", "--out", scores, "--model", model, "--corpus", corpus)
    assert scored.code == 0, scored.log
    if what == "model":  # its manifest says so of a whole folder: a shard of it among good ones
        shutil.copytree(stand.bench.scores, folder / "mixed")
        shutil.copy(scores / "rows-00001.arrow", folder / "mixed" / "rows-00001.arrow")
        scores = folder / "mixed"
    done = stand.zygote(*stand.bench.train(out, scores=scores))
    if (
        done.code != 2
        or says not in done.error
        or str(scores) not in done.error
        or (out.exists() and any(out.iterdir()))
    ):
        return f"scores of another {what}: exit code {done.code}, said: {done.error}"
    return None


def damage_unfinished_scores(stand: Stand, how: str) -> str | None:
    """A shard damaged between a kill and the next start is scored again, and said so."""
    out = stand.folder("scoring")
    kill = {"folder": str(out), "at": stand.score_events // 2, "delay": 0}
    killed = stand.zygote(*stand.bench.score(out), kill=kill)
    assert killed.code == -9, killed.log
    path = min(out.glob("rows-*.arrow"))
    DAMAGES[how](path)
    done = stand.zygote(*stand.bench.score(out))
    found = outcome(out)
    if done.code or found != stand.scored or (how != "deleted" and str(path) not in " ".join(done.told)):
        return f"{how}: exit code {done.code}, same scores: {found == stand.scored}, said: {done.told}"
    return None


# --- signals, changes, numbers ----------------------------------------------------------------------------------------------


def stop(stand: Stand, number: int, step: int) -> str | None:
    """A signal at a step: a checkpoint of that step, 128 + its number, and the next start ends as if nothing had been."""
    out = stand.folder("stop")
    stopped = stand.zygote(*stand.bench.train(out), signals=[[step, number]])
    if stopped.code != 128 + number or f"checkpoint at step {step}; start it again to go on" not in stopped.error:
        return f"signal {number}: exit code {stopped.code}, said: {stopped.error}"
    done = stand.zygote(*stand.bench.train(out))
    if done.code or f"going on from checkpoint-{step}" not in " ".join(done.told):
        return f"signal {number}: went on with exit code {done.code}, said: {done.told}"
    wrong = differences(stand, out)
    return f"signal {number} at {step}: other {', '.join(wrong)}" if wrong else None


CHANGES: dict[str, tuple[dict[str, object], str]] = {
    "seed": ({"seed": 1}, "seed 0 -> 1"),
    "recipe": ({"training.learning_rate": 0.01}, "training.learning_rate 0.003 -> 0.01"),
    "objective": ({"objective": "{name: rho1, ratio: 0.7, scope: step}"}, "objective.ratio 0.5 -> 0.7"),
    "global batch": ({"training.per_device_train_batch_size": 4}, "4 (1 ranks x 2 rows x 2 accumulated)"),
    "data set": ({}, "input corpus, input scores"),
}


def change(stand: Stand, what: str) -> str | None:
    """Refused, saying what changed; gone on from all the same with --allow-changed."""
    out = interrupted(stand)
    fields, said = CHANGES[what]
    fields = dict(fields)
    if what == "data set":
        fields = other_data(stand)
    command = stand.bench.train(out, **fields)
    refused = stand.zygote(*command)
    if refused.code != 2 or said not in refused.error or "allow_changed" not in refused.error:
        return f"{what}: exit code {refused.code}, said: {refused.error}"
    if len(list(out.glob("checkpoint-*"))) != 3:
        return f"{what}: checkpoints are gone"
    insisted = stand.zygote(*command, "--allow-changed")
    if insisted.code or "going on from checkpoint-10" not in " ".join(insisted.told):
        return f"{what}: insisted, exit code {insisted.code}, said: {insisted.told or insisted.log[-500:]}"
    return None


def other_data(stand: Stand) -> dict[str, object]:
    """Another corpus, tokenized alike, and its scores."""
    import corpora

    folder = stand.root / "other"
    if not folder.exists():
        text = corpora.write_text(folder / "text", num_files=12, seed=1)
        corpora.corpus(folder / "corpus", text, tokenizer=str(stand.bench.corpus), vocab_size=None)
        score = ["score", "--out", folder / "scores", "--model", stand.bench.model, "--corpus", folder / "corpus"]
        assert stand.zygote(*score).code == 0
    return {"corpus": folder / "corpus", "scores": folder / "scores"}


def nonfinite(stand: Stand, what: str) -> str | None:
    """NaN at step 6: stopped before the update with checkpoint-4 as it was, rows and documents named; skipped if wanted."""
    out = stand.folder("nan")
    broken = {"6": what}
    stopped = stand.zygote(*stand.bench.train(out), broken=broken)
    record = out / "nonfinite-00000006.json"
    told = stopped.error
    if stopped.code != 3 or "step 6" not in told or "checkpoint-4" not in told or str(record) not in told:
        return f"{what}: exit code {stopped.code}, said: {told}"
    rows = json.loads(record.read_text())["rows"]
    if not all(row["documents"] for row in rows) or (what == "nll" and (len(rows), rows[0]["position"]) != (1, 6)):
        return f"{what}: wrote {rows}"
    if [p.name for p in out.glob("checkpoint-*")] != ["checkpoint-4"] or len(log_lines(out)) != 5:
        return f"{what}: left {sorted(p.name for p in out.iterdir())}"
    done = stand.zygote(*stand.bench.train(out))  # the fault was of the machine: all is as if it had not been
    wrong = differences(stand, out)
    return f"{what}: exit code {done.code}, other {', '.join(wrong)}" if done.code or wrong else None


def skipped(stand: Stand, kill: bool) -> str | None:
    """on_nonfinite: skip leaves out the update of two steps; a stop in between changes nothing; a third step is too many."""
    out = stand.folder("skip")
    command = stand.bench.train(out, on_nonfinite="skip", max_skipped_steps=2)
    broken = {"6": "nll", "9": "gradient"}
    if kill:
        stopped = stand.zygote(*command, broken=broken, signals=[[8, 15]])
        if stopped.code != 143:
            return f"stopped with {stopped.code}: {stopped.error}"
    done = stand.zygote(*command, broken=broken)
    lines = log_lines(out)
    left_out = [line["step"] for line in lines if line.get("skipped")]
    if done.code or left_out != [6, 9] or len(lines) != 14:
        return f"exit code {done.code}, left out {left_out}, said: {done.told or done.log[-500:]}"
    if lines[5]["nll"] is not None or lines[5]["kept"] or not lines[5]["valid"]:
        return f"line of a step left out: {lines[5]}"
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    if any(not math.isfinite(v) for line in metrics for v in line.values() if isinstance(v, float)):
        return f"NaN in {metrics}"
    known = stand.root / "skipped.json"
    found = json.dumps({k: repr(v) for k, v in outcome(out).items()})
    if known.exists() and known.read_text() != found:
        return "other files after a stop between the two"
    known.write_text(found)
    if kill:
        return None
    again = stand.zygote(
        *stand.bench.train(stand.folder("skip"), on_nonfinite="skip", max_skipped_steps=1), broken=broken
    )
    return (
        None if again.code == 3 and "step 9" in again.error else f"a step too many: {again.code}, said: {again.error}"
    )


def log_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "tokens.jsonl").read_text().splitlines()]


# --- the machine ------------------------------------------------------------------------------------------------------------


def disk_full(stand: Stand, verb: str, limit: int) -> str | None:
    """No file may grow over ``limit`` bytes: one sentence with a path, and with room again the run ends as ever."""
    out = stand.folder("full")
    command = {
        "train": stand.bench.train(out),
        "score": stand.bench.score(out),
        "prepare": ["prepare", "--out", str(out), "--sources", f"[{{path: {stand.root}/text/*.txt}}]", "--length", "32",
                    "--tokenizer", str(stand.bench.corpus), "--workers", "1"],
    }[verb]  # fmt: skip
    full = stand.zygote(*command, file_limit=limit)
    if full.code != 2 or str(out) not in full.error or (out / "manifest.json").exists():
        return f"{verb} at {limit} bytes: exit code {full.code}, said: {full.error}"
    done = stand.zygote(*command)
    if done.code:
        return f"{verb} at {limit} bytes: went on with exit code {done.code}, said: {done.error}"
    if verb == "prepare":
        return None if stand.zygote("check", out).code == 0 else "prepare: check fails"
    wanted = stand.whole if verb == "train" else stand.scored
    found = outcome(out)
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    return f"{verb} at {limit} bytes: other {', '.join(wrong)}" if wrong else None


def locked_folder(stand: Stand, verb: str) -> str | None:
    """While one process is at work in a folder a second one is refused; a lock does not outlive its process."""
    from tokensieve.runs.files import locked

    out = stand.folder("locked")
    out.mkdir()
    command = getattr(stand.bench, verb)(out)
    with locked(out):
        refused = stand.zygote(*command)
    if refused.code != 2 or f"another process is at work in {out}" not in refused.error:
        return f"{verb}: exit code {refused.code}, said: {refused.error}"
    (out / ".lock").touch()  # as after a SIGKILL
    done = stand.zygote(*command)
    return None if done.code == 0 and not (out / ".lock").exists() else f"{verb}: {done.code}, said: {done.error}"


# --- ranks ------------------------------------------------------------------------------------------------------------------

TWO_RANKS: dict[str, object] = {
    "training.gradient_accumulation_steps": 1,
    "training.use_cpu": "true",
    "token_log_every": 1,
    "token_log_rows": 100,
}


def train_on_two_ranks(stand: Stand, out: Path, code: int, **signals: list[list[int]]) -> list[str]:
    """What each said. ``rank_1=[[5, 15]]``: the second gets signal 15 at step 5."""
    by_rank = {name.removeprefix("rank_"): given for name, given in signals.items()}
    done = stand.zygote.ranks(*stand.bench.train(out, **TWO_RANKS), size=2, signals=by_rank)
    assert [d.code for d in done] == [code, code], "\n\n".join(d.log[-3000:] for d in done)
    return [d.log for d in done]


def two_ranks_stopped(stand: Stand) -> Path:
    """A run of two ranks, 2 rows each, of which the second got a SIGTERM at step 5, in the middle of the first epoch."""
    out = stand.root / "ranks"
    if not out.exists():
        said = train_on_two_ranks(stand, out, 143, rank_1=[[5, 15]])
        assert "checkpoint at step 5; start it again to go on" in said[0], said[0]
        assert "start it again" not in said[1]
    copy = stand.folder("ranks-copy")
    shutil.copytree(out, copy)
    return copy


def fewer_ranks(stand: Stand, accumulate: int) -> str | None:
    """Two ranks -> one: with the same rows a step every row of an epoch is trained on once; with fewer it is refused."""
    out = two_ranks_stopped(stand)
    command = stand.bench.train(out, **{**TWO_RANKS, "training.gradient_accumulation_steps": accumulate})
    done = stand.zygote(*command)
    if accumulate != 2:
        both = (
            "4 (2 ranks x 2 rows x 1 accumulated)" in done.error
            and "2 (1 ranks x 2 rows x 1 accumulated)" in done.error
        )
        return None if done.code == 2 and both else f"exit code {done.code}, said: {done.error}"
    if done.code or "going on from checkpoint-5" not in " ".join(done.told):
        return f"exit code {done.code}, said: {done.told or done.log[-500:]}"
    alone = stand.root / "alone"
    if not alone.exists():
        assert (
            stand.zygote(*stand.bench.train(alone, **{**TWO_RANKS, "training.gradient_accumulation_steps": 2})).code
            == 0
        )
    wanted = [row for step in rows_of_steps(alone) for row in step]
    found = [row for step in rows_of_steps(out) for row in step]
    num_rows = len(set(wanted))
    if rows_of_steps(out) != rows_of_steps(alone) or sorted(found[:num_rows]) != list(range(num_rows)):
        return f"rows of an epoch: {found[:num_rows]}"
    return None


def same_ranks(stand: Stand) -> str | None:
    """Two ranks -> two ranks: every file as if nothing had been."""
    out, whole = two_ranks_stopped(stand), stand.folder("ranks-whole")
    for folder in (out, whole):
        train_on_two_ranks(stand, folder, 0)
    wanted, found = outcome(whole), outcome(out)
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    return f"other {', '.join(wrong)}" if wrong else None


def rows_of_steps(out: Path) -> list[list[int]]:
    """The corpus rows that each step trained on, sorted."""
    import pyarrow.parquet as pq

    return [sorted(set(pq.read_table(p)["row"].to_pylist())) for p in sorted(out.glob("tokens/*"))]


def out_of_memory(stand: Stand) -> str | None:
    """A micro-batch that does not fit is found before the first step, and what to lower is said."""
    out = stand.folder("memory")
    command = stand.bench.train(out, **{"training.per_device_train_batch_size": 8192, "dry_step": "always"})
    done = stand.zygote(*command, memory_limit=600 << 20)
    told = (
        "lower training.per_device_train_batch_size (now 8192) and raise training.gradient_accumulation_steps (now 2)"
    )
    if done.code != 2 or "out of memory on cpu in a step of 8192 rows" not in done.error or told not in done.error:
        return f"exit code {done.code}, said: {done.error}"
    return "it began to train" if (out / "tokens.jsonl").exists() else None
