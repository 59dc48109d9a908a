"""benchmarks/sparse_quality.py: the gradients that it compares are those of the definition, and its noise is where it says."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def quality() -> Any:
    spec = importlib.util.spec_from_file_location("sparse_quality", BENCHMARKS / "sparse_quality.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setitem(__import__("sys").modules, "sparse_quality", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    module.MODEL.update(hidden_size=16, intermediate_size=32, vocab_size=32, num_hidden_layers=3)
    return module


def test_what_the_gates_leave_as_it_is(quality: Any) -> None:
    """All kept: nothing changes. Some kept: the last block's gradient is exact, unless keys and values are constants."""
    model = quality.model_with(None).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # at its start attention hardly moves anything
            p.add_(torch.randn_like(p) * 0.3)
    ids, every = torch.randint(0, 32, (2, 12)), torch.ones(2, 12, dtype=torch.bool)
    some = torch.rand(2, 12) < 0.5
    for keep, same in ((every, True), (some, False)):
        found = {way: [quality.gradients(model, ids, keep, way)] for way in quality.GATES}
        sparse, strict = (quality.compared(found["exact"], found[way]) for way in ("sparse", "strict"))
        assert math.isclose(sparse["block 3"]["batch"], 1, abs_tol=1e-12)
        assert math.isclose(sparse["block 3"]["norm"], 1, abs_tol=1e-12)
        assert (sparse["block 1"]["batch"] > 1 - 1e-9) is same
        assert (strict["block 3"]["batch"] > 1 - 1e-9) is same


def test_planted_noise_is_where_it_is_said_to_be(quality: Any) -> None:
    ids = np.zeros((5, 128), np.int64)
    noisy, where = quality.plant(ids, 0.375, seed=0)
    assert (where.sum(1) == 48).all()
    assert (noisy[~where] == 0).all()
    assert (where.reshape(5, -1, quality.SPAN).all(2) == where.reshape(5, -1, quality.SPAN).any(2)).all()
    assert len(np.unique(noisy[where])) > 16
