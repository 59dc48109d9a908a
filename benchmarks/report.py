"""A report of a million tokens: how large the page is, and how long Chromium takes to open, scroll and search it.

    python benchmarks/report.py --tokens 1000000 --frames 6 --out runs/report-bench

Text and numbers are generated: words of Zipf's law, a random walk of nll for each token. Prints one JSON line. Needs
chromium, chromedriver and selenium. Times are wall-clock on the machine it runs on; take them when it is quiet.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from chromium import browser, open_page
from made_run import make_run

from tokensieve.pipeline import report
from tokensieve.pipeline.configs.report import ReportConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/report-bench"))
    args = parser.parse_args()
    run = args.out / f"{args.tokens}x{args.frames}"
    if not (run / "manifest.json").is_file():
        texts = {name: documents(args.tokens // 2, seed) for seed, name in enumerate(("one", "two"))}
        make_run(run, texts, length=256, vocab_size=16000, frames=args.frames, logged_rows=8)
    began = time.monotonic()
    page = Path(report.run(ReportConfig([str(run)], tokens=args.tokens + 100_000)))
    result: dict[str, Any] = {"build_seconds": round(time.monotonic() - began, 1)}
    result["megabytes"] = round(page.stat().st_size / 1e6, 2)
    data = json.loads(page.read_text("utf-8").split('id="explorer-data">')[1].split("</script>")[0])
    result["tokens"] = {view["name"]: view["tokens"] for view in data["views"]}
    opened = [measure(page) for _ in range(args.repeats)]
    result |= {key: round(float(np.median([o[key] for o in opened])), 3) for key in opened[0]}
    print(json.dumps(result))


def documents(tokens: int, seed: int) -> list[str]:
    """Documents of about 400 words, lines of 12."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlu"))
    words = ["".join(rng.choice(letters, size=int(rng.integers(2, 9)))) for _ in range(8000)]
    chances = 1 / np.arange(1, len(words) + 1)
    drawn = [words[i] for i in rng.choice(len(words), size=tokens, p=chances / chances.sum())]
    lines = [" ".join(drawn[i : i + 12]) for i in range(0, len(drawn), 12)]
    return ["\n".join(lines[i : i + 33]) for i in range(0, len(lines), 33)]


# Scrolls a page's height at every frame; the times between frames.
SCROLL = """
const done = arguments[0], pane = document.getElementById("pane"), gaps = [];
let last = performance.now(), n = 0;
function tick(now) {
  gaps.push(now - last); last = now;
  pane.scrollTop += 300;
  if (++n < 120) requestAnimationFrame(tick); else done(gaps.slice(1));
}
requestAnimationFrame(tick);
"""


SEARCH = """
const began = performance.now();
state.query = "etao"; rebuild(); state.query = ""; rebuild();
return performance.now() - began;
"""


def measure(page: Path) -> dict[str, float]:
    """Seconds until the first token stands on the page in a new browser, frames of a fast scroll, a search, most elements."""
    with browser(1280, 900) as driver:
        began = time.monotonic()
        open_page(driver, page, timeout=60)
        opened = time.monotonic() - began
        driver.set_script_timeout(60)
        gaps = driver.execute_async_script(SCROLL)
        elements = driver.execute_script("return document.getElementById('sheet').querySelectorAll('*').length")
        search = driver.execute_script(SEARCH)
        return {
            "open_seconds": opened,
            "frame_ms_median": float(np.median(gaps)),
            "frame_ms_95": float(np.quantile(gaps, 0.95)),
            "search_ms": search,
            "elements": elements,
        }


if __name__ == "__main__":
    main()
