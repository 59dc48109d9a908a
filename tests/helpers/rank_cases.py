"""Runs that must not depend on the number of processes. As a script, this rank's part of all of them:

RANK=0 WORLD_SIZE=2 ... python rank_cases.py FOLDER MODEL CORPUS

FOLDER/scores: of MODEL on CORPUS; FOLDER/<case>: a training's logs; FOLDER/rank-<r>.pt: what rank r came to.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sparse_models as models
import tiny
import torch
from datasets import Dataset
from torch import Tensor

from tokensieve.core import (
    OBJECTIVES,
    Objective,
    TokenStats,
    above_threshold,
    excess,
    objective,
    top_fraction,
    weighted_nll,
)
from tokensieve.core.stats import score_columns
from tokensieve.data import verify
from tokensieve.data.rows import shift_targets
from tokensieve.modeling.seam import HeadSeam
from tokensieve.modeling.sparse import SparseBackward
from tokensieve.pipeline import score
from tokensieve.runs import files, manifest
from tokensieve.runs.errors import UserError
from tokensieve.training.options import Mer, Noise, SubsetNormOptions
from tokensieve.training.schedules import PowerSchedule
from tokensieve.training.self_test import run_self_test
from tokensieve.training.token_log import TokenLogConfig
from tokensieve.training.trainer import SelectiveTrainer

GLOBAL_BATCH = 4  # rows of a micro-batch over all ranks; two micro-batches a step


def without_targets(*rows: int) -> Dataset:
    """Eight rows, those given without any target. Of two ranks, the second has rows 2, 3, 6 and 7."""
    data = tiny.rows(8)
    labels = [[-100] * tiny.LENGTH if i in rows else row for i, row in enumerate(data["labels"])]
    return data.remove_columns("labels").add_column("labels", labels)


def unequal_lengths() -> Dataset:
    data = tiny.rows(8).to_dict()
    lengths = [16, 11, 9, 7, 8, 5, 16, 13]
    return Dataset.from_dict({k: [row[:n] for row, n in zip(v, lengths, strict=True)] for k, v in data.items()})


def very_unequal_lengths() -> Dataset:
    """Of two ranks, the first has rows of 5 tokens, the second of 16: what is kept is counted of both."""
    data = tiny.rows(8, uneven=False).to_dict()
    lengths = [5, 5, 16, 16] * 2
    return Dataset.from_dict({k: [row[:n] for row, n in zip(v, lengths, strict=True)] for k, v in data.items()})


def threshold() -> Objective:
    return Objective(
        "threshold",
        weigh=lambda s: above_threshold(excess(s.nll, s.ref_nll), s.valid, 1.0).float(),
        needs=frozenset({"nll", "ref_nll"}),
        scope="sequence",
    )


def soft_over_the_batch() -> Objective:
    """Weights that depend on the other tokens of the batch, and whose sum is known only after the forward."""

    def weigh(stats: TokenStats) -> Tensor:
        score = excess(stats.nll, stats.ref_nll)
        return torch.sigmoid(score - score[stats.valid].mean()) * stats.valid

    return Objective("soft", weigh, needs=frozenset({"nll", "ref_nll"}), scope="batch")


def share_of_valid() -> Objective:
    return Objective(
        "top-of-valid",
        weigh=lambda s: top_fraction(s.nll, s.valid, 0.3).float(),
        needs=frozenset({"nll"}),
        scope="batch",
        denominator="valid",
    )


def signed_over_the_batch() -> Objective:
    """Weights of either sign, from a rank in the vocabulary and a document's place: what only some objectives gather."""

    def weigh(stats: TokenStats) -> Tensor:
        score = excess(stats.nll, stats.ref_nll)
        toward = torch.where(stats.target_rank < 20, 1.0, -0.5) * (1 + stats.segment)
        return torch.tanh(score - score[stats.valid].mean()) * toward * stats.valid

    needs = frozenset({"nll", "ref_nll", "target_rank", "segment"})
    return Objective("signed", weigh, needs, scope="batch", denominator="abs", signed=True)


def counted_over_the_batch() -> Objective:
    """Known before the forward from columns that have to be gathered: a share of the batch's own mean quality."""

    def weigh(stats: TokenStats) -> Tensor:
        quality = stats.need("quality")
        mean = (quality * stats.valid).sum() / stats.valid.sum().clamp(min=1)
        return stats.valid * (quality + mean) * (1 + torch.as_tensor(stats.tokens_seen) / 50)

    needs = frozenset({"quality", "tokens_seen"})
    return Objective("counted", weigh, needs, scope="batch", known_count=lambda known: weigh(known).sum())


def with_columns() -> Dataset:
    quality = torch.rand(8, tiny.LENGTH, generator=torch.Generator().manual_seed(3)).tolist()
    return tiny.rows(8, quality=quality, doc_starts=[[0, 5]] * 8)


# Rules whose defaults keep next to nothing, or everything, of rows of 16 tokens.
RULE_OPTIONS: dict[str, dict[str, Any]] = {
    "griffin": {"top_k": 40},
    "goldfish": {"k": 3, "h": 2},
    "cal": {"low": 0.2},
    "profit": {"tau": 0.002},
    "distill": {"of": {"name": "rho1", "ratio": 0.4}, "share": 0.7},
    "smooth": {"of": {"name": "dft"}, "share": 0.7},
}


def with_columns_of(made: Objective) -> Dataset:
    """What a rule reads, in rows of two documents."""
    g = torch.Generator().manual_seed(5)
    names = {*score_columns(made.needs)} - {"ref_nll"}
    columns = {name: (6 * torch.rand(8, tiny.LENGTH, generator=g) - 1).tolist() for name in sorted(names)}
    if made.second is not None and made.second.origin == "columns":
        columns |= tiny.topk_columns()
    return tiny.rows(8, **columns, doc_starts=[[0, 5]] * 8, doc_offsets=[[3, 0]] * 8)


def rule(name: str) -> dict[str, Any]:
    made = objective(name, **RULE_OPTIONS.get(name, {}))
    return case(made, lambda: with_columns_of(made))


def case(made: Objective, data: Callable[[], Dataset] = lambda: tiny.rows(8), **fields: Any) -> dict[str, Any]:
    return {"made": made, "data": data, "fields": fields}


CASES: dict[str, dict[str, Any]] = {
    "clm": case(objective("clm")),
    "rho1-batch": case(objective("rho1", ratio=0.4)),
    "rho1-sequence": case(objective("rho1", ratio=0.4, scope="sequence")),
    "rho1-step": case(objective("rho1", ratio=0.07, scope="step")),
    "random-sequence": case(objective("random", ratio=0.4, scope="sequence")),
    "threshold": case(threshold()),
    "soft-batch": case(soft_over_the_batch()),
    "of-valid": case(share_of_valid()),
    "signed-batch": case(signed_over_the_batch(), lambda: tiny.rows(8, doc_starts=[[0, 5]] * 8)),
    "counted-batch": case(counted_over_the_batch(), with_columns, max_steps=2, learning_rate=0.1),
    "empty-rank-batch": case(objective("rho1", ratio=0.4), lambda: without_targets(2, 3, 6, 7)),
    "empty-rank-step": case(objective("rho1", ratio=0.4, scope="step"), lambda: without_targets(2, 3, 6, 7)),
    "empty-rank-threshold": case(threshold(), lambda: without_targets(2, 3, 6, 7)),
    "few-kept": case(objective("rho1", ratio=0.01)),  # one token a micro-batch: the other rank keeps none
    "unequal-batch": case(objective("rho1", ratio=0.4), unequal_lengths),
    "unequal-few": case(objective("random", ratio=0.05, seed=3), very_unequal_lengths),
    "unequal-step": case(objective("rho1", ratio=0.4, scope="step"), unequal_lengths),
    "checkpointing": case(objective("rho1", ratio=0.4, scope="step"), gradient_checkpointing=True),
    "epochs": case(
        objective("rho1", ratio=0.4),
        lambda: tiny.rows(11),
        max_steps=-1,
        num_train_epochs=2,
        train_sampling_strategy="random",
        learning_rate=0.1,
    ),
}
CASES |= {f"rule-{name}": rule(name) for name in OBJECTIVES if name not in ("clm", "rho1")}
BY_HALVES = objective("schedule", of={"name": "rho1"}, option="ratio", points=[[0, 1.0], [2, 0.2]])
CASES["schedule"] = case(BY_HALVES, max_steps=2, learning_rate=0.1)
SPARSE: dict[str, dict[str, Any]] = {
    "sparse": case(objective("rho1", ratio=0.4)),
    "sparse-checkpointing": case(objective("rho1", ratio=0.4, scope="step"), activation_checkpointing=True),
    "sparse-empty-rank": case(objective("rho1", ratio=0.4), lambda: without_targets(2, 3, 6, 7)),
}
CASES |= SPARSE
CASES["corpus"] = case(
    objective("intersect", of=[{"name": "token_cleaning", "ratio": 0.3, "scope": "corpus"}, {"name": "dft"}]),
    lambda: with_columns_of(objective("token_cleaning")),
)
CASES["over-tokens"] = case(
    objective("schedule", of={"name": "rho1"}, option="ratio", points=[[0, 1.0], [60, 0.2]], over="tokens"),
    max_steps=2,
    learning_rate=0.1,
)
CASES["documents"] = case(objective("rho1", ratio=0.4, unit="document"), lambda: tiny.rows(8, doc_starts=[[0, 5]] * 8))
CASES["by-source"] = case(
    objective("by_source", of={"name": "rho1", "ratio": 0.6}, instead={"b": {"ratio": 0.2}}),
    lambda: tiny.rows(8, doc_starts=[[0, 5]] * 8, doc_sources=[[0, 1], [1, 0]] * 4),
)
TWO_STEPS = {"max_steps": 2, "learning_rate": 0.1}
CASES["mer"] = case(objective("rho1", ratio=0.4), **TWO_STEPS)
CASES["subset-norm"] = case(objective("clm"), **TWO_STEPS)
CASES["power"] = case(objective("rho1", ratio=0.4), **TWO_STEPS)
CASES["noise"] = case(objective("clm"), lambda: tiny.rows(8, uneven=False), **TWO_STEPS)
# What the trainer is asked for beside its objective.
PARTS: dict[str, dict[str, Any]] = {
    "mer": {"mer": Mer(every=2, epsilon=0.3)},
    "subset-norm": {"optimizer": SubsetNormOptions(rank=4)},
    "power": {"schedule": PowerSchedule(a=0.02, b=-0.5, count="trained", warmup_tokens=20)},
    "noise": {"noise": Noise(1, anneal_steps=2)},
}
CASES["intersect"] = case(objective("intersect", of=[{"name": "dft"}, {"name": "rho1", "ratio": 0.5}]))


def run_case(name: str, folder: Path, num_ranks: int) -> dict[str, Any]:
    """{gradients, logged}: what the weights moved by, and what the Trainer logged."""
    fields = CASES[name]["fields"]
    model = tiny.llama(dtype=torch.float64)
    before = tiny.weights(model)
    args = tiny.arguments(folder / name, GLOBAL_BATCH // num_ranks, 2, **fields)
    log = TokenLogConfig(every=1, rows=100)
    backward = "sparse" if name in SPARSE else "exact"
    trainer = tiny.train(
        model, args, CASES[name]["data"](), CASES[name]["made"], token_log=log, sources=("a", "b"), backward=backward,
        **PARTS.get(name, {}),
    )  # fmt: skip
    after = tiny.weights(model)
    return {"gradients": {n: before[n] - after[n] for n in before}, "logged": trainer.state.log_history}


def run_router(folder: Path, num_ranks: int) -> dict[str, Tensor]:
    """Gradients of a step of one row a micro-batch and rank: the router loss is a mean over rows in either way."""
    accumulate = 8 // num_ranks
    return tiny.step_gradients(folder / "router", tiny.rows(8), objective("clm"), 1, accumulate, model=tiny.mixtral())


def run_fsdp(num_ranks: int, rank: int) -> dict[str, Tensor]:
    """Gradients of one batch with every layer and the head sharded by FSDP2, gathered."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    model, mesh = tiny.llama(dtype=torch.float64), init_device_mesh("cpu", (num_ranks,))
    seam = HeadSeam(model)
    for part in (*model.model.layers, model.lm_head, model):
        fully_shard(part, mesh=mesh)
    batch = tiny.rows(8).select(range(rank, 8, num_ranks)).to_dict()
    ids, labels = torch.tensor(batch["input_ids"]), torch.tensor(batch["labels"])
    targets = shift_targets(labels)
    count = (shift_targets(torch.tensor(tiny.rows(8)["labels"])) != -100).sum()

    def loss(hidden: Tensor, head: Any) -> Tensor:
        return weighted_nll(hidden, head, targets, torch.ones_like(targets))[0] * num_ranks / count

    with seam.run(loss):
        model(input_ids=ids, labels=labels).loss.backward()
    return {n: p.grad.full_tensor() for n, p in model.named_parameters()}


def run_sparse_fsdp(num_ranks: int, rank: int) -> dict[str, Any]:
    """Gradients of a sparse backward with every block sharded, gathered, by what was stored; bytes of whole weights that a
    forward left in memory for the backward."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    model, mesh = models.build("llama"), init_device_mesh("cpu", (num_ranks,))
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh)
    sparse, keep, found = SparseBackward(model), models.some(), dict[str, Any]()
    mine = keep & (torch.arange(models.ROWS) % num_ranks == rank)[:, None]  # the mean over ranks is half the sum
    for store in ("all", "nothing", "kept"):
        with sparse.forward(keep=mine, store=store):
            value = models.loss(model, mine) * num_ranks
        block: Any = model.model.layers[0]
        held = [p.unsharded_param for p in block._get_fsdp_state()._fsdp_param_group.fsdp_params]
        found["held"] = sum(p.untyped_storage().nbytes() for p in held)
        value.backward()
        found[store] = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
    return found


def run_eval(folder: Path, num_ranks: int) -> float:
    args = tiny.arguments(folder / "eval", 4, per_device_eval_batch_size=2)
    trainer = SelectiveTrainer(tiny.llama(dtype=torch.float64), args, eval_dataset=tiny.rows(7))
    return float(trainer.evaluate()["eval_loss"])


def self_tests(folder: Path, num_ranks: int) -> dict[str, str]:
    """What the self-test says of the trainer as it is, and of one whose ranks divide by their own counts: a mean of means."""

    def told() -> str:
        args = tiny.arguments(folder / "self-test", 2)
        made = objective("rho1", ratio=0.5, scope="sequence")
        trainer = SelectiveTrainer(tiny.llama(), args, train_dataset=tiny.rows(8), objective=made)
        return run_self_test(trainer)

    def by_own_sum(self: SelectiveTrainer, totals: Any) -> Tensor:
        own = totals["denominator"].clamp(min=1) * num_ranks
        for parameter in self.model.parameters():
            parameter.grad.div_(own)
        return totals["weighted_nll"] / own

    said, right = {"right": told()}, SelectiveTrainer._scale_gradients
    SelectiveTrainer._scale_gradients = by_own_sum
    try:
        said["wrong"] = told()
    except UserError as e:
        said["wrong"] = str(e)
    finally:
        SelectiveTrainer._scale_gradients = right
    return said


def count_hashed(*folders: Path) -> dict[str, int]:
    """folder's name -> bytes of its files that this process hashes from now on."""
    counts, real = {f.name: 0 for f in folders}, files.file_hash

    def counted(path: Path | str, *args: Any) -> str:
        for folder in folders:
            if Path(path).is_relative_to(folder):
                counts[folder.name] += Path(path).stat().st_size
        return real(path, *args)

    manifest.file_hash = verify.file_hash = counted
    return counts


def main(folder: Path, model: str, corpus: str) -> None:
    # First: where nobody has started a process group before, scoring starts its own.
    hashed = count_hashed(Path(model), Path(corpus))
    score.run(score.ScoreConfig(out=str(folder / "scores"), model=model, corpus=corpus, device="cpu"))
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    results = {name: run_case(name, folder, num_ranks) for name in CASES}
    everything = {
        "cases": results,
        "router": run_router(folder, num_ranks),
        "eval": run_eval(folder, num_ranks),
        "fsdp": run_fsdp(num_ranks, rank),
        "sparse-fsdp": run_sparse_fsdp(num_ranks, rank),
        "hashed": hashed,
        "self_test": self_tests(folder, num_ranks),
    }
    torch.save(everything, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
