"""report on folders that the verbs themselves wrote."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tokensieve.data.corpus import open_corpus


def views_of(page: Path) -> list[Any]:
    text = page.read_text("utf-8").split('id="explorer-data">')[1].split("</script>")[0]
    return list(json.loads(text)["views"])


def column(view: Any, name: str, dtype: str) -> np.ndarray:
    return np.frombuffer(gzip.decompress(base64.b64decode(view["columns"][name])), dtype)


def test_a_training_run(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """Corpus and scores are found where the run's config says; what the page holds is what the run logged."""
    page = tmp_path / "report.html"
    done = tokensieve("report", tiny.rho1, "--out", page)
    assert (done.code, done.out) == (0, f"{page}\n"), done.err
    (view,) = views_of(page)
    logs = [pq.read_table(p).to_pydict() for p in sorted((tiny.rho1 / "tokens").glob("*.parquet"))]
    nll = {(f, r, p): n for f, t in enumerate(logs) for r, p, n in zip(t["row"], t["position"], t["nll"], strict=True)}
    kept = {
        (f, r, p): k for f, t in enumerate(logs) for r, p, k in zip(t["row"], t["position"], t["keep"], strict=True)
    }
    ref = open_corpus(tiny.corpus)
    shown, keep, at = column(view, "nll", "<u2"), column(view, "keep", "u1"), 0
    docs = view["docs"]
    for row, position, count, frames in zip(docs["row"], docs["position"], docs["tokens"], docs["frames"], strict=True):
        for frame in frames:
            for i in range(count):
                where = (frame, row + (position + i) // ref.length, (position + i) % ref.length)
                assert shown[at] == (round(nll[where] * 100) if where in nll else 65535)
                assert keep[at] == kept.get(where, False)
                at += 1
    assert at == len(shown)
    assert (shown != 65535).sum() == len(nll)
    assert column(view, "ref", "<u2").min() < 2000


def test_its_corpus_may_be_elsewhere(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """Without its corpus a run has no text to show: said on the page, not an error."""
    shutil.copytree(tiny.clm, tmp_path / "clm", ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((tmp_path / "clm" / "train_config.json").read_text())
    (tmp_path / "clm" / "train_config.json").write_text(json.dumps({**config, "corpus": "gone"}))
    for given, count in (((), 0), (("--corpus", tiny.corpus), 1)):
        done = tokensieve("report", tmp_path / "clm", *given)
        assert done.code == 0, done.err
        page = tmp_path / "clm" / "report.html"
        assert len(views_of(page)) == count
        assert ("No tokens to show" in page.read_text("utf-8")) is (count == 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "missing: runs"),
        (("{corpus}",), "holds 'corpus': a folder that run or train wrote is needed"),
        (("{rho1}", "--tokens", "0"), "tokens must be at least 1"),
        (("{rho1}", "--corpus", "{text}"), "has no manifest.json"),
        (("{rho1}", "--corpus", "{target}"), "corpus: {target} is not what {rho1} was trained on"),
        (("{clm}", "--scores", "{scores}"), "scores: {scores} is not what {clm} was trained on"),
    ],
)
def test_what_is_wrong(arguments: tuple[str, ...], said: str, tiny: Any, tokensieve: Any) -> None:
    places = {name: getattr(tiny, name) for name in ("corpus", "rho1", "text", "target", "clm", "scores")}
    done = tokensieve("report", *(a.format(**places) for a in arguments))
    assert done.code == 2
    assert said.format(**places) in done.error


def test_a_recipe_says_whether_it_wants_one(tokensieve: Any, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nreport: please\nstages: {a: {verb: prepare, sources: []}}\n")
    done = tokensieve("run", tmp_path / "r.yaml")
    assert done.code == 2
    assert "report: true or false is needed" in done.error
