"""Surprisal of words under any tokenizer, and what it adds to a regression on reading times.

    surprisal of a word   sum of -log p of its tokens, nats; a text's surprisals add up to the nll of all its tokens
    delta_ll              mean over words of log-likelihood with surprisal - log-likelihood without it, nats a word

A token belongs to the word of its last letter, one of spaces alone to the word that follows. The regressions are least squares
of the time, in its own unit, on a constant, the word's length, the length of the word before, its place in the text and the
columns that are named; then surprisal and the surprisal of the word before, for what spills over, as well. So delta_ll is
1/2 log(RSS without / RSS with) [Goodkind and Bicknell 2018; Oh and Schuler 2023, of checkpoints]. Those
papers fit mixed models with an effect for each reader: give means over readers here.

A tokenizer whose tokens begin with a space says where a word ends by the next token: its p of a word is that of words that
begin so [Oh and Schuler 2024; Pimentel and Meister 2024]. That is not put right here: sums stay those of the tokens.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...runs.errors import UserError
from .options import SurprisalOptions
from .subject import MeasureRecord, ModelFigures, Subject, mean_record, record


@dataclass(frozen=True)
class Text:
    """The words of one text, in order; ``times`` [N] NaN where there is none, ``more`` [N, columns]."""

    name: str
    words: list[str]
    times: np.ndarray
    more: np.ndarray


def surprisal(subject: Subject, options: SurprisalOptions) -> ModelFigures:
    """``surprisal`` over words; with times ``delta_ll`` and the slopes. A line a word: text, index, word, surprisal, tokens."""
    if options.length < 2:
        raise UserError(f"surprisal.length must be at least 2, not {options.length}")
    texts = read_words(options)
    length = min(options.length, subject.longest or options.length)
    found = [word_surprisals(subject, text.words, length) for text in texts]
    lines = [
        {"text": t.name, "index": i, "word": t.words[i], "surprisal": _or_none(s_N[i]), "tokens": int(n_N[i])}
        for t, (s_N, n_N) in zip(texts, found, strict=True)
        for i in range(len(t.words))
    ]
    all_N = np.concatenate([s for s, _ in found])
    on = Path(options.words).name
    records = [mean_record("surprisal", all_N[np.isfinite(all_N)], on=on)]
    return ModelFigures([*records, *regression(texts, [s for s, _ in found], on)], lines)


# --- words of a model ----------------------------------------------------------------------------------------------------


def word_surprisals(subject: Subject, words: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(surprisal in nats float64 [N], tokens [N]) of the words of one text; NaN for a word that has no token of its own."""
    text = " ".join(words)
    encoded = subject.encoder.backend.encode(text, add_special_tokens=False)
    nll_T = text_nll(subject, encoded.ids, length)
    word_T = word_of_tokens(text, words, encoded.offsets)
    tokens_N = np.bincount(word_T, minlength=len(words))
    sums_N = np.bincount(word_T, nll_T, minlength=len(words))
    return np.where(tokens_N > 0, sums_N, np.nan), tokens_N


def text_nll(subject: Subject, ids: Sequence[int], length: int) -> np.ndarray:
    """nll of each token of a text, [T]: what stands before it counts, of long texts at least half of ``length`` tokens."""
    row, step = [subject.start, *ids], max(1, length // 2)
    starts = [0, *range(step, max(step, len(row) - length + step), step)] if len(row) > length else [0]
    found, known = np.empty(len(row)), 1
    for start, nll in zip(starts, subject.nll([row[s : s + length] for s in starts]), strict=True):
        end = min(start + length, len(row))
        found[known:end] = nll[known - start :]
        known = end
    return found[1:]


def word_of_tokens(text: str, words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Index of the word that each token belongs to. ``offsets``: characters of ``text``, the words joined by spaces."""
    word_C = np.repeat(np.arange(len(words)), [len(w) + 1 for w in words])[: len(text)]
    letters_C = np.array([not c.isspace() for c in text])
    before_C = np.append(
        np.cumsum(letters_C) - 1, letters_C.sum() - 1
    )  # number of the last letter at or before each place
    places = np.flatnonzero(letters_C)
    found = []
    for start, end in offsets:
        last = before_C[end - 1] if end > 0 else -1
        if last < 0 or places[last] < start:  # spaces alone, or nothing: what follows, or what is there at the end
            last = min(last + 1, len(places) - 1)
        found.append(word_C[places[last]])
    return np.array(found, dtype=np.int64)


# --- reading times -------------------------------------------------------------------------------------------------------


def regression(texts: Sequence[Text], surprisals: Sequence[np.ndarray], on: str) -> Iterator[MeasureRecord]:
    """``delta_ll``, ``slope``, ``slope_previous`` (time a nat); nothing without times. UserError for too few words."""
    base, full, times = (np.concatenate(x) for x in zip(*map(_columns, texts, surprisals), strict=True))
    usable = np.isfinite(times) & np.isfinite(full).all(1)
    if not np.isfinite(times).any():
        return
    base, full, times = base[usable], full[usable], times[usable]
    if len(times) < full.shape[1] + 2:
        raise UserError(
            f"surprisal: {on} has {len(times)} words with a time and a word before them: too few for a regression"
        )
    without, _, _ = least_squares(base, times)
    log_likelihood, slopes, errors = least_squares(full, times)
    yield mean_record("delta_ll", log_likelihood - without, on=on)
    for place, name in ((-2, "slope"), (-1, "slope_previous")):
        yield record(name, float(slopes[place]), float(errors[place]), on=on, n=len(times))


def least_squares(x_NK: np.ndarray, y_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log-likelihood of each y, coefficients, their standard errors) of a linear model with normal errors of one size."""
    scale_K = np.abs(x_NK).max(0)
    scale_K[scale_K == 0] = 1.0
    made_K, *_ = np.linalg.lstsq(x_NK / scale_K, y_N, rcond=None)
    rest_N = y_N - x_NK / scale_K @ made_K
    rss, n = max(float(rest_N @ rest_N), 1e-300), len(y_N)
    inverse_KK = np.linalg.pinv((x_NK / scale_K).T @ (x_NK / scale_K))
    errors_K = np.sqrt(np.diag(inverse_KK).clip(0) * rss / max(1, n - len(made_K)))
    variance = rss / n
    return -0.5 * (np.log(2 * np.pi * variance) + rest_N**2 / variance), made_K / scale_K, errors_K / scale_K


def _columns(text: Text, surprisal_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(without surprisal, with it, times): a row a word; NaN in what the first word of a text has not."""
    length_N = np.array([len(w) for w in text.words], float)
    place_N = np.arange(len(length_N), dtype=float)
    base = np.column_stack([np.ones_like(place_N), length_N, _before(length_N), place_N, text.more])
    return base, np.column_stack([base, surprisal_N, _before(surprisal_N)]), text.times


def _before(values_N: np.ndarray) -> np.ndarray:
    return np.append([np.nan], values_N[:-1])


# --- the file of words ---------------------------------------------------------------------------------------------------


def words_file(options: SurprisalOptions) -> Path:
    """The file of words. UserError where it is not there."""
    if not options.words or not Path(options.words).is_file():
        raise UserError(
            f"surprisal.words: {options.words or 'no file'} is not there: name a .csv, .tsv or .jsonl file of words"
        )
    return Path(options.words)


def read_words(options: SurprisalOptions) -> list[Text]:
    """The texts of a file of words, in order. UserError naming file and line for a word or a number that is none."""
    path = words_file(options)
    texts: dict[str, list[tuple[str, float, list[float]]]] = {}
    for line, row in _rows(path):
        where = f"{path} line {line}"
        word = row.get(options.word)
        if not isinstance(word, str) or not word.strip():
            raise UserError(f"{where}: column {options.word!r} holds no word")
        if any(c.isspace() for c in word.strip()):
            raise UserError(
                f"{where}: {word!r} is more than one word: a row is what was read at a time, without a space in it"
            )
        time = _number(row.get(options.time), f"{where}: column {options.time!r}", empty=True)
        more = [_number(row.get(name), f"{where}: column {name!r}") for name in options.predictors]
        texts.setdefault(str(row.get(options.text, "")), []).append((word.strip(), time, more))
    if not texts:
        raise UserError(f"{path} holds no words")
    return [_text(name, rows) for name, rows in texts.items()]


def _text(name: str, rows: Sequence[tuple[str, float, list[float]]]) -> Text:
    words, times, more = zip(*rows, strict=True)
    return Text(name, list(words), np.array(times), np.array(more).reshape(len(rows), -1))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as f:
        if path.suffix == ".jsonl":
            for number, text in enumerate(f, 1):
                yield number, _json_row(text, f"{path} line {number}")
            return
        reader = csv.DictReader(f, delimiter="\t" if path.suffix == ".tsv" else ",")
        for row in reader:
            yield reader.line_num, dict(row)


def _json_row(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as e:
        raise UserError(f"{where} is not JSON: {e}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is no JSON object")
    return row


def _number(value: Any, what: str, *, empty: bool = False) -> float:
    if value in (None, "") and empty:
        return float("nan")
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{what} is {value!r}, a number is needed") from None
    if not np.isfinite(found):
        raise UserError(f"{what} is {value!r}, a finite number is needed")
    return found


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
