"""The map of trades by price and time (trade_heatmap) and clusters of trades (trade_clusters), from their
definitions, with dense arrays and plain loops. NaN stands for NULL; one value per bucket.

Source: Ester, Kriegel, Sander & Xu (1996), A density-based algorithm for discovering clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from .clock import SECOND_US, Bucket, Trade
from .features import NULL, Columns, Floats, Ints

SLICES: Final = 30
SLICE_US: Final = 10 * SECOND_US
HALF: Final = 25
CLUSTER_TRADES: Final = 200
SCALES: Final = (5.0, 10.0, 0.2)  # seconds, bps, log quantity
MIN_TRADES: Final = 3


def trade_heatmap(buckets: Sequence[Bucket], ordered: Sequence[Trade], mid_close: Floats) -> Columns:
    """The heatmap as of each bucket's end. ordered: `clock.on_time` of the trades; mid_close: shape (n,).

    Cells: SLICES slices of SLICE_US (since the epoch, up to the bucket end's own) by 2 HALF price cells of 1 bp
    of log price, HALF below the one with the mid and it and HALF - 1 above. Trades: of this bucket and those
    before. x: middle of a price cell less the log mid, in bps.
    """
    names = (
        *(f"heatmap_{side}_{what}_bps" for side in ("buy", "sell") for what in ("centre", "spread")),
        *("heatmap_centre_distance_bps", "heatmap_entropy", "heatmap_drift_bps_per_s"),
        *("heatmap_delta_time_gradient", "heatmap_delta_price_gradient"),
    )
    out = {name: np.full(len(buckets), NULL) for name in names}
    for b, bucket in enumerate(buckets):
        if math.isnan(mid_close[b]):
            continue
        log_mid = 1e4 * math.log(mid_close[b])
        last = bucket.bucket_ts_end // SLICE_US
        grids = {"buy": np.zeros((SLICES, 2 * HALF)), "sell": np.zeros((SLICES, 2 * HALF))}
        for trade in ordered[: bucket.first_index + bucket.trade_count]:
            i = trade.timestamp // SLICE_US - last + SLICES - 1
            j = math.floor(1e4 * math.log(trade.price_e8 / 10**8)) - math.floor(log_mid) + HALF
            if i >= 0 and 0 <= j < 2 * HALF:
                grids[trade.side][i, j] += trade.quantity_e8
        x = math.floor(log_mid) - HALF + np.arange(2 * HALF) + 0.5 - log_mid
        t = np.arange(SLICES) * SLICE_US / SECOND_US
        for side, grid in grids.items():
            weights = grid.sum(axis=0)
            if weights.sum() > 0:
                centre = np.average(x, weights=weights)
                out[f"heatmap_{side}_centre_bps"][b] = centre
                out[f"heatmap_{side}_spread_bps"][b] = math.sqrt(
                    np.average((x - centre) ** 2, weights=weights)
                )
        total = grids["buy"] + grids["sell"]
        if total.sum() == 0:
            continue
        share = total[total > 0] / total.sum()
        out["heatmap_entropy"][b] = -math.fsum(share * np.log(share))
        net = (grids["buy"] - grids["sell"]) / total.sum()
        out["heatmap_delta_time_gradient"][b] = np.polyfit(t, net.sum(axis=1), 1)[0]
        out["heatmap_delta_price_gradient"][b] = np.polyfit(x, net.sum(axis=0), 1)[0]
        if np.count_nonzero(total.sum(axis=1)) > 1:
            tt, xx = np.meshgrid(t, x, indexing="ij")
            away = tt - np.average(tt, weights=total)
            slope = (total * away * (xx - np.average(xx, weights=total))).sum() / (total * away**2).sum()
            out["heatmap_drift_bps_per_s"][b] = slope
    out["heatmap_centre_distance_bps"] = out["heatmap_buy_centre_bps"] - out["heatmap_sell_centre_bps"]
    return out


def dbscan(points: Floats, min_points: int) -> tuple[Ints, Ints]:
    """Labels (-1: noise) and neighbour counts, shape (n,), of points (n, d) with a reach of 1; by the book."""
    near = np.array([np.sqrt(((points - p) ** 2).sum(axis=1)) <= 1 for p in points])
    counts = near.sum(axis=1)
    labels = np.full(len(points), -1)
    clusters = 0
    for seed in range(len(points)):
        if labels[seed] >= 0 or counts[seed] < min_points:
            continue
        queue = [seed]
        labels[seed] = clusters
        while queue:
            p = queue.pop()
            if counts[p] < min_points:
                continue
            for q in np.flatnonzero(near[p]):
                if labels[q] < 0:
                    labels[q] = clusters
                    queue.append(int(q))
        clusters += 1
    return labels, counts


def cluster_features(
    times_us: Sequence[int], prices: Sequence[float], quantities: Sequence[float], is_buy: Sequence[bool]
) -> dict[str, float]:
    """What `trade_clusters` says of trades in order, all shape (n,)."""
    q = np.array(quantities)
    points = np.array(
        [
            (
                (t - times_us[-1]) / 1e6 / SCALES[0],
                1e4 * (p / prices[-1] - 1) / SCALES[1],
                math.log(v) / SCALES[2],
            )
            for t, p, v in zip(times_us, prices, quantities, strict=True)
        ]
    )
    labels, counts = dbscan(points, MIN_TRADES)
    found: dict[str, float] = {
        "trade_cluster_count": labels.max() + 1,
        "trade_cluster_share": float(np.mean(labels >= 0)),
        "trade_cluster_density": NULL,
        "trade_cluster_largest_trades": 0,
        "trade_cluster_largest_volume_share": NULL,
        "trade_cluster_largest_buy_share": NULL,
        "trade_cluster_largest_sell_share": NULL,
    }
    if labels.max() < 0:
        return found
    sizes = [int((labels == c).sum()) for c in range(labels.max() + 1)]
    largest = labels == sizes.index(max(sizes))
    bought = math.fsum(q[largest & np.array(is_buy)]) / math.fsum(q[largest])
    return found | {
        "trade_cluster_density": float(counts[labels >= 0].mean()),
        "trade_cluster_largest_trades": max(sizes),
        "trade_cluster_largest_volume_share": math.fsum(q[largest]) / math.fsum(q),
        "trade_cluster_largest_buy_share": bought,
        "trade_cluster_largest_sell_share": 1 - bought,
    }


def trade_clusters(buckets: Sequence[Bucket], ordered: Sequence[Trade]) -> Columns:
    """Clusters among the last CLUSTER_TRADES trades as of each bucket's end."""
    rows = []
    for bucket in buckets:
        end = bucket.first_index + bucket.trade_count
        trades = ordered[max(0, end - CLUSTER_TRADES) : end]
        rows.append(
            cluster_features(
                [t.timestamp for t in trades],
                [t.price_e8 / 10**8 for t in trades],
                [t.quantity_e8 / 10**8 for t in trades],
                [t.side == "buy" for t in trades],
            )
        )
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}
