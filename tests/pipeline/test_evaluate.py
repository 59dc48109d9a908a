"""evaluate against sums by hand: full logits in float64, a Python loop over target tokens, bytes of a byte-level token."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokensieve.data.corpus import Corpus, open_corpus
from tokensieve.evaluation import ngram
from tokensieve.evaluation.ngram import NGram
from tokensieve.pipeline import tasks
from tokensieve.pipeline.configs.evaluate import EvaluateConfig
from tokensieve.runs.errors import UserError
from tokensieve.runs.files import locked
from tokensieve.runs.manifest import is_done, read_manifest

SETS = ("target", "maths", "isolated")


@pytest.fixture(scope="module")
def evaluated(tiny: Any, tokensieve: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("evaluation") / "out"
    sets = [word for name in SETS for word in (f"--sets.{name}", getattr(tiny, name))]
    models = ("--models.base", tiny.base, "--models.rho1", tiny.rho1)
    done = tokensieve(
        "evaluate", "--out", out, *models, *sets, "--checkpoints", "--baselines", tiny.corpus, tiny.target
    )
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def records(evaluated: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """(model, step, set, on) -> record."""
    found = json.loads((evaluated / "evaluation.json").read_text())
    by_key = {(r["model"], r["step"], r["set"], r["on"]): r for r in found}
    assert len(by_key) == len(found)
    return by_key


def pieces_of(corpus: Corpus) -> list[tuple[list[int], list[bool]]]:
    """(ids, whether each is part of a solution) of every context: a row, or a piece where documents are isolated."""
    pieces = []
    for row in corpus.rows:
        ids = list(row["input_ids"])[: row["num_tokens"]]
        ends = [*row["doc_starts"][1:], len(ids)]
        solution = [t >= target for target, start, end in zip(row["doc_targets"], row["doc_starts"], ends, strict=True)
                    for t in range(start, end)]  # fmt: skip
        cuts = zip(row["doc_starts"], ends, strict=True) if corpus.isolate_documents else [(0, len(ids))]
        pieces += [(ids[a:b], solution[a:b]) for a, b in cuts]
    return pieces


def summed(model: NGram, pieces: list[Any]) -> tuple[float, int]:
    """(sum of nll, targets): all tokens but each piece's first."""
    nll = np.concatenate([model.nll(piece)[1:] for piece in pieces])
    return float(nll.sum()), len(nll)


def truth(folder: Path, corpus: Corpus, on: str) -> tuple[float, int, int]:
    """(nll sum, tokens, bytes) over the targets, in float64 out of full logits, one context at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64).eval()
    tokenizer = corpus.tokenizer()
    nll, tokens, num_bytes = 0.0, 0, 0
    for ids, solution in pieces_of(corpus):
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for t in range(1, len(ids)):
            if on == "all" or solution[t]:
                nll -= float(log_p[t - 1, ids[t]])
                tokens += 1
                # A byte-level token is written with one character a byte; EOS stands for no text.
                num_bytes += 0 if ids[t] == corpus.eos_id else len(tokenizer.convert_ids_to_tokens(ids[t]))
    return nll, tokens, num_bytes


@pytest.mark.parametrize(
    ("name", "on"), [("target", "all"), ("maths", "all"), ("maths", "solution"), ("isolated", "all")]
)
def test_figures_are_those_by_hand(name: str, on: str, tiny: Any, records: Any) -> None:
    """A mask one token off, padding or a piece's first token counted, a mean of row means, EOS taken for 13 bytes."""
    corpus = open_corpus(getattr(tiny, name))
    nll, tokens, num_bytes = truth(tiny.rho1, corpus, on)
    record = records["rho1", 4, name, on]
    assert (record["tokens"], record["bytes"]) == (tokens, num_bytes)
    assert record["nll"] == pytest.approx(nll / tokens, rel=2e-6)
    assert record["bits_per_byte"] == pytest.approx(nll / math.log(2) / num_bytes, rel=2e-6)
    assert record["bits_per_byte_exact"] is True
    assert tokens < corpus.stats["tokens"]


def test_solutions_are_a_part_and_only_where_they_are_marked(records: Any) -> None:
    assert 0 < records["rho1", 4, "maths", "solution"]["tokens"] < records["rho1", 4, "maths", "all"]["tokens"]
    assert {key[2] for key in records if key[3] == "solution"} == {"maths"}


def test_isolated_documents_have_fewer_targets(tiny: Any, records: Any) -> None:
    num_pieces = sum(len(row["doc_starts"]) for row in open_corpus(tiny.isolated).rows)
    assert records["base", 4, "isolated", "all"]["tokens"] == open_corpus(tiny.isolated).stats["tokens"] - num_pieces


def test_checkpoints_stand_at_the_tokens_they_saw(tiny: Any, records: Any) -> None:
    for model, folder in (("base", tiny.base), ("rho1", tiny.rho1)):
        log = {line["step"]: line for line in map(json.loads, (folder / "tokens.jsonl").read_text().splitlines())}
        found = [r for r in records.values() if (r["model"], r["set"]) == (model, "target")]
        assert [r["step"] for r in found] == [2, 4]
        for record in found:
            line = log[record["step"]]
            assert (record["tokens_seen"], record["tokens_trained"]) == (line["tokens_seen"], line["tokens_trained"])
    assert records["rho1", 2, "target", "all"]["nll"] != records["rho1", 4, "target", "all"]["nll"]


@pytest.mark.parametrize(("label", "order"), [("unigram", 1), ("trigram", 3)])
@pytest.mark.parametrize("name", SETS)
def test_baselines_count_the_same_targets(label: str, order: int, name: str, tiny: Any, records: Any) -> None:
    """A trigram whose context runs over the boundary of isolated documents; a baseline on other tokens than the model."""
    text = [ids for folder in (tiny.corpus, tiny.target) for ids, _ in pieces_of(open_corpus(folder))]
    corpus = open_corpus(getattr(tiny, name))
    model = NGram.fit([np.array(ids) for ids in text], 290, order)
    nll, tokens = summed(model, [np.array(ids) for ids, _ in pieces_of(corpus)])
    record = records[label, None, name, "all"]
    assert record["tokens"] == tokens == records["rho1", 4, name, "all"]["tokens"]
    assert record["nll"] == pytest.approx(nll / tokens, rel=1e-9)
    assert record["bytes"] == records["rho1", 4, name, "all"]["bytes"]
    assert record["tokens_seen"] is None


@pytest.mark.parametrize("most", [40, 150, 10**9])
def test_baselines_of_a_sample(
    most: int, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All rows of all corpora stood in one list, 150 bytes a token when they were counted: 2 TB of 14 billion tokens."""
    from tokensieve.pipeline import evaluate

    monkeypatch.setattr(ngram, "MOST_TOKENS", most)
    folders = [str(tiny.corpus), str(tiny.isolated)]
    sets = {"t": str(tiny.target)}
    config = evaluate.EvaluateConfig(out=str(tmp_path / "e"), models={}, sets=sets, baselines=folders, device="cpu")
    before = evaluate.work(config)
    results = json.loads((evaluate.run(config) / "evaluation.json").read_text())
    corpora = [open_corpus(folder) for folder in folders]
    total = sum(c.stats["tokens"] for c in corpora)
    said = "n-gram baselines from a sample of"
    if most >= total:
        assert "counted_tokens" not in results[0]
        assert said not in (tmp_path / "e" / "table.txt").read_text() + capsys.readouterr().err
        assert not before.inputs["baseline_sample"]
        return
    rows = ngram.sample_rows([c.row_tokens() for c in corpora], most)
    text = [ids for c, r in zip(corpora, rows, strict=True) for ids in c.contexts(r)]
    counted = sum(map(len, text))
    assert max(0, most - corpora[0].length) <= counted <= most
    assert [(r["counted_tokens"], r["counted_of"]) for r in results] == [(counted, total)] * 2
    trigram = next(r for r in results if r["model"] == "trigram")
    pieces = [np.array(ids) for ids, _ in pieces_of(open_corpus(tiny.target))]
    nll, tokens = summed(NGram.fit(text, 290, 3), pieces)
    assert trigram["nll"] == pytest.approx(nll / tokens, rel=1e-9)
    line = f"{said} {counted:,} of {total:,} tokens"
    assert line in (tmp_path / "e" / "table.txt").read_text()
    assert line in capsys.readouterr().err
    assert before.inputs["baseline_sample"] == most


def test_baselines_alone(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    done = tokensieve(
        "evaluate", "--out", tmp_path, "--models", "{}", "--sets.x", tiny.isolated, "--baselines", tiny.isolated
    )
    assert done.code == 0, done.err
    pieces = [np.array(ids) for ids, _ in pieces_of(open_corpus(tiny.isolated))]
    nll, tokens = summed(NGram.fit(pieces, 290, 3), pieces)
    found = [r for r in json.loads((tmp_path / "evaluation.json").read_text()) if r["model"] == "trigram"]
    assert found[0]["nll"] == pytest.approx(nll / tokens, rel=1e-9)


def test_table_shows_the_last_weights(evaluated: Path, records: Any) -> None:
    lines = [line.split() for line in (evaluated / "table.txt").read_text().splitlines()]
    assert lines[0] == ["model", "set", "tokens", "nll", "bits/byte", "tokens", "seen"]
    of_rho1 = [line for line in lines if line[:2] == ["rho1", "target"]]
    record = records["rho1", 4, "target", "all"]
    assert of_rho1 == [["rho1", "target", str(record["tokens"]), f"{record['nll']:.4f}", f"{record['bits_per_byte']:.4f}",
                        str(record["tokens_seen"])]]  # fmt: skip
    assert ["rho1", "maths", "(solutions)"] in [line[:3] for line in lines]


def test_done_is_skipped_and_other_work_refused(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    command = ("evaluate", "--out", tmp_path / "out", "--sets.t", tiny.target)
    assert tokensieve(*command, "--models.a", tiny.base).code == 0
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert tokensieve(*command, "--models.a", tiny.base, "--batch_rows", 3).code == 0
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    assert "from other inputs (input models)" in tokensieve(*command, "--models.a", tiny.rho1).error


@pytest.mark.parametrize("rows", [1, 5])
def test_batches_do_not_count(rows: int, tiny: Any, tokensieve: Any, tmp_path: Path, records: Any) -> None:
    done = tokensieve(
        "evaluate", "--out", tmp_path, "--models.rho1", tiny.rho1, "--sets.maths", tiny.maths, "--batch_rows", rows
    )
    assert done.code == 0, done.err
    for record in json.loads((tmp_path / "evaluation.json").read_text()):
        whole = records["rho1", 4, "maths", record["on"]]
        assert record["nll"] == pytest.approx(whole["nll"], rel=1e-6)
        assert record["tokens"] == whole["tokens"]


def test_a_model_from_elsewhere_has_no_axis(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny.base / "model", tmp_path / "hf")
    done = tokensieve("evaluate", "--out", tmp_path / "out", "--models.hf", tmp_path / "hf", "--sets.t", tiny.target)
    assert done.code == 0, done.err
    (record,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (record["step"], record["tokens_seen"]) == (None, None)


def test_another_tokenizer_of_the_same_size_is_refused(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """Sets of another tokenizer have the ids of other text: the nll would be of nothing, and look merely bad."""
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "xyzzy plugh " * 30}) + "\n")
    source = f"[{{path: {tmp_path}/other.jsonl}}]"
    assert (
        tokensieve("prepare", "--out", tmp_path / "set", "--sources", source, "--vocab_size", 290, "--length", 32).code
        == 0
    )
    done = tokensieve("evaluate", "--out", tmp_path / "out", "--models.a", tiny.base, "--sets.t", tmp_path / "set")
    assert done.code == 2
    assert f"{tiny.base} was trained with another tokenizer than {tmp_path}/set: they differ in token" in done.error
    assert not is_done(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "{}", "--sets.t", "{target}"], "models: name at least one model"),
        (["--models.a", "{base}", "--sets", "{}"], "sets: name at least one evaluation set, or tasks"),
        (
            ["--models.unigram", "{base}", "--sets.t", "{target}", "--baselines", "{corpus}"],
            "'unigram' is the name of a baseline",
        ),
        (["--models.a", "{base}", "--sets.t", "{target}", "--batch_rows", "-1"], "batch_rows must be at least 0"),
        (["--models.a", "{base}", "--sets.t", "{base}"], "holds 'model', 'corpus' is needed here"),
        (["--models.a", "{target}", "--sets.t", "{target}"], "is not a model folder"),
    ],
)
def test_what_is_wrong(arguments: list[str], said: str, tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    places = {name: str(getattr(tiny, name)) for name in ("base", "corpus", "target")}
    words = [a if a == "{}" else a.format(**places) for a in arguments]
    done = tokensieve("evaluate", "--out", tmp_path / "out", *words)
    assert done.code == 2
    assert said in done.error


def test_rows_longer_than_the_model(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    source = f"[{{path: {tiny.text}/target.jsonl}}]"
    prepare = ("prepare", "--out", tmp_path / "long", "--sources", source, "--tokenizer", tiny.corpus, "--length", 65)
    assert tokensieve(*prepare).code == 0
    done = tokensieve("evaluate", "--out", tmp_path / "out", "--models.a", tiny.base, "--sets.t", tmp_path / "long")
    assert "rows of 65 tokens are longer than" in done.error


def test_manifest_names_its_inputs_by_content(tiny: Any, evaluated: Path) -> None:
    manifest = read_manifest(evaluated, "evaluation")
    assert manifest["inputs"]["sets"]["target"] == open_corpus(tiny.target).content_hash
    assert [(name, step) for name, step, _ in manifest["inputs"]["models"]] == [
        ("base", 2),
        ("base", 4),
        ("rho1", 2),
        ("rho1", 4),
    ]
    assert str(tiny.root) not in json.dumps(manifest)


def test_another_process_in_the_folder(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """Of two at once the later one wrote over the other's records, and its manifest over the other's hashes."""
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        done = tokensieve("evaluate", "--out", tmp_path / "out", "--models.b", tiny.base, "--sets.target", tiny.target)
    assert (done.code, "another process is at work in" in done.error) == (2, True)


# --- last checkpoints averaged, sums by document ---------------------------------------------------------------------------


def test_average_of_the_last_checkpoints(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """The mean of the weights, evaluated; not the mean of their nll."""
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    done = tokensieve("evaluate", "--out", out, "--models.clm", tiny.clm, "--sets.t", tiny.target, "--average", 2)
    assert done.code == 0, done.err
    (record,) = json.loads((out / "evaluation.json").read_text())
    assert (record["step"], record["averaged"]) == (4, 2)
    first, last = (AutoModelForCausalLM.from_pretrained(tiny.clm / f) for f in ("checkpoint-2", "model"))
    mean = {k: (v.double() + last.state_dict()[k].double()) / 2 for k, v in first.state_dict().items()}
    last.load_state_dict(mean)
    last.save_pretrained(tmp_path / "mean" / "model")
    total, tokens, _ = truth(tmp_path / "mean", open_corpus(tiny.target), "all")
    assert record["nll"] == pytest.approx(total / tokens, rel=1e-5)
    done = tokensieve(
        "evaluate", "--out", tmp_path / "x", "--models.clm", tiny.clm, "--sets.t", tiny.target, "--average", 3
    )
    assert (done.code, "has 2 checkpoints with its last, 3 are to be averaged" in done.error) == (2, True)
    config = EvaluateConfig(str(tmp_path / "y"), {"x": str(tiny.clm / "model")}, {"t": str(tiny.target)}, average=2)
    with pytest.raises(UserError, match="average: 2 checkpoints of each run, and none of x kept any but its last"):
        tasks.targets_of(config)  # each stood for itself, and nobody was told


def test_sums_by_document_add_up(evaluated: Path, records: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    """Documents lie across rows, and a row holds several: every target belongs to one, once."""
    from tokensieve.evaluation.documents import read_documents

    found = read_documents(evaluated)
    assert found is not None
    last = {(m, s, on): r for (m, step, s, on), r in records.items() if step in (None, 4) and m in ("base", "rho1")}
    assert set(found) == set(last)
    for key, record in last.items():
        assert int(found[key]["tokens"].sum()) == record["tokens"]
        assert float(found[key]["nll"].sum() / found[key]["tokens"].sum()) == pytest.approx(record["nll"], rel=1e-12)
        assert len(set(found[key]["document"].tolist())) == len(found[key]["document"])
