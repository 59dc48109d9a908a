"""Answers that are kept as they come: a killed evaluation asks a model only what it has not answered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class KeptAnswers:
    """Request -> answer, in a file of JSON lines.

    What is asked together is kept together, in one write: a batch of which a part was lost is asked again as a whole, so that
    its rounding, and with it a close decision between two tokens, is that of an evaluation that was never killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._torn = False
        if path.is_file():
            self.answers.update(_lines(path))
            self._torn = path.read_bytes()[-1:] not in (b"", b"\n")

    def add(self, keys: Sequence[str], answers: Sequence[Any]) -> None:
        """Append a batch; it is on the disk when this returns."""
        lines = [json.dumps([key, answer], ensure_ascii=False) for key, answer in zip(keys, answers, strict=True)]
        with open(self.path, "a", encoding="utf-8") as f:
            f.write("\n" * self._torn + "".join(f"{line}\n" for line in lines))
            f.flush()
            os.fsync(f.fileno())
        self._torn = False
        self.answers.update(zip(keys, answers, strict=True))


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """What is whole in it: a line that a kill cut off, or a disk spoiled, is asked again."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # an answer may hold U+2028
        try:
            key, answer = json.loads(line)
        except (ValueError, TypeError):
            continue
        if isinstance(key, str):
            yield key, answer


def request_key(kind: str, arguments: Sequence[Any]) -> str:
    """sha256 of what is asked: the prompt, and how it is to be answered."""
    return hashlib.sha256(json.dumps([kind, *arguments], ensure_ascii=False).encode()).hexdigest()
