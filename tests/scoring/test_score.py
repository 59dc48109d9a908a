"""``score`` from a prepared corpus to columns beside it: joined, bound, resumed, and shared out to processes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import corpora
import numpy as np
import pytest
import tiny
import torch
from processes import run_warm
from tqdm.auto import tqdm

from tokensieve.core import objective
from tokensieve.data.corpus import open_corpus
from tokensieve.data.scored import load_scored
from tokensieve.modeling.load import load_causal_lm
from tokensieve.pipeline import score
from tokensieve.runs.errors import StaleFolder, UserError
from tokensieve.runs.manifest import is_done
from tokensieve.training.token_log import TokenLogConfig

HELPERS = Path(corpora.__file__).parent


class Made(NamedTuple):
    text: Path
    corpus: Path
    model: Path
    scores: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A corpus of several shards, a model, and its scores by one uninterrupted process."""
    folder = tmp_path_factory.mktemp("score")
    text = corpora.write_text(folder / "text")
    corpus = corpora.corpus(folder / "corpus", text)
    model = corpora.model_folder(folder / "model")
    assert len(open_corpus(corpus).manifest["shards"]) >= 5
    return Made(text, corpus, model, run(folder / "scores", model, corpus, columns=["ref_nll", "ref_entropy"]))


def run(out: Path, model: Path, corpus: Path, **fields: Any) -> Path:
    return score.run(score.ScoreConfig(out=str(out), model=str(model), corpus=str(corpus), device="cpu", **fields))


def shards(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("rows-*.arrow"))}


def command(made: Made, out: Path) -> list[str]:
    paths = {"out": out, "model": made.model, "corpus": made.corpus}
    return ["score", *(f"--{k}={v}" for k, v in paths.items()), '--columns=["ref_nll","ref_entropy"]', "--device=cpu"]


def test_scores_stand_beside_their_tokens(made: Made) -> None:
    """Joined by row and by position: a shard in the wrong order, or a column off by one, looks as good as the right one."""
    joined = load_scored(made.corpus, made.scores)
    model, corpus = load_causal_lm(made.model, dtype="float64"), open_corpus(made.corpus)
    assert len(joined) == corpus.num_rows
    assert joined.column_names[-2:] == ["ref_nll", "ref_entropy"]
    assert joined.features["ref_nll"].feature.dtype == "float16"
    for row in joined:
        count = row["num_tokens"]
        nll = tiny.shifted_nll(model, {"input_ids": [row["input_ids"][:count]]})[0, 1:].detach()
        np.testing.assert_allclose(row["ref_nll"][1:count], nll, rtol=1e-3)
        assert np.isnan([row["ref_nll"][0], *row["ref_nll"][count:]]).all()
    assert joined["input_ids"][:] == corpus.rows["input_ids"][:]


def test_columns_of_ones_own_names(made: Made, tmp_path: Path) -> None:
    """Two models beside one corpus: with one name for both columns the second folder could not be joined."""
    other = corpora.model_folder(tmp_path / "other", seed=5)
    named = run(tmp_path / "named", other, made.corpus, columns={"base_nll": "nll", "base_h": "entropy"})
    plain = run(tmp_path / "plain", other, made.corpus, columns=["ref_nll", "ref_entropy"])
    joined, wanted = load_scored(made.corpus, made.scores, named), load_scored(made.corpus, plain)
    assert joined.column_names[-4:] == ["ref_nll", "ref_entropy", "base_nll", "base_h"]
    for name, same in (("base_nll", "ref_nll"), ("base_h", "ref_entropy")):
        assert np.array_equal(np.array(joined[name]), np.array(wanted[same]), equal_nan=True)
    rho1 = objective("rho1", ratio=0.4, reference="base_nll")
    tiny.train(load_causal_lm(made.model), tiny.arguments(tmp_path / "run", 4), joined, rho1)
    again = tiny.train(
        load_causal_lm(made.model), tiny.arguments(tmp_path / "again", 4), wanted, objective("rho1", ratio=0.4)
    )
    assert tiny.log_lines(tmp_path / "run") == tiny.log_lines(tmp_path / "again")
    assert again.state.global_step == 1


def test_a_shard_is_filled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches of a shard were kept apart until its end, 16 kB each, and between them what each batch had freed, which could
    not go back. Of a corpus of 1 GB a process held 220 MB more at its first shard's end than at the beginning."""
    alive: list[int] = []
    made: list[weakref.ref[Any]] = []

    def stored(values: np.ndarray, dtype: Any) -> tuple[np.ndarray, int]:
        found = values.astype(dtype)
        made.append(weakref.ref(found))
        return found, 1

    def blocks() -> Iterator[dict[str, Any]]:
        for first in range(0, 12, 4):
            alive.append(sum(each() is not None for each in made))
            yield {"ref_nll": np.arange(first, first + 4, dtype=np.float32)[:, None] + np.zeros((1, 8), np.float32)}

    monkeypatch.setattr(score, "stored", stored)
    config = score.ScoreConfig(out="", corpus="", model="m")
    columns, clipped = score._score_shard(config, blocks(), 12, tqdm(disable=True))
    assert max(alive) <= 1  # the last one, until the next takes its name
    assert (columns["ref_nll"].dtype, columns["ref_nll"][:, 0].tolist()) == (np.float16, list(range(12)))
    assert clipped == {"ref_nll": 3}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["ref_entropy"], ["ref_entropy"]),
        (["ref_nll", "ref_entropy"], ["ref_nll", "ref_entropy"]),
        (["[ref_nll]"], ["ref_nll"]),
        (["{base_nll: nll, h: entropy}"], ["base_nll", "h"]),
    ],
)
def test_columns_on_the_command_line(made: Made, tmp_path: Path, words: list[str], wanted: list[str]) -> None:
    """Words without brackets were a list until a mapping was one more thing that the field takes."""
    from tokensieve import cli

    args = ["--out", str(tmp_path / "s"), "--model", str(made.model), "--corpus", str(made.corpus), "--device", "cpu"]
    assert cli.main(["score", *args, "--columns", *words]) == 0
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["columns"] == wanted


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"base_nll": "loss"}, "columns.base_nll: one of nll, entropy, target_rank, divergence is needed, not loss"),
        ({"ref_nll": "entropy"}, "columns.ref_nll: by its name it holds nll, not entropy"),
        ({"nll": "nll"}, "columns: 'nll' is the name of something else"),
        ({"targets": "nll"}, "columns: 'targets' is the name of something else"),
        ({"loss_mask": "nll"}, "columns: 'loss_mask' is the name of something else"),
        ({"valid": "nll"}, "columns: 'valid' is the name of something else"),
        ({"input_ids": "nll"}, "columns: 'input_ids' is the name of something else"),
        ({"base nll": "nll"}, "columns: 'base nll' is no name for a column"),
        (["base_nll"], "columns: unknown column 'base_nll'.*as {base_nll: nll}"),
        ({}, "columns: name at least one"),
    ],
)
def test_columns_that_cannot_be_are_refused(made: Made, tmp_path: Path, columns: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(tmp_path / "x", made.model, made.corpus, columns=columns)


def test_isolated_documents_are_another_corpus(made: Made, tmp_path: Path) -> None:
    """The rows are the same, what a piece sees is not: scores of the one were taken for those of the other."""
    isolated = corpora.corpus(tmp_path / "isolated", made.text, isolate_documents=True)
    assert open_corpus(isolated).content_hash == open_corpus(made.corpus).content_hash
    with pytest.raises(StaleFolder, match="input isolated"):
        run(made.scores, made.model, isolated, columns=["ref_nll", "ref_entropy"])


def test_the_same_columns_in_other_words_are_the_same_work(made: Made, tmp_path: Path) -> None:
    first = run(tmp_path / "s", made.model, made.corpus, columns=["ref_nll"])
    before = (first / "manifest.json").read_bytes()
    run(first, made.model, made.corpus, columns={"ref_nll": "nll"})
    assert (first / "manifest.json").read_bytes() == before


def test_a_reference_is_charged_once(made: Made, tmp_path: Path) -> None:
    """Two folders that one reference wrote: its training was paid once, each scoring by itself."""
    from tokensieve.pipeline import run_record, train

    common = {
        "corpus": str(made.corpus),
        "training": {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True},
    }
    train.run(train.TrainConfig(out=str(tmp_path / "ref"), model=str(made.model), **common))
    reference = json.loads((tmp_path / "ref" / "summary.json").read_text())["flops_student"]
    assert reference > 0
    folders = [run(tmp_path / n, tmp_path / "ref", made.corpus, columns=c)
               for n, c in (("a", ["ref_nll"]), ("b", {"h": "entropy"}))]  # fmt: skip
    folders.append(run(tmp_path / "c", made.model, made.corpus, columns={"base_nll": "nll"}))
    scoring = sum(json.loads((f / "manifest.json").read_text())["flops"] for f in folders)
    config = train.TrainConfig(
        out=str(tmp_path / "student"),
        model=str(made.model),
        scores=[str(f) for f in folders],
        objective={"name": "rho1", "ratio": 0.5, "denominator": "valid"},
        **common,
    )
    train.run(config)
    summary = json.loads((tmp_path / "student" / "summary.json").read_text())
    assert summary["flops_reference"] == reference
    shutil.copytree(
        tmp_path / "ref" / "model", tmp_path / "copy"
    )  # of which nobody knows any more what training it took
    copied = run(tmp_path / "d", tmp_path / "copy", made.corpus, columns={"x": "nll"})
    for order in ([folders[0], copied], [copied, folders[0]]):
        given = dataclasses.replace(config, scores=[str(f) for f in order])
        assert run_record.flops_spent(given)[1] == reference
    assert summary["flops_scoring"] == pytest.approx(scoring)


def test_float32_columns(made: Made, tmp_path: Path) -> None:
    wide = load_scored(made.corpus, run(tmp_path / "wide", made.model, made.corpus, dtype="float32"))
    narrow = load_scored(made.corpus, made.scores)
    a, b = (np.array(d["ref_nll"]) for d in (wide, narrow))
    assert wide.features["ref_nll"].feature.dtype == "float32"
    np.testing.assert_allclose(a, b, rtol=2**-11)
    assert (a.astype(np.float16).astype(np.float64) != a)[~np.isnan(a)].any()


def test_done_work_is_skipped_and_other_work_refused(made: Made, tmp_path: Path) -> None:
    """Scores of an old reference model, taken for those of the new one because the folder is there."""
    times = {p: p.stat().st_mtime_ns for p in made.scores.iterdir()}
    run(made.scores, made.model, made.corpus, columns=["ref_nll", "ref_entropy"])
    assert {p: p.stat().st_mtime_ns for p in made.scores.iterdir()} == times
    other = corpora.model_folder(tmp_path / "other", seed=1)
    with pytest.raises(StaleFolder, match="input model"):
        run(made.scores, other, made.corpus, columns=["ref_nll", "ref_entropy"])


@pytest.fixture(scope="module")
def killed(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that died by kill -9 while its third shard was being renamed."""
    out = tmp_path_factory.mktemp("killed") / "scores"
    done = run_warm(HELPERS / "killed.py", 3, *command(made, out))
    assert done.returncode == -9, done.stderr[-3000:]
    return out


def test_resumed_after_a_kill(made: Made, killed: Path) -> None:
    """What was finished is kept, what was not is done, and the bytes are those of a run that was never killed."""
    assert not is_done(killed)
    before = {p.name: p.stat().st_mtime_ns for p in killed.glob("rows-*.arrow")}
    assert sorted(before) == ["rows-00000.arrow", "rows-00001.arrow"]
    with pytest.raises(UserError, match=r"no manifest\.json: it is not finished"):
        load_scored(made.corpus, killed)
    with pytest.raises(StaleFolder, match="unfinished work of another config"):
        run(killed, made.model, made.corpus)  # without ref_entropy
    run(killed, made.model, made.corpus, columns=["ref_nll", "ref_entropy"])
    assert {n: (killed / n).stat().st_mtime_ns for n in before} == before
    assert shards(killed) == shards(made.scores)
    assert (killed / "manifest.json").read_bytes() == (made.scores / "manifest.json").read_bytes()


def test_a_shard_that_cannot_be_written_stops_the_run(made: Made, tmp_path: Path) -> None:
    """Shards are written by a thread: its error was nobody's, and the run went on to the end with a shard missing."""
    out = tmp_path / "scores"
    (out / "rows-00001.arrow").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"rows-00001\.arrow"):
        run(out, made.model, made.corpus, columns=["ref_nll", "ref_entropy"])
    assert [p.name for p in sorted((out / "parts").iterdir())] == ["rows-00000.arrow.json"]
    assert not is_done(out)
    assert not list(out.glob("rows-00003.arrow"))  # one shard in flight, no more
    (out / "rows-00001.arrow").rmdir()
    run(out, made.model, made.corpus, columns=["ref_nll", "ref_entropy"])
    assert shards(out) == shards(made.scores)


def copy_of(made: Made, folder: Path) -> Path:
    return Path(shutil.copytree(made.scores, folder / "scores"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    other = path.with_name("rows-00002.arrow")
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "it is truncated or was replaced"),
        (flip, r"other bytes than were written \(hash differs\)"),
        (swap, r"other bytes than were written \(hash differs\)"),
        (Path.unlink, "is missing"),
    ],
)
def test_damaged_shards_are_refused_by_name(
    made: Made, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    """A flipped bit in a score is a token chosen, or not, for no reason that anybody will ever find."""
    scores = copy_of(made, tmp_path)
    damage(scores / "rows-00001.arrow")
    with pytest.raises(UserError, match=rf"rows-00001\.arrow.*{says}"):
        load_scored(made.corpus, scores)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"text": True}, "another corpus"),
        ({"tokenizer": None, "vocab_size": 290}, "another tokenizer"),
        ({"length": 16, "shard_tokens": 64}, r"another window \(row length\)"),
        ({"isolate_documents": True}, r"another window \(isolate_documents\)"),
    ],
)
def test_scores_of_other_rows_are_refused_by_name(made: Made, tmp_path: Path, other: dict[str, Any], says: str) -> None:
    """A score depends on every token before it: another cut of the same text is another set of scores."""
    text = made.text
    if other.pop("text", False):
        text = corpora.write_text(tmp_path / "text", seed=1)
    corpus = corpora.corpus(tmp_path / "corpus", text, **{"tokenizer": str(made.corpus), **other})
    with pytest.raises(UserError, match=f"^{made.scores} was computed from {says} than {corpus}: "):
        load_scored(corpus, made.scores)


def test_a_column_given_twice_is_refused(made: Made) -> None:
    with pytest.raises(UserError, match="brings column 'ref_entropy', which is there already"):
        load_scored(made.corpus, made.scores, made.scores)


def test_folders_that_are_no_scores_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 'corpus', 'scores' is needed here"):
        load_scored(made.corpus, made.corpus)
    with pytest.raises(UserError, match="does not exist"):
        load_scored(made.corpus, tmp_path / "nothing")
    with pytest.raises(UserError, match="unknown column 'nll'"):
        run(tmp_path / "a", made.model, made.corpus, columns=["nll"])
    with pytest.raises(UserError, match="not 'bfloat16'"):
        run(tmp_path / "a", made.model, made.corpus, dtype="bfloat16")


def test_a_model_that_does_not_fit_is_refused(made: Made, tmp_path: Path) -> None:
    small = tmp_path / "small"
    tiny.llama(vocab_size=200).save_pretrained(small)
    with pytest.raises(UserError, match="vocabulary of 200, the corpus one of 300"):
        run(tmp_path / "a", small, made.corpus)
    short = corpora.model_folder(tmp_path / "short", max_position_embeddings=16)
    with pytest.raises(UserError, match="max_position_embeddings of 16"):
        run(tmp_path / "b", short, made.corpus)


def test_isolated_corpus_from_text_to_training(made: Made, tmp_path: Path) -> None:
    """prepare -> score -> train with documents kept apart: the reference model's own scores leave the excess at zero."""
    import pyarrow.parquet as pq

    corpus = corpora.corpus(tmp_path / "corpus", made.text, tokenizer=str(made.corpus), isolate_documents=True)
    scores = run(tmp_path / "scores", made.model, corpus, dtype="float32")
    joined = load_scored(corpus, scores)
    assert joined["isolated"][:] == [True] * len(joined)
    targets = sum(row["num_tokens"] - len(row["doc_starts"]) for row in joined)
    assert int((~np.isnan(np.array(joined["ref_nll"]))).sum()) == targets
    args = tiny.arguments(tmp_path / "run", 8, max_steps=-1, num_train_epochs=1, learning_rate=0.0)
    log = TokenLogConfig(every=1, rows=100)
    model = load_causal_lm(made.model)
    trainer = tiny.train(model, args, joined, objective("rho1"), token_log=log, sources=open_corpus(corpus).sources)
    lines = [json.loads(x) for x in (tmp_path / "run" / "tokens.jsonl").read_text().splitlines()]
    assert lines[-1]["tokens_seen"] == targets
    assert trainer.state.global_step == len(lines) == -(-len(joined) // 8)
    for line in lines:
        assert sum(line["valid_by_source"].values()) == line["valid"]
        assert abs(line["threshold"]) < 1e-3
    table = pq.read_table(tmp_path / "run" / "tokens" / "step-00000001.parquet").to_pydict()
    for row, position, nll in zip(table["row"], table["position"], table["nll"], strict=True):
        assert nll == pytest.approx(joined[row]["ref_nll"][position], abs=1e-4)
    assert torch.equal(model.lm_head.weight, load_causal_lm(made.model).lm_head.weight)
