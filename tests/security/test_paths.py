"""Paths in manifests that lead out of their folder, through the command line: nothing reads what they name."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from resealed import reseal

from tokensieve.runs.files import MANIFEST, file_hash


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
