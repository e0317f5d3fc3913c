"""Rows of sequence_inputs: the book equals its oracle, the rest is feature_vector's, and appends give the bytes of a rebuild."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import yaml

from python_udfs.errors import UserError
from python_udfs.settings import REPOSITORY, Settings
from python_udfs.training.sequences import read_sequences
from tests.integration.test_order_book import CASES, CONFIG, START, Market, _books, _load, _trades
from tests.oracles import clock, features, order_book, sequence
from tests.oracles.clock import HOUR_US, SECOND_US
from tests.support import Instrument, dbt, execute, query, table_hash, us

FEATURES = [
    "flow_imbalance",
    "trades_per_second",
    "duration_s",
    "mid_return",
    "vpin",
    "rv",
    "jump",
    "active_step_share",
    "print_run_mean",
    "micro_momentum_10_bps",
    "sweep_share_buy",
    "sweep_share_sell",
    "tob_imbalance_mean",
    "microprice_gap_bps",
    "ofi",
    "funding_rate",
    "basis_bps",
    "open_interest_log_change",
    "cointegration_residual_z",
    "realized_volatility_60s",
    "realized_volatility_rank",
    "trade_intensity_rank",
    "volatility_ratio",
]
KEYS = "exchange, market_type, symbol, bucket_id, bucket_ts_start, bucket_ts_end"
SHORT = dict(itertools.islice(CASES.items(), 3, None))  # twelve levels; one; no book; one trade


def _stand_in() -> None:
    """feature_vector_v2 without its hundred models: the contract's columns, filled with numbers that a hash decides."""
    path = REPOSITORY / "dbt_project/models/serving/feature_vector.yml"
    columns = yaml.safe_load(path.read_text())["models"][0]["columns"]
    types = ", ".join(f"{c['name']} {c['data_type']}" for c in columns)
    execute(
        f"create table feature_vector_v2 ({types}) engine = MergeTree order by (exchange, market_type, symbol, bucket_id)",
        layer="features",
    )


def _fill() -> None:
    values = [f"cityHash64(bucket_id, symbol, '{name}') % 1000 / 7" for name in FEATURES]
    execute(
        f"insert into feature_vector_v2 ({KEYS}, {', '.join(FEATURES)}) select {KEYS}, {', '.join(values)} from unified_buckets "
        "where (exchange, market_type, symbol, bucket_id) not in (select exchange, market_type, symbol, bucket_id from feature_vector_v2)",
        layer="features",
    )


@pytest.fixture(scope="module")
def built(module_store: Settings) -> dict[Instrument, Market]:
    """Built in two appends, in order of knowledge."""
    r = random.Random(7)
    data: dict[Instrument, Market] = {}
    for instrument, (n, _, levels, unit, has_book) in SHORT.items():
        trades = _trades(r, n)
        data[instrument] = (
            trades,
            list(_books(r, [t.timestamp for t in trades], levels, unit)) if has_book else [],
        )
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [("*", "*", "*", "volume", "hour", 30, 5, 5, 5, 5, 50, 20, 50, 24, 10**6, "")],
        layer="features",
    )
    _stand_in()
    end = max(trades[-1].timestamp for trades, _ in data.values()) + HOUR_US
    for low, high in itertools.pairwise([0, START + 31 * SECOND_US, end]):
        for instrument, market in data.items():
            _load(instrument, market, low, high)
        dbt("run", select="+closing_book")
        _fill()
        dbt("run", select="sequence_inputs")
    return data


@pytest.mark.parametrize("instrument", SHORT, ids="-".join)
def test_the_book_equals_the_oracle(built: dict[Instrument, Market], instrument: Instrument) -> None:
    trades, books = built[instrument]
    end = max(trades[-1].timestamp for trades, _ in built.values()) + HOUR_US
    _, ends = features.bounds(clock.buckets(trades, CONFIG, watermark=end))
    states = order_book.kept(books)
    want = [sequence.book_columns(order_book.close(states, int(e))) for e in ends]
    names = list(want[0])
    got = query(
        f"select {', '.join(names)} from sequence_inputs_v1 "
        "where (exchange, market_type, symbol) = (%(x)s, %(m)s, %(y)s) order by bucket_id",
        **dict(zip("xmy", instrument, strict=True)),
    )
    assert len(got) == len(want)
    np.testing.assert_allclose(
        np.array([[r[n] for n in names] for r in got], dtype=float),  # None becomes NaN
        np.array([list(w.values()) for w in want]),
        rtol=1e-9,
        atol=1e-9,
    )


def test_the_cases_reach_the_edges(built: dict[Instrument, Market]) -> None:
    [row] = query(
        "select countIf(bid_gap_bps_1 is null) as dead, countIf(bid_gap_bps_10 is null and ask_gap_bps_3 is not null) as short, "
        "countIf(bid_gap_bps_10 is not null) as full from sequence_inputs_v1"
    )
    assert all(row.values()), row


def test_the_features_are_those_of_the_feature_vector(built: dict[Instrument, Market]) -> None:
    both = ", ".join(f"countIf(s.{n} is distinct from f.{n}) as {n}" for n in FEATURES)
    [row] = query(
        f"select count() as n, {both} from sequence_inputs_v1 as s full join feature_vector_v2 as f using (exchange, market_type, symbol, bucket_id)"
    )
    assert row.pop("n") == query("select count() as n from unified_buckets")[0]["n"] > 50
    assert set(row.values()) == {0}
    columns = query(
        "select name from system.columns where database = currentDatabase() and table = 'sequence_inputs_v1' and position > 46"
    )
    assert [c["name"] for c in columns] == FEATURES


def test_appends_ranged_rebuilds_and_a_full_refresh_give_the_same_bytes(
    built: dict[Instrument, Market],
) -> None:
    appended = table_hash("sequence_inputs_v1")
    for day in ("2026-01-05", "2026-01-04"):
        dbt("run", select="sequence_inputs", start=day, end=day)
    assert table_hash("sequence_inputs_v1") == appended
    dbt("run", select="sequence_inputs", full_refresh=True)
    assert table_hash("sequence_inputs_v1") == appended


def test_windows_equal_a_loop_over_the_rows(built: dict[Instrument, Market]) -> None:
    execute(
        "create or replace table training_set engine = MergeTree order by bucket_id as select exchange, market_type, symbol, bucket_id, "
        "bucket_ts_end, toNullable(toInt8(bucket_id % 3) - 1) as label_cls_3, toNullable(bucket_id % 7 / 7) as label_ret_ps_3, "
        "if(bucket_id % 5 = 0, null, bucket_ts_end + toIntervalSecond(3)) as label_known_at_3 from unified_buckets",
        layer="features",
    )
    gap_s, length = 0.5, 8
    data = read_sequences("label_cls_3", window=length, max_gap_s=gap_s)
    rows = query(
        f"select concat(exchange, ':', market_type, ':', symbol) as i, bucket_id, {us('bucket_ts_start')} as s, {us('bucket_ts_end')} as e, "
        "s.* except (exchange, market_type, symbol, bucket_id, bucket_ts_start, bucket_ts_end) "
        "from sequence_inputs_v1 as s order by exchange, market_type, symbol, bucket_id"
    )
    names = [c.name for c in data.contract]
    inputs = np.array([[r[n] for n in names] for r in rows], dtype=np.float32)
    keys = ([r["i"] for r in rows], [r["s"] for r in rows], [r["e"] for r in rows])
    labelled = sorted(
        (i for i in range(len(rows)) if rows[i]["bucket_id"] % 5),
        key=lambda i: (rows[i]["e"], *rows[i]["i"].split(":"), rows[i]["bucket_id"]),
    )
    assert len(data.as_of) == len(labelled) > 50
    want = np.stack(
        [sequence.window(inputs, *keys, row=i, length=length, gap=round(gap_s * 1e6)) for i in labelled]
    )
    np.testing.assert_array_equal(data.windows(np.arange(len(labelled))), want)
    assert data.classes.tolist() == [rows[i]["bucket_id"] % 3 - 1 for i in labelled]
    assert [data.instruments[i] for i in data.instrument] == [rows[i]["i"] for i in labelled]
    silences = sum(
        a == b and s - e > gap_s * 1e6
        for a, b, s, e in zip(keys[0], keys[0][1:], keys[1][1:], keys[2], strict=False)
    )
    assert silences > 0
    assert len(set(keys[0])) == len(SHORT)

    with pytest.raises(UserError, match="no class label 'label_cls_9'"):
        read_sequences("label_cls_9")
    with pytest.raises(UserError, match="not a numeric column of sequence_inputs_v1: kyle_lambda"):
        read_sequences("label_cls_3", ["vpin", "kyle_lambda"])
    execute(
        "alter table sequence_inputs_v1 delete where symbol = 'ONE' settings mutations_sync = 1",
        layer="features",
    )
    with pytest.raises(UserError, match=r"gamma:spot:ONE.*run `make build`"):
        read_sequences("label_cls_3")
