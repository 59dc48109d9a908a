"""What ends a command in one sentence."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right, told in one sentence. The command line prints it without a traceback."""

    code = 2
    """What the command line exits with."""


class StaleFolder(UserError):
    """A folder that was made, in whole or in part, by other work than is asked for now; ``changed`` names what differs."""

    def __init__(self, sentence: str, changed: str = "") -> None:
        super().__init__(sentence)
        self.changed = changed


class Stopped(Exception):
    """A signal ended the work at a point from which it can go on. ``code`` is what a shell shows for that signal."""

    def __init__(self, sentence: str, signal_number: int) -> None:
        super().__init__(sentence)
        self.code = 128 + signal_number
