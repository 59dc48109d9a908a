"""Exports read back by the readers themselves: an environment for each, and its own classes over a folder written here.

    make exports                                    all of them
    python tests/export/read_back.py olmo mds       some; environments, up to a few hundred megabytes each, stay in runs/exports

A reader's environment sees this one's packages (torch and transformers are too large to be installed eight times); what is
its own is installed over them, at the version that pip finds. Each script in readers/ prints, as JSON, what the reader's
trainer sums up: for every sample a list of [id before, target, weight]. That must be what the tests' own readers find.
Exit code 1 if one does not; a reader that pip cannot install here is told and passed over.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "src")]

import corpora  # noqa: E402
import exports  # noqa: E402
from export_readers import READERS, Term  # noqa: E402

from tokensieve.pipeline import export  # noqa: E402

HERE = Path(__file__).parent / "readers"
AT_ONCE = 4  # readers beside each other

# reader -> (the format it reads, what is installed without its own needs, what of those it does need here)
INSTALLED: dict[str, tuple[str, list[str], list[str]]] = {
    "trl": ("parquet", [], []),
    "olmo": (
        "olmo",
        ["ai2-olmo-core"],
        ["cached-path", "omegaconf", "rich", "importlib_resources", "dataclass-extensions", "bettermap"],
    ),
    "datatrove": ("datatrove", ["datatrove"], ["loguru", "humanize", "dill", "multiprocess"]),
    "megatron": ("megatron", ["megatron-core"], []),
    "mds": (
        "mds",
        ["mosaicml-streaming"],
        ["brotli", "python-snappy", "zstd", "boto3", "paramiko", "catalogue"],
    ),
    "axolotl": ("parquet", ["axolotl"], ["addict", "fire", "colorama", "posthog", "numba"]),
    "llama_factory": ("llama_factory", ["llamafactory"], []),
    "swift": ("swift", ["ms-swift"], ["modelscope", "addict", "dacite", "simplejson", "json-repair"]),
}


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in INSTALLED]:
        print(f"no reader {unknown[0]!r}: one of {', '.join(INSTALLED)}", file=sys.stderr)
        return 2
    out = ROOT / "runs" / "exports"
    corpus = corpora.corpus(out / "corpus", corpora.write_text(out / "text"))
    scores = exports.made_scores(out / "scores", corpus)
    asked = [(name, *written(name, out, corpus, scores)) for name in names or INSTALLED]
    with ThreadPoolExecutor(AT_ONCE) as readers:  # what an environment takes is mostly pip's waiting and unpacking
        found = list(readers.map(lambda each: read_back(*each, out / "envs"), asked))
    return int(not all(found))


def written(name: str, out: Path, corpus: Path, scores: Path) -> tuple[Path, list[list[list[float]]]]:
    """(the export that a reader is for, its terms as the tests' own reader finds them)."""
    to = INSTALLED[name][0]
    folder = export.run(exports.config(out / to, corpus, to, scores))
    return folder, [[list(term) for term in row] for row in READERS[to](folder, corpora.LENGTH)]


def read_back(name: str, folder: Path, want: list[list[list[float]]], environments: Path) -> bool:
    """Whether the reader finds the same, or cannot be installed here; says which."""
    python, lacks = environment(environments / name, *INSTALLED[name][1:])
    if lacks:
        print(f"{name:14} not here: {lacks}", flush=True)
        return True
    found, version = read(python, HERE / f"{name}.py", folder)
    same = found == [row for row in want if row]
    told = "the same" if same else "OTHER terms than this tree's reader finds"
    print(f"{name:14} {version:46} {sum(map(len, want))} weighted targets in {len(want)} samples: {told}", flush=True)
    return same


def environment(folder: Path, own: list[str], needed: list[str]) -> tuple[Path, str | None]:
    """(its Python, why it could not be made)."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=False)  # pip is among this environment's packages
        [site] = folder.glob("lib/python*/site-packages")
        ours = [p for p in sys.path if p.endswith("site-packages")]
        (site / "of_this_environment.pth").write_text("\n".join(ours) + "\n")
    for packages, options in ((own, ["--no-deps"]), (needed, [])):
        if packages:
            command = [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-compile",
                "--disable-pip-version-check",
                *options,
                *packages,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return python, f"pip cannot install {', '.join(packages)}: {done.stderr.strip().splitlines()[-1]}"
    return python, None


def read(python: Path, script: Path, folder: Path) -> tuple[list[list[list[float]]], str]:
    """(what the reader makes of the folder, its version)."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    tokenizer = folder.parent / "corpus" / "tokenizer" / "tokenizer.json"
    command = [str(python), "-P", str(script), str(folder), str(corpora.LENGTH), str(tokenizer)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return [], f"failed: {next((line for line in reversed(lines) if 'Error' in line), lines[-1])[:200]}"
    told = json.loads(done.stdout.splitlines()[-1])
    terms: list[Term] = told["terms"]
    beyond = told.get("beyond", 0)  # targets of its own, which the export does not ask for and cannot prevent
    return terms, told["version"] + (f", {beyond} targets of its own" if beyond else "")  # type: ignore[return-value]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
