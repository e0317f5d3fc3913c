from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_udfs.errors import BadFileError
from python_udfs.ingest.availability import (
    Availability,
    Instrument,
    known_at,
    read_availability,
    read_instruments,
)

T = 1_723_161_256_313_000  # µs


def known(availability: Availability, received_minus_event_us: int | None, timestamp: int = T) -> int:
    """known_at minus the event time, µs, of one row."""
    received = 0 if received_minus_event_us is None else timestamp + received_minus_event_us
    result = known_at(np.array([timestamp]), np.array([received]), availability)
    assert result.dtype == np.int64
    return int(result[0]) - timestamp


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (None, 0),
        (-1_273_000, 0),  # a recorder's clock that runs slow
        (4_000, 0),  # jitter within the limit does not count
        (5_000_000, 0),  # exactly the limit is not late
        (5_000_001, 5_000_001),  # late: known when it was received
    ],
)
def test_event_clock(received: int | None, expected: int) -> None:
    assert known(Availability("event", 0, 5000), received) == expected


def test_event_clock_late_row_is_never_known_before_its_publication() -> None:
    assert known(Availability("event", 60_000, 5000), 6_000_000) == 60_000_000
    assert known(Availability("event", 60_000, 5000), 61_000_000) == 61_000_000


def test_event_clock_without_a_limit_ignores_the_receive_time() -> None:
    assert known(Availability("event", 60_000, None), 10**12) == 60_000_000


@pytest.mark.parametrize(
    ("received", "expected"), [(None, 1_000), (-5, 1_000), (500, 1_000), (7_000_000, 7_000_000)]
)
def test_received_clock(received: int | None, expected: int) -> None:
    assert known(Availability("received", 1, None), received) == expected


def test_no_rows() -> None:
    empty = np.array([], dtype=np.int64)
    assert known_at(empty, empty, Availability("event", 0, 5000)).shape == (0,)


@given(
    clock=st.sampled_from(["event", "received"]),
    lag=st.integers(0, 10**8),
    limit=st.none() | st.integers(0, 10**8),
    times=st.lists(
        st.tuples(st.integers(1, 4 * 10**15), st.just(0) | st.integers(1, 4 * 10**15)), max_size=20
    ),
)
def test_never_before_it_was_published(
    clock: str, lag: int, limit: int | None, times: list[tuple[int, int]]
) -> None:
    stamps = np.array(times, dtype=np.int64).reshape(-1, 2)
    result = known_at(stamps[:, 0], stamps[:, 1], Availability(clock, lag, limit))  # type: ignore[arg-type]
    published = stamps[:, 0] + lag * 1000
    assert np.all(result >= published)
    assert np.all((result == published) | (result == stamps[:, 1]))


def test_the_seeds_are_readable() -> None:
    rules = read_availability()
    assert rules["binance_ws", "trades"] == Availability("event", 0, 5000)
    assert rules["okx_poll", "funding_rates"].clock == "received"
    assert rules["deribit_rest", "volatility_indices"].publication_lag_ms == 86_400_000
    assert Instrument("binance", "inverse", "BTCUSD_PERP") in read_instruments()


HEADER = "data_source,kind,clock,publication_lag_ms,max_latency_ms,feeds_clock,notes\n"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("data_source,kind,clock,max_latency_ms\n", ":1 [publication_lag_ms]: no column"),
        (HEADER + "a,trades,event,0,,1,x\nb,trade,event,0,,1,x\n", ":3 [kind]: unknown kind 'trade'"),
        (HEADER + "a,trades,wall,0,,1,x\n", ":2 [clock]: 'wall'"),
        (HEADER + "a,trades,event,,,1,x\n", ":2 [publication_lag_ms]: empty"),
        (HEADER + "a,trades,event,-1,,1,x\n", ":2 [publication_lag_ms]: '-1'"),
        (HEADER + "a,trades,event,0,1.5,1,x\n", ":2 [max_latency_ms]: '1.5'"),
        (HEADER + "a,trades,event,0\n", ":2: not 7 fields"),
        (HEADER + "a,trades,event,0,,1,x,y\n", ":2: not 7 fields"),
        (HEADER + "a,trades,event,0,,1,x\n" * 2, ":3: a, trades is there twice"),
        (HEADER + 'a,trades,event,0,,1,"x\n', ": cannot be read"),
    ],
)
def test_a_wrong_availability_seed_names_line_and_field(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "seed.csv"
    path.write_text(text)
    with pytest.raises(BadFileError) as e:
        read_availability(path)
    assert str(e.value).startswith(str(path) + place)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("binance,perp,BTCUSDT\n", ":2 [market_type]: 'perp' is none of spot"),
        ("binance,spot,\n", ":2 [symbol]: empty"),
        ("binance,spot,BTCUSDT\nbinance,spot,BTCUSDT\n", ":3: binance spot BTCUSDT is there twice"),
    ],
)
def test_a_wrong_instruments_seed_names_line_and_field(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "seed.csv"
    path.write_text("exchange,market_type,symbol\n" + text)
    with pytest.raises(BadFileError) as e:
        read_instruments(path)
    assert str(e.value).startswith(str(path) + place)


def test_a_missing_seed(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"none\.csv: cannot be read"):
        read_instruments(tmp_path / "none.csv")


def test_a_symbol_may_hold_anything_csv_can(tmp_path: Path) -> None:
    path = tmp_path / "seed.csv"
    path.write_text('exchange,market_type,symbol\nx,spot,"O\'NEIL-USD"\nx,spot,BTC/USDT\n')
    assert {i.symbol for i in read_instruments(path)} == {"O'NEIL-USD", "BTC/USDT"}
