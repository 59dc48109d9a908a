"""Names beside the ends of curves."""

from __future__ import annotations

import numpy as np

from tokensieve.report.style import label_ends, panel


def test_runs_of_one_point_each_have_names() -> None:
    """A run that saved nothing on its way is one point; where no run had two, the report ended in a ValueError."""
    _, axes = panel("nll", "tokens")
    ends = [(1.0, 3.0, "short", "#000000"), (4.0, 2.0, "long", "#222222")]
    for x, y, _, colour in ends:
        axes.plot([x], [y], color=colour)
    label_ends(axes, ends)
    placed = {text.get_text(): np.array(text.xyann) for text in axes.texts}
    assert set(placed) == {"short", "long"}
    assert np.abs(placed["short"]).max() >= 5  # not upon its own point
