"""Which models serve: the state, and the commands that change it.

`deployments` is only added to. A row is a whole state, a command inserts one row: there is nothing between two states.
Two commands at once: both saw state n and write n + 1 under the same deduplication token, of which the server keeps the
first; the other one reads back a row that is not its own and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import uuid4

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.quality import gate as quality_gate
from python_udfs.scorer import registry
from python_udfs.scorer.card import Card, check_contract
from python_udfs.scorer.registry import Reference, Registered, serving
from python_udfs.settings import settings

SHARES: Final = (1, 5, 20, 100)
# Younger files may belong to a registration under way, whose row is yet to come.
_YOUNG_S: Final = 3600
_UNKNOWN_TABLE: Final = 60
_ROLES: Final = ("champion", "challenger", "baseline")
_MODEL_COLUMNS: Final = tuple(f"{role}_{part}" for role in _ROLES for part in Reference._fields)
_COLUMNS: Final = ", ".join(
    ("sequence", "id", "at", "action", *_MODEL_COLUMNS, "share", "rollback_to", "who", "reason")
)


class BusyError(UserError):
    """Another command came first, or must come first: nothing was done. Try again."""


class Verdict(StrEnum):
    """What a gate says. TOO_LITTLE: neither yet."""

    PASS = "pass"
    TOO_LITTLE = "too_little"
    FAIL = "fail"


class GateError(UserError):
    """The gates do not let this through. `verdict` is the worst one."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Deployment:
    """A state. Sequence 0: before the first command, nothing is deployed.

    Attributes:
        champion: serves. None: nothing is deployed.
        challenger: scores beside the champion, and serves `share` percent of the instruments.
        baseline: serves where features are stale or missing.
        share: 0 without a challenger, else 1, 5, 20 or 100.
        sequence: of the row; predictions carry it.
        rollback_to: sequence of the state that a rollback restores; 0: none.
    """

    champion: Reference | None = None
    challenger: Reference | None = None
    baseline: Reference | None = None
    share: int = 0
    sequence: int = 0
    rollback_to: int = 0

    @property
    def models(self) -> list[Reference]:
        return [model for model in (self.champion, self.challenger, self.baseline) if model]


class Entry(NamedTuple):
    """A state and the command that made it."""

    deployment: Deployment
    at: datetime
    action: str
    who: str
    reason: str


# ---- reading -------------------------------------------------------------------------------------------


def served_by(instrument: str, challenger_name_version: str, share: int) -> bool:
    """Whether the challenger serves this instrument. Needs no state, and is the same on every host.

    Monotone: an instrument that it serves at a share it serves at every larger one. Another challenger draws anew.

    Args:
        instrument: exchange:market_type:symbol.
        challenger_name_version: name:version.
        share: percent, 0 to 100.
    """
    digest = hashlib.sha256(f"{challenger_name_version}|{instrument}".encode()).digest()
    return int.from_bytes(digest[:8], "big") * 100 < share << 64


def current_deployment(client: Client) -> Deployment:
    """The present state.

    Raises:
        UserError: the table is not there.
    """
    entries = history(client, 1)
    return entries[0].deployment if entries else Deployment()


def history(client: Client, limit: int = 1_000_000) -> list[Entry]:
    """The last states, the newest first."""
    query = f"select {_COLUMNS} from {serving('deployments')} order by sequence desc limit %(limit)s"
    try:
        return [_entry(row) for row in client.execute(query, {"limit": limit})]
    except driver_errors.ServerException as e:
        if e.code == _UNKNOWN_TABLE:
            raise UserError("there is no table of deployments: run `make migrate`") from e
        raise


def load(reference: Reference, client: Client | None = None) -> tuple[Card, bytes]:
    """The card and the ONNX bytes of a deployed model: `registry.load`."""
    return registry.load(reference, client)


def _state(c: Client, sequence: int) -> Deployment:
    [row] = c.execute(
        f"select {_COLUMNS} from {serving('deployments')} where sequence = %(n)s", {"n": sequence}
    )
    return _entry(row).deployment


def _entry(row: tuple[Any, ...]) -> Entry:
    sequence, _, at, action, *rest = row
    champion, challenger, baseline = (Reference(*rest[i : i + 3]) if rest[i] else None for i in (0, 3, 6))
    share, rollback_to, by, reason = rest[9:]
    state = Deployment(champion, challenger, baseline, share, sequence, rollback_to)
    return Entry(state, at, action, by, reason)


# ---- gates ---------------------------------------------------------------------------------------------


class Finding(NamedTuple):
    """What a gate found."""

    verdict: Verdict
    reasons: list[str]


Gate = Callable[[Client, Deployment, Deployment], Finding]  # the client, the present state, the one to come


def files_are_whole(c: Client, _: Deployment, to: Deployment) -> Finding:
    """Every model of the new state can be restored from the database."""
    reasons = []
    for model in to.models:
        found = registry.find(c, str(model))
        if not found.available:
            reasons.append(f"{model} was pruned: register it again")
        elif broken := registry.broken_files(c, found):
            reasons.append(f"{', '.join(broken)} of {model} gone or damaged: register it again")
    return Finding(Verdict.FAIL if reasons else Verdict.PASS, reasons)


def contracts_fit(c: Client, _: Deployment, to: Deployment) -> Finding:
    """Every model of the new state can read the live feature row."""
    reasons = []
    for model in to.models:
        try:
            check_contract(c, registry.find(c, str(model)).card)
        except UserError as e:
            reasons.append(str(e))
    return Finding(Verdict.FAIL if reasons else Verdict.PASS, reasons)


def comparison_passes(c: Client, now: Deployment, _: Deployment) -> Finding:
    """dbt's `rollout_comparison` lets the present step pass. Without a challenger there is nothing to compare."""
    if not now.challenger:
        return Finding(Verdict.PASS, [])
    view = f"{db.names([settings().database('features')])}.rollout_comparison"
    try:
        found = c.execute(f"select verdict, reasons from {view} where sequence = %(n)s", {"n": now.sequence})
    except driver_errors.ServerException as e:
        if e.code == _UNKNOWN_TABLE:
            return Finding(Verdict.FAIL, [f"there is no {view}: run `make build`"])
        raise
    if len(found) != 1:
        return Finding(Verdict.FAIL, [f"{view} has {len(found)} rows of deployment {now.sequence}"])
    return Finding(Verdict(found[0][0]), found[0][1])


def quality_passes(c: Client, _: Deployment, __: Deployment) -> Finding:
    """The newest run of `marketprism quality` was a success, or there was none."""
    reasons = quality_gate.objections(c)
    return Finding(Verdict.FAIL if reasons else Verdict.PASS, reasons)


# All of them are asked before a model is promoted or takes a step; a rollback asks none. Add new ones here.
GATES: Final[list[Gate]] = [files_are_whole, contracts_fit, comparison_passes, quality_passes]


def _ask_gates(c: Client, now: Deployment, to: Deployment, wish: str, waived: Container[Gate] = ()) -> None:
    findings = [gate(c, now, to) for gate in GATES if gate not in waived]
    for verdict in (Verdict.FAIL, Verdict.TOO_LITTLE):
        if any(f.verdict == verdict for f in findings):
            reasons = [reason for f in findings if f.verdict != Verdict.PASS for reason in f.reasons]
            said = "not yet" if verdict == Verdict.TOO_LITTLE else "no"
            raise GateError(verdict, f"{wish}: {said}: " + "; ".join(reasons))


# ---- commands ------------------------------------------------------------------------------------------


def promote(
    c: Client, text: str, reason: str = "", *, waived: Container[Gate] = ()
) -> tuple[Deployment, bool]:
    """Makes a model the challenger at 1 %, or the champion where there is none.

    Args:
        waived: gates that are not asked.

    Returns:
        The state, and whether this call made it: a model that is there already stays as it is.

    Raises:
        BusyError: another roll-out is under way, or another command came first.
        GateError: a gate says no.
        UserError: no such model.
    """
    now, model = current_deployment(c), registry.find(c, text).reference
    if model in (now.champion, now.challenger):
        return now, False
    if now.challenger:
        raise BusyError(
            f"{now.challenger} is being rolled out ({now.share} %): `step` it to the end or `rollback`"
        )
    if now.champion:
        to = replace(now, challenger=model, share=SHARES[0], rollback_to=now.sequence)
    else:
        to = replace(now, champion=model)
    _ask_gates(c, now, to, f"promote {model}", waived)
    return _append(c, now, to, "promote", reason), True


def set_baseline(
    c: Client, text: str, reason: str = "", *, waived: Container[Gate] = ()
) -> tuple[Deployment, bool]:
    """Makes a model the baseline: not during a roll-out, whose comparison would begin anew.

    Args, returns, raises: as `promote`.
    """
    now, model = current_deployment(c), registry.find(c, text).reference
    if model == now.baseline:
        return now, False
    _no_rollout(now, "the baseline stays as it is")
    to = replace(now, baseline=model)
    _ask_gates(c, now, to, f"promote {model} to baseline", waived)
    return _append(c, now, to, "baseline", reason), True


def step(c: Client, reason: str = "") -> Deployment:
    """Takes the challenger to its next share, and from 100 % to champion, if the gates let it.

    Raises:
        BusyError: another command came first.
        GateError: a gate says no, or not yet.
        UserError: there is no challenger.
    """
    now = current_deployment(c)
    if not now.challenger:
        raise UserError(
            f"no roll-out is under way, {now.champion or 'nothing'} is champion: `promote` a model"
        )
    larger = [share for share in SHARES if share > now.share]
    champion = replace(now, champion=now.challenger, challenger=None, share=0)
    to = replace(now, share=larger[0]) if larger else champion
    wish = f"{now.challenger} from {now.share} % to " + (f"{to.share} %" if larger else "champion")
    _ask_gates(c, now, to, wish)
    return _append(c, now, to, "step", reason)


def rollback(c: Client, reason: str = "", *, again: bool = False) -> tuple[Deployment, bool]:
    """Restores the last state with another champion, or the champion without the challenger: its model and its
    feature version together, and its baseline. No gate is asked.

    Args:
        again: also right after a rollback; otherwise that one stands, so that a command sent twice counts once.

    Returns:
        The state, and whether this call made it.

    Raises:
        BusyError: another command came first.
        UserError: there is no state to go back to, or its models were pruned (never those of the last one).
    """
    last = history(c, 1)
    now = last[0].deployment if last else Deployment()
    if last and last[0].action == "rollback" and not again:
        return now, False
    if not now.rollback_to:
        raise UserError(f"nothing to roll back to: {now.champion or 'no model'} is the first champion")
    to = _state(c, now.rollback_to)
    for model in to.models:
        if registry.broken_files(c, registry.find(c, str(model))):
            raise UserError(f"the files of {model} are gone: register it again, then roll back")
    return _append(c, now, to, "rollback", reason), True


def kept(c: Client, now: Deployment, models: list[Registered], keep: int) -> set[tuple[str, str]]:
    """Name and version of the models that pruning spares: those of the present state, of the `keep` states that
    rollbacks come to, and the `keep` last registered ones of each name.
    """
    spared = {model[:2] for model in now.models}
    state = now
    for _ in range(keep):
        if not state.rollback_to:
            break
        state = _state(c, state.rollback_to)
        spared |= {model[:2] for model in state.models}
    by_name: dict[str, list[Registered]] = {}
    for model in models:
        if model.available:
            by_name.setdefault(model.reference.name, []).append(model)
    return spared | {model.reference[:2] for named in by_name.values() for model in named[-keep:]}


def prune(c: Client, keep: int, reason: str = "") -> tuple[list[Reference], int]:
    """Deletes the files of models that are not `kept`; their cards stay. Run again after a crash, it goes on.

    The order makes it safe beside other commands. Models are marked first: from then on no gate lets them through. Then
    this takes a sequence number: a command that asked the gates before the marks were there either was first, and
    nothing is deleted, or fails. Files go last.

    Returns:
        The models that this call marked, and how many files it deleted.

    Raises:
        BusyError: a roll-out is under way, or another command came first: no file was deleted.
    """
    now, models = current_deployment(c), registry.registered(c)
    _no_rollout(now, "nothing was pruned")
    spared = kept(c, now, models, max(keep, 1))
    # what a crash, or a command between, left marked though it is needed
    back = [
        m for m in models if not m.available and m.reference[:2] in spared and not registry.broken_files(c, m)
    ]
    gone = [m for m in models if m.available and m.reference[:2] not in spared]
    for marked, available in ((back, True), (gone, False)):
        if marked:
            registry.mark(c, [m.reference for m in marked], available=available)
    orphans = registry.orphans(c, _YOUNG_S)
    if gone or orphans:
        _append(c, now, now, "prune", reason or ", ".join(str(m.reference) for m in gone))
        registry.delete(c, orphans, _YOUNG_S)
    return [m.reference for m in gone], len(orphans)


def _no_rollout(now: Deployment, therefore: str) -> None:
    if now.challenger:
        raise BusyError(f"{now.challenger} is being rolled out ({now.share} %): {therefore}")


def _append(c: Client, now: Deployment, to: Deployment, action: str, reason: str) -> Deployment:
    """Writes the state after `now`.

    Raises:
        BusyError: another command wrote it first.
    """
    to = replace(to, sequence=now.sequence + 1)
    mine = uuid4()
    models = [part for m in (to.champion, to.challenger, to.baseline) for part in (m or ("", "", ""))]
    row = (to.sequence, mine, datetime.now(UTC), action, *models, to.share, to.rollback_to)
    c.execute(
        f"insert into {serving('deployments')} ({_COLUMNS}) values",
        [(*row, registry.who(), reason)],
        settings={
            "async_insert": 0,
            "insert_deduplicate": 1,
            "insert_deduplication_token": f"deployment {to.sequence}",
        },
    )
    [(winner,)] = c.execute(
        f"select id from {serving('deployments')} where sequence = %(n)s", {"n": to.sequence}
    )
    if winner != mine:
        raise BusyError(f"another command made deployment {to.sequence} first: look at it and try again")
    return to
