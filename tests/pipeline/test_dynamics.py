"""dynamics on a real run: nll are those that score gives, classes those of a line fitted in Python, kills cost nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from processes import run_warm

from tokensieve.data.corpus import open_corpus
from tokensieve.runs.files import locked
from tokensieve.runs.manifest import is_done, read_manifest

KILLED = Path(corpora.__file__).parent / "killed.py"
CLASSES = ["H->H", "L->H", "H->L", "L->L"]


@pytest.fixture(scope="module")
def made(tiny: Any, tokensieve: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dynamics of rho1 from its base on, on the corpus it was trained on, with scores and the token log."""
    out = tmp_path_factory.mktemp("dynamics") / "made"
    done = tokensieve(*command(tiny, out))
    assert done.code == 0, done.err
    return out


def command(tiny: Any, out: Path) -> list[object]:
    start = ["dynamics", "--out", out, "--models", tiny.base / "model", tiny.rho1, "--corpus", tiny.corpus]
    return [*start, "--scores", tiny.scores, "--log", tiny.rho1, "--samples", 3]


def column(path: Path, name: str) -> np.ndarray:
    return np.array(Dataset.from_file(str(path))[name])


def described(folder: Path) -> Any:
    return json.loads((folder / "dynamics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def nll(made: Path) -> np.ndarray:
    """[C, B, T]"""
    return np.stack([column(made / f"nll-{i:05d}.arrow", "nll") for i in range(3)])


def test_checkpoints_in_order_of_training(tiny: Any, made: Path, nll: np.ndarray) -> None:
    """The run's last checkpoint and its model are the same weights: counted twice they would bend every line."""
    found = described(made)["checkpoints"]
    assert [(c["model"], c["step"]) for c in found] == [("base", 4), ("rho1", 2), ("rho1", 4)]
    assert found[2]["tokens_seen"] == 2 * found[1]["tokens_seen"] > 0
    assert [c["nll"] for c in found] == pytest.approx([np.nanmean(n, dtype=np.float64) for n in nll])


def test_nll_is_what_score_gives(tiny: Any, nll: np.ndarray, tokensieve: Any, tmp_path: Path) -> None:
    """One inference path: the base's nll are the bytes of its scores, the last checkpoint's those of the run's model."""
    scores = np.concatenate([column(p, "ref_nll") for p in sorted(tiny.scores.glob("rows-*.arrow"))])
    np.testing.assert_array_equal(nll[0], scores)
    assert tokensieve("score", "--out", tmp_path / "s", "--model", tiny.rho1, "--corpus", tiny.corpus).code == 0
    last = np.concatenate([column(p, "ref_nll") for p in sorted((tmp_path / "s").glob("rows-*.arrow"))])
    np.testing.assert_array_equal(nll[2], last)


def test_classes_of_lines_fitted_in_python(tiny: Any, made: Path, nll: np.ndarray) -> None:
    mean_last = float(np.nanmean(nll[-1], dtype=np.float64))
    class_BT, delta_BT = column(made / "tokens.arrow", "class"), column(made / "tokens.arrow", "delta")
    counts = dict.fromkeys(CLASSES, 0)
    for row, position in np.ndindex(class_BT.shape):
        values = nll[:, row, position].astype(np.float64)
        if np.isnan(values).any():
            assert class_BT[row, position] == -1
            assert np.isnan(delta_BT[row, position])
            continue
        delta = 2 * np.polyfit([0, 1, 2], values, 1)[0]
        flat = "L->L" if values[-1] <= mean_last else "H->H"
        name = "L->H" if delta > 0.2 else "H->L" if delta < -0.2 else flat
        assert CLASSES[class_BT[row, position]] == name
        counts[name] += 1
    rows = {r["class"]: r for r in described(made)["classes"]}
    assert {c: rows[c]["tokens"] for c in CLASSES} == counts
    assert described(made)["tokens"] == sum(counts.values()) == np.count_nonzero(~np.isnan(nll[0]))


def test_kept_tokens_are_the_top_share_by_excess(tiny: Any, made: Path, nll: np.ndarray) -> None:
    """Figures 6 and 7: the tokens kept at one checkpoint are followed over all of them. Checkpoint 1 against Python's sort."""
    ref_BT = np.concatenate([column(p, "ref_nll") for p in sorted(tiny.scores.glob("rows-*.arrow"))])
    places = [tuple(p) for p in np.argwhere(~np.isnan(ref_BT))]
    excess = {p: float(np.float32(nll[1][p]) - np.float32(ref_BT[p])) for p in places}
    kept = sorted(places, key=lambda p: (-excess[p], p))[: int(0.6 * len(places) + 0.5)]
    dropped = sorted(set(places) - set(kept))
    for r in described(made)["selection"][3:6]:
        assert (r["selected_at"], r["kept"], r["dropped"]) == (1, len(kept), len(dropped))
        assert r["threshold"] == min(excess[p] for p in kept)
        assert r["kept_nll"] == pytest.approx(np.mean([float(nll[r["checkpoint"]][p]) for p in kept]))
        assert r["dropped_nll"] == pytest.approx(np.mean([float(nll[r["checkpoint"]][p]) for p in dropped]))
    groups = [r for r in described(made)["breakdowns"] if r["by"] == "kept"]
    assert sum(r["tokens"] * r["low"] for r in groups) == 3 * len(kept)
    assert described(made)["classes"][-1]["kept_share"] == pytest.approx(len(kept) / len(places))


def test_show_what_is_kept_at_a_checkpoint(tiny: Any, made: Path, nll: np.ndarray, tokensieve: Any) -> None:
    """Without a token log, from the dynamics and the scores it was made with. Other scores say nothing of what it kept."""
    places = ("show", "--corpus", tiny.corpus, "--dynamics", made, "--checkpoint", 1, "--row", 2, "--width", 999)
    done = tokensieve(*places, "--scores", tiny.scores, "--by", "kept", "--numbers", "--lines", 99)
    assert done.code == 0, done.err
    threshold = described(made)["selection"][3]["threshold"]
    ref_T = np.concatenate([column(p, "ref_nll") for p in sorted(tiny.scores.glob("rows-*.arrow"))])[2]
    excess_T = nll[1, 2].astype(np.float32) - ref_T.astype(np.float32)
    shown = [line.split()[-3] for line in done.out.rstrip("\n").split("\n")[4:]]
    assert shown == ["yes" if e >= threshold else "no" for e in excess_T[1:]]
    assert ", rho1 @2" in done.out
    assert "kept is not known here" in tokensieve(*places, "--by", "kept").error


def test_the_token_log_by_class(tiny: Any, made: Path) -> None:
    class_BT = column(made / "tokens.arrow", "class")
    logged = [(CLASSES[class_BT[r, p]], k) for f in (tiny.rho1 / "tokens").glob("*.parquet") for r, p, k in lines_of(f)]
    for record in described(made)["classes"]:
        mine = [keep for name, keep in logged if record["class"] in (name, "all")]
        assert record["logged"] == len(mine)
        assert record["logged_kept_share"] == (pytest.approx(np.mean(mine)) if mine else None)


def lines_of(path: Path) -> list[tuple[int, int, bool]]:
    columns = pq.read_table(path).to_pydict()
    return list(zip(columns["row"], columns["position"], columns["keep"], strict=True))


def test_breakdowns_add_up_and_samples_say_what_stands_there(tiny: Any, made: Path, nll: np.ndarray) -> None:
    found, corpus = described(made), open_corpus(tiny.corpus)
    tokens = {r["class"]: r["tokens"] for r in found["classes"]}
    for by in ("source", "position", "frequency", "kept"):
        for name in CLASSES:
            assert sum(r["tokens"] for r in found["breakdowns"] if (r["by"], r["class"]) == (by, name)) == tokens[name]
    for sample in found["samples"]:
        row, position = sample["row"], sample["position"]
        assert sample["token_id"] == corpus.rows[row]["input_ids"][position]
        assert sample["nll"] == nll[:, row, position].tolist()
        text = corpus.tokenizer().decode(corpus.rows[row]["input_ids"])
        assert sample["before"] + sample["token"] in text
    counts = [sum(s["class"] == c for s in found["samples"]) for c in CLASSES]
    assert counts == [min(3, tokens[c]) for c in CLASSES]


def test_parquet_and_json_say_the_same(made: Path) -> None:
    found = described(made)
    for name in ("classes", "curves", "breakdowns", "samples", "selection"):
        assert pq.read_table(made / f"{name}.parquet").to_pylist() == found[name]
    listed = {f["file"] for f in read_manifest(made, "dynamics")["files"]}
    assert listed == {p.name for p in made.iterdir()} - {"manifest.json"}


def test_the_table_stands_beside_the_papers(tiny: Any, made: Path, tokensieve: Any) -> None:
    done = tokensieve(*command(tiny, made))  # done already: nothing is computed, the table is printed
    assert done.code == 0
    paper = {line.split()[0]: line for line in done.out.splitlines() if line[:4] in CLASSES}
    for name, share in zip(CLASSES, ("11 %", "12 %", "26 %", "51 %"), strict=True):
        assert share in paper[name]
    assert "rho1 @2" in done.out


def test_a_kill_costs_only_the_checkpoint_in_work(tiny: Any, made: Path, tokensieve: Any, tmp_path: Path) -> None:
    """Killed while the second file was renamed: the first is not computed again, and all files come out the same."""
    out = tmp_path / "killed"
    arguments = [str(a) for a in command(tiny, out)]
    done = run_warm(KILLED, 2, *arguments)
    assert done.returncode == -9, done.stderr[-3000:]
    assert not is_done(out)
    first = out / "nll-00000.arrow"
    stamp = first.stat().st_mtime_ns
    assert sorted(p.name for p in out.glob("nll-*.arrow")) == [first.name]
    other = tokensieve(*arguments, "--seed", 1)
    assert "unfinished work of another config" in other.error
    shutil.copytree(out, tmp_path / "damaged")
    assert tokensieve(*arguments).code == 0
    assert first.stat().st_mtime_ns == stamp
    assert_same_files(out, made)
    # A file damaged since was taken as it was: there was no more to it than that it was there.
    damaged = tmp_path / "damaged" / first.name
    damaged.write_bytes(damaged.read_bytes()[:-100] + bytes(100))
    done = tokensieve(*command(tiny, tmp_path / "damaged"))
    assert done.code == 0, done.err
    assert f"{damaged} has other bytes than were written (hash differs): it is damaged or was replaced: it is made" in (
        " ".join(done.err.split())
    )
    assert_same_files(tmp_path / "damaged", made)


def assert_same_files(out: Path, made: Path) -> None:
    assert not (out / "parts").exists()
    for path in made.iterdir():
        if path.name != "manifest.json":
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_another_process_in_the_folder(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """Two at once scored every checkpoint twice, and each wrote its tables over the other's."""
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        done = tokensieve(*command(tiny, tmp_path / "out"))
    assert (done.code, "another process is at work in" in done.error) == (2, True)


def test_what_another_run_keeps(tiny: Any, made: Path, tokensieve: Any, tmp_path: Path) -> None:
    """Figure 6: under clm, the tokens that rho1 keeps. Rows count rho1's checkpoints, kept tokens are rho1's."""
    models = ("--models", tiny.base / "model", tiny.clm / "model", "--corpus", tiny.corpus, "--scores", tiny.scores)
    done = tokensieve("dynamics", "--out", tmp_path / "clm", *models, "--selector", made)
    assert done.code == 0, done.err
    mine = described(tmp_path / "clm")["selection"]
    assert [(r["selected_at"], r["checkpoint"]) for r in mine] == [(s, c) for s in range(3) for c in range(2)]
    theirs = {r["selected_at"]: r["kept_nll"] for r in described(made)["selection"] if r["checkpoint"] == 0}
    assert {r["selected_at"]: r["kept_nll"] for r in mine if r["checkpoint"] == 0} == pytest.approx(theirs)


def test_isolated_pieces_and_an_unfinished_run(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """A run that still trains has checkpoints and no model; with isolated documents positions count within a piece."""
    run = tmp_path / "unfinished"
    run.mkdir()
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.copytree(tiny.clm / name, run / name)
    shutil.copy(tiny.clm / "tokens.jsonl", run)
    done = tokensieve("dynamics", "--out", tmp_path / "d", "--models", run, "--corpus", tiny.isolated)
    assert done.code == 0, done.err
    found = described(tmp_path / "d")
    assert [c["step"] for c in found["checkpoints"]] == [2, 4]
    firsts = {r["group"]: r["tokens"] for r in found["breakdowns"] if r["by"] == "position" and r["class"] == "H->H"}
    totals = sum(r["tokens"] for r in found["breakdowns"] if (r["by"], r["group"]) == ("position", "1"))
    pieces = sum(1 for c in open_corpus(tiny.isolated).contexts() if len(c) > 1)
    assert totals == pieces
    assert "1" in firsts


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "{base}/model"], "models: a change needs at least two checkpoints"),
        (["--models", "{base}/model", "{base}/model"], "a change needs at least two checkpoints"),
        (["--models", "{rho1}", "--ratio", "0"], "ratio is 0.0, it must be in (0, 1]"),
        (["--models", "{rho1}", "--selector", "{base}"], "name scores of this corpus as well"),
        (["--models", "{rho1}", "--scores", "{scores}"], "was computed from another corpus than {target}"),
        (["--models", "{rho1}", "--log", "{rho1}"], "log: {rho1} belongs to another corpus than {target}"),
        (["--models", "{corpus}", "{rho1}"], "{corpus} is not a model folder: it has no config.json"),
        (["--models", "{rho1}", "--model_dtype", "float8"], "unknown dtype 'float8'"),
    ],
)
def test_what_is_wrong(arguments: list[str], said: str, tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    places = {n: getattr(tiny, n) for n in ("base", "rho1", "scores", "target", "corpus")}
    given = [a.format(**places) for a in arguments]
    done = tokensieve("dynamics", "--out", tmp_path / "d", "--corpus", tiny.target, *given)
    assert done.code == 2
    assert said.format(**places) in done.error
    assert not list(tmp_path.glob("d/nll-*"))


def test_a_stage_of_a_recipe(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """Planned with its tokens before anything is there, then done and skipped."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"""
stages:
  clm:
    verb: train
    corpus: {tiny.corpus}
    model: {tiny.base}
    training: {{max_steps: 2, save_steps: 0.5}}
  dynamics: {{verb: dynamics, models: [{tiny.base}/model, "@clm"], corpus: {tiny.target}}}
"""
    )
    planned = tokensieve("run", recipe, "--out", tmp_path / "run", "--dry-run")
    tokens = open_corpus(tiny.target).stats["tokens"]
    line = next(line for line in planned.out.splitlines() if line.startswith("dynamics"))
    assert f"~{3 * tokens / 1000:.3g} k" in line
    done = tokensieve("run", recipe, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert len(described(tmp_path / "run" / "dynamics")["checkpoints"]) == 3
    assert tokensieve("run", recipe, "--out", tmp_path / "run").out.count("done already") == 2
    assert tokensieve("check", tmp_path / "run").code == 0
