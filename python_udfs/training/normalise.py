"""Removes what the hour of the day explains of a feature, learnt from the past only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DAY_US: Final = 86_400_000_000
_NORMAL_IQR: Final = 1.3489795003921634  # of a standard normal: scales are then standard deviations


@dataclass(frozen=True, slots=True)
class TimeOfDay:
    """Centre and scale of k features in each of b equal parts of the UTC day, fitted on training rows.

    (x - centre) / scale, with the median and the interquartile range of the row's part of the day, both drawn
    towards those of the whole day: weight n / (n + shrinkage) for a part with n values.
    """

    centre: Floats  # [b, k]
    scale: Floats  # [b, k], > 0

    @classmethod
    def fit(
        cls,
        rows: npt.NDArray[np.floating[Any]],
        as_of: npt.NDArray[np.int64],
        *,
        bins: int = 24,
        shrinkage: float = 50.0,
    ) -> Self:
        """Fits on the rows given and no other: give those of the training fold.

        A feature without values has centre 0, one that does not vary has scale 1. Where the middle half of a
        feature is one value, its standard deviation stands in.

        Args:
            rows: [n, k], not finite where missing.
            as_of: [n] µs UTC.
            bins: parts of the day.
            shrinkage: how many values weigh as much as the whole day.
        """
        values = np.where(np.isfinite(rows), rows, np.nan).astype(np.float64)
        k = values.shape[1]
        of_day = _part(as_of, bins)
        centre, scale = np.zeros((bins, k)), np.ones((bins, k))
        for j in range(k):
            known = np.isfinite(values[:, j])
            if not known.any():
                continue
            day_centre, day_scale = _location(values[known, j])
            day_scale = day_scale or 1.0
            for part in range(bins):
                of_part = values[known & (of_day == part), j]
                weight = len(of_part) / (len(of_part) + shrinkage) if len(of_part) else 0.0
                middle, width = _location(of_part) if len(of_part) else (day_centre, day_scale)
                centre[part, j] = weight * middle + (1 - weight) * day_centre
                # one value, or equal ones, have no width to learn from
                scale[part, j] = weight * width + (1 - weight) * day_scale if width else day_scale
        return cls(centre, scale)

    def transform(
        self, rows: npt.NDArray[np.floating[Any]], as_of: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Normalised rows, [n, k] like the given ones; what is missing stays NaN."""
        part = _part(as_of, len(self.centre))
        return (np.where(np.isfinite(rows), rows, np.nan) - self.centre[part]) / self.scale[part]

    def to_constants(self) -> dict[str, list[list[float]]]:
        """The two tables, for a card or a file."""
        return {"centre": self.centre.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_constants(cls, constants: dict[str, list[list[float]]]) -> Self:
        """What `to_constants` wrote."""
        return cls(np.array(constants["centre"]), np.array(constants["scale"]))


def _part(as_of: npt.NDArray[np.int64], bins: int) -> npt.NDArray[np.int64]:
    return np.asarray(as_of % DAY_US * bins // DAY_US, dtype=np.int64)


def _location(values: Floats) -> tuple[float, float]:
    """Median and a standard deviation's worth of interquartile range, 0 where the values do not vary; [n >= 1]."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    width = (high - low) / _NORMAL_IQR
    return float(middle), float(width if width > 0 else values.std())
