"""`marketprism report`: one self-contained HTML page of what is in the store and what models make of it."""

from __future__ import annotations

import subprocess
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.jobs.report import queries, sections, svg
from python_udfs.jobs.report.charts import Row, instrument_of, name_of
from python_udfs.jobs.report.html import Section
from python_udfs.jobs.report.models import models_section
from python_udfs.jobs.report.queries import Instrument
from python_udfs.settings import REPOSITORY, Layer, settings

LAYERS: tuple[Layer, ...] = ("hot", "features", "serving")


def git_revision() -> str:
    """The checkout's revision, `+` where files differ from it; `unknown` outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def parse_instrument(written: str) -> Instrument:
    """`exchange/market_type/symbol`; the symbol may hold more slashes.

    Raises:
        UserError: it has fewer than three parts.
    """
    parts = tuple(written.split("/", 2))
    if len(parts) != 3 or not all(parts):
        raise UserError(
            f"--instrument {written}: write exchange/market_type/symbol, e.g. binance/linear/BTCUSDT"
        )
    return parts


@contextmanager
def connected() -> Iterator[Client]:
    """A connection on which a missing table or database is the user's next step, not a traceback."""
    missing = (driver_errors.ErrorCodes.UNKNOWN_TABLE, driver_errors.ErrorCodes.UNKNOWN_DATABASE)
    try:
        with db.connect() as c:
            yield c
    except driver_errors.ServerException as e:
        if e.code in missing:
            raise UserError("no buckets: run `make build`") from e
        raise


def write_report(
    out: Path | None = None, instrument: Instrument | None = None, hours: float = sections.DEFAULT_HOURS
) -> Path:
    """Writes the page (default: `<data_dir>/report.html`), all at once or not at all, and returns its path.

    Args:
        instrument: shown over price and in the distributions; by default the one with the most trades.
        hours: how much of its end is shown over price, if that has at most `sections.MOST_BUCKETS` buckets.

    Raises:
        UserError: the store has no buckets, or none of this instrument.
    """
    out = out or settings().data_dir / "report.html"
    now = datetime.now(UTC)
    now_us = int(now.timestamp() * 1e6)
    with connected() as c:
        buckets = db.rows(c, queries.bucket_counts())
        if not buckets:
            raise UserError("no buckets: run `make build`")
        known = [instrument_of(b) for b in buckets]
        if instrument is not None and instrument not in known:
            raise UserError(
                f"no buckets of {name_of(instrument)}; there are: {', '.join(map(name_of, known))}"
            )
        store = sections.Store(c, known, instrument or known[0])
        trades = store.rows(queries.trade_counts())
        parts = [
            sections.store_section(store, trades, buckets),
            sections.clock_section(store, hours),
            sections.durations_section(store),
            sections.features_section(store),
            sections.labels_section(store),
            models_section(settings().data_dir / "models"),
            sections.latency_section(store),
        ]
        loads = store.rows(queries.loads())[0]
        rejected = sum(r["lines"] for r in store.rows(queries.quarantine()))
    write_page(
        out,
        title="MarketPrism report",
        subtitle=_subtitle(trades, now),
        tiles=_tiles(trades, buckets, rejected, loads, now_us),
        sections=parts,
        now=now,
    )
    return out


def write_page(
    out: Path,
    *,
    title: str,
    subtitle: str,
    tiles: Sequence[Mapping[str, str]],
    sections: Sequence[Section],
    now: datetime,
) -> None:
    """Writes a page of sections, all at once or not at all. tiles: value, name and note of each."""
    page = Environment(
        loader=PackageLoader(__name__, "."), autoescape=True, undefined=StrictUndefined
    ).get_template("page.html.j2")
    html = page.render(
        title=title,
        subtitle=subtitle,
        tiles=tiles,
        sections=sections,
        footer=f"Written {now:%Y-%m-%d %H:%M:%S} UTC by marketprism {git_revision()} from databases "
        f"{', '.join(settings().database(layer) for layer in LAYERS)}. All times are UTC.",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(html, encoding="utf-8")
    part.replace(out)


def _ago(us: int | None, now_us: int) -> str:
    return svg.MISSING if not us else f"{svg.seconds((now_us - us) / 1e6)} ago"


def _subtitle(trades: list[Row], now: datetime) -> str:
    first, last = min(t["first_us"] for t in trades), max(t["last_us"] for t in trades)
    return (
        f"{svg.clock(first, svg.MINUTE)} to {svg.clock(last, svg.MINUTE)} UTC "
        f"({svg.seconds((last - first) / 1e6)}) · "
        f"revision {git_revision()} · written {now:%Y-%m-%d %H:%M} UTC"
    )


def _tiles(
    trades: list[Row], buckets: list[Row], rejected: int, loads: Row, now_us: int
) -> list[dict[str, str]]:
    total, late = sum(t["trades"] for t in trades), sum(t["late_trades"] for t in trades)
    newest = max(b["last_us"] for b in buckets)
    tiles = [
        (svg.count(total), "trades", f"{len(trades)} instruments"),
        (
            svg.count(sum(b["buckets"] for b in buckets)),
            "closed buckets",
            f"{svg.number(total / sum(b['buckets'] for b in buckets))} trades each",
        ),
        (
            svg.count(late),
            "late trades",
            f"{svg.percent(late / total, 2)}, off the clock" if late else "all were on time",
        ),
        (
            svg.count(rejected),
            "lines in quarantine",
            "each with its reason" if rejected else "nothing was refused",
        ),
        (
            svg.seconds((now_us - newest) / 1e6),
            "since the last bucket",
            svg.clock(newest, svg.MINUTE),
        ),
        (
            svg.count(loads["loads"]),
            "loads",
            f"the last {_ago(loads['last_us'], now_us)}" if loads["loads"] else "none recorded",
        ),
    ]
    return [{"value": value, "name": name, "note": note} for value, name, note in tiles]


def report_command(
    out: Annotated[
        Path | None, typer.Option(help="Where to; by default report.html in the data folder.")
    ] = None,
    instrument: Annotated[
        str | None,
        typer.Option(help="exchange/market_type/symbol to look at closely; by default the most active one."),
    ] = None,
    hours: Annotated[
        float,
        typer.Option(
            min=0.001,
            help=f"How much of its end to show over price; at most {sections.MOST_BUCKETS} buckets.",
        ),
    ] = sections.DEFAULT_HOURS,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write one HTML page of everything worth looking at."""
    path = write_report(out, parse_instrument(instrument) if instrument else None, hours)
    Console().print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True, highlight=False)
    if open_:
        webbrowser.open(path.as_uri())
