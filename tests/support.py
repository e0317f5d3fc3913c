"""What the integration tests share: running dbt on the test's own databases, and putting raw rows in and getting rows out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dbt.cli.main import dbtRunner
from dbt.contracts.graph.manifest import Manifest
from dbt.parser.manifest import extended_mashumaro_encoder, extended_mashumuro_decoder

from python_udfs import db
from python_udfs.access import role
from python_udfs.settings import REPOSITORY, settings
from tests.oracles.clock import Trade

Instrument = tuple[str, str, str]  # exchange, market_type, symbol
AAA: Instrument = ("alpha", "spot", "AAAUSDT")
# Every table that a run appends to, except what a materialized view writes too: of those the view over them is what counts.
APPENDED = sorted(
    path.stem
    for path in (REPOSITORY / "dbt_project" / "models").rglob("*.sql")
    if "bucket_grain(" in path.read_text() and not path.stem.endswith("_stored")
)


# Of the variables, those that decide what is parsed.
PARSED_VARS = frozenset({"live", "start", "end"})
# Manifests by what parsing depends on: a parse takes 15 s of CPU, and a test module has databases of its own.
_PARSED: dict[tuple[str, ...], tuple[str, bytes]] = {}


def _manifest(command: str, options: list[str], variables: dict[str, object]) -> Manifest | None:
    """The project parsed before, with the databases of now in place of those of then; None: parse it."""
    prefix = settings().db_prefix
    if len(prefix) < len("t00000000_"):  # a text that stands nowhere else
        return None
    # a test's arguments may hold a var; of models only the configuration is parsed
    known = variables if command == "test" else {k: v for k, v in variables.items() if k in PARSED_VARS}
    key = (json.dumps(known, sort_keys=True), str(len(prefix)))
    if key not in _PARSED:
        parsed = dbtRunner().invoke(["parse", *options, "--no-partial-parse", "--no-write-json"])
        if not isinstance(parsed.result, Manifest):
            raise AssertionError(f"dbt parse failed: {parsed.exception}")
        _PARSED[key] = prefix, parsed.result.to_msgpack(extended_mashumaro_encoder)
    then, content = _PARSED[key]
    return Manifest.from_msgpack(
        content.replace(then.encode(), prefix.encode()), decoder=extended_mashumuro_decoder
    )


def dbt(*args: str, select: str | None = None, full_refresh: bool = False, **variables: object) -> None:
    """Runs dbt from the root in this process; a failure raises with the failing nodes' messages."""
    target = settings().data_dir / "dbt" / settings().db_prefix
    options = ["--project-dir", str(REPOSITORY), "--profiles-dir", str(REPOSITORY), "--quiet"]
    options += ["--target-path", str(target), "--log-path", str(target)]
    if variables:
        options += ["--vars", json.dumps(variables)]
    # the other commands are there to write the manifest, or to be seen whole
    manifest = _manifest(args[0], options, variables) if args[0] in {"run", "seed", "test"} else None
    words = [*args, *options]
    if select:
        words += ["--select", *select.split()]
    if full_refresh:
        words.append("--full-refresh")
    result = dbtRunner(manifest=manifest).invoke(words)
    if not result.success:
        failures = [
            f"{r.node.name}: {r.status}: {r.message}"
            for r in getattr(result.result, "results", [])
            if r.status in ("error", "fail", "runtime error")
        ]
        raise AssertionError(f"dbt {' '.join(args)} failed: {failures or result.exception}")


def query(sql: str, **params: Any) -> list[dict[str, Any]]:
    """Rows of a query on the features database of the test."""
    with db.connect(settings().database("features")) as c:
        return db.rows(c, sql, params)


def execute(sql: str, rows: Sequence[Sequence[Any]] | None = None, *, layer: str = "hot") -> None:
    """A statement on a database of the test; `rows` for an insert."""
    with db.connect(settings().database(layer)) as c:  # type: ignore[arg-type]
        c.execute(sql, rows) if rows is not None else c.execute(sql)


_TRADES = (
    "insert into trades (exchange, market_type, symbol, timestamp, trade_id, price, quantity, side, is_maker, "
    "trade_time, received_at, known_at, data_source) select exchange, market_type, symbol, "
    "fromUnixTimestamp64Micro(t, 'UTC'), trade_id, reinterpret(price, 'Decimal(18, 8)'), "
    "reinterpret(quantity, 'Decimal(18, 8)'), side, side = 'sell', fromUnixTimestamp64Micro(t, 'UTC'), null, "
    "fromUnixTimestamp64Micro(k, 'UTC'), 'generator' from wire"
)


def insert_trades(trades: Iterable[Trade], instrument: Instrument = AAA) -> None:
    """Raw trades straight into the hot table, exact to the µs and the 1e-8; not through the loader."""
    columns = "exchange String, market_type String, symbol String, t Int64, trade_id String, price Int64, quantity Int64, side String, k Int64"
    rows = [
        (
            *instrument,
            t.timestamp,
            t.trade_id,
            t.price_e8 or 100 * 10**8,
            t.quantity_e8,
            t.side or "buy",
            t.known_at,
        )
        for t in trades
    ]
    if rows:
        with db.connect(settings().database("hot")) as c:
            c.execute(f"create temporary table wire ({columns})")
            c.execute("insert into wire values", rows)
            c.execute(_TRADES)


def insert_watermark(instrument: Instrument, kind: str, us: int) -> None:
    """The feed of `kind` is complete before `us`."""
    execute(
        "insert into watermarks (kind, exchange, market_type, symbol, watermark, data_source, load_id) "
        f"select {db.quote(kind)}, {', '.join(map(db.quote, instrument))}, "
        f"fromUnixTimestamp64Micro({us}, 'UTC'), 'generator', toString({us})"
    )


def insert_books(
    rows: Iterable[tuple[int, int, int, int, int, int, int]], instrument: Instrument = AAA, *, levels: int = 1
) -> None:
    """Book states: (timestamp µs, last_update_id, bid e8, ask e8, bid quantity e8, ask quantity e8, known_at µs).

    levels: a side; those behind the best are 0.01 to 0.03 apart, with quantities that the state's id decides,
        and now and then a wall.
    """

    def side(name: str, price: str, quantity: str, sign: str) -> str:
        """SQL: the JSON of one side; no level where the best has no quantity."""
        step = f"({sign} * 1000000 * arraySum(arrayMap(j -> 1 + cityHash64(u div 4, j, '{name}') % 3, range(i))))"
        wall = f"if(cityHash64(u div 8, i, '{name}', 'wall') % 200 = 0, 50, 1)"
        size = (
            f"if(i = 0, {quantity}, toInt64(cityHash64(u div 4, i, '{name}') % 900 + 1) * 1000000 * {wall})"
        )
        level = (
            f"[toString({decimal(f'toInt64({price} + {step})')}), toString({decimal(f'toInt64({size})')})]"
        )
        return (
            f"if({price} = 0 or {quantity} = 0, '[]', toJSONString(arrayMap(i -> {level}, range({levels}))))"
        )

    decimal = "reinterpret({}, 'Decimal(18, 8)')".format
    with db.connect(settings().database("hot")) as c:
        c.execute(
            "create temporary table wire (t Int64, u UInt64, b Int64, a Int64, bq Int64, aq Int64, k Int64)"
        )
        c.execute("insert into wire values", list(rows))
        c.execute(
            "insert into orderbooks (exchange, market_type, symbol, timestamp, last_update_id, bids_count, asks_count, "
            "best_bid_price, best_ask_price, best_bid_quantity, best_ask_quantity, bids, asks, known_at, data_source) "
            f"select {', '.join(map(db.quote, instrument))}, fromUnixTimestamp64Micro(t, 'UTC'), u, {levels}, {levels}, "
            f"{decimal('b')}, {decimal('a')}, {decimal('bq')}, {decimal('aq')}, "
            f"{side('bid', 'b', 'bq', '-1')}, {side('ask', 'a', 'aq', '1')}, "
            "fromUnixTimestamp64Micro(k, 'UTC'), 'generator' from wire"
        )


def shorten_the_readers_queries(data_dir: Path, prefix: str, seconds: int) -> None:
    """The time limit of the reader's profile on a local server that is not started yet: a test cannot wait 60 s."""
    folder = data_dir / "clickhouse" / "config" / "users.d"
    folder.mkdir(parents=True, exist_ok=True)
    profile = role("reader", prefix)
    (folder / "short.xml").write_text(
        f"<clickhouse><profiles><{profile}><max_execution_time>{seconds}</max_execution_time></{profile}></profiles></clickhouse>"
    )


def us(column: str) -> str:
    """SQL: a time as integer microseconds."""
    return f"toUnixTimestamp64Micro({column})"


def table_hash(table: str, where: str = "1", *, columns: str = "*") -> dict[str, Any]:
    """Row count and an order-independent hash over every byte of every column, NULLs included."""
    row = f"sipHash64(formatRow('RowBinary', {columns}))"
    return query(f"select count() as n, sum({row}) as h, groupBitXor({row}) as x from {table} where {where}")[
        0
    ]
