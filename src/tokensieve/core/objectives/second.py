"""Objectives that give each token a second target, a distribution over the vocabulary: from a teacher, or of similar tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from ..objective import Objective, SecondTarget
from ..select import Scope, check_ratio, kept_count, top_fraction
from ..stats import TokenStats
from .controls import clm
from .shared import check_column, check_range, check_scope, most_kept, rows_of, valid_by_group


def distill(
    of: Objective | None = None,
    share: float = 1.0,
    teacher: str | None = None,
    top_k: int = 64,
    rest: Literal["bucket", "renormalised"] = "bucket",
    ids: str = "topk_ids",
    log_probs: str = "topk_logp",
    ratio: float | None = None,
    reference: str | None = "ref_divergence",
    scope: Scope = "batch",
) -> Objective:
    """``(1 - share) nll + share KL(teacher || student)`` on the tokens of another rule, with its weights and denominator.

    ``of`` is that rule, ``{name: rho1}`` for one; all tokens if not given. The teacher's likeliest entries come from two
    columns that ``score --top_k`` wrote, ids and log p in nats, or from ``teacher``, the folder of a model that is run beside
    the student: then its ``top_k``. What they lack to 1 is one ``bucket``: r log(r / R), with R the student's probability of
    all other entries, of which a student that agrees feels nothing; or they are ``renormalised``, as is common, which teaches
    that nothing else can come. KL in nats at temperature 1 (Hinton et al., arXiv 1503.02531; the bucket as the ghost token of
    arXiv 2503.16870, from memory). ``teacher`` costs a forward of it each step.

    With a ``ratio`` it chooses its own tokens instead of ``of``: the top ``ratio`` by KL(teacher || student) less the column
    ``reference``, the KL of a reference that was distilled before (``score --teacher``): AdaSPEC (arXiv 2510.19779; read in the
    authors' code, which divides by ``valid`` tokens where it accumulates). ``reference: null``: by the student's KL alone.
    """
    _check(share, top_k)
    if rest not in ("bucket", "renormalised"):
        raise ValueError(f"rest is {rest!r}, it must be bucket or renormalised")
    origin: Literal["columns", "teacher"] = "columns" if teacher is None else "teacher"
    second = SecondTarget(origin, teacher, top_k, renormalised=rest == "renormalised", columns=(ids, log_probs))
    where = {"ids": ids, "log_probs": log_probs} if teacher is None else {"teacher": teacher, "top_k": top_k}
    if ratio is None:
        return _with("distill", of, share, second, {"rest": rest, **where})
    if of is not None:
        raise ValueError("distill: a ratio chooses the tokens by divergence, so it goes without of")
    chosen = {"ratio": ratio, "reference": reference, "scope": scope}
    return _furthest(ratio, reference, scope, share, second, {"share": share, "rest": rest, **where, **chosen})


def _furthest(
    ratio: float, reference: str | None, scope: Scope, share: float, second: SecondTarget, options: dict[str, object]
) -> Objective:
    """Keep the top ``ratio`` by ``divergence - reference``."""
    check_ratio(ratio)
    check_scope(scope)
    if reference is not None:
        check_column("reference", reference)

    def score(stats: TokenStats) -> Tensor:
        own = stats.need("divergence").float()
        return own if reference is None else own - stats.need(reference).float()

    return Objective(
        "distill",
        lambda stats: top_fraction(score(stats), stats.valid, ratio, scope, group=rows_of(stats, scope)).float(),
        frozenset({"divergence"} | ({reference} if reference is not None else set())),
        scope,
        known_count=lambda known: kept_count(valid_by_group(known, scope), ratio).sum(),
        most_rows=lambda rows, length: most_kept(rows, length, ratio, scope),
        selects=True,
        score=score,
        options=options,
        second=second,
        share=lambda stats: share,
    )


def smooth(
    of: Objective | None = None,
    share: float = 0.1,
    temperature: float = 0.1,
    top_k: int = 20,
    embeddings: str | None = None,
) -> Objective:
    """``(1 - share) nll + share CE(q)``, ``q_v ~ exp(cos(v, target) / temperature)``: similar tokens share in the target.

    Over the ``top_k`` entries whose input embeddings are nearest to the target's, itself among them: those of the model folder
    ``embeddings``, or of the model as training begins; they stay as they are. On the tokens of the rule ``of``, all if not
    given, with its weights and denominator. From memory of the literature: cosine, the truncation and all defaults are ours.
    From new weights it makes no sense without ``embeddings``: random vectors are alike by chance.
    """
    _check(share, top_k)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, it must be above 0")
    second = SecondTarget("similar", embeddings, top_k, temperature)
    told = {"temperature": temperature, "top_k": top_k, **({} if embeddings is None else {"embeddings": embeddings})}
    return _with("smooth", of, share, second, told)


def _check(share: float, top_k: int) -> None:
    check_range("share", share, 0.0, 1.0)
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, it must be at least 1")


def _with(name: str, of: Objective | None, share: float, second: SecondTarget, told: dict[str, object]) -> Objective:
    of = of or clm()
    if of.second is not None:
        raise ValueError(f"{name}: {of.name!r} has a second target already, and a token has at most two")
    options = {"of": {"name": of.name, **of.options}, "share": share, **told}
    return replace(of, name=name, second=second, share=lambda stats: share, options=options)
