"""Faults to survive: nothing lost, nothing doubled. Counts and checksums of raw and feature tables equal a clean run of the same data."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from python_udfs import access, db
from python_udfs.errors import BadFileError, UserError
from python_udfs.ingest.detect import detect
from python_udfs.ingest.loader import load
from python_udfs.ingest.records import Batch, Item, Reader
from python_udfs.jobs.bench.live import resident_mib
from python_udfs.live import views
from python_udfs.scorer.scorer import Scorer
from python_udfs.server import start, status, stop
from tests.chaos.conftest import (
    BUILT,
    CLOCK,
    HOURS,
    LONG,
    PREFIX,
    RAW,
    ROUNDS,
    Chaos,
    Hashes,
    asked,
    build,
    check_loaded,
    command,
    create_raw,
    fresh,
    hashes,
    private_tables,
    unbuilt,
)
from tests.oracles.clock import Trade
from tests.scoring import NOON, ONE, TWO, bucket, create, follow_flow, insert, make_model
from tests.support import execute, insert_trades, insert_watermark, query

MINUTE, HOUR = 60 * 10**6, 3600 * 10**6
CROSS_JOIN = (
    "select sum(cityHash64(a.number, b.number)) from numbers(10000000) as a cross join numbers(10000000) as b"
)

Struck = tuple[str, ...]  # first words of what is killed: a command, `server`

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


def up_again() -> None:
    """Starts the killed server."""
    deadline = time.monotonic() + 30
    while status() is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    start()


def kill_server() -> None:
    server = status()
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)


def strike(struck: Struck, after: int, delay: float, *words: str) -> subprocess.Popen[str]:
    """Starts a command; when it has sent so many queries, and these seconds have passed, kills what is to be struck."""
    with db.connect() as c:
        before, polls, seen = asked(c), 0, 0
        process = command(*words)
        while process.poll() is None and seen < after:
            time.sleep(0.001 if seen else 0.02)
            polls += 1
            seen = asked(c) - before - polls
    time.sleep(delay)
    assert process.poll() is None, f"ended before it could be killed: {process.returncode}"
    if "server" in struck:
        kill_server()
    if words[0] in struck:
        process.kill()
        process.wait()
    if "server" in struck:
        up_again()
    return process


def kill_ingest(chaos: Chaos, r: random.Random, struck: Struck) -> str:
    """It is run again: everything is there once. The refresh of the next round goes on from what it leaves."""
    fresh()
    after = r.randint(1, int(0.9 * chaos.asked["ingest"]))
    words = "marketprism", "ingest", "files", str(chaos.market)
    strike(struck, after, r.uniform(0, 0.02), *words).wait(300)
    left = private_tables()
    load(chaos.reader())
    check_loaded(chaos)
    return f"after query {after} of {chaos.asked['ingest']}, {left} tables half done"


def kill_refresh(chaos: Chaos, r: random.Random, struck: Struck) -> str:
    """It is run again: features are as of a clean run. In the long form every other one appends a day to another."""
    if hashes(RAW) != chaos.raw():
        fresh()
        load(chaos.reader())
    unbuilt()
    appends = LONG and r.random() < 0.5
    if appends:
        build(start="2026-01-04", end="2026-01-04")
    # before its first third it has only looked, and made views
    after = r.randint(chaos.asked["refresh"] // 3, int(0.8 * chaos.asked["refresh"]))
    strike(struck, after, r.uniform(0, 0.02), "refresh").wait(300)
    there = {row["name"] for row in query("show tables")}
    done = counts(hashes(tuple(table for table in BUILT if table in there)))
    build()
    assert hashes() == chaos.clean
    kind = "an append" if appends else "a build"
    return f"{kind} after query {after} of {chaos.asked['refresh']}, with {done or 'no'} of {counts(chaos.clean)} rows there"


def counts(found: Hashes) -> str:
    """How many there are in the built tables."""
    return "/".join(str(found[table]["n"]) for table in BUILT if table in found)


def kill_scorer(chaos: Chaos, r: random.Random, struck: Struck) -> str:
    """Every request that was written is whole, none is doubled; where only the server dies the scorer goes on by itself."""
    create(table="feature_vector_v9")
    insert(bucket(ONE, NOON, 1.0), bucket(TWO, NOON, -1.0), table="feature_vector_v9")
    name = f"m{r.getrandbits(32)}"
    folder = make_model(chaos.own.data_dir / "models" / name, follow_flow(1, 3.0), version=9)

    def requests() -> list[tuple[int, int]]:
        """Rows and symbols of each request of this model."""
        found = query(
            f"select count() as n, uniqExact(symbol) as symbols from {chaos.own.database('serving')}.predictions "
            f"where model_name = '{name}' group by request_id"
        )
        return [(row["n"], row["symbols"]) for row in found]

    words = "score", "--model", name, "--now", NOON.isoformat(), "--loop", "--interval", "0.01"
    process = strike(struck, r.randint(40, 160), r.uniform(0, 0.02), "marketprism", *words)
    before = len(requests())
    assert before
    try:
        if "marketprism" not in struck:
            deadline = time.monotonic() + 120
            while len(requests()) <= before:
                assert time.monotonic() < deadline, "the scorer does not go on"
                assert process.poll() is None, "the scorer has ended"
                time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    went_on = len(requests())
    with Scorer(folder) as scorer:
        scorer.score(None, as_of=NOON, write=True)
    assert requests() == [(2, 2)] * (went_on + 1)
    return f"{before} requests, each whole and once"


def kill_live(chaos: Chaos, r: random.Random, _: Struck) -> str:
    """The server dies twice while live views refresh the tables: they end as a clean run's."""
    fresh()
    build()
    build(*BUILT, live=True)
    features = chaos.own.database("features")
    half = []
    with db.connect(features) as c:
        views.begin_pass(c)
    load(chaos.reader())
    for table in ("bucket_config", "bucket_tapes"):
        # the pass has come so far; what reads this table is next
        deadline = time.monotonic() + 60
        while not query(f"select count() as n from {table}")[0]["n"]:
            assert time.monotonic() < deadline, table
        time.sleep(r.uniform(0, 0.1))
        kill_server()
        up_again()
        half.append(counts(hashes(BUILT)))
        with db.connect(features) as c:
            while views.status(c).running:
                time.sleep(0.01)
            views.begin_pass(c)
    with db.connect(features) as c:
        views.wait_for_pass(c, 120)
    views.stop()
    assert hashes() == chaos.clean
    return f"with {' and '.join(half)} of {counts(chaos.clean)} rows there"


VICTIMS = {"ingest": kill_ingest, "refresh": kill_refresh, "scorer": kill_scorer, "live views": kill_live}
# Of ten rounds. A refresh finds what an ingest before it left.
IN_TURN = (
    "ingest",
    "refresh",
    "scorer",
    "ingest",
    "refresh",
    "live views",
    "ingest",
    "refresh",
    "ingest",
    "scorer",
)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_kill_nine(chaos: Chaos, number: int) -> None:
    """A command, the server, or both die at a random point of their work; then it is done once more."""
    victim = IN_TURN[number % 10]
    words = ("marketprism", "refresh")
    struck: Struck = (("server", *words), words, ("server",))[(number + number // 10) % 3]
    # of these seeds the first strikes a load while it moves rows, and the next a refresh between two tables
    outcome = VICTIMS[victim](chaos, random.Random(26 + number), struck)
    of = {3: f"{victim} and server", 2: victim, 1: f"server during {victim}"}
    chaos.tell_kill("server during live views" if victim == "live views" else of[len(struck)], outcome)


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
        with pytest.raises(UserError, match="disk is full: make room"):
            load(chaos.reader())
    finally:
        full.unlink()
        stop()
        start()
    assert loaded_rows() == 0
    load(chaos.reader())
    check_loaded(chaos)
    chaos.tell(
        "disk full (the server's reserve of free space)", "refused, nothing half loaded; then as a clean run"
    )


def loaded_rows() -> int:
    return sum(found["n"] for found in hashes(RAW).values())


@long
def test_a_disk_that_is_really_full(
    chaos: Chaos,
    tmp_path: Path,
    environment: Callable[..., AbstractContextManager[None]],
    free_ports: Callable[[int], list[int]],
) -> None:
    """A second server on a small disk. Full or nearly so, a load fails, and is not half there; with room it is done."""
    disk = tmp_path / "clickhouse" / "data"
    disk.mkdir(parents=True)
    if not shutil.which("mount") or mount(disk, "size=64m").returncode:
        pytest.skip("only who may mount has a small disk to fill")
    port, http_port = free_ports(2)
    said = []

    def refused() -> bool:
        """Does the load fail as it should?"""
        try:
            load(chaos.reader())
        except UserError as e:
            assert str(e).startswith("the ClickHouse server's disk is full: make room")
            said.append(str(e))
            # rows that are on the move are in a journal, by which the next load goes on
            assert loaded_rows() == 0 or private_tables("_journal")
            return True
        return False

    try:
        with environment(port=str(port), http_port=str(http_port), data_dir=str(tmp_path)):
            start()
            try:
                create_raw()
                for files in (0, 30):  # no room for more files: the server's own ENOSPC
                    used = os.statvfs(disk).f_files - os.statvfs(disk).f_ffree
                    assert not mount(disk, f"remount,nr_inodes={used + files}").returncode
                    assert refused()
                assert not mount(disk, "remount,nr_inodes=1000000").returncode
                filler = disk / "filler"
                for kib in (0, 1000, 1500, 2000, 2500, 3000, 3500, 4000, 5000, 6000):
                    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
                    with filler.open("wb") as f:
                        os.posix_fallocate(f.fileno(), 0, free - kib * 1024)
                    failed = refused()
                    filler.unlink()
                    if not failed:
                        break
                load(chaos.reader())
                check_loaded(chaos)
            finally:
                stop()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    full, out_of_files = (
        sum(text in m for m in said) for text in ("not enough space", "No space left on device")
    )
    assert full >= 2
    assert out_of_files >= 2
    chaos.tell(
        "disk full (a small disk: no room for bytes, for files)",
        f"refused {full} and {out_of_files} times, with ever more room; what was on the move went on; then as a clean run",
    )


def mount(disk: Path, options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=False)


@long
def test_a_duplicated_and_reordered_feed(chaos: Chaos) -> None:
    r = np.random.default_rng(5)

    def change(batch: Batch) -> list[Batch]:
        once, twice = r.permutation(len(batch)), r.permutation(len(batch))
        return [part(batch, once), part(batch, twice)]

    fresh()
    twice = load(Disturbed(chaos.reader(), change, "twice"))
    again = load(Disturbed(chaos.reader(), lambda batch: [part(batch, slice(None, None, -1))], "backwards"))
    assert twice.duplicates["trades"] == again.duplicates["trades"] == chaos.clean["trades"]["n"]
    build()
    assert {**hashes(), "watermarks": None} == {**chaos.clean, "watermarks": None}  # each load has its own
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
        f"from {chaos.own.database('hot')}.trades"
    )[0]
    assert found == {"n": chaos.clean["trades"]["n"], "early": 0, "late": sum(moved)}
    assert sum(moved) > 100
    assert query("select sum(late_trades) as n from late_trades")[0]["n"] == sum(moved)
    hot = chaos.own.database("hot")
    in_buckets, on_time = (
        query(sql)[0]["n"]
        for sql in (
            "select sum(trade_count) as n from unified_buckets",
            f"select countIf(t.known_at = t.timestamp and t.timestamp < b.until) as n from {hot}.trades as t inner join "
            "(select symbol, market_type, max(bucket_ts_end) as until from unified_buckets group by symbol, market_type) as b "
            "on t.symbol = b.symbol and t.market_type = b.market_type",
        )
    )
    assert 2000 < in_buckets == on_time
    chaos.tell(
        "recorder clock jumps an hour back and forth",
        f"{found['n']} trades kept, none early, {found['late']} late and in no bucket, the others as ever",
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
    build()
    assert hashes(BUILT) != {table: chaos.clean[table] for table in BUILT}, "the fault does nothing"
    build(start="2026-01-04", end="2026-01-05")
    assert {**hashes(), "watermarks": None} == {**chaos.clean, "watermarks": None}  # each load has its own
    chaos.tell("a day comes after the next one was built", "after a ranged rebuild as a clean run")


@long
def test_a_source_that_is_silent_for_an_hour(chaos: Chaos) -> None:
    """It has no bucket meanwhile. Before and after it has those of a twin that was never silent: silence leaves no trace."""
    silent, twin = ("alpha", "spot", "AAAUSDT"), ("alpha", "spot", "BBBUSDT")
    begin = int(NOON.timestamp()) * 10**6
    # 40 minutes are enough for the anchor of 13:00 to calibrate both
    before, after, whole = range(2400), range(6000, 6060), range(6060)

    def trades(seconds: range) -> list[Trade]:
        return [Trade(begin + s * 10**6, s + 1, str(s + 1), 10**8, begin + s * 10**6) for s in seconds]

    fresh()
    insert_trades(trades(before) + trades(after), silent)
    insert_trades(trades(whole), twin)
    for instrument in (silent, twin):
        insert_watermark(instrument, "trades", begin + 7000 * 10**6)
    build()
    found = query(
        "select symbol, date_diff('second', toDateTime('2024-08-08 12:00:00', 'UTC'), bucket_ts_start) as s, bucket_ts_end, trade_count, "
        "volume from unified_buckets order by symbol, bucket_ts_start"
    )
    mine, its = ([{**row, "symbol": ""} for row in found if row["symbol"] == i[2]] for i in (silent, twin))
    assert mine == [row for row in its if row["s"] in before or row["s"] in after]
    assert [sum(row["s"] in part for row in mine) for part in (before, after)] == [240, 12]
    assert sum(row["s"] in whole for row in its) > len(mine)
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
    assert loaded_rows() == private_tables() == 0
    chaos.tell("a column is renamed upstream", f"refused: {str(errors[0]).removeprefix(str(tmp_path))}")


@long
def test_a_thousand_instruments_at_once(chaos: Chaos) -> None:
    """Each gets the buckets that one gets alone."""

    def insert_instruments(first: int, last: int) -> None:
        n = last - first
        execute(
            "insert into trades (exchange, market_type, symbol, timestamp, trade_id, price, quantity, side, is_maker, trade_time, known_at, "
            f"data_source) select 'alpha', 'spot', concat('S', toString({first} + number % {n})), "
            f"toDateTime64('2024-08-08 12:00:00', 6, 'UTC') + toIntervalSecond(intDiv(number, {n})) as t, "
            f"toString(intDiv(number, {n}) + 1), 100, 1, 'buy', 0, t, t, 'generator' from numbers({60 * n})"
        )
        build()

    def shapes() -> list[tuple[int, str]]:
        """Instruments, and the buckets that these have."""
        found = query(
            "select count() as symbols, shape from (select symbol, toString(groupArray((bucket_id, bucket_ts_end, trade_count))) as shape "
            "from (select * from trade_flow order by symbol, bucket_id) group by symbol) group by shape"
        )
        return [(row["symbols"], row["shape"]) for row in found]

    fresh()
    insert_instruments(0, 1)
    [(_, alone)] = shapes()
    assert alone.count("(") >= 5
    unbuilt()
    began = time.monotonic()
    insert_instruments(1, 1000)
    assert shapes() == [(1000, alone)]
    chaos.tell(
        "1,000 instruments at once",
        f"60,000 trades built in {time.monotonic() - began:.0f} s, for each the buckets that it has alone",
    )


@long
def test_an_analysts_cross_join(chaos: Chaos) -> None:
    """It ends at the reader's limits while a load goes on."""
    fresh()
    codes: list[int] = []

    def join() -> None:
        with Client(chaos.own.host, chaos.own.port, user=access.role("reader", PREFIX)) as c:
            try:
                c.execute(CROSS_JOIN)
            except driver_errors.ServerException as e:
                codes.append(e.code)

    thread = threading.Thread(target=join)
    thread.start()
    running = "select count() as n from system.processes where query like '%%cross join%%' and is_initial_query and user != 'default'"
    while thread.is_alive() and not query(running)[0]["n"]:
        time.sleep(0.01)
    load(chaos.reader())
    thread.join()
    assert codes == [driver_errors.ErrorCodes.TIMEOUT_EXCEEDED]
    build()
    assert hashes() == chaos.clean
    chaos.tell(
        "an analyst's cross join during a load", "killed at the reader's limit; the rest as a clean run"
    )


@pytest.mark.skipif(HOURS < 3, reason="the long form: MARKETPRISM_CHAOS_HOURS=24; 3 at least")
def test_simulated_hours(chaos: Chaos) -> None:
    """Hour after hour is loaded and built, as fast as it goes: the server's memory does not grow, no round lags behind or starts over."""
    fresh()
    memory, seconds, rows = [], [], []

    def rows_read() -> int:
        """By the models, but for the one that looks at eight days to calibrate."""
        execute("system flush logs")
        node = '%%"node_id": "model.marketprism.'
        return query(
            f"select sum(read_rows) as n from system.query_log where query like '{node}%%' and query not like '{node}bucket_config\"%%'"
        )[0]["n"]

    for hour in range(HOURS):
        execute(
            "insert into trades (exchange, market_type, symbol, timestamp, trade_id, price, quantity, side, is_maker, trade_time, known_at, "
            "data_source) select 'alpha', 'spot', concat('S', toString(number % 20)), "
            f"toDateTime64('2024-08-08 00:00:00', 6, 'UTC') + toIntervalHour({hour}) + toIntervalSecond(intDiv(number, 20)) as t, "
            f"toString(intDiv(number, 20) + 1 + {hour * 3600}), 100, 1, 'buy', 0, t, t, 'generator' from numbers(72000)"
        )
        before, began = rows_read(), time.monotonic()
        build(*(BUILT if hour else ()))
        seconds.append(time.monotonic() - began)
        rows.append(rows_read() - before)
        resident = resident_mib()
        assert resident is not None
        memory.append(resident)
        lag = query(
            f"select (select max(timestamp) from {chaos.own.database('hot')}.trades) - max(bucket_ts_end) as s from unified_buckets"
        )[0]["s"]
        print(
            f"hour {hour + 1}: {memory[-1]:,.0f} MB resident, built in {seconds[-1]:.1f} s from {rows[-1]:,} rows, "
            f"newest bucket {float(lag):.0f} s behind",
            flush=True,
        )
        assert float(lag) <= 2 * CLOCK["t_max_s"]
    assert query("select sum(trade_count) as n from unified_buckets")[0]["n"] > 0.99 * 72000 * HOURS
    quarter = max(1, HOURS // 4)
    assert np.mean(memory[-quarter:]) < 1.5 * np.mean(memory[quarter : 2 * quarter]), memory
    # of the past a round looks at the keys of buckets, never at the trades again
    assert np.median(rows[-quarter:]) - np.median(rows[quarter : 2 * quarter]) < 72000 * (
        HOURS - 2 * quarter
    ), rows
    at = sorted({max(1, HOURS // 4), max(1, HOURS // 2), HOURS})
    chaos.tell(
        f"{HOURS} h of simulated time, 72,000 trades each",
        f"hour {', '.join(map(str, at))}: {', '.join(f'{memory[hour - 1]:,.0f}' for hour in at)} MB resident, "
        f"{', '.join(f'{seconds[hour - 1]:.1f}' for hour in at)} s a round",
    )
