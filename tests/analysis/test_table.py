"""Tables of text: aligned, in Markdown too."""

from __future__ import annotations

import numpy as np

from tokensieve.analysis.table import table


def test_table_aligns() -> None:
    rows = [
        {"arm": "clm", "nll": 5.4951, "tokens": 1234567, "flops": 2.5e15},
        {"arm": "世界", "nll": None, "tokens": 12},
    ]
    assert table(rows, ["arm", "nll", "tokens", "flops"]).split("\n") == [
        "arm     nll     tokens      flops",
        "----  -----  ---------  ---------",
        "clm   5.495  1,234,567  2.500e+15",
        "世界      -         12          -",
    ]


def test_table_markdown_and_headings() -> None:
    rows = [{"arm": "a|b", "x": np.float32(0.5)}, {"arm": "c\\\n", "x": np.int64(3)}]
    assert table(rows, {"arm": "Arm", "x": "nll"}, markdown=True).split("\n") == [
        "| Arm  |   nll |",
        "| ---- | ----: |",
        "| a\\|b | 0.500 |",
        "| c\\\\↵ |     3 |",
    ]


def test_table_of_nothing() -> None:
    assert table([], ["a", "bc"]) == "a  bc\n-  --"
    assert table([{"a": True, "b": float("nan")}], ["a", "b"]).split("\n")[2] == "yes  nan"
