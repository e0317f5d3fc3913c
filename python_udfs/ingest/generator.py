"""A generated market: two exchanges, spot and perp, two symbols, every raw kind, with planted truths.

For demo, tests and benchmarks. One efficient log price a symbol moves on a grid of 100 ms steps; each venue
quotes it on its own tick grid, the followers some steps later than the leader. Orders arrive by a Poisson
process whose rate is modulated by regimes, recent moves and short bursts; each order has one or more fills
at one stamp. A latent buying pressure (an AR(1)) tilts both the side of the orders and the drift of the
price: that is why past order flow predicts returns here. Books change at step starts, trades print later in
the step: a trade always meets the book last published.

Everything is drawn from (seed, block of simulated time, entity): the rows do not depend on how they are
batched, and memory is bounded by one block. What was planted where is in `truths.json`: see `TRUTHS`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from python_udfs.errors import BadFileError, UserError
from python_udfs.ingest.decimals import ONE
from python_udfs.ingest.records import (
    BATCH_ROWS,
    COLUMNS,
    INSTRUMENT,
    Batch,
    Column,
    Item,
    Kind,
    Note,
    Progress,
    Watermark,
)
from python_udfs.settings import settings

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Window = tuple[int, int]

FORMAT: Final = "marketprism-generated"
FORMAT_VERSION: Final = 1
DATA_SOURCE: Final = "generator"
SECOND: Final = 1_000_000  # µs, as every time below
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
STEP: Final = 100_000
STEPS_PER_SECOND: Final = SECOND // STEP
STEPS_PER_YEAR: Final = 365 * DAY / STEP
FUNDING_PERIOD: Final = 8 * HOUR
FILE_SECONDS: Final = 3600
# A block is the largest of these (seconds) that is expected to hold no more trades than BLOCK_TRADES.
BLOCK_SECONDS: Final = (1800, 900, 600, 300, 120, 60)
BLOCK_TRADES: Final = 500_000

LOT_E8: Final = ONE // 1000
LOT_DECIMALS: Final = 3
MEAN_FILLS: Final = 1 / 0.55
SIZE_TAIL: Final = 2.2  # Pareto exponent of trade sizes: finite variance, no finite third moment
PRESSURE_TAU_S: Final = 40.0
PREDICTION_HORIZON_S: Final = 15.0
# Steps of the past that a block needs: 10 s for liquidations, and any lead-lag delay.
TAIL_STEPS: Final = 100
BOOK_JITTER: Final = 5_000  # books come in the first 5 ms of a step, trades after them
MAX_LATENCY: Final = 500_000
LATE_SHARE: Final = 5e-4
LATE_DELAY: Final = (6 * SECOND, 25 * SECOND)  # past the 5 s of seeds/source_availability.csv
VOL_FACTOR: Final = 5.0
FUNDING_SHOCK: Final = 1e-3
FUNDING_SHOCK_TAU_S: Final = 1800.0
SPOOF_SIZE_FACTOR: Final = 60

# What can be planted; `MarketConfig.truths` names those that are.
TRUTHS: Final = (
    "lead_lag",
    "predictability",
    "funding_shock",
    "absorption",
    "spoofing",
    "outage",
    "volatility_regime",
    "late_arrivals",
)


@dataclass(frozen=True, slots=True)
class Instrument:
    """One instrument of the generated market.

    Attributes:
        tick_e8: tick size times 10**8, as in seeds/instruments.csv.
        weight: share of all trades.
        quote_ticks: the usual spread, in ticks.
        level_ticks: distance between book levels, in ticks.
    """

    exchange: str
    market_type: str
    symbol: str
    tick_e8: int
    weight: float
    quote_ticks: int
    level_ticks: int

    @property
    def tick_decimals(self) -> int:
        """Decimals of a price: ticks are powers of ten."""
        return 8 - (len(str(self.tick_e8)) - 1)

    def names(self) -> dict[str, str]:
        return {"exchange": self.exchange, "market_type": self.market_type, "symbol": self.symbol}


# Spreads and levels: about 0.8 bps everywhere, so that a best price lives for some tenths of a second.
INSTRUMENTS: Final = (
    Instrument("alpha", "linear", "AAAUSDT", ONE // 10, 0.22, 1, 1),
    Instrument("alpha", "spot", "AAAUSDT", ONE // 100, 0.12, 10, 5),
    Instrument("beta", "linear", "AAAUSDT", ONE // 10, 0.14, 1, 1),
    Instrument("beta", "spot", "AAAUSDT", ONE // 100, 0.09, 10, 5),
    Instrument("alpha", "linear", "BBBUSDT", ONE // 100, 0.16, 1, 1),
    Instrument("alpha", "spot", "BBBUSDT", ONE // 100, 0.10, 1, 1),
    Instrument("beta", "linear", "BBBUSDT", ONE // 100, 0.10, 1, 1),
    Instrument("beta", "spot", "BBBUSDT", ONE // 100, 0.07, 1, 1),
)
SYMBOLS: Final = ("AAAUSDT", "BBBUSDT")
START_PRICE: Final = {"AAAUSDT": 1250.0, "BBBUSDT": 125.0}
MEAN_TRADE: Final = {"AAAUSDT": 0.24, "BBBUSDT": 2.4}  # base coin
LEADER: Final = ("alpha", "linear")
ABSORPTION_AT: Final = ("alpha", "linear", "AAAUSDT")
SPOOFING_AT: Final = ("alpha", "linear", "BBBUSDT")
FUNDING_SHOCK_AT: Final = ("alpha", "linear", "AAAUSDT")
OUTAGE_EXCHANGE: Final = "beta"
VOL_REGIME_SYMBOL: Final = "BBBUSDT"


@dataclass(frozen=True, slots=True)
class MarketConfig:
    """What to generate. Equal configs give equal bytes.

    Attributes:
        start: first instant, µs since the epoch, on a whole minute.
        minutes: length; at least 10 where anything is planted.
        trades_per_second: expected, over all eight instruments.
        book_levels: levels a side.
        sparse_books: benchmarks: one level, one row a second, and no row at a change of the best.
        book_interval_ms: a book this often while an instrument trades (a multiple of 100).
        book_heartbeat_ms: a book at least this often, always (a multiple of 100).
        volatility: annualised, fraction, before regimes.
        predictability: correlation of the latent pressure with the return of the next 15 s, in [0, 0.9].
        lead_lag_ms: how long followers trail the leader (a multiple of 100, at most 10 s).
        truths: names from `TRUTHS`. Without `predictability` or `lead_lag` those two settings count as 0;
            `spoofing` needs three book levels and is left out otherwise.

    Raises:
        UserError: a value out of range.
    """

    seed: int = 7
    start: int = int(datetime(2026, 1, 4, 22, 30, tzinfo=UTC).timestamp()) * SECOND
    minutes: int = 150
    trades_per_second: float = 45.0
    book_levels: int = 20
    sparse_books: bool = False
    book_interval_ms: int = 100
    book_heartbeat_ms: int = 1000
    volatility: float = 0.5
    predictability: float = 0.45
    lead_lag_ms: int = 400
    truths: tuple[str, ...] = TRUTHS

    def __post_init__(self) -> None:
        unknown = set(self.truths) - set(TRUTHS)
        step_ms = STEP // 1000
        needs: list[tuple[bool, str]] = [
            (not unknown, f"unknown truths {sorted(unknown)}: choose from {', '.join(TRUTHS)}"),
            (self.seed >= 0, "seed: must not be negative"),
            (self.start >= 0 and self.start % MINUTE == 0, "start: must be a whole minute after 1970"),
            (self.minutes >= 1, "minutes: at least 1"),
            (not self.truths or self.minutes >= 10, "minutes: at least 10, or plant no truths"),
            (0 < self.trades_per_second <= 100_000, "trades_per_second: above 0, at most 100,000"),
            (1 <= self.book_levels <= 100, "book_levels: 1 to 100"),
            (
                all(
                    0 < ms <= 60_000 and ms % step_ms == 0
                    for ms in (self.book_interval_ms, self.book_heartbeat_ms)
                ),
                f"book intervals: multiples of {step_ms} ms, at most a minute",
            ),
            (0 < self.volatility <= 5, "volatility: above 0, at most 5 (500 % a year)"),
            (0 <= self.predictability <= 0.9, "predictability: 0 to 0.9"),
            (
                0 <= self.lead_lag_ms <= TAIL_STEPS * step_ms and self.lead_lag_ms % step_ms == 0,
                f"lead_lag_ms: a multiple of {step_ms}, at most {TAIL_STEPS * step_ms}",
            ),
        ]
        for fine, message in needs:
            if not fine:
                raise UserError(message)

    @classmethod
    def benchmark(cls, trades: int, seed: int = 7) -> MarketConfig:
        """A market of about `trades` trades (within some percent), 400 a second, with sparse books."""
        minutes = max(10, round(trades / 400 / 60))
        return cls(seed=seed, minutes=minutes, trades_per_second=trades / minutes / 60, sparse_books=True)

    @property
    def end(self) -> int:
        """First instant after the market, µs."""
        return self.start + self.minutes * MINUTE

    def lag_steps(self) -> int:
        return self.lead_lag_ms * 1000 // STEP if "lead_lag" in self.truths else 0

    def levels(self) -> int:
        return 1 if self.sparse_books else self.book_levels

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "truths": list(self.truths)}


def tiny_market(seed: int = 7, minutes: int = 10) -> MarketConfig:
    """A market for tests: all instruments, all truths, some 27,000 trades in ten minutes, 5 levels."""
    return MarketConfig(seed=seed, minutes=minutes, book_levels=5)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the truths are: windows [from, to) in µs, empty where one is not planted.

    They are fractions of the span, apart from each other at any length of ten minutes or more.
    """

    absorption: Window
    spoofing: Window
    spoof_prints: Window
    outage: Window
    volatility: Window
    funding_shock: int | None

    @classmethod
    def of(cls, config: MarketConfig) -> _Plan:
        span = config.minutes * 60

        def window(name: str, at: float, share: float, longest: int) -> Window:
            if name not in config.truths:
                return (0, 0)
            first = config.start + int(span * at) * SECOND
            return (first, first + min(int(span * share), longest) * SECOND)

        spoofing = window("spoofing", 0.38, 0.03, 30) if config.levels() >= 3 else (0, 0)
        shock = config.start + -(-config.minutes * 12 // 100) * MINUTE
        return cls(
            absorption=window("absorption", 0.26, 0.06, 90),
            spoofing=spoofing,
            spoof_prints=(spoofing[1], spoofing[1] + 10 * SECOND) if spoofing[1] else (0, 0),
            outage=window("outage", 0.48, 0.04, 300),
            volatility=window("volatility_regime", 0.60, 0.20, 6 * 3600),
            funding_shock=shock if "funding_shock" in config.truths else None,
        )


def _inside(t: Ints, window: Window) -> Bools:
    """Which of the times `t`, shape (n,), lie in [from, to)."""
    return (t >= window[0]) & (t < window[1])


def _rng(config: MarketConfig, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([config.seed, *key])))


def _ar1(noise: Floats, tau_steps: float, last: float) -> Floats:
    """A stationary AR(1) of unit variance and time constant `tau_steps`, going on from `last`. Shape (n,)."""
    from scipy.signal import lfilter  # three seconds of import that no other command should wait for

    a = np.exp(-1 / tau_steps)
    path, _ = lfilter([np.sqrt(1 - a * a)], [1.0, -a], noise, zi=[a * last])
    return np.asarray(path, dtype=np.float64)


class _Episodes:
    """A piecewise constant path over the whole span, known from the start (a few thousand numbers)."""

    def __init__(self, rng: np.random.Generator, span_s: float, mean_s: tuple[float, float]) -> None:
        """Alternate two phases with exponential lengths of the two means, in seconds."""
        pairs = int(2 * span_s / sum(mean_s)) + 50
        self.ends = np.cumsum(rng.exponential(mean_s, (pairs, 2)).ravel())
        self.signs = rng.choice([-1.0, 1.0], len(self.ends))

    def at(self, seconds: Floats) -> tuple[Bools, Floats]:
        """Whether each instant is in the second phase, and the sign of its episode. Shapes (n,)."""
        number = np.minimum(np.searchsorted(self.ends, seconds, side="right"), len(self.ends) - 1)
        return number % 2 == 1, self.signs[number]


@dataclass(slots=True)
class _Path:
    """One block of a symbol. Arrays have one value a step, shape (k,).

    Attributes:
        t: step starts, µs.
        log_price: with TAIL_STEPS values of the past in front, shape (TAIL_STEPS + k + 1,), and the next
            block's first value at the end.
        sigma: standard deviation of a step's return; `vol_level` the same without the quiet windows.
        pressure: the latent buying pressure, about N(0, 1): tilts orders, and the price later.
        chase: the returns of the last seconds, about N(0, 1): tilts orders, says nothing of the future.
        activity: multiplier of the order rate, mean about 1.
    """

    t: Ints
    log_price: Floats
    sigma: Floats
    vol_level: Floats
    pressure: Floats
    chase: Floats
    activity: Floats


class _Symbol:
    """The efficient price of one symbol, block after block."""

    def __init__(self, config: MarketConfig, plan: _Plan, number: int) -> None:
        self.config, self.plan, self.number = config, plan, number
        self.name = SYMBOLS[number]
        self.past = np.full(TAIL_STEPS + 1, np.log(START_PRICE[self.name]))
        self.vol = self.pressure = self.chase = self.activity = 0.0
        # Busy spells of some four minutes between calm ones of ten.
        self.busy = _Episodes(_rng(config, 0, number), config.minutes * 60, (600.0, 240.0))
        rho = config.predictability if "predictability" in config.truths else 0.0
        tau = PRESSURE_TAU_S * STEPS_PER_SECOND
        horizon = PREDICTION_HORIZON_S * STEPS_PER_SECOND
        # Pressure decays: a unit of it now adds drift * tau * (1 - exp(-horizon / tau)) sigmas in all,
        # against noise of sqrt(horizon) sigmas. Solved for the correlation asked for.
        self.drift = rho / np.sqrt(1 - rho * rho) * np.sqrt(horizon) / (tau * (1 - np.exp(-horizon / tau)))
        # So that the number of trades is the one asked for, whatever spells the seed gave.
        self.usual_spells = float(self._spells(np.arange(config.start, config.end, SECOND))[0].mean())

    def _spells(self, t: Ints) -> tuple[Floats, Floats]:
        """Multipliers of activity and of volatility at times `t`: busy spells and the planted regime."""
        busy, _ = self.busy.at((t - self.config.start) / SECOND)
        window = self.plan.volatility if self.name == VOL_REGIME_SYMBOL else (0, 0)
        factor = np.where(_inside(t, window), VOL_FACTOR, 1.0)
        return np.where(busy, 1.5, 0.8) * np.sqrt(factor), np.where(busy, 1.3, 0.85) * factor

    def block(self, number: int, t: Ints) -> _Path:
        """The next block, at step starts `t`. Blocks must be asked for in order."""
        k = len(t)
        rng = _rng(self.config, 1, self.number, number)
        second = STEPS_PER_SECOND
        vol = _ar1(rng.standard_normal(k), 600 * second, self.vol)
        pressure = _ar1(rng.standard_normal(k), PRESSURE_TAU_S * second, self.pressure)
        activity = _ar1(rng.standard_normal(k), 30 * second, self.activity)
        spells, vol_spells = self._spells(t)

        level = self.config.volatility / np.sqrt(STEPS_PER_YEAR) * np.exp(0.2 * vol - 0.02) * vol_spells
        last_activity = activity[-1]
        activity = np.exp(0.45 * activity - 0.1) * spells / self.usual_spells
        quiet = np.zeros(k, dtype=bool)
        for place, (first, last) in (
            (ABSORPTION_AT, self.plan.absorption),
            (SPOOFING_AT, (self.plan.spoofing[0], self.plan.spoof_prints[1])),
        ):
            if place[2] == self.name:
                quiet |= _inside(t, (first, last))
        sigma = level * np.where(quiet, 0.1, 1.0)

        # News moves the price and draws orders after it: the price impact that Kyle's lambda measures.
        news = rng.standard_normal(k)
        chase = _ar1(news, 3 * second, self.chase)
        shock = 0.6 * news + 0.8 * rng.standard_normal(k)
        jumps = (rng.random(k) < 1 / (600 * second)) & ~quiet  # one in ten minutes, some 7 bps
        shock[jumps] += 25 * rng.standard_normal(int(jumps.sum()))
        returns = sigma * (shock + self.drift * pressure) - sigma**2 / 2
        path = np.concatenate([self.past, self.past[-1] + np.cumsum(returns)])
        self.past = path[-(TAIL_STEPS + 1) :]
        self.vol, self.pressure, self.chase, self.activity = vol[-1], pressure[-1], chase[-1], last_activity
        return _Path(t, path, sigma, level, pressure, chase, activity)


# Columns with few values travel as dictionaries: equal in every table, so that tables concatenate cheaply.
_VOCABULARY: Final[dict[str, tuple[str, ...]]] = {
    "exchange": ("alpha", "beta"),
    "market_type": ("spot", "linear"),
    "symbol": SYMBOLS,
    "data_source": (DATA_SOURCE,),
    "side": ("buy", "sell"),
    "period": ("5m",),
    "underlying_asset": ("AAA", "BBB"),
}
_ARROW: Final[dict[Column, pa.DataType]] = {
    "time": pa.int64(),
    "time?": pa.int64(),
    "e8": pa.int64(),
    "wide": pa.string(),
    "string": pa.string(),
    "uint64": pa.uint64(),
    "bool": pa.uint8(),
    "date": pa.date32(),
}


def _schema(kind: Kind) -> pa.Schema:
    columns: dict[str, Column] = {
        **INSTRUMENT,
        "timestamp": "time",
        "received_at": "time",
        "data_source": "string",
        **COLUMNS[kind],
    }
    return pa.schema(
        [
            (name, pa.dictionary(pa.int8(), pa.string()) if name in _VOCABULARY else _ARROW[kind_of])
            for name, kind_of in columns.items()
        ]
    )


_SCHEMAS: Final[dict[Kind, pa.Schema]] = {kind: _schema(kind) for kind in COLUMNS if kind != "book_depths"}


def _coded(name: str, codes: npt.NDArray[np.int8]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(_VOCABULARY[name]))


def _constant(name: str, value: str, rows: int) -> pa.DictionaryArray:
    return _coded(name, np.full(rows, _VOCABULARY[name].index(value), dtype=np.int8))


def _decimals(scaled: Ints, decimals: int) -> list[str]:
    """Plain decimal texts of non-negative integers scaled by 10**decimals (short columns only)."""
    one = 10**decimals
    return [f"{v // one}.{v % one:0{decimals}d}" for v in scaled.tolist()]


def _digits(out: npt.NDArray[np.uint8], values: npt.NDArray[np.uint32], whole: int, decimals: int) -> None:
    """Write `values` (scaled by 10**decimals) as ASCII into out[..., :whole + 1 + decimals].

    Leading zeros become NUL, to be dropped later; the last whole digit is always written.
    """
    rest = values
    for place in range(decimals):
        rest, digit = np.divmod(rest, np.uint32(10))
        out[..., whole + decimals - place] = digit + 48
    out[..., whole] = ord(".")
    for place in range(whole):
        nothing_left = rest == 0
        rest, digit = np.divmod(rest, np.uint32(10))
        out[..., whole - 1 - place] = np.where(nothing_left & (place > 0), 0, digit + 48)


def _levels_json(ticks: Ints, tick_decimals: int, lots: Ints) -> pa.StringArray:
    """Book sides, shapes (n, levels), n >= 1, to JSON texts `[["price","quantity"],...]`, shape (n,).

    Writes all rows into one byte matrix of fixed width and squeezes the padding out: some 50 ns a level.
    """
    n, levels = ticks.shape
    price_whole = max(1, len(str(int(ticks.max()))) - tick_decimals)
    lot_whole = max(1, len(str(int(lots.max()))) - LOT_DECIMALS)
    price_width, lot_width = price_whole + 1 + tick_decimals, lot_whole + 1 + LOT_DECIMALS
    text = np.empty((n, 1 + levels * (price_width + lot_width + 8)), dtype=np.uint8)
    text[:, 0] = ord("[")
    cells = text[:, 1:].reshape(n, levels, -1)
    cells[..., 0:2] = np.frombuffer(b'["', dtype=np.uint8)
    _digits(cells[..., 2:], ticks.astype(np.uint32), price_whole, tick_decimals)
    cells[..., 2 + price_width : 5 + price_width] = np.frombuffer(b'","', dtype=np.uint8)
    _digits(cells[..., 5 + price_width :], lots.astype(np.uint32), lot_whole, LOT_DECIMALS)
    cells[..., -3:] = np.frombuffer(b'"],', dtype=np.uint8)
    text[:, -1] = ord("]")
    kept = text != 0
    offsets = np.zeros(n + 1, dtype=np.int32)
    np.cumsum(np.count_nonzero(kept, axis=1), out=offsets[1:])
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text[kept]))


def _resting(ticks: Ints, step: Ints, salt: int) -> Floats:
    """Exponential noise in [0, inf) that belongs to (price level, two seconds): a resting size stays.

    Args: ticks (n, levels); step (n, 1), the number of the step; salt, the instrument's. A splitmix64 hash.
    """
    place = ticks.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    held = 2 * STEPS_PER_SECOND
    age = (step.astype(np.uint64) + (place >> np.uint64(40)) % np.uint64(held)) // np.uint64(held)
    h = place ^ (age * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(salt))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        h ^= h >> np.uint64(shift)
        h *= np.uint64(factor)
    h ^= h >> np.uint64(31)
    return -np.log1p(-((h >> np.uint64(11)).astype(np.float64) * 2.0**-53))


@dataclass(slots=True)
class _Quotes:
    """A venue a step, shape (k,): best prices in ticks, book imbalance in (-1, 1), its own log price."""

    bid: Ints
    ask: Ints
    lean: Floats
    log_price: Floats


@dataclass(slots=True)
class _Day:
    """The last 24 hours in pieces of 10 s, shape (8640,): lots, high, low and last price in ticks."""

    lots: Ints
    high: Ints
    low: Ints
    last: Ints


PIECE: Final = 10 * SECOND
PIECES: Final = DAY // PIECE


class _Feed:
    """All rows of one instrument, block after block."""

    def __init__(self, config: MarketConfig, plan: _Plan, number: int) -> None:
        self.config, self.plan, self.number = config, plan, number
        self.instrument = INSTRUMENTS[number]
        i = self.instrument
        self.key = (i.exchange, i.market_type, i.symbol)
        self.lag = 0 if self.key[:2] == LEADER else config.lag_steps()
        self.meta = _Episodes(_rng(config, 2, number), config.minutes * 60, (30.0, 20.0))
        self.basis = self.activity = self.leaning = 0.0
        self.slow = np.zeros(4)  # AR(1) states a minute: funding, open interest, both long/short ratios
        self.traded_last_step = True
        self.last_best = (0, 0)
        self.next_trade_id = 1_000_000_000 * (number + 1)
        self.salt = config.seed * 1009 + number
        self.mean_lots = MEAN_TRADE[i.symbol] * 1000
        start = round(START_PRICE[i.symbol] * ONE / i.tick_e8)
        usual = config.trades_per_second * i.weight * self.mean_lots * PIECE / SECOND
        self.day = _Day(
            np.full(PIECES, round(usual)), *(np.full(PIECES, start, dtype=np.int64) for _ in range(3))
        )
        # Planted here? An empty window is never entered.
        self.absorption = plan.absorption if self.key == ABSORPTION_AT else (0, 0)
        self.spoofing = plan.spoofing if self.key == SPOOFING_AT else (0, 0)
        self.spoof_prints = plan.spoof_prints if self.key == SPOOFING_AT else (0, 0)
        self.outage = plan.outage if i.exchange == OUTAGE_EXCHANGE else (0, 0)
        self.absorption_tick = self.spoof_tick = 0
        self.absorbed_lots = self.spoof_prints_lots = 0
        self.late: Counter[str] = Counter()

    def block(self, number: int, path: _Path) -> Iterator[tuple[Kind, pa.Table]]:
        """The rows of the next block, by kind, each sorted by time. Blocks must be asked for in order."""
        quotes = self._quotes(_rng(self.config, 3, self.number, number), path)
        made = self._trades(_rng(self.config, 4, self.number, number), path, quotes)
        yield "trades", made[0]
        _, orders, ticks, lots, steps = made
        yield "orderbooks", self._books(_rng(self.config, 5, self.number, number), path, quotes, orders)
        rng = _rng(self.config, 6, self.number, number)
        yield "tickers", self._tickers(rng, path, ticks, lots, steps)
        if self.instrument.market_type == "linear":
            yield "liquidations", self._liquidations(rng, path, quotes)
            yield from self._by_the_minute(rng, path, quotes)

    def _table(self, kind: Kind, stamps: Ints, received: Ints, columns: dict[str, Any]) -> pa.Table:
        """A table of the kind's schema, without the rows of the outage."""
        n = len(stamps)
        columns = {
            **{name: _constant(name, value, n) for name, value in self.instrument.names().items()},
            "timestamp": stamps,
            "received_at": received,
            "data_source": _constant("data_source", DATA_SOURCE, n),
            **columns,
        }
        table = pa.table([pa.array(columns[name]) for name in _SCHEMAS[kind].names], schema=_SCHEMAS[kind])
        gone = _inside(stamps, self.outage)
        return table.filter(pa.array(~gone)) if gone.any() else table

    def _received(self, rng: np.random.Generator, stamps: Ints, kind: Kind) -> Ints:
        """Stamps plus a latency of some ms; a few rows of the two fast kinds seconds late."""
        n = len(stamps)
        latency = 2000 + rng.standard_exponential(n) * 6000
        received = stamps + np.minimum(latency, MAX_LATENCY).astype(np.int64)
        if kind in ("trades", "orderbooks") and "late_arrivals" in self.config.truths:
            late = np.flatnonzero(rng.random(n) < LATE_SHARE)
            late = late[~_inside(stamps[late], self.outage)]
            received[late] = stamps[late] + rng.integers(*LATE_DELAY, len(late))
            self.late[kind] += len(late)
        return received

    def _quotes(self, rng: np.random.Generator, path: _Path) -> _Quotes:
        i, k = self.instrument, len(path.t)
        past = TAIL_STEPS - self.lag
        log_price = path.log_price[past : past + k]
        if self.key[:2] != LEADER:
            # The followers' own wobble around the efficient price: half a basis point.
            basis = _ar1(rng.standard_normal(k), 60 * STEPS_PER_SECOND, self.basis)
            self.basis = basis[-1]
            log_price = log_price + 0.5e-4 * basis
        place = np.exp(log_price) * (ONE / i.tick_e8 / i.quote_ticks)
        cell = np.floor(place).astype(np.int64)
        # Now and then a wider spread, redrawn each second; finer ticks also leave room inside it.
        seconds = k // STEPS_PER_SECOND
        wider = (rng.random((2, seconds)) < 0.06).astype(np.int64) * i.quote_ticks
        wider += rng.integers(0, max(1, i.quote_ticks // 3), (2, seconds))
        wide_bid, wide_ask = np.repeat(wider, STEPS_PER_SECOND, axis=1)
        bid = cell * i.quote_ticks - wide_bid
        ask = (cell + 1) * i.quote_ticks + wide_ask

        leaning = _ar1(rng.standard_normal(k), 2 * STEPS_PER_SECOND, self.leaning)
        self.leaning = leaning[-1]
        lean = np.tanh(0.4 * path.pressure + 1.6 * (place - cell - 0.5) + 0.4 * leaning)

        absorbing = _inside(path.t, self.absorption)
        if absorbing.any():
            if path.t[0] <= self.absorption[0]:
                self.absorption_tick = int(bid[absorbing][0])
            bid[absorbing] = self.absorption_tick
            ask[absorbing] = self.absorption_tick + i.quote_ticks
        spoofing = _inside(path.t, self.spoofing)
        if spoofing.any():
            levels = self.config.levels()
            if path.t[0] <= self.spoofing[0]:
                self.spoof_tick = int(ask[spoofing][0]) + min(4, levels - 1) * i.level_ticks
            # The price hardly moves here; held so that the level is never touched and always in the book.
            deepest = self.spoof_tick - min(levels - 1, 8) * i.level_ticks
            ask[spoofing] = np.clip(ask[spoofing], deepest, self.spoof_tick - 2 * i.level_ticks)
            bid[spoofing] = np.minimum(bid[spoofing], ask[spoofing] - i.quote_ticks)
        return _Quotes(bid, ask, lean, log_price)

    def _trades(
        self, rng: np.random.Generator, path: _Path, quotes: _Quotes
    ) -> tuple[pa.Table, Ints, Ints, Ints, Ints]:
        """The block's trades; orders a step (k,); and of every trade its price, size and step, (n,)."""
        i, k = self.instrument, len(path.t)
        absorbing, prints = _inside(path.t, self.absorption), _inside(path.t, self.spoof_prints)
        lured = _inside(path.t, self.spoofing)

        past = TAIL_STEPS - self.lag
        delayed = path.log_price[past : past + k]
        a_second_before = path.log_price[past - STEPS_PER_SECOND : past - STEPS_PER_SECOND + k]
        move = np.abs(delayed - a_second_before) / (path.vol_level * np.sqrt(STEPS_PER_SECOND))
        activity = _ar1(rng.standard_normal(k), 5 * STEPS_PER_SECOND, self.activity)
        self.activity = activity[-1]
        rate = path.activity * np.exp(0.35 * activity - 0.061) * (0.6 + 0.5 * np.minimum(move, 6))
        # Bursts: within a step the rate itself is gamma distributed, mean 1.
        rate *= rng.standard_gamma(0.7, k) / 0.7
        rate *= self.config.trades_per_second * i.weight * STEP / SECOND / MEAN_FILLS
        rate = np.where(absorbing | prints, 4 * rate + 0.5, rate)
        orders = rng.poisson(rate)
        n = int(orders.sum())
        order_step = np.repeat(np.arange(k), orders)

        # Informed takers know the step's own return and, at a follower, what the leader did already.
        coming = path.log_price[TAIL_STEPS + 1 : TAIL_STEPS + 1 + k]
        informed = np.clip((coming - delayed) / (path.sigma * np.sqrt(self.lag + 1)), -2, 2)
        splitting, sign = self.meta.at((path.t - self.config.start) / SECOND)
        logit = 1.2 * path.pressure + path.chase + 0.7 * sign * splitting + 0.6 * informed
        logit = np.where(absorbing, -2.5, np.where(prints, 2.5, logit))
        buys = rng.random(n) < (1 / (1 + np.exp(-logit)))[order_step]

        offset = rng.integers(BOOK_JITTER + 1000, STEP, n)
        if i.exchange == "alpha":  # alpha stamps whole milliseconds, beta microseconds
            offset -= offset % 1000
        # Offsets are shorter than a step: sorting leaves `order_step` right.
        order_stamp = np.sort(path.t[order_step] + offset)

        fills = rng.geometric(1 / MEAN_FILLS, n)
        rows = int(fills.sum())
        order = np.repeat(np.arange(n), fills)
        nth = np.arange(rows) - np.repeat(np.cumsum(fills) - fills, fills)
        step, buy, stamp = order_step[order], buys[order], order_stamp[order]
        # Every sixth fill of one order eats into the next level, except where a truth needs a firm touch.
        beyond = np.minimum(nth // 5, 3) * i.level_ticks
        beyond[(absorbing | lured)[step]] = 0
        bid, ask = quotes.bid[step], quotes.ask[step]
        ticks = np.where(buy, ask + beyond, bid - beyond)
        hidden = (rng.random(rows) < 0.01) & (beyond == 0) & (ask - bid > 1)
        ticks[hidden] = (bid + ask)[hidden] // 2
        scale = self.mean_lots * (SIZE_TAIL - 1) * np.where(absorbing | prints, 3.0, 1.0)
        lots = 1 + np.minimum(rng.pareto(SIZE_TAIL, rows) * scale[step], 1e8).astype(np.int64)

        self.absorbed_lots += int(lots[absorbing[step] & ~buy & (ticks == self.absorption_tick)].sum())
        self.spoof_prints_lots += int(lots[prints[step] & buy].sum())
        ids = np.arange(self.next_trade_id, self.next_trade_id + rows)
        self.next_trade_id += rows
        table = self._table(
            "trades",
            stamp,
            self._received(rng, stamp, "trades"),
            {
                "trade_id": pa.array(ids).cast(pa.string()),
                "price": ticks * i.tick_e8,
                "quantity": lots * LOT_E8,
                "side": _coded("side", (~buy).astype(np.int8)),
                "is_maker": (~buy).astype(np.uint8),
                "trade_time": stamp,
            },
        )
        return table, orders, ticks, lots, step

    def _books(self, rng: np.random.Generator, path: _Path, quotes: _Quotes, orders: Ints) -> pa.Table:
        i, c = self.instrument, self.config
        number = (path.t - c.start) // STEP
        traded = np.concatenate([[self.traded_last_step], orders[:-1] > 0])
        changed = np.empty(len(path.t), dtype=bool)
        changed[0] = self.last_best != (quotes.bid[0], quotes.ask[0])
        changed[1:] = (np.diff(quotes.bid) != 0) | (np.diff(quotes.ask) != 0)
        self.traded_last_step = bool(orders[-1] > 0)
        self.last_best = (int(quotes.bid[-1]), int(quotes.ask[-1]))
        if c.sparse_books:
            shown = number % STEPS_PER_SECOND == 0
        else:
            shown = changed | (number % (c.book_heartbeat_ms * 1000 // STEP) == 0)
            shown |= traded & (number % (c.book_interval_ms * 1000 // STEP) == 0)
            shown |= np.isin(path.t, [*self.spoofing, *self.absorption, self.outage[1]])

        number, lean = number[shown], quotes.lean[shown][:, None]
        stamps = path.t[shown] + rng.integers(0, BOOK_JITTER, len(number))
        if i.exchange == "alpha":
            stamps -= stamps % 1000
        depth = np.arange(c.levels())
        shape = 10 * self.mean_lots * (1 + 0.15 * depth)
        near = 0.7 * np.exp(-depth / 3)
        sides: dict[str, tuple[Ints, Ints]] = {}
        for side, best, sign in (("bid", quotes.bid, -1), ("ask", quotes.ask, 1)):
            ticks = best[shown][:, None] + sign * i.level_ticks * depth
            noise = 0.3 + 0.7 * _resting(ticks, number[:, None], self.salt)
            lots = 1 + (shape * noise * (1 - sign * near * lean)).astype(np.int64)
            sides[side] = (ticks, lots)
        spoofed = _inside(path.t[shown], self.spoofing)
        if spoofed.any():
            ticks, lots = sides["ask"]
            lots[spoofed[:, None] & (ticks == self.spoof_tick)] += self.spoof_lots()
        columns: dict[str, Any] = {
            "last_update_id": (10_000_000_000 + number * 8).astype(np.uint64),
        }
        for side, (ticks, lots) in sides.items():
            columns[f"{side}s_count"] = np.full(len(number), c.levels(), dtype=np.uint64)
            columns[f"best_{side}_price"] = ticks[:, 0] * i.tick_e8
            columns[f"best_{side}_quantity"] = lots[:, 0] * LOT_E8
            columns[f"{side}s"] = _levels_json(ticks, i.tick_decimals, lots)
        return self._table("orderbooks", stamps, self._received(rng, stamps, "orderbooks"), columns)

    def spoof_lots(self) -> int:
        return round(SPOOF_SIZE_FACTOR * 10 * self.mean_lots)

    def _tickers(
        self, rng: np.random.Generator, path: _Path, ticks: Ints, lots: Ints, steps: Ints
    ) -> pa.Table:
        """Every 10 s, from what had traded before."""
        day, tick = self.day, self.instrument.tick_e8
        pieces = len(path.t) * STEP // PIECE
        edges = np.searchsorted(steps, np.arange(pieces + 1) * (PIECE // STEP))
        # The last price before each edge.
        last = np.append(day.last[-1], ticks)[edges]
        empty = np.diff(edges) == 0

        def reduced(how: np.ufunc) -> Ints:
            # One more value, so that every edge is an index; the last price again, which changes no extreme.
            values = how.reduceat(np.append(ticks, last[-1]), edges[:-1])
            return np.asarray(np.where(empty, last[:-1], values))

        total = np.diff(np.concatenate([[0], np.cumsum(lots)])[edges])
        grown = _Day(
            np.concatenate([day.lots, total]),
            np.concatenate([day.high, reduced(np.maximum)]),
            np.concatenate([day.low, reduced(np.minimum)]),
            np.concatenate([day.last, last[1:]]),
        )
        self.day = _Day(*(part[-PIECES:] for part in (grown.lots, grown.high, grown.low, grown.last)))
        summed = np.concatenate([[0], np.cumsum(grown.lots)])
        windows = np.lib.stride_tricks.sliding_window_view
        stamps = path.t[:: PIECE // STEP]
        return self._table(
            "tickers",
            stamps,
            self._received(rng, stamps, "tickers"),
            {
                "last_price": last[:-1] * tick,
                "volume_24h": _decimals(summed[PIECES:-1] - summed[: -PIECES - 1], LOT_DECIMALS),
                "price_change_24h": (last[:-1] - grown.last[:pieces]) * tick,
                "high_24h": windows(grown.high[:-1], PIECES).max(axis=1) * tick,
                "low_24h": windows(grown.low[:-1], PIECES).min(axis=1) * tick,
            },
        )

    def _liquidations(self, rng: np.random.Generator, path: _Path, quotes: _Quotes) -> pa.Table:
        """At most one a step; likelier the larger the move of the last ten seconds, and with it."""
        i, k = self.instrument, len(path.t)
        now, before = (path.log_price[at : at + k] for at in (TAIL_STEPS, 0))
        usual = self.config.volatility / np.sqrt(STEPS_PER_YEAR) * np.sqrt(TAIL_STEPS)
        chance = 0.0005 + 0.02 * np.clip(np.abs(now - before) / usual - 1.5, 0, 10)
        step = np.flatnonzero(rng.random(k) < chance)
        sell = (now < before)[step]
        away = rng.integers(0, 4, len(step)) * i.level_ticks
        stamps = path.t[step] + 1000 * rng.integers(10, 100, len(step))
        lots = 1 + np.minimum(rng.pareto(1.6, len(step)) * 10 * self.mean_lots, 1e9).astype(np.int64)
        return self._table(
            "liquidations",
            stamps,
            self._received(rng, stamps, "liquidations"),
            {
                "side": _coded("side", sell.astype(np.int8)),
                "price": np.where(sell, quotes.bid[step] - away, quotes.ask[step] + away) * i.tick_e8,
                "quantity": lots * LOT_E8,
                "liquidation_time": stamps,
            },
        )

    def _by_the_minute(
        self, rng: np.random.Generator, path: _Path, quotes: _Quotes
    ) -> Iterator[tuple[Kind, pa.Table]]:
        """Funding and volatility index every minute; open interest and long/short ratios every five."""
        every = MINUTE // STEP
        t = path.t[::every]
        noise = rng.standard_normal((4, len(t)))
        taus = (60.0, 120.0, 90.0, 45.0)  # minutes
        funding, interest, accounts, positions = (
            _ar1(noise[n], tau, self.slow[n]) for n, tau in enumerate(taus)
        )
        self.slow = np.array([funding[-1], interest[-1], accounts[-1], positions[-1]])
        mark = np.exp(quotes.log_price[::every])
        index = np.exp(path.log_price[TAIL_STEPS : TAIL_STEPS + len(path.t) : every])

        # At the settlement itself the row is the settled rate.
        settles = -(-t // FUNDING_PERIOD) * FUNDING_PERIOD
        rate = 1e-4 + 5e-6 * funding
        if self.key == FUNDING_SHOCK_AT and self.plan.funding_shock is not None:
            since = (t - self.plan.funding_shock) / SECOND
            decay = np.exp(-np.maximum(since, 0) / FUNDING_SHOCK_TAU_S)
            rate += FUNDING_SHOCK * np.where(since >= 0, decay, 0)
        yield (
            "funding_rates",
            self._table(
                "funding_rates",
                t,
                self._received(rng, t, "funding_rates"),
                {
                    "funding_rate": np.rint(rate * ONE).astype(np.int64),
                    "funding_time": settles,
                    "next_funding_time": settles + FUNDING_PERIOD,
                    "mark_price": np.rint(mark * 1e4).astype(np.int64) * (ONE // 10_000),
                    "index_price": np.rint(index * 1e4).astype(np.int64) * (ONE // 10_000),
                },
            ),
        )
        if self.instrument.exchange == "alpha":
            annual = path.vol_level[::every] * np.sqrt(STEPS_PER_YEAR) * 100
            yield (
                "volatility_indices",
                self._table(
                    "volatility_indices",
                    t,
                    self._received(rng, t, "volatility_indices"),
                    {
                        "index_value": np.rint(annual * 100).astype(np.int64) * (ONE // 100),
                        "underlying_asset": _constant(
                            "underlying_asset", self.instrument.symbol.removesuffix("USDT"), len(t)
                        ),
                        # A constant maturity of 30 days.
                        "maturity_date": (t // DAY + 30).astype("datetime64[D]"),
                    },
                ),
            )
        fifth = t % (5 * MINUTE) == 0
        t = t[fifth]
        coins = self.mean_lots * 200_000 * np.exp(0.05 * interest[fifth])
        yield (
            "open_interests",
            self._table(
                "open_interests",
                t,
                self._received(rng, t, "open_interests"),
                {
                    "open_interest": _decimals(np.rint(coins).astype(np.int64), LOT_DECIMALS),
                    "open_interest_value": _decimals(
                        np.rint(coins / 1000 * mark[fifth] * 100).astype(np.int64), 2
                    ),
                    "count": np.rint(coins / 5000).astype(np.uint64),
                },
            ),
        )
        ratios: tuple[tuple[Kind, str, Floats], ...] = (
            ("lsr_all_accounts", "account", 0.15 + 0.3 * accounts[fifth]),
            ("lsr_top_positions", "position", 0.05 + 0.2 * positions[fifth]),
        )
        for kind, what, logit in ratios:
            long = np.rint(1e4 / (1 + np.exp(-logit))).astype(np.int64) * (ONE // 10_000)
            columns = {
                f"long_{what}_ratio": long,
                f"short_{what}_ratio": ONE - long,
                "period": _constant("period", "5m", len(t)),
            }
            yield kind, self._table(kind, t, self._received(rng, t, kind), columns)


class _Market:
    """The whole market: blocks of tables, and at the end what was planted."""

    def __init__(self, config: MarketConfig) -> None:
        self.config = config
        self.plan = _Plan.of(config)
        per_second = config.trades_per_second
        self.block_us = SECOND * next(
            (s for s in BLOCK_SECONDS if s * per_second <= BLOCK_TRADES), BLOCK_SECONDS[-1]
        )
        self.symbols = [_Symbol(config, self.plan, n) for n in range(len(SYMBOLS))]
        self.feeds = [_Feed(config, self.plan, n) for n in range(len(INSTRUMENTS))]

    def blocks(self) -> Iterator[tuple[int, Iterator[tuple[Kind, pa.Table]]]]:
        """(start of the block in µs, its tables). Each block must be used up before the next."""
        for number, first in enumerate(range(self.config.start, self.config.end, self.block_us)):
            yield first, self._block(number, first)

    def _block(self, number: int, first: int) -> Iterator[tuple[Kind, pa.Table]]:
        t = np.arange(first, min(first + self.block_us, self.config.end), STEP, dtype=np.int64)
        for symbol in self.symbols:
            path = symbol.block(number, t)
            for feed in self.feeds:
                if feed.instrument.symbol == symbol.name:
                    yield from ((kind, table) for kind, table in feed.block(number, path) if len(table))

    def truths(self) -> dict[str, Any]:
        """What was planted, with places and times; complete once all blocks were used up."""
        plan, config = self.plan, self.config
        feeds = {feed.key: feed for feed in self.feeds}
        found: dict[str, Any] = {}
        if "lead_lag" in config.truths:
            found["lead_lag"] = {
                "delay_ms": config.lead_lag_ms,
                "leader": dict(zip(("exchange", "market_type"), LEADER, strict=True)),
                "followers": [f.instrument.names() for f in self.feeds if f.key[:2] != LEADER],
            }
        if "predictability" in config.truths:
            found["predictability"] = {
                "coefficient": config.predictability,
                "horizon_s": PREDICTION_HORIZON_S,
                "pressure_tau_s": PRESSURE_TAU_S,
                "drift_sigmas_per_step": float(self.symbols[0].drift),
                "step_ms": STEP // 1000,
            }
        if plan.funding_shock is not None:
            found["funding_shock"] = {
                **feeds[FUNDING_SHOCK_AT].instrument.names(),
                **_moment("time", plan.funding_shock),
                "size": FUNDING_SHOCK,
                "decay_tau_s": FUNDING_SHOCK_TAU_S,
            }
        if plan.absorption[1]:
            feed = feeds[ABSORPTION_AT]
            found["absorption"] = {
                **feed.instrument.names(),
                **_interval(plan.absorption),
                "price": _price(feed.absorption_tick, feed.instrument),
                "side": "sell",
                "quantity": _decimals(np.array([feed.absorbed_lots]), LOT_DECIMALS)[0],
            }
        if plan.spoofing[1]:
            feed = feeds[SPOOFING_AT]
            found["spoofing"] = {
                **feed.instrument.names(),
                **_interval(plan.spoofing),
                "book_side": "ask",
                "price": _price(feed.spoof_tick, feed.instrument),
                "quantity": _decimals(np.array([feed.spoof_lots()]), LOT_DECIMALS)[0],
                "then": {
                    **_interval(plan.spoof_prints),
                    "side": "buy",
                    "quantity": _decimals(np.array([feed.spoof_prints_lots]), LOT_DECIMALS)[0],
                },
            }
        if plan.outage[1]:
            found["outage"] = {
                **_interval(plan.outage),
                "instruments": [
                    f.instrument.names() for f in self.feeds if f.instrument.exchange == OUTAGE_EXCHANGE
                ],
            }
        if plan.volatility[1]:
            found["volatility_regime"] = {
                "symbol": VOL_REGIME_SYMBOL,
                **_interval(plan.volatility),
                "factor": VOL_FACTOR,
            }
        if "late_arrivals" in config.truths:
            found["late_arrivals"] = {
                "min_delay_ms": LATE_DELAY[0] // 1000,
                "max_delay_ms": LATE_DELAY[1] // 1000,
                "rows": dict(sorted(sum((f.late for f in self.feeds), Counter()).items())),
                "by_instrument": [
                    {**f.instrument.names(), **dict(sorted(f.late.items()))} for f in self.feeds
                ],
            }
        return found


def _moment(name: str, t: int) -> dict[str, Any]:
    text = datetime.fromtimestamp(t // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {name: text, f"{name}_us": t}


def _interval(window: Window) -> dict[str, Any]:
    """From (inclusive) and to (exclusive), as text and in µs."""
    return {**_moment("start", window[0]), **_moment("end", window[1])}


def _price(ticks: int, instrument: Instrument) -> str:
    return _decimals(np.array([ticks]), instrument.tick_decimals)[0]


@dataclass(slots=True)
class _Rebatch:
    """Tables in, record batches of a fixed number of rows out, by kind: batches know nothing of blocks."""

    rows: Callable[[Kind], int]
    waiting: dict[Kind, list[pa.Table]] = field(default_factory=dict)
    counts: Counter[Kind] = field(default_factory=Counter)

    def add(self, kind: Kind, table: pa.Table) -> Iterator[pa.RecordBatch]:
        self.waiting.setdefault(kind, []).append(table)
        self.counts[kind] += len(table)
        if self.counts[kind] >= self.rows(kind):
            yield from self._take(kind, whole_only=True)

    def flush(self) -> Iterator[tuple[Kind, pa.RecordBatch]]:
        for kind in list(self.waiting):
            yield from ((kind, batch) for batch in self._take(kind, whole_only=False))

    def _take(self, kind: Kind, *, whole_only: bool) -> Iterator[pa.RecordBatch]:
        size = self.rows(kind)
        table = pa.concat_tables(self.waiting.pop(kind)).combine_chunks()
        end = len(table) - len(table) % size if whole_only else len(table)
        for first in range(0, end, size):
            yield table.slice(first, min(size, end - first)).combine_chunks().to_batches()[0]
        self.counts[kind] = len(table) - end
        if self.counts[kind]:
            self.waiting[kind] = [table.slice(end)]


def _batch_rows(kind: Kind, at_most: int, levels: int) -> int:
    """Rows of a batch: fewer for deep books, whose rows weigh a kilobyte and more."""
    return max(1, min(at_most, 1_000_000 // levels)) if kind == "orderbooks" else at_most


def _to_batch(kind: Kind, rows: pa.RecordBatch, file: str, first_line: int) -> Batch:
    """A record batch as the loader wants it; dates become datetime64[D]."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            words = np.array(column.dictionary.to_pylist(), dtype=object)
            columns[name] = words[column.indices.to_numpy(zero_copy_only=False)]
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return Batch(kind, columns, file, np.arange(first_line, first_line + len(rows), dtype=np.int64))


def _watermarks(end: int) -> Iterator[Watermark]:
    for i in INSTRUMENTS:
        for kind in ("trades", "orderbooks"):
            yield Watermark(kind, i.exchange, i.market_type, i.symbol, end)


def generate(config: MarketConfig, batch_rows: int = BATCH_ROWS) -> Iterator[Item]:
    """The market as items: batches by kind, then the watermarks at its end, then the truths as a note.

    Within a kind, an instrument's rows come in order of time. `batch_rows` changes only where batches end.
    """
    market = _Market(config)
    out = _Rebatch(lambda kind: _batch_rows(kind, batch_rows, config.levels()))
    lines: Counter[Kind] = Counter()

    def batch(kind: Kind, rows: pa.RecordBatch) -> Batch:
        made = _to_batch(kind, rows, "generated", lines[kind] + 1)
        lines[kind] += len(made)
        return made

    for _, tables in market.blocks():
        for kind, table in tables:
            yield from (batch(kind, rows) for rows in out.add(kind, table))
    yield from (batch(kind, rows) for kind, rows in out.flush())
    yield from _watermarks(config.end)
    yield Note("truths", json.dumps(market.truths()))


def write(
    config: MarketConfig, folder: Path, on_progress: Callable[[float], None] = lambda _: None
) -> dict[str, int]:
    """Write the market as Parquet, `manifest.json` and `truths.json`; returns rows by kind.

    One file a kind and hour of the span, columns as on the wire. All or nothing: written beside `folder` and
    renamed. A finished folder of the same config is left as it is; a damaged one of the same config is made
    again.

    Args:
        on_progress: called with the share done, 0 to 1.

    Raises:
        UserError: the folder holds something else.
    """
    found = _finished(config, folder)
    if found is not None:
        on_progress(1.0)
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        rows = _write_into(config, partial, on_progress)
        # mkdtemp made it private; a data folder is as open as its neighbours.
        partial.chmod(0o755)
        # Asked again, as someone else may have finished the same market meanwhile.
        if _finished(config, folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return rows


def _finished(config: MarketConfig, folder: Path) -> dict[str, int] | None:
    """Rows by kind of a finished folder of this config; None where there is none, or a damaged one.

    Raises:
        UserError: something else is there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    advice = "choose another folder, or remove it first"
    try:
        manifest = _manifest(folder)
    except BadFileError as e:
        raise UserError(f"{folder} holds something else: {advice}") from e
    if manifest["config"] != config.as_json():
        raise UserError(f"{folder} holds a market of another config: {advice}")
    try:
        GeneratedReader(folder)
    except BadFileError:
        return None
    return _totals(manifest["files"])


def _totals(files: list[dict[str, Any]]) -> dict[str, int]:
    rows: Counter[str] = Counter()
    for entry in files:
        rows[entry["kind"]] += entry["rows"]
    return dict(rows)


def _write_into(config: MarketConfig, folder: Path, on_progress: Callable[[float], None]) -> dict[str, int]:
    market = _Market(config)
    files: list[dict[str, Any]] = []
    per_hour = FILE_SECONDS * SECOND
    out = _Rebatch(lambda kind: _batch_rows(kind, BATCH_ROWS, config.levels()))
    with ExitStack() as stack:
        writers: dict[Kind, tuple[pq.ParquetWriter, dict[str, Any]]] = {}

        def put(hour: int, kind: Kind, rows: pa.RecordBatch) -> None:
            if kind not in writers:
                name = f"{kind}-{hour:04d}.parquet"
                schema = _SCHEMAS[kind]
                words = [f.name for f in schema if pa.types.is_dictionary(f.type)]
                new = pq.ParquetWriter(folder / name, schema, compression="zstd", use_dictionary=words)
                writers[kind] = stack.enter_context(new), {"name": name, "kind": kind, "rows": 0}
                files.append(writers[kind][1])
            writer, entry = writers[kind]
            writer.write_batch(rows, row_group_size=len(rows))
            entry["rows"] += len(rows)

        for first, tables in market.blocks():
            hour = (first - config.start) // per_hour
            for kind, table in tables:
                for rows in out.add(kind, table):
                    put(hour, kind, rows)
            done = min(first + market.block_us, config.end)
            if (done - config.start) % per_hour == 0 or done == config.end:
                for kind, rows in out.flush():
                    put(hour, kind, rows)
                stack.close()
                writers.clear()
            on_progress((done - config.start) / (config.end - config.start))
    for entry in files:
        entry["bytes"] = (folder / entry["name"]).stat().st_size
    manifest = {"format": FORMAT, "version": FORMAT_VERSION, "config": config.as_json(), "files": files}
    (folder / "truths.json").write_text(json.dumps(market.truths(), indent=2) + "\n")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return _totals(files)


def _manifest(folder: Path) -> dict[str, Any]:
    """The folder's manifest, checked.

    Raises:
        BadFileError: missing, no JSON, or not of this format and version.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError as e:
        raise BadFileError(str(path), "missing: not a folder made by `marketprism ingest generate`") from e
    except (OSError, ValueError) as e:
        raise BadFileError(str(path), f"cannot be read as JSON: {e}") from e
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BadFileError(str(path), f"not {FORMAT!r}", field="format")
    if manifest.get("version") != FORMAT_VERSION:
        reason = f"{manifest.get('version')!r}, this program reads {FORMAT_VERSION}: generate it again"
        raise BadFileError(str(path), reason, field="version")
    config, files = manifest.get("config"), manifest.get("files")
    if not isinstance(config, dict) or not all(
        isinstance(config.get(name), int) for name in ("start", "minutes", "book_levels")
    ):
        raise BadFileError(str(path), "missing or malformed", field="config")
    if not isinstance(files, list) or not all(_is_file_entry(entry) for entry in files):
        raise BadFileError(str(path), "missing or malformed", field="files")
    return manifest


def _is_file_entry(entry: object) -> bool:
    """Whether it names a kind, a plain file name (never a path out of the folder), rows and bytes."""
    return (
        isinstance(entry, dict)
        and entry.get("kind") in _SCHEMAS
        and isinstance(entry.get("name"), str)
        and Path(entry["name"]).name == entry["name"]
        and all(isinstance(entry.get(key), int) for key in ("rows", "bytes"))
    )


class GeneratedReader:
    """Reads a folder that `write` made.

    Raises:
        BadFileError: at once where a file is missing or has another size than the manifest says; while
            reading where its content is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path
        self.data_source = DATA_SOURCE
        self.options: dict[str, str] = {}
        self.manifest = _manifest(path)
        files = [path / entry["name"] for entry in self.manifest["files"]]
        self.paths = [path / "manifest.json", path / "truths.json", *files]
        for file in self.paths:
            if not file.is_file():
                raise BadFileError(str(file), "missing: generate the market again")
        for entry, file in zip(self.manifest["files"], files, strict=True):
            size = file.stat().st_size
            if size != entry["bytes"]:
                reason = f"{size} bytes, the manifest says {entry['bytes']}: truncated, generate it again"
                raise BadFileError(str(file), reason)

    def read(self) -> Iterator[Item]:
        config = self.manifest["config"]
        done = sum(file.stat().st_size for file in self.paths[:2])
        for entry in self.manifest["files"]:
            yield from self._read_file(entry, config["book_levels"])
            done += entry["bytes"]
            yield Progress(done)
        yield from _watermarks(config["start"] + config["minutes"] * MINUTE)

    def _read_file(self, entry: dict[str, Any], levels: int) -> Iterator[Batch]:
        kind: Kind = entry["kind"]
        path = self.folder / entry["name"]
        try:
            with pq.ParquetFile(path) as parquet:
                expected = _SCHEMAS[kind].names
                if parquet.schema_arrow.names != expected:
                    wrong = sorted(set(expected) ^ set(parquet.schema_arrow.names)) or expected
                    raise BadFileError(str(path), "columns differ from the format's", field=", ".join(wrong))
                if parquet.metadata.num_rows != entry["rows"]:
                    reason = f"{parquet.metadata.num_rows} rows, the manifest says {entry['rows']}"
                    raise BadFileError(str(path), reason)
                line = 1
                for rows in parquet.iter_batches(batch_size=_batch_rows(kind, BATCH_ROWS, levels)):
                    yield _to_batch(kind, rows, str(path), line)
                    line += len(rows)
        except (pa.ArrowException, OSError) as e:
            raise BadFileError(str(path), f"cannot be read as Parquet: {e}") from e


def _start_of(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as e:
        raise UserError(f"--start {text!r}: give a time such as 2026-01-05T00:00:00Z") from e
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * SECOND)


def generate_command(
    *,
    out: Annotated[Path | None, typer.Option(help="folder to make [data_dir/generated]")] = None,
    minutes: Annotated[int, typer.Option(help="length of the market")] = 150,
    trades_per_second: Annotated[float, typer.Option(help="over all eight instruments")] = 45.0,
    seed: Annotated[int, typer.Option(help="same seed and options: same bytes")] = 7,
    start: Annotated[str, typer.Option(help="first instant, UTC, a whole minute")] = "2026-01-04T22:30:00Z",
    book_levels: Annotated[int, typer.Option(help="book levels a side")] = 20,
    book_interval_ms: Annotated[int, typer.Option(help="a book this often while an instrument trades")] = 100,
    no_books: Annotated[bool, typer.Option("--no-books", help="only the best prices, once a second")] = False,
    without: Annotated[list[str] | None, typer.Option(help=f"do not plant: {', '.join(TRUTHS)}")] = None,
) -> None:
    """Generate a market with planted truths, as a folder that `marketprism ingest` can load."""
    unknown = set(without or ()) - set(TRUTHS)
    if unknown:
        raise UserError(f"--without {', '.join(sorted(unknown))}: choose from {', '.join(TRUTHS)}")
    config = MarketConfig(
        seed=seed,
        start=_start_of(start),
        minutes=minutes,
        trades_per_second=trades_per_second,
        book_levels=book_levels,
        sparse_books=no_books,
        book_interval_ms=book_interval_ms,
        truths=tuple(name for name in TRUTHS if name not in (without or ())),
    )
    folder = out or settings().data_dir / "generated"
    console = Console(stderr=True)
    columns = (TextColumn("generating"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with ProgressBar(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("generate", total=1.0)
        rows = write(config, folder, lambda share: bar.update(task, completed=share))
    console.print(f"{folder}: " + ", ".join(f"{n:,} {kind}" for kind, n in rows.items()), highlight=False)
