"""Faults to survive: nothing lost, nothing doubled. Counts and checksums of raw and feature tables equal a clean run of the same data."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from python_udfs import access
from python_udfs.errors import BadFileError, UserError
from python_udfs.ingest.detect import detect
from python_udfs.ingest.loader import load
from python_udfs.ingest.records import Batch, Item, Reader
from python_udfs.server import start, status, stop
from tests.chaos.conftest import (
    CLOCK,
    HOURS,
    LONG,
    MODELS,
    RAW,
    ROUNDS,
    Chaos,
    build,
    command,
    done,
    fresh,
    hashes,
)
from tests.oracles.clock import Trade
from tests.scoring import NOON, ONE, TWO, bucket, create, follow_flow, insert, make_model
from tests.support import execute, insert_trades, insert_watermark, query

MINUTE, HOUR = 60 * 10**6, 3600 * 10**6
CROSS_JOIN = (
    "select sum(cityHash64(a.number, b.number)) from numbers(10000000) as a cross join numbers(10000000) as b"
)

long = pytest.mark.skipif(not LONG, reason="the long form: MARKETPRISM_CHAOS_ROUNDS=100")


class Disturbed:
    """A reader whose batches of a kind pass through `change`; the watermarks stay."""

    def __init__(self, reader: Reader, change: Callable[[Batch], list[Batch]], name: str) -> None:
        self._reader, self._change = reader, change
        self.data_source, self.paths, self.options = reader.data_source, reader.paths, {"fault": name}

    def read(self) -> Iterator[Item]:
        for item in self._reader.read():
            if isinstance(item, Batch):
                yield from self._change(item)
            else:
                yield item


def part(batch: Batch, rows: Any) -> Batch:
    """The rows of a batch by index or mask."""
    return replace(batch, columns={k: v[rows] for k, v in batch.columns.items()}, lines=batch.lines[rows])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def up_again() -> None:
    """Starts the killed server."""
    deadline = time.monotonic() + 30
    while status() is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    start()


def killed(words: tuple[str, ...], after: float, *, with_server: bool) -> None:
    """Starts a command and kills it after so many seconds, with the server or alone, if it still runs."""
    process = command(*words)
    time.sleep(after)
    if with_server:
        server = status()
        assert server is not None
        kill(server.pid)
    with contextlib.suppress(ProcessLookupError):
        kill(process.pid)
    process.communicate()
    if with_server:
        up_again()


@pytest.mark.parametrize("number", range(ROUNDS))
def test_kill_nine(chaos: Chaos, number: int) -> None:
    """Ingest and refresh in turn die at a random point, two rounds of four with the server under them; then they run once more."""
    r = random.Random(number)
    variables = "{t_target_s: 5, t_max_s: 10}"
    ingest = ("marketprism", "ingest", "files", str(chaos.market))
    refresh = ("dbt", "run", "--quiet", "--select", *MODELS, "--vars", variables)
    after, with_server = r.uniform(0.2, 1.0), number % 4 in (0, 3)
    fresh()
    if number % 2:
        load(chaos.reader())
        after *= 10
        killed(refresh, after, with_server=with_server)
        done(command(*refresh))
    else:
        after *= 4
        killed(ingest, after, with_server=with_server)
        done(command(*ingest))
        build()
    assert hashes() == chaos.clean
    victims = ("refresh" if number % 2 else "ingest") + (" and server" if with_server else "")
    chaos.tell(f"kill -9 of {victims}, round {number}", f"after {after:.1f} s; run again: as a clean run")


@pytest.mark.parametrize("number", range(max(1, ROUNDS // 4)))
def test_kill_nine_of_the_scorer(chaos: Chaos, number: int) -> None:
    """Every request that was written is whole, none is doubled, and the next scorer goes on."""
    r = random.Random(1000 + number)
    fresh()
    create(table="feature_vector_v9")
    insert(bucket(ONE, NOON, 1.0), bucket(TWO, NOON, -1.0), table="feature_vector_v9")
    folder = chaos.own.data_dir / "models" / f"m{number}"
    make_model(folder, follow_flow(1, 3.0), version=9)
    words = (
        "marketprism",
        "score",
        "--model",
        folder.name,
        "--now",
        NOON.isoformat(),
        "--loop",
        "--interval",
        "0.01",
    )
    killed(words, r.uniform(3.0, 6.0), with_server=number % 2 == 0)
    done(command(*words[:-3]))
    found = query(
        "select count() as requests, min(n) as fewest, max(n) as most, min(symbols) as symbols from ("
        "select count() as n, uniqExact(symbol) as symbols from chaos_marketprism_serving.predictions group by request_id)"
    )[0]
    assert found["requests"] >= 1
    assert (found["fewest"], found["most"], found["symbols"]) == (2, 2, 2)
    chaos.tell(f"kill -9 of the scorer, round {number}", f"{found['requests']} requests, each whole and once")


def test_a_full_disk(chaos: Chaos) -> None:
    """The server says that there is no room; with room again the load goes on from where it stood."""
    fresh()
    full = chaos.own.data_dir / "clickhouse" / "config" / "users.d" / "full.xml"
    setting = "min_free_disk_bytes_to_perform_insert"
    full.write_text(
        f"<clickhouse><profiles><default><{setting}>{1 << 60}</{setting}></default></profiles></clickhouse>"
    )
    try:
        stop()
        start()
        with pytest.raises((UserError, driver_errors.ServerException), match=r"(?i)space|disk"):
            load(chaos.reader())
    finally:
        full.unlink()
        stop()
        start()
    assert {t: h["n"] for t, h in hashes(RAW).items()} == dict.fromkeys(RAW, 0)
    load(chaos.reader())
    assert hashes(RAW) == {t: chaos.clean[t] for t in RAW}
    chaos.tell(
        "disk full (the server's reserve of free space)", "refused, nothing half loaded; then as a clean run"
    )


@long
def test_a_duplicated_and_reordered_feed(chaos: Chaos) -> None:
    r = np.random.default_rng(5)

    def change(batch: Batch) -> list[Batch]:
        once, twice = r.permutation(len(batch)), r.permutation(len(batch))
        return [part(batch, once), part(batch, twice)]

    fresh()
    load(Disturbed(chaos.reader(), change, "twice"))
    load(Disturbed(chaos.reader(), lambda batch: [part(batch, slice(None, None, -1))], "backwards"))
    build()
    assert hashes() == chaos.clean
    chaos.tell("every row three times, in random and in reverse order", "as a clean run")


@long
def test_a_clock_that_jumps(chaos: Chaos) -> None:
    """A recorder clock an hour slow makes nothing known early; one an hour fast makes rows late, which are kept, and in no bucket."""
    moved: list[int] = []

    def change(batch: Batch) -> list[Batch]:
        if batch.kind != "trades":
            return [batch]
        t = batch.columns["timestamp"].astype(np.int64)
        received = t + 50_000
        received = np.where((t // MINUTE) % 2 == 0, received - HOUR, received)
        fast = (t - t.min()) % MINUTE > 50 * 10**6
        received = np.where(fast, t + HOUR, received)
        moved.append(int(fast.sum()))
        return [replace(batch, columns={**batch.columns, "received_at": received})]

    fresh()
    load(Disturbed(chaos.reader(), change, "clock"))
    build()
    found = query(
        "select count() as n, countIf(known_at < timestamp) as early, countIf(known_at > timestamp) as late "
        "from chaos_marketprism_hot.trades"
    )[0]
    assert found == {"n": chaos.clean["trades"]["n"], "early": 0, "late": sum(moved)}
    assert sum(moved) > 100
    assert query("select sum(late_trades) as n from late_trades")[0]["n"] == sum(moved)
    assert query("select max(bucket_ts_end) < now() as past from unified_buckets")[0]["past"] == 1
    in_buckets = query("select sum(trade_count) as n from unified_buckets")[0]["n"]
    assert in_buckets <= found["n"] - found["late"]
    chaos.tell(
        "recorder clock jumps an hour back and forth",
        f"{found['n']} trades kept, none early, {found['late']} late and in no bucket",
    )


@long
def test_a_day_of_late_data(chaos: Chaos) -> None:
    """The second day is loaded and built before the first; a ranged rebuild puts things right."""
    midnight = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp()) * 10**6

    def of(day: int) -> Callable[[Batch], list[Batch]]:
        def change(batch: Batch) -> list[Batch]:
            rows = (batch.columns["timestamp"].astype(np.int64) >= midnight) == bool(day)
            return [part(batch, rows)] if rows.any() else []

        return change

    fresh()
    load(Disturbed(chaos.reader(), of(1), "second day"))
    build()
    load(Disturbed(chaos.reader(), of(0), "first day"))
    build(start="2026-01-04", end="2026-01-05")
    assert hashes() == chaos.clean
    chaos.tell("a day comes after the next one was built", "after a ranged rebuild as a clean run")


@long
def test_a_source_that_is_silent_for_an_hour(chaos: Chaos) -> None:
    """It has no bucket meanwhile. Before and after it has those of a twin that was never silent: silence leaves no trace."""
    silent, twin = ("alpha", "spot", "AAAUSDT"), ("alpha", "spot", "BBBUSDT")
    begin = int(NOON.timestamp()) * 10**6

    def trades(seconds: range) -> list[Trade]:
        return [Trade(begin + s * 10**6, s + 1, str(s + 1), 10**8, begin + s * 10**6) for s in seconds]

    fresh()
    insert_trades(trades(range(60)) + trades(range(3660, 3720)), silent)
    insert_trades(trades(range(3720)), twin)
    for instrument in (silent, twin):
        insert_watermark(instrument, "trades", begin + 4000 * 10**6)
    build()
    found = query(
        "select symbol, date_diff('second', toDateTime('2024-08-08 12:00:00', 'UTC'), bucket_ts_start) as s, bucket_ts_end, trade_count, "
        "volume from unified_buckets order by symbol, bucket_id"
    )
    mine, its = ([{**row, "symbol": ""} for row in found if row["symbol"] == i[2]] for i in (silent, twin))
    assert [row for row in mine if 60 <= row["s"] < 3660] == []
    assert mine[:5] == its[:5]
    assert [row for row in mine if row["s"] >= 3670] == [row for row in its if row["s"] >= 3670]
    assert len(mine) == 12
    chaos.tell(
        "a source is silent for an hour",
        f"{len(mine)} buckets around the silence, none in it, those of its never silent twin",
    )


def test_a_column_that_was_renamed_upstream(chaos: Chaos, tmp_path: Path) -> None:
    fresh()
    file = tmp_path / "BTCUSDT-trades-2024-01-01.csv"
    rows = "1,42000.5,0.1,4200.05,1704067200000,false\n2,42000.6,0.1,4200.06,1704067201000,true\n"
    file.write_text("id,price,amount,quote_qty,time,is_buyer_maker\n" + rows)
    errors = []
    found = detect([file], market_type="linear")
    errors += found.errors
    for reader in found.readers:
        with pytest.raises(BadFileError) as refused:
            load(reader)
        errors.append(refused.value)
    assert [(Path(e.file).name, e.line) for e in errors] == [(file.name, 1)]  # type: ignore[attr-defined]
    assert "qty" in str(errors[0])
    assert hashes(("trades",))["trades"]["n"] == 0
    assert query("select count() as n from system.tables where startsWith(name, '_load_')")[0]["n"] == 0
    chaos.tell("a column is renamed upstream", f"refused: {str(errors[0]).removeprefix(str(tmp_path))}")


@long
def test_a_thousand_instruments_at_once(chaos: Chaos) -> None:
    """Each gets the buckets that it gets alone."""
    fresh()
    began = time.monotonic()
    execute(
        "insert into trades (exchange, market_type, symbol, timestamp, trade_id, price, quantity, side, is_maker, trade_time, known_at, "
        "data_source) select 'alpha', 'spot', concat('S', toString(number % 1000)), "
        "toDateTime64('2024-08-08 12:00:00', 6, 'UTC') + toIntervalSecond(intDiv(number, 1000)) as t, "
        "toString(intDiv(number, 1000) + 1), 100, 1, 'buy', 0, t, t, 'generator' from numbers(60000)"
    )
    build()
    found = query(
        "select uniqExact(symbol) as symbols, min(n) as fewest, max(n) as most, min(trades) as trades, uniqExact(h) as shapes from ("
        "select symbol, count() as n, sum(trade_count) as trades, groupArray((bucket_id, bucket_ts_end, trade_count)) as h "
        "from (select * from trade_flow order by symbol, bucket_id) group by symbol)"
    )[0]
    assert found["symbols"] == 1000
    assert found["fewest"] == found["most"] >= 5
    assert found["shapes"] == 1
    chaos.tell(
        "1,000 instruments at once",
        f"60,000 trades built in {time.monotonic() - began:.0f} s, the same buckets for each",
    )


@long
def test_an_analysts_cross_join(chaos: Chaos) -> None:
    """It ends at the reader's limits while a load goes on."""
    fresh()
    codes: list[int] = []

    def join() -> None:
        with Client(chaos.own.host, chaos.own.port, user=access.role("reader", "chaos_")) as c:
            try:
                c.execute(CROSS_JOIN)
            except driver_errors.ServerException as e:
                codes.append(e.code)

    thread = threading.Thread(target=join)
    thread.start()
    load(chaos.reader())
    thread.join()
    assert codes == [driver_errors.ErrorCodes.TIMEOUT_EXCEEDED]
    build()
    assert hashes() == chaos.clean
    chaos.tell(
        "an analyst's cross join during a load", "killed at the reader's limit; the rest as a clean run"
    )


@pytest.mark.skipif(not HOURS, reason="the long form: MARKETPRISM_CHAOS_HOURS=24")
def test_simulated_hours(chaos: Chaos) -> None:
    """Hour after hour is loaded and built, as fast as it goes: neither the server's memory nor the time of a round grows."""
    fresh()
    memory, seconds = [], []
    for hour in range(HOURS):
        execute(
            "insert into trades (exchange, market_type, symbol, timestamp, trade_id, price, quantity, side, is_maker, trade_time, known_at, "
            "data_source) select 'alpha', 'spot', concat('S', toString(number % 20)), "
            f"toDateTime64('2024-08-08 00:00:00', 6, 'UTC') + toIntervalHour({hour}) + toIntervalSecond(intDiv(number, 20)) as t, "
            f"toString(intDiv(number, 20) + 1 + {hour * 3600}), 100, 1, 'buy', 0, t, t, 'generator' from numbers(72000)"
        )
        began = time.monotonic()
        build()
        seconds.append(time.monotonic() - began)
        server = status()
        assert server is not None
        resident = Path(f"/proc/{server.pid}/status").read_text().split("VmRSS:")[1].split()[0]
        memory.append(int(resident) / 1024)
        lag = query(
            "select (select max(timestamp) from chaos_marketprism_hot.trades) - max(bucket_ts_end) as s from unified_buckets"
        )[0]["s"]
        print(
            f"hour {hour + 1}: {memory[-1]:,.0f} MB resident, built in {seconds[-1]:.1f} s, newest bucket {float(lag):.0f} s behind"
        )
        assert float(lag) <= 2 * CLOCK["t_max_s"]
    quarter = max(1, HOURS // 4)
    assert np.mean(memory[-quarter:]) < 1.5 * np.mean(memory[quarter : 2 * quarter])
    assert np.mean(seconds[-quarter:]) < 2 * np.mean(seconds[quarter : 2 * quarter])
    chaos.tell(
        f"{HOURS} h of simulated time",
        f"{memory[-1]:,.0f} MB resident at the end, {seconds[-1]:.1f} s a round (first {seconds[0]:.1f} s)",
    )
