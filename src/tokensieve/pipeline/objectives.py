"""An objective from what a config says of it: names, options by their types, and objectives in objectives."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..core import Objective
from ..core.objectives import BY_SOURCE, COMBINED, OBJECTIVES, SCHEDULE, finished, moved, objective
from ..runs.errors import UserError
from .config.fields import from_fields, unknown
from .config.hints import parameters


def objective_of(fields: Mapping[str, Any], allow_code: bool) -> Objective:
    """The objective that a mapping names. UserError for one that does not exist, or options it does not take."""
    check_code(fields, allow_code)
    return _made(fields, "objective")


def check_code(fields: Any, allow_code: bool) -> None:
    """A name is text; one that is not built in is code, which a file that came from elsewhere must not name, however deep."""
    if not isinstance(fields, Mapping):
        return
    name = fields.get("name", "clm")
    if not isinstance(name, str):
        raise UserError(f"objective: name: text is needed, not {name}")
    if ":" in name and not allow_code:
        raise UserError(
            f"objective: {name!r} is code to be imported and called: if you trust it, add --allow_code to the command line"
        )
    inner, instead = fields.get("of"), fields.get("instead")
    parts = [
        *(inner if isinstance(inner, list) else [inner]),
        *(instead.values() if isinstance(instead, Mapping) else []),
    ]
    for part in parts:
        check_code(part, allow_code)


def check_sources(fields: Any, sources: Sequence[str]) -> None:
    """Refuse a rule for a source that the corpus has not, however deep it stands."""
    if not isinstance(fields, Mapping):
        return
    instead, inner = fields.get("instead"), fields.get("of")
    if fields.get("name") == "by_source" and isinstance(instead, Mapping):
        for name in instead:
            if name not in sources:
                raise UserError(f"objective.instead: {unknown(str(name), sources, 'source')}")
    for part in inner if isinstance(inner, list) else [inner]:
        check_sources(part, sources)


def _made(fields: Any, *place: str) -> Objective:
    if not isinstance(fields, Mapping):
        raise UserError(f"{'.'.join(place)}: a mapping, as {{name: rho1}}, is needed, not {fields}")
    options = dict(fields)
    name = options.pop("name", "clm")
    for option, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{'.'.join((*place, str(option)))}: a finite number is needed, not {value}")
    try:
        if name in OBJECTIVES:
            general = {n: options.pop(n, None) for n in ("denominator", "unit")}
            make = OBJECTIVES[name]
            if options.get("of") is not None and "of" in parameters(make):
                make = functools.partial(make, of=_made(options.pop("of"), *place, "of"))
            return finished(from_fields(make, options, *place), **general)
        if name in _OPTIONS:
            general = {n: options.pop(n) for n in ("denominator", "unit") if n in options}
            options = {**_OPTIONS[name](options, *place), **general}
        return objective(name, **options)
    except UserError:  # told with its place already
        raise
    except ValueError as e:
        raise UserError(f"{'.'.join(place)}: {e}") from None


# --- objectives of objectives: their options, checked by type at every depth, and their parts made ---


def _of_several(options: Mapping[str, Any], *place: str) -> dict[str, Any]:
    def given(of: list[Any]) -> list[Any]:
        return of

    parts = from_fields(given, options, *place)
    return {"of": [_made(part, *place, "of", str(i)) for i, part in enumerate(parts)]}


def _of_schedule(options: Mapping[str, Any], *place: str) -> dict[str, Any]:
    def given(
        of: dict[str, Any], option: str, points: list[list[float]], over: Literal["steps", "tokens"] = "steps"
    ) -> dict[str, Any]:
        return {"of": of, "option": option, "points": points, "over": over}

    found: dict[str, Any] = from_fields(given, options, *place)
    for point in found["points"]:
        if len(point) == 2:
            _made(moved(found["of"], found["option"], point[1]), *place, "of")
    if found["points"] == options["points"]:  # 0 stays 0: it stands in the records of runs
        found["points"] = options["points"]
    return found


def _of_sources(options: Mapping[str, Any], *place: str) -> dict[str, Any]:
    def given(of: dict[str, Any], instead: dict[str, dict[str, Any]] | None = None) -> tuple[dict[str, Any], Any]:
        return of, instead or {}

    of, instead = from_fields(given, options, *place)
    others = {
        source: _made(part if "name" in part else {**of, **part}, *place, "instead", source)
        for source, part in instead.items()
    }
    return {"of": _made(of, *place, "of"), "instead": others}


_OPTIONS = {**dict.fromkeys(COMBINED, _of_several), SCHEDULE: _of_schedule, BY_SOURCE: _of_sources}
