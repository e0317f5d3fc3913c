"""Clusters of price levels by density."""

from __future__ import annotations

import numpy as np

from python_udfs.functions.registry import Floats, Ints, udf


@udf(
    arguments={
        "prices": "Array(Float64)",
        "volumes": "Array(Float64)",
        "deltas": "Array(Float64)",
        "last_seen": "Array(Int64)",
        "eps_bps": "Float64",
        "min_samples": "Int64",
    },
    returns={
        "price": "Array(Float64)",
        "volume": "Array(Float64)",
        "delta": "Array(Float64)",
        "last_seen": "Array(Int64)",
        "bins": "Array(Int64)",
    },
)
def mp_price_clusters(  # noqa: PLR0917 - SQL passes arguments by place
    prices: Floats, volumes: Floats, deltas: Floats, last_seen: Ints, eps_bps: float, min_samples: int
) -> dict[str, Floats | Ints]:
    """DBSCAN (Ester, Kriegel, Sander & Xu 1996) of price levels on a line, which sorting solves.

    Distances are basis points of the median price. A level with at least `min_samples` levels within `eps_bps`,
    itself counted, is a core; cores no further apart than `eps_bps` are one cluster; any other level within
    `eps_bps` of a core joins that core's cluster (the lower one's where there are two). What is left is not noise
    here, as each level is one by its volume already: it is a cluster of its own.

    Args:
        prices, volumes, deltas: of the levels, shape (n,), any order; prices and volumes above 0.
        last_seen: when each last traded, shape (n,), µs.

    Returns:
        Per cluster, ascending in price, arrays of shape (k,): volume-weighted mean price, sums of volume and delta,
        the newest last_seen, the number of levels.

    Raises:
        ValueError: the arrays differ in length; a price or volume is not above 0; eps_bps or min_samples is not.
    """
    n = len(prices)
    if not len(volumes) == len(deltas) == len(last_seen) == n:
        raise ValueError("prices, volumes, deltas and last_seen differ in length")
    if not (eps_bps > 0 and min_samples > 0):
        raise ValueError(f"eps_bps {eps_bps} and min_samples {min_samples} must be above 0")
    if not ((prices > 0) & (volumes > 0)).all():
        raise ValueError("a price or a volume is not above 0")
    if n == 0:
        nothing, none = np.empty(0), np.empty(0, dtype=np.int64)
        return {"price": nothing, "volume": nothing, "delta": nothing, "last_seen": none, "bins": none}

    order = np.lexsort((last_seen, deltas, volumes, prices))
    price, volume, delta, seen = prices[order], volumes[order], deltas[order], last_seen[order]
    place = (price / np.median(price) - 1) * 1e4
    near = np.abs(place[:, None] - place[None, :]) <= eps_bps
    is_core = near.sum(axis=1) >= min_samples
    core = np.flatnonzero(is_core)
    # cores in order of price: a gap wider than eps starts a cluster
    of_core = np.concatenate([[0], np.cumsum(~near[core[:-1], core[1:]])]) if len(core) else core
    label = np.full(n, -1)
    label[core] = of_core
    for i in np.flatnonzero(~is_core):
        reached = of_core[near[i, core]]
        if len(reached):
            label[i] = reached[0]
    alone = label == -1
    label[alone] = n + np.arange(alone.sum())

    clusters = [label == c for c in dict.fromkeys(label.tolist())]
    found = sorted(
        (
            float((price[own] * volume[own]).sum() / volume[own].sum()),
            float(volume[own].sum()),
            float(delta[own].sum()),
            int(seen[own].max()),
            int(own.sum()),
        )
        for own in clusters
    )
    columns = list(zip(*found, strict=True))
    return {
        "price": np.array(columns[0]),
        "volume": np.array(columns[1]),
        "delta": np.array(columns[2]),
        "last_seen": np.array(columns[3], dtype=np.int64),
        "bins": np.array(columns[4], dtype=np.int64),
    }
