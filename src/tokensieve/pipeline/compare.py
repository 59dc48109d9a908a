"""``tokensieve compare``: the arms of an experiment in one table, with the axes named: tokens seen, tokens trained, FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..analysis.comparison import (
    RISE,
    curve,
    end,
    kept_by_source,
    reached,
    reached_cell,
    rise,
    rises,
    tokens_to_reach,
    verdicts,
)
from ..analysis.table import table
from ..modeling.folder import model_hash
from ..runs.errors import UserError
from ..runs.files import atomic_file, read_json, write_json
from ..runs.manifest import check_files, read_manifest
from ..runs.stage import stage
from ..runs.work import Work
from .configs.compare import KIND, NOT_WORK, CompareConfig
from .recipe.cost import Cost, Known

FILES = ("comparison.json", "table.txt", "table.md")


def run(config: CompareConfig) -> Path:
    """Write the comparison; keys of a row of ``comparison.json`` are those of :func:`compare`."""
    validate(config)
    out = Path(config.out)
    evaluated = read_manifest(config.evaluation, "evaluation")
    check_files(config.evaluation, evaluated)
    made_from = work(config)
    _check_weights(config, evaluated)
    with stage(out, made_from) as s:
        if s.done:
            return out
        rows = compare(config, read_json(Path(config.evaluation) / "evaluation.json"))
        s.bind()
        write_json(out / "comparison.json", rows)
        for name, markdown in (("table.txt", False), ("table.md", True)):
            with atomic_file(out / name, "w") as f:
                f.write(render(config, rows, markdown=markdown) + "\n")
        s.finish(FILES)
    return out


def work(config: CompareConfig) -> Work:
    """What says which comparison it is: the evaluation and the runs by their fingerprints, and what is shown of them."""
    inputs = {
        "evaluation": read_manifest(config.evaluation, "evaluation")["fingerprint"],
        "runs": {arm: read_manifest(folder, "model")["fingerprint"] for arm, folder in config.runs.items()},
    }
    if _was_there_before_its_end(config):
        inputs["tokens_to_end"] = "first reached"  # early versions divided all of the baseline's tokens
    return Work.of(KIND, config, NOT_WORK, inputs, arms=list(config.runs))


def _was_there_before_its_end(config: CompareConfig) -> bool:
    """Whether the baseline had its end's nll before its last checkpoint."""
    results = read_json(Path(config.evaluation) / "evaluation.json")
    points = sorted(curve(results, config.baseline, config.target, _on(config)))
    return bool(points) and tokens_to_reach(points, points[-1][1]) != points[-1][0]


def estimate(config: CompareConfig, known: Known) -> Cost:
    """Nothing to speak of."""
    return Cost()


def validate(config: CompareConfig) -> None:
    """Raise UserError if there are no arms, or the baseline is none of them."""
    if not config.runs:
        raise UserError("runs: name at least one arm")
    if config.baseline not in config.runs:
        raise UserError(f"baseline: {config.baseline!r} is none of the arms {', '.join(config.runs)}")


def _check_weights(config: CompareConfig, evaluated: Mapping[str, Any]) -> None:
    """The evaluation must be of the very weights that the runs hold: a run done again since would lend it its figures."""
    for arm, folder in config.runs.items():
        hashes = [found for name, _, found in evaluated["inputs"]["models"] if name == arm]
        if hashes and model_hash(folder) not in hashes:
            raise UserError(f"{config.evaluation} evaluated other weights under the name {arm!r} than {folder} holds")


def compare(config: CompareConfig, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row an arm: ``arm``, ``nll``, ``bits_per_byte``, ``tokens_seen``, ``tokens_trained``, ``flops_student``,
    ``flops_scoring``, ``flops_reference``, ``seconds``, ``kept_share_by_source``, ``speedup`` (tokens after which the
    baseline first was at its end's nll, over those after which this arm was; null if it never was), ``speedup_is_bound`` (it
    was there at its first checkpoint: at least so much), ``others`` (set -> nll); of a baseline whose curve rises ``lowest``;
    of an arm that was at the baseline's end and left it again ``ends_above``.

    Models that were evaluated but are no arm (base, reference, n-grams) come first, without a run's figures.
    """
    on = _on(config)
    baseline = curve(results, config.baseline, config.target, on)
    try:
        end(results, config.baseline, config.target, on)
        names = list(dict.fromkeys(r["model"] for r in results))
        rows = []
        for name in [n for n in names if n not in config.runs] + list(config.runs):
            record = end(results, name, config.target, on)
            row = {"arm": name, "nll": record["nll"], "bits_per_byte": record["bits_per_byte"]}
            row["others"] = {other: end(results, name, other, "all")["nll"] for other in config.others}
            if name in config.runs:
                row |= read_manifest(config.runs[name], "model", ("summary",))["summary"]
                found = reached(baseline, [] if name == config.baseline else curve(results, name, config.target, on))
                row["speedup"], row["speedup_is_bound"] = found.speedup, found.is_bound
                if found.speedup is not None and record["nll"] > baseline[-1][1] + RISE:
                    row["ends_above"] = True
                if name == config.baseline and (low := rise(baseline)):
                    row["lowest"] = {"tokens_seen": low[0], "nll": low[1]}
            rows.append(row)
    except KeyError as e:
        raise UserError(f"{config.evaluation}: {e.args[0]}") from None
    return rows


def render(config: CompareConfig, rows: list[dict[str, Any]], *, markdown: bool = False) -> str:
    """For people: the table of arms, what share of each source the selective ones kept, and last the verdict in words."""
    cells = [_cells(config, row) for row in rows]
    text = table(cells, list(cells[0]), markdown=markdown)
    if shares := kept_by_source(rows):
        percent = [{k: f"{v:.1%}" if isinstance(v, float) else v for k, v in row.items()} for row in shares]
        text += "\n\nshare of valid tokens kept, by source\n\n" + table(percent, list(percent[0]), markdown=markdown)
    said = verdicts([rows], config.baseline, config.target, _on(config))
    return "\n\n".join([text, *rises([rows], config.baseline), *said])


def _on(config: CompareConfig) -> str:
    return "solution" if config.solution else "all"


def _cells(config: CompareConfig, row: dict[str, Any]) -> dict[str, str | None]:
    def number(value: float | None, form: str, scale: float = 1.0) -> str | None:
        return None if value is None else format(value / scale, form)

    def flops(key: str) -> str | None:
        return number(row.get(key), ".2f", 1e12) or ("?" if key in row else None)

    is_other_arm = row["arm"] in config.runs and row["arm"] != config.baseline
    speedup = reached_cell([row]) if is_other_arm else None
    return {
        "arm": row["arm"],
        f"{config.target} nll": number(row["nll"], ".4f"),
        "bits/byte": number(row["bits_per_byte"], ".4f"),
        **{f"{other} nll": number(nll, ".4f") for other, nll in row["others"].items()},
        "Mtok seen": number(row.get("tokens_seen"), ".3f", 1e6),
        "Mtok trained": number(row.get("tokens_trained"), ".3f", 1e6),
        "student TFLOP": flops("flops_student"),
        "+ scoring": flops("flops_scoring"),
        "+ reference": flops("flops_reference"),
        "seconds": number(row.get("seconds"), ".0f"),
        f"tokens to {config.baseline}'s end": speedup,
    }
