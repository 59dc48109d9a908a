"""evaluate --tasks: a model that knows 40 problems by heart has all right, a new one none; figures against loops."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tokensieve.runs.manifest import is_done, read_manifest

pytest.importorskip("lm_eval")
pytest.importorskip("math_verify")

PROBLEMS = 40
# Real text is not part of the project: docs/tasks.md says which files.
DATA = Path(os.environ.get("TOKENSIEVE_DATA", "data/math"))


def problem(i: int) -> dict[str, str]:
    """Short, so that a tiny model has room for it and its worked examples."""
    return {"question": f"How much is {i + 100}?", "answer": str(random.Random(i).randrange(100, 999))}


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prompt(row: dict[str, str]) -> str:
    return f"Question: {row['question']}\nAnswer:"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 42 problems, whose first two are the worked examples, and another task with three of them."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "svamp.jsonl", [problem(i) for i in range(PROBLEMS + 2)])
    write(folder / "mawps.jsonl", [problem(i) for i in range(2, 7)])
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``new``: random weights. ``learned``: trained on prompts with their two worked examples until every token is sure."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    rows = [problem(i) for i in range(PROBLEMS + 2)]
    tokenizer = new_tokenizer(f"{prompt(row)} The answer is {row['answer']}.\n\n" for row in rows)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    for name in ("new", "learned"):
        if name == "learned":
            learn(model, tokenizer, rows)
        save(model, tokenizer, folder / name)
    return {name: folder / name for name in ("new", "learned")}


def new_tokenizer(texts: Iterable[str], vocab_size: int = 600) -> Any:
    """Words and numbers of the prompts are a token each, so that there is little to learn."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(kinds.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<eos>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


def learn(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> None:
    shots = "".join(f"{prompt(row)} The answer is {row['answer']}.\n\n" for row in rows[:2])
    ids, labels = [], []
    for row in rows[2:]:
        context = tokenizer.encode(shots + prompt(row))
        answer = [*tokenizer.encode(f" The answer is {row['answer']}."), tokenizer.eos_token_id]
        ids.append(context + answer)
        labels.append([-100] * len(context) + answer)
    length = max(map(len, ids))
    ids_BT = torch.tensor([i + [0] * (length - len(i)) for i in ids])
    labels_BT = torch.tensor([t + [-100] * (length - len(t)) for t in labels])
    fit(model, labels_BT, lambda: model(input_ids=ids_BT).logits)


def fit(model: Any, target_BT: torch.Tensor, logits_BTV: Callable[[], torch.Tensor]) -> None:
    """Until every target token is sure: a mean over tokens that are nearly all easy says little of the answer's own."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    target_N = target_BT[:, 1:].flatten()
    for _ in range(400):
        nll_N = torch.nn.functional.cross_entropy(logits_BTV()[:, :-1].flatten(0, 1), target_N, reduction="none")
        if nll_N.max().item() < 0.3:
            return
        optimizer.zero_grad()
        (nll_N.sum() / (target_N >= 0).sum()).backward()
        optimizer.step()
    pytest.fail(f"the model did not learn its 40 problems: {nll_N.max().item()}")


def arguments(out: Path, data: Path, models: dict[str, Path], *more: object) -> list[object]:
    named = [word for name, folder in models.items() for word in (f"--models.{name}", folder)]
    shots = ("--shots", "first", "--num_shots", 2, "--max_tokens", 16)
    return ["evaluate", "--out", out, "--data", data, *named, *shots, *more]


@pytest.fixture(scope="module")
def evaluated(data: Path, models: dict[str, Path], tokensieve: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    done = tokensieve(*arguments(out, data, models, "--tasks", "paper-math"))
    assert done.code == 0, done.err
    return out, done


def records(out: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = json.loads((out / "tasks.json").read_text())
    return {(r["model"], r["task"], r["metric"]): r for r in found}


def test_a_model_that_learned_its_problems_has_them_right(evaluated: Any) -> None:
    found = records(evaluated[0])
    assert found["learned", "svamp", "accuracy"]["value"] == 1
    assert found["learned", "svamp", "accuracy_stated"]["value"] == 1
    assert found["learned", "svamp", "accuracy"]["n"] == PROBLEMS
    assert found["new", "svamp", "accuracy"]["value"] <= 1 / 40
    assert found["new", "svamp", "accuracy_stated"]["value"] == 0
    assert (
        found["learned", "svamp", "bits_per_byte"]["value"] < 0.05 < 2 < found["new", "svamp", "bits_per_byte"]["value"]
    )


def test_accuracy_is_the_mean_of_what_is_right(evaluated: Any) -> None:
    """With the standard error of a mean: sd with n - 1, over the root of n."""
    out, _ = evaluated
    for (model, task, metric), record in records(out).items():
        if not metric.startswith("accuracy"):
            continue
        answers = [json.loads(line) for line in (out / f"answers-{model}-{task}.jsonl").read_text().splitlines()]
        right = [float(a["right"] and (a["stated"] or metric == "accuracy")) for a in answers]
        mean = sum(right) / len(right)
        error = math.sqrt(sum((x - mean) ** 2 for x in right) / (len(right) - 1) / len(right))
        assert record["value"] == pytest.approx(mean, abs=1e-12)
        assert record["stderr"] == pytest.approx(error, abs=1e-12)


def test_bits_per_byte_are_those_of_full_logits(evaluated: Any, models: dict[str, Path], data: Path) -> None:
    """Of the right answer alone, given its prompt: a sum over the prompt, or one shifted by a token, is another number."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(models["new"], dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(models["new"])
    rows = [json.loads(line) for line in (data / "mawps.jsonl").read_text().splitlines()]
    shots = "".join(f"{prompt(row)} The answer is {row['answer']}.\n\n" for row in rows[:2])
    bits, num_bytes = 0.0, 0
    for row in rows[2:]:
        answer = f" The answer is {row['answer']}."
        context, ids = tokenizer.encode(shots + prompt(row)), tokenizer.encode(shots + prompt(row) + answer)
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        bits -= sum(float(log_p[t - 1, ids[t]]) for t in range(len(context), len(ids))) / math.log(2)
        num_bytes += len(answer.encode())
    record = records(evaluated[0])["new", "mawps", "bits_per_byte"]
    assert record["value"] == pytest.approx(bits / num_bytes, rel=1e-5)
    assert record["n"] == 3
    assert record["stderr"] > 0


def test_the_table_is_the_paper_s(evaluated: Any) -> None:
    out, done = evaluated
    table = (out / "table.txt").read_text()
    assert table.rstrip("\n") in done.out
    head, _, *lines = table.split("\n")
    assert head.split() == [
        "model",
        *["GSM8K", "MATH", "SVAMP", "ASDiv", "MAWPS", "TAB", "MQA", "MMLU-STEM", "SAT", "AVG"],
    ]
    assert lines[1].startswith("learned")
    assert "100.0 ±0.0" in lines[1]
    assert "AVG: the mean of 2 of 9 tasks: SVAMP, MAWPS" in table
    assert "not run: GSM8K, MATH, ASDiv, TAB, MQA, MMLU-STEM, SAT" in table
    assert "worked examples: 2 SVAMP, 2 MAWPS" in table


def test_what_is_missing_is_listed(evaluated: Any, data: Path) -> None:
    out, done = evaluated
    assert f"gsm8k is left out: {data} has no gsm8k.jsonl (question, answer; optional: solution)" in done.err
    assert sorted(read_manifest(out)["missing"]) == [
        "asdiv",
        "gsm8k",
        "math",
        "mathqa",
        "mmlu_stem",
        "sat_math",
        "tabmwp",
    ]


def test_again_is_done_already(evaluated: Any, data: Path, models: dict[str, Path], tokensieve: Any) -> None:
    out, _ = evaluated
    before = (out / "manifest.json").read_bytes()
    assert tokensieve(*arguments(out, data, models, "--tasks", "paper-math")).code == 0
    assert (out / "manifest.json").read_bytes() == before
    done = tokensieve(*arguments(out, data, models, "--tasks", "svamp"))
    assert done.code == 2
    assert "is done, but from other inputs" in done.error


def test_after_a_kill_only_the_rest_is_asked(
    evaluated: Any,
    data: Path,
    models: dict[str, Path],
    tokensieve: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches of 8: the 40 prompts of the first task are 5 batches. The third is cut off in the middle of its line."""
    from lm_eval.models.huggingface import HFLM

    from tokensieve.evaluation.tasks.kept import KeptAnswers

    add, ask, asked = KeptAnswers.add, HFLM.generate_until, list[int]()

    def killed(self: KeptAnswers, *batch: Any) -> None:
        add(self, *batch)
        if len(self.answers) == 24:
            self.path.write_bytes(self.path.read_bytes()[:-5])
            raise KeyboardInterrupt

    def counted(self: Any, requests: list[Any], **more: Any) -> Any:
        asked.append(len(requests))
        return ask(self, requests, **more)

    monkeypatch.setattr(HFLM, "generate_until", counted)
    one = arguments(tmp_path / "out", data, {"learned": models["learned"]}, "--tasks", "svamp", "--batch_rows", 8)
    with monkeypatch.context() as context:
        context.setattr(KeptAnswers, "add", killed)
        assert tokensieve(*one).code == 130
    assert asked == [8, 8, 8]
    assert not is_done(tmp_path / "out")
    assert tokensieve(*one).code == 0
    assert asked[3:] == [8, 8, 8]
    assert not (tmp_path / "out" / "parts").exists()
    again = records(tmp_path / "out")
    assert again["learned", "svamp", "accuracy"]["value"] == 1
    whole = records(evaluated[0])["learned", "svamp", "bits_per_byte"]
    assert again["learned", "svamp", "bits_per_byte"]["value"] == pytest.approx(whole["value"], rel=1e-4)


def test_finished_tasks_are_not_asked_again(
    data: Path, models: dict[str, Path], tokensieve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in the second task: the first one's answers stand, and the model is asked the rest of the second only."""
    from lm_eval.models.huggingface import HFLM

    ask, asked = HFLM.generate_until, list[int]()

    def once(self: Any, requests: list[Any], **more: Any) -> Any:
        asked.append(len(requests))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(self, requests, **more)

    monkeypatch.setattr(HFLM, "generate_until", once)
    words = ("--tasks", "svamp", "mawps", "--limit", 3, "--batch_rows", 8)
    one = arguments(tmp_path / "out", data, {"new": models["new"]}, *words)
    assert tokensieve(*one).code == 130
    assert tokensieve(*one).code == 0
    assert asked == [3, 3, 3]
    assert {r["n"] for r in records(tmp_path / "out").values()} == {3}
    assert "only the first 3 problems of each task" in (tmp_path / "out" / "table.txt").read_text()


def test_a_context_that_is_too_short(
    tiny: Any, data: Path, models: dict[str, Path], tokensieve: Any, tmp_path: Path
) -> None:
    """Prompts lose their beginning, as the harness does it, and the table says how many did."""
    words = ("--tasks", "svamp", "--shots", "ours", "--limit", 3)
    done = tokensieve(*arguments(tmp_path / "out", data, {"base": tiny.base / "model"}, *words))
    assert done.code == 0, done.err
    assert "base: 3 prompts of SVAMP are longer than its context and lost their beginning" in done.out
    assert records(tmp_path / "out")["base", "svamp", "accuracy"]["cut"] == 3


def test_checkpoints_are_lines_of_the_table(tiny: Any, data: Path, tokensieve: Any, tmp_path: Path) -> None:
    words = ("--tasks", "svamp", "--num_shots", 0, "--limit", 2, "--checkpoints", "--batch_rows", 8)
    done = tokensieve(*arguments(tmp_path / "out", data, {"clm": tiny.clm}, *words))
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert [(r["step"], r["is_last"]) for r in found if r["metric"] == "accuracy"] == [(2, False), (4, True)]
    assert found[0]["tokens_seen"] > 0
    table = (tmp_path / "out" / "table.txt").read_text().split("\n")
    assert table[0].split()[:3] == ["model", "tokens", "seen"]
    assert [line.split("  ")[0] for line in table[2:4]] == ["clm @2", "clm"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tasks", "gsm"], "tasks: unknown task 'gsm'; there are paper-math"),
        (["--tasks", "gsm8k"], "has no gsm8k.jsonl (question, answer; optional: solution)"),
        (["--tasks", "svamp", "--sets.a", "{data}"], "tasks: sets and baselines are evaluated by themselves"),
        (["--tasks", "svamp", "--limit", "0"], "limit must be at least 1, not 0"),
        (
            ["--tasks", "svamp", "--num_shots", "9", "--shots", "ours"],
            "num_shots: there are 8 worked examples for svamp",
        ),
        (["--tasks", "mawps", "--num_shots", "5"], "mawps.jsonl has 5 problems, of which 5 would be worked examples"),
        (["--tasks", "svamp", "--max_tokens", "128"], "may have 128 tokens, and"),
        ([], "it goes with tasks, and no tasks are named"),
    ],
)
def test_what_is_wrong(
    words: list[str], says: str, data: Path, models: dict[str, Path], tokensieve: Any, tmp_path: Path
) -> None:
    more = [w.format(data=data) for w in words] or ["--sets.a", str(data)]
    done = tokensieve(*arguments(tmp_path / "out", data, {"new": models["new"]}, *more))
    assert done.code == 2
    assert says in done.error
    assert not (tmp_path / "out").exists()


def test_a_broken_line_ends_it_before_a_model_is_loaded(
    models: dict[str, Path], tokensieve: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "data" / "svamp.jsonl", [problem(0), problem(1), problem(2)])
    path.write_text(path.read_text() + '{"question": "x"}\n')
    done = tokensieve(*arguments(tmp_path / "out", path.parent, models, "--tasks", "paper-math"))
    assert done.code == 2
    assert f"{path}:4: no field 'answer'" in done.error


def test_a_right_answer_of_more_tokens_than_characters(
    models: dict[str, Path], tokensieve: Any, tmp_path: Path
) -> None:
    """Its characters were counted, and a character may be several tokens: the harness ended with an AssertionError."""
    rows = [*map(problem, range(3)), {**problem(3), "solution": "好" * 60}]
    path = write(tmp_path / "data" / "svamp.jsonl", rows)
    done = tokensieve(*arguments(tmp_path / "out", path.parent, {"new": models["new"]}, "--tasks", "svamp"))
    assert done.code == 0, done.err
    assert "new: 1 right answers of SVAMP are longer than its context and in no bits per byte" in done.out
    assert records(tmp_path / "out")["new", "svamp", "bits_per_byte"]["n"] == 1


def test_half_of_a_surrogate_pair_is_refused(models: dict[str, Path], tokensieve: Any, tmp_path: Path) -> None:
    """Such text came as far as the model, and ended there with a traceback."""
    path = write(tmp_path / "data" / "svamp.jsonl", [problem(0), {"question": "half \ud83d", "answer": "1"}])
    done = tokensieve(*arguments(tmp_path / "out", path.parent, models, "--tasks", "svamp"))
    assert done.code == 2
    assert f"{path}:2: the text holds half of a surrogate pair" in done.error


def test_no_data_at_all(models: dict[str, Path], tokensieve: Any, tmp_path: Path) -> None:
    done = tokensieve(*arguments(tmp_path / "out", tmp_path, models, "--tasks", "paper-math"))
    assert done.code == 2
    assert "tasks: none of them is on this disk" in done.error
    assert "mathqa.jsonl (question, choices, answer; optional: solution)" in done.error


def test_a_stage_of_a_recipe(data: Path, models: dict[str, Path], tokensieve: Any, tmp_path: Path) -> None:
    """The dry run estimates it without any data; the run does it; another run skips it."""
    recipe = tmp_path / "few.yaml"
    settings = f"settings: {{data: {data}}}\n"
    fields = "verb: evaluate, tasks: [svamp], shots: first, num_shots: 2, max_tokens: 16, limit: 2, data: '${data}'"
    recipe.write_text(
        f"out: {tmp_path}/run\n{settings}stages:\n  table: {{{fields}, models: {{new: {models['new']}}}}}\n"
    )
    plan = tokensieve("run", recipe, "--dry-run")
    assert plan.code == 0, plan.err
    nothing = tokensieve("run", recipe, "--dry-run", "--set", f"{{data: {tmp_path}/none}}")
    assert nothing.code == 0, nothing.err
    assert "~" in nothing.out
    assert tokensieve("run", recipe).code == 0
    again = tokensieve("run", recipe)
    assert "table: done already" in again.out


@pytest.mark.slow
def test_eight_worked_examples_and_real_problems(tokensieve: Any, tmp_path: Path) -> None:
    """The first 40 problems of SVAMP, asked as the paper does, in a context that has room for it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tokensieve.evaluation.tasks.catalogue import PAPER_MATHS
    from tokensieve.evaluation.tasks.problems import read_problems
    from tokensieve.evaluation.tasks.worked import gold_text, prompt_of, style_of, worked_examples

    file = DATA / "eval_svamp.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    task, style = PAPER_MATHS["svamp"], style_of(PAPER_MATHS["svamp"])
    problems, examples = read_problems(task, file, PROBLEMS), worked_examples(task)
    shots = "".join(f"{prompt_of(style, p.question)} {gold_text(style, p)}\n\n" for p in examples)
    texts = [(prompt_of(style, p.question), f" {gold_text(style, p)}") for p in problems]
    tokenizer = new_tokenizer([shots, *map("".join, texts)], vocab_size=2000)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    save(model, tokenizer, tmp_path / "new")
    learn_after(model, tokenizer, shots, texts)
    save(model, tokenizer, tmp_path / "learned")
    named = [word for name in ("new", "learned") for word in (f"--models.{name}", tmp_path / name)]
    words = ("--tasks", "paper-math", "--data", file.parent, "--limit", PROBLEMS, "--max_tokens", 32)
    done = tokensieve("evaluate", "--out", tmp_path / "out", *words, *named)
    assert done.code == 0, done.err
    found = records(tmp_path / "out")
    assert found["learned", "svamp", "accuracy_stated"]["value"] == 1
    assert found["learned", "svamp", "accuracy"]["shots"] == 8
    assert found["learned", "svamp", "accuracy"]["cut"] == 0
    assert found["new", "svamp", "accuracy"]["value"] <= 1 / 40
    assert found["learned", "gsm8k", "accuracy"]["n"] == PROBLEMS


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def learn_after(model: Any, tokenizer: Any, shots: str, texts: list[tuple[str, str]]) -> None:
    """As :func:`learn`, with the keys and values of the worked examples computed once a step for all problems."""
    from transformers import DynamicCache

    shots_1P = torch.tensor([tokenizer.encode(shots)])
    rows = [(tokenizer.encode(q), [*tokenizer.encode(a), tokenizer.eos_token_id]) for q, a in texts]
    length = max(len(q) + len(a) for q, a in rows)
    ids_BT = torch.tensor([[*q, *a, *[0] * (length - len(q) - len(a))] for q, a in rows])
    target_BT = torch.tensor([[-100] * len(q) + a + [-100] * (length - len(q) - len(a)) for q, a in rows])

    def logits_BTV() -> torch.Tensor:
        cache = DynamicCache()
        model(input_ids=shots_1P, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(rows))
        found: torch.Tensor = model(input_ids=ids_BT, past_key_values=cache).logits
        return found

    fit(model, target_BT, logits_BTV)
