"""The scoring forward against full logits in float64: each number belongs to its token, in every batch size."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset

from tokensieve.data.rows import Rows
from tokensieve.runs.errors import UserError
from tokensieve.scoring.engine import RowStatistics, Scorer, prefetch

T = tiny.LENGTH


def data(num_rows: int = 7) -> Dataset:
    """Rows of one length; the last two are short of tokens and padded."""
    rng = np.random.default_rng(3)
    ids = rng.integers(0, tiny.VOCAB, (num_rows, T)).tolist()
    return Dataset.from_dict({"input_ids": ids, "num_tokens": [T] * (num_rows - 2) + [5, 1]})


def truth(model: Any, ids: list[int]) -> tuple[list[float], list[float]]:
    """(nll, entropy) of each token of a row, one forward a prefix, in float64; the first token has none."""
    model = tiny.in_float64(copy.deepcopy(model)).eval()
    nll, entropy = [float("nan")], [float("nan")]
    with torch.no_grad():
        for t in range(1, len(ids)):
            log_p = model(input_ids=torch.tensor([ids[:t]])).logits[0, -1].log_softmax(-1)
            nll.append(-log_p[ids[t]].item())
            entropy.append(-(log_p.exp() * log_p).sum().item())
    return nll, entropy


def scored(scorer: Scorer, rows: Rows, **span: int) -> RowStatistics:
    parts = list(scorer.run(rows, **span))
    assert [p.start for p in parts] == list(np.cumsum([parts[0].start, *(len(p.nll) for p in parts[:-1])]))
    entropy = None if parts[0].entropy is None else np.concatenate([p.entropy for p in parts])
    return RowStatistics(parts[0].start, np.concatenate([p.nll for p in parts]), entropy)


def test_each_number_belongs_to_its_token() -> None:
    """nll stored where it was predicted instead of where its token stands: every score one token early, and plausible."""
    model, rows = tiny.llama(), data()
    found = scored(Scorer(copy.deepcopy(model), entropy=True), Rows(rows))
    assert found.nll.shape == found.entropy.shape == (7, T)
    assert found.nll.dtype == found.entropy.dtype == np.float32
    for i, (ids, count) in enumerate(zip(rows["input_ids"], rows["num_tokens"], strict=True)):
        nll, entropy = truth(model, ids[:count])
        padding = [float("nan")] * (T - count)
        np.testing.assert_allclose(found.nll[i], nll + padding, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.entropy[i], entropy + padding, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch_rows", [1, 3])
def test_batch_sizes_agree(batch_rows: int) -> None:
    """A row's scores do not depend on the rows that it was scored with."""
    rows = Rows(data())
    whole = scored(Scorer(tiny.llama(), batch_rows=7, entropy=True), rows)
    parts = scored(Scorer(tiny.llama(), batch_rows=batch_rows, entropy=True), rows)
    np.testing.assert_allclose(parts.nll, whole.nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(parts.entropy, whole.entropy, rtol=1e-4, atol=1e-5)


def test_a_span_of_rows_is_part_of_the_whole() -> None:
    rows, scorer = Rows(data()), Scorer(tiny.llama(), batch_rows=2)
    whole, part = scored(scorer, rows), scored(scorer, rows, start=2, stop=5)
    assert part.start == 2
    assert part.entropy is None
    np.testing.assert_allclose(part.nll, whole.nll[2:5], rtol=1e-5, atol=1e-5)
    assert list(scorer.run(rows, start=3, stop=3)) == []


@pytest.mark.parametrize("batch_rows", [1, 2])
def test_isolated_pieces_are_scored_alone(batch_rows: int) -> None:
    """The reference model must not see the document before: its score of a piece is the piece's own."""
    starts = [[0, 7], [0, 3, 4, 10]]
    rows = data(4).select([0, 1]).add_column("doc_starts", starts).add_column("isolated", [True, True])
    model = tiny.llama()
    found = scored(Scorer(copy.deepcopy(model), batch_rows=batch_rows), Rows(rows))
    for i, (ids, cuts) in enumerate(zip(rows["input_ids"], starts, strict=True)):
        pieces = [ids[a:b] for a, b in zip(cuts, [*cuts[1:], T], strict=True)]
        wanted = [value for piece in pieces for value in truth(model, piece)[0]]
        np.testing.assert_allclose(found.nll[i], wanted, rtol=1e-4, atol=1e-4)


def test_the_model_is_scored_in_eval_mode() -> None:
    """Dropout left on: scores with noise of their own, and other ones at each run."""
    model = tiny.llama(attention_dropout=0.9).train()
    found = scored(Scorer(model), Rows(data()))
    np.testing.assert_allclose(found.nll, scored(Scorer(tiny.llama()), Rows(data())).nll, rtol=1e-6)


def test_a_head_that_does_more_is_refused() -> None:
    scorer = Scorer(tiny.llama())
    scorer.seam.scale = 0.5
    with pytest.raises(UserError, match="its head does more than tokensieve knows of"):
        list(scorer.run(Rows(data())))


def test_a_first_row_without_targets_is_no_wrong_head() -> None:
    """A first document of one token in an isolated corpus has no target at all: 0 / 0 looked like a wrong head."""
    rows = data().select([6, 0])
    assert np.isnan(scored(Scorer(tiny.llama()), Rows(rows)).nll[0]).all()


def test_broken_weights_are_seen() -> None:
    """NaN on a target passed for "no target": a broken model came out better by the tokens it could not predict."""
    model, data = tiny.llama(), Rows(tiny.rows(uneven=False))
    token = next(t for t in data.dataset[5]["input_ids"] if t not in data.dataset[0]["input_ids"])
    scorer = Scorer(model, device="cpu", batch_rows=1)
    before = [next(scorer.run(data)).nll]
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    with pytest.raises(UserError, match=r"not finite at row .* the first in model.embed_tokens.weight"):
        before += [batch.nll for batch in scorer.run(data)]  # proved before they broke
    with pytest.raises(UserError, match=r"^LlamaForCausalLM has weights that are not finite, the first in model.embed"):
        list(Scorer(model, device="cpu").run(data))


def rope_by_batch() -> Any:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    return tiny.llama(max_position_embeddings=8, rope_parameters=rope)


@pytest.mark.parametrize("batch_rows", [2, 4])
def test_rows_that_depend_on_their_neighbours_are_refused(batch_rows: int) -> None:
    """The first row's first tokens were looked at, twice side by side: row 3, one long piece, moved all others by nats."""
    rows = data(4).remove_columns("num_tokens").add_column("doc_starts", [[0, 7]] * 3 + [[0]])
    with pytest.raises(UserError, match="'dynamic' follows the longest position in a batch"):
        list(Scorer(rope_by_batch(), batch_rows=batch_rows).run(Rows(rows.add_column("isolated", [True] * 4))))
    alike = Rows(rows.select(range(3)).add_column("isolated", [False] * 3))
    assert len(scored(Scorer(rope_by_batch(), batch_rows=batch_rows), alike).nll) == 3


def test_every_set_of_rows_is_proved() -> None:
    """The first corpus was, at its first row; an isolated one that came after it was not. Each of them once."""
    model, calls = tiny.llama(attn_implementation="eager"), []
    model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    scorer = Scorer(model, batch_rows=4)
    first, second = Rows(data(4)), Rows(data(8))
    for rows, forwards in ((first, 3 + 1), (first, 1), (second, 3 + 2), (second, 2)):
        calls.clear()
        list(scorer.run(rows))
        assert len(calls) == forwards
    model.model.layers[0].register_forward_hook(lambda module, args, out: out + 0.1 * out.roll(1, 1))
    isolated = data(4).add_column("doc_starts", [[0, 7]] * 4).add_column("isolated", [True] * 4)
    with pytest.raises(UserError, match="looks across document boundaries"):
        list(scorer.run(Rows(isolated)))


def test_items_are_made_ahead_and_in_order() -> None:
    """One item is being made while its predecessor is worked on, and no more: memory holds two batches, not a shard."""
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for i, event in enumerate(made):
            event.set()
            yield i

    found = []
    for item in prefetch(items()):
        found.append(item)
        assert item == 3 or made[item + 1].wait(20)
        assert not any(event.is_set() for event in made[item + 2 :])
    assert found == [0, 1, 2, 3]
    assert list(prefetch(iter([]))) == []


def test_an_error_of_the_reading_thread_comes_out_as_itself() -> None:
    """A thread that dies quietly: the rows before the bad one pass for the whole shard."""

    def items() -> Iterator[int]:
        yield 0
        raise UserError("row 1: bad")

    found = prefetch(items())
    assert next(found) == 0
    with pytest.raises(UserError, match=r"^row 1: bad$"):
        next(found)


def test_a_loop_that_stops_early_leaves_no_thread() -> None:
    for _ in prefetch(iter(range(5))):
        break
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]
