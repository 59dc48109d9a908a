"""What a study writes down before its first run: test, target and stopping rule; and afterwards, whether they were changed.

``registration.json``: ``plan`` as it was first and ``now``, ``registered`` (when), ``begun`` (cells that were there already
then), ``changes`` (a list of ``when`` and ``what``, a line a field), ``beforehand`` (what was said of each plan, see
beforehand.py). A changed plan is followed, and every verdict says so.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...runs.files import read_json, write_json
from ...runs.work import flat

REGISTRATION = "registration.json"
TEST = "two-sided paired t over seeds, 95 %: the interval of the mean difference in nll leaves 0 out"


def register(out: Path, plan: Mapping[str, Any], begun: Sequence[str], said: Mapping[str, Any] | None = None) -> None:
    """Write the plan into a study's folder, or what of it was changed since. ``begun``: cells that are there already; ``said``:
    what is said of this plan beforehand."""
    path, now = out / REGISTRATION, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    plan = json.loads(json.dumps(plan))
    told = [] if said is None else [{"when": now, **said}]
    first = {"registered": now, "begun": list(begun), "plan": plan, "now": plan, "changes": [], "beforehand": told}
    if not path.exists():
        write_json(path, first)
        return
    found = read_json(path)
    if changed := changes(found["now"], plan):
        found = {**found, "now": plan, "changes": [*found["changes"], {"when": now, "what": changed}]}
        write_json(path, {**found, "beforehand": [*found.get("beforehand", []), *told]})


def is_registered(out: Path, plan: Mapping[str, Any]) -> bool:
    """Whether a study's folder has this very plan written down."""
    path = out / REGISTRATION
    return path.exists() and not changes(read_json(path)["now"], json.loads(json.dumps(plan)))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``seeds [0, 1] -> [0, 1, 2]`` for each field that differs, dotted."""
    was, now = flat(old), flat(new)
    return [
        f"{key} {_shown(was, key)} -> {_shown(now, key)}"
        for key in sorted({*was, *now})
        if was.get(key) != now.get(key)
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "nothing"


def content(registration: Mapping[str, Any]) -> dict[str, Any]:
    """What of it a verdict depends on: all but the times."""
    changed = [change["what"] for change in registration["changes"]]
    return {"begun": registration["begun"], "plan": registration["plan"], "changes": changed}


def registered(registration: Mapping[str, Any]) -> str:
    """Whether what was registered stood."""
    when = str(registration["registered"])[:10]
    first = (
        f"Registered on {when}, when {len(registration['begun'])} cells were there already"
        if registration["begun"]
        else f"Registered on {when}, before the first run"
    )
    if not registration["changes"]:
        return f"{first}, and not changed since."
    told = "; ".join(what for change in registration["changes"] for what in change["what"])
    return f"{first}, and CHANGED since: {told}."
