"""Locks of a store on this machine. The kernel holds them: a killed process lets go by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from filelock import FileLock, Timeout

from python_udfs.errors import UserError
from python_udfs.settings import settings

BUSY: Final = 75  # EX_TEMPFAIL: try again later
BUILD: Final = "build"  # whoever appends to or replaces what dbt owns
BUILD_WAIT_S: Final = 1800  # how long who needs a build waits for another one


class BusyError(UserError):
    """Somebody else holds the lock: nothing was done."""


@contextmanager
def held(name: str, who: str, *, wait_s: float = 0) -> Iterator[None]:
    """The lock `name` of the current store (data folder and prefix), for as long as the block lasts.

    Args:
        who: what the holder calls itself, for the message to those who find the lock taken.
        wait_s: seconds to wait for it.

    Raises:
        BusyError: another process held it all that time.
    """
    s = settings()
    s.data_dir.mkdir(parents=True, exist_ok=True)
    path = s.data_dir / f"{s.db_prefix}{name}.lock"
    holder = path.with_suffix(".holder")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as e:
        other = holder.read_text() if holder.exists() else "another process"
        raise BusyError(f"{who}: {other} holds {path}: nothing was done, try again later") from e
    try:
        holder.write_text(who)
        yield
    finally:
        lock.release()
