"""Arms of one experiment side by side: end values, who reached whose end with how many tokens, and what it all came to.

One paired difference and one sentence, for every place that says how a run went. A *row* is a row of ``comparison.json``;
``seeds`` are such rows, a list for each run of the same recipe: ``by_seed`` takes them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..data.text import visible
from .certainty import MOST_SEEDS, seeds_needed

Row = Mapping[str, Any]
TOTAL = ("flops_student", "flops_scoring", "flops_reference")
"""What total compute adds up."""
CONTROLS = ("clm", "random", "random_like")
"""Objectives that choose by no score: arms with these are what the others are held against."""
PLUS_MINUS = "± is half of the 95 % t interval over seeds"
"""What every ± over seeds means, in tables and sentences. It is also what decides."""
CANNOT_TELL = "Cannot tell with these seeds"
RISE = 0.005
"""Nats by which a curve must end above its lowest point to be said to rise: less is what the last steps do by chance."""


def tokens_to_reach(curve: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Tokens at which a curve of (tokens, nll) first comes down to ``goal``; None if it never does.

    Between two points the curve is a straight line. The curve need not be monotone: the first crossing counts. Points whose nll
    is no number are left out.
    """
    points = sorted(p for p in curve if math.isfinite(p[1]))
    if points and points[0][1] <= goal:
        return points[0][0]
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 > goal >= y1:
            return x0 + (x1 - x0) * (y0 - goal) / (y0 - y1)
    return None


@dataclass(frozen=True)
class Reached:
    """How an arm stands to the baseline's end: the nll of the baseline's last checkpoint."""

    speedup: float | None
    """Tokens at which the baseline first came down to its own end, over those at which the arm did; None: it never did."""
    is_bound: bool
    """The arm was there at its first checkpoint, after which the baseline still had to come there: at least so much."""


def reached(baseline: Sequence[tuple[float, float]], arm: Sequence[tuple[float, float]]) -> Reached:
    """Both curves of (tokens, nll) through :func:`tokens_to_reach`, to the nll that ``baseline`` ends at.

    A baseline that was at its end's nll long before its end has spent only the tokens until then on it. Points at 0 tokens say
    nothing of training and are left out; without a point of either there is nothing to say: (None, False).
    """
    baseline, arm = (sorted(p for p in points if p[0] > 0) for points in (baseline, arm))
    own = tokens_to_reach(baseline, baseline[-1][1]) if baseline else None
    its = tokens_to_reach(arm, baseline[-1][1]) if baseline else None
    if own is None or its is None:
        return Reached(None, False)
    told_nothing = own == baseline[0][0] and len(baseline) > 1  # the baseline was there at its first checkpoint, too
    return Reached(own / its, its == arm[0][0] and not told_nothing)


def reached_cell(rows: Sequence[Row]) -> str:
    """What a table says of one arm by seed: ``1/1.33`` of the baseline's tokens, ``<= `` before a bound, ``no advantage`` for
    as many tokens or more, ``never``; over seeds their mean, and in how many it is never. An arm that was there and has left
    again, above the baseline's end by more than ``RISE``, is not there at its own: that is said beside the number."""
    values = [row.get("speedup") for row in rows]
    if never := values.count(None):
        return "never" if len(rows) == 1 else f"never in {never} of {len(rows)}"
    bound, mean = any(row.get("speedup_is_bound") for row in rows), over_seeds(values).mean or 0.0
    if mean < 1 and bound:
        return "at its first checkpoint"  # which came after the baseline was there: it may have been there before
    if mean <= 1 and not bound:
        return "no advantage"
    left = ", then left" if any(row.get("ends_above") for row in rows) else ""
    return f"{'<= ' if bound else ''}1/{mean:.2f}{left}"


def rise(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """(tokens, nll) of a curve's lowest point where it ends more than ``RISE`` above it; None where it does not rise."""
    found = sorted(p for p in points if math.isfinite(p[1]))
    best = min(found, key=lambda p: p[1], default=None)
    return best if best is not None and found[-1][1] - best[1] > RISE else None


def rises(seeds: Sequence[Sequence[Row]], baseline: str) -> list[str]:
    """A sentence if the baseline's curve rises: its end is then no measure of what its tokens gave. Else nothing."""
    rows = [row for rows in seeds for row in rows if row["arm"] == baseline and row.get("lowest")]
    if not rows:
        return []
    name, seeds_of = _shown(baseline), "" if len(seeds) == 1 else f" in {len(rows)} of {len(seeds)} seeds"
    low, end_nll = (
        over_seeds(values).mean or 0.0 for values in ([r["lowest"]["nll"] for r in rows], [r["nll"] for r in rows])
    )
    share = over_seeds(r["lowest"]["tokens_seen"] / r["tokens_seen"] for r in rows).mean or 0.0
    return [
        f"{name}'s curve rises{seeds_of}: its lowest nll is {low:.4f} after {share:.0%} of its tokens, its end {end_nll:.4f}; "
        f"tokens to {name}'s end are counted to where it first was there."
    ]


def curve(results: Sequence[dict[str, Any]], model: str, target: str, on: str = "all") -> list[tuple[float, float]]:
    """(tokens seen, nll) of one model's checkpoints on one set."""
    return [
        (r["tokens_seen"], r["nll"])
        for r in results
        if (r["model"], r["set"], r["on"]) == (model, target, on) and None not in (r.get("tokens_seen"), r["nll"])
    ]


def end(results: Sequence[dict[str, Any]], model: str, target: str, on: str = "all") -> dict[str, Any]:
    """The record of a model's last weights on one set. Raises KeyError if there is none."""
    found = [r for r in results if r["model"] == model and r["set"] == target and r["on"] == on]
    if not found:
        raise KeyError(f"no result of {model!r} on {target!r} ({on})")
    return max(found, key=lambda r: r.get("step") or 0)


def kept_by_source(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a source, a column a selective arm: the share of the source's valid tokens that the arm kept.

    ``rows`` as ``compare`` makes them, one an arm; arms that keep every token are left out, and so is a lone source.
    """
    shares = {r["arm"]: r["kept_share_by_source"] for r in rows if r.get("kept_share", 1.0) < 1.0}
    sources = sorted({name for by_source in shares.values() for name in by_source})
    if len(sources) < 2:
        return []
    return [{"source": name, **{arm: by.get(name) for arm, by in shares.items()}} for name in sources]


# --- over seeds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OverSeeds:
    """A figure, or a paired difference, over seeds. What seeds do not give is None: all of it for n = 0, spread for n = 1."""

    values: tuple[float, ...]
    """By seed; seeds without a value are left out."""
    mean: float | None = None
    sd: float | None = None
    """Of the sample: sqrt(sum (v - mean)^2 / (n - 1))."""
    standard_error: float | None = None
    """Of the mean: sd / sqrt(n)."""
    interval: tuple[float, float] | None = None
    """95 % t interval of the mean, n - 1 degrees of freedom."""

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def half_width(self) -> float | None:
        """Half of the interval: what stands after the ±."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2

    @property
    def is_decided(self) -> bool:
        """Whether the interval leaves 0 out. One value decides nothing."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def over_seeds(values: Iterable[float | None]) -> OverSeeds:
    """Mean, sd, standard error and 95 % t interval of ``values``; None and what is not finite are left out."""
    given = tuple(float(v) for v in values if v is not None and math.isfinite(v))
    if not given:
        return OverSeeds(given)
    n, mean = len(given), math.fsum(given) / len(given)
    if n == 1:
        return OverSeeds(given, mean)
    from scipy.stats import t  # .4 s

    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in given) / (n - 1))
    error = sd / math.sqrt(n)
    half = float(t.ppf(0.975, n - 1)) * error
    return OverSeeds(given, mean, sd, error, (mean - half, mean + half))


def paired(first: Sequence[float | None], second: Sequence[float | None]) -> OverSeeds:
    """``first - second``, paired by seed; a seed that lacks either is left out. Raises ValueError for other lengths."""
    pairs = zip(first, second, strict=True)
    return over_seeds(None if a is None or b is None else a - b for a, b in pairs)


def by_seed(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of ``comparison.json`` for each seed, in order: they say which by ``run``, where there are several."""
    runs: dict[int, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.get("run", 0), []).append(row)
    return list(runs.values())


def difference(seeds: Sequence[Sequence[Row]], first: str, second: str, on_set: str | None = None) -> OverSeeds:
    """nll of arm ``first`` minus nll of arm ``second`` at the end, nats, paired by seed; negative: the first is better.

    On the set that the rows are about, or on one of their ``others``.
    """
    return paired(_nll(seeds, first, on_set), _nll(seeds, second, on_set))


def _nll(seeds: Sequence[Sequence[Row]], arm: str, on_set: str | None) -> list[float | None]:
    rows = [next((r for r in rows if r["arm"] == arm), {}) for rows in seeds]
    return [row.get("nll") if on_set is None else row.get("others", {}).get(on_set) for row in rows]


def plus_minus(figure: OverSeeds, form: str) -> str:
    """``mean ± half_width`` in the format ``form``; the mean alone where the ± is unknown or shows as 0, "" without a value."""
    if figure.mean is None:
        return ""
    size = form.removeprefix("+")  # a spread has no sign
    half = "" if figure.half_width is None else f"{figure.half_width:{size}}"
    return f"{figure.mean:{form}}" + (f" ± {half}" if half not in ("", f"{0:{size}}") else "")


def _values(seeds: Sequence[Sequence[Row]], arm: str, *keys: str) -> list[float | None]:
    """The sum of an arm's ``keys`` in each seed; None where there is no such arm, or one of them is missing."""
    made: list[float | None] = []
    for rows in seeds:
        row: Row = next((r for r in rows if r["arm"] == arm), {})
        parts: list[Any] = [row.get(key) for key in keys]
        made.append(None if None in parts else math.fsum(parts))
    return made


# --- who is held against whom ----------------------------------------------------------------------------------------------


def trained(rows: Sequence[Row]) -> list[str]:
    """The arms that were trained: not the base, the reference or n-grams."""
    return [r["arm"] for r in rows if "tokens_seen" in r]


def choosers(rows: Sequence[Row], baseline: str, declared: Mapping[str, str] | None = None) -> list[str]:
    """The arms that a verdict is about: those whose objective goes by more than chance; in a study, which declares who is held
    against whom, all but the baseline and what has no rival of its own and is another's."""
    if declared is not None:
        lengths = [r["arm"] for r in rows if "length_of" in r]
        only_rivals = {*declared.values()} - {*declared}  # one that has a rival itself is judged, too
        return [arm for arm in trained(rows) if arm not in (baseline, *lengths, *only_rivals)]
    return [r["arm"] for r in rows if r.get("objective", "clm") not in CONTROLS and r["arm"] != baseline]


def rivals(rows: Sequence[Row], arm: str, baseline: str, declared: Mapping[str, str] | None = None) -> list[str]:
    """What ``arm`` is held against: first what is declared to be its rival, the baseline, the random control, and the controls
    that share what follows the objective in its name (rho1_mixed: clm_mixed, random_mixed)."""
    objectives = {r["arm"]: str(r.get("objective")) for r in rows if "tokens_seen" in r}
    own = objectives.get(arm, "")
    suffix = arm.removeprefix(own) if own and arm.startswith(own) else ""
    chance = [name for name, objective in objectives.items() if objective == "random"][:1]
    found = [(declared or {}).get(arm, baseline), baseline, *chance]
    if suffix and own not in CONTROLS:
        found += [
            name for name, objective in objectives.items() if objective in CONTROLS and name == objective + suffix
        ]
    return [name for name in dict.fromkeys(found) if name != arm]


# --- the verdict -----------------------------------------------------------------------------------------------------------


def verdicts(
    seeds: Sequence[Sequence[Row]],
    baseline: str,
    target: str,
    on: str = "all",
    declared: Mapping[str, str] | None = None,
) -> list[str]:
    """A sentence for each arm that chooses by a score, in the order of the rows; ``target`` and ``on`` are the set's.

    ``declared``: of a study, arm -> what its verdict is against where that is not the baseline; then each arm has a sentence.
    """
    rows = seeds[0]
    where = target if on == "all" else f"{target} ({on}s)"
    arms = choosers(rows, baseline, declared)
    return [sentence(seeds, arm, rivals(rows, arm, baseline, declared), where) for arm in arms]


def sentence(seeds: Sequence[Sequence[Row]], arm: str, others: Sequence[str], where: str) -> str:
    """The word, how far ``arm`` ends from each of ``others`` with its ±, on which set, and at what price.

    The first of ``others`` is the rival: word and price are against it, over the seeds that have both.
    """
    gaps = {other: difference(seeds, arm, other) for other in others}
    baseline, gap = next(iter(gaps.items()))
    if gap.mean is None:
        return f"No verdict: no seed has a value of both {_shown(arm)} and {_shown(baseline)} on {_shown(where)}."
    compute = _times(seeds, arm, baseline, *TOTAL)
    sides = [_side(each, other, gap.n) for other, each in gaps.items()]
    ends = ", ".join(sides[:-1]) + (" and " if sides[1:] else "") + sides[-1]
    price = f"{_seen(_times(seeds, arm, baseline, 'tokens_seen'), baseline)} and {_compute(compute, baseline)}"
    hides = gap.is_decided and gap.n < sum(_has_rows(s, arm, baseline) for s in seeds)
    found = CANNOT_TELL if hides else word(gap, compute)
    said = f"{found}: {_shown(arm)} ends {ends} on {_shown(where)}{_over(gap.n, len(seeds))}, {price}."
    if hides:  # a run that came to nothing is an outcome: left out, the others would pay for it
        return f"{said} A seed in which one of the two has no finite nll cannot be left out: it stands against any verdict."
    return said + (f" {_more(gap)}" if gap.interval is not None and not gap.is_decided else "")


def _has_rows(rows: Sequence[Row], *arms: str) -> bool:
    """Whether a seed has runs of all of these, whatever they came to."""
    return set(arms) <= {row["arm"] for row in rows}


def _more(gap: OverSeeds) -> str:
    """How many seeds it would take, where these cannot tell."""
    needed = seeds_needed(gap.mean or 0.0, gap.sd or 0.0)
    if gap.mean == 0:
        return "No number of seeds tells a difference of 0."
    number = f"More than {MOST_SEEDS}" if needed is None else f"About {needed}"
    return f"{number} seeds would tell a difference of this size, four times in five."


def word(gap: OverSeeds, compute: float | None) -> str:
    """What a difference from the rival came to, and on which axis. It *pays* only where it is better for no more total compute.

    ``compute`` is total compute over the rival's: student, scoring and reference.
    """
    if gap.interval is None:
        return "One seed decides nothing" if gap.n else "No verdict"
    if not gap.is_decided:
        return CANNOT_TELL
    worse = gap.interval[0] > 0
    if compute is None:
        return f"{'Worse' if worse else 'Better'}, at a total compute that is not known"
    if worse:
        return "Does not pay in total compute" if compute >= 1 else "Worse, but cheaper in total compute"
    return "Pays in total compute" if compute <= 1 else "Better, but dearer in total compute"


def _times(seeds: Sequence[Sequence[Row]], arm: str, baseline: str, *keys: str) -> float | None:
    """The sum of ``keys`` over the baseline's, over the seeds whose nll are compared; None if one of them does not say."""
    both = [s for s in seeds if difference([s], arm, baseline).n]
    mine, base = _values(both, arm, *keys), _values(both, baseline, *keys)
    sums = [math.fsum(v for v in values if v is not None) for values in (mine, base)]
    return None if None in (*mine, *base) or not sums[1] else sums[0] / sums[1]


def _side(gap: OverSeeds, other: str, seeds: int) -> str:
    """``0.183 ± 0.048 nats below clm``; with the number of its seeds where these are not ``seeds``."""
    if gap.mean is None:
        return f"without a value to set against {_shown(other)}"
    size, way = _size(abs(gap.mean)), "below" if gap.mean < 0 else "above" if gap.mean > 0 else "from"
    half = "" if gap.half_width is None else f" ± {_size(gap.half_width)}"
    return f"{size}{half} nats {way} {_shown(other)}" + ("" if gap.n == seeds else f" ({gap.n} seeds)")


def _size(nats: float) -> str:
    """Three decimals, or the first digit that is not 0: a difference that decides must not read as none."""
    return f"{nats:.3f}" if nats >= 0.0005 or not nats else f"{nats:.0e}"


def _over(n: int, given: int) -> str:
    of = "" if n == given else f" of {given}"
    if n > 1:
        return f" ({PLUS_MINUS.removesuffix(' seeds')} {n}{of} seeds, paired)"
    return of and f" ({n}{of} seeds has both values)"


def _seen(times: float | None, baseline: str) -> str:
    if times is None:
        return "at tokens seen that are not known"
    return "at equal tokens seen" if times == 1 else f"at {_factor(times)} times {_shown(baseline)}'s tokens seen"


def _compute(times: float | None, baseline: str) -> str:
    if times is None:
        return "a total compute that is not known"
    factor = "" if times == 1 else f"{_factor(times)} times "
    return f"{factor}{_shown(baseline)}'s total compute, scoring and reference included"


def _factor(times: float) -> str:
    """Two decimals; what is not 1 does not read as 1.00."""
    text = f"{times:.2f}"
    return f"just {'over' if times > 1 else 'under'} {text}" if text == "1.00" and times != 1 else text


def _shown(name: str) -> str:
    return "".join(map(visible, name))
