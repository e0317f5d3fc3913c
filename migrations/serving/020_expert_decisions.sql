-- One row per version of a human expert's decision. A correction is a row of the same decision_id with a later entered_at; nothing is
-- replaced or merged away: which version was there before the outcome was known decides what may be scored.
CREATE TABLE IF NOT EXISTS expert_decisions
(
    decision_id String COMMENT 'sha256 of expert, instrument, decided_at and horizon, first 32 hex digits',
    expert LowCardinality(String),
    exchange LowCardinality(String),
    market_type LowCardinality(String),
    symbol LowCardinality(String),
    decided_at DateTime64(6, 'UTC') COMMENT 'event time: when the expert decided',
    entered_at DateTime64(6, 'UTC') COMMENT 'knowledge time: when it was written down',
    entered_at_source Enum8('clock' = 1, 'file' = 2) COMMENT 'clock: seen here; file: the file says so',
    intent Enum8('sell' = -1, 'hold' = 0, 'buy' = 1),
    size Nullable(Float64) COMMENT 'base coin, or contracts for inverse',
    confidence Nullable(Float64) COMMENT '0 to 1',
    horizon LowCardinality(String) COMMENT 'suffix of the label: 3 is three buckets, 30s thirty seconds',
    rationale String CODEC(ZSTD(3)),
    outcome String CODEC(ZSTD(3)) COMMENT 'what the expert says came of it; empty: nothing said',
    file String COMMENT 'empty: entered by hand',
    line UInt64 COMMENT '1-based, where the record begins',
    load_id String COMMENT 'sha256 of the bytes of the file; empty: entered by hand',
    created_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (decision_id, entered_at);
