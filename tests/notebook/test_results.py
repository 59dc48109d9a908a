"""Results in a notebook: the numbers of the files, what Jupyter is shown, and examples/results.ipynb from top to bottom."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from made_run import logged_keep, make_run, planted

import tokensieve as ts
from tokensieve.data.corpus import open_corpus
from tokensieve.notebook.results import Comparison, TokenRow
from tokensieve.runs.errors import UserError

SOURCE = Path(ts.__file__).parents[1]
NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "results.ipynb"
HOSTILE = '<script>alert(1)</script> & "quoted" \u202e reversed\nnext'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = "the token that is worth its loss is kept and every other one is dropped"
    texts = {"plain": [f"{words} {i}" for i in range(12)], "hostile": [HOSTILE * 3]}
    return make_run(tmp_path_factory.mktemp("notebook") / "run", texts)


class Text(HTMLParser):
    """The text, elements and titles of a piece of HTML."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.elements, self.titles = "", set[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.titles += [value or "" for name, value in attrs if name == "title"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_frames_are_the_files(made: Path) -> None:
    run = ts.read_run(made)
    assert run.arms == ["clm", "random", "rho1"]
    steps = run.steps
    for arm in run.arms:
        lines = [json.loads(line) for line in (made / arm / "tokens.jsonl").read_text().splitlines()]
        mine = steps[steps["arm"] == arm]
        assert mine["step"].tolist() == [line["step"] for line in lines]
        assert mine["nll"].tolist() == [line["nll"] for line in lines]
    records = json.loads((made / "evaluation" / "evaluation.json").read_text())
    assert run.evaluation["nll"].tolist() == [r["nll"] for r in records]
    rows = json.loads((made / "table" / "comparison.json").read_text())
    frame = run.comparison.frame
    assert frame["arm"].tolist() == [r["arm"] for r in rows]
    assert frame["others.other"].tolist() == [r["others"]["other"] for r in rows]


def test_tokens_and_a_row_are_what_was_logged(made: Path) -> None:
    run = ts.read_run(made)
    tokens = run.tokens("rho1")
    assert set(tokens["step"]) == {1, 10, 20}
    corpus = open_corpus(made / "corpus")
    nll, ref = (v.astype(np.float64) for v in (planted(corpus, 4)[0][-1], planted(corpus, 4)[1]))
    row = run.tokens("rho1", 20)[0]["row"]
    shown = run.row("rho1", row)
    frame = shown.frame
    there = ~np.isnan(ref[row][: len(frame)])
    assert shown.by == "kept"
    assert "".join(frame["token"]) == corpus.tokenizer().decode(corpus.rows[row]["input_ids"][: len(frame)])
    assert np.array_equal(frame["ref_nll"][there], ref[row][: len(frame)][there])
    assert np.allclose(frame["excess"][there], (frame["nll"] - frame["ref_nll"])[there])
    logged = run.tokens("rho1", 20).to_pandas()
    logged = logged[logged["row"] == row].set_index("position")
    assert frame["kept"][there].astype(bool).tolist() == [bool(logged["keep"][t]) for t in np.flatnonzero(there)]
    assert frame["nll"][there].tolist() == [logged["nll"][t] for t in np.flatnonzero(there)]
    assert nll.shape == ref.shape == logged_keep(nll, ref, "rho1").shape
    assert run.scored("rho1").column_names.count("ref_nll") == 1
    assert run.row("clm", by="nll").by == "nll"


def test_what_jupyter_is_shown(made: Path) -> None:
    run = ts.read_run(made)
    page = Text(run.comparison._repr_html_())
    assert page.elements <= {"table", "thead", "tbody", "tr", "th", "td", "p"}
    assert "rho1 ends" in page.text
    assert "rho1 ends" in repr(run.comparison)
    assert run._repr_html_() == run.comparison._repr_html_()
    shown = run.row("rho1")
    page = Text(shown._repr_html_())
    assert page.elements == {"div", "pre", "span"}
    assert len(page.titles) == len(shown.pieces)
    assert re.fullmatch(r"0(, kept \d)?.*", page.titles[0])
    assert shown._repr_html_().count("background: rgba(217") == int((shown.values["kept"] == 1).sum())
    assert shown._repr_html_().count("opacity") == int((shown.values["kept"] == 0).sum())


@pytest.mark.parametrize("by", ["kept", "nll", "ref_nll", "excess", "weight"])
def test_text_of_others_stays_text(by: str) -> None:
    """A corpus may hold anything: no element of it reaches the page, and what would hide or reorder text is a sign."""
    pieces = [HOSTILE, "plain", ""]
    page = TokenRow(pieces, {by: [1.0, 0.0, float("nan")]}, by, title="<b>title</b>")._repr_html_()
    found = Text(page)
    assert found.elements == {"div", "pre", "span"}
    assert "<script>alert(1)</script>" in found.text
    assert "\u202e" not in found.text
    assert "<U+202E>" in found.text
    assert "↵\nnext" in found.text
    import pandas as pd

    table = Text(Comparison(pd.DataFrame([{"arm": HOSTILE, "nll": 1.0}]), [HOSTILE])._repr_html_())
    assert "script" not in table.elements


def test_colours_say_which_way() -> None:
    def style(by: str, value: float) -> str:
        return TokenRow(["x"], {by: [value]}, by)._repr_html_()

    blue, orange = "rgba(43", "rgba(217"
    assert blue in style("excess", -1.0)
    assert orange in style("excess", 1.0)
    assert blue in style("weight", -1.0)
    assert orange in style("weight", 1.0)
    assert "opacity" in style("weight", 0.0)
    alphas = [float(re.search(r"([\d.]+)\)", style("nll", v))[1]) for v in (0.0, 2.0, 8.0, 99.0)]  # type: ignore[index]
    assert alphas == sorted(alphas)
    assert alphas[-1] == alphas[-2] == 0.8


def test_what_is_not_there_is_one_sentence(made: Path) -> None:
    run = ts.read_run(made)
    for sentence, ask in (
        ("arm: 'none' is none of clm, random, rho1", lambda: run.row("none")),
        ("step: rho1 logged 1, 10, 20, not 7", lambda: run.tokens("rho1", 7)),
        ("row 10000 was not logged at step 20", lambda: run.row("rho1", 10000)),
        ("by: weight is not known here, kept, nll, ref_nll, excess are", lambda: run.row("rho1", by="weight")),
        ("seed: 5 is none of 0", lambda: run.tokens("rho1", seed=5)),
        ("is not a folder|does not exist", lambda: ts.read_run(made / "nowhere")),
        ("where its corpus is, is not known", lambda: ts.read_run(made / "rho1").row("rho1")),
        ("compares no arms", lambda: ts.read_run(made / "rho1").comparison),
    ):
        with pytest.raises(UserError, match=sentence):
            ask()
    alone = ts.read_run(made / "rho1", made / "corpus", made / "scores")
    assert "excess" in alone.row("rho1").values
    assert Text(alone._repr_html_()).elements >= {"table"}


def test_the_notebook_runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom in a kernel of Jupyter's, as a reader runs it; each cell shows what Jupyter draws. Run as Python in
    one namespace it could not fail where only a kernel fails."""
    monkeypatch.setenv("TOKENSIEVE_RUN", str(made))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))  # nothing of a user's
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in cells] == [[]] * len(cells)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    beside = "".join(output.text for cell in cells for output in cell.outputs[:-1])
    assert not beside or "IProgress not found" in beside, beside  # tqdm asks for ipywidgets
    assert [cell.outputs[-1].output_type for cell in cells] == ["execute_result"] * len(cells)
    shown = [cell.outputs[-1].data for cell in cells]
    pages = [Text(data["text/html"]) if "text/html" in data else None for data in shown]
    drawn = [page and ("pre" if "pre" in page.elements else "table") for page in pages]
    assert drawn == ["table", "table", "table", None, "pre", "table"]
    assert pages[0] is not None
    assert "rho1 ends" in pages[0].text
    assert shown[3]["text/plain"].startswith("Dataset({")
