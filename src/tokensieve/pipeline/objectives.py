"""An objective from what a config says of it: names, options by their types, and objectives in objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core import Objective
from ..core.objective import with_denominator
from ..core.objectives import COMBINED, OBJECTIVES, objective
from ..runs.errors import UserError
from .config.fields import from_fields


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
    inner = fields.get("of")
    for part in inner if isinstance(inner, list) else [inner]:
        check_code(part, allow_code)


def _made(fields: Any, *place: str) -> Objective:
    if not isinstance(fields, Mapping):
        raise UserError(f"{'.'.join(place)}: a mapping, as {{name: rho1}}, is needed, not {fields}")
    options = dict(fields)
    name = options.pop("name", "clm")
    try:
        if name in OBJECTIVES:
            denominator = options.pop("denominator", None)
            return with_denominator(from_fields(OBJECTIVES[name], options, *place), denominator)
        if name in COMBINED and isinstance(options.get("of"), list):
            options["of"] = [_made(part, *place, "of", str(i)) for i, part in enumerate(options["of"])]
        return objective(name, **options)
    except UserError:  # told with its place already
        raise
    except ValueError as e:
        raise UserError(f"{'.'.join(place)}: {e}") from None
