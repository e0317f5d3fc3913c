"""`marketprism score`: once, or in a loop until SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from clickhouse_driver import errors as driver_errors
from rich.console import Console
from rich.table import Table

from python_udfs.errors import UserError
from python_udfs.scorer.card import Card
from python_udfs.settings import settings

if TYPE_CHECKING:
    from python_udfs.scorer.scorer import Prediction

_LOST = (driver_errors.NetworkError, driver_errors.SocketTimeoutError, EOFError, ConnectionError)


def score_command(
    *,
    model: Annotated[str, typer.Option(help="Name of a trained model.")] = "logistic",
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
    from python_udfs.scorer.scorer import Instrument, Scorer

    folder = settings().data_dir / "models" / model
    wanted = [Instrument.parse(text) for text in instrument] if instrument else None
    fixed = None if now in ("", "latest") else _time(now)
    # a file or a pipe has no width of its own
    out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    stop = threading.Event()
    if loop:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    with Scorer(folder, max_age_s=max_age, threads=threads) as scorer:
        while not stop.is_set():
            started = time.monotonic()
            try:
                as_of = scorer.newest() if now == "latest" else fixed
                predictions = scorer.score(wanted, as_of=as_of, write=write)
                _show(out, scorer.card, predictions, as_json=as_json, brief=loop)
            except _LOST as e:
                if not loop:
                    raise UserError(f"the connection to ClickHouse broke: {e}") from e
                err.print(f"no connection to ClickHouse, trying again: {e}", markup=False)
                scorer.reconnect()
            if not loop:
                break
            stop.wait(interval - (time.monotonic() - started))


def _time(text: str) -> datetime:
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError as e:
        raise UserError(f"--now {text!r}: write a time such as 2024-08-08T12:00:00, or `latest`") from e
    return time_ if time_.tzinfo else time_.replace(tzinfo=UTC)


def _show(out: Console, card: Card, predictions: list[Prediction], *, as_json: bool, brief: bool) -> None:
    if as_json:
        for p in predictions:
            typer.echo(orjson.dumps(p._asdict() | {"classes": card.classes}))
        return
    first = predictions[0]
    stale = sum(p.stale for p in predictions)
    parts = (
        f"read {first.read_us / 1000:.1f} + prepare {first.prepare_us / 1000:.1f} "
        f"+ run {first.run_us / 1000:.1f} = {first.total_us / 1000:.1f} ms"
    )
    if not brief:
        out.print(_table(card, predictions))
    out.print(f"{first.predicted_at:%Y-%m-%d %H:%M:%S} {len(predictions)} scored, {stale} stale, {parts}")


def _table(card: Card, predictions: list[Prediction]) -> Table:
    table = Table(title=f"{card.name} {card.version}: {card.label} ({card.horizon})")
    for heading in ("exchange", "market", "symbol", "bucket end (UTC)"):
        table.add_column(heading)
    for heading in ("age s", "missing", *(f"P({name})" for name in card.classes), "score"):
        table.add_column(heading, justify="right")
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
            style="dim" if p.stale else None,
        )
    return table
