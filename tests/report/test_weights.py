"""Weights of a corpus, in a terminal and in the report's explorer: at their tokens, and nothing where there is no target."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokensieve.data.corpus import Corpus, open_corpus
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.weight_rules import WeightRule
from tokensieve.pipeline import prepare, show
from tokensieve.report import explorer
from tokensieve.report.pieces import PieceTable
from tokensieve.runs.errors import UserError

RULES = [
    WeightRule(0.5, regex="half"),
    WeightRule(0.0, regex="none"),
    WeightRule(-1.0, regex="not"),
    WeightRule(3.0, regex="more"),
]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Corpus]:
    """One with weights, the same text without."""
    here = tmp_path_factory.mktemp("weights")
    (here / "a.jsonl").write_text('{"text": "one half none not more end"}\n{"prompt": "q ", "completion": "a"}\n')
    (here / "text.jsonl").write_text((here / "a.jsonl").read_text().split("\n")[0])
    (here / "chat.jsonl").write_text((here / "a.jsonl").read_text().split("\n")[1])
    sources = [SourceConfig(str(here / "text.jsonl")), SourceConfig(str(here / "chat.jsonl"), format="chat")]
    made = []
    for name, rules in (("ruled", RULES), ("plain", [])):
        config = prepare.PrepareConfig(str(here / name), sources, vocab_size=257, length=48, weights=rules)
        made.append(open_corpus(prepare.run(config, progress=False)))
    return made[0], made[1]


def test_show_colours_by_weight(corpora: tuple[Corpus, Corpus]) -> None:
    config = show.ShowConfig(str(corpora[0].folder), color=False, width=200)
    legend, text = show.run(config).split("\n", 1)
    assert text.startswith("[one ](half)[ ]none[ ]<not>[ ]{more}")
    assert legend.startswith("row 0: weight <below 0> ")
    assert "(to 1)" in legend
    assert "-1.00" in show.run(show.ShowConfig(str(corpora[0].folder), numbers=True, lines=40, width=200))
    chat = show.run(show.ShowConfig(str(corpora[0].folder), row=1, color=False, width=200))
    assert "".join(chat.split("\n")[1:]).startswith("q[a<")  # what is no target is plain, and wraps here


def test_a_corpus_without_weights_has_none_to_show(corpora: tuple[Corpus, Corpus]) -> None:
    with pytest.raises(UserError, match="which has no weights"):
        show.run(show.ShowConfig(str(corpora[1].folder), by="weight"))


def test_the_explorer_has_the_weight_of_each_token(corpora: tuple[Corpus, Corpus]) -> None:
    def column(corpus: Corpus) -> Any:
        found = list(explorer._documents(corpus, {0: (0,), 1: (0,)}))
        columns = explorer._packed({}, {}, corpus, found, PieceTable(), [0, 1])["columns"]
        return (
            np.frombuffer(gzip.decompress(base64.b64decode(columns["weight"])), "<f4") if "weight" in columns else None
        )

    rows = zip(corpora[0].target_weights([0, 1]), corpora[0].row_tokens(), strict=True)
    wanted = np.concatenate([weight_T[: int(n)] for weight_T, n in rows])
    assert np.array_equal(column(corpora[0]), wanted, equal_nan=True)
    assert set(wanted[~np.isnan(wanted)].tolist()) == {-1.0, 0.0, 0.5, 1.0, 3.0}
    assert np.isnan(wanted).sum() == 2
    assert column(corpora[1]) is None


def test_the_page_knows_the_column() -> None:
    """What the script decodes by: a column of another name or type would be noise."""
    script = (Path(explorer.__file__).parent / "page" / "explorer.js").read_text(encoding="utf-8")
    assert "weight: Float32Array" in script
