"""Which rules stand before training: those that do give what the trainer gives, the others are refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
import tiny as models
import torch
from export_readers import READERS
from exports import config, flat, made_scores

from tokensieve.core import OBJECTIVES, objective
from tokensieve.core.stats import HEAD_STATISTICS
from tokensieve.data.corpus import open_corpus
from tokensieve.data.scored import load_scored
from tokensieve.export import FORMATS
from tokensieve.export.layout import Shape
from tokensieve.export.selection import StaticSelection
from tokensieve.pipeline import export
from tokensieve.pipeline.configs.export import To
from tokensieve.runs.errors import StaleFolder, UserError
from tokensieve.runs.manifest import read_manifest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("selection")
    corpus = corpora.corpus(root / "corpus", corpora.write_text(root / "text"))
    made = {"corpus": corpus}
    for seed, column in enumerate(("ref_nll", "base_nll", "ref_entropy")):
        made[column] = made_scores(root / column, corpus, (column,), seed)
    return made


def run(scored: dict[str, Path], out: Path, to: str = "jsonl", **fields: Any) -> Path:
    columns = fields.pop("columns", ("ref_nll", "base_nll"))
    return export.run(config(out, scored["corpus"], to, *(scored[c] for c in columns), **fields))


def test_a_checkpoint_s_selection_is_the_trainer_s_at_that_checkpoint(scored: Any, tmp_path: Path) -> None:
    """rho1 with a checkpoint's nll for the student's is Token Cleaning with it as the base: the same formula, the same rows."""
    rule = {"name": "rho1", "ratio": 0.5, "scope": "sequence"}
    with pytest.raises(UserError, match=r"'rho1' needs 'nll' of the student's forward, .*\(--student.nll COLUMN\)"):
        run(scored, tmp_path / "none", objective=rule)
    ours = run(scored, tmp_path / "rho1", objective=rule, student={"nll": "base_nll"})
    cleaned = run(scored, tmp_path / "cleaned", objective={**rule, "name": "token_cleaning"})
    found = [flat(READERS["jsonl"](out, corpora.LENGTH)) for out in (ours, cleaned)]
    assert found[0] == found[1]
    soft = {"name": "dft"}
    dft = run(scored, tmp_path / "dft", "mds", objective=soft, student={"nll": "base_nll"})
    weights = [w for *_, w in flat(READERS["mds"](dft, corpora.LENGTH))]
    values, opened = np.load(scored["base_nll"].with_suffix(".npy")), open_corpus(scored["corpus"])
    want = [np.exp(-values[n][t]) for n, row in enumerate(opened.rows) for t in range(1, row["num_tokens"])]
    assert weights == pytest.approx(want, rel=1e-6)


def test_scope_corpus_is_the_whole_corpus_s_threshold(scored: Any, tmp_path: Path) -> None:
    """Kept with the scores, where `train` finds it too."""
    rule = {"name": "token_cleaning", "ratio": 0.3, "scope": "corpus"}
    out = run(scored, tmp_path / "out", objective=rule)
    base, ref = (np.load(scored[c].with_suffix(".npy")) for c in ("base_nll", "ref_nll"))
    opened = open_corpus(scored["corpus"])
    places = [(n, t) for n, row in enumerate(opened.rows) for t in range(1, row["num_tokens"])]
    values = sorted((base[p] - ref[p] for p in places), reverse=True)
    least = values[max(1, int(0.3 * len(values) + 0.5)) - 1]
    want = [(n, t) for n, t in places if base[n, t] - ref[n, t] >= least]
    found = flat(READERS["jsonl"](out, corpora.LENGTH))
    assert found == [(opened.rows[n]["input_ids"][t - 1], opened.rows[n]["input_ids"][t], 1.0) for n, t in want]
    [told] = read_manifest(out)["thresholds"].values()
    assert (told["value"], told["kept"]) == (pytest.approx(least), len(want))
    assert json.loads((scored["ref_nll"] / "thresholds.json").read_text())[0]["threshold"] == told


def test_of_a_rule_that_moves_one_step_is_taken(scored: Any, tmp_path: Path) -> None:
    rule = {"name": "random", "ratio": 0.5, "scope": "sequence", "seed": 3}
    with pytest.raises(UserError, match=r"weights of 'random' move with the steps, .* --at_step 0 takes those"):
        run(scored, tmp_path / "random", objective=rule)
    first, again, other = (
        flat(READERS["jsonl"](run(scored, tmp_path / n, objective=rule, at_step=step), corpora.LENGTH))
        for n, step in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again != other
    assert abs(len(first) / open_corpus(scored["corpus"]).stats["tokens"] - 0.5) < 0.05
    slow = {"name": "schedule", "of": {**rule, "name": "rho1_low_ref"}, "option": "ratio"}
    slow["of"].pop("seed")
    slow["points"] = [[10**7, 0.5], [2 * 10**7, 0.9]]
    with pytest.raises(UserError, match="weights of 'schedule' move with the steps"):
        run(scored, tmp_path / "late", objective=slow)
    by_tokens = {**slow, "over": "tokens"}
    with pytest.raises(UserError, match="take another rule"):
        run(scored, tmp_path / "tokens", objective=by_tokens, at_step=0)


REFUSED = {
    "ranks the tokens of a training batch, which nobody knows beforehand: give it scope: sequence": {
        "name": "rho1_low_ref"
    },
    "ranks the tokens of a training step, .* scope: sequence or corpus": {"name": "token_cleaning"},
    "has a second target, which no format has a place for": {"name": "smooth", "embeddings": "x"},
    "by that of all targets: give the objective denominator: nonzero": {"name": "clm", "denominator": "valid"},
    "needs 'entropy' of the student's forward": {"name": "entropy_top", "scope": "sequence"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_does_not_stand_is_one_sentence(scored: Any, tmp_path: Path, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as told:
        run(scored, tmp_path / "out", objective=REFUSED[sentence])
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["swift", "megatron"])
def test_formats_of_weights_do_not_divide_by_all_targets(scored: Any, tmp_path: Path, to: str) -> None:
    """They took `denominator: valid` without a word, and refusals of other formats recommended them for it.

    ms-swift divides by its labels and Megatron by the sum of its loss mask: at a ratio of 0.4 steps of 2.5 times the size.
    """
    rule = {"name": "rho1_low_ref", "ratio": 0.4, "scope": "sequence", "denominator": "valid"}
    for name in (to, "olmo"):
        with pytest.raises(
            UserError, match=r"by that of all targets: .* or take mds, whose reader divides as it likes"
        ):
            run(scored, tmp_path / "out", name, objective=rule)


def test_another_denominator_than_the_readers_is_told(scored: Any, tmp_path: Path, capsys: Any) -> None:
    """It was written in silence: ms-swift divides by trained tokens, and weights that are small then train at a lower rate."""
    told = {}
    for to, denominator in (("swift", "weight"), ("swift", "nonzero"), ("megatron", "nonzero"), ("mds", "weight")):
        rule = {"name": "dft", "denominator": denominator}
        out = run(scored, tmp_path / f"{to}-{denominator}", to, objective=rule, student={"nll": "base_nll"})
        told[to, denominator] = (read_manifest(out, "export")["denominator_note"], capsys.readouterr().err)
    weights = [w for *_, w in flat(READERS["mds"](tmp_path / "mds-weight", corpora.LENGTH))]
    mean = sum(weights) / len(weights)
    for case, times in ((("swift", "weight"), mean), (("megatron", "nonzero"), 1 / mean)):
        note, err = told[case]
        assert note in err
        assert float(re.findall(r"are (\S+) times those of tokensieve train", note)[0]) == pytest.approx(
            times, rel=1e-3
        )
    for case in (("swift", "nonzero"), ("mds", "weight")):
        assert told[case][0] is None
        assert "divides" not in told[case][1]
    assert (
        read_manifest(run(scored, tmp_path / "hard", "swift"), "export")["denominator_note"] is None
    )  # 0 and 1: one sum


def test_a_row_and_ms_swifts_bos_are_not_too_long() -> None:
    """--max_length was a row's length. ms-swift puts BOS before a sample and leaves out what is longer: every full row."""
    shape = Shape(rows=1, length=2048, vocab_size=32000, eos_id=2, pad_id=0)
    assert "--max_length 2049" in export.usage_of(FORMATS["swift"], Path("x"), shape)


def test_isolated_documents_are_said_to_the_readers_of_whole_rows() -> None:
    """USE.md was the same for them: Megatron's reset of its mask does nothing where the data loader makes no mask."""
    shape = Shape(rows=1, length=2048, vocab_size=32000, eos_id=2, pad_id=0)
    for name, told in (
        ("megatron", "--reset-attention-mask --reset-position-ids"),
        ("olmo", "generate_doc_lengths=True"),
    ):
        use, apart = (
            export.usage_of(FORMATS[name], Path("x"), s) for s in (shape, dataclasses.replace(shape, isolated=True))
        )
        assert told in apart
        assert told not in use
        assert "--no-create-attention-mask" not in apart


def test_other_mistakes(scored: Any, tmp_path: Path, tokensieve: Any) -> None:
    low = {"name": "rho1_low_ref", "scope": "sequence"}
    for sentence, fields in (
        ("'ref_nll' is no statistic of the student's forward: one of entropy, nll", {"student": {"ref_nll": "x"}}),
        ("'rho1_low_ref' does not need 'nll'", {"student": {"nll": "base_nll"}}),
        ("the objective needs the column 'ref_nll'", {"columns": ()}),
        ("needs a column 'ref_nll'", {"columns": ("base_nll",)}),
        ("at_step must be at least 0", {"at_step": -1}),
    ):
        with pytest.raises(UserError, match=sentence):
            run(scored, tmp_path / "out", objective=low, **fields)
    done = tokensieve("export", "--out", tmp_path / "out", "--corpus", scored["corpus"], "--to", "tfrecord")
    assert done.code == 2
    assert "to: 'tfrecord' is none of jsonl, parquet" in done.error or "tfrecord" in done.error


def test_on_the_command_line_and_again(scored: Any, tmp_path: Path, tokensieve: Any) -> None:
    """What a reader's user writes is printed and lies in the folder; the same command is done already, another refused."""
    words = ("export", "--out", tmp_path / "out", "--corpus", scored["corpus"], "--to", "parquet")
    done = tokensieve(*words)
    assert done.code == 0, done.err
    tokens = open_corpus(scored["corpus"]).stats["tokens"]
    assert re.match(rf"{tmp_path}/out: \d+ samples of \d+ rows, [\d,]+ of {tokens:,} tokens trained\n# TRL", done.out)
    assert (tmp_path / "out" / "USE.md").read_text() in done.out
    stamp = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert tokensieve(*words).out == done.out
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(StaleFolder, match=r'to "parquet" -> "mds"'):
        run(scored, tmp_path / "out", "mds", objective={"name": "clm"}, columns=())
    assert "export, whole" in tokensieve("check", tmp_path / "out").out


@pytest.mark.parametrize("name", [n for n, make in OBJECTIVES.items() if n not in ("distill", "smooth")])
def test_every_rule_stands_as_the_page_says(name: str) -> None:
    """The page's two lists are those of the code; a rule that is neither is refused for a second target."""
    made = objective(name)
    heads = sorted(HEAD_STATISTICS & made.needs)
    [static] = re.findall(r"^Stand by themselves: (.*?)\.$", PAGE.read_text(), re.M | re.S)
    moving = name in ("random", "random_like")
    assert (f"`{name}`" in static) == (not heads and not moving)


def test_static_weights_are_the_same_at_every_step(scored: Any) -> None:
    """What the objectives say of themselves (`static`) is what the first rows show."""
    dataset = load_scored(scored["corpus"], scored["ref_nll"], scored["base_nll"], scored["ref_entropy"])
    for name in OBJECTIVES:
        made = objective(name) if name not in ("distill", "smooth") else objective("clm")
        if made.static and not made.needs - {
            "ref_nll",
            "base_nll",
            "ref_entropy",
            "input_ids",
            "context_ids",
            "position",
        }:
            options = {"scope": "sequence"} if "scope" in made.options else {}
            StaticSelection(objective(name, **options), dataset).check_steps()


def test_the_page_has_what_users_write() -> None:
    text = PAGE.read_text()
    shape = Shape(rows=1, length=2048, vocab_size=32000, eos_id=2, pad_id=0)
    assert set(To.__args__) == set(FORMATS)  # type: ignore[attr-defined]
    for name, found in FORMATS.items():
        assert export.usage_of(found, Path("runs/x") / name, shape) in text, name
        assert found.checked in text


def test_trl_trains_on_it_as_the_trainer_does(scored: Any, tmp_path: Path) -> None:
    """SFTTrainer, one SGD step over all rows in micro-batches: the loss and the update of SelectiveTrainer.

    In float64 but for transformers' own loss, which takes logits as float32: 2^-24 a logit of up to 10.
    """
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    rule = {"name": "rho1_low_ref", "ratio": 0.4, "scope": "sequence"}
    out = run(scored, tmp_path / "out", "parquet", objective=rule)
    dataset = load_scored(scored["corpus"], scored["ref_nll"])
    start = models.llama(dtype=torch.float64, vocab_size=300)
    before = models.weights(start)
    batch, accumulate = 2, -(-len(dataset) // 2)
    ours = models.llama(dtype=torch.float64, vocab_size=300)
    made = models.train(ours, models.arguments(tmp_path / "ours", batch, accumulate), dataset, objective(**rule))

    train = load_dataset("parquet", data_files=str(out / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    fields = {
        f: getattr(models.arguments(tmp_path / "trl", batch, accumulate), f)
        for f in (
            *(
                "per_device_train_batch_size",
                "gradient_accumulation_steps",
                "optim",
                "learning_rate",
                "lr_scheduler_type",
            ),
            *("max_grad_norm", "train_sampling_strategy", "max_steps", "report_to", "save_strategy", "logging_steps"),
            *("disable_tqdm", "use_cpu", "seed"),
        )
    }
    args = SFTConfig(str(tmp_path / "trl"), max_length=None, bf16=False, gradient_checkpointing=False, **fields)
    tokenizer = open_corpus(scored["corpus"]).tokenizer()
    trl = SFTTrainer(start, args, train_dataset=train, processing_class=tokenizer)
    trl.train()
    losses = [t.state.log_history[0]["loss"] for t in (made, trl)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    moved = {name: before[name] - value for name, value in models.weights(start).items()}
    mine = {name: before[name] - value for name, value in models.weights(ours).items()}
    assert models.gap(moved, mine) < 2e-6
