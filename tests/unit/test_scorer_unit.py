from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from python_udfs.errors import UserError
from python_udfs.scorer.cli import score_command
from python_udfs.scorer.scorer import Instrument, Scorer


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("binance:linear:BTCUSDT", ("binance", "linear", "BTCUSDT")),
        ("x:spot:BTC/USD'T", ("x", "spot", "BTC/USD'T")),
        ("x:linear:BTC/USDT:USDT", ("x", "linear", "BTC/USDT:USDT")),
    ],
)
def test_an_instrument_is_read_and_written_alike(text: str, parts: tuple[str, str, str]) -> None:
    assert Instrument.parse(text) == parts
    assert str(Instrument.parse(text)) == text


@pytest.mark.parametrize("text", ["", "BTCUSDT", "x:spot", "x::BTC", ":spot:BTC", "x:spot:"])
def test_what_is_no_instrument(text: str) -> None:
    with pytest.raises(UserError, match="is no instrument: write exchange:market_type:symbol"):
        Instrument.parse(text)


def test_a_missing_model_is_seen_before_the_database(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model in .*Run `marketprism train`"):
        Scorer(tmp_path / "nothing")


def test_a_time_that_is_none() -> None:
    with pytest.raises(UserError, match="--now 'yesterday': write a time such as"):
        score_command(now="yesterday")


def test_a_time_without_a_zone_is_utc() -> None:
    from python_udfs.scorer.cli import _time

    assert _time("2024-08-08T12:00:00") == datetime(2024, 8, 8, 12, tzinfo=UTC)
    assert _time("2024-08-08T12:00:00+02:00") == datetime(2024, 8, 8, 10, tzinfo=UTC)
