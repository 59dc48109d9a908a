"""Files that somebody else made, through the command line: none of them may run code. What stands before the
first colon of a name is the row of docs/reliability.md that it counts for.

Every payload, where it succeeds, touches the file ``canary``.
"""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from resealed import reseal
from safetensors.torch import load_file, save_file

from tokensieve.runs.files import MANIFEST

TRAIN = "train --out {tmp}/out --corpus {corpus} --model {base} --training.max_steps 1"
SCORE = "score --out {tmp}/out --corpus {corpus} --model {tmp}/model"
CODE = "from pathlib import Path\nPath({canary!r}).touch()\n"


class Payload:
    """Touches a file when it is unpickled by somebody who lets it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def place(tiny: Any, tmp: Path, command: str) -> list[str]:
    """The command's words, its places filled in."""
    return [w.format(tmp=tmp, corpus=tiny.corpus, base=tiny.base) for w in shlex.split(command)]


def model_copy(tiny: Any, tmp: Path, **config: Any) -> Path:
    """The tiny model in tmp/model, some entries of its config changed."""
    shutil.copytree(tiny.base / "model", tmp / "model")
    path = tmp / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return tmp / "model"


def test_the_payloads_work_where_they_are_let(tmp_path: Path, canary: Path) -> None:
    """Payloads that do nothing anywhere would pass every test of this file."""
    torch.save(Payload(canary), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert canary.exists()
    canary.unlink()
    yaml.unsafe_load(YAML["apply"].format(canary=canary))
    assert canary.exists()
    canary.unlink()
    exec(CODE.format(canary=str(canary)))
    assert canary.exists()


# --- pickles ----------------------------------------------------------------------------------------------------------------


def pickle_for_weights(tiny: Any, tmp: Path, canary: Path) -> None:
    folder = model_copy(tiny, tmp)
    (folder / "model.safetensors").unlink()
    torch.save(Payload(canary), folder / "pytorch_model.bin")


def pickle_in_an_adapter(tiny: Any, tmp: Path, canary: Path) -> None:
    folder = model_copy(tiny, tmp)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder)})
    )
    torch.save(Payload(canary), folder / "adapter_model.bin")


def pickle_named_safetensors(tiny: Any, tmp: Path, canary: Path) -> None:
    (model_copy(tiny, tmp) / "model.safetensors").write_bytes(pickle.dumps(Payload(canary)))


def pickles_beside_the_weights(tiny: Any, tmp: Path, canary: Path) -> None:
    folder = model_copy(tiny, tmp)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        torch.save(Payload(canary), folder / name)


# --- code beside a model -----------------------------------------------------------------------------------------------------


def code_for_a_new_type(tiny: Any, tmp: Path, canary: Path) -> None:
    names = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    folder = model_copy(tiny, tmp, model_type="evil", architectures=["EvilModel"], auto_map=names)
    (folder / "evil.py").write_text(CODE.format(canary=str(canary)))


def code_for_a_known_type(tiny: Any, tmp: Path, canary: Path) -> None:
    names = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    folder = model_copy(tiny, tmp, auto_map=names)
    (folder / "evil.py").write_text(CODE.format(canary=str(canary)))


def code_for_a_tokenizer(tiny: Any, tmp: Path, canary: Path) -> None:
    folder = model_copy(tiny, tmp)
    path = folder / "tokenizer_config.json"
    changed = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    (folder / "evil.py").write_text(CODE.format(canary=str(canary)))


def a_kernel_from_elsewhere(tiny: Any, tmp: Path, canary: Path) -> None:
    model_copy(tiny, tmp, attn_implementation="somebody/kernel")


def weights_outside(tiny: Any, tmp: Path, canary: Path) -> None:
    """An index of shards that names a file outside the folder."""
    folder = model_copy(tiny, tmp)
    os.rename(folder / "model.safetensors", tmp / "elsewhere.safetensors")
    names = load_file(tmp / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"x": torch.zeros(1)}, folder / "decoy.safetensors")


def pickle_in_an_index(tiny: Any, tmp: Path, canary: Path) -> None:
    folder = model_copy(tiny, tmp)
    os.rename(folder / "model.safetensors", folder / "decoy.safetensors")
    torch.save(Payload(canary), folder / "weights.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(folder / "decoy.safetensors"), "weights.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def weights_behind_a_link(tiny: Any, tmp: Path, canary: Path) -> None:
    """As the Hub's cache has them: a link to another folder of one's own is no payload."""
    folder = model_copy(tiny, tmp)
    os.rename(folder / "model.safetensors", tmp / "blob")
    (folder / "model.safetensors").symlink_to(tmp / "blob")


def nothing(tiny: Any, tmp: Path, canary: Path) -> None:
    pass


# --- YAML and recipes ---------------------------------------------------------------------------------------------------------

YAML = {
    "apply": '!!python/object/apply:os.system ["touch {canary}"]',
    "name": "!!python/name:os.system",
    "module": "!!python/module:antigravity",
    "new": "!!python/object/new:pathlib.PosixPath [x]",
}


def yaml_of(tag: str, field: str = "seed") -> Callable[[Any, Path, Path], None]:
    def write(tiny: Any, tmp: Path, canary: Path) -> None:
        (tmp / "x.yaml").write_text(f"{field}: {YAML[tag].format(canary=canary)}\n")

    return write


def recipe(**stage: Any) -> Callable[[Any, Path, Path], None]:
    """A recipe with one stage, a train that is good but for these fields."""

    def write(tiny: Any, tmp: Path, canary: Path) -> None:
        (tmp / "evil_module.py").write_text(CODE.format(canary=str(canary)) + "def factory(): pass\n")
        good = {"verb": "train", "corpus": str(tiny.corpus), "model": str(tiny.base), "training": {"max_steps": 1}}
        filled = json.loads(json.dumps({**good, **stage}).replace("CANARY", str(canary)))
        (tmp / "x.yaml").write_text(yaml.safe_dump({"settings": {"seed": 0}, "stages": {"a": filled}}))

    return write


RUN = "run {tmp}/x.yaml --out {tmp}/out"
CALL = {"class_path": "pathlib.Path", "init_args": {"x": 1}}
SUBPROCESS = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "CANARY"]}}

# name -> (what writes it, command, what the sentence says)
REFUSED: dict[str, tuple[Callable[[Any, Path, Path], None], str, str]] = {
    "pickle: a model's weights": (pickle_for_weights, SCORE, "has no .safetensors weights"),
    "pickle: an adapter": (pickle_in_an_adapter, SCORE, "holds an adapter for another model"),
    "pickle: named .safetensors": (pickle_named_safetensors, SCORE, "model.safetensors cannot be read"),
    "pickle: to go on training from": (pickle_for_weights, TRAIN.replace("{base}", "{tmp}/model"), "has no .safetensors"),
    "code beside a model: a type of its own": (code_for_a_new_type, SCORE, "brings code of its own (auto_map), which is"),
    "code beside a model: to train": (
        code_for_a_new_type,
        TRAIN.replace("{base}", "{tmp}/model"),
        "brings code of its own (auto_map)",
    ),
    "code beside a model: a kernel": (a_kernel_from_elsewhere, SCORE, "names a kernel to download: somebody/kernel"),
    "code beside a model: a kernel for new weights": (
        nothing,
        "train --out {tmp}/out --corpus {corpus} --training.max_steps 1 --model.model_type llama "
        "--model.attn_implementation somebody/kernel",
        "attn_implementation",
    ),
    "code beside a model: a tokenizer": (
        code_for_a_tokenizer,
        "prepare --out {tmp}/out --tokenizer {tmp}/model --length 8 --sources '[{{path: {tmp}/x.txt}}]'",
        "brings code of its own (auto_map), which is never run",
    ),
    "pickle: named by an index of weights": (pickle_in_an_index, SCORE, "only .safetensors weights are read"),
    "path: weights outside their folder": (weights_outside, SCORE, "which is outside its folder"),
    **{
        f"YAML tag: {tag} in {what}": (yaml_of(tag, field), command, "x.yaml is not valid YAML")
        for tag in YAML
        for what, field, command in (("a config", "seed", "train --config {tmp}/x.yaml"), ("a recipe", "stages", RUN))
    },
    "recipe: an objective of code": (recipe(objective={"name": "evil_module:factory"}), RUN, "is code to be imported"),
    "recipe: that allows code to itself": (
        recipe(objective={"name": "evil_module:factory"}, allow_code=True),
        RUN,
        "a recipe cannot allow this to itself",
    ),
    "recipe: an expression for a setting": (recipe(seed="${__import__('os').system('touch CANARY')}"), RUN, "unknown setting"),
    "recipe: a resolver for a setting": (recipe(dtype="${oc.env:HOME}"), RUN, "unknown setting 'oc.env:HOME'"),
    "recipe: a class for a number": (recipe(training={"max_steps": SUBPROCESS}), RUN, "max_steps: a whole number is needed"),
    "recipe: a class for a model": (recipe(model=SUBPROCESS), RUN, "a config needs the field model_type"),
    "recipe: a class for an objective": (recipe(objective=SUBPROCESS), RUN, "objective: "),
    "recipe: a class for LoRA": (recipe(lora={"r": CALL}), RUN, "lora.r: a whole number is needed"),
    "recipe: a module for LoRA": (recipe(lora={"megatron_core": "evil_module"}), RUN, "megatron_core is not supported"),
    "recipe: DeepSpeed's file": (recipe(training={"deepspeed": "x.json"}), RUN, "training.deepspeed is not supported"),
    "recipe: an upload": (recipe(training={"push_to_hub": True}), RUN, "nothing is uploaded by a run"),
    "recipe: an upload's address": (recipe(training={"hub_model_id": "a/b"}), RUN, "nothing is uploaded by a run"),
    "recipe: a token": (recipe(training={"hub_token": "hf_x"}), RUN, "nothing is uploaded by a run"),
    "recipe: somebody's dashboard": (recipe(training={"trackio_space_id": "a/b"}), RUN, "trackio_space_id is not supported"),
    "recipe: another folder": (recipe(training={"output_dir": "/elsewhere"}), RUN, "output_dir follows from the field out"),
    "recipe: a folder of its choice": (recipe(out="/elsewhere"), RUN, "a stage's folder is named after it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(
    name: str, tiny: Any, tmp_path: Path, canary: Path, tokensieve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, command, says = REFUSED[name]
    write(tiny, tmp_path, canary)
    (tmp_path / "x.txt").write_text("the cat sat on the mat and ran over seven small hills\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    done = tokensieve(*place(tiny, tmp_path, command))
    assert not canary.exists(), "it ran"
    assert done.code == 2, done.err
    assert says in done.error
    assert "Traceback" not in done.err
    assert not (tmp_path / "out" / MANIFEST).exists()


# What is not refused, because it is never looked at: name -> (what writes it, command).
IGNORED: dict[str, tuple[Callable[[Any, Path, Path], None], str]] = {
    "pickle: beside the weights": (pickles_beside_the_weights, SCORE),
    "code beside a model: a type that transformers has": (code_for_a_known_type, SCORE),
    "recipe: a class that stays a mapping": (recipe(training={"max_steps": 1, "fsdp_config": SUBPROCESS}), RUN),
    "path: weights behind a link of one's own": (weights_behind_a_link, SCORE),
}


@pytest.mark.parametrize("name", IGNORED)
def test_ignored(name: str, tiny: Any, tmp_path: Path, canary: Path, tokensieve: Any) -> None:
    write, command = IGNORED[name]
    write(tiny, tmp_path, canary)
    done = tokensieve(*place(tiny, tmp_path, command))
    assert not canary.exists(), "it ran"
    assert done.code == 0, done.err
    assert (tmp_path / "out" / MANIFEST).exists()


def test_an_objective_of_code_runs_where_it_is_allowed(
    tiny: Any, tmp_path: Path, canary: Path, tokensieve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else "refused" would also be said of a name that nothing could import."""
    (tmp_path / "allowed_module.py").write_text(
        CODE.format(canary=str(canary)) + "from tokensieve.core.objectives.controls import clm as factory\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = place(tiny, tmp_path, f"{TRAIN} --objective.name allowed_module:factory --allow_code")
    done = tokensieve(*words)
    assert done.code == 0, done.err
    assert canary.exists()


# --- checkpoints --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_pickle_in_a_checkpoint(
    file: str, stopped: tuple[list[str], Path], tmp_path: Path, canary: Path, tokensieve: Any
) -> None:
    """CVE-2026-1839 was this in rng_state.pth: torch.load without weights_only."""
    command, folder = stopped
    shutil.copytree(folder, tmp_path / "out")
    last = tmp_path / "out" / "checkpoint-4"
    torch.save(Payload(canary), last / file)
    if file == "pytorch_model.bin":
        (last / "model.safetensors").unlink()
    reseal(last)
    done = tokensieve(*command, tmp_path / "out")
    assert not canary.exists(), "it ran"
    assert done.code == 2, done.err
    assert str(last / file) in done.error
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("training_args.bin", 0),
        ("optimizer_0/.metadata", 0),
        ("pytorch_model_fsdp_0/.metadata", 1),
    ],  # the last: refused
)
def test_pickle_that_nothing_reads(
    file: str, code: int, stopped: tuple[list[str], Path], tmp_path: Path, canary: Path, tokensieve: Any
) -> None:
    """torch unpickles the .metadata of a sharded checkpoint: only a run that asks for sharded checkpoints may come to it."""
    command, folder = stopped
    shutil.copytree(folder, tmp_path / "out")
    path = tmp_path / "out" / "checkpoint-4" / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Payload(canary)))
    reseal(tmp_path / "out" / "checkpoint-4")
    assert tokensieve(*command, tmp_path / "out").code == code
    assert not canary.exists()
