"""Rows as model inputs, and the order in which training sees them."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
import tiny
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tokensieve.core import objective
from tokensieve.data.corpus import open_corpus
from tokensieve.data.list_columns import write_columns
from tokensieve.data.pieces import piece_positions
from tokensieve.data.rows import PAD_ROW, EpochSampler, Rows, collate
from tokensieve.data.scored import join_scores
from tokensieve.runs.errors import UserError


def of(**columns: Any) -> Rows:
    return Rows(Dataset.from_dict(columns), [c for c in columns if c.startswith("ref_")])


def test_padding_is_no_target() -> None:
    """Padding found by its token id: a corpus whose padding is EOS loses every document's end as a target."""
    item = of(input_ids=[[5, 0, 6, 7, 0, 0]], num_tokens=[5])[0]
    assert item["labels"].tolist() == [5, 0, 6, 7, 0, -100]
    assert item["row_id"] == 0
    assert "position_ids" not in item


def test_isolated_pieces() -> None:
    """The first token of an isolated piece has nothing before it; positions restart where attention stops."""
    item = of(input_ids=[[1, 2, 3, 0, 4, 0, 9, 9]], num_tokens=[6], doc_starts=[[0, 4]], isolated=[True])[0]
    assert item["labels"].tolist() == [-100, 2, 3, 0, -100, 0, -100, -100]
    assert item["position_ids"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_joined_documents_predict_across_the_boundary() -> None:
    """Without isolation the first token after an EOS is a target like any other, and so is the EOS."""
    item = of(input_ids=[[1, 2, 0, 4]], num_tokens=[4], doc_starts=[[0, 3]], doc_sources=[[1, 0]])[0]
    assert item["labels"].tolist() == [1, 2, 0, 4]
    assert item["source_id"].tolist() == [1, 1, 1, 0]


def test_targets_are_labels_one_to_the_left() -> None:
    """Shifted in fifteen places, once twice and once not at all: now the batch brings them."""
    data = Dataset.from_dict({"input_ids": [[5, 6, 7, 8], [1, 2]], "labels": [[5, 6, -100, 8], [1, 9]]})
    batch = collate(Rows(data).__getitems__([0, 1]))
    assert batch["targets"].tolist() == [[6, -100, 8, -100], [9, -100, -100, -100]]
    assert batch["labels"].tolist() == [[5, 6, -100, 8], [1, 9, -100, -100]]


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"doc_starts": [[0, 2, 5]]}, [0, 0, 1, 1, 1, 2]),
        ({"position_ids": [[3, 4, 0, 1, 0, 1]]}, [0, 0, 1, 1, 2, 2]),
        ({"segment": [[7, 7, 7, 3, 3, 9]], "doc_starts": [[0, 2, 5]]}, [7, 7, 7, 3, 3, 9]),
    ],
)
def test_segments(columns: dict[str, Any], wanted: list[int]) -> None:
    """The document or turn inside a row; a column of one's own is the last word."""
    data = Dataset.from_dict({"input_ids": [[1, 2, 3, 4, 5, 6]], **columns})
    assert Rows(data, statistics=("segment",))[0]["segment"].tolist() == wanted
    assert "segment" not in Rows(data)[0], "only where it is asked for"


def test_position_in_a_document_that_began_rows_before() -> None:
    """Counted from the row's start, the middle of a long document would pass for its beginning."""
    data = Dataset.from_dict({"input_ids": [[1] * 6] * 2, "doc_starts": [[0, 4], [0]], "doc_offsets": [[0, 0], [2]]})
    rows = Rows(data, statistics=("document_position",))
    assert rows[0]["document_position"].tolist() == [0, 1, 2, 3, 0, 1]
    assert rows[1]["document_position"].tolist() == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("segment", "segment, doc_starts, position_ids"),
        ("document_position", "document_position, doc_offsets"),
        ("source_id", "doc_sources"),
    ],
)
def test_a_statistic_that_no_column_tells_is_refused(name: str, says: str) -> None:
    """Taken for one segment a row, packed documents would be one document each, silently."""
    with pytest.raises(UserError, match=f"needs '{name}', which this data set does not tell.*{says}"):
        Rows(Dataset.from_dict({"input_ids": [[1, 2]]}), statistics=(name,))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_positions_count_from_each_start(sizes: list[int]) -> None:
    starts = np.cumsum([0, *sizes[:-1]])
    wanted = [i for size in sizes for i in range(size)]
    assert piece_positions(starts, sum(sizes)).tolist() == wanted


def test_nan_is_allowed_only_where_there_is_no_target() -> None:
    nan = float("nan")
    fine = of(input_ids=[[1, 2, 3, 4]], num_tokens=[3], ref_nll=[[nan, 1.0, 2.0, nan]])[0]
    assert fine["ref_nll"].tolist() == [0, 1, 2, 0]
    assert fine["ref_nll"].dtype == torch.float32
    with pytest.raises(UserError, match="row 0: ref_nll is NaN at position 2"):
        of(input_ids=[[1, 2, 3, 4]], num_tokens=[3], ref_nll=[[nan, 1.0, nan, nan]])[0]


def test_a_column_of_another_length_is_refused() -> None:
    """Scores of rows cut elsewhere would be read as scores of the wrong tokens."""
    with pytest.raises(UserError, match="row 0: column 'ref_nll' has 3 entries for 4 tokens"):
        of(input_ids=[[1, 2, 3, 4]], ref_nll=[[0.0, 1.0, 2.0]])[0]
    with pytest.raises(UserError, match="no column 'input_ids', only text"):
        Rows(Dataset.from_dict({"text": ["a"]}))


def test_float16_scores_are_widened() -> None:
    """Ranked in float16, thousands of excesses tie."""
    data = Dataset.from_dict({"input_ids": [[1, 2]], "ref_nll": np.array([[np.nan, 1.0005]], np.float16)})
    assert Rows(data, ["ref_nll"])[0]["ref_nll"].dtype == torch.float32


def test_the_padding_row_is_ignored() -> None:
    item = of(input_ids=[[5, 6]], ref_nll=[[0.5, 1.0]], row_id=[77])[PAD_ROW]
    assert item["labels"].tolist() == [-100, -100]
    assert item["row_id"] == PAD_ROW


def test_collate_pads_on_the_right() -> None:
    batch = collate(of(input_ids=[[1, 2, 3], [4, 5]], ref_nll=[[0.0, 1.0, 2.0], [0.0, 3.0]]).__getitems__([0, 1]))
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, 5, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["ref_nll"].tolist() == [[0, 1, 2], [0, 3, 0]]
    assert batch["row_id"].tolist() == [0, 1]


@pytest.mark.parametrize("isolated", [False, True])
def test_rows_of_a_corpus_read_together_are_those_read_one_by_one(
    tmp_path: Path, isolated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry of each column was an array of its own: a millisecond a row, and most of what a tiny model's scoring took."""
    fields = {"isolate_documents": isolated}
    corpus = open_corpus(corpora.corpus(tmp_path / "c", corpora.write_text(tmp_path / "text", num_files=3), **fields))
    scores = np.random.default_rng(0).random((corpus.num_rows, corpus.length)).astype(np.float16)
    write_columns(tmp_path / "s.arrow", [{"ref_nll": scores}])
    joined = concatenate_datasets(
        [join_scores(corpus, verify=None), Dataset.from_file(str(tmp_path / "s.arrow"))], axis=1
    )
    rows = Rows(joined, ["ref_nll"], ["segment", "document_position"])
    together = read_alike(rows, [3, 0, PAD_ROW, 3, *range(corpus.num_rows)], monkeypatch)
    assert all(values.numpy().flags.writeable for values in together[0].values())


def read_alike(rows: Rows, indices: list[int], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The rows read together, which are those that are read one by one."""
    together = rows.__getitems__(indices)
    assert rows.__getitems__([]) == []
    monkeypatch.setattr("tokensieve.data.rows.row_arrays", lambda table: None)
    for one, other in zip(together, rows.__getitems__(indices), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            assert torch.equal(one[name].nan_to_num(-1), other[name].nan_to_num(-1)), name
    return together


def test_rows_of_any_data_set_read_together_are_those_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those of corpora were: in a training of one step, reading rows took a sixth. Lists of unequal lengths, and rows
    chosen of a data set."""
    columns = {
        "input_ids": [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]],
        "labels": [[-100, 2, 3], [4, 5], [-100], [7, -100, -100, 10]],
        "ref_nll": [[float("nan"), 0.5, 1e-9], [float("nan"), 2.0], [1.5], [0.0, float("nan"), 3.0, 1 / 3]],
        "row_id": [70, 80, 90, 100],
    }
    rows = Rows(Dataset.from_dict(columns).select([3, 2, 0, 1]), ["ref_nll"])
    found = read_alike(rows, [1, PAD_ROW, 0, 2], monkeypatch)
    assert [int(item["row_id"]) for item in found[2:]] == [100, 70]


# --- the epoch's order ---------------------------------------------------------------------------------------------------


def epoch(sampler: EpochSampler, number: int) -> list[int]:
    sampler.set_epoch(number)
    return list(sampler)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5), st.booleans(), st.booleans())
def test_every_row_once_an_epoch(num_rows: int, multiple: int, seed: int, drop_last: bool, shuffle: bool) -> None:
    """torch's and accelerate's samplers fill the last batch by repeating rows from the start: some are trained on twice."""
    sampler = EpochSampler(num_rows, seed, multiple=multiple, drop_last=drop_last, shuffle=shuffle)
    order = epoch(sampler, 3)
    real = [i for i in order if i != PAD_ROW]
    assert len(order) == len(sampler)
    assert len(order) % multiple == 0
    assert max(Counter(real).values(), default=0) <= 1
    assert set(real) <= set(range(num_rows))
    assert len(real) == (num_rows // multiple * multiple if drop_last else num_rows)
    assert len(order) - len(real) < multiple
    assert order[: len(real)] == real  # ignored rows stand at the end
    assert epoch(sampler, 3) == order
    if not shuffle:
        assert real == list(range(len(real)))


def test_an_epochs_order_is_held_as_numbers() -> None:
    """As a list of Python ints it took 40 bytes a row, through the whole epoch: 34 GB of a billion rows."""
    tracemalloc.start()
    try:
        order = iter(EpochSampler(100_000, 0, multiple=8))
        first = next(order)
        assert tracemalloc.get_traced_memory()[0] < 16 * 100_000
    finally:
        tracemalloc.stop()
    assert type(first) is int


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch(EpochSampler(30, seed, multiple=4), e)) for seed in range(3) for e in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("num_rows", [8, 11, 13])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_out_the_epoch(num_ranks: int, num_rows: int, drop_last: bool) -> None:
    """Through accelerate's own sharding: micro-batch by micro-batch, the ranks' rows one after the other are the rows that
    one process with as large a batch has, in every epoch."""
    per_rank, accumulate = 4 // num_ranks, 2
    data = of(input_ids=[[i, 0] for i in range(num_rows)])

    def loader(ranks: int, rank: int, batch: int) -> Any:
        sampler = EpochSampler(num_rows, 0, multiple=4 * accumulate, drop_last=drop_last)
        plain = DataLoader(data, batch, sampler=sampler, collate_fn=collate, drop_last=drop_last)
        return prepare_data_loader(plain, torch.device("cpu"), ranks, process_index=rank, put_on_device=False)

    alone = loader(1, 0, 4)
    ranks = [loader(num_ranks, r, per_rank) for r in range(num_ranks)]
    epochs = []
    for number in (0, 1):
        for each in (alone, *ranks):
            each.set_epoch(number)
        whole = [batch["row_id"].tolist() for batch in alone]
        parts = [[b["row_id"].tolist() for b in rank] for rank in ranks]
        assert [[i for rank in batches for i in rank] for batches in zip(*parts, strict=True)] == whole
        seen = sorted(i for batch in whole for i in batch if i != PAD_ROW)
        assert len(seen) == (8 if drop_last else num_rows)
        assert seen == sorted(set(seen))
        epochs.append(whole)
    assert epochs[0] != epochs[1]


def rows_seen(folder: Path, num_rows: int, **fields: Any) -> list[tuple[int, int]]:
    """(step, row) of all that was trained on, from the token log."""
    import pyarrow.parquet as pq

    from tokensieve.training.token_log import TokenLogConfig

    data = tiny.rows(num_rows, length=6, uneven=False)
    args = tiny.arguments(folder, 2, 2, learning_rate=0.0, train_sampling_strategy="random", **fields)
    tiny.train(tiny.llama(), args, data, objective("clm"), token_log=TokenLogConfig(every=1, rows=100))
    tables = [pq.read_table(f) for f in sorted((folder / "tokens").glob("*.parquet"))]
    pairs = {(s, r) for t in tables for s, r in zip(*(t[c].to_pylist() for c in ("step", "row")), strict=True)}
    return sorted(pairs)


@pytest.mark.parametrize(("drop_last", "per_epoch"), [(False, 7), (True, 4)])
def test_the_trainer_sees_each_row_once_an_epoch(tmp_path: Path, drop_last: bool, per_epoch: int) -> None:
    """The Trainer's own sampler, had it been left in place, would also reshuffle what a resumed run has seen already."""
    seen = rows_seen(tmp_path, 7, num_train_epochs=2, max_steps=-1, dataloader_drop_last=drop_last)
    steps = 1 if drop_last else 2
    epochs = [[r for s, r in seen if (s - 1) // steps == e] for e in (0, 1)]
    for rows in epochs:
        assert len(rows) == len(set(rows)) == per_epoch
    first = [{r for s, r in seen if s == e * steps + 1} for e in (0, 1)]
    assert first[0] != first[1]


def test_padding_rows_do_not_touch_the_gradients(tmp_path: Path) -> None:
    """Five rows in batches of 4 x 2: three ignored rows, whose tokens must be in no k and in no denominator."""
    data = tiny.rows(5)
    for made in (objective("clm"), objective("rho1", scope="step"), objective("rho1", scope="sequence")):
        padded = tiny.step_gradients(tmp_path / "a", data, made, 4, 2)
        exact = tiny.step_gradients(tmp_path / "b", data, made, 5, 1)
        assert tiny.gap(padded, exact) < 1e-6
