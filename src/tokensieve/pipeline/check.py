"""``tokensieve check``: are these folders whole, do they fit together, and is no document in two of them?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..analysis.overlap import RUN, alike, run_hashes, shared_share
from ..data import corpus, scored
from ..data.corpus import open_corpus
from ..data.scored import load_scored
from ..runs.errors import UserError
from ..runs.files import MANIFEST
from ..runs.manifest import check_files, read_manifest
from .configs import export as export_config
from .configs import init as init_config
from .configs import run as run_config
from .configs import train as train_config
from .configs.check import CheckConfig

OVERLAP_TOKENS = 50_000_000  # 8 bytes a token are held at once
MAX_IDS_READ = 1000  # documents of equal ids whose texts are compared, spread over all that there are
# Share of common runs of RUN_BYTES (about 8 tokens) from which documents of one id, of LONG tokens, are one document.
ALIKE, LONG, RUN_BYTES = 0.5, 64, 32


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
        found = check_disjoint(corpora)
        lines.append(f"disjoint: no document stands in two of {len(corpora)} corpora")
        lines += [*found, *overlaps(corpora)]
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
        opened = open_corpus(folder, verify=None)
        line += f", {opened.num_rows} rows of {opened.length}, {manifest['stats']['tokens']} tokens"
        return [line, *_repeats(folder)]
    if manifest["kind"] == "scores" and corpus is not None:
        load_scored(corpus, folder)
        line += f", fit {corpus}"
    return [line]


def _keys(kind: str) -> Collection[str]:
    """What the manifest of a folder must say so that others can read it."""
    read: dict[str, Collection[str]] = {
        m.KIND: m.MANIFEST_KEYS for m in (corpus, scored, init_config, train_config, run_config, export_config)
    }
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


def check_disjoint(corpora: Sequence[str]) -> list[str]:
    """Raise UserError naming a document that stands in two corpora: the same text, or nearly so under the same id.

    An id alone says nothing: numbers begin again in each file, and files of equal names are of different folders. Where an id
    stands once in each of two corpora, the documents count as one if they differ in white space and case alone, or are long and
    half of their runs of 32 bytes are the same, whatever their tokenizers. Returns a line on ids that stand over different
    texts, if there are any.
    """
    shared = read = 0
    for a, b in combinations(corpora, 2):
        first, second = _documents(a), _documents(b)
        if len(both := np.intersect1d(first["text_hash"].to_numpy(), second["text_hash"].to_numpy())):
            index = int(np.isin(first["text_hash"].to_numpy(), both).argmax())
            raise UserError(_shared(a, b, len(both), "text", first["id"][index].as_py()))
        same, ids, looked_at = _same_ids(a, first, b, second)
        if same:
            raise UserError(_shared(a, b, len(same), "id, with nearly the same text", min(same)))
        shared, read = shared + ids, read + looked_at
    some = f" (of {read} that were read)" if read < shared else ""
    return [f"ids: {shared} stand in two corpora over different text{some}, and say nothing"] if shared else []


def _shared(a: str, b: str, number: int, what: str, example: str) -> str:
    return (
        f"{a} and {b} share {number} documents by {what}, the first is {example!r}: give their sources disjoint splits"
    )


def _same_ids(a: str, first: Any, b: str, second: Any) -> tuple[list[str], int, int]:
    """(ids of documents that are nearly the same in both, how many ids they share, how many were read: MAX_IDS_READ)."""
    ids = [_said_once(table["id"]) for table in (first, second)]
    shared = ids[0].filter(pc.is_in(ids[0], ids[1]))
    if not len(shared):
        return [], 0, 0
    looked_at = shared.take(pa.array(np.unique(np.linspace(0, len(shared) - 1, MAX_IDS_READ).astype(np.int64))))
    sides = []
    for folder, table in ((a, first), (b, second)):
        corpus = open_corpus(folder, verify=None)
        tokens = corpus.tokens_of(pc.index_in(looked_at, table["id"].combine_chunks()).to_numpy())
        decode = corpus.tokenizer().decode
        sides.append([("".join(decode(t, skip_special_tokens=True).casefold().split()), len(t)) for t in tokens])
    same = [i for i, x, y in zip(looked_at.to_pylist(), *sides, strict=True) if _nearly(*x, *y)]
    return same, len(shared), len(looked_at)


def _nearly(text: str, tokens: int, other: str, others: int) -> bool:
    """True if two texts, without white space and case, are the same or, where both are long, for the most part."""
    if text == other or min(tokens, others) < LONG:
        return text == other
    one, two = (np.frombuffer(t.encode(), np.uint8) for t in (text, other))
    return alike(one, two, RUN_BYTES) >= ALIKE


def _said_once(ids: Any) -> Any:
    """The ids that one document has: those that several have do not name one."""
    counts = pc.value_counts(ids)
    return counts.field("values").filter(pc.equal(counts.field("counts"), 1))


def _repeats(folder: Path) -> Iterator[str]:
    """A line if documents of a corpus have the same text."""
    table = _documents(str(folder))
    _, first, number = np.unique(table["text_hash"].to_numpy(), return_index=True, return_counts=True)
    if (again := int((number - 1).sum())) > 0:
        example = table["id"][int(first[number > 1].min())].as_py()
        yield f"  {again:,} of its {len(table):,} documents have the text of an earlier one, the first is that of {example!r}"


def overlaps(corpora: Sequence[str], worth_saying: float = 0.001) -> list[str]:
    """A line a pair of corpora of one tokenizer: what share of the first's runs of tokens stands in the second as well.

    Disjoint documents can share paragraphs: licence headers, docstrings copied between files, problems set twice.
    """
    opened = [open_corpus(folder, verify=None) for folder in corpora]
    opened = [c for c in opened if c.tokenizer_hash == opened[0].tokenizer_hash]
    if sum(c.num_rows * c.length for c in opened) > OVERLAP_TOKENS:
        return [f"overlap: not counted, over {OVERLAP_TOKENS:,} tokens"]
    names = [c.folder.name for c in opened]
    names = names if len(set(names)) == len(names) else [str(c.folder) for c in opened]
    runs = {n: run_hashes(c.contexts()) for n, c in zip(names, opened, strict=True)}
    shares = {(a, b): shared_share(runs[a], runs[b]) for a in runs for b in runs if a != b}
    said = [f"{a} in {b} {share:.1%}" for (a, b), share in shares.items() if share >= worth_saying]
    return [f"overlap: runs of {RUN} tokens that stand in another corpus too: {', '.join(said) or 'none'}"]


def _documents(folder: str) -> Any:
    return pq.read_table(Path(folder) / "documents.parquet", columns=["id", "text_hash"])
