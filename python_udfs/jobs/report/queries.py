"""The SQL of the report. Each function returns one complete query, run and shown as it stands.

All aggregation happens here, in the database; Python gets at most some thousand rows.
"""

from __future__ import annotations

from textwrap import dedent

from python_udfs.db import quote
from python_udfs.settings import Layer, settings

Instrument = tuple[str, str, str]  # exchange, market_type, symbol

DURATION_BINS_PER_DECADE = 8
LATENCY_BINS_PER_DECADE = 10
FEATURE_BINS = 36
FEATURE_ROWS = 200_000
SHORTEST_S = 0.001  # durations below are counted in the first bin


def _table(layer: Layer, name: str) -> str:
    return f"{settings().database(layer)}.{name}"


def _sql(text: str) -> str:
    return dedent(text).strip()


def _is(instrument: Instrument) -> str:
    return f"(exchange, market_type, symbol) = ({', '.join(map(quote, instrument))})"


def bucket_counts() -> str:
    """One row per instrument: how many buckets and until when, and the newest feature row."""
    return _sql(f"""
        select
            b.exchange as exchange,
            b.market_type as market_type,
            b.symbol as symbol,
            count() as buckets,
            sum(b.trade_count) as bucket_trades,
            toUnixTimestamp64Micro(min(b.bucket_ts_start)) as first_us,
            toUnixTimestamp64Micro(max(b.bucket_ts_end)) as last_us,
            toUnixTimestamp64Micro(any(f.last_end)) as feature_us
        from {_table("features", "unified_buckets")} as b
        left join (
            select exchange, market_type, symbol, toNullable(max(bucket_ts_end)) as last_end
            from {_table("features", "feature_vector_v1")}
            group by exchange, market_type, symbol
        ) as f
            on b.exchange = f.exchange
            and b.market_type = f.market_type
            and b.symbol = f.symbol
        group by exchange, market_type, symbol
        order by bucket_trades desc, exchange, market_type, symbol
        settings join_use_nulls = 1
    """)


def trade_counts() -> str:
    """One row per instrument: trades, those too late for the clock, and the span of event time."""
    return _sql(f"""
        select
            exchange,
            market_type,
            symbol,
            count() as trades,
            countIf(not is_on_time) as late_trades,
            toUnixTimestamp64Micro(min(timestamp)) as first_us,
            toUnixTimestamp64Micro(max(timestamp)) as last_us
        from {_table("features", "stg_trades")}
        group by exchange, market_type, symbol
        order by trades desc, exchange, market_type, symbol
    """)


def quarantine() -> str:
    """One row per kind, source and reason: the lines that were not loaded."""
    return _sql(f"""
        select
            kind,
            data_source,
            reason_code,
            count() as lines,
            argMin(file, (file, line)) as example_file,
            argMin(line, (file, line)) as example_line,
            argMin(reason, (file, line)) as example_reason
        from {_table("hot", "quarantine")} final
        group by kind, data_source, reason_code
        order by lines desc, kind, data_source, reason_code
    """)


def units(instrument: Instrument) -> str:
    """At most one row: what the instrument's quantities and prices are counted in."""
    return _sql(f"""
        select
            if(contract_value = 1, toString(base_asset), 'contracts') as quantity_unit,
            toString(quote_asset) as price_unit
        from {_table("features", "instruments")}
        where {_is(instrument)}
    """)


def loads() -> str:
    """One row: how many loads there were, and when the last one ended."""
    return _sql(f"""
        select count() as loads, toUnixTimestamp64Milli(max(finished_at)) * 1000 as last_us
        from {_table("hot", "loads")} final
    """)


def stretch(instrument: Instrument, seconds: float, at_most: int) -> str:
    """The buckets that end in the instrument's last `seconds`, the newest `at_most` of them, in order."""
    return _sql(f"""
        select
            toUnixTimestamp64Micro(b.bucket_ts_start) as start_us,
            toUnixTimestamp64Micro(b.bucket_ts_end) as end_us,
            b.bucket_id as bucket_id,
            b.cut_trigger as cut_trigger,
            b.trade_count as trade_count,
            toFloat64(b.volume) as volume,
            toFloat64(b.q_bucket) as q_bucket,
            f.vwap as vwap,
            f.flow_imbalance as flow_imbalance,
            f.ofi as ofi
        from (
            select *
            from {_table("features", "unified_buckets")}
            where {_is(instrument)}
            order by bucket_id desc
            limit {at_most}
        ) as b
        left join {_table("features", "feature_vector_v1")} as f
            on b.exchange = f.exchange
            and b.market_type = f.market_type
            and b.symbol = f.symbol
            and b.bucket_id = f.bucket_id
        where b.bucket_ts_end > (
            select max(bucket_ts_end) - toIntervalMillisecond({round(seconds * 1000)})
            from {_table("features", "unified_buckets")}
            where {_is(instrument)}
        )
        order by bucket_id
        settings join_use_nulls = 1
    """)


def mids(instrument: Instrument, start_us: int, end_us: int, width_us: int) -> str:
    """One row per bin of `width_us` with book updates: the last mid known in it, and its range."""
    return _sql(f"""
        select
            intDiv(toUnixTimestamp64Micro(known_at) - {start_us}, {width_us}) as bin,
            argMax(mid, (known_at, timestamp, last_update_id)) as at_end,
            min(mid) as low,
            max(mid) as high
        from {_table("features", "book_updates")}
        where
            {_is(instrument)}
            and known_at >= fromUnixTimestamp64Micro({start_us}, 'UTC')
            and known_at < fromUnixTimestamp64Micro({end_us}, 'UTC')
            and mid is not null
        group by bin
        order by bin
    """)


def traded(instrument: Instrument, ids: tuple[int, int], start_us: int, width_us: int) -> str:
    """One row per bin of `width_us` with trades of the buckets `ids[0]` to `ids[1]`: prices, taker volume."""
    return _sql(f"""
        select
            intDiv(toUnixTimestamp64Micro(timestamp) - {start_us}, {width_us}) as bin,
            toFloat64(argMax(price, (bucket_id, position))) as at_end,
            toFloat64(min(price)) as low,
            toFloat64(max(price)) as high,
            toFloat64(sumIf(quantity, side = 'buy')) as bought,
            toFloat64(sumIf(quantity, side = 'sell')) as sold
        from {_table("features", "bucket_trades")}
        where {_is(instrument)} and bucket_id between {ids[0]} and {ids[1]}
        group by bin
        order by bin
    """)


def durations() -> str:
    """One row per instrument and order-of-magnitude bin of bucket duration."""
    return _sql(f"""
        select
            exchange,
            market_type,
            symbol,
            toInt32(floor(log10(greatest(duration_s, {SHORTEST_S})) * {DURATION_BINS_PER_DECADE})) as bin,
            count() as buckets
        from {_table("features", "unified_buckets")}
        group by exchange, market_type, symbol, bin
        order by exchange, market_type, symbol, bin
    """)


def triggers() -> str:
    """One row per instrument: quantiles of the duration, and what cut its buckets."""
    return _sql(f"""
        select
            exchange,
            market_type,
            symbol,
            count() as buckets,
            quantilesTDigest(0.01, 0.5, 0.99)(duration_s) as duration_quantiles,
            avg(trade_count) as mean_trades,
            countIf(cut_trigger = 'time') as time_cuts,
            countIf(cut_trigger = 'anchor') as anchor_cuts,
            buckets - time_cuts - anchor_cuts as own_cuts,
            arrayStringConcat(
                arraySort(groupUniqArrayIf(toString(cut_trigger), cut_trigger not in ('time', 'anchor'))),
                ', '
            ) as modes
        from {_table("features", "unified_buckets")}
        group by exchange, market_type, symbol
        order by exchange, market_type, symbol
    """)


def columns(table: str) -> str:
    """One row per column of a features table, with what its documentation says."""
    return _sql(f"""
        select name, type, comment
        from system.columns
        where database = {quote(settings().database("features"))} and table = {quote(table)}
        order by position
    """)


def distributions(instrument: Instrument, features: list[str]) -> str:
    """One row per feature: percentiles, NULLs, and the counts of equal bins between p1 and p99."""
    n = FEATURE_BINS
    pairs = ",\n".join(f"                    ({quote(f)}, toNullable(toFloat64(`{f}`)))" for f in features)
    return _sql(f"""
        with
        latest as (
            select *
            from {_table("features", "feature_vector_v1")}
            where {_is(instrument)}
            order by bucket_id desc
            limit {FEATURE_ROWS}
        ),
        -- columns to rows
        named as (
            select named_value.1 as feature, named_value.2 as value
            from latest
            array join
                [
{pairs}
                ] as named_value
        ),
        ranges as (
            select
                feature,
                count() as buckets,
                countIf(value is null) as nulls,
                countIf(not isFinite(value)) as not_finite,
                uniqExactIf(value, isFinite(value)) as values_seen,
                quantilesExactIf(0.01, 0.5, 0.99)(assumeNotNull(value), isFinite(value)) as percentiles,
                percentiles[1] as low,
                percentiles[3] as high
            from named
            group by feature
        )
        select
            r.feature as feature,
            any(r.buckets) as buckets,
            any(r.nulls) as nulls,
            any(r.not_finite) as not_finite,
            any(r.values_seen) as values_seen,
            any(r.percentiles) as percentiles,
            sumForEachIf(
                arrayMap(
                    i -> toUInt32(i = least(floor((n.value - r.low) / (r.high - r.low) * {n}), {n - 1})),
                    range({n})
                ),
                n.value between r.low and r.high and r.low < r.high
            ) as bins
        from named as n
        inner join ranges as r
            on n.feature = r.feature
        group by feature
    """)


def labels(horizons: list[str]) -> str:
    """One row per instrument and horizon: how often the mid went down, stayed, went up, and how far ahead."""
    rows = ",\n".join(
        f"                    ({quote(h)}, label_cls_{h}, "
        f"dateDiff('microsecond', bucket_ts_end, label_known_at_{h}) / 1e6)"
        for h in horizons
    )
    return _sql(f"""
        with
        -- columns to rows
        labelled as (
            select exchange, market_type, symbol, label.1 as horizon, label.2 as class, label.3 as seconds
            from {_table("features", "training_set")}
            array join
                [
{rows}
                ] as label
        )
        select
            exchange,
            market_type,
            symbol,
            horizon,
            count() as buckets,
            countIf(class = -1) as down,
            countIf(class = 0) as flat,
            countIf(class = 1) as up,
            countIf(class is null) as unknown,
            quantileTDigestIf(0.5)(assumeNotNull(seconds), seconds is not null) as seconds_ahead
        from labelled
        group by exchange, market_type, symbol, horizon
        order by exchange, market_type, symbol, horizon
    """)


_REQUESTS = """
        -- a request reads all its instruments at once: its latency counts once
        requests as (
            select
                request_id,
                model_name,
                model_version,
                count() as instruments,
                max(read_us) as read_us,
                max(prepare_us) as prepare_us,
                max(run_us) as run_us,
                max(total_us) as total_us
            from {predictions}
            group by request_id, model_name, model_version
        )"""


def latencies() -> str:
    """One row per model: median and 99th percentile of each part of a request's latency (µs)."""
    parts = ",\n".join(
        f"            quantilesTDigest(0.5, 0.99)({p}_us) as {p}" for p in ("read", "prepare", "run", "total")
    )
    return _sql(f"""
        with{_REQUESTS.format(predictions=_table("serving", "predictions"))}
        select
            model_name,
            model_version,
            count() as requests,
            sum(instruments) as scores,
            max(instruments) as most_scores,
{parts}
        from requests
        group by model_name, model_version
        order by requests desc, model_name, model_version
    """)


def latency_bins() -> str:
    """One row per bin of log10 of a request's total latency (µs); in each the quantiles over all requests."""
    return _sql(f"""
        with{_REQUESTS.format(predictions=_table("serving", "predictions"))},
        overall as (
            select quantilesTDigest(0.5, 0.99)(total_us) as quantiles
            from requests
        )
        select
            toInt32(floor(log10(greatest(r.total_us, 1)) * {LATENCY_BINS_PER_DECADE})) as bin,
            count() as requests,
            any(o.quantiles) as quantiles
        from requests as r
        cross join overall as o
        group by bin
        order by bin
    """)


def staleness() -> str:
    """One row per instrument: how old the scored rows were (ms), how many too old, and the last score."""
    return _sql(f"""
        select
            exchange,
            market_type,
            symbol,
            count() as scores,
            countIf(stale) as stale_scores,
            quantilesTDigest(0.5, 0.99)(age_ms) as age_ms_quantiles,
            toUnixTimestamp64Micro(max(predicted_at)) as last_us,
            argMax(score, predicted_at) as last_score,
            max(missing_features) as most_missing
        from {_table("serving", "predictions")}
        group by exchange, market_type, symbol
        order by exchange, market_type, symbol
    """)
