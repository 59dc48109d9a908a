"""``tokensieve evaluate --tasks``: models x few-shot tasks -> accuracy, and bits per byte of the right answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tqdm.auto import tqdm

from ..data.tokenizer import load_tokenizer
from ..evaluation.tasks.answers import check_grader
from ..evaluation.tasks.catalogue import PaperTask, chosen_tasks
from ..evaluation.tasks.general import GeneralTask, evaluate_general, find_general
from ..evaluation.tasks.harness import Asked, TaskResult, check_harness, evaluate_task, harness_model
from ..evaluation.tasks.kept import KeptAnswers
from ..evaluation.tasks.problems import read_problems, task_file
from ..evaluation.tasks.programs import check_isolation
from ..evaluation.tasks.tables import task_tables
from ..evaluation.tasks.worked import gold_text, prompt_of, style_of, worked_examples
from ..modeling.checkpoints import Checkpoint, average_into, checkpoints_of
from ..modeling.folder import model_hash, read_config
from ..modeling.load import load_causal_lm, max_positions, quiet_loading
from ..runs.errors import UserError
from ..runs.files import PART_NOTES, atomic_file, hash_json, write_json
from ..runs.manifest import note_part, part_field, part_is_whole
from ..runs.stage import Stage, stage
from ..runs.work import Work
from .configs.evaluate import NOT_WORK, TASKS_KIND, EvaluateConfig
from .recipe.cost import Cost, Known

TASK_RECORDS = "tasks.json"


@dataclass(frozen=True)
class _Found:
    """The tasks that can be asked, and what is missing of the others: the file and fields that are expected."""

    maths: list[Asked]
    general: list[GeneralTask]
    missing: dict[str, str]

    def identity(self) -> dict[str, Any]:
        """What is asked, and how: problems, examples and forms."""
        maths = {a.task.name: _identity(a) for a in self.maths}
        return {**maths, **{g.name: g.identity for g in self.general}}


def run(config: EvaluateConfig) -> Path:
    """Write ``tasks.json``, a list of records (docs/formats.md), ``table.txt``, and each model's answers to each task.

    Every answer is kept as soon as its batch is done: after a kill only the rest is asked.
    """
    check_harness()
    check_grader()
    if config.programs:
        check_isolation()
    found, targets, out = _find(config), list(targets_of(config)), Path(config.out)
    tokenizers = {name: load_tokenizer(_tokenizer_folder(folder)) for name, folder in config.models.items()}
    for target in targets:
        _check_room(found, target)
    with stage(out, _work(config, found, targets)) as s:
        if s.done:
            return out
        for name, told in found.missing.items():
            print(f"tokensieve: {name} is left out: {told}", file=sys.stderr, flush=True)
        s.bind()
        records, files = list[dict[str, Any]](), list[str]()
        for target in targets:
            for path, its in _of_model(config, found, target, tokenizers[target.name], s):
                files.append(path.name)
                records += [{**whose(target), **r} for r in its]
        write_json(out / TASK_RECORDS, records)
        with atomic_file(out / "table.txt", "w") as f:
            f.write(task_tables(records, _asked_for(config), config.limit) + "\n")
        s.finish([TASK_RECORDS, "table.txt", *files], results=len(records), **_told_missing(found))
    return out


def targets_of(config: EvaluateConfig) -> list[Checkpoint]:
    """The models to evaluate, with their checkpoints if they are asked for."""
    names = config.models.items()
    found = [t for name, folder in names for t in checkpoints_of(name, folder, config.checkpoints, config.average)]
    if config.average > 1 and found and not any(t.averaged for t in found):
        raise UserError(
            f"average: {config.average} checkpoints of each run, and none of {', '.join(config.models)} kept any but its last: "
            "leave average out, or train with save_strategy and save_steps"
        )
    return found


def model_of(target: Checkpoint) -> Any:
    """Its model, averaged where that is asked for."""
    quiet_loading()
    model = load_causal_lm(target.folder)
    if target.averaged:
        average_into(model, target.averaged)
    return model


def work(config: EvaluateConfig) -> Work:
    """What says which evaluation it is: the models' weights, the problems, and the prompts."""
    return _work(config, _find(config), list(targets_of(config)))


def _work(config: EvaluateConfig, found: _Found, targets: list[Checkpoint]) -> Work:
    inputs = {
        "models": [(t.name, t.step, model_hash(t.folder)) for t in targets],
        "averaged": [(t.name, [model_hash(f) for f in t.averaged]) for t in targets if t.averaged],
        "tasks": found.identity(),
    }
    return Work.of(TASKS_KIND, config, NOT_WORK, inputs, models=sorted(config.models), tasks=sorted(_names(config)))


def validate(config: EvaluateConfig) -> None:
    """UserError for unknown tasks, and for fields that go with sets alone or with tasks alone."""
    maths, _ = chosen_tasks(_names(config))
    if config.sets or config.baselines:
        raise UserError("tasks: sets and baselines are evaluated by themselves: leave them out, or leave out tasks")
    if maths and config.data is None:
        raise UserError(f"data: a folder with the tasks' files is needed: {', '.join(t.told() for t in maths)}")
    if config.programs and config.shots == "first":
        raise UserError("shots: the rows of a task's file have no programs: leave shots at ours")
    for name, least in (("num_shots", 0), ("max_tokens", 1), ("limit", 1)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"{name} must be at least {least}, not {value}")
    if config.num_shots is not None and config.shots == "ours":
        for task in maths:
            if config.num_shots > (most := len(worked_examples(task, config.programs))):
                raise UserError(
                    f"num_shots: there are {most} worked examples for {task.name}; shots: first takes them from its file"
                )
    if config.programs and not [t for t in maths if t.answers != "choice"]:
        raise UserError("programs: none of these tasks is answered by programs")


def estimate(config: EvaluateConfig, known: Known) -> Cost:
    """Prompts and answers of every problem, twice: a forward for the answer and one for the right one. 3.5 bytes a token."""
    maths, general = chosen_tasks(_names(config))
    tokens = float("nan") if general else 0.0
    for task in maths:
        path = task_file(task, config.data or "")
        rows = task.rows if path is None else len(read_problems(task, path, config.limit))
        style = style_of(task, config.programs)
        examples = worked_examples(task, config.programs)[: config.num_shots]
        shown = sum(len(prompt_of(style, p.question)) + len(gold_text(style, p)) for p in examples)
        tokens += min(rows, config.limit or rows) * 2 * (shown + 500) / 3.5
    copies = [known.checkpoints(folder) if config.checkpoints else 1 for folder in config.models.values()]
    flops = [known.forward_flops(folder, tokens, 1024) for folder in config.models.values()]
    memory = max((4 * known.num_parameters(folder) for folder in config.models.values()), default=0)
    total = sum(n * f for n, f in zip(copies, flops, strict=True))
    return Cost(tokens * sum(copies), total, None, False, memory=memory)


# --- what is asked -------------------------------------------------------------------------------------------------------


def _names(config: EvaluateConfig) -> list[str]:
    return [config.tasks] if isinstance(config.tasks, str) else list(config.tasks)


def _asked_for(config: EvaluateConfig) -> list[str]:
    maths, general = chosen_tasks(_names(config))
    return [*(t.name for t in maths), *general]


def _find(config: EvaluateConfig) -> _Found:
    """What is on this disk. UserError if nothing is, if a task that is asked for by its own name is not, or for a bad line."""
    maths, names = chosen_tasks(_names(config))
    asked, missing = list[Asked](), dict[str, str]()
    for task in maths:
        if config.programs and task.answers == "choice":
            missing[task.name] = f"{task.name} is answered by a letter, not by a program"
        elif (path := task_file(task, config.data or "")) is None:
            missing[task.name] = f"{config.data} has no {task.told()}"
        else:
            asked.append(_asked(config, task, path))
    general, absent = find_general(names) if names else ([], {})
    missing |= absent
    if not asked and not general:
        raise UserError(f"tasks: none of them is on this disk: {'; '.join(missing.values())}")
    if by_name := [name for name in missing if name in _names(config)]:
        raise UserError(f"tasks: {missing[by_name[0]]}")
    return _Found(asked, general, missing)


def _asked(config: EvaluateConfig, task: PaperTask, path: Path) -> Asked:
    ours = worked_examples(task, config.programs)
    count = len(ours) if config.num_shots is None else config.num_shots
    first = count if config.shots == "first" else 0
    problems = read_problems(task, path, None if config.limit is None else config.limit + first)
    if len(problems) <= first:
        raise UserError(f"{path} has {len(problems)} problems, of which {first} would be worked examples: none is left")
    examples = problems[:first] if first else ours[:count]
    return Asked(task, problems[first:], examples, config.max_tokens or task.max_tokens, config.programs)


def _identity(asked: Asked) -> dict[str, Any]:
    style = asked.style
    problems = [(p.question, p.answer, p.solution) for p in asked.problems]
    examples = [(p.question, p.answer, p.solution) for p in asked.examples]
    return {"problems": hash_json(problems), "prompt": hash_json([examples, style.ask, style.answer, style.until])}


def _check_room(found: _Found, target: Checkpoint) -> None:
    """UserError for a model whose context has no room for an answer, and a question before it."""
    longest = max_positions(read_config(target.folder).get_text_config())
    if longest is None:
        return
    if tight := [a for a in found.maths if a.max_tokens >= longest]:
        raise UserError(
            f"max_tokens: an answer to {tight[0].task.name} may have {tight[0].max_tokens} tokens, and {target.folder} has a "
            f"context of {longest}: give --max_tokens, and perhaps fewer --num_shots"
        )


def _tokenizer_folder(folder: str) -> Path:
    from ..modeling.folder import model_folder

    return model_folder(folder)


# --- a model -------------------------------------------------------------------------------------------------------------


def _of_model(
    config: EvaluateConfig, found: _Found, target: Checkpoint, tokenizer: Any, s: Stage
) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """(file of answers, records) of each task. The model is loaded when there is something left to ask it."""
    lm, tasks = None, list[Asked | GeneralTask]([*found.maths, *found.general])
    for task in tasks:
        name = task.task.name if isinstance(task, Asked) else task.name
        path = s.folder / f"answers-{file_stem(target)}-{name}.jsonl"
        if not part_is_whole(path):
            if lm is None:
                lm = _harness_model(config, target, tokenizer)
            result = _ask(
                task, lm, KeptAnswers(s.folder / PART_NOTES / f"kept-{path.name}"), target, _rows(config, task, lm)
            )
            with atomic_file(path, "w") as f:
                f.writelines(json.dumps(a, ensure_ascii=False) + "\n" for a in result.answers)
            note_part(path, records=_records(task, result))
        yield path, part_field(path, "records", [])


def _harness_model(config: EvaluateConfig, target: Checkpoint, tokenizer: Any) -> Any:
    import torch

    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = model_of(target).to(device)
    return harness_model(model, tokenizer, max_positions(model.config.get_text_config()), 1)


def _rows(config: EvaluateConfig, task: Asked | GeneralTask, lm: Any) -> int:
    """Prompts of one forward. lm-evaluation-harness is told: its own batches are within ours."""
    longest = 1024
    if isinstance(task, Asked):
        shown = [prompt_of(task.style, p.question) + gold_text(task.style, p) for p in task.examples]
        question = max(task.problems, key=lambda p: len(p.question)).question
        longest = len(lm.tok_encode("\n\n".join([*shown, prompt_of(task.style, question)]))) + task.max_tokens
    rows = config.batch_rows or max(1, 8192 // min(longest, lm.max_length))
    lm.batch_size_per_gpu = rows
    return rows


def _ask(task: Asked | GeneralTask, lm: Any, kept: KeptAnswers, target: Checkpoint, rows: int) -> TaskResult:
    name = task.task.column if isinstance(task, Asked) else task.name
    label = f"{target.name}{'' if target.step is None else f' @{target.step}'} on {name}"
    total = task.requests if isinstance(task, Asked) else None
    with tqdm(total=total, desc=label, unit="prompt", leave=False) as bar:
        if isinstance(task, Asked):
            return evaluate_task(task, lm, kept, rows, bar.update)
        return evaluate_general(task, lm, kept, rows, bar.update)


def _records(task: Asked | GeneralTask, result: TaskResult) -> list[dict[str, Any]]:
    if isinstance(task, GeneralTask):
        return [{"task": task.name, "column": task.column, **r} for r in result.records]
    whose = {"task": task.task.name, "column": task.task.column}
    how = {"shots": len(task.examples), "cut": result.told.cut, "left_out": result.told.left_out}
    return [{**whose, **r, **how} for r in result.records]


def whose(target: Checkpoint) -> dict[str, Any]:
    """What a record says of the checkpoint that it is of."""
    trained = {"step": target.step, "tokens_seen": target.tokens_seen, "tokens_trained": target.tokens_trained}
    averaged = {"averaged": len(target.averaged)} if target.averaged else {}
    return {"model": target.name, **trained, "is_last": target.is_last, **averaged}


def file_stem(target: Checkpoint) -> str:
    """What the files of a checkpoint are called by."""
    return quote(target.name, safe="") + ("" if target.step is None else f"@{target.step}")


def _told_missing(found: _Found) -> dict[str, Any]:
    return {"missing": found.missing} if found.missing else {}
