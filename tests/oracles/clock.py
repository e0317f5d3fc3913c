"""The logical clock as a state machine: trades go in one by one, buckets come out. One instrument at a time.

Integers only: times are microseconds since the epoch (UTC), quantities and prices are values times 10**8.
No arrays, no look-ahead, no shortcuts: this is meant to be checked by reading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, Literal, NamedTuple

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US

Mode = Literal["volume", "count", "hybrid", "event"]
Cut = Literal["volume", "count", "hybrid", "event", "time", "anchor"]


class Trade(NamedTuple):
    """One trade. `price_e8` and `side` (the taker's: buy or sell) only matter to `features.trade_flow`."""

    timestamp: int
    trade_seq: int
    trade_id: str
    quantity_e8: int
    known_at: int
    price_e8: int = 0
    side: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """How one anchor is cut. Only the sizes that the mode uses matter, and `t_max_us`, which every mode uses.

    Raises:
        ValueError: an unknown mode, or a size that it uses is not positive.
    """

    mode: Mode
    t_max_us: int
    q_bucket_e8: int = 0
    t_target_us: int = 0
    n_trades: int = 0
    n_min: int = 0
    n_updates: int = 0

    def __post_init__(self) -> None:
        sizes = {
            "volume": (self.q_bucket_e8,),
            "count": (self.n_trades,),
            "hybrid": (self.q_bucket_e8, self.t_target_us, self.n_min),
            "event": (self.n_updates,),
        }
        if self.mode not in sizes:
            raise ValueError(f"unknown mode {self.mode!r}")
        if min(self.t_max_us, *sizes[self.mode]) <= 0:
            raise ValueError(f"a size that mode {self.mode!r} uses is not positive: {self}")


Configs = Config | Mapping[int, Config] | Callable[[int], Config]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A closed bucket. `first_index`: where its trades start in `on_time(trades)`; they follow each other."""

    bucket_id: int
    bucket_ts_start: int
    bucket_ts_end: int
    cut_trigger: Cut
    trade_count: int
    volume_e8: int
    first_trade_id: str
    last_trade_id: str
    sequence: int
    anchor: int
    first_index: int = field(compare=False)


@dataclass(slots=True)
class _Open:
    """The state: one bucket that is still filling."""

    config: Config
    anchor: int
    sequence: int
    first: Trade
    first_index: int
    last: Trade
    deadline: int
    anchor_end: int
    quantity_e8: int = 0
    trades: int = 0
    updates: int = 0

    def add(self, trade: Trade) -> bool:
        """Takes a trade; True if the bucket ends with it."""
        self.last = trade
        self.quantity_e8 += trade.quantity_e8
        self.trades += 1
        config = self.config
        if config.mode == "volume":
            return self.quantity_e8 >= config.q_bucket_e8
        if config.mode == "count":
            return self.trades == config.n_trades
        if config.mode == "hybrid":
            elapsed = trade.timestamp - self.first.timestamp
            # Each of the three ratios >= 0.8, without division.
            return (
                10 * self.quantity_e8 >= 8 * config.q_bucket_e8
                and 10 * elapsed >= 8 * config.t_target_us
                and 10 * self.trades >= 8 * config.n_min
            )
        return False

    def update(self, time: int) -> bool:
        """Takes a book update; True if the bucket ends with it (event mode)."""
        if self.config.mode != "event" or not self.first.timestamp < time < self.must_end:
            return False
        self.updates += 1
        return self.updates == self.config.n_updates

    @property
    def must_end(self) -> int:
        """No trade at or after this instant is in the bucket."""
        return min(self.deadline, self.anchor_end)

    def closed(self, end: int, cut: Cut) -> Bucket:
        return Bucket(
            bucket_id=self.anchor // SECOND_US * 100_000 + self.sequence,
            bucket_ts_start=self.first.timestamp,
            bucket_ts_end=end,
            cut_trigger=cut,
            trade_count=self.trades,
            volume_e8=self.quantity_e8,
            first_trade_id=self.first.trade_id,
            last_trade_id=self.last.trade_id,
            sequence=self.sequence,
            anchor=self.anchor,
            first_index=self.first_index,
        )

    def expired(self) -> Bucket:
        """Closed without a cut of its mode: by time, which wins a tie with the anchor."""
        if self.deadline <= self.anchor_end:
            return self.closed(self.deadline, "time")
        return self.closed(self.anchor_end, "anchor")


def on_time(trades: Iterable[Trade]) -> list[Trade]:
    """The trades that the clock sees, in its order: late ones (known_at > timestamp) out, one per trade_id.

    Copies of a trade_id: the first in order counts. A late copy of a trade that is also there on time
    changes nothing.
    """
    seen: set[str] = set()
    kept = []
    for trade in sorted((t for t in trades if t.known_at <= t.timestamp), key=lambda t: t[:3]):
        if trade.trade_id not in seen:
            seen.add(trade.trade_id)
            kept.append(trade)
    return kept


def late_count(trades: Iterable[Trade]) -> int:
    """Rows with known_at > timestamp: never in a bucket."""
    return sum(t.known_at > t.timestamp for t in trades)


def buckets(
    trades: Iterable[Trade],
    config: Configs,
    *,
    anchor_us: int = HOUR_US,
    book_times: Iterable[int] = (),
    watermark: int | None = None,
) -> list[Bucket]:
    """The published buckets of one instrument, in order.

    Args:
        trades: in any order, with late trades and duplicates.
        config: for every anchor, or per anchor (mapping or function of the anchor's start, µs).
        anchor_us: length of an anchor, `HOUR_US` or `DAY_US`.
        book_times: known_at (µs) of the book updates of sources that feed the clock; any order, repeats
            allowed; event mode only.
        watermark: the trade feed is complete before this time (µs, exclusive); None: not known.
    """
    config_of = _lookup(config)
    updates = sorted(set(book_times))
    next_update = 0
    sequences: defaultdict[int, int] = defaultdict(int)
    done: list[Bucket] = []
    state: _Open | None = None

    for index, trade in enumerate(on_time(trades)):
        # Updates before this trade. One at the same instant comes after it: a trade with t <= end belongs.
        while next_update < len(updates) and updates[next_update] < trade.timestamp:
            if state is not None and state.update(updates[next_update]):
                done.append(state.closed(updates[next_update], "event"))
                state = None
            next_update += 1
        if state is not None and trade.timestamp >= state.must_end:
            done.append(state.expired())
            state = None
        if state is None:
            anchor = trade.timestamp - trade.timestamp % anchor_us
            rule = config_of(anchor)
            state = _Open(
                config=rule,
                anchor=anchor,
                sequence=sequences[anchor],
                first=trade,
                first_index=index,
                last=trade,
                deadline=trade.timestamp + rule.t_max_us,
                anchor_end=anchor + anchor_us,
            )
            sequences[anchor] += 1
        if state.add(trade):
            done.append(state.closed(trade.timestamp, state.config.mode))
            state = None

    for time in updates[next_update:]:
        if state is not None and state.update(time):
            done.append(state.closed(time, "event"))
            state = None
    if state is not None:
        done.append(state.expired())

    # Every bucket but the last is followed by a trade that is not in it.
    if done and (watermark is None or watermark <= done[-1].bucket_ts_end):
        done.pop()
    return done


def members(bucket: Bucket, ordered: Sequence[Trade]) -> Sequence[Trade]:
    """The bucket's trades, out of `ordered = on_time(trades)`."""
    return ordered[bucket.first_index : bucket.first_index + bucket.trade_count]


def _lookup(config: Configs) -> Callable[[int], Config]:
    if isinstance(config, Config):
        return lambda _anchor: config
    if isinstance(config, Mapping):
        return config.__getitem__
    return config


@dataclass(frozen=True, slots=True)
class Defaults:
    """The seed's row that calibration starts from."""

    q_bucket_e8: int
    q_min_e8: int
    q_max_e8: int
    t_target_us: int
    lookback_hours: int
    min_minutes: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """An anchor's q_bucket.

    `q_bucket`: exact, in units (not e8); `q_bucket_e8`: the same cut to 8 decimals, toward zero.
    `vps_p50`: median volume per second, units/s, exact; None if no minute had a trade.
    """

    q_bucket: Fraction
    q_bucket_e8: int
    source: Literal["calibrated", "default"]
    minutes: int
    vps_p50: Fraction | None


def calibrate(trades: Iterable[Trade], anchor: int, defaults: Defaults) -> Calibration:
    """q_bucket of the anchor that starts at `anchor` (µs): on-time trades of [anchor - lookback, anchor).

    vps_p50 = the middle (of an even number: the upper one) of the minutes' volumes / 60, over minutes with a
    trade; q_bucket = t_target * vps_p50, held within [q_min, q_max]; the default with too few such minutes.
    """
    start = anchor - defaults.lookback_hours * HOUR_US
    volumes: defaultdict[int, int] = defaultdict(int)
    for trade in on_time(trades):
        if start <= trade.timestamp < anchor:
            volumes[trade.timestamp // MINUTE_US] += trade.quantity_e8

    minutes = len(volumes)
    vps = Fraction(sorted(volumes.values())[minutes // 2], 60 * 10**8) if minutes else None
    if vps is None or minutes < defaults.min_minutes:
        default = Fraction(defaults.q_bucket_e8, 10**8)
        return Calibration(default, defaults.q_bucket_e8, "default", minutes, vps)
    target = Fraction(defaults.t_target_us, SECOND_US) * vps
    q_bucket = max(Fraction(defaults.q_min_e8, 10**8), min(Fraction(defaults.q_max_e8, 10**8), target))
    return Calibration(q_bucket, int(q_bucket * 10**8), "calibrated", minutes, vps)
