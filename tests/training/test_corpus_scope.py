"""Scope corpus: what is kept is what a sort of the whole data set keeps, whatever a batch or a rank holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset

from tokensieve.core import TokenStats, objective
from tokensieve.data.rows import Rows
from tokensieve.pipeline import score, train
from tokensieve.runs.errors import UserError
from tokensieve.training.thresholds import STORED, find_thresholds, read_thresholds, store

RATIO = 0.3


def data(num_rows: int = 8) -> Dataset:
    """Rows with ref_nll and base_nll; half numbers, so that many tokens tie."""
    rng = np.random.default_rng(1)
    base = np.round(2 * rng.uniform(0, 9, (num_rows, tiny.LENGTH))) / 2
    rows = tiny.rows(num_rows, base_nll=base)
    rounded = [[None if v is None or v != v else round(2 * v) / 2 for v in row] for row in rows["ref_nll"]]
    return rows.remove_columns("ref_nll").add_column("ref_nll", rounded)


def sorted_scores(rows: Dataset) -> list[float]:
    """base_nll - ref_nll of every target of the data set, falling."""
    batch = rows.to_dict()
    valid = tiny.valid_targets(batch)
    places = [(i, t) for i in range(len(rows)) for t in range(tiny.LENGTH) if valid[i, t]]
    return sorted((batch["base_nll"][i][t] - batch["ref_nll"][i][t] for i, t in places), reverse=True)


def test_the_threshold_is_the_kth_of_a_sort() -> None:
    rows, made = data(), objective("token_cleaning", ratio=RATIO, scope="corpus")
    scores = sorted_scores(rows)
    (found,) = find_thresholds(made, Rows(rows, ("base_nll", "ref_nll"))).values()
    k = int(RATIO * len(scores) + 0.5)
    assert (found.value, found.tokens, found.wanted) == (scores[k - 1], len(scores), k)
    assert found.kept == sum(s >= scores[k - 1] for s in scores) > k
    assert found.ties == scores.count(scores[k - 1])


@pytest.mark.parametrize("batch", [1, 8])
def test_gradients_are_those_of_what_a_sort_keeps(tmp_path: Path, batch: int) -> None:
    """Ranked batch by batch, a batch of good tokens loses as many as one of bad ones."""
    rows = data()
    k = int(RATIO * len(sorted_scores(rows)) + 0.5)
    least, whole = sorted_scores(rows)[k - 1], rows.to_dict()

    def weigh(nll: torch.Tensor) -> torch.Tensor:
        gaps = [[(b - r) if r is not None else -1e9 for b, r in zip(*pair, strict=True)]
                for pair in zip(whole["base_nll"], whole["ref_nll"], strict=True)]  # fmt: skip
        return (torch.tensor(gaps, dtype=torch.float64) >= least).double()

    made = objective("token_cleaning", ratio=RATIO, scope="corpus")
    found = tiny.step_gradients(tmp_path, rows, made, batch, 8 // batch)
    assert tiny.gap(found, tiny.truth_gradients(tiny.llama(dtype=torch.float64), whole, weigh)) < 1e-9
    (line,) = tiny.log_lines(tmp_path)
    assert line["threshold"] == least


@pytest.mark.parametrize("name", ["rho1_union", "rho1_intersection"])
def test_two_rankings_each_have_their_own(name: str) -> None:
    rows = data().remove_columns("base_nll").add_column("ref_entropy", tiny.rows(8, seed=4, uneven=False)["ref_nll"])
    made = objective(name, ratio=0.5, scope="corpus")
    found = find_thresholds(made, Rows(rows, ("ref_entropy", "ref_nll")))
    assert len(found) == 2
    one, other = (t.value for t in found.values())
    nll, entropy = torch.tensor([1.0, 1.0, 9.0, 9.0]), torch.tensor([1.0, 9.0, 1.0, 9.0])
    thresholds = {n: t.value for n, t in found.items()}
    stats = TokenStats(torch.ones(4, dtype=torch.bool), ref_nll=nll, ref_entropy=entropy, thresholds=thresholds)
    join = max if name == "rho1_union" else min
    parts = zip((-nll >= one).tolist(), (-entropy >= other).tolist(), strict=True)
    assert made.weigh(stats).tolist() == [float(join(pair)) for pair in parts]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rho1", {}),
        ("high_loss", {}),
        ("random", {}),
        ("middle_loss", {}),
        ("eslm", {}),
        ("prior", {}),
        ("entropy_top", {}),
    ],
)
def test_live_scores_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="scope 'corpus' is one threshold over the whole data set"):
        objective(name, scope="corpus", **options)


def test_a_schedule_is_refused_and_so_is_no_threshold() -> None:
    of: dict[str, Any] = {"name": "token_cleaning", "scope": "corpus"}
    with pytest.raises(ValueError, match="scope 'corpus' is a threshold of tokens"):
        objective(**of, unit="document")
    with pytest.raises(ValueError, match="the tokens of all sources have one threshold"):
        objective("by_source", of=of, instead={"b": {"ratio": 0.2}})
    with pytest.raises(ValueError, match="each value would be another ranking of the whole data set"):
        objective("schedule", of=of, option="ratio", points=[[0, 1.0], [9, 0.5]])
    valid = torch.ones(2, dtype=torch.bool)
    stats = TokenStats(valid, ref_nll=torch.zeros(2), columns={"base_nll": torch.zeros(2)})
    with pytest.raises(
        ValueError, match=r"needs the threshold of the whole data set for token_cleaning of ratio: 0\.6"
    ):
        objective(**of).weigh(stats)


def test_a_run_keeps_thresholds_with_the_scores(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Found once, told with what ties, and found again where the note was changed."""
    corpus = corpora.corpus(tmp_path / "corpus", corpora.write_text(tmp_path / "text", num_files=3))
    model = corpora.model_folder(tmp_path / "model")
    common: dict[str, Any] = {"model": str(model), "corpus": str(corpus)}
    scores = score.run(score.ScoreConfig(out=str(tmp_path / "scores"), device="cpu", **common))

    def trained(name: str) -> dict[str, Any]:
        fields = {
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_steps": 9,
        }
        made = {"name": "rho1_low_ref", "ratio": 0.3, "scope": "corpus"}
        config = train.TrainConfig(
            out=str(tmp_path / name), scores=[str(scores)], objective=made, training=fields, **common
        )
        manifest: dict[str, Any] = json.loads((train.run(config) / "manifest.json").read_text())
        return manifest

    first = trained("a")
    (name,) = first["thresholds"]
    assert "tokensieve: rho1_low_ref of ratio: 0.3, reference: ref_nll: of " in capfd.readouterr().err
    assert first["summary"]["scope"] == "corpus"
    entries = json.loads((scores / STORED).read_text())
    assert entries[0]["threshold"] == first["thresholds"][name]
    entries[0]["threshold"]["value"] = -1e9
    (scores / STORED).write_text(json.dumps(entries))
    assert trained("b")["thresholds"] == first["thresholds"]


def test_what_is_kept_is_bound_to_what_it_was_found_from(tmp_path: Path) -> None:
    rows, made = data(), objective("token_cleaning", ratio=RATIO, scope="corpus")
    found = find_thresholds(made, Rows(rows, ("base_nll", "ref_nll")))
    store(tmp_path, {"corpus": "a"}, found)
    assert read_thresholds(tmp_path, {"corpus": "a"}) == found
    assert read_thresholds(tmp_path, {"corpus": "b"}) == {} == read_thresholds(None, {"corpus": "a"})
    (tmp_path / STORED).write_text("{broken")
    assert read_thresholds(tmp_path, {"corpus": "a"}) == {}


def test_a_score_that_is_no_number_is_told() -> None:
    rows = tiny.rows(2, uneven=False, base_nll=np.full((2, tiny.LENGTH), np.nan))
    with pytest.raises(UserError, match="base_nll is NaN at position 1, which is a target"):
        find_thresholds(objective("token_cleaning", scope="corpus"), Rows(rows, ("base_nll", "ref_nll")))
