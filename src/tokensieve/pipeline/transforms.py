"""Transforms of documents from what a config says of them: names, and options by their types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.build.transforms import TRANSFORMS
from ..data.build.transforms.kind import NamedTransform
from ..data.read.source import SourceConfig
from ..runs.errors import UserError
from .config.fields import from_fields, unknown


def transforms_of(given: Sequence[Mapping[str, Any]]) -> list[NamedTransform]:
    """The transforms that mappings name, ``{name: fim, sources: [...], option: value}``. UserError for one that does not
    exist, for options it does not take, and for one behind `fim` that a document cut by it would not come through."""
    made = [_made(fields, i) for i, fields in enumerate(given)]
    for i, later in enumerate(made):
        for j, earlier in enumerate(made[:i]):
            if earlier.name == "fim" and later.name in ("fim", "repository") and _meet(earlier, later):
                raise UserError(
                    f"transforms.{i}: {later.name} behind fim (transforms.{j}) of the same documents: what is cut is neither "
                    "cut again nor joined; put repository first, give each fim sources of its own"
                )
    return made


def _meet(one: NamedTransform, other: NamedTransform) -> bool:
    """Whether a document may be of both."""
    return one.sources is None or other.sources is None or not {*one.sources}.isdisjoint(other.sources)


def _made(fields: Mapping[str, Any], index: int) -> NamedTransform:
    options, place = dict(fields), ("transforms", str(index))
    name = options.pop("name", None)
    if name not in TRANSFORMS:
        what = "name is missing" if name is None else unknown(str(name), TRANSFORMS, "transform")
        raise UserError(f"{'.'.join(place)}: {what}")

    def with_sources(sources: list[str] | None = None) -> tuple[str, ...] | None:
        return None if sources is None else tuple(sources)

    common = {"sources": options.pop("sources")} if "sources" in options else {}
    sources = from_fields(with_sources, common, *place)
    return NamedTransform(str(name), from_fields(TRANSFORMS[name].options, options, *place), sources)


def control_tokens_of(given: Sequence[NamedTransform]) -> list[str]:
    """Control tokens that a tokenizer trained for these needs, each once."""
    return list(dict.fromkeys(t for g in given for t in TRANSFORMS[g.name].control_tokens(g.options)))


_NO_PROGRAMS = ("text", "python", "docstrings", "tokens", "chat")


def check_programs(sources: Sequence[SourceConfig], given: Sequence[NamedTransform]) -> None:
    """Raise UserError for programs of deletions that nothing would heed, or that no row can have, and for none where some are
    to be heeded."""
    heeded = [i for i, g in enumerate(given) if g.name == "deletions"]
    for i, source in enumerate(sources):
        if source.program is None:
            continue
        if source.format in _NO_PROGRAMS or source.problem is not None:
            raise UserError(f"sources.{i}.program: only rows with one column of text have programs")
        if not heeded:
            raise UserError(f"sources.{i}.program: nothing heeds it without transforms: [{{name: deletions}}]")
    if heeded and all(source.program is None for source in sources):
        raise UserError(
            f"transforms.{heeded[0]}: deletions are by programs: name their column in a source (program: COLUMN)"
        )
