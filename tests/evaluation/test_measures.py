"""evaluate --measures: each measure against what was planted, and against loops over full logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as models
import torch
from byte_tokenizers import byte_fallback, byte_level

from tokensieve.data.corpus import open_corpus
from tokensieve.data.read.source import SourceConfig
from tokensieve.evaluation.measures.contamination import bound, contamination, counted
from tokensieve.evaluation.measures.options import (
    ContaminationOptions,
    ProbeOptions,
    QuantisationOptions,
    SurprisalOptions,
)
from tokensieve.evaluation.measures.probes import probes, random_sequences, text_sequences
from tokensieve.evaluation.measures.quantisation import ratio, rounded_weights, rounding, to_nearest
from tokensieve.evaluation.measures.signal import flattened, noise, signal
from tokensieve.evaluation.measures.subject import Subject
from tokensieve.evaluation.measures.surprisal import Text, read_words, regression, surprisal, text_nll, word_of_tokens
from tokensieve.modeling.checkpoints import Checkpoint
from tokensieve.pipeline import measures
from tokensieve.pipeline.configs.evaluate import EvaluateConfig
from tokensieve.runs.errors import UserError

WORDS = ["The", "naïve", "cat,", "你好,", "sat", "on", "a", "mat;", "and", "ran", "over", "seven", "small", "hills."]


def subject(folder: Path, tokenizer: Any, **fields: Any) -> Subject:
    """A model with random weights, in a folder with its tokenizer; its nll vary from token to token."""
    tokenizer.eos_token = tokenizer.eos_token or "<s>"
    model = models.llama(vocab_size=len(tokenizer), max_position_embeddings=512, **fields)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Subject(Checkpoint("m", folder, is_last=True), str(folder), model, {}, device="cpu")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject(tmp_path_factory.mktemp("model"), byte_level())


def full_nll(found: Subject, ids: list[int]) -> list[float]:
    """nll of each token but the first, in float64 out of full logits."""
    with torch.no_grad():
        log_p = found.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [-float(log_p[t - 1, ids[t]]) for t in range(1, len(ids))]


def by_metric(records: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    found = {(r["metric"], r["on"]): r for r in records}
    assert len(found) == len(records)
    return found


# --- surprisal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_words_add_up_to_the_text(make: Any, tmp_path: Path) -> None:
    """A space counted to the word before it, half a character lost, the first token without a prediction."""
    found = subject(tmp_path / "model", make())
    rows = [{"text": "a", "word": w, "time": ""} for w in WORDS]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    measured = surprisal(found, SurprisalOptions(words=str(tmp_path / "words.jsonl")))
    ids = found.encoder.backend.encode(" ".join(WORDS), add_special_tokens=False).ids
    nll = full_nll(found, [found.start, *ids])
    lines = measured.lines
    assert [line["word"] for line in lines] == WORDS
    assert sum(line["tokens"] for line in lines) == len(ids)
    assert sum(line["surprisal"] for line in lines) == pytest.approx(sum(nll), rel=1e-5)
    count = lines[0]["tokens"]
    assert lines[0]["surprisal"] == pytest.approx(sum(nll[:count]), rel=1e-5)
    text = found.encoder.backend.decode(ids[:count])
    assert text.strip() == WORDS[0]
    [record] = measured.records  # no times, no regression
    assert (record["metric"], record["n"]) == ("surprisal", len(WORDS))
    assert record["value"] == pytest.approx(sum(nll) / len(WORDS), rel=1e-5)


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([(0, 3), (3, 7), (7, 10)], [0, 1, 2]),  # " cat": its space is the word's that follows
        ([(0, 4), (4, 8), (8, 10)], [0, 1, 2]),  # "the ": a space behind is the word's that it is written with
        ([(0, 3), (3, 4), (4, 7), (7, 8), (8, 10)], [0, 1, 1, 2, 2]),  # spaces by themselves
        ([(0, 0), (0, 3), (4, 7), (8, 9), (9, 10)], [0, 0, 1, 2, 2]),  # something of no character before all
        ([(0, 7), (7, 10)], [1, 2]),  # two words in one token: the second one's
    ],
)
def test_whose_a_token_is(offsets: list[tuple[int, int]], words: list[int]) -> None:
    assert word_of_tokens("the cat is", ["the", "cat", "is"], offsets).tolist() == words


def test_a_long_text_is_read_in_windows(known: Subject) -> None:
    """Every token once, with at least half a window before it."""
    ids, length = list(range(3, 33)), 8
    row = [known.start, *ids]
    found = text_nll(known, ids, length)
    for t in range(1, len(row)):
        start = 0 if t < length else (t - length) // 4 * 4 + 4
        assert found[t - 1] == pytest.approx(full_nll(known, row[start : t + 1])[-1], rel=1e-5), t
    assert text_nll(known, ids, 64) == pytest.approx(full_nll(known, row), rel=1e-5)


def test_reading_times_that_were_made_of_surprisal() -> None:
    """The slopes are those that were planted; noise gains nothing; the gain is half the log of the ratio of squares."""
    rng = np.random.default_rng(0)
    texts, surprisals, noisy, nothing = [], [], [], []
    for name in "ab":
        words = ["w" * n for n in rng.integers(1, 12, 300)]
        s = rng.gamma(2.0, 2.0, 300)
        length = np.array([len(w) for w in words])
        times = 200 + 7 * length + 25 * s + 11 * np.append([0.0], s[:-1]) + 0.1 * np.arange(300)
        texts.append(Text(name, words, times, np.zeros((300, 0))))
        noisy.append(Text(name, words, times + rng.normal(0, 40, 300), np.zeros((300, 0))))
        nothing.append(Text(name, words, 200 + 7 * length + rng.normal(0, 40, 300), np.zeros((300, 0))))
        surprisals.append(s)
    exact = by_metric(list(regression(texts, surprisals, "f")))
    assert exact["slope", "f"]["value"] == pytest.approx(25, rel=1e-9)
    assert exact["slope_previous", "f"]["value"] == pytest.approx(11, rel=1e-9)
    assert exact["slope", "f"]["n"] == 598  # the first word of a text has none before it
    found = by_metric(list(regression(noisy, surprisals, "f")))
    slope, gain = found["slope", "f"], found["delta_ll", "f"]
    assert abs(slope["value"] - 25) < 4 * slope["stderr"] < 10
    assert gain["value"] > 4 * gain["stderr"] > 0
    without = by_metric(list(regression(nothing, surprisals, "f")))["delta_ll", "f"]
    assert 0 <= without["value"] < 4 / 598  # of two columns that say nothing: 1/2 log(1 + 2 F / 592), F below 4
    assert not list(regression([Text("a", ["x"] * 9, np.full(9, np.nan), np.zeros((9, 0)))], [np.ones(9)], "f"))
    with pytest.raises(UserError, match="too few for a regression"):
        list(regression([Text("a", ["x"] * 5, np.ones(5), np.zeros((5, 0)))], [np.ones(5)], "f"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("word,time\ncat,12\nsat,slow\n", r"line 3: column 'time' is 'slow', a number is needed"),
        ("word,time\n,12\n", r"line 2: column 'word' holds no word"),
        ("word,time\nthe cat,12\n", r"line 2: 'the cat' is more than one word"),
        ("word,time\n", "holds no words"),
        ("word,time\ncat,nan\n", "a finite number is needed"),
    ],
)
def test_files_of_words(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text(text)
    with pytest.raises(UserError, match=told):
        read_words(SurprisalOptions(words=str(tmp_path / "w.csv")))


def test_further_columns(tmp_path: Path) -> None:
    (tmp_path / "w.tsv").write_text("doc\tw\tRT\tfreq\n1\tcat\t200\t3\n1\tsat\t\t2.5\n2\ton\t180\t1\n")
    options = SurprisalOptions(words=str(tmp_path / "w.tsv"), text="doc", word="w", time="RT", predictors=["freq"])
    first, second = read_words(options)
    assert (first.words, second.words) == (["cat", "sat"], ["on"])
    assert np.isnan(first.times[1])
    assert first.more.tolist() == [[3.0], [2.5]]


# --- probes -------------------------------------------------------------------------------------------------------------


def test_copy_scores_are_those_by_hand(known: Subject) -> None:
    """The first copy is before all others; a mean that takes the copies together says nothing of copying."""
    options = ProbeOptions(rows=3, tokens=5, copies=3)
    found = by_metric(probes(known, options).records)
    later, gain = [], []
    for sequence in random_sequences(options, known.encoder.vocab_size, known.no_text):
        assert known.encoder.eos_id not in sequence
        nll = full_nll(known, [known.start, *sequence * 3])
        later.append(sum(nll[5:]) / 10)
        gain.append(sum(nll[:5]) / 5 - later[-1])
    for metric, values in (("copy_nll", later), ("copy_gain", gain)):
        record = found[metric, "random"]
        assert record["value"] == pytest.approx(sum(values) / 3, rel=1e-4, abs=1e-5)
        spread = sum((v - sum(values) / 3) ** 2 for v in values) / 2
        assert record["stderr"] == pytest.approx(math.sqrt(spread / 3), rel=1e-3)
    assert 0 < found["induction", "random"]["value"] < 1
    with pytest.raises(UserError, match="context of 512"):
        probes(known, ProbeOptions(tokens=300))


def test_sequences_are_of_text_alone(tiny: Any) -> None:
    """A row that began with BOS or was filled up was repeated with it: the model is told where copies begin."""
    corpus = open_corpus(tiny.corpus)
    eos = corpus.eos_id
    options = ProbeOptions(rows=4, tokens=6)
    for sequence in text_sequences(options, corpus, {eos}):
        assert len(sequence) == 6
        assert eos not in sequence
    first = list(corpus.rows[0]["input_ids"])
    assert text_sequences(options, corpus, {eos, first[0]})[0] != first[:6]
    assert all(x not in (0, 3) for row in random_sequences(ProbeOptions(rows=50), 8, {0, 3}) for x in row)


def test_a_model_that_was_taught_to_copy(tmp_path: Path) -> None:
    """Trained on sequences that repeat: the copies cost it less than the first, which no random model can have."""
    found = subject(tmp_path, byte_level(), initializer_range=0.05, num_attention_heads=4, hidden_size=64)
    options = ProbeOptions(rows=8, tokens=6, copies=3)
    before = by_metric(probes(found, options).records)["copy_gain", "random"]
    model = found.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    sequences = random_sequences(options, found.encoder.vocab_size, found.no_text)
    ids = torch.tensor([[found.start, *s * 3] for s in sequences])
    labels = ids.clone()
    labels[:, :7] = -100  # the copies alone are learned: by heart will do
    for _ in range(40):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    after = by_metric(probes(found, options).records)["copy_gain", "random"]
    assert abs(before["value"]) < 0.2
    assert after["value"] > max(0.5, 4 * after["stderr"])


# --- quantisation -------------------------------------------------------------------------------------------------------


def test_rounding_is_that_by_hand() -> None:
    """A scale of the whole matrix, one level too many, zeros that become NaN."""
    weight = torch.tensor([[0.6, -1.0, 0.2, 0.0], [0.0, 0.0, 0.0, 0.0], [3.0, 1.4, -1.6, 0.1]], dtype=torch.float64)
    for bits, group in ((2, 0), (3, 0), (8, 0), (3, 2), (3, 3)):
        size, levels = group or 4, 2 ** (bits - 1) - 1
        expected = list[list[float]]()
        for row in weight.tolist():
            made: list[float] = []
            for start in range(0, 4, size):
                part = row[start : start + size]
                scale = max(map(abs, part)) / levels
                made += [round(w / scale) * scale if scale else w for w in part]
            expected.append(made)
        assert torch.allclose(
            to_nearest(weight, bits, group), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7
        )


def test_what_lies_on_the_levels_stays(tiny: Any, known: Subject) -> None:
    """Weights that were rounded once are what they are: no error, no nll gained or lost; and all is put back."""
    from tokensieve.data.corpus import open_corpus

    sets = {"target": open_corpus(tiny.target)}
    model = models.llama(vocab_size=290)
    found = Subject(Checkpoint("m", Path(known.folder)), known.folder, model, sets, device="cpu")
    before = models.weights(model)
    records = by_metric(rounding(found, QuantisationOptions(bits=[8, 4, 2])).records)
    assert all(torch.equal(p, before[n]) for n, p in models.weights(model).items())
    errors = [records[f"weight_error_{b}", "weights"]["value"] for b in (8, 4, 2)]
    assert 0 < errors[0] < errors[1] < errors[2] < 1
    assert records["nll_increase_2", "target"]["value"] > abs(records["nll_increase_8", "target"]["value"])
    with rounded_weights(model, 4):
        planted = models.weights(model)
        assert torch.equal(planted["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
        assert torch.equal(planted["lm_head.weight"], before["lm_head.weight"])
        assert not torch.equal(
            planted["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"]
        )
    model.load_state_dict({**model.state_dict(), **planted})
    again = by_metric(rounding(found, QuantisationOptions(bits=[4])).records)
    assert again["weight_error_4", "weights"]["value"] < 1e-7
    assert abs(again["nll_increase_4", "target"]["value"]) < 1e-5
    with pytest.raises(UserError, match="bits must be from 2 to 16"):
        rounding(found, QuantisationOptions(bits=[1]))


def test_the_error_of_a_ratio() -> None:
    """Rows that all have the same mean have no spread, however long they are."""
    assert ratio(np.array([2.0, 4.0, 6.0]), np.array([1, 2, 3])) == (2.0, 0.0)
    value, error = ratio(np.array([1.0, 3.0]), np.array([1, 1]))
    assert (value, error) == (2.0, pytest.approx(1.0))


# --- signal -------------------------------------------------------------------------------------------------------------


def curve(model: str, what: str, values: list[float]) -> list[dict[str, Any]]:
    return [{"model": model, "step": 10 * i, "what": what, "value": v} for i, v in enumerate(values)]


def test_signals_that_were_planted() -> None:
    """A line has no noise; a saw has its own; what falls is better where lower is; ranks that turn over at the end."""
    assert noise([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0, abs=1e-12)
    assert noise([0.0, 1.0, 0.0, 1.0, 0.0]) == pytest.approx(math.sqrt(1 / 1.5))
    drawn = np.random.default_rng(0).normal(0, 0.3, 4000) + np.linspace(0, 9, 4000) ** 2
    assert noise(drawn.tolist()) == pytest.approx(0.3, rel=0.05)
    records = curve("a", "nll target", [4, 3, 2.1, 1]) + curve("b", "nll target", [5, 3.5, 2, 1.5])
    records += curve("a", "accuracy x", [0.4, 0.3, 0.2, 0.1]) + curve("a", "flat", [1, 1, 1, 1])
    found = {(r["metric"], r["model"], r["on"]): r for r in signal(records)}
    assert found["monotonicity", "a", "nll target"]["value"] == pytest.approx(1)
    assert found["monotonicity", "a", "accuracy x"]["value"] == pytest.approx(-1)
    assert found["monotonicity", "a", "flat"]["value"] is None
    spread = found["noise", "a", "nll target"]["value"]
    assert found["signal_to_noise", "a", "nll target"]["value"] == pytest.approx(3 / spread)
    consistency = found[
        "rank_consistency", "all", "nll target"
    ]  # a is ahead at the first two and at the end, not at the third
    assert (consistency["value"], consistency["n"]) == (pytest.approx(1 / 3), 3)
    assert ("rank_consistency", "all", "accuracy x") not in found
    with pytest.raises(UserError, match="no metric has 3 checkpoints"):
        signal(records[:2])


def test_records_of_every_kind_are_curves() -> None:
    one = {"model": "a", "step": 3}
    sets = {**one, "set": "maths", "on": "solution", "nll": 2.0, "bits_per_byte": 1.0}
    task = {**one, "task": "svamp", "metric": "accuracy", "value": 0.5}
    measure = {**one, "measure": "probes", "metric": "copy_gain", "on": "random", "value": 0.1}
    names = [r["what"] for r in flattened([sets, task, measure])]
    assert names == [
        "nll maths (solutions)",
        "bits_per_byte maths (solutions)",
        "accuracy svamp",
        "copy_gain probes random",
    ]


# --- contamination ------------------------------------------------------------------------------------------------------


def items(path: Path, texts: list[str]) -> SourceConfig:
    path.write_text("".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)))
    return SourceConfig(path=str(path))


def repeated(of: SourceConfig, path: Path, times: int) -> Path:
    """Its rows so many times, without ids: what docs/measures.md makes of a file in the shell."""
    texts = [json.loads(line)["text"] for line in Path(of.path).read_text().splitlines()]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts * times))
    return path


def test_items_seen_more_often_gain_more(tmp_path: Path) -> None:
    """Planted: a model trained on the very file that injects them. Unseen ones are of the same kind, so their gap is none."""
    rng = np.random.default_rng(0)
    texts = ["".join(chr(97 + int(i)) for i in rng.integers(0, 26, 12)) for _ in range(18)]
    once, often, unseen = texts[:6], texts[6:12], texts[12:]
    options = ContaminationOptions(
        seen=[items(tmp_path / "seen.jsonl", once + often * 6)], unseen=[items(tmp_path / "unseen.jsonl", unseen)]
    )
    assert sorted(counted(options).values()) == [0] * 6 + [1] * 6 + [6] * 6
    found = subject(tmp_path / "model", byte_level(), initializer_range=0.05)
    model = found.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = [[found.start, *found.encoder.encode([t])[0].tolist()] for t in once + often * 6]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=-100)
    for _ in range(60):
        model(input_ids=ids.clamp(min=0), labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    records = by_metric(contamination(found, options).records)
    gap = [records["gap", on] for on in ("seen once", "seen 6 times")]
    assert gap[1]["value"] > gap[0]["value"] + 2 * gap[1]["stderr"]
    assert gap[1]["value"] > 4 * gap[1]["stderr"]
    assert gap[1]["value"] == pytest.approx(
        records["nll", "unseen"]["value"] - records["nll", "seen 6 times"]["value"], rel=1e-9
    )
    one = [found.start, *found.encoder.encode([unseen[0]])[0].tolist()]
    assert found.nll([one])[0][1:] == pytest.approx(full_nll(found, one), rel=1e-4)
    both = ContaminationOptions(seen=options.seen, unseen=[*options.unseen, *options.seen])
    with pytest.raises(UserError, match="both seen and unseen"):
        counted(both)


def test_the_bound_is_the_product_of_decays(tmp_path: Path, known: Subject) -> None:
    """lr 0.1 and then 0.2 with decay 0.5: 0.95 * 0.9 of an update before both, 0.9 of one between, all of a later one."""
    (tmp_path / "train_config.json").write_text(json.dumps({"training_arguments": {"weight_decay": 0.5}}))
    lines = [{"step": s, "learning_rate": 0.1 * s} for s in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    run = Checkpoint("m", tmp_path / "checkpoint-2", 2)
    of_run = Subject(run, str(tmp_path), known.model, {})
    assert bound(of_run, 0) == pytest.approx(0.95 * 0.9, rel=1e-12)
    assert bound(of_run, 1) == pytest.approx(0.9, rel=1e-12)
    assert bound(of_run, 2) == 1
    assert bound(known, 0) is None


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """All measures of a run's checkpoints at once; again, nothing is done; what is missing is told before a model is loaded."""
    steps = ("--training.max_steps", 4, "--training.save_steps", 1, "--training.logging_steps", 1)
    run, out = tmp_path / "run", tmp_path / "out"
    assert tokensieve("train", "--corpus", tiny.corpus, "--model", tiny.model, "--out", run, *steps).code == 0
    rng = np.random.default_rng(0)
    words = "".join(f"{w},{rng.normal(200, 9):.1f}\n" for w in rng.choice(["the", "cat", "sat", "seven", "hills"], 40))
    (tmp_path / "words.csv").write_text("word,time\n" + words)
    seen, unseen = (
        items(tmp_path / "s.jsonl", ["the cat sat", "a mat ran"]),
        items(tmp_path / "u.jsonl", ["seven hills see", "a cat"]),
    )
    sources = f"[{{path: {tiny.text / 'corpus.jsonl'}}}, {{path: {repeated(seen, tmp_path / 'repeated.jsonl', 5)}}}]"
    made = tokensieve(
        "prepare", "--out", tmp_path / "corpus", "--sources", sources, "--tokenizer", tiny.corpus, "--length", 32
    )
    assert made.code == 0, made.err
    by_source = json.loads((tmp_path / "corpus" / "manifest.json").read_text())["stats"]["by_source"]
    assert by_source["repeated"]["documents"] == 10  # each as often as its file has it
    command = ["evaluate", "--out", out, "--models.run", run, "--sets.target", tiny.target, "--checkpoints"]
    command += [
        "--measures",
        "[surprisal, probes, quantisation, contamination, signal]",
        "--surprisal.words",
        tmp_path / "words.csv",
    ]
    command += ["--probes.tokens", 8, "--probes.rows", 4, "--quantisation.bits", "[4]"]
    command += [
        "--contamination.seen",
        f"[{{path: {seen.path}}}]",
        "--contamination.unseen",
        f"[{{path: {unseen.path}}}]",
    ]
    done = tokensieve(*command)
    assert done.code == 0, done.err
    records = json.loads((out / "measures.json").read_text())
    assert {r["measure"] for r in records} == {"surprisal", "probes", "quantisation", "contamination", "signal"}
    increase = [r for r in records if r["metric"] == "nll_increase_4"]
    assert [r["step"] for r in increase] == [1, 2, 3, 4]
    rates = [
        json.loads(x)["learning_rate"] for x in (run / "metrics.jsonl").read_text().splitlines() if "learning_rate" in x
    ]
    assert [r["learning_rate"] for r in increase] == pytest.approx(rates)
    monotonicity = [r for r in records if r["metric"] == "monotonicity" and r["on"] == "surprisal surprisal words.csv"]
    assert monotonicity[0]["value"] == pytest.approx(1)  # so few steps, and every one makes it better
    assert len((out / "surprisal-run@4.jsonl").read_text().splitlines()) == 40
    shown = (out / "table.txt").read_text()
    assert "copy_gain" in shown
    assert "signal_to_noise" in shown
    written = (out / "measures.json").stat().st_mtime_ns
    assert tokensieve(*command).code == 0
    assert (out / "measures.json").stat().st_mtime_ns == written
    alone = (
        "evaluate",
        "--out",
        tmp_path / "signal",
        "--models",
        "{}",
        "--measures",
        "signal",
        "--signal.of",
        f"[{out}]",
    )
    assert tokensieve(*alone).code == 0
    of_folder = json.loads((tmp_path / "signal" / "measures.json").read_text())
    assert of_folder == [r for r in records if r["measure"] == "signal"]
    wrong = ("evaluate", "--out", tmp_path / "no", "--models.run", run)
    assert "unknown measure 'probe', did you mean 'probes'?" in tokensieve(*wrong, "--measures", "probe").error
    assert (
        "gone.csv is not there" in tokensieve(*wrong, "--measures", "surprisal", "--surprisal.words", "gone.csv").error
    )
    assert "name an evaluation set" not in tokensieve(*wrong, "--measures", "quantisation").out
    assert "sets: quantisation is measured on" in tokensieve(*wrong, "--measures", "quantisation").error
    assert not (tmp_path / "no").exists()


def test_a_plan_says_which_words_are_not_there(tmp_path: Path) -> None:
    """A dry run died of a FileNotFoundError."""
    config = EvaluateConfig("out", {}, measures=["surprisal"], surprisal=SurprisalOptions(str(tmp_path / "gone.csv")))
    with pytest.raises(UserError, match=r"gone.csv is not there"):
        measures.work(config)
