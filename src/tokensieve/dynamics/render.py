"""What ``tokensieve dynamics`` prints: the classes beside the paper's, their curves, and the classes of each source."""

from __future__ import annotations

from typing import Any

from ..analysis.table import table


def render(described: dict[str, Any]) -> str:
    """The classes beside the paper's, the mean nll of each over the checkpoints, and the classes of each source."""
    last = described["checkpoints"][-1]
    head = (
        f"{described['tokens']:,} tokens, {len(described['checkpoints'])} checkpoints, mean nll "
        f"{described['checkpoints'][0]['nll']:.3f} -> {last['nll']:.3f}, threshold {described['threshold']:g} nats"
    )
    classes = [_class_line(record) for record in described["classes"]]
    columns = [c for c in classes[0] if any(line[c] is not None for line in classes)]
    note = "paper: TinyLlama-1B, 15B OpenWebMath tokens, about 320,000 validation tokens (Rho-1, section 2.1)"
    parts = [head, table(classes, columns) + "\n" + note, table(*_curve_lines(described))]
    by_source = [r for r in described["breakdowns"] if r["by"] == "source"]
    if len({r["group"] for r in by_source}) > 1:
        parts.append(table(*_source_lines(by_source)))
    return "\n\n".join(parts)


def _class_line(r: dict[str, Any]) -> dict[str, Any]:
    def number(value: float | None) -> str | None:
        return None if value is None else f"{value:.3f}"

    return {
        "class": r["class"],
        "share": _percent(r["share"]),
        "paper": _percent(r["paper"], 0) or "",
        "tokens": r["tokens"],
        "nll first": number(r["nll_first"]),
        "nll last": number(r["nll_last"]),
        "delta": number(r["delta"]),
        "fluctuation": number(r["fluctuation"]),
        "steps up": _percent(r["up_share"]),
        "kept": _percent(r["kept_share"]),
        "kept (log)": _percent(r["logged_kept_share"]),
    }


def _curve_lines(described: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """A line a checkpoint: mean nll of each class."""
    nll = {(r["checkpoint"], r["class"]): r["nll"] for r in described["curves"]}
    classes = [r["class"] for r in described["classes"]]
    lines = [
        {
            "checkpoint": c["model"] if c["step"] is None else f"{c['model']} @{c['step']}",
            "tokens seen": c["tokens_seen"],
            **{k: None if nll[c["index"], k] is None else f"{nll[c['index'], k]:.3f}" for k in classes},
        }
        for c in described["checkpoints"]
    ]
    return lines, list(lines[0])


def _source_lines(records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    lines: dict[str, dict[str, Any]] = {}
    for r in records:
        line = lines.setdefault(r["group"], {"source": r["group"], "tokens": 0})
        line["tokens"] += r["tokens"]
        line[r["class"]] = _percent(r["share"])
    return list(lines.values()), list(next(iter(lines.values())))


def _percent(share: float | None, digits: int = 1) -> str | None:
    return None if share is None else f"{100 * share:.{digits}f} %"
