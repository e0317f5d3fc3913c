"""Exact decimal text to scaled integers, vectorised."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal, InvalidOperation, Overflow
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

SCALE: Final = 8
ONE: Final = 10**SCALE
# Decimal(18, 8): the raw tables' type. Beyond it a value is out of range, not rounded.
LIMIT: Final = 10**18 - 1
_EXACT: Final = Context(prec=200)  # the default of 28 digits would round a long text in silence


def to_e8(texts: Sequence[str] | pa.Array) -> npt.NDArray[np.int64]:
    """Decimal strings, shape (n,), to int64 values times 10**8, shape (n,), exactly.

    Raises:
        ValueError: a text is no plain decimal number, has a non-zero digit past the eighth decimal
            or does not fit Decimal(18, 8). Use `one_to_e8` to find which one.
    """
    array = texts if isinstance(texts, pa.Array) else pa.array(texts, type=pa.string())
    try:
        scaled = pc.cast(array, pa.decimal128(38, 18)).cast(pa.decimal128(18, SCALE))
    except pa.ArrowInvalid as e:
        raise ValueError(str(e)) from e
    if scaled.null_count:
        raise ValueError("an empty value where a number is needed")
    # The low 64 bits of each 128-bit value: exact, as |value| < 10**18.
    words = np.frombuffer(scaled.buffers()[1], dtype="<i8").reshape(-1, 2)
    return words[scaled.offset : scaled.offset + len(scaled), 0].astype(np.int64, copy=True)


def one_to_e8(text: str) -> int:
    """One decimal string to its value times 10**8, exactly.

    Raises:
        ValueError: with the reason, in words fit for a quarantine row.
    """
    try:
        scaled = Decimal(text).scaleb(SCALE, _EXACT)
    except Overflow as e:
        raise ValueError(f"out_of_range: {text} does not fit Decimal(18,8)") from e
    except InvalidOperation as e:
        raise ValueError(f"bad_number: {text!r} is not a number") from e
    if not scaled.is_finite() or "_" in text:  # Decimal reads 1_000; no venue writes it
        raise ValueError(f"bad_number: {text!r} is not a number")
    if abs(scaled) > LIMIT:
        raise ValueError(f"out_of_range: {text} does not fit Decimal(18,8)")
    value = int(scaled)
    if value != scaled:
        raise ValueError(f"out_of_range: {text} has more than {SCALE} decimals")
    return value
