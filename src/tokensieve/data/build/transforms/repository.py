"""Files of a repository as one document, in an order: rows in which a file stands behind those that it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from ....runs.errors import UserError
from ...read.documents import Document, TextPart
from ...tokenizer import Encoder
from .kind import Transform

REPOSITORY_TOKENS = ("<|repo_name|>", "<|file_sep|>")  # of Qwen2.5-Coder


@dataclass(frozen=True)
class Repository:
    """The files of a repository as one document."""

    level: int = 1
    """How many parts of a document's id name its repository: 2 of owner/name/path/to/file.py."""
    order: Literal["path", "distance"] = "path"
    """path: by name; distance: one file, drawn by the seed, stands last, and nearer ones in the tree of folders before it."""
    tokens: tuple[str, str] | None = None
    """The control tokens before the repository's name and before each file; else <|repo_name|> and <|file_sep|>."""


def repository_tokens(options: Repository) -> Sequence[str]:
    return options.tokens or REPOSITORY_TOKENS


def repository(options: Repository, encoder: Encoder) -> Transform:
    """``REPO name \\n`` then, of each file, ``FILE path \\n content \\n``: one document a repository and unit of work.

    A repository is what has the first ``level`` parts of its id in common: of a folder of code the folders below it, of rows
    the ``id``. Each name and content is encoded by itself. Repositories stand in the order of their first file; one that two
    units of work share becomes two documents (``unit_bytes``). ``fim`` behind it cuts the last file. Documents of token ids,
    conversations, and marked solutions stay as they are.

    The format is Qwen2.5-Coder's (arXiv 2409.12186, 3.2.2); ``distance`` is the path distance of project-level completion
    (arXiv 2510.13697), farther files first, ties by path where the paper breaks them by shared lines.
    """
    if options.level < 1:
        raise UserError(f"repository: level must be at least 1, not {options.level}")
    tokens = options.tokens or REPOSITORY_TOKENS
    if missing := [t for t in tokens if encoder.backend.token_to_id(t) is None]:
        raise UserError(
            f"repository: the tokenizer has no token {missing[0]!r}: name its own (tokens: repository, file)"
        )

    def gather(found: Iterable[Document], rng_of: Callable[[str, str], np.random.Generator]) -> Iterator[Document]:
        groups: dict[tuple[str, str], list[Document]] = {}
        for document in found:
            if document.tokens is not None or document.masked or document.solution or document.parts:
                yield document
                continue
            name = "/".join(document.id.split("/")[: options.level])
            groups.setdefault((document.source, name), []).append(document)
        for (source, name), files in groups.items():
            files = sorted(files, key=lambda d: d.id)
            if options.order == "distance":
                files = by_distance(files, int(rng_of(source, name).integers(len(files))))
            yield _joined(name, files, tokens)

    return Transform(unit=gather)


def by_distance(files: Sequence[Document], last: int) -> list[Document]:
    """Files by their distance from the one that stands last, farther first; of equal ones as they stood."""
    target = files[last]
    others = [f for i, f in enumerate(files) if i != last]
    return [*sorted(others, key=lambda f: -path_distance(f.id, target.id)), target]


def path_distance(one: str, other: str) -> int:
    """Steps from file to file through the tree of folders: 2 in the same folder."""
    a, b = PurePosixPath(one).parts, PurePosixPath(other).parts
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return len(a) + len(b) - 2 * common


def _joined(name: str, files: Sequence[Document], tokens: Sequence[str]) -> Document:
    texts, parts, weights = [f"{name}\n"], [TextPart(token=tokens[0]), TextPart(0, len(name) + 1)], []
    program, deleted = list[tuple[int, int]](), list[tuple[int, int]]()
    end = len(name) + 1
    for file in files:
        path = file.id.removeprefix(f"{name}/")
        start = end + len(path) + 1
        weights += [(start + lo, start + hi, weight) for lo, hi, weight in file.weights]
        program += [(start + lo, start + hi) for lo, hi in file.program]
        deleted += [(start + lo, start + hi) for lo, hi in file.deleted]
        texts += [f"{path}\n", file.text, "\n"]
        parts += [TextPart(token=tokens[1]), TextPart(end, start), TextPart(start, start + len(file.text))]
        end = start + len(file.text) + 1
        parts.append(TextPart(end - 1, end))
    parts.pop()  # nothing stands behind the last file
    first = files[0]
    made = Document(name, first.source, first.where, "".join(texts)[:-1], weights=tuple(weights), parts=tuple(parts))
    return made._replace(program=tuple(program), deleted=tuple(deleted))
