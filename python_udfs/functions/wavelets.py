"""Wavelet energies of a return series."""

from __future__ import annotations

from typing import Final

import numpy as np

from python_udfs.functions.registry import Floats, udf

WAVELET: Final = "db4"
LEVELS: Final = 3
# The signal is continued by itself: the transform is orthogonal, so that the energies add up to the signal's.
MODE: Final = "periodization"


@udf(
    arguments={"signal": "Array(Float64)"},
    returns={
        "approximation": "Float64",
        "detail_3": "Float64",
        "detail_2": "Float64",
        "detail_1": "Float64",
        "snr": "Float64",
    },
)
def mp_wavelet_energy(signal: Floats) -> dict[str, float]:
    """Sums of squared coefficients of the discrete wavelet transform, by level.

    Daubechies' (1992) wavelet of four vanishing moments, three levels. Detail k holds what changes over about
    2**k samples, the approximation what lasts longer.

    Args:
        signal: shape (n,), n a multiple of 8; oldest first.

    Returns:
        approximation, detail_3, detail_2, detail_1: energies in the signal's unit squared; they sum to that of
        the signal. snr: approximation over the sum of the details, nan where that is 0.

    Raises:
        ValueError: n is 0 or no multiple of 8, or a value is not finite.
    """
    import pywt  # type: ignore[import-untyped]

    signal = np.array(signal)  # pywt wants to own its memory
    if len(signal) == 0 or len(signal) % 2**LEVELS:
        raise ValueError(f"{len(signal)} values: a positive multiple of {2**LEVELS} is needed")
    if not np.isfinite(signal).all():
        raise ValueError("a value is not finite")
    approximation, *details = (
        float(np.sum(c * c)) for c in pywt.wavedec(signal, WAVELET, mode=MODE, level=LEVELS)
    )
    noise = sum(details)
    return {
        "approximation": approximation,
        "detail_3": details[0],
        "detail_2": details[1],
        "detail_1": details[2],
        "snr": approximation / noise if noise > 0 else float("nan"),
    }
