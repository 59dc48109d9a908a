"""lm-evaluation-harness, with our tasks, a loaded model, and answers that are kept.

``task_configs`` are what its TaskManager and ``simple_evaluate`` take; ``evaluate_task`` runs one and gives its records.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...runs.errors import UserError
from .answers import answer_in, is_right
from .catalogue import PaperTask
from .kept import KeptAnswers, request_key
from .problems import Problem
from .programs import program_answer
from .worked import Style, gold_text, prompt_of, style_of

NEEDS_HARNESS = "tasks: lm-evaluation-harness is needed: pip install 'tokensieve[eval]'"
GOLD = "_gold"


def check_harness() -> None:
    """UserError if lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:  # importing it takes seconds
        raise UserError(NEEDS_HARNESS)


@dataclass(frozen=True)
class Asked:
    """A task as it is asked: its problems, the worked examples before each, and the most tokens of an answer."""

    task: PaperTask
    problems: Sequence[Problem]
    examples: Sequence[Problem]
    max_tokens: int
    programs: bool = False
    """Answers are programs; there are no right ones to be found likely."""

    @property
    def style(self) -> Style:
        return style_of(self.task, self.programs)

    @property
    def requests(self) -> int:
        """Prompts that a model is asked: each for an answer, and each with the right one."""
        return len(self.problems) * (1 if self.programs else 2)


def judged(asked: Asked, text: str, problem: Problem) -> tuple[str | None, bool, bool]:
    """(the answer in a text, whether it was said to be the answer, whether it is right). A program is run for that."""
    if asked.programs:
        return program_answer(text, problem.answer, asked.task.answers)
    found = answer_in(text, asked.task.answers)
    if found is None:
        return None, False, False
    return found.answer, found.stated, is_right(found.answer, problem.answer, asked.task.answers)


Judge = Callable[[str, Problem], tuple[str | None, bool, bool]]


def task_configs(asked: Asked, judge: Judge | None = None) -> list[dict[str, Any]]:
    """The task as two configs of lm-evaluation-harness, over the same prompts.

    ``tokensieve_NAME`` has a model answer, greedily: ``accuracy`` (the last number counts where none is said to be the answer)
    and ``accuracy_stated``. ``tokensieve_NAME_gold`` asks how likely the right answer is: ``bits_per_byte``; not of programs.
    """
    task, style, problems = asked.task, asked.style, list(asked.problems)
    judge = judge or functools.partial(judged, asked)

    def documents(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list([_document(asked, i) for i in range(len(problems))])}

    def grade(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        _, stated, right = judge(results[0], problems[doc["index"]])
        return {"accuracy": float(right), "accuracy_stated": float(right and stated)}

    def weigh(doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        log_likelihood = results[0][0]
        if log_likelihood is None:  # longer than the model's context
            return {}
        return {"bits_per_byte": (log_likelihood, len((style.between + doc["gold"]).encode()))}

    shared = {
        "custom_dataset": documents,
        "test_split": "test",
        "num_fewshot": len(asked.examples),
        "doc_to_text": lambda doc: doc["prompt"],
        "target_delimiter": style.between,
        "metadata": {"version": 1},
        "fewshot_config": {
            "sampler": "first_n",
            "samples": [_shown(style, example) for example in asked.examples],
            "doc_to_target": lambda doc: doc["gold"],
        },
    }
    generates = {
        "task": f"tokensieve_{task.name}",
        "output_type": "generate_until",
        "doc_to_target": lambda doc: doc["gold"],
        "generation_kwargs": {"until": list(style.until), "do_sample": False, "max_gen_toks": asked.max_tokens},
        "process_results": grade,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("accuracy", "accuracy_stated")
        ],
    }
    weighs = {
        "task": f"tokensieve_{task.name}{GOLD}",
        "output_type": "loglikelihood",
        "doc_to_target": lambda doc: style.between + doc["gold"],
        "process_results": weigh,
        "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
    }
    return [{**shared, **generates}] if asked.programs else [{**shared, **generates}, {**shared, **weighs}]


def _shown(style: Style, problem: Problem) -> dict[str, Any]:
    return {"prompt": prompt_of(style, problem.question), "gold": gold_text(style, problem)}


def _document(asked: Asked, index: int) -> dict[str, Any]:
    problem = asked.problems[index]
    return {"index": index, **_shown(asked.style, problem), "answer": problem.answer, "where": problem.where}


# --- the model -----------------------------------------------------------------------------------------------------------


def harness_model(model: Any, tokenizer: Any, max_length: int | None, batch_rows: int) -> Any:
    """lm-evaluation-harness's HFLM around a loaded model. Decoding is greedy, whatever its folder's generation_config says."""
    from lm_eval.models.huggingface import HFLM
    from transformers import GenerationConfig

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("transformers.generation").setLevel(logging.ERROR)
    # A folder may ask for a repetition penalty or beams: the paper's decoding is greedy.
    model.generation_config = GenerationConfig(eos_token_id=_ends(model, tokenizer))
    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_rows, max_length=max_length)


def _ends(model: Any, tokenizer: Any) -> list[int]:
    theirs = getattr(model.generation_config, "eos_token_id", None)
    theirs = theirs if isinstance(theirs, list) else [theirs]
    return sorted({tokenizer.eos_token_id, *(i for i in theirs if isinstance(i, int))})


@dataclass
class Told:
    """What a model could not be asked as it was meant."""

    cut: int = 0
    """Prompts that lost their beginning: they and the answer are longer than the context."""
    left_out: int = 0
    """Right answers that are longer than the context: they are in no bits per byte."""


def keeping_model(lm: Any, kept: KeptAnswers, batch_rows: int, advance: Callable[[int], Any]) -> tuple[Any, Told]:
    """A model of lm-evaluation-harness that asks ``lm`` what ``kept`` has no answer to, in the same batches every time."""
    from lm_eval.api.model import LM

    told = Told()

    class Keeping(LM):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            for args in {r.args[0]: r.args for r in requests}.values():
                told.cut += len(lm.tok_encode(args[0])) > lm.max_length - args[1]["max_gen_toks"]
            return self._all("generate_until", requests, batch_rows, lambda _: False)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            def too_long(args: tuple[Any, ...]) -> bool:
                if len(args[1].encode()) < lm.max_length:  # a token is a byte at least; a character may be four
                    return False
                return bool(len(lm.tok_encode(args[1], add_special_tokens=False)) >= lm.max_length)

            found = self._all("loglikelihood", requests, 8 * batch_rows, too_long)
            told.left_out += sum(answer is None for answer in found)
            return [(None, False) if answer is None else tuple(answer) for answer in found]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            return self._all("loglikelihood_rolling", requests, 8 * batch_rows, lambda _: False)

        def _all(self, kind: str, requests: list[Any], rows: int, skip: Callable[[tuple[Any, ...]], bool]) -> list[Any]:
            """Longest first, so that a batch has requests of about one length and what does not fit in memory fails at once."""
            keys = [request_key(kind, r.args) for r in requests]
            by_key, times = dict(zip(keys, requests, strict=True)), Counter(keys)
            order = sorted(
                (k for k, r in by_key.items() if not skip(r.args)), key=lambda k: (-len(by_key[k].args[0]), k)
            )
            for at in range(0, len(order), rows):
                batch = order[at : at + rows]
                if not all(k in kept.answers for k in batch):
                    kept.add(batch, getattr(lm, kind)([by_key[k] for k in batch], disable_tqdm=True))
                advance(sum(times[k] for k in batch))
            return [kept.answers.get(k) for k in keys]

    return Keeping(), told


# --- a task --------------------------------------------------------------------------------------------------------------


@dataclass
class TaskResult:
    """What a model did on a task."""

    records: list[dict[str, Any]]
    """metric, value, stderr, and n: how many problems the value is of."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """A problem each: where, question, gold, text, answer, stated, right, nll, bytes."""
    told: Told = field(default_factory=Told)


def evaluate_task(
    asked: Asked, lm: Any, kept: KeptAnswers, batch_rows: int, advance: Callable[[int], Any]
) -> TaskResult:
    """One of our tasks, by lm-evaluation-harness, offline.

    ``value`` of accuracies: the mean over problems, in [0, 1], with the harness's standard error of a mean; of
    ``bits_per_byte``: the sum of bits over the sum of bytes, with that of a ratio of sums over problems.
    """
    keeping, told = keeping_model(lm, kept, batch_rows, advance)
    judge = functools.cache(functools.partial(judged, asked))  # asked for twice; a program takes its time
    results = run_harness(keeping, task_configs(asked, judge))
    name = f"tokensieve_{asked.task.name}"
    found, samples = results["results"][name], results["samples"]
    problems = len(asked.problems)
    records = [
        {"metric": m, "value": found[f"{m},none"], "stderr": _number(found.get(f"{m}_stderr,none")), "n": problems}
        for m in ("accuracy", "accuracy_stated")
    ]
    gold = {s["doc_id"]: s["bits_per_byte"] for s in samples.get(f"{name}{GOLD}", ()) if "bits_per_byte" in s}
    if not asked.programs:
        records.append({"metric": "bits_per_byte", **bits_per_byte(list(gold.values())), "n": len(gold)})
    answers = [_told(asked, judge, sample, gold.get(sample["doc_id"])) for sample in samples[name]]
    return TaskResult(records, answers, told)


def bits_per_byte(pairs: Sequence[tuple[float, int]]) -> dict[str, float | None]:
    """value = -sum(log likelihood) / (ln 2 * sum(bytes)), stderr by the delta method; None where there are none, or one."""
    n, num_bytes = len(pairs), sum(b for _, b in pairs)
    if not num_bytes:
        return {"value": None, "stderr": None}
    bits = [-ll / math.log(2) for ll, _ in pairs]
    value = sum(bits) / num_bytes
    if not math.isfinite(value):  # a right answer of probability 0
        return {"value": None, "stderr": None}
    if n < 2:
        return {"value": value, "stderr": None}
    square = sum((x - value * b) ** 2 for x, (_, b) in zip(bits, pairs, strict=True))
    return {"value": value, "stderr": math.sqrt(n / (n - 1) * square) / num_bytes}


def _told(asked: Asked, judge: Judge, sample: dict[str, Any], gold: tuple[float, int] | None) -> dict[str, Any]:
    problem, text = asked.problems[sample["doc"]["index"]], sample["resps"][0][0]
    answer, stated, right = judge(text, problem)
    return {
        "where": problem.where,
        "question": problem.question,
        "gold": problem.answer,
        "text": text,
        "answer": answer,
        "stated": stated,
        "right": right,
        "nll": None if gold is None or not math.isfinite(gold[0]) else -gold[0],
        "bytes": None if gold is None else gold[1],
    }


def run_harness(lm: Any, tasks: Sequence[Any], manager: Any = None) -> dict[str, Any]:
    """lm-evaluation-harness's ``evaluate`` over configs, names or tasks. Quiet: it shows a bar for each thing it does."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False) if manager is None else manager
    with quiet():
        loaded = manager.load(list(tasks))
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=1234)  # what its simple_evaluate takes
        found: dict[str, Any] = evaluate(lm=lm, task_dict=loaded, bootstrap_iters=1000, log_samples=True)
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
