"""What a comparison needs beside features and label: prices, costs, liquidity, regime, the other horizons' returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.experts.store import expert_predictions
from python_udfs.settings import settings
from python_udfs.training.dataset import Dataset

Floats = npt.NDArray[np.float64]

UNKNOWN_REGIME: Final = -9
REGIMES: Final = {-1: "calm", 0: "normal", 1: "active", UNKNOWN_REGIME: "not known yet"}
_NUMBERS: Final = ("mid_close", "spread_bps_close", "notional", "duration_s", "volatility_regime")


@dataclass(frozen=True, slots=True)
class Context:
    """Of the n rows of a dataset, in its order; NaN where unknown."""

    mid: Floats  # [n] at as_of
    slippage_bps: Floats  # [n] half the spread
    notional_per_second: Floats  # [n] traded in the row's bucket
    regime: npt.NDArray[np.int64]  # [n] -1, 0, 1 or UNKNOWN_REGIME
    returns: dict[str, Floats]  # [n] of every label of training_set, by its suffix
    expert: Floats  # [n] mean of the experts' -1, 0, 1
    expert_note: str  # why there is none

    @classmethod
    def unknown(cls, n: int) -> Context:
        """Nothing but the rows: no price, no spread, one regime, no expert."""
        nan = np.full(n, np.nan)
        return cls(nan, np.zeros(n), nan, np.full(n, UNKNOWN_REGIME), {}, nan, "no decisions are stored")


def read_context(data: Dataset) -> Context:
    """Reads it from `training_set` and the experts' scores; a column that is not there is unknown.

    Raises:
        UserError: training_set was rebuilt since `data` was read.
    """
    database = settings().database("features")
    with db.connect(database, use_numpy=True) as c:
        there = [
            str(name)
            for (name,) in c.execute(
                "select name from system.columns where database = currentDatabase() and table = 'training_set'"
            )
        ]
        returns = [name for name in there if name.startswith("label_ret_")]
        numbers = [name for name in _NUMBERS if name in there]
        values = [f"toFloat64(ifNull({db.names([name])}, nan))" for name in [*numbers, *returns]]
        label = (data.label.column, data.label.return_column, data.label.known_at_column)
        read = c.execute(
            f"select {', '.join(['toUnixTimestamp64Micro(bucket_ts_end)', *values])} from training_set "
            f"where {' and '.join(f'{db.names([name])} is not null' for name in label)} "
            "order by bucket_ts_end, exchange, market_type, symbol, bucket_id",
            columnar=True,
        )
    as_of, *columns = read or [np.empty(0, dtype=np.int64)]
    if not np.array_equal(as_of, data.as_of):
        raise UserError("training_set changed while it was read: run `marketprism train` again")
    n = len(as_of)
    found = dict(zip([*numbers, *returns], (np.asarray(x, dtype=np.float64) for x in columns), strict=True))
    nan = np.full(n, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = found.get("notional", nan) / found.get("duration_s", nan)
    regime = found.get("volatility_regime", nan)
    expert, note = _expert(data)
    return Context(
        mid=found.get("mid_close", nan),
        slippage_bps=np.nan_to_num(np.maximum(found.get("spread_bps_close", nan), 0) / 2),
        notional_per_second=np.where(np.isfinite(rate), rate, np.nan),
        regime=np.where(np.isfinite(regime), regime, UNKNOWN_REGIME).astype(np.int64),
        returns={name.removeprefix("label_ret_").removeprefix("ps_"): found[name] for name in returns},
        expert=expert,
        expert_note=note,
    )


def _expert(data: Dataset) -> tuple[Floats, str]:
    score, number = np.zeros(len(data.as_of)), np.zeros(len(data.as_of))
    try:
        with db.connect(settings().database("features")) as c:
            said = expert_predictions(c, data.label.column)
    except UserError as e:
        return np.full(len(score), np.nan), str(e)
    place = {
        (at, data.instruments[name]): row
        for row, (at, name) in enumerate(zip(data.as_of.tolist(), data.instrument.tolist(), strict=True))
    }
    for at, name, value in zip(
        said.as_of.tolist(), said.instrument.tolist(), said.score.tolist(), strict=True
    ):
        if (row := place.get((at, name))) is not None:
            score[row] += value
            number[row] += 1
    with np.errstate(invalid="ignore"):
        mean = score / np.where(number > 0, number, np.nan)
    return mean, "" if number.any() else f"no decision with the horizon {data.label.horizon} is stored"
