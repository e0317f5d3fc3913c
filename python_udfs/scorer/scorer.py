"""Scores the latest bucket of each instrument with what is deployed, or one model: `Scorer`, for programs."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final, NamedTuple, Protocol, Self
from uuid import UUID, uuid4

import numpy as np
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.scorer.card import Card, check_contract, load_model
from python_udfs.scorer.model import RUNTIME, Model
from python_udfs.scorer.relation import Floats, Instrument, Relation, Rows, block
from python_udfs.scorer.states import State, States
from python_udfs.settings import Budget, settings

__all__ = ["Deployed", "Deployments", "Instrument", "Prediction", "Role", "Scorer"]

_MILLISECOND: Final = timedelta(milliseconds=1)
_STAGES: Final = ("read", "prepare", "run", "total")
# Inputs that have not changed are not stored again so soon: their row must outlive the last prediction of them.
_STORE_AGAIN_S: Final = 3600


class Role(StrEnum):
    """What a model is for. All score all instruments; one of them is served on each."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"
    BASELINE = "baseline"


class Deployed(Protocol):
    """What is deployed (`deployment.Deployment`): references of models, written as name:version; None: there is none."""

    @property
    def champion(self) -> Any: ...
    @property
    def challenger(self) -> Any: ...
    @property
    def baseline(self) -> Any: ...
    @property
    def share(self) -> int: ...
    @property
    def sequence(self) -> int: ...


@dataclass(frozen=True)
class Deployments:
    """Where deployments and models come from: the functions of `deployment`."""

    current: Callable[[Client], Deployed]
    load: Callable[[Any], tuple[Card, bytes]]
    # (instrument, challenger, share in percent): is the challenger served on it?
    served_by: Callable[[str, str, int], bool]


class Prediction(NamedTuple):
    """A row of `predictions`, named like its columns. Rows of one call share the request id.

    `unusable`: why this model must not be served here. `fallback`, on the served row of an instrument: "baseline" where
    the baseline stands in for the model whose turn it was, "none" where nothing is fit to be served: then score and
    signal are 0. `fallback_reason` says what was wrong with the model whose turn it was, or which state the instrument
    is in.
    """

    request_id: UUID
    predicted_at: datetime
    exchange: str
    market_type: str
    symbol: str
    bucket_id: int
    bucket_ts_end: datetime
    model_name: str
    model_version: str
    feature_vector_version: int
    feature_hash: str
    missing_features: int
    stale: bool
    age_ms: int
    probabilities: list[float]
    score: float
    read_us: int
    prepare_us: int
    run_us: int
    total_us: int
    role: str
    served: bool
    deployment: int
    signal: int
    confidence: float
    fallback: str
    unusable: str
    fallback_reason: str
    threshold: float
    read_budget_us: int
    prepare_budget_us: int
    run_budget_us: int
    total_budget_us: int
    over_budget: list[str]
    last_write_us: int
    place: int
    batch_size: int
    runtime: str
    threads: int

    @property
    def instrument(self) -> Instrument:
        return Instrument(self.exchange, self.market_type, self.symbol)


@dataclass(frozen=True)
class _Serving:
    """The models in use, the champion first, and the relations that they read, by table."""

    models: dict[Role, Model]
    relations: dict[str, Relation]
    deployment: Deployed | None = None

    @property
    def sequence(self) -> int:
        return self.deployment.sequence if self.deployment else 0


class _Batch(NamedTuple):
    """The inputs of one model run, and where they come from."""

    rows: dict[Instrument, Rows]  # in the order of the batch
    inputs: Floats
    hashes: list[str]
    missing: list[int]


class Scorer:
    """Loaded models with a database connection. Not for use by several threads at once.

    Attributes:
        problem: why the newest deployment is not the one in use; empty: it is.
    """

    def __init__(
        self,
        source: Path | Deployments,
        *,
        max_age_s: float = 60.0,
        threads: int = 1,
    ) -> None:
        """Loads the models and compares their cards with the live contracts.

        Args:
            source: a folder with model.onnx and card.json, or what says which models are deployed.
            max_age_s: a row whose bucket ended longer ago is stale: no model is served on it.
            threads: intra-op threads of the ONNX runtime; one is best for few rows.

        Raises:
            UserError: no model there, files that do not belong together, a card that does not fit the live
                relation, nothing deployed, or no database.
        """
        self.problem = ""
        self._serving = _Serving({}, {})
        self._source = source
        self._max_age = timedelta(seconds=max_age_s)
        self._threads = threads
        self._last_write_us = 0
        self._stored: dict[str, int] = {}  # feature_hash -> when it was last stored
        self._named: set[str] = set()  # model versions that scored_models knows
        # seen to be good before the database is
        loaded = load_model(source) if isinstance(source, Path) else None
        with ExitStack() as stack:
            self._c = stack.enter_context(db.connect(settings().database("features")))
            # rows go in as tuples, features come out as arrays: the driver does one of both per connection
            self._arrays = stack.enter_context(db.connect(settings().database("features"), use_numpy=True))
            self._states = States(self._c.execute)
            if loaded is not None:
                self._serving = self._set_up({Role.CHAMPION: Model(*loaded, threads=threads)})
            else:
                assert isinstance(source, Deployments)
                self._serving = self._load(source.current(self._c))
            self._looked = perf_counter_ns()
            self.close = stack.pop_all().close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def states_problem(self) -> str:
        """Why the newest states of the instruments are not the ones obeyed; empty: they are."""
        return self._states.problem

    @property
    def card(self) -> Card:
        """The champion's card."""
        return self._serving.models[Role.CHAMPION].card

    def reconnect(self) -> None:
        """Drops the connection, after a network error; the next call makes a new one."""
        self._c.disconnect()
        self._arrays.disconnect()

    def score(
        self,
        instruments: Iterable[Instrument] | None = None,
        *,
        as_of: datetime | None = None,
        write: bool = True,
    ) -> list[Prediction]:
        """Scores the latest bucket of each instrument: one query per relation and one run per model.

        Args:
            instruments: which; None for every one that has a bucket.
            as_of: the time to score at, with a zone: buckets that end later are not seen, and ages count from
                it. None: now.
            write: also insert into `predictions`, in one insert, those of the models that are not served, too.

        Returns:
            The prediction that counts, one per instrument, in the order asked for (None: by name).

        Raises:
            UserError: an instrument has no bucket (then nothing is written), there is none at all, or a live
                relation no longer fits its card.
        """
        return [p for p in self.score_all(instruments, as_of=as_of, write=write) if p.served]

    def score_all(
        self,
        instruments: Iterable[Instrument] | None = None,
        *,
        as_of: datetime | None = None,
        write: bool = True,
    ) -> list[Prediction]:
        """As `score`, with the predictions of every model: instrument by instrument, the champion's first."""
        if as_of is not None and as_of.tzinfo is None:
            raise UserError(f"as_of {as_of} has no time zone: add one, such as +00:00")
        self._look()
        serving = self._serving
        wanted = self._instruments() if instruments is None else list(dict.fromkeys(instruments))
        rows: dict[str, dict[Instrument, Rows]] = {}
        read_us: dict[str, int] = {}
        for table, relation in serving.relations.items():
            started = perf_counter_ns()
            rows[table] = relation.read(wanted, as_of) if wanted else {}
            read_us[table] = (perf_counter_ns() - started) // 1000
        nowhere = [i for i in wanted if not any(i in found for found in rows.values())]
        if len(nowhere) == len(wanted) or (instruments is not None and nowhere):
            raise self._unknown(nowhere, self._instruments())
        request, now = uuid4(), as_of or datetime.now(UTC)
        batches: dict[tuple[str, int, tuple[str, ...]], _Batch] = {}
        found: dict[Role, dict[Instrument, Prediction]] = {}
        for role, model in serving.models.items():
            relation = serving.relations[model.card.table]
            started = perf_counter_ns()
            # a challenger mostly reads what the champion reads
            inputs_of = (relation.table, model.card.window, tuple(model.card.features))
            if inputs_of not in batches:
                batches[inputs_of] = _prepare(model.card, relation, rows[relation.table], wanted)
            batch = batches[inputs_of]
            if not batch.rows:
                continue
            prepare_us = (perf_counter_ns() - started) // 1000
            found[role] = self._predict(
                request, now, role, batch, read_us=read_us[relation.table], prepare_us=prepare_us
            )
        states = self._states.at(now)
        predictions = [
            p
            for instrument in wanted
            for p in self._serve(
                instrument,
                {role: of[instrument] for role, of in found.items() if instrument in of},
                states.get(instrument),
            )
        ]
        if write:
            self._write(predictions, batches.values())
        return predictions

    def run(self, inputs: Floats) -> Floats:
        """The champion alone: inputs in its card's order, see `Model.run`, to probabilities (n, classes)."""
        return self._serving.models[Role.CHAMPION].run(inputs)

    def read_latest(self, wanted: list[Instrument], as_of: datetime | None = None) -> dict[Instrument, Rows]:
        """What the champion reads, see `Relation.read`."""
        return self._serving.relations[self.card.table].read(wanted, as_of)

    def newest(self) -> datetime:
        """The end of the newest bucket of any instrument: the present of recorded data.

        Raises:
            UserError: there is no bucket.
        """
        ends = [end for relation in self._serving.relations.values() if (end := relation.newest())]
        if not ends:
            raise self._unknown([], [])
        return max(ends)

    def _predict(
        self,
        request: UUID,
        now: datetime,
        role: Role,
        batch: _Batch,
        *,
        read_us: int,
        prepare_us: int,
    ) -> dict[Instrument, Prediction]:
        """What one model says of its batch; nothing is served yet."""
        model = self._serving.models[role]
        started = perf_counter_ns()
        probabilities = model.run(batch.inputs)
        scores = model.scores(probabilities).tolist()
        threshold = model.threshold
        signals, confidence = model.signals(probabilities, threshold)
        run_us = (perf_counter_ns() - started) // 1000
        total_us = read_us + prepare_us + run_us
        used = (read_us, prepare_us, run_us, total_us)
        budget = _budget(model.card)
        over = [stage for stage, us, may in zip(_STAGES, used, budget, strict=True) if us > may]
        most_missing = settings().max_missing * batch.inputs[0].size
        finite = np.isfinite(probabilities.sum(axis=1)).tolist()
        found = {}
        for place, (instrument, row) in enumerate(batch.rows.items()):
            age = now - row.last_end
            unusable = _unusable(
                stale=age > self._max_age,
                missing=batch.missing[place] > most_missing,
                number=finite[place],
            )
            found[instrument] = Prediction(
                request_id=request,
                predicted_at=now,
                exchange=instrument.exchange,
                market_type=instrument.market_type,
                symbol=instrument.symbol,
                bucket_id=row.last_bucket,
                bucket_ts_end=row.last_end,
                model_name=model.card.name,
                model_version=model.card.version,
                feature_vector_version=model.card.feature_vector_version,
                feature_hash=batch.hashes[place],
                missing_features=batch.missing[place],
                stale=age > self._max_age,
                age_ms=age // _MILLISECOND,
                probabilities=probabilities[place].tolist(),
                score=0.0 if unusable else scores[place],
                read_us=read_us,
                prepare_us=prepare_us,
                run_us=run_us,
                total_us=total_us,
                role=role.value,
                served=False,
                deployment=self._serving.sequence,
                signal=0 if unusable else int(signals[place]),
                confidence=float(confidence[place]),
                fallback="",
                unusable=unusable,
                fallback_reason="",
                threshold=threshold,
                read_budget_us=budget[0],
                prepare_budget_us=budget[1],
                run_budget_us=budget[2],
                total_budget_us=budget[3],
                over_budget=over,
                last_write_us=self._last_write_us,
                place=place,
                batch_size=len(batch.rows),
                runtime=RUNTIME,
                threads=model.threads,
            )
        return found

    def _serve(
        self, instrument: Instrument, found: dict[Role, Prediction], state: State | None
    ) -> list[Prediction]:
        """The predictions of one instrument, with the one marked that counts.

        state: what health says of it. Degraded: the baseline's turn. Stale or halted: nobody's.
        """
        if not found:
            return []
        deployed, turn = self._serving.deployment, Role.CHAMPION
        if deployed and Role.CHALLENGER in self._serving.models:
            assert isinstance(self._source, Deployments)
            if self._source.served_by(str(instrument), str(deployed.challenger), deployed.share):
                turn = Role.CHALLENGER
        reason = found[turn].unusable if turn in found else "no row"
        stands_in = self._stands_in()
        baseline = found.get(stands_in) if stands_in else None
        changes: dict[str, Any] = {"served": True}
        may_stand_in = baseline and not baseline.unusable
        if state:
            reason = ", ".join(filter(None, [state.reason, reason]))
            may_stand_in = may_stand_in and state.state == "degraded"
        if not reason:
            served = turn
        elif stands_in and may_stand_in:
            served = stands_in
            changes |= {"fallback": "baseline", "fallback_reason": reason}
        else:
            served = turn if turn in found else next(iter(found))
            changes |= {"fallback": "none", "fallback_reason": reason, "score": 0.0, "signal": 0}
        return [p._replace(**changes) if role == served else p for role, p in found.items()]

    def _stands_in(self) -> Role | None:
        """Which part the baseline plays: one that is deployed as champion, too, is loaded once. None: there is none."""
        models, deployed = self._serving.models, self._serving.deployment
        if Role.BASELINE in models:
            return Role.BASELINE
        if deployed is None:
            return None if models[Role.CHAMPION].card.type.is_network else Role.CHAMPION
        roles = (role for role in models if getattr(deployed, role) == deployed.baseline)
        return next(roles, None)

    def _instruments(self) -> list[Instrument]:
        """Every instrument that has a bucket in any relation, by name."""
        relations = self._serving.relations.values()
        return sorted({i for relation in relations for i in relation.instruments()})

    def _look(self) -> None:
        """Changes to a new deployment, at most every few seconds. One that cannot be loaded leaves the last in use."""
        if not isinstance(self._source, Deployments):
            return
        if perf_counter_ns() - self._looked < settings().deployment_poll_s * 1e9:
            return
        self._looked = perf_counter_ns()
        try:
            deployed = self._source.current(self._c)
            if deployed.sequence != self._serving.sequence:
                self._serving = self._load(deployed)
            self.problem = ""
        except UserError as e:
            self.problem = f"deployment {self._serving.sequence} stays in use: {e}"

    def _load(self, deployed: Deployed) -> _Serving:
        """The models of a deployment; those that are in use already are not loaded again."""
        assert isinstance(self._source, Deployments)
        if deployed.champion is None:
            raise UserError("no model is deployed: run `marketprism models promote NAME`")
        in_use = {(m.card.name, m.card.version): m for m in self._serving.models.values()}
        models: dict[Role, Model] = {}
        for role in Role:
            reference = getattr(deployed, role)
            # a model that plays a part already need not play another
            if reference is not None and reference not in [getattr(deployed, other) for other in models]:
                card, onnx = self._source.load(reference)
                models[role] = in_use.get((card.name, card.version)) or Model(
                    card, onnx, threads=self._threads
                )
        return self._set_up(models, deployed)

    def _set_up(self, models: dict[Role, Model], deployed: Deployed | None = None) -> _Serving:
        """Checks the contracts and lays down what is read from each relation."""
        cards = [model.card for model in models.values()]
        for card in cards:
            check_contract(self._c, card)
        relations = {}
        for table in dict.fromkeys(card.table for card in cards):
            of = [card for card in cards if card.table == table]
            features = list(dict.fromkeys(name for card in of for name in card.features))
            window = max(card.window for card in of)
            known = self._serving.relations.get(table)
            same = known and (known.features, known.window) == (features, window)
            relations[table] = (
                known if known and same else Relation(self._execute, self._columns, table, features, window)
            )
        return _Serving(models, relations, deployed)

    def _execute(self, query: str, parameters: dict[str, Any] | None = None) -> list[Any]:
        return self._ask(lambda: self._c.execute(query, parameters))

    def _columns(self, query: str, parameters: dict[str, Any] | None = None) -> list[Any]:
        return self._ask(lambda: self._arrays.execute(query, parameters, columnar=True))

    def _ask(self, query: Callable[[], list[Any]]) -> list[Any]:
        try:
            return query()
        except driver_errors.ServerException as e:
            # most likely the table was rebuilt in another shape meanwhile: that has a better message
            for model in self._serving.models.values():
                check_contract(self._c, model.card)
            tables = ", ".join(self._serving.relations)
            raise UserError(f"ClickHouse refuses to read {tables}: {_message(e)}") from e

    def _write(self, predictions: list[Prediction], batches: Iterable[_Batch]) -> None:
        """One insert of the predictions, after one of those inputs that are new.

        Two tables, so two inserts: inputs are shared by models and by calls on the same bucket, and would be most
        of what is written if they stood in each prediction. Inputs first: what stops in between leaves inputs that
        nothing names, never a prediction that cannot be replayed.
        """
        started = perf_counter_ns()
        models = self._serving.models.values()
        names = [_names(m.card) for m in models if m.card.version not in self._named]
        hours_ago = started - _STORE_AGAIN_S * 10**9
        fresh = {h: at for h, at in self._stored.items() if at > hours_ago}
        new = {
            hashed: batch.inputs[place]
            for batch in batches
            for place, hashed in enumerate(batch.hashes)
            if hashed not in fresh
        }
        self._insert("scored_models", list(names[0]) if names else [], [tuple(n.values()) for n in names])
        inputs = [(hashed, values.tobytes()) for hashed, values in new.items()]
        self._insert("prediction_inputs", ["feature_hash", "packed"], inputs)
        self._insert("predictions", Prediction._fields, predictions)
        done = perf_counter_ns()
        # what no model reads now will hardly be read again
        self._stored = {p.feature_hash: fresh.get(p.feature_hash, started) for p in predictions}
        self._named |= {m.card.version for m in models}
        self._last_write_us = (done - started) // 1000

    def _insert(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if not rows:
            return
        table = f"{db.names([settings().database('serving')])}.{name}"
        try:
            self._c.execute(f"insert into {table} ({', '.join(columns)}) values", rows)
        except driver_errors.ServerException as e:
            raise UserError(f"cannot write to {table}: {_message(e)}. Did you run `make migrate`?") from e

    def _unknown(self, unknown: list[Instrument], known: list[Instrument]) -> UserError:
        if not known:
            tables = " and ".join(f"{settings().database('features')}.{t}" for t in self._serving.relations)
            return UserError(f"{tables} has no bucket: ingest data, then run `make build`")
        names = [str(i) for i in known]
        near = [n for i in unknown for n in difflib.get_close_matches(str(i), names, n=2, cutoff=0.6)]
        hint = (
            f"did you mean {', '.join(dict.fromkeys(near))}?" if near else f"there is {', '.join(names[:8])}"
        )
        return UserError(f"no bucket of {', '.join(map(str, unknown))} at that time: {hint}")


def _prepare(
    card: Card, relation: Relation, rows: Mapping[Instrument, Rows], wanted: Sequence[Instrument]
) -> _Batch:
    """What the model gets: (n, features), or (n, window, features) where it reads a window, in the card's order."""
    of = {i: rows[i] for i in wanted if i in rows}
    inputs = block(list(of.values()), card.window, len(relation.features), settings().window_max_gap_s)
    if card.features != relation.features:
        inputs = np.ascontiguousarray(inputs[:, :, [relation.features.index(name) for name in card.features]])
    if card.window == 1:
        inputs = inputs[:, 0]
    return _Batch(
        rows=of,
        inputs=inputs,
        hashes=[hashlib.sha256(row.tobytes()).hexdigest() for row in inputs],
        missing=np.isnan(inputs).sum(axis=tuple(range(1, inputs.ndim))).tolist(),
    )


def _unusable(*, stale: bool, missing: bool, number: bool) -> str:
    """Why a model must not be served on a row; empty: it may."""
    reasons = {"stale": stale, "missing": missing, "not a number": not number}
    return ", ".join(reason for reason, is_so in reasons.items() if is_so)


def _budget(card: Card) -> list[int]:
    """Microseconds per stage."""
    s = settings()
    budget: Budget = s.network_budget_ms if card.type.is_network else s.baseline_budget_ms
    return [round(getattr(budget, stage) * 1000) for stage in _STAGES]


def _names(card: Card) -> dict[str, Any]:
    """The row of `scored_models`."""
    return {
        "model_version": card.version,
        "model_name": card.name,
        "model_type": card.type.value,
        "relation": card.table,
        "rows_read": card.window,
        "max_gap_s": settings().window_max_gap_s,
        "features": card.features,
        "classes": card.classes,
    }


def _message(e: driver_errors.ServerException) -> str:
    """The first line of what the server said."""
    return str(e.message).split("Stack trace")[0].strip()
