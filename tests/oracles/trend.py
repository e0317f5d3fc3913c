"""Trend states from the formulas: a state machine walked bucket by bucket, and the jump model of its own library.

Bulla, Mulvey, Nystrup et al.: package jumpmodels (Shu, Yu, Mulvey 2024), `predict_online` alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from jumpmodels.jump import JumpModel

Floats = npt.NDArray[np.float64]


def straightness(mids: Floats, n: int) -> Floats:
    """Sum over root sum of squares of the last n log steps; nan where one of them is unknown. mids: [m]."""
    out = np.full(len(mids), np.nan)
    for i in range(n, len(mids)):
        steps = [np.log(mids[j] / mids[j - 1]) for j in range(i - n + 1, i + 1)]
        size = np.sqrt(sum(s * s for s in steps))
        out[i] = 0.0 if size == 0 else sum(steps) / size
    return out


def rule_states(trend: Floats, enter: float, leave: float, memory: int) -> list[int | None]:
    """Walks the machine: in, out, and what it was for at most `memory` buckets in a row."""
    state, untold, out = 0, 0, []
    before = np.nan
    for value in trend:
        if np.isnan(value):
            state, untold = 0, 0
        elif abs(value) >= enter:
            state, untold = int(np.sign(value)), 0
        elif abs(value) <= leave or np.isnan(before) or np.sign(before) != np.sign(value):
            state, untold = 0, 0
        else:
            untold += 1
            state = state if untold < memory else 0
        out.append(None if np.isnan(value) else state)
        before = value
    return out


def jump_states(
    rows: Floats,
    hours: npt.NDArray[np.int64],
    *,
    fit: int,
    least: int,
    decode: int,
    penalty: float,
    neutral: float,
    margin: float,
) -> list[int | None]:
    """Refits with the first bucket of an hour, then tells each bucket online. rows: [m, 2] with nan; hours: [m]."""
    model, names, out = None, {}, []
    for i in range(len(rows)):
        if i == 0 or hours[i] > hours[i - 1]:
            past = rows[max(0, i - fit + 1) : i + 1]
            past = past[~np.isnan(past).any(axis=1)]
            if len(past) >= least:
                model = JumpModel(n_components=3, jump_penalty=penalty, random_state=0, n_init=5)
                model.fit(past, sort_by="freq")
                of = model.centers_[:, 1]
                names = dict.fromkeys(range(3), 0)
                if np.nanmax(of) > neutral:
                    names[int(np.nanargmax(of))] = 1
                if np.nanmin(of) < -neutral:
                    names[int(np.nanargmin(of))] = -1
        if model is None or np.isnan(rows[i, 1]):
            out.append(None)
            continue
        last = rows[max(0, i - decode + 1) : i + 1]
        last = last[~np.isnan(last).any(axis=1)]
        told = int(model.predict_online(last)[-1])
        costs = np.zeros(3)
        for x in last:
            costs = np.minimum(costs, costs.min() + penalty) + 0.5 * ((x - model.centers_) ** 2).sum(axis=1)
        close = np.sort(costs)[1] - costs.min() < margin
        out.append(0 if close else names[told])
    return out
