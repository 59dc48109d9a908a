"""A verb that writes a folder: with stage(out, work) as s."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import StaleFolder, UserError
from .files import PART_NOTES, WORK, _mine, describe_files, locked, read_json, sync, write_json, writing
from .manifest import _write_manifest, is_done, read_manifest
from .work import Work


class Stage:
    """A folder that a verb writes, from its first part to its manifest. Made by :func:`stage`."""

    def __init__(self, folder: Path | str, work: Work, *, writes: bool = True, refuse: bool = True) -> None:
        self.folder, self.work = Path(folder), work
        self._writes, self._refuse = writes, refuse
        self.done = self._is_done()
        """This very work is done already: leave the folder as it is."""

    def _is_done(self) -> bool:
        if not is_done(self.folder):
            return False
        manifest = read_manifest(self.folder)
        if manifest["kind"] != self.work.kind:
            holds = f"{manifest['kind']!r}"
            raise StaleFolder(f"{self.folder} holds {holds}: choose another --out, or remove the folder", holds)
        changes = self.work.changes(manifest)
        if changes != []:
            changed = ", ".join(changes or ["fingerprint"])
            raise StaleFolder(
                f"{self.folder} is done, but from other inputs ({changed}): "
                "choose another --out, or remove the folder to do it again",
                changed,
            )
        return True

    def changed(self, free: Collection[str] = ()) -> str | None:
        """In what the unfinished work in the folder differs from this work, in words; None if it is the same, or none.

        ``free`` names config fields, dotted, that may differ.
        """
        path = self.folder / WORK
        note = read_json(path) if path.exists() else None
        changes = [] if note is None else self.work.changes(note)
        if changes is None:
            return "another config or other inputs"
        changes = [c for c in changes if c.split(" ")[0] not in free]
        return f"another config or other inputs ({', '.join(changes)})" if changes else None

    def refuse_other(self, free: Collection[str] = ()) -> None:
        """StaleFolder if the folder holds unfinished parts of other work."""
        if changed := self.changed(free):
            raise StaleFolder(f"{self.folder} holds unfinished work of {changed}: remove it or choose another --out")

    def bind(self) -> None:
        """Note in ``work.json`` whose parts come now. Only when nothing can refuse the config any more: one that was
        refused must not leave a mark that the next one trips over. Finishing removes the note."""
        if self._refuse:
            self.refuse_other()  # of tasks that need not run together another may have been first
        path = self.folder / WORK
        if self._writes and not (self._refuse and path.exists()):
            note = {"kind": self.work.kind, "config": self.work.config, "inputs": dict(self.work.inputs)}
            write_json(path, {"fingerprint": self.work.fingerprint, **note})

    def forget(self) -> None:
        """Take the note of :meth:`bind` away again: what was begun is refused by what it read, and leaves no mark."""
        (self.folder / WORK).unlink(missing_ok=True)

    def need(self, files: Sequence[str]) -> None:
        """UserError naming the first of these parts that is not there."""
        if missing := [n for n in files if not (self.folder / n).exists()]:
            raise UserError(
                f"{self.folder / missing[0]} is missing: another process of this run failed; start it again to go on"
            )

    def finish(self, files: Sequence[str], **fields: Any) -> None:
        """Hash ``files`` (names in the folder) and write the manifest, with these further ``fields``: the folder is done."""
        self.need(files)
        for name in files:
            sync(self.folder / name)  # what a library wrote: the manifest must not be on the disk before it
        _write_manifest(self.folder, self.work, describe_files(self.folder, files), fields)
        shutil.rmtree(self.folder / PART_NOTES, ignore_errors=True)


@contextlib.contextmanager
def stage(folder: Path | str, work: Work, *, rank: int = 0, alone: bool = True, refuse: bool = True) -> Iterator[Stage]:
    """Write ``folder`` as the work's::

        with stage(out, work(config)) as s:
            if s.done:
                return out
            ...                       # what can refuse the config
            s.bind()
            ...                       # files, by atomic_file; parts that are worth keeping with note_part
            s.finish(files)

    A folder that other work made or began is refused (StaleFolder), one that another process works in as well (UserError),
    and a full disk is one sentence (UserError). ``rank``: of several processes the first one holds the lock and binds.
    ``alone=False``: a task among others that write into the folder at any time: no lock, and every task binds.
    ``refuse=False``: the verb looks itself at what is unfinished there (``changed``).
    """
    made = Stage(folder, work, writes=rank == 0 or not alone, refuse=refuse)
    if made.done:
        yield made
        return
    _make_folder(made.folder)
    with locked(made.folder) if rank == 0 and alone else contextlib.nullcontext(), writing(made.folder):
        made.done = made._is_done()  # by a process that held the lock until now
        if refuse and not made.done:
            made.refuse_other()
        yield made


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{_mine()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"cannot write into {folder}: {e.strerror or e}") from None
