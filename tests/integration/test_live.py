"""What materialized views write on insert and what a backfill writes is one and the same, whatever comes in whatever order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from python_udfs.ingest.availability import Instrument
from python_udfs.ingest.loader import load
from python_udfs.ingest.records import Batch, Item, LoadResult, Watermark
from python_udfs.settings import Settings, settings
from tests.integration.test_loader import Memory, batch
from tests.support import dbt, execute, query, table_hash

Ints = npt.NDArray[np.int64]
E8 = 10**8
SECOND_US = 1_000_000
START = 1_767_655_800 * SECOND_US  # 2026-01-05 23:30:00 UTC: half an hour before midnight
DAYS = {"start": "2026-01-05", "end": "2026-01-06"}
INSTRUMENTS = [Instrument("alpha", "spot", "AAAUSDT"), Instrument("beta", "linear", "BBBUSDT")]
MODELS = "+live +features.time_buckets book_levels"
READ = ("book_levels", "trade_minutes", "footprint_minutes", "book_minutes", "minute_bars")
STORED = ("book_levels_stored", "trade_minutes_stored", "footprint_minutes_stored", "book_minutes_stored")
VIEWS = ("book_levels_mv", "trade_minutes_mv", "footprint_minutes_mv", "book_minutes_mv")
Hashes = dict[str, dict[str, Any]]


class Market:
    """Rows of one instrument, of which any part can be loaded."""

    def __init__(self, instrument: Instrument, seed: int, n: int) -> None:
        r = np.random.default_rng(seed)
        self.instrument, self.n = instrument, n
        gaps = r.choice([0, 1000, 400_000, 22 * SECOND_US], n, p=[0.2, 0.2, 0.5, 0.1])
        self.time: Ints = START + np.cumsum(gaps)
        late = r.choice([0, 6 * SECOND_US, 200 * SECOND_US], n, p=[0.9, 0.05, 0.05])
        self.received: Ints = self.time + late
        self.price: Ints = 100 * E8 + np.cumsum(r.integers(-1, 2, n)) * E8 // 100
        self.quantity: Ints = r.integers(1, 2 * E8, n)
        self.buys = r.random(n) < 0.5
        self.spread: Ints = r.choice([1, 2, 5], n) * E8 // 100
        self.empty = r.random(n) < 0.03

    def trades(self, i: Ints) -> Batch:
        return batch(
            "trades",
            len(i),
            instrument=self.instrument,
            timestamp=self.time[i],
            received_at=self.received[i],
            trade_id=[str(x + 1) for x in i],
            price=self.price[i],
            quantity=self.quantity[i],
            side=np.where(self.buys[i], "buy", "sell"),
        )

    def books(self, i: Ints) -> Batch:
        bid = np.where(self.empty, 0, self.price)
        ask = self.price + self.spread

        def side(best: Ints, step: int, there: npt.NDArray[np.bool_]) -> list[str]:
            texts = []
            for x in i:
                levels = [f'["{(best[x] + k * step) / E8:.8f}","{(x + k) % 7 / 4}"]' for k in range(23)]
                texts.append(f"[{','.join(levels)}]" if there[x] else "[]")
            return texts

        return batch(
            "orderbooks",
            len(i),
            instrument=self.instrument,
            timestamp=self.time[i],
            received_at=self.received[i],
            last_update_id=i + 1,
            best_bid_price=bid[i],
            best_ask_price=ask[i],
            best_bid_quantity=np.where(self.empty, 0, self.quantity)[i],
            best_ask_quantity=self.quantity[::-1][i],
            bids=side(self.price, -E8 // 100, ~self.empty),
            asks=side(ask, E8 // 100, np.ones(self.n, dtype=np.bool_)),
        )


MARKETS = [Market(INSTRUMENTS[0], 1, 3000), Market(INSTRUMENTS[1], 2, 1200)]


def put(path: Path, name: str, *parts: tuple[float, float], shuffled: int | None = None) -> LoadResult:
    """Loads these parts (fractions of time) of all markets as one file; a shuffled one in any order of lines."""
    items: list[Item] = []
    for market in MARKETS:
        i = np.concatenate([np.arange(int(a * market.n), int(b * market.n)) for a, b in parts])
        if shuffled is not None:
            i = np.random.default_rng(shuffled).permutation(i)
        items += [market.trades(i), market.books(i)]
        end = int(market.time[i].max())
        items += [Watermark(kind, *market.instrument, end) for kind in ("trades", "orderbooks")]
    return load(Memory(path, items, name=name))


def hashes(tables: tuple[str, ...] = READ) -> Hashes:
    return {table: table_hash(table) for table in tables}


@dataclass
class Story:
    """What could be read after each step; the steps below say what happened."""

    at: dict[str, Hashes]
    duplicates: int = 0


@pytest.fixture(scope="module")
def story(module_store: Settings, tmp_path_factory: pytest.TempPathFactory) -> Story:
    path = tmp_path_factory.mktemp("files")
    told = Story({})
    dbt("build", "--exclude-resource-type", "test", "unit_test", select=MODELS)
    told.at["nothing"] = hashes()

    # the later part first, then what lies before it, out of order and overlapping
    put(path, "late", (0.3, 0.5))
    put(path, "early", (0.0, 0.25), shuffled=3)
    told.duplicates = sum(put(path, "between", (0.2, 0.4), shuffled=4).duplicates.values())
    put(path, "between", (0.2, 0.4), shuffled=4)
    told.at["seen by the views"] = hashes()
    told.at["stored by the views"] = hashes(STORED)
    dbt("run", select=MODELS, live_settle_s=0)
    told.at["run again"] = hashes()
    told.at["stored after a run"] = hashes(STORED)
    dbt("run", select=MODELS, full_refresh=True)
    told.at["backfilled"] = hashes()

    put(path, "more", (0.5, 0.6), shuffled=5)
    told.at["seen after a full refresh"] = hashes()
    dbt("run", select=MODELS, **DAYS)
    told.at["days replaced"] = hashes()
    dbt("run", select=MODELS, full_refresh=True)
    told.at["backfilled again"] = hashes()

    # as a build leaves it that was killed after the tables and before the views
    for view in VIEWS:
        execute(f"drop view {view} sync", layer="features")
    put(path, "unseen", (0.55, 0.8), shuffled=6)
    told.at["unseen"] = hashes()
    dbt("run", select=MODELS)
    told.at["too young to be missed"] = hashes(STORED)
    put(path, "seen", (0.8, 1.0))
    dbt("run", select=MODELS, live_settle_s=0)
    told.at["healed"] = hashes()
    dbt("run", select=MODELS, full_refresh=True)
    told.at["all backfilled"] = hashes()
    return told


def test_there_is_something_to_compare(story: Story) -> None:
    assert all(found["n"] == 0 for found in story.at["nothing"].values())
    assert all(found["n"] > 50 for found in story.at["seen by the views"].values())
    assert story.duplicates > 100
    assert query("select uniqExact(toDate(minute_start)) as days from trade_minutes")[0]["days"] == 2
    assert query("select count() as n from book_levels where length(ask_prices) > 15")[0]["n"] > 0
    assert query("select countIf(mid_close is null) as n from book_minutes")[0]["n"] > 0


def test_views_and_backfill_write_the_same(story: Story) -> None:
    assert story.at["seen by the views"] == story.at["backfilled"]


def test_a_rerun_changes_nothing(story: Story) -> None:
    assert story.at["run again"] == story.at["seen by the views"]
    for table, stored in story.at["stored by the views"].items():
        assert stored["n"] >= story.at["stored after a run"][table]["n"], f"{table} has rows added"


def test_views_survive_a_full_refresh(story: Story) -> None:
    assert story.at["seen after a full refresh"] == story.at["backfilled again"]
    assert story.at["seen after a full refresh"] != story.at["backfilled"]


def test_a_ranged_rebuild_replaces_days(story: Story) -> None:
    assert story.at["days replaced"] == story.at["backfilled again"]


def test_a_build_killed_between_table_and_view_heals(story: Story) -> None:
    assert story.at["unseen"]["trade_minutes"] != story.at["healed"]["trade_minutes"]
    assert story.at["healed"] == story.at["all backfilled"]


def test_young_rows_are_left_to_the_view(story: Story) -> None:
    """Only `book_levels` takes them, where a row twice is one row."""
    n = story.at["too young to be missed"]["trade_minutes_stored"]["n"]
    assert n < query("select count() as n from trade_minutes_stored")[0]["n"]


def test_a_block_sent_again_is_not_added_twice(story: Story) -> None:
    """A killed load sends its block again, under the same token; the raw table and the views know it."""
    before = query("select sum(trade_count) as n from trade_minutes_stored")[0]["n"]
    row = (
        "insert into trades (exchange, market_type, symbol, timestamp, trade_id, price, quantity, side, is_maker, trade_time, "
        "known_at, data_source) select 'alpha', 'spot', 'AAAUSDT', toDateTime64('2026-01-06 09:00:00', 6, 'UTC') as t, '1000001', "
        "1, 1, 'buy', 0, t, t, 'generator' settings insert_deduplication_token = 'again', "
        "deduplicate_blocks_in_dependent_materialized_views = 1"
    )
    for _ in range(2):
        execute(row)
    assert query("select sum(trade_count) as n from trade_minutes_stored")[0]["n"] == before + 1
    hot = settings().database("hot")
    # the raw table has lost it, the view has not: nor then
    execute(f"truncate table {hot}.trades")
    execute(row)
    assert query("select sum(trade_count) as n from trade_minutes_stored")[0]["n"] == before + 1
