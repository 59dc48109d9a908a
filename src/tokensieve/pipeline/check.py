"""``tokensieve check``: are these folders whole, do they fit together, and is no document in two of them?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ..runs import MANIFEST, UserError, check_files, read_manifest

OVERLAP_TOKENS = 50_000_000  # 8 bytes a token are held at once


@dataclass(frozen=True)
class CheckConfig:
    """Verify folders: every file against its hash, scores against their corpus, corpora against each other."""

    folders: list[str]
    """Corpus, scores, model, evaluation or run folders."""
    corpus: str | None = None
    """The corpus that score folders must fit."""
    disjoint: bool = False
    """No document (by id or by text) may stand in two of the corpora named."""


def run(config: CheckConfig) -> list[str]:
    """A line a folder; raises UserError at the first that is not as it was written."""
    if not config.folders:
        raise UserError("folders: name at least one folder to check")
    if len({Path(folder).resolve() for folder in config.folders}) < len(config.folders):
        raise UserError("folders: one is named twice")
    lines = [line for folder in config.folders for line in check_folder(Path(folder), config.corpus)]
    if config.disjoint:
        corpora = [f for f in config.folders if read_manifest(f)["kind"] == "corpus"]
        if len(corpora) < 2:
            raise UserError("disjoint: name at least two corpora")
        check_disjoint(corpora)
        lines.append(f"disjoint: no document stands in two of {len(corpora)} corpora")
        lines += overlaps(corpora)
    return lines


def check_folder(folder: Path, corpus: str | None) -> list[str]:
    """What was found whole: a line for the folder, and one for each stage of a run."""
    kind = read_manifest(folder)["kind"]
    manifest = read_manifest(folder, kind, _keys(kind))
    check_files(folder, manifest)
    line = f"{folder}: {manifest['kind']}, whole, {len(manifest['files'])} files"
    if manifest["kind"] == "run":
        return [line, *_check_stages(folder, manifest)]
    if manifest["kind"] == "corpus":
        from ..data.corpus import open_corpus

        opened = open_corpus(folder, verify=None)
        line += f", {opened.num_rows} rows of {opened.length}, {manifest['stats']['tokens']} tokens"
    if manifest["kind"] == "scores" and corpus is not None:
        from ..data.scored import load_scored

        load_scored(corpus, folder)
        line += f", fit {corpus}"
    return [line]


def _keys(kind: str) -> Collection[str]:
    """What the manifest of a folder must say so that others can read it."""
    from ..data import corpus, scored
    from . import recipe, train

    read: dict[str, Collection[str]] = {m.KIND: m.MANIFEST_KEYS for m in (corpus, scored, train, recipe)}
    return read.get(kind, ())


def _check_stages(run: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Every stage is whole and is the work that the run lists; scores fit the stage that is their corpus."""
    folders = {name: run / stage["folder"] for name, stage in manifest["stages"].items()}
    found = {name: read_manifest(folder) for name, folder in folders.items()}
    corpora = {m["content_hash"]: str(folders[name]) for name, m in found.items() if m["kind"] == "corpus"}
    for name, stage in manifest["stages"].items():
        if found[name]["fingerprint"] != stage["fingerprint"]:
            raise UserError(f"{folders[name]} is other work than {run / MANIFEST} lists: run the recipe again")
        yield from check_folder(folders[name], corpora.get(found[name].get("corpus_hash", "")))


def check_disjoint(corpora: Sequence[str]) -> None:
    """Raise UserError naming a document that stands in two corpora: the same id, or the same text under another id."""
    tables = {folder: _documents(folder) for folder in corpora}
    for (a, first), (b, second) in combinations(tables.items(), 2):
        for key, what in (("id", "id"), ("text_hash", "text")):
            if both := first[key].keys() & second[key].keys():
                example = min(both, key=str)
                raise UserError(
                    f"{a} and {b} share {len(both)} documents by {what}, the first is {first[key][example]!r}: "
                    "give their sources disjoint splits"
                )


def overlaps(corpora: Sequence[str], worth_saying: float = 0.001) -> list[str]:
    """A line a pair of corpora of one tokenizer: what share of the first's runs of tokens stands in the second as well.

    Disjoint documents can share paragraphs: licence headers, docstrings copied between files, problems set twice.
    """
    from ..analysis.overlap import RUN, run_hashes, shared
    from ..data.corpus import open_corpus

    opened = [open_corpus(folder, verify=None) for folder in corpora]
    opened = [c for c in opened if c.tokenizer_hash == opened[0].tokenizer_hash]
    if sum(c.num_rows * c.length for c in opened) > OVERLAP_TOKENS:
        return [f"overlap: not counted, over {OVERLAP_TOKENS:,} tokens"]
    names = [c.folder.name for c in opened]
    names = names if len(set(names)) == len(names) else [str(c.folder) for c in opened]
    runs = {n: run_hashes(c.contexts()) for n, c in zip(names, opened, strict=True)}
    shares = {(a, b): shared(runs[a], runs[b]) for a in runs for b in runs if a != b}
    said = [f"{a} in {b} {share:.1%}" for (a, b), share in shares.items() if share >= worth_saying]
    return [f"overlap: runs of {RUN} tokens that stand in another corpus too: {', '.join(said) or 'none'}"]


def _documents(folder: str) -> dict[str, dict[Any, str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(Path(folder) / "documents.parquet", columns=["id", "text_hash"]).to_pydict()
    return {key: dict(zip(table[key], table["id"], strict=True)) for key in ("id", "text_hash")}
