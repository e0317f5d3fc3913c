"""The state of each instrument as health sees it (`instrument_states`), read again every few seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from time import perf_counter_ns
from typing import Any, Final, Literal, NamedTuple

from clickhouse_driver import errors as driver_errors

from python_udfs.scorer.relation import Instrument
from python_udfs.settings import settings

TABLE: Final = "instrument_states"
_NOT_BUILT: Final = 60  # no such table
_DATABASE_GONE: Final = 81


class State(NamedTuple):
    """Not ok. `reason`: the state and the metrics that brought it about, for people."""

    state: Literal["degraded", "stale", "halted"]
    reason: str
    since: datetime


class States:
    """Where no state is known (health was never built, or the instrument is ok) there is none to obey.

    Attributes:
        problem: why the last reading failed; the states before it stay in force. Empty: it did not.
    """

    def __init__(self, execute: Callable[[str], list[Any]]) -> None:
        self.problem = ""
        self._execute = execute
        self._states: dict[Instrument, State] = {}
        self._looked: int | None = None

    def at(self, now: datetime) -> Mapping[Instrument, State]:
        """Those in force at a time: one that began later says nothing of it."""
        if self._looked is None or perf_counter_ns() - self._looked >= settings().states_poll_s * 1e9:
            self._look()
            self._looked = perf_counter_ns()
        return {i: s for i, s in self._states.items() if s.since <= now}

    def _look(self) -> None:
        try:
            rows = self._execute(
                f"select exchange, market_type, symbol, state, reasons, since from {TABLE} where state != 'ok'"
            )
        except driver_errors.ServerException as e:
            if e.code in (_NOT_BUILT, _DATABASE_GONE):
                self._states, self.problem = {}, ""
            else:
                self.problem = f"cannot read {TABLE}, the states before stay in force: {e.message}"
            return
        self.problem = ""
        self._states = {
            Instrument(*key): State(state, f"{state}: {', '.join(reasons)}", since)
            for *key, state, reasons, since in rows
        }
