"""``dynamics`` writes when each token was learned, and the objective of that name trains on it."""

from __future__ import annotations

import json
from pathlib import Path

import corpora
import numpy as np
import pytest
import tiny
from datasets import Dataset

from tokensieve.core import objective
from tokensieve.data.scored import load_scored
from tokensieve.dynamics.learning import NEVER, learning_times
from tokensieve.modeling.load import load_causal_lm
from tokensieve.pipeline import dynamics
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import read_manifest


def learned(nll: list[float], level: float) -> float:
    """One token's, written down: the first checkpoint after which it is never above the level again."""
    for c in range(len(nll)):
        if all(x <= level for x in nll[c:]):
            return c / (len(nll) - 1)
    return NEVER


def test_learned_is_what_stays_learned() -> None:
    rng = np.random.default_rng(0)
    nll_CN = np.round(rng.uniform(0, 4, (5, 200))).astype(np.float16)
    found = learning_times(nll_CN, 2.0)
    assert found.tolist() == [learned(nll_CN[:, i].tolist(), 2.0) for i in range(200)]
    assert {*found.tolist()} == {0.0, 0.25, 0.5, 0.75, 1.0, NEVER}
    assert (learning_times(nll_CN[:, ::-1], 2.0) == found[::-1]).all()


def test_a_column_that_can_be_trained_on(tmp_path: Path) -> None:
    corpus = corpora.corpus(tmp_path / "corpus", corpora.write_text(tmp_path / "text", num_files=3))
    models = [str(corpora.model_folder(tmp_path / name, seed=i)) for i, name in enumerate("abc")]
    config = dynamics.DynamicsConfig(
        out=str(tmp_path / "d"), models=models, corpus=str(corpus), learning_time="mean", device="cpu"
    )
    out = dynamics.run(config)
    level = json.loads((out / "dynamics.json").read_text())["mean_last"]
    nll = np.array([Dataset.from_file(str(out / f"nll-0000{c}.arrow"))["nll"][:] for c in range(3)], np.float64)
    joined = load_scored(corpus, out / "learning_time")
    found = np.array(joined["learning_time"][:], np.float64)
    for place in np.ndindex(found.shape):
        values = nll[:, *place].tolist()
        assert np.isnan(found[place]) if np.isnan(values[0]) else found[place] == learned(values, level)
    names = {entry["file"] for entry in read_manifest(out)["files"]}
    assert {"learning_time/rows-00000.arrow", "learning_time/manifest.json"} <= names
    assert read_manifest(out / "learning_time", "scores")["config"] == {"learning_time": level}
    tiny.train(load_causal_lm(models[0]), tiny.arguments(tmp_path / "run", 12), joined, objective("learning_time"))
    (line,) = tiny.log_lines(tmp_path / "run")
    assert line["kept"] == (found <= 0.5).sum()


def test_levels_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"learning_time is -1\.0, it must be a number of nats, at least 0, or mean"):
        dynamics.run(dynamics.DynamicsConfig(out="x", models=["a", "b"], corpus="c", learning_time=-1.0))
