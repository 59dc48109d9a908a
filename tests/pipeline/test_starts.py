"""Every command of docs/init.md and of its rows in docs/systems.md, on the tiny experiment; what is refused, and who pays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as models
import torch
from experiment import ONE_STEP, write_text

from tokensieve.data.corpus import open_corpus
from tokensieve.data.scored import join_scores
from tokensieve.data.tokenizer import load_tokenizer
from tokensieve.modeling.folder import model_hash
from tokensieve.modeling.load import load_causal_lm
from tokensieve.modeling.rebuilt import largest_difference
from tokensieve.modeling.vocabulary import new_rows
from tokensieve.pipeline import init
from tokensieve.pipeline.configs.init import (
    GrowConfig,
    InitConfig,
    MergeConfig,
    MixtureConfig,
    PruneConfig,
    VocabConfig,
)
from tokensieve.pipeline.lineage import training_flops
from tokensieve.pipeline.recipe.cost import Known
from tokensieve.runs.manifest import read_manifest

STEP = [f"--training.{k}={v}".replace("True", "true") for k, v in ONE_STEP.items()]


@pytest.fixture(scope="module")
def made(tiny: Any, tokensieve: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``made("pruned", "--prune.layers", 1 ...)``: what ``init`` makes of the base, once; its folder."""
    root = tmp_path_factory.mktemp("starts")

    def make(name: str, *words: object) -> Path:
        out = root / name
        if not out.exists():
            done = tokensieve("init", "--out", out, "--model", tiny.base, *words)
            assert (done.code, done.out) == (0, f"{out}\n"), done.err
            assert "start, whole" in tokensieve("check", out).out
        return out

    return make


def pruned(tiny: Any) -> tuple[object, ...]:
    words = ("--prune.corpus", tiny.corpus, "--prune.layers", 1, "--prune.intermediate_size", 24, "--prune.heads", 1)
    return (*words, "--prune.hidden_size", 24)


def objective(**fields: Any) -> tuple[str, str]:
    return "--objective", json.dumps(fields)


def test_pruned_and_recovered_from_a_teacher(tiny: Any, made: Any, tokensieve: Any, tmp_path: Path) -> None:
    """Minitron: what is kept stands in the manifest; the teacher's training and what it was begun from are charged."""
    out = made("pruned", *pruned(tiny))
    manifest = read_manifest(out, "start")
    assert manifest["made_by"] == "prune"
    assert manifest["kept"] == {"layers": 1, "intermediate_size": 24, "heads": 1, "hidden_size": 24}
    assert len(manifest["block_importance"]) == 2
    assert len(manifest["kept_channels"]) == 24
    assert manifest["source_hash"] == model_hash(tiny.base)
    assert manifest["begun_from"][0]["flops_student"] == training_flops(str(tiny.base)) == training_flops(str(out))
    told = objective(name="distill", teacher=str(tiny.base), top_k=16)
    run = ("train", "--out", tmp_path / "run", "--corpus", tiny.corpus, "--model", out, *STEP, *told)
    assert tokensieve(*run).code == 0
    summary = read_manifest(tmp_path / "run")["summary"]
    assert summary["flops_reference"] == training_flops(str(tiny.base))


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_merged(method: str, tiny: Any, made: Any) -> None:
    """Two that were trained from the base: each is begun from it, and it is charged once."""
    models = json.dumps([str(tiny.clm), str(tiny.rho1)])
    out = made(method, "--merge.models", models, "--merge.method", method, "--merge.density", 0.5)
    manifest = read_manifest(out, "start")
    assert manifest["merged_hashes"] == [model_hash(m) for m in (tiny.base, tiny.clm, tiny.rho1)]
    hashes = [link["model"] for link in manifest["begun_from"]]
    assert sorted(hashes) == sorted(set(hashes))
    assert manifest["source_flops"] == sum(training_flops(str(m)) or 0 for m in (tiny.base, tiny.clm, tiny.rho1))
    if method == "linear":
        base, clm, rho1, mean = (load_causal_lm(m).lm_head.weight for m in (tiny.base, tiny.clm, tiny.rho1, out))
        torch.testing.assert_close(mean, (base + clm + rho1) / 3)


def test_another_vocabulary(tiny: Any, made: Any, tokensieve: Any, tmp_path: Path) -> None:
    """EEVE and PersianMind: a new token's rows are means, in the head the first piece's."""
    text = write_text(tmp_path / "new.jsonl", "n", 30, 7)
    corpus = tmp_path / "corpus"
    words = ("--sources", f"[{{path: {text}}}]", "--length", 32, "--vocab_size", 296)
    assert tokensieve("prepare", "--out", corpus, *words).code == 0
    out = made("vocab", "--vocab.tokenizer", corpus, "--vocab.head", "first")
    old, new = load_tokenizer(tiny.corpus), load_tokenizer(corpus)
    rows = new_rows(old, new)
    whole, made_of = load_causal_lm(tiny.base), load_causal_lm(out)
    assert made_of.config.vocab_size == len(rows.pieces) == 296
    several = next(i for i, p in enumerate(rows.pieces) if len(p) > 1)
    ids = rows.pieces[several]
    assert old.decode(ids) == new.decode([several])
    table, head = whole.get_input_embeddings().weight, whole.lm_head.weight
    torch.testing.assert_close(made_of.get_input_embeddings().weight[several], table[ids].mean(0))
    assert torch.equal(made_of.lm_head.weight[several], head[ids[0]])
    assert torch.equal(made_of.lm_head.weight[new.eos_token_id], head[old.eos_token_id])
    told = read_manifest(out)["rows"]
    assert told["kept"] + told["of_pieces"] == 296
    assert told["of_all"] == 0
    assert (out / "model" / "tokenizer.json").read_bytes() == (corpus / "tokenizer" / "tokenizer.json").read_bytes()


def test_grown(tiny: Any, made: Any) -> None:
    """Orthogonal growth: the same function with twice the blocks and wider MLPs."""
    out = made("grown", "--grow.layers", 4, "--grow.intermediate_size", 64)
    assert read_manifest(out)["source_blocks"] == 2
    assert largest_difference(load_causal_lm(tiny.base), load_causal_lm(out)) < 1e-5


def test_a_mixture_of_all_and_more_experts(tiny: Any, made: Any, tokensieve: Any, tmp_path: Path) -> None:
    """LLaMA-MoE: all experts visited are the dense model; some train; and the mixture grows as a mixture does."""
    dense = load_causal_lm(tiny.base)
    every = made("every", "--moe_from_dense.experts", 4, "--moe_from_dense.active", 4)
    assert largest_difference(dense, load_causal_lm(every)) < 1e-3
    some = made("some", "--moe-from-dense.experts", 4, "--moe-from-dense.active", 2)
    run = ("train", "--out", tmp_path / "run", "--corpus", tiny.corpus, "--model", some, *STEP)
    assert tokensieve(*run).code == 0
    assert read_manifest(tmp_path / "run")["begun_from"][1]["model"] == model_hash(tiny.base)
    more = tmp_path / "more"
    assert tokensieve("init", "--out", more, "--model", every, "--grow.experts", 8).code == 0
    assert largest_difference(dense, load_causal_lm(more)) < 1e-3
    assert training_flops(str(more)) == training_flops(str(tiny.base))


def test_a_start_is_charged_once_as_a_reference(tiny: Any, made: Any, tokensieve: Any, tmp_path: Path) -> None:
    """What trained the base stood in reference_flops and in begun_from, and was charged twice."""
    out = made("grown", "--grow.layers", 4, "--grow.intermediate_size", 64)
    assert tokensieve("score", "--out", tmp_path / "s", "--model", out, "--corpus", tiny.corpus).code == 0
    manifest = read_manifest(tmp_path / "s", "scores")
    assert manifest["reference_flops"] == training_flops(str(tiny.base))
    assert model_hash(tiny.base) not in [link["model"] for link in manifest["begun_from"]]


def test_tokens_chosen_by_divergence(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """AdaSPEC: the reference's KL from the teacher is a column, and the student's KL less that chooses the tokens."""
    asked = ("--columns", "{ref_divergence: divergence}", "--dtype", "float32")
    models.llama(vocab_size=290, seed=9).save_pretrained(teacher := tmp_path / "teacher")
    command = ("score", "--corpus", tiny.corpus, "--model", tiny.clm, *asked)
    whole = ("--teacher", teacher, "--teacher_top_k", 290)
    assert tokensieve(*command, "--out", tmp_path / "all", *whole).code == 0
    corpus = open_corpus(tiny.corpus)
    rows = join_scores(corpus, tmp_path / "all")[:3]
    ids = torch.tensor(np.array(rows["input_ids"]))
    with torch.no_grad():
        p, q = (load_causal_lm(m)(input_ids=ids).logits.double().log_softmax(-1) for m in (teacher, tiny.clm))
    wanted = (p.exp() * (p - q)).sum(-1)[:, :-1]
    found = torch.tensor(np.array(rows["ref_divergence"]))[:, 1:].double()
    assert float(wanted.min()) > 0.01
    assert float((found - wanted).abs().max()) < 1e-4  # of logits up to 30, float32
    itself = ("score", "--corpus", tiny.corpus, "--model", tiny.base, *asked, "--teacher", tiny.base)
    assert tokensieve(*itself, "--out", tmp_path / "none").code == 0
    assert float(np.nanmax(np.abs(np.array(join_scores(corpus, tmp_path / "none")[:3]["ref_divergence"])))) < 1e-4
    told = objective(name="distill", teacher=str(tiny.base), ratio=0.4)
    run = ("train", "--corpus", tiny.corpus, "--model", tiny.model, "--scores", f"[{tmp_path / 'all'}]", *STEP, *told)
    assert tokensieve(*run, "--out", tmp_path / "run").code == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["kept_share"] == pytest.approx(0.4, abs=0.01)
    assert "needs the column 'ref_divergence'" in tokensieve(*run[:5], *STEP, *told, "--out", tmp_path / "no").error
    assert "a divergence is from a teacher" in tokensieve(*command, "--out", tmp_path / "no").error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            (),
            "one thing at a time: name one of layers, prune, merge, vocab, grow, moe_from_dense, rope, none is given",
        ),
        (("--layers", 1, "--grow.layers", 4), "not layers and grow"),
        (("--prune.layers", 1), "prune.corpus: name a folder that `prepare` wrote"),
        (("--prune.corpus", "CORPUS"), "prune: say what is left"),
        (("--prune.corpus", "CORPUS", "--prune.layers", 3), "prune.layers: the model has 2, so 3 cannot be kept"),
        (("--merge.method", "ties"), "merge.models: name at least one model"),
        (("--merge.models", "[CLM]", "--merge.weights", "[1]"), "merge.weights: 2 are needed, the base's first, not 1"),
        (("--merge.models", "[CLM]", "--merge.density", 0), "merge.density must be in (0, 1], not 0.0"),
        (("--merge.models", "[CORPUS]"), "is not a model folder"),
        (("--vocab.head", "first"), "vocab.tokenizer: name a folder with tokenizer.json"),
        (("--vocab.tokenizer", "TEXT"), "no tokenizer.json there"),
        (("--grow.copies", "exact"), "grow: say what grows"),
        (("--grow.layers", 1), "grow.layers: the model has 2 blocks, so it does not grow to 1"),
        (("--moe_from_dense.experts", 5), "48 neurons are shared out evenly over at least 2, not 5"),
    ],
)
def test_what_cannot_be_made_leaves_no_mark(words: Any, told: str, tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    places = {"CORPUS": tiny.corpus, "[CLM]": f"[{tiny.clm}]", "[CORPUS]": f"[{tiny.corpus}]", "TEXT": tiny.text}
    words = [places.get(w, w) for w in words]
    done = tokensieve("init", "--out", tmp_path / "out", "--model", tiny.base, *words)
    assert done.code == 2
    assert told in done.error
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out" / "model").exists()


def test_layers_are_the_work_they_were(tiny: Any) -> None:
    """Fields that came later, at their defaults, change no fingerprint; another kind of start does."""
    work = init.work(InitConfig("a", str(tiny.base), 1))
    inputs = {"model": model_hash(tiny.base)}
    earlier = {"kind": "start", "config": {"layers": 1}, "inputs": inputs, "fingerprint": "of an early version"}
    assert work.changes(earlier) == []
    grown = init.work(InitConfig("a", str(tiny.base), grow=GrowConfig(layers=4)))
    assert grown.fingerprint != work.fingerprint
    moved = [InitConfig("a", str(tiny.base), merge=MergeConfig([m])) for m in (str(tiny.clm), str(tiny.clm / "model"))]
    assert init.work(moved[0]).fingerprint == init.work(moved[1]).fingerprint


def test_a_plan_knows_the_shapes_that_are_left(tiny: Any, made: Any) -> None:
    """Without weights as many parameters as with them; of another tokenizer, which is not read for it, nothing."""
    fields: dict[str, dict[str, Any]] = {
        "grown": {"grow": GrowConfig(layers=4, intermediate_size=64)},
        "some": {"moe_from_dense": MixtureConfig(4, 2)},
        "linear": {"merge": MergeConfig([str(tiny.clm), str(tiny.rho1)])},
        "pruned": {"prune": PruneConfig(str(tiny.corpus), 256, 1, 24, 1, 24)},
    }
    words = {
        "grown": ("--grow.layers", 4, "--grow.intermediate_size", 64),
        "some": ("--moe-from-dense.experts", 4, "--moe-from-dense.active", 2),
        "linear": ("--merge.models", json.dumps([str(tiny.clm), str(tiny.rho1)]), "--merge.method", "linear"),
        "pruned": pruned(tiny),
    }
    for name, given in fields.items():
        shapes = init.estimate(InitConfig("a", str(tiny.base), **given), Known()).model
        count = read_manifest(made(name, *words[name]))["num_parameters"]
        assert sum(p.numel() for p in shapes.parameters()) == count, name
    unknown = init.estimate(InitConfig("a", str(tiny.base), vocab=VocabConfig("x")), Known())
    assert unknown.model is None
    assert np.isnan(unknown.disk)  # type: ignore[arg-type]
