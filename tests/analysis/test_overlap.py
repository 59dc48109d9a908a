"""Runs of tokens that stand in two texts."""

import numpy as np

from tokensieve.analysis.overlap import run_hashes, shared_share


def test_a_copied_run_is_found_wherever_it_stands() -> None:
    """Disjoint by document is not disjoint by text: a paragraph copied into another file was seen by no check."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4096, 300), rng.integers(0, 4096, 300)
    b[17:117] = a[100:200]
    share = shared_share(run_hashes([b], 32), run_hashes([a], 32))
    assert share == (100 - 31) / (300 - 31)


def test_different_text_shares_nothing_and_equal_text_everything() -> None:
    rows = np.random.default_rng(1).integers(0, 50, (4, 100))
    runs = run_hashes(rows, 32)
    assert len(runs) == 4 * 69
    assert shared_share(runs, run_hashes(rows[::-1], 32)) == 1.0
    assert shared_share(runs, run_hashes(rows + 1, 32)) == 0.0


def test_order_and_place_of_tokens_count() -> None:
    """A sum of tokens for a hash: any reordering of a run would be taken for the run."""
    row = np.arange(32)
    assert shared_share(run_hashes([row]), run_hashes([row[::-1].copy()])) == 0.0


def test_short_rows_have_no_runs() -> None:
    assert len(run_hashes([np.arange(31)])) == 0
    assert shared_share(run_hashes([np.arange(31)]), run_hashes([np.arange(99)])) == 0.0
