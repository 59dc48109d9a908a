"""Which columns of a data set are read, which pass unread, and which are refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value

from tokensieve.data.rows import Rows, check_targets
from tokensieve.data.scan import look_through
from tokensieve.runs.errors import UserError

IDS = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15]]
ONES = [[1] * len(r) for r in IDS]


def of(**columns: Any) -> Dataset:
    return Dataset.from_dict({"input_ids": IDS, **columns})


# What common tools write beside token ids.
USUAL: dict[str, dict[str, Any]] = {
    "trl": {"text": ["a", "b"], "messages": [[{"role": "user", "content": "x"}]] * 2, "attention_mask": ONES},
    "trl-labels-and-mask": {"labels": IDS, "completion_mask": ONES},
    "llama-factory": {"attention_mask": ONES, "labels": IDS, "images": [None] * 2, "videos": [None] * 2},
    "axolotl": {"labels": IDS, "position_ids": [[*range(len(r))] for r in IDS], "length": [6, 5]},
    "open-instruct": {"attention_mask": ONES, "labels": IDS, "index": [0, 1], "dataset": ["a", "b"]},
    "bert-tokenizer": {"token_type_ids": [[0] * len(r) for r in IDS], "special_tokens_mask": ONES},
    "nested-and-strings": {
        "tokens": [[str(i) for i in r] for r in IDS],
        "offset_mapping": [[[0, 1]] * len(r) for r in IDS],
    },
    "numbers": {"num_tokens": [6, 5], "doc_id": [3, 4], "score": [0.5, 1.0], "embedding": [[0.1] * 9] * 2},
    "ids-of-documents": {"document_ids": [[7, 3], [9]], "doc_ids": [["a"], ["b", "c"]], "document_id": [1, 2]},
    "numbers-of-another-kind": {"row_id": ["a-1", "a-2"], "num_tokens": [[3, 4], [9]], "length": [[6], [5]]},
    "megatron": {"labels": IDS, "loss_mask": [[1.0] * len(r) for r in IDS]},
    "multimodal": {"mm_token_type_ids": [[0] * len(r) for r in IDS], "label_mask": ONES, "labels": IDS},
    "scores-of-another-objective": {
        "ref_nll": [[0.5] * len(r) for r in IDS],
        "ref_nll_b": [[0.5] * len(r) for r in IDS],
    },
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_data_sets_pass(name: str) -> None:
    rows = Rows(of(**USUAL[name]), vocab_size=16)
    assert [row["labels"][1:].tolist() for row in rows.__getitems__([0, 1])] == [ids[1:] for ids in IDS]


# column -> what the sentence says of it. Each was passed over without a word.
UNREAD = {
    "loss_weights": ([[0.5] * len(r) for r in IDS], "has an entry for each token"),
    "mask": ([[True] * len(r) for r in IDS], "has an entry for each token"),
    "input_pos": ([[*range(len(r))] for r in IDS], "has an entry for each token"),
    "token_type_ids": (ONES, "has an entry for each token"),
    "example_lens": ([[2, 4], [5]], "sums to the row's length"),
    "doc_bounds": ([[0, 2, 6], [0, 5]], "rises to the row's length"),
    "num_tokens": ([[2, 4], [5]], "sums to the row's length"),
    "length": ([[2, 4], [5]], "sums to the row's length"),
    "completion_mask": (ONES, "is not read"),
    "label_mask": (ONES, "is not read"),
    "response_mask": (ONES, "is not read"),
    "assistant_masks": (ONES, "is not read"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_speaks_of_tokens_and_is_not_read_is_refused(name: str) -> None:
    """A column that says which tokens count was dropped, and all of them were trained on."""
    values, says = UNREAD[name]
    with pytest.raises(UserError, match=f"column '{name}' {says}.*ignore_columns"):
        Rows(of(**{name: values}))
    assert Rows(of(**{name: values}), ignore_columns=[name])[0]["labels"].tolist() == IDS[0]


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("doc_lens", [[2, 2, 0], [3, 1]], "sums to the row's length"),
        ("bounds", [[0, 1, 3, 4], [0, 2, 4]], "rises to the row's length"),
        ("weights", [[0.5] * 6, [0.5] * 5, None], "has an entry for each token"),
    ],
)
@pytest.mark.parametrize("beside", ["attention_mask", "labels"])
def test_padding_hides_no_column(column: str, values: Any, says: str, beside: str) -> None:
    """Lengths of pieces that leave the padding out, or one row without them: the column passed, and nothing read it."""
    three = [*IDS, IDS[1]]
    made = {
        "attention_mask": [[int(i < 4) for i in range(len(r))] for r in three],
        "labels": [[token if i < 4 else -100 for i, token in enumerate(r)] for r in three],
    }
    data = Dataset.from_dict({"input_ids": three, beside: made[beside], column: [*values, values[-1]][:3]})
    with pytest.raises(UserError, match=f"column '{column}' {says}"):
        Rows(data)


@pytest.mark.parametrize("way", ["last-is-masked", "last-is-cut-off", "prompt-is-masked", "padded", "transform"])
def test_labels_shifted_beforehand_are_refused(way: str) -> None:
    """Megatron's and nanoGPT's batches: the model shifts once more, and learned the token after the next one."""
    shifted = [[*r[1:], -100] for r in IDS]
    if way == "last-is-cut-off":
        shifted = [[*r[1:], 3] for r in IDS]
    if way == "prompt-is-masked":
        shifted = [[-100, *r[1:]] for r in shifted]
    if way == "padded":
        shifted = [[*r[:-2], -100, -100] for r in shifted]
    data = of(labels=shifted)
    if way == "transform":
        data = of().with_transform(
            lambda rows: {"input_ids": rows["input_ids"], "labels": [[*r[1:], -100] for r in rows["input_ids"]]}
        )
    with pytest.raises(UserError, match="column 'labels' has for each token the one that follows it"):
        Rows(data)


@pytest.mark.parametrize("ids", [[7] * 6, [1, 2, 1, 2, 1, 2], [7, 7, 7, 8, 8, 8]])
def test_labels_of_repeating_tokens_are_not_taken_for_shifted(ids: list[int]) -> None:
    assert Rows(Dataset.from_dict({"input_ids": [ids] * 3, "labels": [ids] * 3}))[0]["labels"].tolist() == ids


def test_a_column_of_a_users_own_beside_a_corpus_is_refused_too() -> None:
    """There only what scores are stored in passes: another objective's."""
    corpus = {"num_tokens": [6, 5], "doc_starts": [[0, 2], [0]], "doc_sources": [[0, 0], [0]], "doc_ids": [[0, 1], [2]]}
    half = Features({"x": List(Value("float16"))})
    nll = Dataset.from_dict({"x": [[1.0] * len(r) for r in IDS]}, features=half)
    made = of(**corpus)
    assert Rows(made.add_column("my_nll", nll.data["x"].combine_chunks().to_pylist(), feature=List(Value("float16"))))
    for values in (ONES, [[0.5] * len(r) for r in IDS]):
        with pytest.raises(UserError, match="column 'user_weight' has an entry for each token"):
            Rows(made.add_column("user_weight", values))


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("labels", -1, "'labels' is -1 at position 2, a token id of a vocabulary of 16 or -100"),
        ("labels", 16, "'labels' is 16 at position 2"),
        ("labels", None, "'labels' is null or NaN at position 2"),
        ("input_ids", -100, "'input_ids' is -100 at position 2, a token id of a vocabulary of 16 is"),
        ("input_ids", 16, "'input_ids' is 16 at position 2"),
        ("input_ids", None, "'input_ids' is null or NaN at position 2"),
        ("attention_mask", -1, "'attention_mask' is -1 at position 2"),
        ("attention_mask", None, "'attention_mask' is null or NaN at position 2"),
        ("position_ids", -1, "'position_ids' is -1 at position 2"),
        ("seq_lengths", -1, "'seq_lengths' has a length of -1"),
    ],
)
def test_values_that_cannot_be_meant(column: str, value: Any, says: str) -> None:
    """A label of -1 was a target of its own or an index error on the device; null became some number."""
    values = [list(r) for r in IDS]
    values[1][2] = value
    data = Dataset.from_dict({"input_ids": IDS, column: values})
    rows = Rows(data, vocab_size=16, ignore_columns=["x"])
    with pytest.raises(UserError, match=f"^row 1: column {says}"):
        rows[1]


@pytest.mark.parametrize("column", ["labels", "input_ids", "position_ids", "seq_lengths"])
@pytest.mark.parametrize("kind", [float, bool, str])
def test_values_of_another_type(column: str, kind: type) -> None:
    data = Dataset.from_dict({"input_ids": IDS, column: [[kind(x) for x in r] for r in IDS]})
    with pytest.raises(UserError, match=f"^row 0: column '{column}' holds .*, a list of whole numbers is needed"):
        Rows(data)
    plain = Dataset.from_dict({"input_ids": IDS})
    made = plain.with_transform(lambda b: {**b, column: [[kind(x) for x in r] for r in b["input_ids"]]})
    with pytest.raises(UserError, match=f"^row 0: column '{column}' holds .*, whole numbers are needed"):
        Rows(made)[0]


@pytest.mark.parametrize("column", ["labels", "attention_mask", "position_ids", "segment_ids", "ref_nll"])
@pytest.mark.parametrize("by", [-4, 2])
def test_columns_of_another_length(column: str, by: int) -> None:
    """Labels of the answer alone were laid at the row's beginning, and two too many were cut off: targets at wrong tokens."""
    columns = {column: [IDS[0], [1] * (5 + by)]}
    rows = Rows(of(**columns), ["ref_nll"] if column == "ref_nll" else [])
    with pytest.raises(UserError, match=f"^row 1: column '{column}' has {5 + by} entries for 5 tokens"):
        rows[1]


@pytest.mark.parametrize("column", ["labels", "input_ids", "attention_mask"])
@pytest.mark.parametrize("value", [None, 3, [[1, 2], [3]]])
def test_a_row_that_is_no_list(column: str, value: Any) -> None:
    made = Dataset.from_dict({"input_ids": IDS}).with_transform(lambda b: {**b, column: [value] * len(b["input_ids"])})
    with pytest.raises(UserError, match=f"^row 1: column '{column}' is (null|not a list of whole numbers)"):
        Rows(made)[1]


def test_a_loss_mask_must_agree_with_labels() -> None:
    """Which of the two was meant nobody knows: labels won without a word."""
    data = of(labels=IDS, completion_mask=[[0, 0, 1, 1, 1, 1], ONES[1]])
    with pytest.raises(
        UserError, match="row 0: column 'completion_mask' is 0 at position 1, where 'labels' has a target"
    ):
        Rows(data)[0]
    assert Rows(data)[1]["labels"].tolist() == IDS[1]
    assert Rows(data, ignore_columns=["completion_mask"])[0]["labels"].tolist() == IDS[0]


# --- transforms and formats ----------------------------------------------------------------------------------------------


def answers(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "labels": [[-100, -100, *ids[2:]] for ids in batch["input_ids"]]}


def tensors(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: [torch.tensor(v) for v in values] for name, values in answers(batch).items()}


def arrays(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: [np.array(v, np.int32) for v in values] for name, values in answers(batch).items()}


@pytest.mark.parametrize("transform", [answers, tensors, arrays])
def test_a_transform_is_called(transform: Any) -> None:
    """It was thrown away with the format: labels made on the fly were never seen."""
    rows = Rows(of().with_transform(transform))
    assert [row["labels"].tolist() for row in rows.__getitems__([0, 1])] == [[-100, -100, *ids[2:]] for ids in IDS]


@pytest.mark.parametrize("name", ["labels", "attention_mask", "loss_mask", "seq_lengths"])
def test_a_transform_that_changes_its_mind(name: str) -> None:
    """Labels of some items only: the others would be trained on in full, or these labels dropped."""

    def some(wanted: int) -> Any:
        return lambda b: {**b, **({name: list(b["input_ids"])} if len(b["input_ids"][0]) == wanted else {})}

    with pytest.raises(UserError, match=f"row 1: the data set's transform gave '{name}', which row 0 has not"):
        Rows(of().with_transform(some(5)))[1]
    if name != "loss_mask":
        with pytest.raises(UserError, match=f"row 1: the data set's transform gave no '{name}', which row 0 has"):
            Rows(of().with_transform(some(6)))[1]


@pytest.mark.parametrize("kind", ["torch", "numpy", "arrow", None])
def test_formats_change_nothing(kind: str | None) -> None:
    data = of(labels=[[-100, *r[1:]] for r in IDS])
    assert Rows(data.with_format(kind))[0]["labels"].tolist() == [-100, *IDS[0][1:]]
    hidden = data.add_column("loss_mask", ONES).with_format(kind, columns=["input_ids"])
    assert Rows(hidden)[0]["labels"].tolist() == IDS[0], "a format that hides columns hides them here too"


# --- scores --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "says"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite"), (None, "NaN")]
)
def test_scores_are_finite_on_targets(value: Any, says: str) -> None:
    """Infinity became 3.4e38: the excess of such a token decided every mean that it came into."""
    scores = [[1.0] * len(r) for r in IDS]
    scores[1][3] = value
    with pytest.raises(UserError, match=f"^row 1: ref_nll is {says} at position 3, which is a target"):
        Rows(of(ref_nll=scores), ["ref_nll"])[1]
    ignored = of(ref_nll=scores, labels=[IDS[0], [11, 12, 13, -100, 15]])
    assert Rows(ignored, ["ref_nll"])[1]["ref_nll"].tolist() == [1, 1, 1, 0, 1]


def test_what_float16_could_not_hold_is_its_largest_number() -> None:
    half = Features({"input_ids": List(Value("int64")), "ref_nll": List(Value("float16"))})
    data = Dataset.from_dict({"input_ids": [[1, 2]], "ref_nll": [[np.nan, 7e4]]}, features=half)
    assert Rows(data, ["ref_nll"])[0]["ref_nll"].tolist() == [0, 65504]


# --- rows with nothing in them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [[], [5]])
def test_short_first_rows(first: list[int]) -> None:
    """An empty first row was an IndexError, wherever a row was looked at."""
    data = Dataset.from_dict(
        {"input_ids": [first, *IDS], "ref_nll": [[1.0] * len(first), *[[1.0] * len(r) for r in IDS]]}
    )
    rows = Rows(data, ["ref_nll"])
    assert [len(row["labels"]) for row in rows.__getitems__([0, 1, -1])] == [len(first), 6, len(first)]
    check_targets(data, "the data set")
    with pytest.raises(UserError, match="nothing to predict"):
        check_targets(data.select([0]), "the data set")


# --- before training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("labels", [-1, 5]),
        ("labels", [5]),
        ("labels", None),
        ("input_ids", [5, 16]),
        ("attention_mask", [1, None]),
        ("position_ids", [-1, 0]),
        ("ref_nll", [0.0, np.nan]),
        ("ref_nll", [0.0]),
    ],
)
def test_a_bad_row_is_found_before_training(column: str, value: Any) -> None:
    """It ended a run at the hour in which its turn came, by an index error on the device."""
    good: dict[str, Any] = {
        "labels": [-100, 6],
        "attention_mask": [1, 1],
        "position_ids": [0, 1],
        "ref_nll": [np.nan, 1.0],
    }
    columns = {"input_ids": [[5, 6]] * 3000, **{name: [values] * 3000 for name, values in good.items()}}
    look_through(Rows(Dataset.from_dict(columns), ["ref_nll"], vocab_size=16))
    columns[column] = [*columns[column][:2500], value, *columns[column][2501:]]
    rows = Rows(Dataset.from_dict(columns), ["ref_nll"], vocab_size=16)
    with pytest.raises(UserError, match=f"^row 2500: .*{column}"):
        look_through(rows)
    look_through(rows, max_tokens=4096)  # it stands behind what is looked at


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("seq_lengths", [1, 1], [2, 1]),
        ("cu_seqlens", [0, 1, 2], [0, 1, 3]),
        ("segment_ids", [0, 1], [0]),
        ("completion_mask", [0, 1], [1, 0]),
    ],
)
def test_a_row_that_is_divided_wrongly_is_found_before_training(column: str, good: list[int], bad: list[int]) -> None:
    """Only ids, labels, masks, positions and scores were looked through."""
    values = [*[good] * 1100, bad, good]
    columns = {"input_ids": [[5, 6]] * 1102, "labels": [[-100, 6]] * 1102, column: values}
    with pytest.raises(UserError, match=f"^row 1100: .*{column}"):
        look_through(Rows(Dataset.from_dict(columns)))
    look_through(Rows(Dataset.from_dict(columns).select([*range(10), 1101])))


@pytest.mark.parametrize(
    "columns", [{}, {"labels": [[], [-100], [-100, 3]]}, {"attention_mask": [[], [True], [True, False]]}]
)
def test_rows_that_are_fine_are_passed(columns: dict[str, Any]) -> None:
    scores = [[], [np.nan], [np.nan, np.inf if "attention_mask" in columns else 1.0]]
    data = Dataset.from_dict({"input_ids": [[], [1], [2, 3]], "ref_nll": scores, **columns})
    look_through(Rows(data, ["ref_nll"], vocab_size=16))
    look_through(Rows(data.select([2, 0]), ["ref_nll"], vocab_size=16))
