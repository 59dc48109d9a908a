"""Files that somebody else made, through the command line: none of them may run code, reach out of its folder, or reach a
terminal. What stands before the first colon of a name is the row of docs/reliability.md that it counts for.

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
from safetensors.torch import load_file, save_file

from tokensieve import cli
from tokensieve.runs import MANIFEST, file_hash, read_manifest
from tokensieve.training.checkpoints import Split, seal

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
    "recipe: a class for LoRA": (recipe(lora={"r": CALL}), RUN, "lora: r: a whole number is needed"),
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
        CODE.format(canary=str(canary)) + "from tokensieve.core.objective import clm as factory\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = place(tiny, tmp_path, f"{TRAIN} --objective.name allowed_module:factory --allow_code")
    done = tokensieve(*words)
    assert done.code == 0, done.err
    assert canary.exists()


# --- checkpoints --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tiny: Any, tmp_path_factory: pytest.TempPathFactory, tokensieve: Any) -> tuple[list[str], Path]:
    """(command, folder) of a run as a kill between its last checkpoint and its end leaves it."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    command = ["train", "--corpus", str(tiny.corpus), "--model", str(tiny.base), "--training.max_steps", "4"]
    command += ["--training.save_steps", "2", "--out"]
    assert tokensieve(*command, out).code == 0
    manifest = read_manifest(out, "model")
    note = {key: manifest[key] for key in ("fingerprint", "config", "inputs")}
    (out / "work.json").write_text(json.dumps(note))
    (out / MANIFEST).unlink()
    shutil.rmtree(out / "model")
    return command, out


def reseal(checkpoint: Path) -> None:
    """A manifest that fits: hashes find damage, they do not prove who wrote a file."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    more = {key: manifest[key] for key in manifest["sealed"] if key != "token_log"}
    seal(checkpoint, Split(**manifest["config"]["split"]), manifest["token_log"]["bytes"], **more)


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


# --- paths in manifests ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tiny: Any, tmp_path_factory: pytest.TempPathFactory, tokensieve: Any) -> Path:
    """One folder of each kind that has a manifest."""
    root = tmp_path_factory.mktemp("kinds")
    for name, source in (("corpus", tiny.corpus), ("scores", tiny.scores), ("model", tiny.clm)):
        shutil.copytree(source, root / name)

    def made(verb: str, name: str, *words: object) -> None:
        done = tokensieve(verb, "--out", root / name, *words)
        assert done.code == 0, done.err

    made("evaluate", "evaluation", "--models.a", tiny.clm, "--sets.t", tiny.target)
    made("dynamics", "dynamics", "--models", f"[{tiny.base}/model, {tiny.clm}/model]", "--corpus", tiny.target)
    stages = {"corpus": {"verb": "prepare", "sources": [{"path": str(tiny.text / "target.jsonl")}], "length": 8}}
    (root / "x.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert tokensieve("run", root / "x.yaml", "--out", root / "run").code == 0
    return root


READERS = {
    "corpus": (
        "check {x}",
        "train --out {tmp}/out --corpus {x} --model {base}",
        "score --out {tmp}/out --corpus {x} --model {base}",
    ),
    "scores": ("check {x}", "train --out {tmp}/out --corpus {corpus} --model {base} --scores {x} --objective.name rho1"),
    "model": ("check {x}", "compare --out {tmp}/out --evaluation {root}/evaluation --runs.a {x} --baseline a --target t"),
    "evaluation": ("check {x}", "compare --out {tmp}/out --evaluation {x} --runs.a {root}/model --baseline a --target t"),
    "dynamics": (
        "check {x}",
        "dynamics --out {tmp}/out --models {base}/model {root}/model/model --corpus {target} --scores {tscores} --selector {x}",
    ),
    "run": ("check {x}", "report {x}"),
}  # fmt: skip


@pytest.mark.parametrize("way", ["../secret", "absolute", "link"])
@pytest.mark.parametrize(("kind", "command"), [(k, c) for k, commands in READERS.items() for c in commands])
def test_path_in_a_manifest(
    kind: str, command: str, way: str, folders: Path, tiny: Any, tmp_path: Path, tokensieve: Any
) -> None:
    """A file outside, named with its right size and hash: a reader that trusts the manifest reads it, and tells of it."""
    folder, secret = tmp_path / "given", tmp_path / "secret"
    shutil.copytree(folders / kind, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    first = next(e for e in manifest["files"] if e["file"] in {s["file"] for s in manifest.get("shards", [e])})
    name = {"../secret": "../secret", "absolute": str(secret), "link": first["file"]}[way]
    os.rename(folder / first["file"], secret)
    if way == "link":
        (folder / name).symlink_to(secret)
    for shard in manifest.get("shards", []):
        shard["file"] = name if shard["file"] == first["file"] else shard["file"]
    first |= {"file": name, "bytes": secret.stat().st_size, "hash": file_hash(secret)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    tscores = folders / "scores-of-target"
    if "tscores" in command and not tscores.exists():
        assert tokensieve("score", "--out", tscores, "--model", tiny.base, "--corpus", tiny.target).code == 0
    places = {"x": folder, "tmp": tmp_path, "root": folders, "tscores": tscores}
    places |= {n: getattr(tiny, n) for n in ("corpus", "base", "target")}
    done = tokensieve(*(w.format(**places) for w in shlex.split(command)))
    assert done.code == 2, done.out + done.err
    assert f"names {name!r}, which is outside its folder" in done.error
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_path_in_a_checkpoint(stopped: tuple[list[str], Path], tmp_path: Path, tokensieve: Any) -> None:
    """A checkpoint whose optimizer is a link to a file outside is not gone on from."""
    command, folder = stopped
    shutil.copytree(folder, tmp_path / "out")
    last = tmp_path / "out" / "checkpoint-4"
    os.rename(last / "optimizer.pt", tmp_path / "secret")
    (last / "optimizer.pt").symlink_to(tmp_path / "secret")
    reseal(last)
    done = tokensieve(*command, tmp_path / "out")
    assert done.code == 0, done.err
    assert "names 'optimizer.pt', which is outside its folder; this checkpoint is set aside" in done.err


def test_path_in_the_note_of_a_part(tiny: Any, tmp_path: Path, tokensieve: Any) -> None:
    """parts/ speaks for the shards of an unfinished score: what it names outside is not taken for one."""
    out = tmp_path / "out"
    shutil.copytree(tiny.scores, out)
    (out / MANIFEST).unlink()
    (tmp_path / "secret").write_text("x")
    shard = min(p.name for p in out.glob("rows-*.arrow"))
    (out / "parts").mkdir()
    note = {"file": "../secret", "bytes": 1, "hash": file_hash(tmp_path / "secret")}
    (out / "parts" / f"{shard}.json").write_text(json.dumps(note))
    (out / shard).write_text("no shard")
    done = tokensieve("score", "--out", out, "--model", tiny.base, "--corpus", tiny.corpus)
    assert done.code == 0, done.err
    assert (out / shard).read_bytes() == (tiny.scores / shard).read_bytes()


# --- the terminal ----------------------------------------------------------------------------------------------------------

SEQUENCES = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "link": "\x1b]8;;http://x\x1b\\click\x1b]8;;\x1b\\",
    "eight bit": "\x9b2J\x90q\x9c",
    "carriage": "all good\r\x08\x08",
    "bidi": "\u202egnp.exe\u2066",
    "invisible": "a\u200bb\U000e0041",
}


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("color", ["--color", "--no-color"])
def test_terminal_sequence_in_text(sequence: str, color: str, tiny: Any, tmp_path: Path, tokensieve: Any) -> None:
    """In a document, its name and its source's: a crawled page could retitle the window, or hide what stands beside it."""
    text = SEQUENCES[sequence]
    row = {"id": f"id{text}", "text": f"the cat {text} sat on the mat " * 9, "source": f"web{text}"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    source = f"[{{path: {tmp_path}/x.jsonl}}]"
    made = tokensieve(
        "prepare", "--out", tmp_path / "c", "--sources", source, "--tokenizer", tiny.corpus, "--length", 32
    )
    assert made.code == 0, made.err
    scored = tokensieve("score", "--out", tmp_path / "s", "--model", tiny.base, "--corpus", tmp_path / "c")
    assert scored.code == 0, scored.err
    shown = tokensieve(
        "show", "--corpus", tmp_path / "c", "--scores", tmp_path / "s", "--by", "ref_nll", "--row", 0, color
    )
    assert shown.code == 0, shown.err
    checked = tokensieve("check", tmp_path / "c")
    ours = (
        ["\x1b[0m", *(f"\x1b[{n}m" for n in ("1;32", "2", "36", "33", "1;35", "1;36", "1;33"))]
        if color == "--color"
        else []
    )
    for done in (made, shown, checked):
        seen = done.out
        for code in ours:
            seen = seen.replace(code, "")
        left = {c for c in seen if not (c.isprintable() or c == "\n")}
        assert not left, f"{left} in {seen!r}"
    assert "the cat" in shown.out or "cat" in shown.out


def test_terminal_sequence_in_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error quotes what it refuses."""
    name = "\x1b]0;owned\x07corpus"
    assert cli.main(["check", str(tmp_path / name)]) == 2
    assert "\x1b" not in capsys.readouterr().err
