"""What a model was begun from, run by run: so that a comparison charges each arm with all that only it needed.

A *lineage* is a list of links, from the model that a run began with back to the first: ``model`` (the hash of its weights)
and the figures of the run that made it (``FIGURES``); one from elsewhere has no figures and is the last, one that ``init`` made
cost nothing by itself. It stands in manifests as ``begun_from``, since folders may be moved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..modeling.folder import model_hash
from ..runs.manifest import is_done, read_manifest
from .configs.init import KIND as START

FLOPS = ("flops_student", "flops_scoring", "flops_reference")
FIGURES = ("tokens_seen", "tokens_trained", *FLOPS)
Link = Mapping[str, Any]


def lineage(model: str) -> list[dict[str, Any]]:
    """The links of ``model``, a folder: itself, and what it was begun from. Reads manifests only."""
    link: dict[str, Any] = {"model": model_hash(model)}
    for folder in (Path(model), Path(model).parent):
        if is_done(folder) and read_manifest(folder)["kind"] == "model":
            manifest = read_manifest(folder, "model", ("summary",))
            return [{**link, **{key: manifest["summary"].get(key) for key in FIGURES}}, *begun_from(manifest)]
        if is_done(folder) and read_manifest(folder)["kind"] == START:
            manifest = read_manifest(folder, START, ("source_hash",))
            return [
                {**link, **dict.fromkeys(FIGURES, 0)},
                *manifest.get("begun_from", [{"model": manifest["source_hash"]}]),
            ]
    return [link]


def trained_by(model: str) -> list[str]:
    """Hashes of the models whose own training ``training_flops`` tells of ``model``: itself or, of what ``init`` made of others
    and nobody trained since, these."""
    for folder in (Path(model), Path(model).parent):
        if is_done(folder) and read_manifest(folder)["kind"] == START:
            manifest = read_manifest(folder, START, ("source_hash",))
            return list(manifest.get("source_flops_of", [manifest["source_hash"]]))
    return [model_hash(model)]


def reference_begun_from(model: str) -> list[dict[str, Any]]:
    """What a reference was begun from, without what ``reference_flops`` has in it already."""
    counted = trained_by(model)
    return [link for link in lineage(model)[1:] if link["model"] not in counted]


def training_flops(model: str) -> float | None:
    """FLOPs that trained a model, if `train` wrote its folder (None: not known); 0 for a model from elsewhere. Of one that
    `init` made of another, and nobody trained since: those of the other."""
    for folder in (Path(model), Path(model).parent):
        kind = read_manifest(folder)["kind"] if is_done(folder) else None
        if kind == "model":
            flops = read_manifest(folder, "model", ("summary",))["summary"]["flops_student"]
            return None if flops is None else float(flops)
        if kind == START:
            flops = read_manifest(folder, START, ("source_flops",))["source_flops"]
            return None if flops is None else float(flops)
    return 0.0


def begun_from(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lineage of a finished run, by its manifest. Of earlier versions only the first link is known, without figures."""
    first = manifest["inputs"].get("model")
    return list(manifest.get("begun_from", [{"model": first}] if first else []))


def references(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The reference models whose scores a finished run used: ``model`` and ``begun_from`` of each."""
    return list(manifest.get("references", []))


def shared(manifests: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Hashes of the models that every one of these runs was begun from: nobody is charged with what all had."""
    each = [{link["model"] for link in begun_from(m)} for m in manifests]
    return frozenset(set.intersection(*each)) if each else frozenset()


def charged(manifest: Mapping[str, Any], free: Collection[str]) -> dict[str, float | None]:
    """``FIGURES`` of a run with what it was begun from, and what its references were begun from, except for models in ``free``.

    Tokens and FLOPs of runs that it goes on from are its own. What made a reference's beginning counts as reference training,
    once, and not again where the run itself goes on from that model. None where a link has no figures: not known.
    """
    made: dict[str, float | None] = {key: manifest["summary"].get(key) for key in FIGURES}
    counted = set(free)
    for link in begun_from(manifest):
        if link["model"] not in counted:
            made = {key: _sum(made[key], link.get(key)) for key in FIGURES}
        counted.add(link["model"])
    for reference in references(manifest):
        if reference["model"] in counted - set(
            free
        ):  # the student goes on from its own reference: charged above already
            made["flops_reference"] = _sum(made["flops_reference"], _negative(reference.get("flops")))
        for link in reference["begun_from"]:
            if link["model"] not in counted:
                made["flops_reference"] = _sum(made["flops_reference"], *(link.get(key) for key in FLOPS))
            counted.add(link["model"])
    return made


def total(figures: Mapping[str, Any]) -> float | None:
    """Total FLOPs: student, scoring and reference; None where one of them is not known."""
    return _sum(*(figures.get(key) for key in FLOPS))


def _sum(*values: float | None) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
