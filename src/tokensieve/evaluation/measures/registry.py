"""The measures by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .contamination import contamination
from .probes import probes
from .quantisation import rounding
from .subject import ModelFigures, Subject
from .surprisal import surprisal

MEASURES: dict[str, Callable[[Subject, Any], ModelFigures]] = {
    "surprisal": surprisal,
    "probes": probes,
    "quantisation": rounding,
    "contamination": contamination,
}
"""name -> what it makes of a model and its options. ``signal`` is no measure of a model: it looks at records of all."""
SIGNAL = "signal"
