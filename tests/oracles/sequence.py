"""The book columns of sequence_inputs from their formulas, and a window as a loop would gather it. NaN stands for NULL."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import numpy as np

from tests.oracles.order_book import Sides

LEVELS: Final = 10


def book_columns(book: Sides | None) -> dict[str, float]:
    """Distance in bps and ln(1 + size / mean size) of the ten best levels of both sides."""
    out = {
        f"{side}_{kind}_{i}": math.nan
        for side in ("bid", "ask")
        for kind in ("gap_bps", "size")
        for i in range(1, LEVELS + 1)
    }
    if book is None:
        return out
    shown = [q for side in ("bid", "ask") for q in book.quantities(side)[:LEVELS]]
    mean = sum(shown, Fraction(0)) / len(shown)
    for side in ("bid", "ask"):
        for i, (gap, size) in enumerate(zip(book.distances(side), book.quantities(side), strict=True), 1):
            if i <= LEVELS:
                out[f"{side}_gap_bps_{i}"] = float(gap)
                out[f"{side}_size_{i}"] = math.log(1 + size / mean)
    return out


def window(
    inputs: np.ndarray,
    instrument: list[str],
    start: list[int],
    end: list[int],
    *,
    row: int,
    length: int,
    gap: int,
) -> np.ndarray:
    """The last `length` rows up to `row`: back row by row, until another instrument or a silence over `gap`."""
    out = np.full((length, inputs.shape[1]), np.nan, dtype=np.float32)
    for back in range(length):
        here = row - back
        if here < 0 or instrument[here] != instrument[row]:
            break
        out[length - 1 - back] = inputs[here]
        if here > 0 and start[here] - end[here - 1] > gap:
            break
    return out
