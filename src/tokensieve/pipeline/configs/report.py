"""What ``tokensieve report`` is told: a finished run as a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportConfig:
    """Write report.html: verdict, curves, what was kept, and the text itself token by token. It opens without network."""

    runs: list[str]
    """A folder that `run` or `train` wrote, then the same recipe with other seeds; or a folder of such runs (seed-0 ...)."""
    out: str | None = None
    """File to write; report.html in the first folder if not given. Figures go to `figures/` beside it."""
    corpus: str | None = None
    """The corpus of a training run that stands alone; where its config says, if not given."""
    scores: str | None = None
    """Its scores, likewise."""
    tokens: int = 1_000_000
    """Tokens that the explorer shows at most; of a longer text a random part, and the page says so."""
    megabytes: float = 20.0
    """About how large the explorer's part of the page may be; fewer tokens are shown if it would be larger."""
