"""BOS: where a tokenizer begins texts with one each document does, it is never a target, and who disagrees is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from tokenizers import Tokenizer, processors

from tokensieve.data.bos import bos_of, disagreement, set_template
from tokensieve.data.corpus import Corpus, describe, open_corpus
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.rows import IGNORE_INDEX, Rows
from tokensieve.data.scored import load_scored, write_score_shard
from tokensieve.data.tokenizer import EOS, load_tokenizer, train_tokenizer
from tokensieve.dynamics.rows import NllReader
from tokensieve.dynamics.tables import _token_counts
from tokensieve.evaluation.ngram import NGram
from tokensieve.pipeline import dynamics, evaluate, prepare, score, train
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import read_manifest
from tokensieve.scoring.engine import Scorer

WORDS = "the cat sat on a mat while dogs ran over hills and rivers flow to sea under moon light".split()  # noqa: SIM905
TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS, 3 + i % 17)) for i in range(40)]
VOCAB = 300


def tokenizer_folder(folder: Path, bos: str | None, *, template: bool = False, **config: Any) -> Path:
    """A tokenizer of 300 tokens with a bos_token, in its template or only by name."""
    made = train_tokenizer(TEXTS, VOCAB - 1).backend_tokenizer
    if bos is not None and made.token_to_id(bos) is None:
        made.add_special_tokens([bos])
    if template:
        before = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, made.token_to_id(bos))]
        )
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), before])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    names = {"eos_token": EOS, **({} if bos is None else {"bos_token": bos}), **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


KINDS: dict[str, dict[str, Any]] = {
    "template": {"bos": "<bos>", "template": True},
    "add_bos_token": {"bos": "<bos>", "add_bos_token": True},
    "EOS and BOS are one": {"bos": EOS, "template": True},
    "EOS and BOS are one, by add_bos_token": {"bos": EOS, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"},
}


def write(path: Path, rows: list[dict[str, Any]]) -> SourceConfig:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return SourceConfig(str(path))


def corpus_of(out: Path, tokenizer: Path | None, source: SourceConfig, **fields: Any) -> Corpus:
    given = {"length": 32, "workers": 1, "vocab_size": VOCAB, **fields}
    named = None if tokenizer is None else str(tokenizer)
    return open_corpus(prepare.run(prepare.PrepareConfig(str(out), [source], named, **given), progress=False))


def documents(corpus: Corpus) -> list[list[int]]:
    """The ids of each document, put together from the rows."""
    found: dict[int, list[int]] = {}
    for row in corpus.rows:
        ends = [*row["doc_starts"][1:], row["num_tokens"]]
        for doc, start, end in zip(row["doc_ids"], row["doc_starts"], ends, strict=True):
            found.setdefault(doc, []).extend(row["input_ids"][start:end])
    return [found[doc] for doc in sorted(found)]


def targets(corpus: Corpus) -> list[list[int]]:
    """Of each document, the positions that are targets: by hand, from where pieces begin and what row they are in."""
    found: dict[int, list[int]] = {}
    for row in corpus.rows:
        ends = [*row["doc_starts"][1:], row["num_tokens"]]
        for doc, start, end, offset in zip(row["doc_ids"], row["doc_starts"], ends, row["doc_offsets"], strict=True):
            first = corpus.isolate_documents or start == 0 or (corpus.bos_id is not None and offset == 0)
            found.setdefault(doc, []).extend(range(offset + first, offset + end - start))
    return [found[doc] for doc in sorted(found)]


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_document_begins_with_bos_which_is_no_target(
    tmp_path: Path, capsys: Any, kind: str, isolate: bool
) -> None:
    """No document of a corpus began with the BOS that its tokenizer puts before every text, and no field asked."""
    folder = tokenizer_folder(tmp_path / "T", **KINDS[kind])
    corpus = corpus_of(
        tmp_path / "C", folder, write(tmp_path / "t.jsonl", [{"text": t} for t in TEXTS]), isolate_documents=isolate
    )
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos, eos = backend.token_to_id(KINDS[kind]["bos"]), backend.token_to_id(EOS)
    plain = [backend.encode(t, add_special_tokens=False).ids for t in TEXTS]
    assert documents(corpus) == [[bos, *ids, eos] for ids in plain]
    assert corpus.bos_id == bos
    assert f"C: bos: {KINDS[kind]['bos']} (id {bos}) before each document, as" in capsys.readouterr().err
    assert f"each document begins with BOS (id {bos})" in describe(corpus.manifest)
    assert corpus.stats["bytes"] == sum(len(t.encode()) for t in TEXTS)
    assert corpus.stats["token_bytes_exact"]
    assert corpus.tokenizer()("the cat")["input_ids"][0] == bos  # models trained on it say so too
    # Labels: every token but row starts, pieces' starts if isolated, and BOS; EOS of the same id is a target.
    rows = Rows(load_scored(corpus.folder))
    marked: dict[int, list[int]] = {}
    for i, row in enumerate(corpus.rows):
        labels = rows[i]["labels"].numpy()
        assert (labels[labels != IGNORE_INDEX] == np.array(row["input_ids"])[labels != IGNORE_INDEX]).all()
        ends = [*row["doc_starts"][1:], row["num_tokens"]]
        for doc, start, end, offset in zip(row["doc_ids"], row["doc_starts"], ends, row["doc_offsets"], strict=True):
            kept = [offset + t for t in range(end - start) if labels[start + t] != IGNORE_INDEX and start + t > 0]
            marked.setdefault(doc, []).extend(kept)
        assert (labels[row["num_tokens"] :] == IGNORE_INDEX).all()
    assert [marked[d] for d in sorted(marked)] == targets(corpus)
    assert sum(map(len, marked.values())) < corpus.stats["tokens"] - len(TEXTS)
    # What scores gives no number there, and gives one to each EOS that is not first in its row.
    [batch] = Scorer(tiny.llama(vocab_size=VOCAB), device="cpu", batch_rows=corpus.num_rows).run(rows)
    for i, nll_T in enumerate(batch.nll):
        labels = rows[i]["labels"].numpy()
        assert (np.isnan(nll_T) == ((labels == IGNORE_INDEX) | (np.arange(len(labels)) == 0))).all()
    # What counts n-grams gives BOS no probability for having been BOS.
    unigram = NGram.fit(corpus.contexts(), VOCAB, 1, corpus.outcomes())
    assert unigram.token_counts_V.sum() == sum(len(ids) + 1 for ids in plain)
    assert unigram.token_counts_V[bos] == (len(TEXTS) if bos == eos else 0)
    write_score_shard(tmp_path / "nll", {"nll": batch.nll.astype(np.float16)})
    config = dynamics.DynamicsConfig("x", ["x"], str(corpus.folder))
    count_V, targets_V = _token_counts(config, NllReader(corpus, [tmp_path / "nll"]))
    assert (count_V == unigram.token_counts_V[: len(count_V)]).all()
    assert targets_V.sum() == sum(map(len, marked.values()))


@pytest.mark.parametrize(
    ("kind", "mode", "found"),
    [
        ({"bos": "<bos>", "template": True}, "auto", "<bos>"),
        ({"bos": "<bos>", "template": True}, "never", None),
        ({"bos": "<bos>", "template": True}, "always", "<bos>"),
        ({"bos": "<bos>"}, "auto", None),
        ({"bos": "<bos>"}, "always", "<bos>"),
        ({"bos": "<bos>", "add_bos_token": False}, "auto", None),
        ({"bos": "<bos>", "add_bos_token": True}, "never", None),
        ({"bos": None}, "auto", None),
        ({"bos": EOS}, "auto", None),
        ({"bos": EOS}, "always", EOS),
    ],
)
def test_the_field_decides_and_auto_asks_the_tokenizer(
    tmp_path: Path, kind: dict[str, Any], mode: Any, found: str | None
) -> None:
    bos = bos_of(tokenizer_folder(tmp_path / "T", **kind), mode)
    assert (bos.token if bos else None) == found


@pytest.mark.parametrize("bos", ["<bos>", "< b: o s >", "$A", "<|begin:0|>"])
@pytest.mark.parametrize("before", [["<first>"], ["<first>", "<second>"], []])
def test_a_template_takes_the_place_of_another(tmp_path: Path, bos: str, before: list[str]) -> None:
    """``bos: always`` put its token before a template's own: RUN/model began texts with two. A token's name may hold what the
    notation of templates is made of."""
    made = train_tokenizer(TEXTS, VOCAB).backend_tokenizer
    made.add_special_tokens([bos, *before])
    own = [(t, made.token_to_id(t)) for t in before]
    template = processors.TemplateProcessing(single=" ".join([*before, "$A"]), special_tokens=own)
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    (tmp_path / "t").mkdir()
    made.save(str(tmp_path / "t" / "tokenizer.json"))
    names = {"eos_token": EOS, "bos_token": bos}
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer = load_tokenizer(tmp_path / "t")
    found = bos_of(tmp_path / "t", "always")
    assert found is not None
    set_template(tokenizer, found)
    plain = tokenizer("the cat", add_special_tokens=False).input_ids
    assert tokenizer("the cat").input_ids == [found.id, *plain]
    assert tokenizer("the cat", "a mat").input_ids[: len(plain) + 2] == [found.id, *plain, found.id]


def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    folder, source = tokenizer_folder(tmp_path / "T", None), write(tmp_path / "t.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match=r"bos: always needs a BOS, and tokenizer .*T has none"):
        corpus_of(tmp_path / "C", folder, source, bos="always")
    with pytest.raises(UserError, match="one that is trained here has none"):
        corpus_of(tmp_path / "C", None, source, bos="always")
    with pytest.raises(UserError, match="bos must be 'auto', 'always' or 'never', not 'sometimes'"):
        corpus_of(tmp_path / "C", folder, source, bos="sometimes")
    two = tokenizer_folder(tmp_path / "two", "<bos>")
    backend = Tokenizer.from_file(str(two / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{EOS} <bos> $A", pair=None, special_tokens=[(EOS, 0), ("<bos>", backend.token_to_id("<bos>"))]
    )
    backend.save(str(two / "tokenizer.json"))
    with pytest.raises(UserError, match=r"begins every text with <\|endoftext\|> <bos>: only one token can begin"):
        corpus_of(tmp_path / "C", two, source)
    assert not (tmp_path / "C").exists()


@pytest.mark.parametrize("kind", ["template", "EOS and BOS are one"])
def test_tokens_that_begin_with_bos_get_no_second_one(tmp_path: Path, kind: str) -> None:
    folder = tokenizer_folder(tmp_path / "T", **KINDS[kind])
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos, eos = backend.token_to_id(KINDS[kind]["bos"]), backend.token_to_id(EOS)
    given = [[bos, 5, 6, 7, eos], [bos, 5, 6], [5, 6, eos], [5, 6], [eos], [bos]]
    source = write(tmp_path / "t.jsonl", [{"input_ids": ids} for ids in given])
    corpus = corpus_of(tmp_path / "C", folder, SourceConfig(source.path, format="tokens"))
    empty = [bos, eos]
    assert documents(corpus) == [[bos, 5, 6, 7, eos], *[[bos, 5, 6, eos]] * 3, empty, empty]
    never = corpus_of(tmp_path / "N", folder, SourceConfig(source.path, format="tokens"), bos="never")
    assert documents(never)[:2] == [[bos, 5, 6, 7, eos], [bos, 5, 6, eos]]
    both = [Rows(load_scored(c.folder))[0]["labels"].tolist() for c in (corpus, never)]
    assert both[0][5] == IGNORE_INDEX != both[1][5] == bos


def test_the_same_rows_with_bos_as_a_target_are_another_corpus(tmp_path: Path) -> None:
    """Their labels differ, so their scores must not be taken for each other's."""
    folder = tokenizer_folder(tmp_path / "T", "<bos>", template=True)
    bos = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<bos>")
    source = write(tmp_path / "t.jsonl", [{"input_ids": [bos, 5, 6, 0]}] * 9)
    made = [
        corpus_of(tmp_path / m, folder, SourceConfig(source.path, format="tokens"), bos=m) for m in ("auto", "never")
    ]
    assert made[0].rows["input_ids"] == made[1].rows["input_ids"]
    assert made[0].content_hash != made[1].content_hash


def test_solutions_begin_where_they_did(tmp_path: Path) -> None:
    rows = [{"q": f"the cat {i}", "a": f"sat on {i}"} for i in range(12)]
    source = SourceConfig(write(tmp_path / "t.jsonl", rows).path, problem="q", solution="a")
    folder = tokenizer_folder(tmp_path / "T", "<bos>", template=True)
    with_bos, without = (corpus_of(tmp_path / m, folder, source, bos=m, length=64) for m in ("auto", "never"))

    def solutions(corpus: Corpus) -> list[list[int]]:
        out: dict[int, list[int]] = {}
        for row in corpus.rows:
            ends = [*row["doc_starts"][1:], row["num_tokens"]]
            for doc, target, end in zip(row["doc_ids"], row["doc_targets"], ends, strict=True):
                out.setdefault(doc, []).extend(row["input_ids"][target:end])
        return [out[d] for d in sorted(out)]

    assert solutions(with_bos) == solutions(without)
    assert [d[1:] for d in documents(with_bos)] == documents(without)


def test_only_folders_with_bos_become_other_work(tmp_path: Path) -> None:
    """What comes out the same keeps its fingerprint, whichever of the modes says so."""
    source = write(tmp_path / "t.jsonl", [{"text": "a"}])
    plain, begins = tokenizer_folder(tmp_path / "P", "<bos>"), tokenizer_folder(tmp_path / "B", "<bos>", template=True)

    def work(folder: Path, **fields: Any) -> Any:
        return prepare.work(prepare.PrepareConfig("x", [source], str(folder), **fields))

    assert "bos" not in work(plain).inputs
    assert work(plain).fingerprint == work(plain, bos="never").fingerprint != work(plain, bos="always").fingerprint
    assert work(begins).inputs["bos"] == work(begins, bos="always").inputs["bos"] == 299
    assert work(begins).fingerprint == work(begins, bos="always").fingerprint != work(begins, bos="never").fingerprint
    assert work(plain, max_unknown=0.5).fingerprint == work(plain).fingerprint
    assert work(plain, parse_special_tokens=True).fingerprint != work(plain).fingerprint


def test_who_disagrees_is_told_or_refused(tmp_path: Path, capsys: Any) -> None:
    """The nll of a model that needs BOS (Gemma) means nothing without it, and nothing said so."""
    folder = tokenizer_folder(tmp_path / "T", "<bos>", template=True)
    source = write(tmp_path / "t.jsonl", [{"text": t} for t in TEXTS])
    has, lacks = (corpus_of(tmp_path / m, folder, source, bos=m) for m in ("auto", "never"))
    tiny.llama(vocab_size=VOCAB).save_pretrained(tmp_path / "M")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "M" / name).write_bytes((folder / name).read_bytes())
    model, wrong = (
        str(tmp_path / "M"),
        f"M begins texts with BOS (id 299), the documents of {lacks.folder} begin with no BOS",
    )
    capsys.readouterr()
    for corpus, says in ((has, None), (lacks, wrong)):
        out = score.run(score.ScoreConfig(f"{corpus.folder}-scores", model, str(corpus.folder), device="cpu"))
        assert capsys.readouterr().err.count("begins texts with") == (says is not None)
        assert (says is None and "bos_note" not in read_manifest(out)) or says in read_manifest(out)["bos_note"]
    done = evaluate.run(
        evaluate.EvaluateConfig(str(tmp_path / "E"), {"m": model}, {"s": str(lacks.folder)}, device="cpu")
    )
    assert wrong in read_manifest(done)["bos_notes"][0]
    assert wrong in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r"baselines: the documents of .* begin with BOS \(id 299\), those of .* with no BOS"
    ):
        evaluate.run(
            evaluate.EvaluateConfig(str(tmp_path / "F"), {}, {"s": str(has.folder)}, baselines=[str(lacks.folder)])
        )
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    run = {"max_steps": 1, "use_cpu": True, "save_strategy": "no", "per_device_train_batch_size": 2}
    sets = {"out": str(tmp_path / "R"), "corpus": str(has.folder), "model": config, "training": run}
    with pytest.raises(
        UserError, match=r"eval_sets: the documents of s begin with no BOS, those of .* with BOS \(id 299\)"
    ):
        train.run(train.TrainConfig(**sets, eval_sets={"s": str(lacks.folder)}))
    made = train.run(train.TrainConfig(**sets))
    assert read_manifest(made)["bos_id"] == 299
    assert json.loads((made / "model" / "config.json").read_text())["bos_token_id"] == 299
    assert disagreement(made, 299, "x") is None
    assert disagreement(made / "model", None, "x") is not None
    with pytest.raises(
        UserError, match=r"sets: the documents of s begin with no BOS, those that .* was trained on with BOS"
    ):
        evaluate.run(
            evaluate.EvaluateConfig(str(tmp_path / "G"), {"m": str(made)}, {"s": str(lacks.folder)}, device="cpu")
        )
