"""What the Trainer chooses, and what it hands to the model and writes down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from tokensieve.core import STATISTICS, Objective, TokenStats, objective
from tokensieve.runs.errors import UserError
from tokensieve.training.token_log import TokenLogConfig

ROWS = tiny.rows(8)
BATCH: dict[str, Any] = ROWS.to_dict()


def sampled(folder: Path, step: int = 1) -> dict[tuple[int, int], tuple[float, bool]]:
    """(row, position) -> (nll, keep) of a step that was logged token by token."""
    table = pq.read_table(folder / "tokens" / f"step-{step:08d}.parquet").to_pydict()
    assert set(table["step"]) == {step}
    places = list(zip(table["row"], table["position"], strict=True))
    assert len(set(places)) == len(places)
    return dict(zip(places, zip(table["nll"], table["keep"], strict=True), strict=True))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "tokens.jsonl").read_text(encoding="utf-8").splitlines()]


def log_all() -> TokenLogConfig:
    return TokenLogConfig(every=1, rows=100)


def inputs_of_training(folder: Path, made: Objective, dataset: Any = ROWS) -> list[dict[str, Any]]:
    """Everything that the transformer body was called with in two steps of two micro-batches, and the rows' targets."""
    model, seen = tiny.llama(), []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert not args
        seen.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()})

    model.model.register_forward_pre_hook(note, with_kwargs=True)
    tiny.train(model, tiny.arguments(folder, 2, 2, max_steps=2, learning_rate=0.0), dataset, made)
    return seen


def test_selection_never_touches_the_models_inputs(tmp_path: Path) -> None:
    """A published reproduction passed the selection as attention mask: dropped tokens vanished from the context."""
    runs = [
        inputs_of_training(tmp_path / str(i), made)
        for i, made in enumerate([objective("clm"), objective("rho1", ratio=0.1), objective("random", ratio=0.1)])
    ]
    for seen in runs:
        assert len(seen) == 3 + 4  # the probe's three forwards, then 2 steps of 2 micro-batches
        for i, call in enumerate(seen[3:]):
            assert call["input_ids"].tolist() == BATCH["input_ids"][2 * i : 2 * i + 2]
            assert call.get("attention_mask") is None
            assert call.get("position_ids") is None


def test_short_rows_are_masked_by_length_alone(tmp_path: Path) -> None:
    """Rows of unequal length are padded on the right and masked by their length, whatever their labels are."""
    lengths = [16, 10, 16, 16]
    short = {k: [row[:n] for row, n in zip(v[:4], lengths, strict=True)] for k, v in BATCH.items()}
    seen = inputs_of_training(tmp_path, objective("rho1", ratio=0.1), tiny.Dataset.from_dict(short))[3:]
    assert seen[0]["attention_mask"].tolist() == [[1] * 16, [1] * 10 + [0] * 6]
    assert seen[0]["input_ids"][1].tolist() == BATCH["input_ids"][1][:10] + [0] * 6
    assert seen[1].get("attention_mask") is None


@pytest.mark.parametrize("scope", ["sequence", "batch", "step"])
def test_token_log_is_the_selection(tmp_path: Path, scope: str) -> None:
    """A mask off by one, or a swapped operand, trains on other tokens than the log says: here every logged (row, position)
    must be that token's nll and its place in an independent ranking."""
    model = tiny.llama()
    nll = tiny.shifted_nll(model, BATCH).detach()
    groups = {"sequence": [range(i, i + 1) for i in range(8)], "batch": [range(4), range(4, 8)], "step": [range(8)]}
    keep = tiny.rho1_keep(nll, BATCH, 0.4, groups[scope])
    tiny.train(
        model, tiny.arguments(tmp_path, 4, 2), ROWS, objective("rho1", ratio=0.4, scope=scope), token_log=log_all()
    )
    found = sampled(tmp_path)
    assert set(found) == set(map(tuple, tiny.valid_targets(BATCH).nonzero().tolist()))
    for (row, position), (value, kept) in found.items():
        assert value == pytest.approx(nll[row, position].item(), abs=1e-4)
        assert kept == keep[row, position]


def test_threshold_and_means_are_those_of_the_selection(tmp_path: Path) -> None:
    """The figures of ``tokens.jsonl``, computed again from full logits."""
    model = tiny.llama()
    nll, valid = tiny.shifted_nll(model, BATCH).detach(), tiny.valid_targets(BATCH)
    keep = tiny.rho1_keep(nll, BATCH, 0.4, [range(8)])
    tiny.train(model, tiny.arguments(tmp_path, 4, 2), ROWS, objective("rho1", ratio=0.4, scope="step"))
    (line,) = lines(tmp_path)
    excess = nll - torch.tensor(BATCH["ref_nll"])
    wanted = {
        "threshold": excess[keep].min(),
        "loss": nll[keep].mean(),
        "kept_nll": nll[keep].mean(),
        "dropped_nll": nll[valid & ~keep].mean(),
        "nll": nll[valid].mean(),
        "ratio": keep.sum() / valid.sum(),
    }
    for name, value in wanted.items():
        assert line[name] == pytest.approx(value.item(), rel=1e-5), name
    assert (line["step"], line["valid"], line["kept"]) == (1, valid.sum(), keep.sum())


def test_random_masks_differ_by_row_and_by_step(tmp_path: Path) -> None:
    """A generator seeded the same in every step draws one mask for all of training; one a row apart, one for all rows."""
    args = tiny.arguments(tmp_path, 2, 2, max_steps=4, learning_rate=0.0)
    same = tiny.rows(4, uneven=False)
    tiny.train(tiny.llama(), args, same, objective("random", ratio=0.5, scope="sequence"), token_log=log_all())
    masks = [tuple(kept for (row, _), (_, kept) in sampled(tmp_path, step).items() if row == r)
             for step in (1, 2, 3, 4) for r in range(4)]  # fmt: skip
    assert all(len(m) == tiny.LENGTH - 1 and sum(m) == 8 for m in masks)
    assert len(set(masks)) == len(masks)


def test_random_masks_are_equal_across_splits(tmp_path: Path) -> None:
    """Keyed by the place in a micro-batch instead of the corpus row, the control differs from machine to machine."""
    seen = []
    for i, (batch, accumulate) in enumerate([(8, 1), (2, 4)]):
        args = tiny.arguments(tmp_path / str(i), batch, accumulate, max_steps=2, learning_rate=0.0)
        tiny.train(tiny.llama(), args, ROWS, objective("random", scope="sequence"), token_log=log_all())
        seen.append([{p: k for p, (_, k) in sampled(tmp_path / str(i), s).items()} for s in (1, 2)])
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[0][1]


def test_an_objective_is_given_what_it_asked_for(tmp_path: Path) -> None:
    """Statistics off by one: an objective that looks at ids, entropies or columns would judge a token by its neighbour."""
    seen: list[TokenStats] = []

    def weigh(stats: TokenStats) -> torch.Tensor:
        seen.append(stats)
        return stats.valid.float()

    columns = {"ref_entropy": np.random.default_rng(1).uniform(0, 4, (8, tiny.LENGTH)), "mine": [[0.5] * 16] * 8}
    columns |= {"doc_starts": [[0, 6]] * 8, "doc_sources": [[1, 0]] * 8, "doc_offsets": [[40, 0]] * 8}
    labels = [list(row) for row in BATCH["labels"]]
    labels[3][7] = 11  # not what the model reads there
    columns["labels"] = labels
    needs = frozenset({*(n for n in STATISTICS if STATISTICS[n].origin != "second"), "mine"})
    made = Objective("curious", weigh, needs, scope="sequence", known_count=lambda known: known.valid.sum())
    data = tiny.Dataset.from_dict({**BATCH, "row_id": list(range(40, 48)), **columns})
    model = tiny.llama()
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor(BATCH["input_ids"])).logits.double().log_softmax(-1)
    tiny.train(model, tiny.arguments(tmp_path, 8), data, made)
    (stats,) = seen
    assert stats.valid[:, :-1].equal(tiny.valid_targets(BATCH)[:, 1:])
    assert not stats.valid[:, -1].any()
    places = stats.valid.nonzero().tolist()
    for b, t in places:
        assert stats.input_ids[b, t] == labels[b][t + 1]
        assert stats.context_ids[b, t] == BATCH["input_ids"][b][t]
        assert (stats.segment[b, t], stats.source_id[b, t]) == ((1, 0) if t + 1 >= 6 else (0, 1))
        assert stats.document_position[b, t] == (t + 1 - 6 if t + 1 >= 6 else t + 41)
        assert (stats.row_id[b, t], stats.position[b, t]) == (40 + b, t + 1)
        assert stats.ref_entropy[b, t] == pytest.approx(columns["ref_entropy"][b, t + 1], rel=1e-6)
        assert stats.ref_nll[b, t] == pytest.approx(BATCH["ref_nll"][b][t + 1], rel=1e-6)
        assert stats.columns["mine"][b, t] == 0.5
        p = log_p[b, t].exp()
        top = p.sort(descending=True).values[:20] / p.sort(descending=True).values[:20].sum()
        assert stats.entropy[b, t] == pytest.approx(float(-(p * log_p[b, t]).sum()), abs=1e-4)
        assert stats.sum_p2[b, t] == pytest.approx(float((p * p).sum()), abs=1e-4)
        assert stats.top_entropy[b, t] == pytest.approx(float(-(top * top.log()).sum()), abs=1e-4)
        assert stats.target_rank[b, t] == int((p > p[labels[b][t + 1]]).sum())
    assert (stats.step, int(stats.tokens_seen)) == (0, 0)


def test_a_missing_score_column_is_refused_by_name(tmp_path: Path) -> None:
    """Found out at the first step, a missing column costs the time that the model took to load on a hundred machines."""
    with pytest.raises(UserError, match="needs a column 'ref_nll'; the data set has input_ids, labels"):
        tiny.train(tiny.llama(), tiny.arguments(tmp_path), ROWS.remove_columns("ref_nll"), objective("rho1", ratio=0.5))
    assert not (tmp_path / "tokens.jsonl").exists()


def test_a_nan_score_on_a_target_is_refused(tmp_path: Path) -> None:
    """NaN ranks highest: a token that was never scored would be kept in every step."""
    scores = [list(row) for row in BATCH["ref_nll"]]
    labels = [list(row) for row in BATCH["labels"]]
    scores[5][9], labels[5][9] = float("nan"), -100
    data = tiny.Dataset.from_dict({**BATCH, "ref_nll": scores, "labels": labels})
    tiny.train(tiny.llama(), tiny.arguments(tmp_path / "ignored", 8), data, objective("rho1"))
    labels[5][9] = 3
    data = tiny.Dataset.from_dict({**BATCH, "ref_nll": scores, "labels": labels})
    with pytest.raises(UserError, match="row 5: ref_nll is NaN at position 9, which is a target"):
        tiny.train(tiny.llama(), tiny.arguments(tmp_path / "target", 8), data, objective("rho1"))


def test_eval_loss_is_the_mean_over_tokens(tmp_path: Path) -> None:
    """The Trainer's mean of batch means counts a token of a short row more than one of a long row."""
    from tokensieve.training.trainer import SelectiveTrainer

    model = tiny.llama()
    nll, valid = tiny.shifted_nll(model, BATCH).detach(), tiny.valid_targets(BATCH)
    args = tiny.arguments(tmp_path, 4, per_device_eval_batch_size=3)  # 8 rows: one row of padding
    trainer = SelectiveTrainer(model, args, eval_dataset=ROWS)
    truth = nll[valid].mean().item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(truth, rel=1e-5)
    by_batch = torch.stack([nll[i : i + 3][valid[i : i + 3]].mean() for i in (0, 3, 6)]).mean()
    assert abs(by_batch.item() - truth) > 1e-3
    sets = SelectiveTrainer(model, args, eval_dataset={"a": ROWS.select([0, 1]), "b": ROWS}).evaluate()
    assert sets["eval_b_loss"] == pytest.approx(truth, rel=1e-5)
    assert sets["eval_a_loss"] == pytest.approx(nll[:2][valid[:2]].mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"compute_loss_func": lambda *a, **k: None}, "compute_loss_func and an objective are two losses"),
    ],
)
def test_settings_that_would_change_the_loss_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    kwargs = {k: change.pop(k) for k in list(change) if k == "compute_loss_func"}
    with pytest.raises(UserError, match=says):
        tiny.train(tiny.llama(), tiny.arguments(tmp_path, **change), ROWS, objective("clm"), **kwargs)


def test_a_first_row_without_targets_is_no_wrong_head(tmp_path: Path) -> None:
    """The head was probed with the first row's labels: with a long ignored prompt 0 / 0 looked like a wrong head."""
    labels = [[-100] * tiny.LENGTH, *BATCH["labels"][1:]]
    data = tiny.Dataset.from_dict({**BATCH, "labels": labels})
    tiny.train(tiny.llama(), tiny.arguments(tmp_path, 8), data, objective("rho1"))
    assert lines(tmp_path)[0]["valid"] == int(tiny.valid_targets({"labels": labels}).sum())


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        tiny.train(tiny.llama(), tiny.arguments(tmp_path), ROWS.select([]), objective("clm"))
