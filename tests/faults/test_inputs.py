"""Bad input through the command line: one clear sentence, exit code 2, no traceback, nothing in the way of the right command.

A line a case; what stands before the first colon is the row of docs/reliability.md that it counts for.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import warm
from processes import environment

from tokensieve import cli
from tokensieve.data.read.source import SourceConfig
from tokensieve.pipeline import prepare
from tokensieve.runs.errors import UserError

TRAIN = "train --out {tmp}/out --corpus {corpus} --model {base} --training.max_steps 1"
NEW = "train --out {tmp}/out --corpus {corpus} --training.max_steps 1 --model.model_type llama --model.hidden_size 32"
SCORE = "score --out {tmp}/out --model {base} --corpus {corpus}"
MODEL = "score --out {tmp}/out --corpus {corpus} --model {tmp}/"
PREPARE = "prepare --out {tmp}/out --vocab_size 300 --length 8 --sources "

# name -> (command, what the sentence says)
WRONG: dict[str, tuple[str, str]] = {
    # empty
    "empty corpus: no line": (PREPARE + "'[{{path: {tmp}/empty.jsonl}}]'", "no document found in"),
    "empty corpus: blank lines": (PREPARE + "'[{{path: {tmp}/blank.jsonl}}]'", "no document found in"),
    "empty corpus: an empty folder": (PREPARE + "'[{{path: {tmp}/folder}}]'", "no file of a known suffix (no files)"),
    "empty corpus: no source": (PREPARE + "[]", "prepare needs at least one source"),
    "empty corpus: a split that holds nothing": (
        PREPARE + "'[{{path: {tmp}/good.txt, split: [0, 1e-9]}}]'",
        "no document found in",
    ),
    "all tokens ignored: train": ("train --out {tmp}/out --corpus {tmp}/ignored --model {base}", "every token is ignored"),
    "all tokens ignored: score": ("score --out {tmp}/out --corpus {tmp}/ignored --model {base}", "every token is ignored"),
    # the objective
    "ratio: 0": (f"{TRAIN} --objective.name random --objective.ratio 0", "ratio is 0.0, it must be in (0, 1]"),
    "ratio: 1.2": (f"{TRAIN} --objective.name random --objective.ratio 1.2", "ratio is 1.2, it must be in (0, 1]"),
    "ratio: below 0": (f"{TRAIN} --objective.name random --objective.ratio -0.5", "ratio is -0.5, it must be in"),
    "ratio: nan": (f"{TRAIN} --objective.name random --objective.ratio nan", "ratio: a number is needed, not nan"),
    "unknown objective": (f"{TRAIN} --objective.name rho", "unknown objective 'rho': one of clm, random"),
    "unknown objective: a number": (f"{TRAIN} --objective '{{{{name: 3}}}}'", "name: text is needed, not 3"),
    "unknown objective: a list": (f"{TRAIN} --objective '{{{{name: [rho1]}}}}'", "name: text is needed"),
    "unknown objective: its seed": (f"{TRAIN} --objective '{{{{name: random, seed: {9**30}}}}}'", "must be in [0, 2^63)"),
    "missing column: no scores": (f"{TRAIN} --objective.name rho1", "the objective needs the column 'ref_nll'"),
    "missing column: of the text": (PREPARE + "'[{{path: {tmp}/col.jsonl}}]'", "col.jsonl line 1: no column 'text'"),
    "missing column: of a manifest": (
        f"{TRAIN} --objective.name rho1 --scores {{tmp}}/scores_nokeys",
        "manifest.json has no 'columns'",
    ),
    # models
    "vocabulary: smaller than the corpus's": (
        NEW + " --model.vocab_size 200 --model.num_attention_heads 2 --model.num_hidden_layers 1",
        "vocabulary of 200, the corpus one of 290",
    ),
    "vocabulary: another tokenizer's model": (
        "score --out {tmp}/out --corpus {tmp}/other_tokenizer --model {base}",
        "was trained with another tokenizer",
    ),
    "length: longer than the model": (
        NEW + " --model.max_position_embeddings 16 --model.num_attention_heads 2 --model.num_hidden_layers 1",
        "rows of 32 tokens are longer than",
    ),
    "length: longer than a model to evaluate": (
        "evaluate --out {tmp}/out --models.a {base} --models.b {tmp}/short_model --sets.t {target}",
        "rows of 32 tokens are longer than",
    ),
    "model: no head for its width": (NEW + " --model.hidden_size 0", "a llama of this config cannot be built"),
    "model: heads that do not share out": (
        NEW + " --model.num_attention_heads 2 --model.num_key_value_heads 3 --model.num_hidden_layers 1",
        "a llama of this config cannot be built",
    ),
    "model: no layers": (NEW + " --model.num_hidden_layers -1", "num_hidden_layers must be at least 1, not -1"),
    "model: an activation nobody knows": (NEW + " --model.hidden_act nope", "KeyError: 'nope'"),
    "model: truncated weights": (f"{MODEL}model_truncated", "model_truncated/model.safetensors cannot be read"),
    "model: empty weights": (f"{MODEL}model_empty", "model_empty/model.safetensors cannot be read"),
    "model: weights of another shape": (f"{MODEL}model_other", "has weights of another shape than its config says"),
    "model: config is no JSON": (f"{MODEL}model_nojson", "config.json is not valid JSON"),
    "model: config is a list": (f"{MODEL}model_list", "names no model_type"),
    "model: no weights": (f"{MODEL}model_noweights", "has no .safetensors weights"),
    "model: a file": (f"{MODEL}file", "file is not a folder"),
    "model: broken, the second to evaluate": (
        "evaluate --out {tmp}/out --models.a {base} --models.b {tmp}/model_truncated --sets.t {target}",
        "model_truncated/model.safetensors cannot be read",
    ),
    # text
    "malformed JSON: a line cut off": (PREPARE + "'[{{path: {tmp}/half.jsonl}}]'", "half.jsonl line 2: not valid JSON"),
    "malformed JSON: a list": (PREPARE + "'[{{path: {tmp}/list.jsonl}}]'", "list.jsonl line 1: a row must be an object"),
    "malformed JSON: a number for text": (PREPARE + "'[{{path: {tmp}/number.jsonl}}]'", "number.jsonl line 1: column 'text'"),
    "malformed JSON: nested too deep": (PREPARE + "'[{{path: {tmp}/deep.jsonl}}]'", "deep.jsonl line 1: not valid JSON"),
    "malformed JSON: gzip cut off": (PREPARE + "'[{{path: {tmp}/cut.jsonl.gz}}]'", "cut.jsonl.gz is a damaged gzip file"),
    "malformed JSON: a manifest": (f"{TRAIN} --scores {{tmp}}/scores_nojson", "manifest.json is not valid JSON"),
    "malformed Parquet": (PREPARE + "'[{{path: {tmp}/fake.parquet}}]'", "fake.parquet is not a readable Parquet file"),
    "malformed Parquet: empty": (PREPARE + "'[{{path: {tmp}/empty.parquet}}]'", "empty.parquet is not a readable Parquet"),
    "malformed UTF-8: JSON lines": (PREPARE + "'[{{path: {tmp}/utf.jsonl}}]'", "utf.jsonl line 2: not valid UTF-8 at byte"),
    "malformed UTF-8: text": (PREPARE + "'[{{path: {tmp}/utf.txt}}]'", "utf.txt line 2: not valid UTF-8 at byte 5"),
    "malformed UTF-8: half a surrogate": (PREPARE + "'[{{path: {tmp}/surrogate.jsonl}}]'", "half of a surrogate pair"),
    "malformed UTF-8: a file's name": (PREPARE + "'[{{path: {tmp}/odd}}]'", "is not valid UTF-8: rename it"),
    "token ids: outside the vocabulary": (
        "prepare --out {tmp}/out --tokenizer {corpus} --sources '[{{path: {tmp}/ids.jsonl, format: tokens}}]'",
        "ids.jsonl line 1: token id 99999 is outside the vocabulary of 290",
    ),
    # folders and files
    "unwritable: below a file": (SCORE.replace("{tmp}/out", "{tmp}/file/out"), "cannot write into"),
    "unwritable: a file": (SCORE.replace("{tmp}/out", "{tmp}/file"), "cannot write into"),
    "unwritable: not on a disk": (SCORE.replace("{tmp}/out", "/proc/nope"), "cannot write into /proc/nope"),
    "unwritable: somebody else's folder": (SCORE.replace("{tmp}/out", "{base}"), "holds 'model': choose another --out"),
    "missing: corpus": ("train --out {tmp}/out --corpus {tmp}/nope --model {base}", "nope does not exist"),
    "missing: a value": ("train --out '' --corpus {corpus} --model {base}", "out: a value is missing"),
    "missing: a path in a list": (PREPARE + "'[{{path: \"\"}}]'", "path: a value is missing"),
    "missing: a shard": ("train --out {tmp}/out --corpus {tmp}/corpus_noshard --model {base}", "rows-00000.arrow is missing"),
    "missing: a manifest": ("train --out {tmp}/out --corpus {tmp}/folder --model {base}", "has no manifest.json"),
    "a folder for a file: config": ("train --config {tmp}/folder", "folder cannot be read: Is a directory"),
    "a folder for a file: recipe": ("run {tmp}/folder", "is no recipe file"),
    "a file for a folder: corpus": ("train --out {tmp}/out --corpus {tmp}/file --model {base}", "file is not a folder"),
    # YAML
    "YAML: empty": ("train --config {tmp}/empty.yaml", "a mapping of names to values is needed, this is empty"),
    "YAML: a list": ("train --config {tmp}/list.yaml", "a mapping of names to values is needed, this is a list"),
    "YAML: not closed": ("train --config {tmp}/broken.yaml", "broken.yaml is not valid YAML"),
    "YAML: a tab": ("train --config {tmp}/tab.yaml", "tab.yaml is not valid YAML"),
    "YAML: two documents": ("train --config {tmp}/two.yaml", "expected a single document"),
    "YAML: not text": ("train --config {tmp}/binary.yaml", "binary.yaml is not valid YAML"),
    "YAML: a typo": ("train --config {tmp}/typo.yaml", "unknown field 'korpus', did you mean 'corpus'?"),
    "YAML: a typo two levels down": (f"{TRAIN} --training.learning_rat 1", "did you mean 'learning_rate'?"),
    "YAML: a key twice": ("train --config {tmp}/twice.yaml", "twice.yaml line 3: 'out' is given twice"),
    "YAML: nested too deep": ("train --config {tmp}/deep.yaml", "deep.yaml is nested too deep"),
    "YAML: an alias of itself": ("train --config {tmp}/itself.yaml", "line 2: an alias stands inside what it names"),
    "YAML: billions of aliases": ("train --config {tmp}/bomb.yaml", "bomb.yaml stands for more than 100,000 values"),
    "YAML: a recipe's name": ("run {tmp}/name.yaml", "name: text is needed, not [1]"),
    "YAML: a recipe's folder": ("run {tmp}/out.yaml", "out: text is needed, not [1]"),
    "YAML: a later stage of a recipe": ("run {tmp}/later.yaml", "stage b: length must be at least 2"),
    # numbers
    "number: learning rate below 0": (f"{TRAIN} --training.learning_rate -1", "learning_rate must be at least 0, not -1.0"),
    "number: learning rate nan": (f"{TRAIN} --training.learning_rate nan", "learning_rate: a number is needed, not nan"),
    "number: weight decay below 0": (f"{TRAIN} --training.weight_decay -1", "weight_decay must be at least 0, not -1.0"),
    "number: beta of 2": (f"{TRAIN} --training.adam_beta1 2", "Invalid beta parameter at index 0: 2.0"),
    "number: epsilon below 0": (f"{TRAIN} --training.adam_epsilon -1", "Invalid epsilon value: -1.0"),
    "number: no rows": (f"{TRAIN} --training.per_device_train_batch_size 0", "must be at least 1, not 0"),
    "number: workers below 0": (f"{TRAIN} --training.dataloader_num_workers -1", "must be at least 0, not -1"),
    "number: saving every 0 steps": (f"{TRAIN} --training.save_steps 0", "save_steps must be above 0, not 0"),
    "number: a schedule's options": (f"{TRAIN} --training.lr_scheduler_kwargs '{{{{x: 1}}}}'", "unexpected keyword argument"),
    "number: an optimizer not installed": (f"{TRAIN} --training.optim adamw_bnb_8bit", "install `bitsandbytes`"),
    "number: seed below 0": (f"{TRAIN} --seed -1", "seed must be between 0 and 4294967295, not -1"),
    "number: seed of prepare": (PREPARE + "'[{{path: {tmp}/good.txt}}]' --seed -1", "seed must be between 0 and"),
    "number: length below 0": ("prepare --out {tmp}/out --sources '[{{path: x}}]' --length -3", "length must be at least 1"),
    "number: length past memory": (
        "prepare --out {tmp}/out --sources '[{{path: x}}]' --length 3000000000",
        "length must be at most 16777216",
    ),
    "number: rows of a forward": (f"{SCORE} --batch_rows -1", "batch_rows must be at least 0"),
    "number: a column twice": (f"{SCORE} --columns ref_nll ref_nll", "columns: one is named twice"),
    "number: token log below 0": (f"{TRAIN} --token_log_every -1", "must be at least 0"),
    "number: lora.r of abc": (f"{TRAIN} --lora.r abc", "lora.r: a whole number is needed, not abc"),
    "number: lora.r of 0": (f"{TRAIN} --lora.r 0", "`r` should be a positive integer"),
    "number: lora's bias": (f"{TRAIN} --lora.bias nope", "lora.bias: one of none, all, lora_only is needed, not nope"),
    # what does something else here, or nothing
    "not supported: DeepSpeed": (f"{TRAIN} --training.deepspeed x.json", "DeepSpeed owns the gradients"),
    "not supported: uploads": (f"{TRAIN} --training.push_to_hub true", "nothing is uploaded by a run"),
    "not supported: two ways to resume": (f"{TRAIN} --training.resume_from_checkpoint x", "set the field resume of train"),
    "not supported: rows twice": (f"{TRAIN} --training.ignore_data_skip true", "would see its first rows again"),
    "not supported: another order of rows": (
        f"{TRAIN} --training.train_sampling_strategy group_by_length",
        "random or sequential",
    ),
    "not supported: another batch": (f"{TRAIN} --training.auto_find_batch_size true", "changes how many rows a step has"),
    "not supported: a device that computes nothing": (f"{SCORE} --device meta", "device: 'meta' computes nothing"),
}  # fmt: skip


def write_files(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    bomb = "".join(f"- &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8))
    files: dict[str, str | bytes] = {
        "file": "",
        "good.txt": "the cat sat on the mat\n",
        "empty.jsonl": "",
        "blank.jsonl": "\n\n",
        "col.jsonl": '{"txt": "a"}\n',
        "half.jsonl": '{"text": "a"}\n{"text": ',
        "list.jsonl": "[1]\n",
        "number.jsonl": '{"text": 3}\n',
        "deep.jsonl": "[" * 100_000,
        "cut.jsonl.gz": gzip.compress(b'{"text": "abc"}\n' * 1000)[:40],
        "fake.parquet": "PAR1 hello",
        "empty.parquet": "",
        "utf.jsonl": b'{"text": "ok"}\n{"text": "\xff"}\n',
        "utf.txt": b"abc\n\xff\xfe",
        "surrogate.jsonl": '{"text": "\\ud800"}\n',
        "ids.jsonl": '{"input_ids": [1, 99999]}\n',
        "eos.jsonl": '{"input_ids": [0]}\n' * 20,
        "empty.yaml": "",
        "list.yaml": "- a",
        "broken.yaml": "out: [x",
        "tab.yaml": "out:\n\t- a\n",
        "two.yaml": "out: a\n---\nout: b\n",
        "binary.yaml": b"\xff\xfe\x00",
        "typo.yaml": "korpus: x",
        "twice.yaml": "out: a\nseed: 1\nout: b\n",
        "deep.yaml": f"out: {'[' * 3000}{']' * 3000}",
        "itself.yaml": "out: x\nscores: &a [*a]\n",
        "bomb.yaml": f"out: x\nscores:\n- &a [x,x,x,x,x,x,x,x,x,x]\n{bomb}",
        "name.yaml": "name: [1]\nstages: {a: {verb: check, folders: [x]}}",
        "out.yaml": "out: [1]\nstages: {a: {verb: check, folders: [x]}}",
        "later.yaml": "stages:\n  a: {verb: check, folders: [x]}\n"
        "  b: {verb: prepare, sources: [{path: x}], length: 1}\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "folder").mkdir()
    (folder / "odd").mkdir()
    Path(os.fsdecode(bytes(folder / "odd") + b"/\xff.txt")).write_text("abc")


def write_models(folder: Path, base: Path) -> None:
    """Copies of a model, each with one thing wrong."""
    config = json.loads((base / "config.json").read_text())
    weights = (base / "model.safetensors").read_bytes()
    faults: dict[str, dict[str, bytes | None]] = {
        "model_truncated": {"model.safetensors": weights[: len(weights) // 2]},
        "model_empty": {"model.safetensors": b""},
        "model_other": {"config.json": json.dumps({**config, "hidden_size": 64}).encode()},
        "model_nojson": {"config.json": b"{"},
        "model_list": {"config.json": b"[]"},
        "model_noweights": {"model.safetensors": None},
        "short_model": {"config.json": json.dumps({**config, "max_position_embeddings": 16}).encode()},
    }
    for name, changes in faults.items():
        shutil.copytree(base, folder / name)
        for file, content in changes.items():
            (folder / name / file).unlink() if content is None else (folder / name / file).write_bytes(content)


@pytest.fixture(scope="module")
def faulty(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    write_files(folder)
    write_models(folder, tiny.base / "model")
    shutil.copytree(tiny.corpus, folder / "corpus_noshard")
    (folder / "corpus_noshard" / "rows-00000.arrow").unlink()
    nokeys = {"format": 1, "kind": "scores", "fingerprint": "", "config": {}, "inputs": {}, "files": []}
    for name, manifest in (("nokeys", json.dumps(nokeys)), ("nojson", "{")):
        (folder / f"scores_{name}").mkdir()
        (folder / f"scores_{name}" / "manifest.json").write_text(manifest)

    def made(name: str, path: Path, **fields: Any) -> None:
        source = SourceConfig(path=str(path), format=fields.pop("format", "auto"))
        prepare.run(prepare.PrepareConfig(str(folder / name), [source], length=8, **fields), progress=False)

    made("ignored", folder / "eos.jsonl", format="tokens", tokenizer=str(tiny.corpus), isolate_documents=True)
    made("other_tokenizer", tiny.text / "target.jsonl", vocab_size=280)
    return folder


def words(command: str, tiny: Any, faulty: Path) -> list[str]:
    places = {f.name: getattr(tiny, f.name) for f in dataclasses.fields(tiny)}
    return [w.format(tmp=faulty, **places) for w in shlex.split(command)]


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence(name: str, tiny: Any, faulty: Path, tokensieve: Any) -> None:
    """Each was once a traceback, an "unexpected KeyError", a run that went on, or a sentence that came after the work."""
    command, says = WRONG[name]
    done = tokensieve(*words(command, tiny, faulty))
    assert done.code == 2, done.err
    assert says in done.error
    assert done.error.startswith(f"tokensieve {command.split()[0]}: error: ")
    assert "unexpected" not in done.error.replace("unexpected keyword argument", "")
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not (faulty / "out" / "manifest.json").exists()
    if not command.startswith("prepare"):  # which keeps its parts by what they are parts of
        assert not (faulty / "out" / "work.json").exists(), "the corrected command would find other work there"


@pytest.mark.parametrize("name", ["ratio: 1.2", "YAML: not closed", "malformed JSON: a line cut off", "model: a file"])
def test_debug_shows_where(name: str, tiny: Any, faulty: Path) -> None:
    with pytest.raises(UserError):
        cli.main([*words(WRONG[name][0], tiny, faulty), "--debug"])


def test_as_a_user_meets_it(tiny: Any, faulty: Path) -> None:
    """The same from a shell, where a traceback would also come from an import or at exit."""
    for name, python in (("number: learning rate below 0", sys.executable), ("malformed UTF-8: text", warm.python())):
        command, says = WRONG[name]
        arguments = [python, "-m", "tokensieve", *words(command, tiny, faulty)]
        done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr.strip().split("\n")[-1]
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("RANK", "-1")])
def test_a_launcher_that_set_nonsense(
    name: str, value: str, tiny: Any, tmp_path: Path, tokensieve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    done = tokensieve("score", "--out", tmp_path, "--model", tiny.base, "--corpus", tiny.corpus)
    assert done.code == 2
    assert f"the environment variable {name} is '{value}', a whole number is needed" in done.error


def test_accelerates_deepspeed_is_refused(
    tiny: Any, tokensieve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``accelerate launch --use_deepspeed`` says so by the environment; the sentence was about a package's metadata."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    done = tokensieve("train", "--out", tmp_path / "out", "--corpus", tiny.corpus, "--model", tiny.base)
    assert (done.code, "DeepSpeed owns the gradients and is not supported: use DDP or FSDP2" in done.error) == (2, True)


def test_a_corrected_score_is_taken(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """A model that was refused after the folder had been marked as its: the right model then was "other work"."""
    weights = tmp_path / "model" / "model.safetensors"
    shutil.copytree(tiny.base / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    command = ("score", "--out", tmp_path / "out", "--corpus", tiny.corpus, "--model")
    assert weights.is_file()
    assert tokensieve(*command, tmp_path / "model").code == 2
    assert tokensieve(*command, tiny.base).code == 0


def test_a_corpus_named_twice_is_not_disjoint_from_itself(tiny: Any, tokensieve: Any) -> None:
    """The two were one key of a dict, so that there was nothing to compare, and "no document stands in two of 2 corpora"."""
    done = tokensieve("check", tiny.corpus, tiny.corpus, "--disjoint")
    assert (done.code, "folders: one is named twice" in done.error) == (2, True)


def test_all_stages_of_a_recipe_at_once(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """A recipe with a typo in each of three stages took three starts; @stage of a faulty one was another error."""
    (tmp_path / "r.yaml").write_text(
        f"""stages:
  text: {{verb: prepare, sources: [{{path: x, split: [0, x]}}, {{pth: x}}], lenght: 3}}
  base: {{verb: train, corpus: "@text", model: m, training: {{max_step: 3, learning_rate: fast}}, objective: {{nam: clm}}}}
  good: {{verb: score, corpus: "@text", model: {tiny.base}}}
  nope: {{verb: scroe}}
"""
    )
    done = tokensieve("run", tmp_path / "r.yaml")
    assert done.code == 2
    assert done.error.removeprefix("tokensieve run: error: ").split("; r.yaml: ") == [
        "r.yaml: stage text: sources.0.split.1: a number is needed, not x",
        "stage text: sources.1: unknown field 'pth', did you mean 'path'?",
        "stage text: sources.1: missing: path",
        "stage text: unknown field 'lenght', did you mean 'length'?",
        "stage base: objective: unknown field 'nam'",
        "stage base: training: unknown field 'max_step', did you mean 'max_steps'?",
        "stage base: training.learning_rate: a number is needed, not fast",
        "stage nope: unknown verb 'scroe', did you mean 'score'?",
    ]
    assert not (tmp_path / "runs").exists()
