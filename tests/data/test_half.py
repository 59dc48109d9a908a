"""float16 columns: what does not fit is stored as the largest number there is, counted and told; inf of earlier versions is
read as that, and whatever is no number on a target is refused."""

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

from tokensieve.analysis.token_classes import CLASSES
from tokensieve.core import Objective
from tokensieve.data import half
from tokensieve.data.corpus import open_corpus
from tokensieve.data.list_columns import write_columns
from tokensieve.data.rows import Rows
from tokensieve.data.scored import load_scored
from tokensieve.dynamics import classes as d
from tokensieve.dynamics.rows import NllReader
from tokensieve.dynamics.tables import _checkpoint_means
from tokensieve.modeling.load import load_causal_lm
from tokensieve.pipeline import dynamics, score
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import read_manifest
from tokensieve.scoring.engine import Scorer

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("value", "as_stored", "clipped"),
    [
        (65504.0, 65504.0, 0),
        (65505.0, 65504.0, 1),
        (65519.9, 65504.0, 1),  # rounds down by itself, and is another number all the same
        (65520.0, 65504.0, 1),  # the first that was inf
        (3e38, 65504.0, 1),
        (INF, 65504.0, 1),
        (-1e5, -65504.0, 1),
        (-INF, -65504.0, 1),
        (NAN, NAN, 0),
        (3e-8, 5.960464477539063e-08, 0),
        (2e-8, 0.0, 0),
    ],
)
def test_what_float16_makes_of_a_number(value: float, as_stored: float, clipped: int) -> None:
    values, count = half.stored(np.array([1.0, value], np.float32), np.float16)
    assert values.dtype == np.float16
    np.testing.assert_array_equal(values, np.array([1.0, as_stored], np.float16))
    assert count == clipped
    whole, count = half.stored(np.array([value], np.float32), np.float32)
    np.testing.assert_array_equal(whole, np.array([value], np.float32))
    assert count == 0


def rows(values: list[float], dtype: Any = np.float16) -> Rows:
    columns = {"input_ids": [[1, 2, 3, 4]], "num_tokens": [3], "ref_nll": np.array([values], dtype)}
    return Rows(Dataset.from_dict(columns), ["ref_nll"])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([NAN, 1, INF, NAN], [0, 1, 65504, 0]),
        ([NAN, -INF, 2, NAN], [0, -65504, 2, 0]),
        ([INF, 1, 2, INF], [65504, 1, 2, 65504]),  # no targets: any finite number does
        ([NAN, 1, 2, NAN], [0, 1, 2, 0]),
    ],
)
def test_an_old_columns_inf_is_the_largest_number(
    values: list[float], wanted: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """nan_to_num made 3.4e38 of it: every other excess of the batch was 0 beside it."""
    half._tell.cache_clear()
    assert rows(values)[0]["ref_nll"].tolist() == wanted
    assert ("'ref_nll' is infinite at some tokens" in capsys.readouterr().err) == bool(np.isinf(values).any())


@pytest.mark.parametrize(
    ("values", "dtype", "says"),
    [
        ([NAN, 1, NAN, NAN], np.float16, "ref_nll is NaN at position 2"),
        ([NAN, INF, 1, NAN], np.float32, "ref_nll is infinite at position 1"),
        ([NAN, 1, -INF, NAN], np.float32, "ref_nll is infinite at position 2"),
        ([NAN, 1, 1e300, NAN], np.float64, "ref_nll is infinite at position 2"),
    ],
)
def test_what_is_no_number_on_a_target_is_refused(values: list[float], dtype: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"row 0: {says}, which is a target"):
        rows(values, dtype)[0]


def test_wide_columns_keep_inf_where_there_is_no_target() -> None:
    assert rows([INF, 1, 2, -INF], np.float32)[0]["ref_nll"].tolist() == [0, 1, 2, 0]


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(corpus, model, the same with logits so wide that most nll are beyond 65,504)."""
    folder = tmp_path_factory.mktemp("half")
    corpus = corpora.corpus(folder / "corpus", corpora.write_text(folder / "text", num_files=3))
    quiet = corpora.model_folder(folder / "quiet")
    model = load_causal_lm(quiet)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3e4)
    model.save_pretrained(folder / "loud")
    return corpus, quiet, folder / "loud"


def true_nll(model: Path, corpus: Path) -> np.ndarray:
    made = Rows(load_scored(corpus))
    return np.concatenate([b.nll for b in Scorer(load_causal_lm(model), device="cpu").run(made)])


def test_scores_beyond_float16(
    loud: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were stored as inf, and a training run read 3.4e38."""
    corpus, _, model = loud
    common: dict[str, Any] = {"model": str(model), "corpus": str(corpus), "device": "cpu"}
    out = score.run(score.ScoreConfig(out=str(tmp_path / "s"), columns=["ref_nll", "ref_entropy"], **common))
    truth = true_nll(model, corpus)
    beyond = int((truth > 65504).sum())
    assert 10 < beyond < (~np.isnan(truth)).sum()
    assert read_manifest(out)["clipped"] == {"ref_nll": beyond, "ref_entropy": 0}
    assert f"{beyond:,} values of ref_nll beyond 65,504 are stored as 65,504" in capsys.readouterr().err
    stored = np.array(load_scored(corpus, out)["ref_nll"], np.float32)
    np.testing.assert_array_equal(stored, np.minimum(truth, 65504).astype(np.float16).astype(np.float32))
    whole = score.run(score.ScoreConfig(out=str(tmp_path / "whole"), dtype="float32", **common))
    np.testing.assert_array_equal(np.array(load_scored(corpus, whole)["ref_nll"], np.float32), truth)
    assert read_manifest(whole)["clipped"] == {"ref_nll": 0}


def test_dynamics_beyond_float16(
    loud: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """inf - inf is NaN, which falls through every comparison: those tokens came out as L->L."""
    corpus, quiet, model = loud
    config = dynamics.DynamicsConfig(out=str(tmp_path / "d"), models=[str(quiet), str(model)], corpus=str(corpus))
    out = dynamics.run(config)
    truth = true_nll(model, corpus)
    beyond = int((truth > 65504).sum())
    assert read_manifest(out)["clipped"] == {"nll": beyond, "delta": 0, "fluctuation": 0}
    assert f"{beyond:,} values of nll beyond 65,504" in capsys.readouterr().err
    classes = np.array(Dataset.from_file(str(out / "tokens.arrow"))["class"])
    assert (classes[truth > 65504] == CLASSES.index("L->H")).all()
    told = json.loads((out / "dynamics.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert all(np.isfinite(c["nll"]) for c in told["checkpoints"])


def test_an_earlier_versions_nll_file(loud: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Read as if it had been clipped; and a NaN on one checkpoint's target is refused, as many as there may be elsewhere."""
    corpus = open_corpus(loud[0])
    nll = np.full((corpus.num_rows, corpus.length), 2, np.float16)
    nll[:, 0] = np.nan
    old = nll.copy()
    old[0, 3] = np.inf
    for i, values in enumerate((nll, old)):
        write_columns(tmp_path / f"nll-{i:05d}.arrow", [{"nll": values}])
    reader = NllReader(corpus, [tmp_path / "nll-00000.arrow", tmp_path / "nll-00001.arrow"])
    targets = (~np.isnan(nll)).sum()
    assert _checkpoint_means(reader) == pytest.approx([2.0, (2.0 * (targets - 1) + 65504) / targets])
    lines = d.classify(reader.block(0, 1).nll_CN, 2.0)
    assert lines.class_N[2] == CLASSES.index("L->H")
    nll[1, 5], nll[1, 0] = np.nan, 2  # as many as before
    write_columns(tmp_path / "nll-00002.arrow", [{"nll": nll}])
    reader = NllReader(corpus, [tmp_path / "nll-00000.arrow", tmp_path / "nll-00002.arrow"])
    with pytest.raises(UserError, match=r"checkpoint 1 has nll at other tokens.*row 1, position 0"):
        _checkpoint_means(reader)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_no_class_of_what_is_no_number(value: float) -> None:
    with pytest.raises(ValueError, match="only targets with a number have a class"):
        d.classify(np.array([[1.0, 2.0], [1.0, value]]), 1.0)


@pytest.mark.parametrize("what", ["nll", "entropy"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_models_own_inf_is_a_broken_model(what: str, value: float) -> None:
    """Not clipped: a target of probability 0 is no measurement that was too large to store."""
    from tokensieve.scoring.engine import _check_finite

    values = torch.tensor([[1.0, value, 2.0]])
    model = tiny.llama()
    _check_finite(what, values, torch.tensor([[5, -100, 5]]), 0, model)
    model.lm_head.weight.data[0, 0] = value
    with pytest.raises(
        UserError, match=f"the model's {what} is not finite at row 4, position 2: .*the first in lm_head"
    ):
        _check_finite(what, values, torch.tensor([[5, 5, 5]]), 4, model)


def test_names_of_columns_are_free() -> None:
    """A column of the user's own, read by an objective of the user's own, is clipped and refused alike."""
    rule = Objective("own", weigh=lambda s: s.need("worth"), needs=frozenset({"worth"}), denominator="valid")
    columns = {"input_ids": [[1, 2]], "worth": np.array([[0, np.inf]], np.float16)}
    assert Rows(Dataset.from_dict(columns), sorted(rule.needs))[0]["worth"].tolist() == [0, 65504]
