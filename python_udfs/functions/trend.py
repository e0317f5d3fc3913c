"""States of a trend, by a statistical jump model."""

from __future__ import annotations

import numpy as np

from python_udfs.functions.registry import Floats, Ints, udf

_STATES = 3


@udf(
    arguments={
        "short": "Array(Float64)",
        "long": "Array(Float64)",
        "penalty": "Float64",
        "neutral": "Float64",
    },
    returns={"short": "Array(Float64)", "long": "Array(Float64)", "state": "Array(Int64)"},
)
def mp_trend_states(short: Floats, long: Floats, penalty: float, neutral: float) -> dict[str, Floats | Ints]:
    """Fits the centres of a discrete jump model (Nystrup, Lindström, Madsen 2020) to a stretch of the past.

    The fit alone: the states it gives to its own rows have seen the rows after them and are thrown away. Which
    state a later row is in, is told online from the centres.

    Args:
        short, long: shape (n,), the two features of each bucket in order, finite, without a unit.
        penalty: cost of a change of state.
        neutral: a centre whose `long` is nearer to 0 than this is flat.

    Returns:
        The three centres in the order of `long`, and what each is called: 1 up (the highest, if above
        `neutral`), -1 down (the lowest, if below -`neutral`), 0 flat. Named by where they lie: the numbers of a
        fit's clusters mean nothing and would drift. Centres that no row belongs to are left out.

    Raises:
        ValueError: lengths differ, fewer than three rows, a value is not finite, or a parameter is negative.
    """
    from jumpmodels.jump import JumpModel

    rows = np.column_stack([short, long]) if len(short) == len(long) else np.empty((0, 2))
    if len(rows) < _STATES or not np.isfinite(rows).all():
        raise ValueError("short and long must be finite and of one length, at least three")
    if penalty < 0 or neutral < 0:
        raise ValueError("penalty and neutral must not be negative")
    model = JumpModel(n_components=_STATES, jump_penalty=penalty, random_state=0, n_init=5)
    model.fit(rows, sort_by="freq")
    centers = np.asarray(model.centers_, dtype=np.float64)
    centers = centers[np.isfinite(centers).all(axis=1)]
    centers = centers[np.lexsort(centers.T)]
    state = np.zeros(len(centers), dtype=np.int64)
    state[-1] += centers[-1, 1] > neutral
    state[0] -= centers[0, 1] < -neutral
    return {"short": centers[:, 0], "long": centers[:, 1], "state": state}
