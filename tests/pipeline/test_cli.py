"""The command line as its user meets it: help, overrides, configs, and one sentence for everything that is wrong."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokensieve import cli
from tokensieve.pipeline.config.help import field_docs
from tokensieve.pipeline.config.yaml_text import read_yaml
from tokensieve.pipeline.train import TrainConfig, training_arguments
from tokensieve.pipeline.verbs import VERBS, make_config
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import write_manifest


def parsed(verb: str, *arguments: str) -> Any:
    """The config that a command line comes to."""
    return cli.given(verb, arguments).config()


# --- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_help_documents_every_field(verb: str, tokensieve: Any) -> None:
    done = tokensieve(verb, "--help")
    assert done.code == 0
    config_class = VERBS[verb].config_class()
    for field in dataclasses.fields(config_class):
        assert f"  --{field.name}" in done.out
        assert field_docs(config_class)[field.name].split()[0] in done.out
    assert VERBS[verb].example in done.out


@pytest.mark.parametrize("verb", VERBS)
def test_example_of_the_help_is_accepted(verb: str) -> None:
    name, found, *arguments = shlex.split(VERBS[verb].example)
    assert (name, found) == ("tokensieve", verb)
    assert parsed(verb, *arguments)


def test_help_and_print_config_are_light() -> None:
    """A verb whose config stands in a module that imports torch at its top: seconds before the first line of help."""
    code = """
import contextlib, io, sys
from tokensieve import cli
from tokensieve.pipeline.verbs import VERBS
with contextlib.redirect_stdout(io.StringIO()) as out:
    for verb in VERBS:
        assert cli.main([verb, "--help"]) == 0
        assert cli.main([verb, "--print_config"]) == 0
assert out.getvalue().count("example:") == len(VERBS) and "seed: 0" in out.getvalue()
print(*[m for m in ("torch", "transformers", "datasets", "pyarrow", "numpy") if m in sys.modules])
"""
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


def test_verbs_are_listed_and_a_typo_finds_its_verb(tokensieve: Any) -> None:
    assert all(f"  {verb} " in tokensieve("--help").out for verb in VERBS)
    done = tokensieve("trian")
    assert (done.code, done.err) == (
        2,
        "tokensieve: error: unknown verb 'trian', did you mean 'train'?; see tokensieve --help\n",
    )


# --- what people type --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "typed", "meant"),
    [
        ("run", "demo --dry-run", "--recipe demo --dry_run true"),
        ("run", "--dry-run demo", "--dry_run true --recipe demo"),
        ("run", "demo --dry_run false", "--recipe demo --dry_run false"),
        ("run", "demo --only a b --out x", '--recipe demo --only ["a", "b"] --out x'),
        ("run", "demo --set.my-key 1", "--recipe demo --set.my-key 1"),
        ("check", "a b --disjoint", '--folders ["a", "b"] --disjoint true'),
        ("check", "--folders=a", '--folders=["a"]'),
        ("check", "--folders [a,b]", "--folders [a,b]"),
        ("show", "x --row 3", "--run x --row 3"),
        ("evaluate", "--checkpoints --out x", "--checkpoints true --out x"),
        ("evaluate", "--checkpoints maybe", "--checkpoints maybe"),
        ("train", "--training.max_steps -1 --seed=3", "--training.max_steps -1 --seed=3"),
        ("train", "stray --out x", "stray --out x"),
    ],
)
def test_short_forms(verb: str, typed: str, meant: str) -> None:
    assert " ".join(cli.parser_words(VERBS[verb], typed.split())) == meant


def test_dotted_overrides_reach_into_mappings() -> None:
    found = parsed(
        *("train", "--out", "x", "--corpus", "c", "--training.learning_rate", "1e-3", "--training.save_strategy", "no"),
        *(
            "--objective.name",
            "rho1",
            "--objective.ratio",
            "0.6",
            "--model.model_type",
            "llama",
            "--model.hidden_size=32",
        ),
        *("--lora.r", "2", "--scores", "a", "b"),
    )
    assert found.model == {"model_type": "llama", "hidden_size": 32}
    assert found.objective == {"name": "rho1", "ratio": 0.6}
    assert found.training["learning_rate"] == 1e-3
    assert (found.lora, found.scores) == ({"r": 2}, ["a", "b"])


def test_what_stands_after_a_config_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("{out: x, corpus: c, model: m, seed: 1, training: {max_steps: 4, learning_rate: 3e-4}}")
    found = parsed("train", "--config", str(path), "--seed", "2", "--training.max_steps", "5")
    assert (found.out, found.seed, found.training) == ("x", 2, {"max_steps": 5, "learning_rate": 3e-4})


@pytest.mark.parametrize("first", [True, False])
def test_print_config_is_whole_wherever_it_stands(first: bool, tmp_path: Path, tokensieve: Any) -> None:
    """The parser of before printed a config that stood before --config with only the fields of that file."""
    path = tmp_path / "train.yaml"
    path.write_text("{out: x, corpus: c, model: {model_type: llama}}")
    arguments = ["--config", path, "--seed", "3", "--json"]
    done = tokensieve("train", *(["--print_config", *arguments] if first else [*arguments, "--print-config"]))
    assert done.code == 0
    printed = yaml.safe_load(done.out)
    assert (printed["out"], printed["seed"], printed["dtype"]) == ("x", 3, "float32")
    (tmp_path / "again.yaml").write_text(done.out)
    assert parsed("train", "--config", str(tmp_path / "again.yaml")).seed == 3


@pytest.mark.parametrize("rate", ["3e-4", "0.0003", "3.0E-4", ".3e-3"])
def test_numbers_that_yaml_reads_as_text(rate: str, tmp_path: Path) -> None:
    """YAML 1.1 reads 3e-4 as the string "3e-4": training.learning_rate and a model's norm epsilon then are text."""
    path = tmp_path / "x.yaml"
    path.write_text(f"{{model: {{rms_norm_eps: {rate}}}, training: {{learning_rate: {rate}}}}}")
    assert read_yaml(path)["model"]["rms_norm_eps"] == 3e-4
    written = TrainConfig("o", "c", "m", training={"learning_rate": rate})
    assert training_arguments(written).learning_rate == 3e-4


@pytest.mark.parametrize("text", ["1.5.2", "3e", "e3", "1e-3x", "2024-01-01", "12:30", "-", "."])
def test_text_that_is_no_number_stays_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"x: {text if text not in '-.' else repr(text)}")
    assert read_yaml(tmp_path / "x.yaml")["x"] in (text, 12 * 60 + 30)  # 12:30 is YAML's sixty-based number


@pytest.mark.parametrize("value", ["no", False])
def test_save_strategy_no_is_not_false(value: Any) -> None:
    """YAML 1.1 reads ``save_strategy: no`` as false, which is no strategy."""
    made = training_arguments(TrainConfig("o", "c", "m", training={"save_strategy": value, "eval_strategy": value}))
    assert (made.save_strategy, made.eval_strategy) == ("no", "no")


def test_json_line(tiny: Any, tokensieve: Any) -> None:
    done = tokensieve("check", tiny.corpus, "--json")
    told = json.loads(done.out.splitlines()[-1])
    assert told["verb"] == "check"
    assert "whole" in told["text"][0]
    done = tokensieve("train", "--json", "--out", tiny.base, "--corpus", tiny.corpus, "--model", tiny.model,
                      "--training", "{max_steps: 4, save_steps: 2, logging_steps: 1}")  # fmt: skip
    told = json.loads(done.out.splitlines()[-1])
    assert (told["folder"], told["kind"], told["summary"]["steps"]) == (str(tiny.base), "model", 4)


def test_nothing_is_said_twice_by_several_processes(
    tiny: Any, tokensieve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert tokensieve("check", tiny.corpus).out == ""


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    """``tokensieve check ... | head -1`` ended with a BrokenPipeError."""
    folders = []
    for i in range(2000):
        (tmp_path / str(i)).mkdir()
        write_manifest(tmp_path / str(i), "evaluation", config={}, inputs={}, files=[]) if i == 0 else os.link(
            tmp_path / "0" / "manifest.json", tmp_path / str(i) / "manifest.json"
        )
        folders.append(str(tmp_path / str(i)))
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-m", "tokensieve", "check", *folders]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)


def test_a_reader_of_help_that_has_seen_enough() -> None:
    """``tokensieve VERB --help | head`` ended in a traceback: help is printed before anything that caught it."""
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-m", "tokensieve", "prepare", "--help"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)


# --- what is wrong ------------------------------------------------------------------------------------------------------

TRAIN = "train --out {tmp}/out --corpus {corpus} --model {base}"
WRONG = {
    # the parser
    "train": "missing: out, corpus, model",
    "train --out": "out: a value is missing",
    f"{TRAIN} --modle x": "unknown field 'modle', did you mean 'model'?",
    f"{TRAIN} --seed abc": "seed: a whole number is needed, not abc",
    f"{TRAIN} --seed 1.5": "seed: a whole number is needed, not 1.5",
    f"{TRAIN} --resume maybe": "resume: one of auto, never is needed, not maybe",
    f"{TRAIN} --lora 3": "lora: a mapping, as {name: value}, or null is needed, not 3",
    f"{TRAIN} --objective rho1": "objective: a mapping, as {name: value}, is needed, not rho1",
    f"{TRAIN} stray": "stands behind no --field",
    "evaluate --out x --models.a {base} --sets.t {target} --checkpoint": "unknown field 'checkpoint', did you mean",
    "evaluate --out x --models.a {base} --sets.t {target} --checkpoints maybe": "checkpoints: true or false is needed",
    "prepare --out {tmp}/out --sources '[{{pth: x}}]'": "sources.0: unknown field 'pth', did you mean 'path'?",
    "prepare --out {tmp}/out --sources [x]": "sources.0: a mapping, as {name: value}, is needed, not x",
    "prepare --out {tmp}/out --sources '[{{name: x}}]'": "sources.0: missing: path",
    "prepare --out {tmp}/out --sources '[{{path: x, split: [a, b]}}]'": "sources.0.split.0: a number is needed, not a; sources",
    "show {rho1} --corpus {corpus} --row x": "row: a whole number or null is needed, not x",
    "run": "missing: recipe",
    # the objective
    f"{TRAIN} --objective.name rho": "unknown objective 'rho': one of clm, random",
    f"{TRAIN} --objective.name random --objective.ratio 0": "ratio is 0.0, it must be in (0, 1]",
    f"{TRAIN} --objective.name random --objective.ratio 1.2": "ratio is 1.2, it must be in (0, 1]",
    f"{TRAIN} --objective.name random --objective.ratio abc": "objective.ratio: a number is needed, not abc",
    f"{TRAIN} --objective.name random --objective.scope bach": "objective.scope: one of sequence, batch, step, corpus is",
    f"{TRAIN} --objective.name random --objective.ratoi 0.5": "objective: unknown field 'ratoi', did you mean 'ratio'?",
    f"{TRAIN} --objective.name rho1": "scores: the objective needs the column 'ref_nll'",
    f"{TRAIN} --objective.name nope:x": "'nope:x' is code to be imported and called: if you trust it, add --allow_code",
    f"{TRAIN} --allow-code --objective.name nope:x": "cannot be imported",
    # TrainingArguments
    f"{TRAIN} --training.learning_rat 1": "training: unknown field 'learning_rat', did you mean 'learning_rate'?",
    f"{TRAIN} --training.learning_rate abc": "training.learning_rate: a number is needed, not abc",
    f"{TRAIN} --training.save_strategy sometimes": "training: sometimes is not a valid SaveStrategy",
    f"{TRAIN} --training.output_dir x": "training.output_dir follows from the field out",
    f"{TRAIN} --training.max_steps 0": "leave no step to do",
    f"{TRAIN} --training.train_sampling_strategy group_by_length": "train_sampling_strategy: group_by_length is not supported",
    f"{TRAIN} --training.average_tokens_across_devices false": "average_tokens_across_devices: False is not supported",
    f"{TRAIN} --training.dataloader_drop_last true --training.per_device_train_batch_size 500": "rows, 500 a step, and",
    f"{TRAIN} --training.report_to nonsense": "training: nonsense is not supported",
    f"{TRAIN} --training.eval_strategy steps": "training: eval_strategy has nothing to evaluate: name eval_sets",
    f"{TRAIN} --eval_sets.a/b {{corpus}}": "eval_sets: 'a/b' becomes part of a metric's name",
    # models
    f"{TRAIN} --dtype float8": "unknown dtype 'float8'",
    f"{TRAIN} --lora.rr 2": "lora: unknown field 'rr', did you mean 'r'?",
    f"{TRAIN} --lora.target_modules [nope]": "lora: Target modules {'nope'} not found",
    "train --out {tmp}/out --corpus {corpus} --model.model_type lama": "'lama' is no type of causal language model, did you",
    "train --out {tmp}/out --corpus {corpus} --model.hidden_size 3": "model: a config needs the field model_type",
    "train --out {tmp}/out --corpus {corpus} --model {model} --model.hiden_size 3": "has no field 'hiden_size', did you mean",
    "train --out {tmp}/out --corpus {corpus} --model {model} --model.hidden_size abc": "'hidden_size' expected int, got str",
    "train --out {tmp}/out --corpus {corpus} --model {model} --model.max_position_embeddings 16": "rows of 32 tokens are long",
    "train --out {tmp}/out --corpus {corpus} --model {model} --model.vocab_size 200": "vocabulary of 200, the corpus one of 29",
    # folders
    "train --out {tmp}/out --corpus {tmp}/nope --model {base}": "nope does not exist",
    "train --out {tmp}/out --corpus {base} --model {base}": "holds 'model', 'corpus' is needed here",
    "train --out {tmp}/out --corpus {corpus} --model {tmp}/nope": "nope does not exist",
    "train --out {tmp}/out --corpus {corpus} --model {corpus}": "is not a model folder: it has no config.json",
    f"{TRAIN} --scores {{corpus}}": "holds 'corpus', 'scores' is needed here",
    "train --out {tmp}/file/out --corpus {corpus} --model {base}": "cannot write into",
    "train --out {corpus} --corpus {corpus} --model {base}": "holds 'corpus': choose another --out",
    "prepare --out {tmp}/out --sources '[{{path: {tmp}/empty.jsonl}}]'": "no document found",
    "prepare --out {tmp}/out --sources '[{{path: {tmp}/nope.jsonl}}]'": "nope.jsonl does not exist",
    "score --out {tmp}/out --model {base} --corpus {corpus} --device tpu": "device: 'tpu' cannot be used",
    # config files
    "train --config {tmp}/nope.yaml": "nope.yaml cannot be read: No such file or directory",
    "train --config {tmp}/empty.yaml": "empty.yaml: a mapping of names to values is needed, this is empty",
    "train --config {tmp}/list.yaml": "list.yaml: a mapping of names to values is needed, this is a list",
    "train --config {tmp}/broken.yaml": "broken.yaml is not valid YAML",
    "train --config={tmp}/typo.yaml": "typo.yaml line 1: unknown field 'korpus', did you mean 'corpus'?",
    "train --config {tmp}/twice.yaml": "twice.yaml line 3: 'out' is given twice",
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    files = {
        "file": "",
        "empty.jsonl": '{"text": ""}\n',
        "empty.yaml": "",
        "list.yaml": "- a",
        "broken.yaml": "out: [x",
        "typo.yaml": "korpus: x",
        "twice.yaml": "out: a\nseed: 1\nout: b\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("line", WRONG)
def test_one_sentence_for_what_is_wrong(line: str, tiny: Any, faulty: Path, tokensieve: Any) -> None:
    places = {f.name: getattr(tiny, f.name) for f in dataclasses.fields(tiny)}
    words = [w.format(tmp=faulty, **places) for w in shlex.split(line)]
    done = tokensieve(*words)
    assert done.code == 2, done.err
    assert WRONG[line] in done.error
    assert done.error.startswith(f"tokensieve {words[0]}: error: ")
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_refused_config_leaves_no_mark(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """A typo in training left a note of whose work the folder holds, so that the corrected command was refused."""
    command = (
        "train",
        "--out",
        tmp_path / "out",
        "--corpus",
        tiny.corpus,
        "--model",
        tiny.base,
        "--training.max_steps",
        1,
    )
    for wrong in (
        ("--training.optim", "nope"),
        ("--training.eval_strategy", "steps"),
        ("--lora.target_modules", "[x]"),
    ):
        assert tokensieve(*command, *wrong).code == 2
    assert tokensieve(*command).code == 0


def test_values_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser of before imported, and called, whatever a ``class_path`` in a config named: a recipe could run code."""
    (tmp_path / "evil_module.py").write_text("class Evil:\n    def __init__(self, **kw): raise SystemExit('ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    evil = {"class_path": "evil_module.Evil", "init_args": {}}
    for sources in ([evil], ["evil_module.Evil"], [{"path": "x", "name": evil}]):
        with pytest.raises(UserError):
            make_config("prepare", {"out": "x", "sources": sources}, "here")
    for field in (
        {"model": evil},
        {"model": {"model_type": "llama", "x": evil}},
        {"training": {"x": evil}},
        {"lora": evil},
    ):
        found = make_config("train", {"out": "x", "corpus": "c", "model": "m", **field}, "here")
        assert next(iter(field.values())) in (found.model, found.training, found.lora)
    with pytest.raises(UserError):
        training_arguments(TrainConfig("o", "c", "m", training={"accelerator_config": evil}))
    assert "evil_module" not in sys.modules


def test_debug_shows_where(tiny: Any) -> None:
    with pytest.raises(UserError, match="nope does not exist"):
        cli.main(["check", "--debug", str(tiny.root / "nope")])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted; start it again to go on"),
        (ZeroDivisionError("a\n  b"), 1, "unexpected ZeroDivisionError: a b (--debug shows where)"),
        (PermissionError(13, "Permission denied", "/x/y"), 2, "/x/y: Permission denied"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, said: str, tokensieve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: Any) -> None:
        raise error

    monkeypatch.setattr("tokensieve.pipeline.check.run", fail)
    done = tokensieve("check", "x")
    assert (done.code, done.err) == (code, f"tokensieve check: error: {said}\n")
