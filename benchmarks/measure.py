"""What the benchmarks share: rounds A B C A B C ..., ratios within a round, peak memory, dated results files.

A time alone says little on a machine that others use; the ratio of two things timed seconds apart, again and again, does.
"""

from __future__ import annotations

import datetime
import gc
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tokensieve.analysis.table import table
from tokensieve.runs.files import write_json
from tokensieve.runs.versions import versions

Call = Callable[[], Any]


def interleaved(calls: dict[str, Call], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each call in each round; one more round before them warms up. The order turns by one each round."""
    names, seconds = list(calls), {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken = timed(calls[name], device)
            if number:
                seconds[name].append(taken)
    return seconds


def timed(call: Call, device: str = "cpu") -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory(call: Call, device: str = "cpu") -> int:
    """Peak bytes of tensors during the call, above what was there before."""
    gc.collect()  # a trainer is a cycle: the optimizer state of the one before, freed during the call, counted as a gain
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def ratios(seconds: dict[str, list[float]], name: str, base: str) -> list[float]:
    """A call's time over another's, round by round."""
    return [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]


def spread(values: list[float]) -> str:
    """``median (lowest-highest)``"""
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def report(name: str, title: str, about: str, tables: list[list[dict[str, str]]], records: Any, *, save: bool) -> None:
    """Print Markdown tables; with ``save`` also write benchmarks/results/<name>-<date>-<device>.{md,json}."""
    where = environment()
    shown = "\n\n".join(table(rows, list(rows[0]), markdown=True) for rows in tables if rows)
    text = f"{about}\n\n{shown}\n\n" + ", ".join(f"{k} {v}" for k, v in where.items())
    print("\n" + text)
    if not save:
        return
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    device = torch.cuda.get_device_name().replace(" ", "-").lower() if torch.cuda.is_available() else "cpu"
    stem = folder / f"{name}-{datetime.date.today().isoformat()}-{device}"
    stem.with_suffix(".md").write_text(f"# {title}\n\n{text}\n", encoding="utf-8")
    write_json(stem.with_suffix(".json"), {"environment": where, "records": records})


def environment() -> dict[str, str]:
    """When and on what."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    found = versions()
    keep = {k: found[k] for k in ("tokensieve", "torch", "transformers", "python", "revision") if k in found}
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    return {
        "on": datetime.date.today().isoformat(),
        "cpu": cpu or platform.processor(),
        "cores": str(os.cpu_count()),
        "threads": threads,
        "allocator": Path(os.environ.get("LD_PRELOAD") or "the system's").name,
        **keep,
    }
