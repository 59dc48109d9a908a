"""Less context: each token's numbers against a forward of exactly what it may see, in float64."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset

from tokensieve.core import IGNORE_INDEX
from tokensieve.data.rows import Rows
from tokensieve.runs.errors import UserError
from tokensieve.scoring.context import Context, ablated
from tokensieve.scoring.engine import Scorer

T, EOS = tiny.LENGTH, 0
STARTS = [[0, 5, 11], [0, 9], [0]]
SOLUTIONS = [
    [3, 5, 14],
    [0, 12],
    [7],
]  # of row 0: problems of 3, 0 and 3 tokens; its first document has nothing before it
COUNTS = [T, T, 10]


def made(*, isolated: bool = False) -> tuple[Any, Rows]:
    """What of a corpus is read, and its rows: three of them, the last one padded."""
    rng = np.random.default_rng(5)
    columns: dict[str, Any] = {"input_ids": rng.integers(1, tiny.VOCAB, (3, T)).tolist(), "num_tokens": COUNTS}
    columns |= {"doc_starts": STARTS, "doc_targets": SOLUTIONS}
    data = Dataset.from_dict(columns)
    corpus = SimpleNamespace(rows=data, bos_id=None, eos_id=EOS, isolate_documents=isolated, num_rows=3, folder="C")
    flagged = data.remove_columns("doc_targets").add_column("isolated", [isolated] * 3)
    return corpus, Rows(flagged)


def nll_after(model: Any, before: list[int], token: int) -> float:
    with torch.no_grad():
        return -float(model(input_ids=torch.tensor([before])).logits[0, -1].log_softmax(-1)[token])


def expected(context: str, row: int, t: int, ids: list[int], *, isolated: bool) -> list[int] | None:
    """What stands before token t, written down; None where it is no target."""
    starts, solutions = STARTS[row], SOLUTIONS[row]
    piece = max(i for i, s in enumerate(starts) if s <= t)
    begin = starts[piece] if isolated else 0
    if t == begin or t >= COUNTS[row]:
        return None
    if context == "last":
        return ids[max(begin, t - 3) : t]
    if context == "earlier_documents":
        return ids[
            max(0, starts[piece] - 1) : t
        ]  # with the end of the document before it, which foretells its first token
    if t < solutions[piece]:
        return ids[begin:t]
    hidden = {i for s, e in zip(starts, solutions, strict=True) for i in range(s, e)}
    start = (
        [EOS] if begin in hidden else []
    )  # where the beginning is left out, something must stand before what is left
    return start + [ids[i] for i in range(begin, t) if i not in hidden]


@pytest.mark.parametrize(
    ("name", "isolated", "batch_rows"),
    [
        ("last", False, 0),
        ("last", True, 2),
        ("problem", False, 2),
        ("problem", True, 0),
        ("earlier_documents", False, 2),
    ],
)
def test_each_token_sees_what_is_left_and_no_more(name: str, isolated: bool, batch_rows: int) -> None:
    corpus, rows = made(isolated=isolated)
    context = Context(last=3) if name == "last" else Context(without=name)
    model = tiny.llama()
    scorer = Scorer(copy.deepcopy(model), batch_rows=batch_rows, rank=True, top_k=2)
    found = list(ablated(scorer, corpus, rows, context))
    assert [f.start for f in found] == ([0, 2] if batch_rows else [0])
    nll_BT, truth = np.concatenate([f.nll for f in found]), tiny.in_float64(model).eval()
    rank_BT, logp_BTK = (np.concatenate([f.of(n) for f in found]) for n in ("target_rank", "topk_logp"))
    for row, ids in enumerate(corpus.rows["input_ids"]):
        for t in range(T):
            before = expected(name, row, t, ids, isolated=isolated)
            if before is None:
                assert np.isnan(nll_BT[row, t])
                assert np.isnan(logp_BTK[row, t]).all()
                continue
            assert nll_BT[row, t] == pytest.approx(nll_after(truth, before, ids[t]), rel=1e-4, abs=1e-4)
            if rank_BT[row, t] < 2:
                assert logp_BTK[row, t, int(rank_BT[row, t])] == pytest.approx(-nll_BT[row, t], abs=1e-5)


def test_a_context_as_long_as_the_row_leaves_nothing_out() -> None:
    corpus, rows = made()
    scorer = Scorer(tiny.llama(), entropy=True)
    (whole,) = scorer.run(rows)
    (same,) = ablated(scorer, corpus, rows, Context(last=T))
    np.testing.assert_allclose(same.nll, whole.nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(same.entropy, whole.entropy, rtol=1e-4, atol=1e-5)


def test_a_stride_feeds_less_and_shows_a_little_more() -> None:
    """Windows of 3 + 2 tokens: every token has 3 to 5 before it, and the cost is what was said."""
    corpus, rows = made()
    fed: list[int] = []
    model = tiny.llama()
    model.register_forward_pre_hook(lambda m, a, kw: fed.append(kw["input_ids"].numel()), with_kwargs=True)
    scorer, context = Scorer(model, batch_rows=3), Context(last=3, stride=2)
    scorer.prove(rows, 3)
    fed.clear()
    (found,) = ablated(scorer, corpus, rows, context)
    assert sum(fed) <= context.cost(T)[0] * T * 3
    truth, ids = tiny.in_float64(tiny.llama()).eval(), corpus.rows["input_ids"][0]
    for t in range(1, T):
        sizes = [min(t, n) for n in (3, 4)]
        wanted = [nll_after(truth, ids[t - n : t], ids[t]) for n in sizes]
        assert any(found.nll[0, t] == pytest.approx(w, rel=1e-4, abs=1e-4) for w in wanted)


def test_labels_are_kept_to() -> None:
    """A token that is no target of the corpus has no number, whatever is fed of it."""
    corpus, _ = made()
    labels = [list(row) for row in corpus.rows["input_ids"]]
    labels[0][4] = labels[2][8] = IGNORE_INDEX
    rows = Rows(corpus.rows.remove_columns("doc_targets").add_column("labels", labels))
    (found,) = ablated(Scorer(tiny.llama()), corpus, rows, Context(without="problem"))
    (whole,) = Scorer(tiny.llama()).run(rows)
    assert np.array_equal(np.isnan(found.nll), np.isnan(whole.nll))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "one of last .* and without"),
        ({"last": 2, "without": "problem"}, "one of last .* and without"),
        ({"last": 0}, "last is 0, it must be at least 1"),
        ({"last": 2, "stride": 0}, "stride is 0"),
        ({"without": "problem", "stride": 2}, "stride is 2, .* goes with last"),
        ({"without": "images"}, "no span 'images', only problem, earlier_documents"),
    ],
)
def test_contexts_that_cannot_be_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Context(**fields)


def test_a_corpus_with_nothing_to_leave_out_is_refused() -> None:
    corpus, _ = made(isolated=True)
    with pytest.raises(UserError, match="are isolated, none sees an earlier one"):
        Context(without="earlier_documents").check(corpus)
    corpus.rows = corpus.rows.remove_columns("doc_targets").add_column("doc_targets", STARTS)
    with pytest.raises(UserError, match="no document of C has a problem before its solution"):
        Context(without="problem").check(corpus)
