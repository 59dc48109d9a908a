"""Who reached whose end with how many tokens, what is said of several seeds, and whether it paid."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensieve.analysis.comparison import (
    OverSeeds,
    curve,
    difference,
    end,
    kept_by_source,
    over_seeds,
    paired,
    plus_minus,
    reached,
    reached_cell,
    rise,
    rises,
    rivals,
    sentence,
    tokens_to_reach,
    trained,
    verdicts,
    word,
)

CURVE = [(100, 6.0), (200, 5.0), (400, 4.0)]


@pytest.mark.parametrize(
    ("goal", "tokens"),
    [
        (5.5, 150),
        (5.0, 200),
        (4.25, 350),
        (4.0, 400),
        (6.0, 100),  # the first point is there already
        (9.0, 100),
        (3.999, None),
    ],
)
def test_a_straight_line_between_points(goal: float, tokens: float | None) -> None:
    assert tokens_to_reach(CURVE, goal) == pytest.approx(tokens)
    assert tokens_to_reach(CURVE[::-1], goal) == pytest.approx(tokens)


def test_the_first_crossing_counts() -> None:
    """A curve that came down, rose again and came down once more had been there the first time."""
    assert tokens_to_reach([(0, 5.0), (10, 3.0), (20, 5.0), (30, 3.0)], 4.0) == 5
    assert tokens_to_reach([(10, 3.0), (20, 5.0), (30, 3.0)], 4.0) == 10


def at(*nlls: float) -> list[tuple[float, float]]:
    return [(100.0 * (i + 1), nll) for i, nll in enumerate(nlls)]


@pytest.mark.parametrize(
    ("baseline", "arm", "speedup", "cell"),
    [
        (at(5.0, 5.2, 5.4, 5.5, 5.6), at(5.3, 5.4, 5.5, 5.57, 5.58), 1.0, "no advantage"),  # said "5 times faster"
        (at(6.0, 4.0, 4.4, 5.0), at(7.0, 6.0, 4.0, 3.9), 150 / 250, "no advantage"),  # down early, then up
        (at(6.0, 4.0, 4.4, 4.5), at(4.2, 4.1, 4.0, 3.9), 175 / 100, "<= 1/1.75"),  # not 400 / 100
        (at(6.0, 5.0, 4.5, 4.0), at(5.5, 4.5, 4.0, 3.5), 400 / 300, "1/1.33"),
        (at(6.0, 5.0, 4.5, 4.0), at(3.9, 3.8, 3.7, 3.6), 4.0, "<= 1/4.00"),  # there from its first checkpoint on
        (at(6.0, 5.0, 4.5, 4.0), at(6.0, 5.0, 4.5, 4.1), None, "never"),
        ([(400.0, 4.0)], [(400.0, 3.5)], 1.0, "<= 1/1.00"),  # nothing but ends: at least so much
        ([(0.0, 4.0), *at(6.0, 5.0, 4.5, 4.0)], [(0.0, 4.0), *at(6.0, 4.0, 3.9)], 400 / 200, "1/2.00"),
        ([], at(3.0), None, "never"),
        (at(4.0), [], None, "never"),
    ],
)
def test_the_baseline_goes_through_the_same_function(
    baseline: list[tuple[float, float]], arm: list[tuple[float, float]], speedup: float | None, cell: str
) -> None:
    """All of the baseline's tokens were divided, also those after it had been at its end's nll: a curve that rises from 5.0 to
    5.6 lent an arm that rises from 5.3 to 5.58 a factor of 5."""
    found = reached(baseline, arm)
    assert found.speedup == (None if speedup is None else pytest.approx(speedup))
    assert reached_cell([{"speedup": found.speedup, "speedup_is_bound": found.is_bound}]) == cell


def test_cells_over_seeds() -> None:
    rows = [{"speedup": s, "speedup_is_bound": False} for s in (1.5, 2.5, None)]
    assert reached_cell(rows) == "never in 1 of 3"
    assert reached_cell(rows[:2]) == "1/2.00"
    assert reached_cell([{"speedup": s, "speedup_is_bound": False} for s in (0.8, 1.1)]) == "no advantage"
    assert reached_cell([{"speedup": 0.5, "speedup_is_bound": True}]) == "at its first checkpoint"
    assert reached_cell([{"speedup": 3.0, "speedup_is_bound": False, "ends_above": True}]) == "1/3.00, then left"


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_points_without_a_number_are_left_out(broken: float, where: int) -> None:
    """One NaN in the middle of a curve said *never*; an infinite first point gave a speedup of NaN."""
    points = at(6.0, 5.0, 4.0, 3.0)
    points[where] = (points[where][0], broken)
    assert tokens_to_reach(points, 3.5) == pytest.approx(350)


@pytest.mark.parametrize(
    ("points", "lowest"),
    [
        (at(5.0, 5.2, 5.6), (100.0, 5.0)),
        (at(6.0, 4.0, 4.4), (200.0, 4.0)),
        (at(6.0, 4.0, 4.004), None),  # what the last steps do by chance
        (at(6.0, 5.0, 4.0), None),
        (at(6.0, float("nan"), 7.0), (100.0, 6.0)),
        ([], None),
    ],
)
def test_a_curve_that_rises(points: list[tuple[float, float]], lowest: tuple[float, float] | None) -> None:
    assert rise(points) == lowest
    row: dict[str, Any] = {"arm": "clm", "nll": points[-1][1] if points else None, "tokens_seen": 300}
    if lowest is not None:
        row["lowest"] = {"tokens_seen": lowest[0], "nll": lowest[1]}
    said = rises([[row]], "clm")
    assert [s.partition(":")[0] for s in said] == (["clm's curve rises"] if lowest else [])
    if lowest:
        assert f"its lowest nll is {lowest[1]:.4f} after {lowest[0] / 300:.0%} of its tokens" in said[0]
        assert rises([[row], [{"arm": "clm", "nll": 4.0}]], "clm")[0].startswith("clm's curve rises in 1 of 2 seeds")


def test_no_curve() -> None:
    assert tokens_to_reach([], 1.0) is None
    assert tokens_to_reach([(10, 3.0)], 2.0) is None
    assert tokens_to_reach([(10, float("nan")), (20, float("nan"))], 2.0) is None


@given(st.lists(st.floats(0, 10), min_size=2, max_size=8), st.floats(0, 10))
def test_the_curve_is_at_the_goal_there_and_above_it_before(heights: list[float], goal: float) -> None:
    points = [(10.0 * i, y) for i, y in enumerate(heights)]
    found = tokens_to_reach(points, goal)
    if found is None:
        assert min(heights) > goal
        return
    before = [y for x, y in points if x < found - 1e-9]
    assert all(y >= goal for y in before)
    left, right = int(found // 10), min(math.ceil(found / 10), len(points) - 1)
    share = found / 10 - left
    at = heights[left] + share * (heights[right] - heights[left])
    assert at == pytest.approx(goal, abs=1e-6) or (found == 0 and heights[0] <= goal)


RESULTS = [
    {"model": "a", "set": "s", "on": "all", "step": None, "tokens_seen": None, "nll": 9.0},
    {"model": "b", "set": "s", "on": "all", "step": 20, "tokens_seen": 200, "nll": 5.0},
    {"model": "b", "set": "s", "on": "all", "step": 10, "tokens_seen": 100, "nll": 6.0},
    {"model": "b", "set": "s", "on": "solution", "step": 20, "tokens_seen": 200, "nll": 1.0},
    {"model": "b", "set": "t", "on": "all", "step": 20, "tokens_seen": 200, "nll": None},
]


def test_curve_and_end_take_one_model_on_one_set() -> None:
    assert sorted(curve(RESULTS, "b", "s")) == [(100, 6.0), (200, 5.0)]
    assert curve(RESULTS, "b", "s", "solution") == [(200, 1.0)]
    assert curve(RESULTS, "a", "s") == []
    assert curve(RESULTS, "b", "t") == []
    assert (end(RESULTS, "b", "s")["nll"], end(RESULTS, "a", "s")["nll"]) == (5.0, 9.0)
    with pytest.raises(KeyError, match="no result of 'a' on 't'"):
        end(RESULTS, "a", "t")


def test_shares_of_sources_are_those_of_selective_arms() -> None:
    rows = [
        {"arm": "unigram"},
        {"arm": "clm", "kept_share": 1.0, "kept_share_by_source": {"x": 1.0, "y": 1.0}},
        {"arm": "rho1", "kept_share": 0.6, "kept_share_by_source": {"y": 0.5, "x": 0.7}},
        {"arm": "mixed", "kept_share": 0.6, "kept_share_by_source": {"x": 0.6, "z": 0.6}},
    ]
    assert kept_by_source(rows) == [
        {"source": "x", "rho1": 0.7, "mixed": 0.6},
        {"source": "y", "rho1": 0.5, "mixed": None},
        {"source": "z", "rho1": None, "mixed": 0.6},
    ]
    assert kept_by_source([{"arm": "a", "kept_share": 0.6, "kept_share_by_source": {"x": 0.6}}]) == []
    assert kept_by_source(rows[:2]) == []


# --- over seeds ------------------------------------------------------------------------------------------------------------


def test_spread_is_that_of_a_sample() -> None:
    values = [1.0, 2.0, 4.0]
    found = over_seeds(values)
    assert (found.mean, found.sd) == pytest.approx((statistics.mean(values), statistics.stdev(values)))
    assert found.standard_error == pytest.approx(statistics.stdev(values) / 3**0.5)


@pytest.mark.parametrize(
    ("n", "quantile"), [(2, 12.7062047362), (3, 4.3026527297), (5, 2.7764451052), (30, 2.0452296421)]
)
def test_interval_is_students(n: int, quantile: float) -> None:
    """Two standard errors, which decided before, are 70 % of the interval of five seeds and 16 % of that of two."""
    found = over_seeds(range(n))
    assert found.half_width == pytest.approx(quantile * statistics.stdev(range(n)) / n**0.5, rel=1e-9)
    assert found.interval == pytest.approx((found.mean - found.half_width, found.mean + found.half_width))


def test_what_seeds_do_not_give_is_none() -> None:
    """A spread of one value that is 0 would say: certain; NaN is no JSON."""
    assert over_seeds([]) == over_seeds([None, math.nan, math.inf]) == OverSeeds(())
    one = over_seeds([None, 3.0])
    assert (one.n, one.mean, one.sd, one.standard_error, one.interval, one.half_width) == (
        1,
        3.0,
        None,
        None,
        None,
        None,
    )
    assert not one.is_decided
    same = over_seeds([0.5, 0.5, 0.5])
    assert (same.sd, same.interval, same.is_decided) == (0.0, (0.5, 0.5), True)
    assert not over_seeds([0.0, 0.0]).is_decided


def test_pairs_are_those_of_a_seed() -> None:
    """Taken over the seeds that each arm has, means of different seeds would be subtracted."""
    assert paired([5.0, None, 6.0, 7.0], [4.0, 4.0, None, 6.5]).values == (1.0, 0.5)
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])


def test_plus_minus() -> None:
    assert plus_minus(over_seeds([1.0, 2.0, 3.0]), "+.2f") == "+2.00 ± 2.48"
    assert plus_minus(over_seeds([1.0]), ".2f") == "1.00"
    assert plus_minus(over_seeds([1.0, 1.0]), ".2f") == "1.00"
    assert plus_minus(over_seeds([]), ".2f") == ""


# --- the verdict -----------------------------------------------------------------------------------------------------------

COSTS = {"cheap": (7.0, 0.5, 0.5), "equal": (10.0, 0.0, 0.0), "dear": (7.0, 4.0, 8.0)}


def arm(name: str, nll: float | None, cost: str = "equal", tokens: int = 1000) -> dict[str, Any]:
    keys = ("flops_student", "flops_scoring", "flops_reference")
    objective = name.partition("_")[0]
    return {"arm": name, "objective": objective, "nll": nll, "tokens_seen": tokens,
            **dict(zip(keys, COSTS[cost], strict=True))}  # fmt: skip


def seeds_of(ends: Sequence[float | None], cost: str = "equal", tokens: int = 1000) -> list[list[dict[str, Any]]]:
    """A run for each end of rho1; clm ends at 5."""
    return [[{"arm": "base", "nll": 9.0}, arm("clm", 5.0), arm("rho1", e, cost, tokens)] for e in ends]


THREE = " on target (± is half of the 95 % t interval over 3 seeds, paired), at equal tokens seen and "


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (
            seeds_of([4.8, 4.7, 4.75], "cheap"),
            f"Pays in total compute: rho1 ends 0.250 ± 0.124 nats below clm{THREE}"
            "0.80 times clm's total compute, scoring and reference "
            "included.",
        ),
        (
            seeds_of([4.8, 4.7, 4.75], "equal"),
            f"Pays in total compute: rho1 ends 0.250 ± 0.124 nats below clm{THREE}"
            "clm's total compute, scoring and reference included.",
        ),
        (
            seeds_of([4.8, 4.7, 4.75], "dear"),
            f"Better, but dearer in total compute: rho1 ends 0.250 ± 0.124 nats below clm{THREE}"
            "1.90 times clm's total compute, scoring and "
            "reference included.",
        ),
        (
            seeds_of([5.2, 5.3, 5.25], "cheap"),
            f"Worse, but cheaper in total compute: rho1 ends 0.250 ± 0.124 nats above clm{THREE}"
            "0.80 times clm's total compute, scoring and reference "
            "included.",
        ),
        (
            # Two standard errors are .19: the old rule would have called this a win.
            seeds_of([4.9, 4.8, 4.6], "cheap"),
            f"Cannot tell with these seeds: rho1 ends 0.233 ± 0.379 nats below clm{THREE}0.80 times clm's total compute, "
            "scoring and reference included. About 6 seeds would tell a difference of this size, four times in five.",
        ),
        (
            seeds_of([4.8], "dear"),
            "One seed decides nothing: rho1 ends 0.200 nats below clm on target, at equal tokens seen and 1.90 times clm's "
            "total compute, scoring and reference included.",
        ),
        (
            seeds_of([5.0], "cheap"),
            "One seed decides nothing: rho1 ends 0.000 nats from clm on target, at equal tokens seen and 0.80 times clm's "
            "total compute, scoring and reference included.",
        ),
        (
            seeds_of([5.0, 5.0], "cheap"),
            "Cannot tell with these seeds: rho1 ends 0.000 ± 0.000 nats from clm on target (± is half of the 95 % t interval "
            "over 2 seeds, paired), at equal tokens seen and 0.80 times clm's total compute, scoring and reference included. "
            "No number of seeds tells a difference of 0.",
        ),
        (
            seeds_of([4.8, None, 4.7], "cheap", 2000),
            "Cannot tell with these seeds: rho1 ends 0.250 ± 0.635 nats below clm on target (± is half of the 95 % t interval "
            "over 2 of 3 seeds, paired), at 2.00 times clm's tokens seen and 0.80 times clm's total compute, scoring and "
            "reference included. About 3 seeds would tell a difference of this size, four times in five.",
        ),
        (
            # It was "Pays": the seed in which the run had come to nothing was left out of its own verdict.
            seeds_of([4.8, None, 4.7, 4.75], "cheap"),
            "Cannot tell with these seeds: rho1 ends 0.250 ± 0.124 nats below clm on target (± is half of the 95 % t interval "
            "over 3 of 4 seeds, paired), at equal tokens seen and 0.80 times clm's total compute, scoring and reference "
            "included. A seed in which one of the two has no finite nll cannot be left out: it stands against any verdict.",
        ),
        (
            seeds_of([None, 4.7], "cheap"),
            "One seed decides nothing: rho1 ends 0.300 nats below clm on target (1 of 2 seeds has both values), at equal "
            "tokens seen and 0.80 times clm's total compute, scoring and reference included.",
        ),
        (seeds_of([None, None]), "No verdict: no seed has a value of both rho1 and clm on target."),
        ([[arm("rho1", 4.8)]], "No verdict: no seed has a value of both rho1 and clm on target."),
    ],
)
def test_verdict(seeds: list[list[dict[str, Any]]], said: str) -> None:
    """Two writers said "paid" and "ends below" at 1.9 times the compute, one with sd, one with standard errors."""
    assert verdicts(seeds, "clm", "target") == [said]


def test_a_price_that_is_not_known_is_not_paid() -> None:
    seeds = seeds_of([4.8, 4.7, 4.75], "cheap")
    for rows in seeds:
        del rows[-1]["flops_scoring"]
    assert verdicts(seeds, "clm", "target") == [
        "Better, at a total compute that is not known: rho1 ends 0.250 ± 0.124 nats below clm on target (± is half of the 95 % "
        "t interval over 3 seeds, paired), at equal tokens seen and a total compute that is not known."
    ]


def test_what_decides_does_not_read_as_nothing() -> None:
    """0.0002 nats in every seed is decided, and .1 % more compute is more: neither may be rounded away."""
    seeds = seeds_of([4.9998, 4.99981, 4.99979], "equal")
    for rows in seeds:
        rows[-1]["flops_scoring"] = 0.01
    (said,) = verdicts(seeds, "clm", "target")
    assert said.startswith("Better, but dearer in total compute: rho1 ends 2e-04 ± 2e-05 nats below clm on target")
    assert "and just over 1.00 times clm's total compute" in said


def test_controls_stand_beside_the_baseline() -> None:
    """What is mixed in wins by the mix: an arm is held against the control of the same name as well."""
    rows = [arm("clm", 5.0), arm("random", 5.1), arm("rho1", 4.8), arm("clm_mixed", 4.0), arm("rho1_mixed", 3.9)]
    assert trained([{"arm": "base", "nll": 9.0}, *rows]) == [r["arm"] for r in rows]
    assert rivals(rows, "random", "clm") == ["clm"]
    assert rivals(rows, "clm_mixed", "clm") == ["clm", "random"]
    assert rivals(rows, "rho1", "clm") == ["clm", "random"]
    assert rivals(rows, "rho1_mixed", "clm") == ["clm", "random", "clm_mixed"]
    one, mixed = verdicts([rows], "clm", "gsm8k", "solution")
    assert "rho1 ends 0.200 nats below clm and 0.300 nats below random on gsm8k (solutions)" in one
    assert "rho1_mixed ends 1.100 nats below clm, 1.200 nats below random and 0.100 nats below clm_mixed on" in mixed


def test_a_rival_with_a_rival_of_its_own_has_a_verdict() -> None:
    """It had none: a study's main arm lost its sentence as soon as another arm was held against it."""
    rows = [arm("clm", 5.0), arm("twice", 4.9), arm("half", 4.8), arm("distill", 4.7), arm("mix", 4.0)]
    said = verdicts([rows], "clm", "target", declared={"half": "twice", "distill": "half", "sixth": "mix"})
    assert [line.partition(": ")[2].partition(" ends")[0] for line in said] == ["half", "distill"]
    assert "half ends 0.100 nats below twice and 0.200 nats below clm" in said[0]


def test_a_control_of_fewer_seeds_says_so() -> None:
    seeds = [[arm("clm", 5.0), arm("random", r), arm("rho1", 4.8)] for r in (5.1, None, 5.3)]
    (said,) = verdicts(seeds, "clm", "target")
    assert "below clm and 0.400 ± 1.271 nats below random (2 seeds) on target (± is" in said
    (said,) = verdicts(seeds[1:2], "clm", "target")
    assert "ends 0.200 nats below clm and without a value to set against random on target, at" in said


def test_names_are_text() -> None:
    """A folder's name with an escape sequence would write to the terminal that the sentence is printed on."""
    rows = [arm("clm", 5.0), {**arm("rho1", 4.8), "arm": "rho1\x1b[31m"}]
    (said,) = verdicts([rows], "clm", "tar\u202eget")
    assert said.isprintable()


ENDS = st.lists(st.tuples(st.floats(0, 12), st.floats(0, 12)), min_size=1, max_size=6)


@given(ENDS)
def test_swapped_arms_flip_the_direction(ends: list[tuple[float, float]]) -> None:
    seeds = [[arm("clm", c), arm("rho1", r)] for c, r in ends]
    there, back = difference(seeds, "rho1", "clm"), difference(seeds, "clm", "rho1")
    assert there.values == tuple(-v for v in back.values)
    assert (there.mean, there.sd) == (-(back.mean or 0.0), back.sd)
    said, swapped = sentence(seeds, "rho1", ["clm"], "target"), sentence(seeds, "clm", ["rho1"], "target")
    assert (" below " in said, " above " in said) == (" above " in swapped, " below " in swapped)
    flipped = {"Pays in total compute": "Does not pay in total compute"}
    flipped |= {worse: better for better, worse in flipped.items()}
    assert word(there, 1.0) == flipped.get(word(back, 1.0), word(back, 1.0))
    assert word(there, 1.1) in (
        "Better, but dearer in total compute",
        "Does not pay in total compute",
        "Cannot tell with these seeds",
        "One seed decides nothing",
    )
