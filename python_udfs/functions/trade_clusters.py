"""Clusters of trades in time, price and size."""

from __future__ import annotations

import numpy as np

from python_udfs.functions.registry import Floats, Ints, udf


@udf(
    arguments={
        "times_us": "Array(Int64)",
        "prices": "Array(Float64)",
        "quantities": "Array(Float64)",
        "is_buy": "Array(Int64)",
        "time_eps_s": "Float64",
        "price_eps_bps": "Float64",
        "size_eps": "Float64",
        "min_trades": "Int64",
    },
    returns={
        "clusters": "Int64",
        "clustered_share": "Float64",
        "density": "Float64",
        "largest_trades": "Int64",
        "largest_volume_share": "Float64",
        "largest_buy_share": "Float64",
        "largest_sell_share": "Float64",
    },
)
def mp_trade_clusters(  # noqa: PLR0917  SQL passes arguments by position
    times_us: Ints,
    prices: Floats,
    quantities: Floats,
    is_buy: Ints,
    time_eps_s: float,
    price_eps_bps: float,
    size_eps: float,
    min_trades: int,
) -> dict[str, float]:
    """DBSCAN (Ester, Kriegel, Sander, Xu 1996) over trades: bursts of like trades, apart from the rest.

    A trade is the point (seconds / time_eps_s, price in bps of the last one / price_eps_bps, ln quantity /
    size_eps); two within distance 1 are neighbours. A trade with at least `min_trades` neighbours, itself among
    them, is a core; cores that are neighbours share a cluster, and another trade beside a core joins it (of
    several clusters: the one whose first core is the earliest). As sklearn.cluster.DBSCAN, in a third of the
    time for 200 points.

    Args:
        times_us, prices, quantities, is_buy: shape (n,), in trade order; prices and quantities above 0.
        time_eps_s, price_eps_bps, size_eps: what counts as near: seconds, bps, log quantity.

    Returns:
        clusters: how many. clustered_share: trades in any of them over n. density: mean number of neighbours,
        itself included, of the clustered trades. largest_*: of the cluster with the most trades (of equals: the
        earliest): its trades, its share of all volume, and the shares of its volume whose taker bought and sold.
        Without a cluster clusters, clustered_share and largest_trades are 0, the others nan.

    Raises:
        ValueError: lengths differ, there is no trade, a price or quantity is not above 0, or a scale is not.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    n = len(times_us)
    if n == 0 or not len(prices) == len(quantities) == len(is_buy) == n:
        raise ValueError("times, prices, quantities and sides must be of one length, above 0")
    if not (min(prices.min(), quantities.min(), time_eps_s, price_eps_bps, size_eps) > 0 and min_trades > 0):
        raise ValueError("prices, quantities and scales must be above 0")
    points = np.column_stack(
        [
            (times_us - times_us[-1]) / (1e6 * time_eps_s),
            (prices / prices[-1] - 1) * (1e4 / price_eps_bps),
            np.log(quantities) / size_eps,
        ]
    )
    first, second = cKDTree(points).query_pairs(1.0, output_type="ndarray").T
    neighbours = np.bincount(first, minlength=n) + np.bincount(second, minlength=n) + 1
    core = neighbours >= min_trades
    both = core[first] & core[second]
    graph = coo_matrix((np.ones(both.sum(), dtype=np.int8), (first[both], second[both])), shape=(n, n))
    _, component = connected_components(graph, directed=False)

    # clusters by their first core; a border trade takes the lowest of its cores' clusters
    _, earliest = np.unique(component[core], return_index=True)
    number = np.full(component.max() + 1, n)
    number[component[core][np.sort(earliest)]] = np.arange(len(earliest))
    label = np.where(core, number[component], n)
    for a, b in ((first, second), (second, first)):
        border = core[a] & ~core[b]
        np.minimum.at(label, b[border], number[component[a[border]]])

    clustered = label < n
    if not clustered.any():
        nothing = dict.fromkeys(
            ("density", "largest_volume_share", "largest_buy_share", "largest_sell_share"), float("nan")
        )
        return {"clusters": 0, "clustered_share": 0.0, "largest_trades": 0, **nothing}
    sizes = np.bincount(label[clustered])
    largest = label == sizes.argmax()
    volume = float(quantities[largest].sum())
    bought = float(quantities[largest & (is_buy != 0)].sum())
    return {
        "clusters": len(sizes),
        "clustered_share": float(clustered.mean()),
        "density": float(neighbours[clustered].mean()),
        "largest_trades": int(sizes.max()),
        "largest_volume_share": volume / float(quantities.sum()),
        "largest_buy_share": bought / volume,
        "largest_sell_share": 1 - bought / volume,
    }
