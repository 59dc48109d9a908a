"""Screenshots of a run's report for the documentation: light, dark, narrow, and the token explorer of each.

    python benchmarks/screenshots.py runs/demo/report.html --out docs

Needs chromium, chromedriver and selenium. The pictures are for people; the page is tested elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from chromium import browser, open_page, prefer, resize
from selenium.webdriver.common.keys import Keys

# name -> scheme, width, height, the element at the top of the picture, what the tokens are coloured by
FOCUSED = 24  # the token whose numbers are shown
SHOTS = {
    "light": ("light", 1280, 1400, "body", None),
    "dark": ("dark", 1280, 1000, "#explorer", "excess"),
    "narrow": ("light", 375, 1000, "#explorer", "kept"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    with browser() as driver:
        for name, shot in SHOTS.items():
            take(driver, args.page, args.out / f"report-{name}.png", *shot)


def take(driver: Any, page: Path, out: Path, scheme: str, width: int, height: int, top: str, by: str | None) -> None:
    resize(driver, width, height)
    prefer(driver, scheme)
    open_page(driver, page)
    if by is not None:
        driver.execute_script("const s = document.getElementById('mode'); s.value = arguments[0];"
                              "s.dispatchEvent(new Event('change', {bubbles: true}))", by)  # fmt: skip
        driver.find_element("id", "pane").send_keys(*[Keys.ARROW_RIGHT] * FOCUSED)
    driver.execute_script("document.querySelector(arguments[0]).scrollIntoView()", top)
    driver.save_screenshot(str(out))


if __name__ == "__main__":
    main()
