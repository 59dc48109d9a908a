"""Twenty steps of Rho-1, number by number, as they were when they were written down.

After a change that is meant to change them: ``python tests/equivalence/test_golden.py`` writes them anew; say why in the
commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden" / "rho1-llama.json"
STEPS = 20
KEYS = ("nll", "kept_nll", "dropped_nll", "threshold", "loss", "valid", "kept")


def trajectory(folder: Path) -> list[dict[str, Any]]:
    """What 20 steps of SGD log. Weights and rows are numpy's, so that they do not change with torch's generators."""
    import tiny
    import torch

    from tokensieve.core import objective

    rng, model = np.random.default_rng(0), tiny.llama()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = rng.normal(1.0 if "norm" in name else 0.0, 0.2, parameter.shape)
            parameter.copy_(torch.from_numpy(values).float())
    args = tiny.arguments(folder, 2, 2, max_steps=STEPS, learning_rate=0.05)
    tiny.train(model, args, tiny.rows(12), objective("rho1", ratio=0.6))
    lines = [json.loads(line) for line in (folder / "tokens.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: line[key] for key in KEYS} for line in lines]


def test_the_trajectory_is_the_golden_one(tmp_path: Path) -> None:
    """A change of half a percent anywhere in the method shows in no other test's tolerance, but here after 20 steps."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["steps"]
    found = trajectory(tmp_path)
    assert len(found) == len(golden) == STEPS
    for step, (mine, wanted) in enumerate(zip(found, golden, strict=True), 1):
        assert mine == {k: pytest.approx(v, rel=1e-5, abs=1e-5) for k, v in wanted.items()}, f"step {step}"
    assert found[-1]["kept_nll"] < 0.8 * found[0]["kept_nll"]


if __name__ == "__main__":
    import sys
    import tempfile

    sys.path[:0] = [str(Path(__file__).parents[1] / "helpers"), str(Path(__file__).parents[2] / "src")]
    from tokensieve.runs import versions

    with tempfile.TemporaryDirectory() as scratch:
        steps = trajectory(Path(scratch))
    environment = {k: v for k, v in versions().items() if k != "revision"}
    text = json.dumps({"environment": environment, "steps": steps}, indent=1)
    GOLDEN.write_text(text + "\n", encoding="utf-8")
