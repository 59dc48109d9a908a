"""The page as a file: what is escaped, what it says, how large it is; and every folder that is no run."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from made_run import make_run, planted

from tokensieve.analysis.folders import Arm, open_run
from tokensieve.data.corpus import open_corpus
from tokensieve.pipeline.report import ReportConfig, run
from tokensieve.report.explorer import NONE, encoded, kept, quantised, views
from tokensieve.report.page import HERE, TEMPLATES, _facts, _seen, _target, embedded
from tokensieve.report.pieces import PieceTable
from tokensieve.report.verdict import verdict
from tokensieve.runs.errors import UserError

ALLOWED = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "link",
        "style",
        "script",
        "body",
        "header",
        "main",
        "nav",
        "section",
        "aside",
        "div",
    ),
    *(
        "p",
        "h1",
        "h2",
        "h3",
        "a",
        "span",
        "dl",
        "dt",
        "dd",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "figure",
        "figcaption",
    ),
    *(
        "button",
        "label",
        "select",
        "input",
        "output",
        "svg",
        "g",
        "path",
        "defs",
        "use",
        "text",
        "tspan",
        "clippath",
        "rect",
    ),
}


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements(page: Path) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(page.read_text("utf-8"))
    return parser.found


def data_of(page: Path) -> Any:
    return json.loads(page.read_text("utf-8").split('id="explorer-data">')[1].split("</script>")[0])


def column(view: Any, name: str, dtype: str) -> np.ndarray:
    return np.frombuffer(gzip.decompress(base64.b64decode(view["columns"][name])), dtype)


@pytest.fixture(params=["page", "hostile"])
def either(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_only_known_elements_and_no_handlers(either: Path) -> None:
    """Whatever names of runs, sources and documents hold, the page has the elements that we wrote, and no other."""
    for tag, attributes in elements(either):
        assert tag in ALLOWED, (tag, attributes)
        assert not [a for a in attributes if a.startswith("on") or a == "style"], (tag, attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
    assert sum(tag == "script" for tag, _ in elements(either)) == 2


def test_ids_are_unique(either: Path) -> None:
    """Every figure of matplotlib has a "patch_1"; two in a page make clip paths and links hit the wrong one."""
    ids = [a["id"] for _, a in elements(either) if "id" in a]
    assert len(ids) == len(set(ids))
    whole = either.read_text("utf-8")
    used = set(re.findall(r"url\(#([^)]*)\)", whole)) | {
        h[1:] for _, a in elements(either) if (h := a.get("href") or "")[:1] == "#"
    }
    assert used <= set(ids)


def test_the_policy_names_what_is_there(page: Path) -> None:
    whole = page.read_text("utf-8")
    policy = next(str(a["content"]) for tag, a in elements(page) if tag == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, source in (("script", whole.split("<script>")[1]), ("style", whole.split("<style>")[1])):
        digest = base64.b64encode(hashlib.sha256(source.split(f"</{kind}>")[0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


@settings(max_examples=40)  # trees of text are dear to draw, and what could go wrong is of a character
@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=9,
    )
)
def test_embedded_json_is_the_data(value: Any) -> None:
    dumped = embedded(value)
    assert json.loads(dumped) == value
    assert not set(dumped) & set("<>&\u2028\u2029")


@given(st.text())
def test_text_is_text(value: str) -> None:
    """Whatever a template is handed, in an element or in an attribute: one forgotten call of an escape let a name in."""
    made = TEMPLATES.from_string("<p title='{{ value }}'>{{ value }}</p>").render(value=value)
    parser = Elements()
    parser.feed(made)
    assert [(tag, list(attributes)) for tag, attributes in parser.found] == [("p", ["title"])]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00-\x08]", made)


def test_templates_escape_everything() -> None:
    """`|safe`, or a block with escaping off, would undo that for one place of the page and for no test."""
    templates = sorted(HERE.glob("*.html"))
    assert [t.name for t in templates] == ["explorer.html", "page.html", "parts.html"]
    for template in templates:
        assert not re.search(r"\|\s*safe|autoescape", template.read_text("utf-8"))
    assert TEMPLATES.autoescape is True


def test_a_name_that_nobody_hands_over_is_an_error() -> None:
    """A misspelt name left an empty place on the page, or KeyError where it was filled in by hand."""
    with pytest.raises(UndefinedError, match="'verdcit' is undefined"):
        TEMPLATES.from_string("<p>{{ verdcit }}</p>").render(verdict="x")


def test_the_same_run_gives_the_same_page(made: Path, page: Path, tmp_path: Path) -> None:
    """A moved run, too: dates, hash seeds, paths or a clock in a page make every commit of it a change."""
    shutil.copytree(made, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("report.html", "figures", "*.tmp"))
    moved = Path(run(ReportConfig([str(tmp_path / "elsewhere")])))
    assert moved == tmp_path / "elsewhere" / "report.html"
    assert moved.read_bytes() == page.read_bytes()
    for figure in sorted((made / "figures").iterdir()):
        assert (moved.parent / "figures" / figure.name).read_bytes() == figure.read_bytes()


def test_figures_for_papers(made: Path, page: Path) -> None:
    names = {f.stem for f in (made / "figures").iterdir()}
    wanted = {"target-seen", "target-trained", "target-flops", "forgetting-1", "kept-by-source", "kept-by-position"}
    wanted |= {"kept-dropped-rho1", "against-target-rho1", "excess-rho1", "threshold-rho1"}
    wanted |= {
        "dynamics-classes",
        "dynamics-curves",
        "dynamics-samples",
        "dynamics-selection",
        "dynamics-kept-by-class",
    }
    assert names == wanted
    for name in names:
        bits = (made / "figures" / f"{name}.png").read_bytes()
        assert bits.startswith(b"\x89PNG")
        assert int.from_bytes(bits[16:20]) == 700  # 3.5 inches of 200 dots; the SVG, drawn first, has 72 of its own
        assert f'id="figure-{name}"' in page.read_text("utf-8")
        drawn = (made / "figures" / f"{name}.svg").read_text("utf-8")
        assert "<text" in drawn  # text stays text: it can be searched, and set in a paper's own font


def test_columns_hold_the_log(made: Path, page: Path) -> None:
    """Every value of the page's first view against what was planted, to the hundredth of a nat."""
    view = data_of(page)["views"][0]
    corpus = open_corpus(made / "corpus")
    nll, ref = planted(corpus, 5)
    spans = [(int(d), n) for d, n in zip(view["docs"]["row"], view["docs"]["tokens"], strict=True)]
    assert sum(n for _, n in spans) == view["tokens"] == corpus.stats["tokens"]
    length, start, values, shown = corpus.length, 0, column(view, "nll", "<u2"), column(view, "ref", "<u2")
    for i, (row, count) in enumerate(spans):
        at = row * length + view["docs"]["position"][i]
        mine = values[start * 5 : (start + count) * 5].reshape(5, count)
        assert np.array_equal(mine, quantised(nll.reshape(5, -1)[:, at : at + count]))
        assert np.array_equal(shown[start : start + count], quantised(ref.reshape(-1)[at : at + count]))
        start += count
    assert (values == NONE).sum() == 5 * corpus.num_rows


def test_numbers_survive_packing() -> None:
    nll = np.array([0.0, 0.004, 1.234, 11.0, 655.34, 9999.0, np.nan], np.float32)
    assert quantised(nll).tolist() == [0, 0, 123, 1100, 65534, 65534, NONE]
    for dtype in (np.uint8, np.uint16, np.uint32):
        values = np.arange(200, dtype=dtype)
        assert np.array_equal(
            np.frombuffer(gzip.decompress(base64.b64decode(encoded(values))), np.dtype(dtype).newbyteorder("<")), values
        )


def test_kept_is_the_methods() -> None:
    """floor(ratio * n + 0.5) of the valid ones, ties to the earlier: as core selects, and as dynamics counts."""
    score = np.array([[1.0, np.nan, 3.0], [3.0, 2.0, 3.0]])
    assert kept(score, 0.5).tolist() == [[0, 0, 1], [1, 0, 1]]
    assert kept(score, 0.3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert kept(score, 0.01).sum() == 1
    assert kept(np.full(3, np.nan), 0.5).sum() == 0


def test_what_is_left_out_is_said(made: Path) -> None:
    found = views(open_run(made), PieceTable(), 700, 10**9)
    assert 0 < sum(v["tokens"] for v in found) <= 700
    for view in found:
        said = re.search(r"A random ([\d,]+) of ([\d,]+) passages, ([\d,]+) of ([\d,]+) tokens", view["note"])
        assert said is not None
        assert int(said[3]) == view["tokens"] == sum(view["docs"]["tokens"])


def test_a_page_keeps_to_its_size(made: Path) -> None:
    found = views(open_run(made), PieceTable(), 10**9, 10_000)
    assert 1000 < sum(len(c) for view in found for c in view["columns"].values()) <= 12_000


# --- the verdict -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs, as a study leaves it: rho1 ends 0.3, 0.2 and 0.1 below clm."""
    root = tmp_path_factory.mktemp("study")
    for seed, gain in enumerate((0.3, 0.2, 0.1)):
        make_run(root / f"seed-{seed}", {"plain": ["some words and some more words"] * 9}, seed=seed, gain=gain)
    return root


def test_verdict_of_one_seed(made: Path) -> None:
    said = verdict([open_run(made)])
    assert said == (
        "One seed decides nothing: rho1 ends 0.200 nats below clm and 0.300 nats below random on target, at equal tokens seen "
        "and 1.60 times clm's total compute, scoring and reference included."
    )


def test_verdict_of_seeds(seeds: Path) -> None:
    """Mean of paired differences and half of its 95 % interval: sd .1 over sqrt(3), times Student's 4.303."""
    page = Path(run(ReportConfig([str(seeds)])))
    assert page == seeds / "report.html"
    said = re.search(r'id="verdict">([^<]*)<', page.read_text("utf-8"))
    assert said is not None
    assert said[1].startswith(
        "Cannot tell with these seeds: rho1 ends 0.200 ± 0.248 nats below clm and 0.300 ± 0.248 nats"
    )
    assert "(± is half of the 95 % t interval over 3 seeds, paired)" in said[1]
    assert "Means over 3 seeds; ± is half of the 95 % t interval over seeds." in page.read_text("utf-8")
    assert "<td>4.8000 ± 0.2484</td>" in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("gains", "opening"),
    [
        ((-0.2,), "One seed decides nothing:"),
        ((-0.2, -0.19), "Does not pay in total compute:"),
        ((0.3, -0.2), "Cannot tell with these seeds:"),
        ((0.2, 0.19), "Better, but dearer in total compute:"),
    ],
)
def test_verdict_is_honest(gains: tuple[float, ...], opening: str, tmp_path: Path) -> None:
    """A report that calls every difference a gain would call noise and losses one."""
    runs = [make_run(tmp_path / f"seed-{i}", {"plain": ["a b"]}, gain=g, seed=i) for i, g in enumerate(gains)]
    assert verdict([open_run(r) for r in runs]).startswith(opening)


def test_arms_that_saw_other_numbers_of_tokens() -> None:
    """A page of equal compute said of each arm what the one that went on for longest had seen."""
    assert _seen([642_600, 642_600]) == ("tokens seen by each arm", "642,600")
    assert _seen([642_600, 1_019_000, 642_600]) == ("tokens seen by an arm", "642,600 to 1,019,000")


def test_tokens_seen_are_those_of_the_table() -> None:
    """The table charged an annealed arm with its first part; the facts below said that it had seen the last alone."""
    arms = [Arm(name, Path(), {"summary": {"tokens_seen": seen}}, []) for name, seen in (("clm", 100), ("anneal", 10))]
    rows = [{"arm": "clm", "tokens_seen": 100}, {"arm": "anneal", "tokens_seen": 100}]
    run: Any = SimpleNamespace(name="r", seed=0, arms=arms, rows=rows, corpora=[], target="", manifest={"versions": {}})
    assert ("tokens seen by each arm", "100") in _facts([run])


def test_a_target_that_is_a_mean_names_its_sets() -> None:
    """The page said "mean, 0 tokens" of a study whose target is the mean of two sets."""
    results = [{"set": name, "on": "all", "tokens": n} for name, n in (("a", 1200), ("b", 30))]
    run: Any = SimpleNamespace(target="mean", on="all", results=results, compared={"mean": ["a", "b"]})
    assert _target(run) == ("target", "mean of a (1,200 tokens), b (30 tokens)")
    assert _target(SimpleNamespace(**{**vars(run), "target": "a"})) == ("target set", "a, 1,200 tokens")  # type: ignore[arg-type]


# --- what is no run --------------------------------------------------------------------------------------------------------


def test_a_training_run_alone(made: Path, tmp_path: Path) -> None:
    """A lone run has no comparison; with its corpus and scores named it still has tokens to look at."""
    bare = Path(run(ReportConfig([str(made / "rho1")], out=str(tmp_path / "bare.html"))))
    assert data_of(bare)["views"] == []
    assert "This run compares no arms" in bare.read_text("utf-8")
    given = ReportConfig([str(made / "rho1")], str(tmp_path / "x.html"), str(made / "corpus"), str(made / "scores"))
    (view,) = data_of(Path(run(given)))["views"]
    assert set(view["columns"]) == {"piece", "nll", "keep", "ref"}


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ([], "runs: name a folder"),
        (["{made}/corpus"], "holds 'corpus': a folder that run or train wrote is needed"),
        (["{made}/nothing"], "nothing does not exist"),
        (["{made}/figures"], "has no manifest.json"),
        (["{made}", "{made}"], "is the same run as another one given: a seed counts once"),
        (["{made}", "{made}/rho1"], "is another experiment than"),
    ],
)
def test_what_is_wrong(folders: list[str], said: str, made: Path, page: Path) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        run(ReportConfig([f.format(made=made) for f in folders]))


def test_a_damaged_run(made: Path, tmp_path: Path) -> None:
    """A log that was cut short must not give a page of what is left of it."""
    shutil.copytree(made, tmp_path / "cut", ignore=shutil.ignore_patterns("*.tmp"))
    with open(tmp_path / "cut" / "rho1" / "tokens.jsonl", "a") as f:
        f.write("\n")
    with pytest.raises(UserError, match=r"tokens\.jsonl has \d+ bytes"):
        run(ReportConfig([str(tmp_path / "cut")]))
