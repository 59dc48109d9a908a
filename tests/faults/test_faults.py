"""Faults on runs of the command line in processes of their own. These are some of them; `make faults` does them all, and those
here that are marked slow too: each is a second example of its kind.
"""

from __future__ import annotations

import signal

import pytest
import trials

SLOW = pytest.mark.slow


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=SLOW)])
def test_a_killed_train_ends_as_if_nothing_had_been(seed: int, stand: trials.Stand) -> None:
    assert trials.kill_train(stand, seed) is None


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=SLOW)])
def test_a_killed_score_ends_as_if_nothing_had_been(seed: int, stand: trials.Stand) -> None:
    assert trials.kill_score(stand, seed) is None


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGTERM, 5), pytest.param(signal.SIGINT, 8, marks=SLOW), (signal.SIGUSR1, 13)]
)
def test_a_stopped_train_ends_as_if_nothing_had_been(number: int, step: int, stand: trials.Stand) -> None:
    """Log lines come every 3 steps: the Trainer forgets the loss since the last one, and draws the dropout of a step's first
    pass before its random state is back."""
    assert trials.stop(stand, number, step) is None


def test_a_second_sigint_quits_at_once(stand: trials.Stand) -> None:
    """torchrun passes a Ctrl-C on to workers that had it from the terminal: the same one twice, in no time, is one."""
    out = stand.folder("twice")
    twice = [[6, signal.SIGINT], [6, signal.SIGINT]]
    assert stand.zygote(*stand.bench.train(out), signals=twice).error.endswith(
        "checkpoint at step 6; start it again to go on"
    )
    out = stand.folder("twice")
    done = stand.zygote(*stand.bench.train(out), signals=[twice[0], [6, 0], twice[1]])
    assert (done.code, [p.name for p in out.glob("checkpoint-*")]) == (130, ["checkpoint-4"])
    assert "interrupted; start it again to go on" in done.error


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("model.safetensors", "bit flipped"),
        ("optimizer.pt", "deleted"),
        pytest.param("trainer_state.json", "truncated", marks=SLOW),
        pytest.param("scheduler.pt", "half-written", marks=SLOW),
        ("manifest.json", "truncated"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(file: str, how: str, stand: trials.Stand) -> None:
    assert trials.damage_checkpoint(stand, file, how) is None


def test_without_a_good_checkpoint_it_starts_again(stand: trials.Stand) -> None:
    assert trials.damage_all_checkpoints(stand) is None


@pytest.mark.parametrize("how", ["truncated", "deleted", pytest.param("bit flipped", marks=SLOW)])
def test_a_damaged_token_log(how: str, stand: trials.Stand) -> None:
    assert trials.damage_token_log(stand, how) is None


@pytest.mark.parametrize(("kind", "how"), [("scores", "swapped"), ("corpus", "swapped"), ("scores", "bit flipped")])
def test_a_damaged_shard_is_refused_before_training(kind: str, how: str, stand: trials.Stand) -> None:
    assert trials.damage_shard(stand, kind, how) is None


@pytest.mark.parametrize("what", ["packing", "model"])
def test_foreign_scores_are_refused_before_training(what: str, stand: trials.Stand) -> None:
    """They are as long as the corpus's and are numbers of the right size."""
    assert trials.foreign_scores(stand, what) is None


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=SLOW) if what in ("seed", "recipe") else what for what in trials.CHANGES]
)
def test_a_changed_run_is_refused_saying_what_changed(what: str, stand: trials.Stand) -> None:
    assert trials.change(stand, what) is None


@pytest.mark.parametrize("what", ["nll", "gradient"])
def test_a_nan_is_stopped_before_the_update(what: str, stand: trials.Stand) -> None:
    """The Trainer logs such a loss as 0, updates with it, saves NaN weights, and ends well."""
    assert trials.nonfinite(stand, what) is None


def test_a_nan_is_skipped_if_wanted(stand: trials.Stand) -> None:
    assert trials.skipped(stand, False) is None
    assert trials.skipped(stand, True) is None


@pytest.mark.parametrize(("verb", "limit"), [("train", 20_000), ("train", 100_000), ("score", 300), ("prepare", 900)])
def test_a_full_disk(verb: str, limit: int, stand: trials.Stand) -> None:
    """torch says 'PytorchStreamWriter failed writing file', safetensors 'I/O error', and neither says where."""
    assert trials.disk_full(stand, verb, limit) is None


@pytest.mark.parametrize("verb", ["train", "score"])
def test_a_second_process_is_refused(verb: str, stand: trials.Stand) -> None:
    assert trials.locked_folder(stand, verb) is None


@pytest.mark.parametrize("how", [pytest.param("truncated", marks=SLOW), "bit flipped"])
def test_scores_damaged_before_they_were_done(how: str, stand: trials.Stand) -> None:
    """Hashed only at the end, when the damage was in them: the manifest vouched for it."""
    assert trials.damage_unfinished_scores(stand, how) is None


@pytest.mark.parametrize("accumulate", [2, 1])
def test_another_number_of_ranks(accumulate: int, stand: trials.Stand) -> None:
    """A signal that reaches one rank stops both. With rows left as they were the Trainer went through 16 of 16 twice."""
    assert trials.fewer_ranks(stand, accumulate) is None
