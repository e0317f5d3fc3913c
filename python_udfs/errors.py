"""Errors meant for the person at the keyboard: printed as one message, never as a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend. The message says what happened and what to do next."""


class BadFileError(UserError):
    """A file that cannot be loaded at all. Nothing of it is kept.

    Attributes:
        file: the file's path as given.
        line: the 1-based line where it was seen, or None when it is the whole file.
        field: the field or column at fault, or None.
    """

    def __init__(self, file: str, reason: str, *, line: int | None = None, field: str | None = None) -> None:
        self.file, self.line, self.field, self.reason = file, line, field, reason
        place = file + (f":{line}" if line is not None else "") + (f" [{field}]" if field else "")
        super().__init__(f"{place}: {reason}")
