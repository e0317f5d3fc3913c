"""A source that stops yields NULLs and a monitoring row, never an old value; a market without an outage yields neither."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from python_udfs.ingest.generator import GeneratedReader, MarketConfig, write
from python_udfs.ingest.loader import load
from python_udfs.settings import Settings
from tests.support import Instrument, dbt, execute, query

# The generator's own: one market with an outage of 144 s on beta, and the same without anything planted.
OUTAGE: Final = MarketConfig(minutes=60, trades_per_second=6, sparse_books=True, truths=("outage",))
CLEAN: Final = replace(OUTAGE, truths=())
LAGS: Final = {
    "t_target_s": 10,
    "t_max_s": 20,
    "funding_max_lag_s": 300,
    "open_interest_max_lag_s": 600,
    "open_interest_max_unchanged_s": 900,
    "lsr_max_lag_s": 600,
    "volatility_index_max_lag_s": 300,
    "liquidation_max_lag_s": 1200,
}
VICTIM: Final[Instrument] = ("alpha", "linear", "AAAUSDT")
ITS_SPOT: Final[Instrument] = ("alpha", "spot", "AAAUSDT")
MINUTE_US: Final = 60_000_000
FEATURES: Final = {
    "funding": [
        "funding_rate",
        "funding_rate_change",
        "funding_rate_z",
        "funding_shock_sign",
        "minutes_to_funding",
    ],
    "open_interest": [
        "open_interest",
        "open_interest_log_change",
        "open_interest_change_z",
        "open_interest_rank",
    ],
    "long_short_bias": ["long_short_bias_accounts", "long_short_bias_positions", "long_short_divergence"],
    "implied_volatility": ["implied_volatility", "implied_minus_realized", "implied_over_realized"],
    "liquidation_panic": ["seconds_since_liquidation", "liquidation_count", "liquidation_notional"],
    "top_of_book": ["mid_close", "spread_bps_close"],
}


def _build(folder: Any, config: MarketConfig, name: str) -> None:
    write(config, folder / name)
    load(GeneratedReader(folder / name))
    dbt("seed")
    dbt("run", select="+stale_sources +liquidation_panic", full_refresh=True, **LAGS)


def _at(minute: float) -> str:
    """SQL: a moment of the market."""
    return f"fromUnixTimestamp64Micro({int(CLEAN.start + minute * MINUTE_US)}, 'UTC')"


def _where(of: Instrument) -> str:
    return f"(exchange, market_type, symbol) = {of}"


def _stopped() -> dict[tuple[str, ...], dict[str, Any]]:
    """Rows of stale_sources, hours put together: (exchange, market type, symbol, kind, reason) -> the rest."""
    rows = query(
        "select exchange, market_type, symbol, kind, reason, sum(buckets) as buckets, min(first_at) as first_at, "
        "max(last_at) as last_at, max(worst_age_s) as age_s from stale_sources group by all"
    )
    key = ("exchange", "market_type", "symbol", "kind", "reason")
    return {tuple(r[c] for c in key): r for r in rows}


@pytest.fixture(scope="module")
def clean(module_store: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    _build(tmp_path_factory.mktemp("clean"), CLEAN, "clean")
    return module_store


def test_a_clean_market_has_no_stopped_source(clean: Settings) -> None:
    assert _stopped() == {}
    for model, columns in FEATURES.items():
        [row] = query(
            f"select count() as n, {', '.join(f'count({c}) as {c}' for c in columns)} from {model} "
            f"where bucket_ts_end >= {_at(58)}"
        )
        assert row.pop("n") > 20
        missing = {c: n for c, n in row.items() if n == 0}
        assert missing == {}, model


@pytest.fixture(scope="module")
def stopped(clean: Settings) -> Settings:
    """The clean market, spoiled at one place each: one instrument of four kinds, one asset's index."""
    deleted = {
        # no book for a minute, no funding for 20, no ratio of accounts from minute 30 on, no index of BBB for 15
        "orderbooks": (VICTIM, 20, 21),
        "funding_rates": (VICTIM, 25, 45),
        "lsr_all_accounts": (VICTIM, 30, 60),
        "volatility_indices": (("alpha", "linear", "BBBUSDT"), 30, 45),
        "liquidations": (VICTIM, 25, 60),
    }
    for table, (of, first, last) in deleted.items():
        execute(
            f"delete from {table} where {_where(of)} and timestamp >= {_at(first)} and timestamp < {_at(last)}"
        )
    # open interest: zero for 10 minutes here, the same number for half an hour there
    changed = "alter table open_interests update open_interest = {} where {} and timestamp >= {} settings mutations_sync = 1"
    other = ("alpha", "linear", "BBBUSDT")
    execute(changed.format(0, _where(VICTIM) + f" and timestamp < {_at(40)}", _at(30)))
    execute(changed.format("12345", _where(other), _at(30)))
    dbt("run", select="+stale_sources +liquidation_panic", full_refresh=True, **LAGS)
    return clean


def _between(model: str, column: str, of: Instrument, first: float, last: float) -> tuple[int, int]:
    """How many buckets that ended from `first` to before `last` (minutes) there are, and how many have a value."""
    [row] = query(
        f"select count() as n, count({column}) as values from {model} "
        f"where {_where(of)} and bucket_ts_end >= {_at(first)} and bucket_ts_end < {_at(last)}"
    )
    return row["n"], row["values"]


# What is NULL from when to when (minutes), and the monitoring row: kind, reason. Knowledge comes 60 s after
# a row of open interest, the ratios and the index (source_availability).
CASES: Final = {
    "book": (VICTIM, "top_of_book", "mid_close", 20.2, 20.95, "orderbooks", "stale"),
    # the last rate is of minute 24
    "funding": (VICTIM, "funding", "funding_rate", 29.1, 44.9, "funding_rates", "stale"),
    "funding of the spot": (ITS_SPOT, "funding", "funding_rate", 29.1, 44.9, "funding_rates", "stale"),
    "zero": (VICTIM, "open_interest", "open_interest", 31.05, 40.95, "open_interests", "zero"),
    # the same value since minute 30
    "stuck": (
        ("alpha", "linear", "BBBUSDT"),
        "open_interest",
        "open_interest",
        45.05,
        60,
        "open_interests",
        "stuck",
    ),
    "ratio": (VICTIM, "long_short_bias", "long_short_bias_accounts", 35.1, 60, "lsr_all_accounts", "stale"),
    "index": (
        ("beta", "spot", "BBBUSDT"),
        "implied_volatility",
        "implied_volatility",
        34.1,
        45.95,
        "volatility_indices",
        "stale",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_source_gives_nulls_and_a_row(stopped: Settings, case: str) -> None:
    of, model, column, first, last, kind, reason = CASES[case]
    buckets, values = _between(model, column, of, first, last)
    assert buckets > 0
    assert values == 0
    for column_of_it in FEATURES[model]:
        if column_of_it.startswith(column) or model in ("funding", "open_interest", "top_of_book"):
            assert _between(model, column_of_it, of, first, last)[1] == 0, column_of_it
    # before it stopped, and once it is back
    before, values = _between(
        model, column, of, first - 10, first - 1.2 if model == "top_of_book" else first - 5
    )
    assert before == values > 0
    if last < 60:
        after, values = _between(model, column, of, last + 1, last + 10)
        assert after == values > 0
    row = _stopped()[(*of, kind, reason)]
    assert row["buckets"] >= buckets
    assert row["first_at"].timestamp() * 1e6 == pytest.approx(
        CLEAN.start + first * MINUTE_US, abs=2 * MINUTE_US
    )


def test_nothing_else_stopped(stopped: Settings) -> None:
    """The other rows are those of the markets that look at a spoiled source."""
    aaa = [VICTIM, ITS_SPOT]
    bbb = [(x, m, "BBBUSDT") for x in ("alpha", "beta") for m in ("linear", "spot")]
    expected = {(*VICTIM, "orderbooks", "stale")}
    expected |= {(*of, kind, "stale") for of in aaa for kind in ("funding_rates", "lsr_all_accounts")}
    expected |= {(*of, "open_interests", "zero") for of in aaa}
    expected |= {(*of, "open_interests", "stuck") for of in bbb if of[0] == "alpha"}
    expected |= {(*of, "volatility_indices", "stale") for of in bbb}
    assert set(_stopped()) == expected


def test_silent_liquidations_are_no_zeros(stopped: Settings) -> None:
    buckets, values = _between("liquidation_panic", "liquidation_count", VICTIM, 46, 60)
    assert buckets > values == 0


def test_a_source_that_never_came_is_missing_after_its_time(stopped: Settings) -> None:
    """Last of this market: it takes the positions away."""
    execute(f"delete from lsr_top_positions where {_where(VICTIM)}")
    dbt("run", select="slow_series long_short_bias stale_sources", full_refresh=True, **LAGS)
    row = _stopped()[(*VICTIM, "lsr_top_positions", "missing")]
    # not at once: after its max lag
    assert row["first_at"].timestamp() * 1e6 == pytest.approx(CLEAN.start + 600e6, abs=MINUTE_US)
    [buckets, _] = _between("long_short_bias", "long_short_bias_positions", VICTIM, 10.5, 60)
    assert row["buckets"] >= buckets > 0


def test_the_planted_outage_is_seen(store: Settings, tmp_path: Any) -> None:
    _build(tmp_path, OUTAGE, "outage")
    found = _stopped()
    beta = {("beta", m, s, "trades", "stale") for m in ("linear", "spot") for s in ("AAAUSDT", "BBBUSDT")}
    assert {k for k in found if k[3] == "trades"} == beta
    assert {k[0] for k in found} == {"beta"}
    start = OUTAGE.start + int(60 * 60 * 0.48) * 1_000_000
    for key in beta:
        assert found[key]["first_at"].timestamp() * 1e6 == pytest.approx(start, abs=MINUTE_US)
        assert found[key]["age_s"] >= 144
