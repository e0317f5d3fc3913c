"""The volatility switch that the generator plants is found where and when it is, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from python_udfs.ingest.generator import DAY, MarketConfig, write
from python_udfs.ingest.generator import GeneratedReader as Reader
from python_udfs.ingest.loader import load
from python_udfs.settings import Settings
from tests.support import dbt, query, us

# In one store, on two days: the same instruments, far enough apart to know nothing of each other.
PLANTED: Final = MarketConfig(seed=41, minutes=40, book_levels=3)
PLAIN: Final = MarketConfig(seed=51, minutes=40, book_levels=3, start=PLANTED.start + 2 * DAY, truths=())


@dataclass(frozen=True, slots=True)
class Switch:
    symbol: str
    start: int
    end: int


@pytest.fixture(scope="module")
def switch(module_store: Settings, tmp_path_factory: pytest.TempPathFactory) -> Switch:
    for config in (PLANTED, PLAIN):
        folder = tmp_path_factory.mktemp("market") / "generated"
        write(config, folder)
        load(Reader(folder))
        if config is PLANTED:
            truth = json.loads((Path(folder) / "truths.json").read_text())["volatility_regime"]
    dbt("seed")
    dbt("run", select="+multi_resolution_volatility", t_target_s=10, t_max_s=20)
    return Switch(truth["symbol"], truth["start_us"], truth["end_us"])


def _flags(config: MarketConfig) -> dict[tuple[str, str, str], list[tuple[int, int]]]:
    """By instrument: each bucket's end (µs) and flag, in order; buckets where the feature cannot be said left out."""
    found: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for row in query(
        f"select exchange, market_type, symbol, {us('bucket_ts_end')} as end, volatility_shift_flag as flag "
        f"from multi_resolution_volatility where {us('bucket_ts_end')} between %(a)s and %(b)s "
        "and volatility_shift_flag is not null order by bucket_id",
        a=config.start,
        b=config.end,
    ):
        found.setdefault((row["exchange"], row["market_type"], row["symbol"]), []).append(
            (row["end"], row["flag"])
        )
    assert len(found) == 8 and all(len(buckets) > 100 for buckets in found.values())
    return found


def test_the_switch_is_found_within_one_bucket_on_every_market_of_its_symbol(switch: Switch) -> None:
    looked_at = 0
    for instrument, buckets in _flags(PLANTED).items():
        if instrument[2] == switch.symbol:
            of_the_switch = next(i for i, (end, _) in enumerate(buckets) if end > switch.start)
            first = next(i for i, (_, flag) in enumerate(buckets) if flag)
            assert of_the_switch <= first <= of_the_switch + 1, instrument
            looked_at += 1
    assert looked_at == 4


def test_it_is_found_neither_on_the_other_symbol_nor_at_other_times(switch: Switch) -> None:
    for instrument, buckets in _flags(PLANTED).items():
        flagged = [end for end, flag in buckets if flag]
        if instrument[2] == switch.symbol:
            assert all(switch.start < end <= switch.end for end in flagged), instrument
        else:
            assert flagged == [], instrument


def test_nothing_is_found_where_nothing_is_planted(switch: Switch) -> None:
    assert [i for i, buckets in _flags(PLAIN).items() if any(flag for _, flag in buckets)] == []
