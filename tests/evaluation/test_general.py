"""The harness's own tasks: asked where their data is on this machine, told of where it is not, never downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

# The harness reads thousands of YAML files to know its tasks.
pytestmark = pytest.mark.slow


def test_what_is_not_here_is_listed(
    tiny: Any, tokensieve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline whatever the environment says: no name may be looked up on the hub."""
    import socket

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("it went to the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    done = tokensieve("evaluate", "--out", tmp_path / "out", "--tasks", "paper-general", "--models.a", tiny.base)
    assert done.code == 2
    assert "tasks: none of them is on this disk" in done.error
    for name in ("mmlu", "bbh", "minerva_math", "gsm8k_cot", "agieval", "arc_easy", "winogrande", "tydiqa"):
        assert f"{name}: its data is not in this machine's cache" in done.error
    for name in ("mbpp", "humaneval"):
        assert f"{name}: the harness runs what a model writes without isolation" in done.error
    assert "it went to the network" not in done.error


def test_what_is_here_is_asked(tiny: Any, tokensieve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three questions of BoolQ in the place of the cached data set; figures against the model's own logits."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [{"question": f"is {i}", "passage": f"the {i}", "label": i % 2} for i in range(3)]

    def cached(path: str, **_: Any) -> Any:
        if path == "winogrande":
            raise ConnectionError("offline")
        return {"train": datasets.Dataset.from_list(rows), "validation": datasets.Dataset.from_list(rows)}

    monkeypatch.setattr(datasets, "load_dataset", cached)
    words = ("--tasks", "boolq", "--models.a", tiny.base)
    done = tokensieve("evaluate", "--out", tmp_path / "out", *words)
    assert done.code == 0, done.err
    model = AutoModelForCausalLM.from_pretrained(tiny.base / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny.base / "model")
    right = 0
    for row in rows:
        prompt, sums = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", []
        for choice in (" no", " yes"):
            before, ids = tokenizer.encode(prompt), tokenizer.encode(prompt + choice)
            with torch.no_grad():
                log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(log_p[t - 1, ids[t]]) for t in range(len(before), len(ids))))
        right += (sums[1] > sums[0]) == bool(row["label"])
    table = (tmp_path / "out" / "table.txt").read_text()
    assert table.split("\n")[0].split() == ["model", "tokens", "seen", "BoolQ", "AVG"]
    assert f"{100 * right / 3:.1f} ±" in table
