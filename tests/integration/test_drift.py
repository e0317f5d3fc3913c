"""Drift and the days of predictions, against numpy, scipy and the metrics of training."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import pytest
from scipy import stats

from python_udfs.scorer.relation import Instrument
from python_udfs.settings import Settings
from python_udfs.training.metrics import expected_calibration_error, rank_ic
from tests.health import create_relations, insert, key
from tests.oracles import health as oracle
from tests.support import dbt, execute, query

NOW: Final = datetime(2026, 1, 19, 0, 0, 30, tzinfo=UTC)
ENDS: Final = NOW - timedelta(seconds=30)  # the last whole step
HOUR: Final = timedelta(hours=1)
N: Final = 240  # buckets of 15 s an hour
ONE: Final = Instrument("x", "spot", "ONE")
TWO: Final = Instrument("x", "linear", "TWO")
MODEL: Final = ("m", "abc")
VARS: Final = {
    "health_now": NOW.isoformat(),
    "drift_window_s": 3600,
    "drift_step_s": 60,
    "drift_min_rows": 100,
}
SELECT: Final = "scored_buckets prediction_days drift_spans drift_bins feature_drift prediction_drift"
# hours before the end: training, a gap, the reference week, the current one
SPANS: Final = {"training": 4, "week": 2, "current": 1}

Sample = dict[tuple[str, Instrument, str], np.ndarray[Any, Any]]


def features(rng: np.random.Generator, span: str) -> dict[str, list[float | None]]:
    """Continuous, with ties, a flag, hardly ever there, constant, and now and then not a number."""
    shift = {"training": 0.0, "week": 0.2, "current": 0.5}[span]
    odd = rng.normal(size=N)
    odd[::7] = np.nan
    odd[::11] = np.inf
    return {
        "spread_bps_close": list(rng.normal(shift, 1, N)),
        "kyle_lambda": [float(x) for x in rng.poisson(3 + 3 * shift, N)],
        "jump": [float(x < 0.05 + shift / 4) for x in rng.random(N)],
        "amihud": [1.0 if i < 50 else None for i in range(N)],
        "vpin": [0.5] * N,
        "ofi": list(odd),
        "mid_close": list(rng.normal(100 + 50 * shift, 1, N)),
    }


@pytest.fixture(scope="module")
def samples(module_store: Settings) -> Iterator[Sample]:
    """Finite values by (span, instrument, feature); the models have run on them."""
    rng = np.random.default_rng(11)
    create_relations()
    found: Sample = {}
    for span, hours in SPANS.items():
        for instrument in (ONE, TWO):
            columns = features(rng, span)
            start = ENDS - hours * HOUR
            insert(
                "feature_vector_v2",
                [
                    key(instrument)
                    | {
                        "bucket_id": int(start.timestamp()) * 100_000 + i,
                        "bucket_ts_start": start + 15 * i * timedelta(seconds=1),
                        "bucket_ts_end": start + 15 * (i + 1) * timedelta(seconds=1),
                    }
                    | {name: values[i] for name, values in columns.items()}
                    for i in range(N)
                ],
            )
            for name, values in columns.items():
                array = np.array([np.nan if v is None else v for v in values])
                found[span, instrument, name] = array[np.isfinite(array)]
    _predict(rng, found)
    dbt("build", "--exclude-resource-type", "test", "unit_test", select=f"feature_catalog {SELECT}", **VARS)
    yield found


def _predict(rng: np.random.Generator, found: Sample) -> None:
    """A champion that scored the week and the current hour, with labels for most of it."""
    card = (
        '{"label": "label_cls_3", "window": 1, "features": [], "classes": [-1, 0, 1], '
        f'"training_first_as_of": "{(ENDS - 4 * HOUR + 15 * timedelta(seconds=1)).isoformat()}", '
        f'"training_last_as_of": "{(ENDS - 3 * HOUR).isoformat()}"}}'
    )
    name, version = MODEL
    model = {"model_name": name, "model_version": version}
    insert("models", [model | {"available": True, "card": card, "who": "", "at": ENDS}], layer="serving")
    insert(
        "scored_models", [model | {"classes": [-1, 0, 1], "relation": "feature_vector_v2"}], layer="serving"
    )
    deployed = {
        "sequence": 1,
        "at": ENDS,
        "action": "promote",
        "champion_name": name,
        "champion_version": version,
    }
    insert("deployments", [deployed], layer="serving")
    for span in ("week", "current"):
        for instrument in (ONE, TWO):
            start, end = ENDS - SPANS[span] * HOUR, timedelta(seconds=15)
            probabilities = rng.dirichlet([2, 2, 2 + (span == "current")], size=N).astype(np.float32)
            wanted = rng.choice([-1, 0, 1], size=N)
            rows, labels = [], []
            for i, p in enumerate(probabilities):
                at = {
                    "bucket_id": int(start.timestamp()) * 100_000 + i,
                    "bucket_ts_end": start + (i + 1) * end,
                }
                row = key(instrument) | at | model | {"role": "champion", "total_us": 1000}
                said = {
                    "probabilities": p.tolist(),
                    "signal": int(wanted[i]),
                    "predicted_at": at["bucket_ts_end"],
                }
                # scored again a second later, otherwise: only the first counts
                again = {
                    "probabilities": p[::-1].tolist(),
                    "signal": 0,
                    "predicted_at": at["bucket_ts_end"] + timedelta(seconds=1),
                }
                rows += [row | said, row | again]
                came = int(rng.choice([-1, 0, 1], p=p.astype(float) / p.astype(float).sum()))
                known = i % 5 != 0
                labels.append(
                    key(instrument)
                    | at
                    | {"bucket_ts_start": start + i * end}
                    | {
                        "label_cls_3": came if known else None,
                        "label_ret_ps_3": came * float(rng.choice([1e-5, 2e-5])) if known else None,
                    }
                )
            insert("predictions", rows, layer="serving")
            insert("bucket_labels", labels)
            found[span, instrument, "m:abc"] = probabilities.astype(np.float64) @ [-1, 0, 1]
            found[span, instrument, "probabilities"] = probabilities.astype(np.float64)
            found[span, instrument, "signals"] = wanted
            found[span, instrument, "came"] = np.array(
                [np.nan if x["label_cls_3"] is None else x["label_cls_3"] for x in labels]
            )
            found[span, instrument, "returns"] = np.array(
                [np.nan if x["label_ret_ps_3"] is None else x["label_ret_ps_3"] for x in labels]
            )


def compared(table: str, name: str) -> dict[tuple[str, Instrument, str], dict[str, Any]]:
    return {
        (r["reference"], Instrument(r["exchange"], r["market_type"], r["symbol"]), r["name"]): r
        for r in query(f"select *, {name} as name from {table}")
    }


def test_psi_and_ks_are_those_of_their_formulas(samples: Sample) -> None:
    rows = compared("feature_drift", "feature") | compared(
        "prediction_drift", "concat(model_name, ':', model_version)"
    )
    names = {name for span, _, name in samples if span == "current"} - {
        "probabilities",
        "signals",
        "came",
        "returns",
    }
    expected = {
        (reference, instrument, name)
        for reference in ("training", "week")
        for instrument in (ONE, TWO)
        # too few values, or never scored
        for name in names - {"amihud"}
        if (reference, instrument, name) in samples
    }
    # every other column of the vector that is not NULL by default is 0 throughout
    assert expected <= rows.keys()
    assert not [k for k, r in rows.items() if k not in expected and r["psi"] + r["ks"] > 1e-9]
    assert not [k for k in rows if k[2] == "amihud"]
    for at in expected:
        reference, current = samples[at], samples["current", *at[1:]]
        row = rows[at]
        assert (row["reference_known"], row["current_known"]) == (len(reference), len(current))
        assert row["current_counts"] == oracle.counts(current, oracle.edges(reference)).tolist(), at
        assert row["psi"] == pytest.approx(oracle.psi(reference, current), rel=1e-9, abs=1e-12), at
        statistic = stats.ks_2samp(reference, current, method="asymp").statistic
        assert row["ks"] == pytest.approx(statistic, abs=1e-12), at
        n = len(reference) * len(current) / (len(reference) + len(current))
        p_value = stats.kstwobign.sf(statistic * np.sqrt(n)) if statistic else 1.0
        assert row["ks_p_value"] == pytest.approx(p_value, rel=1e-3, abs=1e-9), at
    # what moved is seen to have moved, and a price is known to be one
    assert rows["training", ONE, "spread_bps_close"]["psi"] > 0.1 > rows["training", ONE, "vpin"]["psi"]
    assert {name for (_, _, name), r in rows.items() if r.get("is_price")} >= {"mid_close"}
    assert not rows["week", ONE, "spread_bps_close"]["is_price"]


def test_bins_are_the_deciles_of_the_reference(samples: Sample) -> None:
    rows = query(
        "select * from drift_bins where symbol = 'ONE' and feature in ('spread_bps_close', 'jump', 'ofi', 'm:abc')"
    )
    assert len(rows) == 7
    for row in rows:
        reference = samples[row["reference"], ONE, row["feature"]]
        assert row["edges"] == pytest.approx(oracle.edges(reference), rel=1e-12)
        assert row["counts"] == oracle.counts(reference, oracle.edges(reference)).tolist()
        assert row["known"] == len(reference)


def test_the_days_of_predictions_are_those_of_training(samples: Sample) -> None:
    def pooled(name: str) -> np.ndarray[Any, Any]:
        return np.concatenate([samples[span, i, name] for i in (ONE, TWO) for span in ("week", "current")])

    # the last bucket ends at midnight: the next day
    rows = query("select * from prediction_days order by day")
    assert [r["buckets"] for r in rows] == [4 * N - 2, 2]
    last = np.zeros(4 * N, dtype=bool)
    last[[2 * N - 1, 4 * N - 1]] = True
    came, row = pooled("came"), rows[0]
    known = np.isfinite(came) & ~last
    assert row["labelled"] == known.sum()
    ic = rank_ic(pooled("m:abc")[~last], pooled("returns")[~last])
    assert ic is not None
    assert row["ic"] == pytest.approx(ic, abs=1e-9)
    ece = expected_calibration_error(pooled("probabilities")[known], came[known].astype(np.int8), [-1, 0, 1])
    assert row["ece"] == pytest.approx(ece, abs=1e-9)
    assert sum(row["calibration_buckets"]) == row["labelled"]
    gap = np.abs(np.array(row["calibration_predicted"]) - row["calibration_observed"])
    assert (gap * row["calibration_buckets"]).sum() / row["labelled"] == pytest.approx(ece, abs=1e-9)
    signals = [
        np.concatenate([samples[span, i, "signals"] for span in ("week", "current")])[:-1] for i in (ONE, TWO)
    ]
    traded = sum(oracle.turnover(s) for s in signals)
    assert row["turnover"] == pytest.approx(traded / 2)
    assert row["turnover_per_bucket"] == pytest.approx(traded / (4 * N - 2))


def test_bins_outlive_their_rows_and_are_written_once(samples: Sample) -> None:
    before = {k: r["psi"] for k, r in compared("feature_drift", "feature").items()}
    n = query("select count() as n from drift_bins")[0]["n"]
    execute(
        f"alter table feature_vector_v2 delete where bucket_ts_end <= '{(ENDS - 3 * HOUR):%Y-%m-%d %H:%M:%S}' settings mutations_sync = 2",
        layer="features",
    )
    dbt("run", select="drift_spans drift_bins feature_drift", **VARS)
    after = compared("feature_drift", "feature")
    assert {k: r["psi"] for k, r in after.items()} == before
    assert {r["ks"] is None for (reference, *_), r in after.items() if reference == "training"} == {True}
    assert {r["ks"] is None for (reference, *_), r in after.items() if reference == "week"} == {False}
    assert query("select count() as n from drift_bins") == [{"n": n}]
