"""The page in a real browser: what a reader sees is what the data says, and what a text says is only ever text."""

from __future__ import annotations

import base64
import gzip
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
from made_run import logged_keep, logged_rows_of, planted, planted_classes

from tokensieve.data.corpus import open_corpus
from tokensieve.report.explorer import kept

# What each token of the pane says: its index in the view, its text, its class, and what is really painted.
TOKENS = """
return [...document.querySelectorAll("#sheet .t")].map((t) => {
  const style = getComputedStyle(t);
  return { index: t.token, text: t.textContent, name: t.className, background: style.backgroundColor, opacity: style.opacity };
});
"""
# The scale as it is painted: the background of a class.
PAINT = """
const probe = document.createElement("span");
document.body.append(probe);
probe.className = arguments[0];
const found = getComputedStyle(probe).backgroundColor;
probe.remove();
return found;
"""
# Until a change is drawn: a search waits a moment for the next key, resizing for the last of a stream of events.
WAIT = "const done = arguments[1]; setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), arguments[0]);"


@pytest.fixture
def tab(driver: Any, page: Path) -> Any:
    """The page, newly opened, light and wide; what the console and the network said before is forgotten."""
    chromium.resize(driver, 1280, 900)
    chromium.prefer(driver, "light")
    chromium.console(driver)
    chromium.requests(driver)
    chromium.open_page(driver, page)
    return driver


def choose(driver: Any, control: str, value: object) -> None:
    """Set a control as a user's choice would, and wait until it is drawn."""
    driver.execute_script(
        "const c = document.getElementById(arguments[0]); c.value = arguments[1];"
        "c.dispatchEvent(new Event('input')); c.dispatchEvent(new Event('change'));",
        control,
        str(value),
    )
    driver.execute_async_script(WAIT, 150 if control == "search" else 0)


def tokens(driver: Any) -> list[dict[str, Any]]:
    return list(driver.execute_script(TOKENS))


def values_of(made: Path, frame: int) -> dict[str, np.ndarray]:
    """Planted columns of the dynamics view at a frame, a value a token of the corpus, padding left out."""
    corpus = open_corpus(made / "corpus")
    nll, ref = (v.astype(np.float64) for v in planted(corpus, 5))
    keep = np.stack([kept(n.astype(np.float32) - ref.astype(np.float32), 0.6) for n in nll])
    real = np.arange(corpus.length) < np.asarray(corpus.rows["num_tokens"])[:, None]
    columns = {
        "nll": nll[frame],
        "ref": ref,
        "excess": nll[frame] - ref,
        "kept": keep[frame],
        "cls": planted_classes(nll),
    }
    columns["trajectory"] = np.polyfit(np.arange(5), np.nan_to_num(nll).reshape(5, -1), 1)[0].reshape(ref.shape) * 4
    return {name: values[real] for name, values in columns.items()}


def test_no_errors_and_no_requests(tab: Any, page: Path) -> None:
    """A page that loads a font or a library from somewhere else tells that place who reads it, and fails offline."""
    assert chromium.console(tab) == []
    addresses = [a for a in chromium.requests(tab) if not a.startswith("data:")]
    assert addresses == [page.resolve().as_uri()]
    loaded = tab.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_the_policy_is_in_force(tab: Any) -> None:
    """A policy that is never applied looks the same: a script and a style put in from outside must do nothing."""
    tab.execute_script(
        'const made = \'<p id=injected style="color: rgb(1, 2, 3)" onclick="window.ran = 1">x</p>\';'
        "document.body.insertAdjacentHTML('beforeend', made);"
        "const s = document.createElement('script'); s.textContent = 'window.ran = 2'; document.body.append(s);"
        "document.getElementById('injected').click();"
    )
    assert tab.execute_script("return window.ran") is None
    assert tab.execute_script("return getComputedStyle(document.getElementById('injected')).color") != "rgb(1, 2, 3)"
    assert "Content Security Policy" in " ".join(chromium.console(tab))


@pytest.mark.parametrize("frame", [4, 1])
@pytest.mark.parametrize(
    ("mode", "prefix", "edges"),
    [
        ("nll", "n", [0.25, 0.75, 1.5, 2.5, 3.5, 5, 7]),
        ("ref", "n", [0.25, 0.75, 1.5, 2.5, 3.5, 5, 7]),
        ("excess", "x", [-2, -1, -0.5, -0.1, 0.1, 0.5, 1, 2]),
        ("trajectory", "x", [-2, -1, -0.5, -0.2, 0.2, 0.5, 1, 2]),
        ("kept", "k", None),
        ("cls", "c", None),
    ],
)
def test_colours_are_the_data(tab: Any, made: Path, mode: str, prefix: str, edges: Any, frame: int) -> None:
    """Colours one token off, of another frame, or of the wrong sign would look just as convincing."""
    choose(tab, "mode", mode)
    choose(tab, "step", frame)
    values, seen = values_of(made, frame)[mode], tokens(tab)
    assert len(seen) > 100
    undefined = np.isnan(values_of(made, frame)["nll"])
    checked: dict[str, str] = {}
    for token in seen:
        value = values[token["index"]]
        if undefined[token["index"]]:
            style = "na"
        elif edges is None:
            style = f"{prefix}{int(value)}"
        elif np.abs(np.array(edges) - value).min() < 0.025:  # hundredths of a nat may fall on either side of an edge
            continue
        else:
            style = f"{prefix}{int((np.array(edges) <= value).sum())}"
        assert style in token["name"].split(), (token, value)
        if style not in checked:
            checked[style] = tab.execute_script(PAINT, style)
        assert token["background"] == checked[style]
    assert len(checked) > 2


def test_the_slider_changes_colours(tab: Any) -> None:
    choose(tab, "mode", "nll")
    before = [t["background"] for t in tokens(tab)]
    choose(tab, "step", 0)
    after = [t["background"] for t in tokens(tab)]
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) > len(before) / 10
    assert "step 5" in tab.execute_script("return document.getElementById('frame').textContent")


def test_the_log_of_a_run(tab: Any, made: Path) -> None:
    """At a logged step its rows are shown, with what was kept of them; "every step" shows the rows of all."""
    names = tab.execute_script("return [...document.getElementById('view').options].map((o) => o.text)")
    choose(tab, "view", names.index("rho1, training log"))
    corpus = open_corpus(made / "corpus")
    nll, ref = planted(corpus, 5)
    everything = tab.execute_script("return sheet.blocks.reduce((n, b) => n + b.to - b.from, 0)")
    choose(tab, "step", 1)
    assert "step 10" in tab.execute_script("return document.getElementById('frame').textContent")
    rows = sorted(set(logged_rows_of(10, 6, corpus.num_rows)))
    keep = logged_keep(nll[2], ref, "rho1")[rows]
    counts = np.asarray(corpus.rows["num_tokens"])[rows]
    assert tab.execute_script("return sheet.blocks.reduce((n, b) => n + b.to - b.from, 0)") == counts.sum() < everything
    tab.execute_script("document.getElementById('pane').style.height = '30000px'")
    choose(tab, "kept", "1")
    names = [t["name"].split() for t in tokens(tab)]
    assert sum("k1" in n for n in names) == keep.sum()
    assert all(("off" in n) is ("k1" not in n) for n in names)


def test_filters_and_search(tab: Any, made: Path) -> None:
    total = tab.execute_script("return state.view.docs.length")

    def shown() -> list[str]:
        return list(tab.execute_script("return [...new Set(sheet.blocks.map((b) => b.doc.name))]"))

    assert len(shown()) == total == 15
    choose(tab, "source", 1)
    assert shown() == [f"noise/{i}" for i in range(6)]
    choose(tab, "source", "")
    choose(tab, "search", "ZEBRA")
    assert shown() == ["plain/8"]
    hits = "".join(t["text"] for t in tokens(tab) if "hit" in t["name"].split())
    assert hits.lower().count("zebra") == 2
    assert len(hits) < 24
    choose(tab, "search", "no such text")
    assert shown() == []
    assert tab.find_element("id", "empty").is_displayed()
    choose(tab, "search", "")
    choose(tab, "class", 1)
    bright = {t["index"] for t in tokens(tab) if "off" not in t["name"].split()}
    rising = np.flatnonzero(values_of(made, 4)["cls"] == 1)
    assert bright
    assert bright == {t["index"] for t in tokens(tab)} & set(rising.tolist())


def test_sorting(tab: Any) -> None:
    """Sorted the wrong way round, the least surprising text would be shown as the most."""
    choose(tab, "sort", "excessDown")
    means = tab.execute_script(
        "return [...new Set(sheet.blocks.map((b) => b.doc))].map((d) => {"
        "  let sum = 0, n = 0;"
        "  for (let i = d.start; i < d.end; i++) {"
        "    const e = valuesOf(d, i).excess;"
        "    if (e !== null) { sum += e; n++; }"
        "  }"
        "  return sum / n; })"
    )
    assert len(means) == 15
    assert means == sorted(means, reverse=True)
    assert means[0] - means[-1] > 0.05
    heads = tab.execute_script("return document.querySelector('.head').textContent")
    assert f"mean excess {means[0]:+.2f}".replace("-", "−") in heads


def test_keyboard(tab: Any, made: Path) -> None:
    """Arrow keys walk over tokens, the card shows their numbers, and all of it is reached without a mouse."""
    from selenium.webdriver.common.keys import Keys

    pane = tab.find_element("id", "pane")
    tab.execute_script("document.getElementById('pane').focus()")
    assert tab.execute_script("return document.activeElement.id") == "pane"
    for _ in range(6):
        pane.send_keys(Keys.ARROW_RIGHT)
    pane.send_keys(Keys.ARROW_LEFT)
    here = tab.execute_script("return [...document.querySelectorAll('.here')].map((t) => [t.token, t.textContent])")
    assert [index for index, _ in here] == [4]
    assert pane.get_attribute("aria-activedescendant") == tab.execute_script(
        "return document.querySelector('.here').id"
    )
    values = {name: float(v[4]) for name, v in values_of(made, 4).items()}
    card = dict(
        re.findall(r"^(student nll|reference nll|excess|trajectory)\n(.*)$", tab.find_element("id", "card").text, re.M)
    )
    assert set(card) == {"student nll", "reference nll", "excess", "trajectory"}
    for name, key in (
        ("student nll", "nll"),
        ("reference nll", "ref"),
        ("excess", "excess"),
        ("trajectory", "trajectory"),
    ):
        assert float(card[name].replace("−", "-")) == pytest.approx(values[key], abs=0.025)
    points = tab.execute_script("return document.querySelector('.spark').getAttribute('points').split(' ').length")
    assert points == 5
    pane.send_keys("[")
    assert "step 20" in tab.execute_script("return document.getElementById('frame').textContent")


def test_hover(tab: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    word = tab.find_elements("css selector", "#sheet .t")[20]
    ActionChains(tab).scroll_to_element(word).move_to_element(word).perform()
    assert tab.execute_script("return document.querySelector('.word').textContent").strip() == word.text.strip()


def test_scrolling_keeps_few_elements_and_shows_all_the_text(tab: Any, made: Path) -> None:
    """A window that forgets blocks, or shows one twice, loses text that nobody misses."""
    corpus = open_corpus(made / "corpus")
    seen: dict[int, str] = {}
    for _ in range(400):
        for token in tokens(tab):
            assert seen.setdefault(token["index"], token["text"]) == token["text"]
        if tab.execute_script(
            "const p = document.getElementById('pane'), before = p.scrollTop; p.scrollTop += p.clientHeight * 0.8;"
            "draw(); return p.scrollTop === before"
        ):
            break
    text = "".join(seen[i] for i in sorted(seen))
    assert text == "".join(corpus.tokenizer().decode(np.concatenate(list(corpus.contexts()))))


@pytest.mark.parametrize(("width", "scheme"), [(375, "light"), (375, "dark"), (1920, "light")])
def test_no_sideways_scrolling(tab: Any, width: int, scheme: str) -> None:
    chromium.prefer(tab, scheme)
    chromium.resize(tab, width, 800)
    tab.execute_async_script(WAIT, 200)
    assert tab.execute_script("return innerWidth") == width
    page = tab.execute_script("const p = document.documentElement; return [p.scrollWidth, p.clientWidth]")
    assert page[0] <= page[1]
    pane = tab.execute_script("const p = document.getElementById('pane'); return [p.scrollWidth, p.clientWidth]")
    assert pane[0] <= pane[1]


def luminance(colour: str) -> float:
    channels = [float(c) / 255 for c in re.findall(r"[\d.]+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


CONTRAST = """
const probe = document.createElement("span");
probe.className = "t " + arguments[0];
document.getElementById("sheet").append(probe);
const style = getComputedStyle(probe), paper = getComputedStyle(document.body).backgroundColor;
const found = [style.color, style.backgroundColor === "rgba(0, 0, 0, 0)" ? paper : style.backgroundColor];
probe.remove();
return found;
"""
STYLES = [*(f"n{i}" for i in range(8)), *(f"x{i}" for i in range(9)), *(f"c{i}" for i in range(4)), "k0", "k1", "na"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_every_colour(tab: Any, scheme: str) -> None:
    """A contrast of 4.5 (WCAG AA) on each colour of each scale, in both schemes; no scale sets red against green."""
    chromium.prefer(tab, scheme)
    for style in STYLES:
        ink, ground = (luminance(c) for c in tab.execute_script(CONTRAST, style))
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5, style


def test_dark_mode_and_its_switch(tab: Any) -> None:
    def paper() -> float:
        return luminance(tab.execute_script("return getComputedStyle(document.body).backgroundColor"))

    assert paper() > 0.9
    chromium.prefer(tab, "dark")
    assert paper() < 0.05
    tab.find_element("id", "theme").click()
    assert paper() > 0.9
    tab.find_element("id", "theme").click()
    assert paper() < 0.05


def test_hostile_text_stays_text(driver: Any, hostile: Path) -> None:
    """Scripts, handlers, the end of the script element, U+2028 and bidirectional controls in text, names and sources."""
    chromium.console(driver)
    chromium.requests(driver)
    chromium.open_page(driver, hostile)
    pieces: dict[int, str] = {}
    for place in range(0, 60_000, 500):
        driver.execute_script("document.getElementById('pane').scrollTop = arguments[0]; draw()", place)
        pieces |= {t["index"]: t["text"] for t in tokens(driver)}
    text = "".join(pieces[i] for i in sorted(pieces))
    assert driver.execute_script("return window.pwned") is None
    assert chromium.console(driver) == []
    assert [a for a in chromium.requests(driver) if not a.startswith("data:")] == [hostile.resolve().as_uri()]
    assert driver.execute_script("return document.querySelectorAll('#sheet .t *, .head *:not(span)').length") == 0
    assert (
        driver.execute_script("return document.querySelectorAll('main script, main img, main iframe, main b').length")
        == 0
    )
    assert "</script><script>window.pwned = 2</script>" in text
    assert '<img src=x onerror="window.pwned = 3">' in text
    assert "<U+202E>right to left override<U+202C>" in text
    assert "line <U+2028> and paragraph <U+2029> separators" in text
    assert "👩‍👩‍👧 and 🏳️‍🌈, 数学, naïve, שלום, e\u0301, \ufffd genuine" in text
    assert "a" * 10_000 in text
    assert not [c for c in text if unicodedata.category(c) == "Cf" and c != "\u200d"]
    assert (
        driver.execute_script("return document.title") == "</title><script>window.pwned = 7</script>: tokensieve report"
    )


def test_characters_are_whole(page: Path, hostile: Path) -> None:
    """Tokens of single bytes decoded one by one show U+FFFD for every emoji; here one string has all of each."""
    data = json.loads(hostile.read_text("utf-8").split('id="explorer-data">')[1].split("</script>")[0])
    raw = gzip.decompress(base64.b64decode(data["views"][0]["columns"]["piece"]))
    pieces = [data["pieces"][i] for i in np.frombuffer(raw, "<u4")]
    assert "👩" in "".join(pieces)
    assert [p for p in pieces if "\ufffd" in p] == ["\ufffd"]  # the one that stands in the text
