"""Runs predictions again from their stored inputs and compares every bit.

The bits of an ONNX run depend on how many rows it has (one or several: 515 of 600 rows of the logistic baseline differ in
the last bits), on its threads and on the runtime. So a request is replayed whole, in its order, with its threads; a
difference under another runtime says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
from clickhouse_driver import Client

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.scorer.card import Card, load_model
from python_udfs.scorer.model import RUNTIME, Model
from python_udfs.scorer.registry import Reference, load
from python_udfs.settings import settings

Load = Callable[[Client, Reference], tuple[Card, bytes]]
_COLUMNS: Final = (
    "request_id, predicted_at, exchange, market_type, symbol, role, model_name, model_version, feature_hash, "
    "probabilities, score, signal, confidence, threshold, unusable, fallback, place, batch_size, runtime, threads"
)
_REQUESTS_AT_ONCE: Final = 20


class Difference(NamedTuple):
    """Where a replay does not give what was predicted. instrument: empty where it is of all."""

    instrument: str
    what: str


@dataclass(frozen=True)
class Replay:
    """One model run of a request. `differences` is empty where every bit is the same."""

    request_id: UUID
    predicted_at: datetime
    role: str
    model: str
    rows: int
    differences: list[Difference]


def load_anywhere(c: Client, reference: Reference) -> tuple[Card, bytes]:
    """The model of this very version, from its folder under the data folder or else from the registry.

    Raises:
        UserError: it is in neither.
    """
    with suppress(UserError):
        card, onnx = load_model(settings().data_dir / "models" / reference.name)
        if card.version == reference.version:
            return card, onnx
    return load(reference, c)


def find_requests(
    c: Client, *, request: UUID | None = None, last: int | None = None, since: datetime | None = None
) -> list[UUID]:
    """The one request, the last ones or those since a time, the oldest first.

    Raises:
        UserError: there is none.
    """
    where, limit = "true", ""
    if request is not None:
        where = "request_id = %(request)s"
    if since is not None:
        where = "predicted_at >= fromUnixTimestamp64Micro(%(since)s, 'UTC')"
    if last is not None:
        limit = "limit %(last)s"
    found = c.execute(
        f"select request_id from {_table('predictions')} where {where} group by request_id "
        f"order by max(created_at) desc, max(predicted_at) desc, request_id {limit}",
        {"request": request, "last": last, "since": since and round(since.timestamp() * 1_000_000)},
    )
    if not found:
        raise UserError("there is no such prediction: `marketprism score` makes some")
    return [request_id for (request_id,) in reversed(found)]


def replay(c: Client, requests: Sequence[UUID], load: Load = load_anywhere) -> Iterator[Replay]:
    """Each model run of each request, run again.

    Args:
        c: a client; serving tables are named in full.
        requests: of `find_requests`.
        load: where models come from.
    """
    models: dict[tuple[str, str, int], Model | str] = {}
    for begin in range(0, len(requests), _REQUESTS_AT_ONCE):
        some = requests[begin : begin + _REQUESTS_AT_ONCE]
        rows = db.rows(
            c,
            f"select {_COLUMNS} from {_table('predictions')} where request_id in %(requests)s "
            "order by request_id, role, model_version, place",
            {"requests": tuple(some)},
        )
        inputs = _inputs(c, {row["feature_hash"] for row in rows})
        runs = groupby(rows, key=lambda r: (r["request_id"], r["role"], r["model_name"], r["model_version"]))
        of = {key: list(run) for key, run in runs}
        # in the order asked for
        for key in sorted(of, key=lambda k: some.index(k[0])):
            run = of[key]
            _, role, name, version = key
            wanted = name, version, run[0]["threads"]
            if wanted not in models:
                models[wanted] = _model(c, load, *wanted)
            model = models[wanted]
            differences = (
                [Difference("", model)] if isinstance(model, str) else list(_compare(model, run, inputs))
            )
            yield Replay(
                run[0]["request_id"],
                run[0]["predicted_at"],
                role,
                f"{name}:{version}",
                len(run),
                differences,
            )


def _model(c: Client, load: Load, name: str, version: str, threads: int) -> Model | str:
    """The model, or why there is none."""
    found = c.execute(
        f"select relation from {_table('scored_models')} "
        "where model_name = %(name)s and model_version = %(version)s limit 1",
        {"name": name, "version": version},
    )
    try:
        card, onnx = load(c, Reference(name, version, found[0][0] if found else ""))
        return Model(card, onnx, threads=max(threads, 1))
    except UserError as e:
        return f"the model is not to be had: {e}"


def _inputs(c: Client, hashes: set[str]) -> dict[str, list[list[float]]]:
    """The stored inputs by hash. The same inputs may be there twice; different ones under one hash must not hide."""
    found: dict[str, list[list[float]]] = {}
    for hashed, inputs in c.execute(
        f"select distinct feature_hash, inputs from {_table('prediction_inputs')} "
        "where feature_hash in %(hashes)s",
        {"hashes": tuple(hashes)},
    ):
        found.setdefault(hashed, []).append(inputs)
    return found


def _compare(
    model: Model, run: list[dict[str, Any]], inputs: dict[str, list[list[float]]]
) -> Iterator[Difference]:
    """What differs between what was predicted and what the model says now. `run` is in the order of its batch."""
    card = model.card
    shape = (len(card.features),) if card.window == 1 else (card.window, len(card.features))
    places, size = [row["place"] for row in run], run[0]["batch_size"]
    if places != list(range(size)):
        yield Difference("", f"{len(run)} rows are there of a run of {size}: its bits cannot be made again")
        return
    batch, is_whole = [], True
    for row in run:
        stored = inputs.get(row["feature_hash"], [])
        arrays = [np.array(values, dtype=np.float32) for values in stored]
        good = [
            a
            for a in arrays
            if a.size == np.prod(shape) and hashlib.sha256(a.tobytes()).hexdigest() == row["feature_hash"]
        ]
        if len(good) < len(arrays) or not arrays:
            is_whole = False
            why = (
                "the stored inputs are not those of the hash"
                if arrays
                else f"its inputs are gone: they are kept {settings().inputs_ttl_days} days"
            )
            yield Difference(_instrument(row), why)
        else:
            batch.append(good[0].reshape(shape))
    if not is_whole:
        return
    probabilities = model.run(np.stack(batch))
    scores = model.scores(probabilities)
    for i, row in enumerate(run):
        silent = bool(row["unusable"]) or row["fallback"] == "none"
        signal, confidence = model.signals(probabilities[i : i + 1], row["threshold"])
        now = {
            "probabilities": probabilities[i],
            "score": np.float32(0) if silent else scores[i],
            "confidence": confidence[0],
        }
        differing = [
            f"{name} {_text(row[name])}, now {_text(value)}"
            for name, value in now.items()
            if np.asarray(row[name], dtype=np.float32).tobytes() != np.asarray(value).tobytes()
        ]
        if row["signal"] != (expected := 0 if silent else int(signal[0])):
            differing.append(f"signal {row['signal']}, now {expected}")
        if differing:
            other = f"; it ran under {row['runtime']}, this is {RUNTIME}" if row["runtime"] != RUNTIME else ""
            yield Difference(_instrument(row), "; ".join(differing) + other)


def _text(value: Any) -> str:
    """Floats with all their digits."""
    return " ".join(repr(float(x)) for x in np.asarray(value, dtype=np.float32).ravel())


def _instrument(row: dict[str, Any]) -> str:
    return f"{row['exchange']}:{row['market_type']}:{row['symbol']}"


def _table(name: str) -> str:
    return f"{db.names([settings().database('serving')])}.{name}"
