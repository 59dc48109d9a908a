"""Two processes with half the rows each are one process with all of them: DDP over gloo, real processes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import corpora
import pyarrow.parquet as pq
import pytest
import rank_cases
import sparse_models as models
import tiny
import torch
from processes import fork_ranks

from tokensieve.data import verify
from tokensieve.data.scored import load_scored
from tokensieve.modeling.flops import token_flops
from tokensieve.modeling.sparse import SparseBackward
from tokensieve.pipeline import score
from tokensieve.runs.manifest import read_manifest


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, results of rank 0, of rank 1), of one launch for all cases: starting torch twice takes seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    corpus = corpora.corpus(folder / "corpus", corpora.write_text(folder / "text"))
    model = corpora.model_folder(folder / "model")
    time.sleep(2 * verify.FINE)  # what is younger is not remembered: a fork of the warm process is there after .08 s
    fork_ranks([rank_cases.__file__, str(folder), str(model), str(corpus)], 2)
    return folder, *(torch.load(folder / f"rank-{r}.pt", weights_only=True) for r in (0, 1))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alone")


@pytest.mark.parametrize("name", rank_cases.CASES)
def test_two_ranks_are_one(name: str, both: Any, alone: Path) -> None:
    """Ranked, or divided, on each rank by itself: a mean of means, and other tokens than a larger batch would choose."""
    folder, *ranks = both
    one = rank_cases.run_case(name, alone, 1)
    for rank in ranks:
        assert tiny.gap(rank["cases"][name]["gradients"], one["gradients"]) < 1e-9
    assert logged(ranks[0]["cases"][name]) == pytest.approx(logged(one), rel=1e-5)
    assert kept(folder / name) == kept(alone / name)
    for mine, wanted in zip(lines(folder / name), lines(alone / name), strict=True):
        if "unequal" in name:  # a wider batch has more padding, and padding is computed too
            del mine["flops_student"], wanted["flops_student"]
        assert mine == {k: pytest.approx(v, rel=1e-5) if isinstance(v, float) else v for k, v in wanted.items()}


def logged(result: dict[str, Any]) -> list[float]:
    return [line["loss"] for line in result["logged"] if "loss" in line]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "tokens.jsonl").read_text(encoding="utf-8").splitlines()]


def kept(folder: Path) -> list[list[tuple[int, int, bool]]]:
    """(row, position, keep) of every step."""
    tables = [pq.read_table(p).to_pydict() for p in sorted((folder / "tokens").glob("*.parquet"))]
    return [sorted(zip(t["row"], t["position"], t["keep"], strict=True)) for t in tables]


def test_random_masks_differ_between_ranks(both: Any) -> None:
    """Seeded alike on all ranks, a generator draws the same mask for every rank's rows."""
    (step,) = kept(both[0] / "random-sequence")
    full = [[k for row, _, k in step if row == r] for r in range(8)]
    assert len({tuple(m) for m in full}) == len(full)
    sizes = {len(m) for m in full}
    by_rank = [[(p, k) for r, p, k in step if r in rows] for rows in ((0, 1, 4, 5), (2, 3, 6, 7))]
    assert by_rank[0] != by_rank[1]
    assert len(sizes) > 1


def test_epochs_see_each_row_once(both: Any) -> None:
    """A sampler filled up rank by rank repeats rows; one whose epoch is not passed on repeats the first epoch's order."""
    steps = [{row for row, _, _ in step} for step in kept(both[0] / "epochs")]
    assert len(steps) == 4
    for first in (0, 2):
        assert len(steps[first]) == 8
        assert steps[first] | steps[first + 1] == set(range(11))
    assert steps[0] != steps[2]


def test_flops_count_every_ranks_padding(both: Any) -> None:
    """One rank's width times the number of ranks: rows of unequal length are padded to another width on each."""
    (line,) = lines(both[0] / "unequal-batch")
    widths = [16, 9, 8, 16]  # of rows (0, 1), (2, 3), (4, 5), (6, 7)
    flops = token_flops(tiny.llama(), 16)
    assert line["flops_student"] == pytest.approx(flops.train(2 * sum(widths), line["kept"]))


def test_router_losses_are_averaged_over_ranks(both: Any, alone: Path) -> None:
    _, *ranks = both
    one = rank_cases.run_router(alone, 1)
    assert tiny.gap(ranks[0]["router"], one) < 1e-9


def test_eval_loss_is_over_all_ranks(both: Any, alone: Path) -> None:
    """Seven rows in batches of two on two ranks: an eighth that repeats one would be counted twice."""
    _, *ranks = both
    batch = tiny.rows(7).to_dict()
    nll = tiny.shifted_nll(tiny.llama(dtype=torch.float64), batch)[tiny.valid_targets(batch)]
    assert [r["eval"] for r in ranks] == [pytest.approx(nll.mean().item(), rel=1e-6)] * 2
    assert rank_cases.run_eval(alone, 1) == pytest.approx(ranks[0]["eval"], rel=1e-6)


def test_a_self_test_of_two_ranks(both: Any) -> None:
    """All ranks say the same; each rank's own mean, which packed rows hide, is told."""
    said, other = (rank["self_test"] for rank in both[1:])
    assert said["right"].startswith("self-test of rho1 on 2 ranks: ")
    assert "the rows of all ranks are those of one" in said["right"]
    assert "self-test failed: rows on 2 ranks give " in said["wrong"]
    assert said == other


def test_a_sharded_head(both: Any) -> None:
    """FSDP2 frees the head's weights when its forward is over, and gathers them for the backward only if a gradient comes
    through the head's own output."""
    truth = tiny.truth_gradients(tiny.llama(dtype=torch.float64), tiny.rows(8).to_dict(), torch.ones_like)
    for rank in both[1:]:
        assert tiny.gap(rank["fsdp"], truth) < 1e-9


@pytest.mark.parametrize("store", ["all", "nothing", "kept"])
def test_sharded_blocks(both: Any, store: str) -> None:
    """A block's backward runs it again with the weights that FSDP2 gathers for it; none is kept whole from the forward."""
    model = models.build("llama")
    sparse = SparseBackward(model)
    truth = models.by_gate(sparse, model, models.some())
    for rank in both[1:]:
        assert tiny.gap(rank["sparse-fsdp"][store], truth) < 1e-9
        assert rank["sparse-fsdp"]["held"] == 0


def test_two_ranks_of_a_machine_read_a_corpus_once(both: Any) -> None:
    """Every rank hashed all of it, and all of the model: the bytes that both ranks of a run of ``score`` hashed, added up."""
    folder, *ranks = both
    read = {name: sum(rank["hashed"][name] for rank in ranks) for name in ("corpus", "model")}
    corpus = sum(f["bytes"] for f in read_manifest(folder / "corpus")["files"])
    model = sum((folder / "model" / name).stat().st_size for name in ("config.json", "model.safetensors"))
    assert read == {"corpus": corpus, "model": model}


def test_two_ranks_write_the_scores_of_one(both: Any, alone: Path) -> None:
    """Each rank writes its shards, the first declares them done when all are there: byte for byte what one process writes."""
    folder = both[0]
    config = score.ScoreConfig(
        out=str(alone / "scores"), model=str(folder / "model"), corpus=str(folder / "corpus"), device="cpu"
    )
    score.run(config)
    names = sorted(p.name for p in (alone / "scores").iterdir())
    assert len(names) > 3
    assert names == sorted(p.name for p in (folder / "scores").iterdir())
    for name in names:
        assert (folder / "scores" / name).read_bytes() == (alone / "scores" / name).read_bytes(), name
    assert "ref_nll" in load_scored(folder / "corpus", folder / "scores").column_names
