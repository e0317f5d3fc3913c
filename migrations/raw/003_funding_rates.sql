CREATE TABLE IF NOT EXISTS funding_rates
(
    timestamp DateTime64(6, 'UTC') COMMENT 'when the rate was published or settled' CODEC(GCD, Delta(8), ZSTD(1)),
    exchange LowCardinality(String),
    market_type LowCardinality(String),
    symbol LowCardinality(String),
    funding_rate Decimal(18, 8) COMMENT 'fraction per funding period, never percent' CODEC(ZSTD(1)),
    funding_time DateTime64(6, 'UTC') COMMENT 'the settlement the rate is for' CODEC(GCD, Delta(8), ZSTD(1)),
    next_funding_time Nullable(DateTime64(6, 'UTC')) CODEC(GCD, Delta(8), ZSTD(1)),
    mark_price Decimal(18, 8) COMMENT '0: not given' CODEC(ZSTD(1)),
    index_price Decimal(18, 8) COMMENT '0: not given' CODEC(ZSTD(1)),
    received_at Nullable(DateTime64(6, 'UTC')) COMMENT 'recorder clock; may run slow: never used without the event time' CODEC(GCD, Delta(8), ZSTD(1)),
    known_at DateTime64(6, 'UTC') COMMENT 'when this system could have used the row: see seeds/source_availability.csv' CODEC(GCD, Delta(8), ZSTD(1)),
    data_source LowCardinality(String),
    created_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(GCD, Delta(8), ZSTD(1)),
    CONSTRAINT known_market_type CHECK market_type IN ('spot', 'linear', 'inverse', 'option'),
    CONSTRAINT not_known_before_it_happened CHECK known_at >= timestamp
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(timestamp)
ORDER BY (exchange, market_type, symbol, timestamp, funding_time)
SETTINGS non_replicated_deduplication_window = 10000;
