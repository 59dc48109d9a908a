"""Checkpoints to rely on: sealed by a manifest of hashes written last, gone on from only if every byte is as it was written.

    checkpoint-30/model.safetensors, optimizer.pt ...   written by the Trainer, then fsynced
    checkpoint-30/manifest.json                         written last; with its hashes it makes the checkpoint a *good* one
    damaged-checkpoint-40/                              not good when a run went on: set aside until step 40 is saved again

The manifest also has what the Trainer forgets: how the step was split over ranks, the loss since the last log line, and how
far the token log had come.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from ..runs.errors import UserError
from ..runs.files import MANIFEST, file_hash, hash_json, read_json, sync
from ..runs.layout import TOKEN_LOG, checkpoints, step_of
from ..runs.manifest import check_files, read_manifest, write_manifest

KIND, DAMAGED = "checkpoint", "damaged-"
# Without these a run would go on with a new optimizer, or with the learning rate schedule from its start.
NEEDED = ("trainer_state.json", "scheduler.pt")


@dataclass(frozen=True)
class Split:
    """How the rows of an optimizer step are split."""

    ranks: int
    rows: int
    """Of one forward of one rank."""
    accumulation: int

    @property
    def global_batch(self) -> int:
        return self.ranks * self.rows * self.accumulation

    def __str__(self) -> str:
        return f"{self.global_batch} ({self.ranks} ranks x {self.rows} rows x {self.accumulation} accumulated)"


def numbered(run: Path) -> list[Path]:
    """The run's ``checkpoint-N`` folders, by N."""
    return list(checkpoints(run).values())


def unseal(checkpoint: Path) -> None:
    """To be called before a checkpoint is written over: half of it must not pass for the whole."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)


def log_bytes(checkpoint: Path) -> int:
    """How far the token log has come: so much of it belongs to a checkpoint that is saved now."""
    log = checkpoint.parent / TOKEN_LOG
    return log.stat().st_size if log.exists() else 0


def seal(checkpoint: Path, split: Split, written: int, **fields: Any) -> None:
    """Declare a checkpoint written: fsync and hash every file, then the manifest. Its damaged predecessor goes.

    ``written`` is :func:`log_bytes` as it was when the checkpoint was saved; ``fields`` (JSON) are kept in the manifest.
    """
    unseal(checkpoint)
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file())
    # The disk writes one file while the processor hashes another: hashing hides behind the fsync that is needed anyway.
    with ThreadPoolExecutor(4) as pool:
        synced = [pool.submit(sync, p) for p in files]
        hashes = [pool.submit(file_hash, p) for p in files]
        entries = [
            {"file": str(p.relative_to(checkpoint)), "bytes": p.stat().st_size, "hash": h.result()}
            for p, h in zip(files, hashes, strict=True)
        ]
        for done in synced:
            done.result()
    for folder in {p.parent for p in files} | {checkpoint.parent}:
        sync(folder)
    log = checkpoint.parent / TOKEN_LOG
    token_log = {"bytes": written, "hash": file_hash(log, written)} if written else None
    config = {"step": step_of(checkpoint), "split": asdict(split)}
    fields = {"token_log": token_log, **fields}
    own = {"sealed": sorted(fields), "seal": _own_hash(config, entries, fields)}
    write_manifest(checkpoint, KIND, config=config, inputs={}, files=entries, **own, **fields)
    shutil.rmtree(_aside(checkpoint), ignore_errors=True)


def _own_hash(config: Any, files: Any, fields: Mapping[str, Any]) -> str:
    """A bit of the manifest may flip, too: in a number that nothing else vouches for, or in the hash of a good file."""
    return hash_json([config, files, dict(fields)])


def verify(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a good checkpoint. UserError naming the file that is missing, truncated or has other bytes."""
    if not (checkpoint / MANIFEST).exists():
        raise UserError(f"{checkpoint} has no {MANIFEST}: it is half-written, or the manifest was removed")
    manifest = read_manifest(checkpoint, KIND)
    try:
        if manifest["seal"] != _own_hash(
            manifest["config"], manifest["files"], {k: manifest[k] for k in manifest["sealed"]}
        ):
            raise UserError(f"{checkpoint / MANIFEST} has other content than was written: it is damaged")
        check_files(checkpoint, manifest)
        if manifest["token_log"] is not None:
            _check_token_log(checkpoint.parent / TOKEN_LOG, manifest["token_log"])
        Split(**manifest["config"]["split"])
    except (KeyError, TypeError) as e:
        raise UserError(f"{checkpoint / MANIFEST} is not as it was written: {type(e).__name__} {e}") from None
    return manifest


def _check_token_log(path: Path, written: Mapping[str, Any]) -> None:
    """Lines that came after the checkpoint do not count."""
    if not path.exists():
        raise UserError(f"{path} is missing, but a checkpoint counts on its first {written['bytes']} bytes")
    if path.stat().st_size < written["bytes"]:
        raise UserError(f"{path} has {path.stat().st_size} bytes, {written['bytes']} were written: it is truncated")
    if file_hash(path, written["bytes"]) != written["hash"]:
        raise UserError(f"{path} has other bytes than were written (hash differs): it is damaged or was replaced")


def last_good(run: Path, say: Callable[[str], None]) -> Path | None:
    """The last checkpoint to go on from; None: from the start. Those after it that are not good are told of and set aside."""
    for checkpoint in reversed(numbered(run)):
        if not resumable(checkpoint):
            say(f"{checkpoint} holds no optimizer state (save_only_model): nothing can go on from it")
            continue
        try:
            verify(checkpoint)
        except UserError as e:
            _set_aside(checkpoint)
            say(f"{e}; this checkpoint is set aside as {_aside(checkpoint).name}")
            continue
        return checkpoint
    return None


def resumable(checkpoint: Path) -> bool:
    """Whether it was meant to be gone on from: sealed without the Trainer's state it was not, unsealed nobody knows."""
    if not (checkpoint / MANIFEST).exists():
        return True
    try:
        listed = {entry["file"] for entry in read_json(checkpoint / MANIFEST)["files"]}
    except (UserError, KeyError, TypeError):
        return True  # damaged, as verify will say
    return set(NEEDED) <= listed


def _aside(checkpoint: Path) -> Path:
    return checkpoint.with_name(DAMAGED + checkpoint.name)


def _set_aside(checkpoint: Path) -> None:
    shutil.rmtree(_aside(checkpoint), ignore_errors=True)
    checkpoint.rename(_aside(checkpoint))


@contextlib.contextmanager
def tensors_only(checkpoint: Path | None) -> Iterator[None]:
    """torch refuses a file that would run code, without saying which, and tells how to run it: a UserError that names it."""
    try:
        yield
    except UnpicklingError:
        if checkpoint is None or (path := _pickle_in(checkpoint)) is None:
            raise
        raise UserError(
            f"{path} holds more than tensors and numbers, which may be code: it is not loaded; remove {checkpoint} to go on "
            "from the checkpoint before it"
        ) from None


def _pickle_in(checkpoint: Path) -> Path | None:
    import torch
    from transformers.trainer_pt_utils import safe_globals

    for path in sorted(p for p in checkpoint.rglob("*") if p.suffix in (".pt", ".pth", ".bin")):
        try:
            with safe_globals():
                torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        except UnpicklingError:
            return path
    return None


def check_split(checkpoint: Path, now: Split, *, ranks_rows_together: bool) -> None:
    """Refuse (UserError) a split of the step with which rows would be repeated or left out.

    ``ranks_rows_together``: tokens of one forward of all ranks are ranked together, so its rows must stay as many, too.
    """
    then = Split(**read_json(checkpoint / MANIFEST)["config"]["split"])
    insist = "change them back, or set allow_changed to go on all the same"
    if then.global_batch != now.global_batch:
        raise UserError(
            f"{checkpoint} was written with {then} rows a step, now there are {now}: rows would be repeated or left out; "
            f"{insist}"
        )
    if ranks_rows_together and then.ranks * then.rows != now.ranks * now.rows:
        raise UserError(
            f"{checkpoint} was written with tokens of {then.ranks * then.rows} rows ranked together, now "
            f"{now.ranks * now.rows} ({now}): other tokens would be chosen; {insist}"
        )
