"""`marketprism score`: once, or in a loop until SIGTERM. `marketprism replay`: what was scored, again."""

from __future__ import annotations

import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import orjson
import typer
from clickhouse_driver import errors as driver_errors
from rich.console import Console
from rich.table import Table

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.scorer.card import Card
from python_udfs.settings import settings

if TYPE_CHECKING:
    from python_udfs.scorer.scorer import Prediction

_MOST_SHOWN: Final = 50
_LOST = (driver_errors.NetworkError, driver_errors.SocketTimeoutError, EOFError, ConnectionError)


def score_command(
    *,
    model: Annotated[str, typer.Option(help="Name of a trained model.")] = "logistic",
    deployed: Annotated[
        bool, typer.Option("--deployed", help="Serve what `marketprism models promote` put in service.")
    ] = False,
    instrument: Annotated[
        list[str] | None,
        typer.Option("--instrument", "-i", help="exchange:market_type:symbol; repeat. Default: all."),
    ] = None,
    max_age: Annotated[float, typer.Option(min=0, help="Seconds after which a row is stale.")] = 60.0,
    now: Annotated[
        str, typer.Option(help="Score as of this time (ISO 8601, UTC), or `latest`: the newest bucket's end.")
    ] = "",
    loop: Annotated[bool, typer.Option("--loop", help="Again and again, until SIGTERM or Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.01, help="Seconds between the starts of two rounds.")
    ] = 1.0,
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Keep the predictions in ClickHouse.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the ONNX runtime.")] = 1,
) -> None:
    """Score the latest bucket of each instrument and keep the predictions."""
    # only here: every other command would wait for the ONNX runtime
    from python_udfs.scorer import deployment
    from python_udfs.scorer.scorer import Deployments, Instrument, Scorer

    source: Path | Deployments = settings().data_dir / "models" / model
    if deployed:
        source = Deployments(deployment.current_deployment, deployment.load, deployment.served_by)
    wanted = [Instrument.parse(text) for text in instrument] if instrument else None
    fixed = None if now in ("", "latest") else _time(now)
    # a file or a pipe has no width of its own
    out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    stop = threading.Event()
    if loop:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    told = ""
    with Scorer(source, max_age_s=max_age, threads=threads) as scorer:
        while not stop.is_set():
            started = time.monotonic()
            try:
                as_of = scorer.newest() if now == "latest" else fixed
                predictions = scorer.score(wanted, as_of=as_of, write=write)
                problem = "; ".join(filter(None, [scorer.problem, scorer.states_problem]))
                if problem != told:
                    told = problem
                    err.print(told or "the newest deployment and states are in use", markup=False)
                _show(out, scorer.card, predictions, as_json=as_json, brief=loop)
            except _LOST as e:
                if not loop:
                    raise UserError(f"the connection to ClickHouse broke: {e}") from e
                err.print(f"no connection to ClickHouse, trying again: {e}", markup=False)
                scorer.reconnect()
            if not loop:
                break
            stop.wait(interval - (time.monotonic() - started))


def _time(text: str, option: str = "--now") -> datetime:
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError as e:
        or_else = ", or `latest`" if option == "--now" else ""
        raise UserError(f"{option} {text!r}: write a time such as 2024-08-08T12:00:00{or_else}") from e
    return time_ if time_.tzinfo else time_.replace(tzinfo=UTC)


def _show(out: Console, card: Card, predictions: list[Prediction], *, as_json: bool, brief: bool) -> None:
    if as_json:
        for p in predictions:
            typer.echo(orjson.dumps(p._asdict() | {"classes": card.classes}))
        return
    first = predictions[0]
    stale = sum(p.stale for p in predictions)
    silent = sum(p.fallback == "none" for p in predictions)
    stands_in = sum(p.fallback == "baseline" for p in predictions)
    parts = (
        f"read {first.read_us / 1000:.1f} + prepare {first.prepare_us / 1000:.1f} "
        f"+ run {first.run_us / 1000:.1f} = {first.total_us / 1000:.1f} ms"
    )
    if not brief:
        out.print(_table(card, predictions))
    counts = f"{len(predictions)} scored, {stale} stale"
    counts += f", {stands_in} by the baseline" * bool(stands_in) + f", {silent} without a signal" * bool(
        silent
    )
    over = sorted({stage for p in predictions for stage in p.over_budget})
    out.print(
        f"{first.predicted_at:%Y-%m-%d %H:%M:%S} {counts}, {parts}"
        + (f", over budget: {', '.join(over)}" if over else "")
    )


def _table(card: Card, predictions: list[Prediction]) -> Table:
    table = Table(title=f"{card.name} {card.version}: {card.label} ({card.horizon})")
    for heading in ("exchange", "market", "symbol", "bucket end (UTC)"):
        table.add_column(heading)
    for heading in ("age s", "missing", *(f"P({name})" for name in card.classes), "score", "signal"):
        table.add_column(heading, justify="right")
    table.add_column("served")
    for p in predictions:
        table.add_row(
            p.exchange,
            p.market_type,
            p.symbol,
            f"{p.bucket_ts_end:%Y-%m-%d %H:%M:%S}",
            f"{p.age_ms / 1000:,.1f}" + (" stale" if p.stale else ""),
            str(p.missing_features),
            *(f"{value:.3f}" for value in p.probabilities),
            f"{p.score:+.3f}",
            f"{p.signal:+d}" if p.signal else "0",
            p.model_name if not p.fallback else f"{p.fallback}: {p.fallback_reason}",
            style="dim" if p.fallback == "none" else None,
        )
    return table


def replay_command(
    request: Annotated[str | None, typer.Argument(metavar="REQUEST_ID", help="One request.")] = None,
    *,
    last: Annotated[int | None, typer.Option(min=1, help="The last so many requests.")] = None,
    since: Annotated[str | None, typer.Option(help="Requests since this time (ISO 8601, UTC).")] = None,
) -> None:
    """Run stored predictions again and compare every bit. Exits with 1 where anything differs."""
    from python_udfs.scorer.replay import find_requests, replay

    if sum(option is not None for option in (request, last, since)) != 1:
        raise typer.BadParameter("give a REQUEST_ID, or --last N, or --since TIME")
    try:
        wanted = UUID(request) if request else None
    except ValueError as e:
        raise UserError(f"{request!r} is no request id: `predictions.request_id` has them") from e
    start = _time(since, "--since") if since else None
    out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
    with db.connect() as c:
        replays = list(replay(c, find_requests(c, request=wanted, last=last, since=start)))
    differing = [r for r in replays if r.differences]
    table = Table()
    for heading in ("request", "predicted at (UTC)", "role", "model", "rows", "bits"):
        table.add_column(heading, justify="right" if heading == "rows" else "left")
    for r in replays if len(replays) <= _MOST_SHOWN else differing[:_MOST_SHOWN]:
        bits = "differ" if r.differences else "the same"
        at = f"{r.predicted_at:%Y-%m-%d %H:%M:%S}"
        table.add_row(str(r.request_id), at, r.role, r.model, str(r.rows), bits)
    if table.rows:
        out.print(table)
    for r in differing[:_MOST_SHOWN]:
        for d in r.differences:
            out.print(f"{r.request_id} {r.role} {r.model} {d.instrument}: {d.what}", markup=False)
    rows, bad = sum(r.rows for r in replays), len(differing)
    out.print(f"{rows} predictions in {len(replays)} model runs: {len(replays) - bad} the same, {bad} differ")
    if differing:
        raise typer.Exit(1)
