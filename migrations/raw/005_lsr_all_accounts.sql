CREATE TABLE IF NOT EXISTS lsr_all_accounts
(
    timestamp DateTime64(6, 'UTC') COMMENT 'as of when' CODEC(GCD, Delta(8), ZSTD(1)),
    exchange LowCardinality(String),
    market_type LowCardinality(String),
    symbol LowCardinality(String),
    long_account_ratio Decimal(18, 8) COMMENT 'share of accounts that are net long' CODEC(ZSTD(1)),
    short_account_ratio Decimal(18, 8) CODEC(ZSTD(1)),
    period LowCardinality(String),
    received_at Nullable(DateTime64(6, 'UTC')) COMMENT 'recorder clock; may run slow: never used without the event time' CODEC(GCD, Delta(8), ZSTD(1)),
    known_at DateTime64(6, 'UTC') COMMENT 'when this system could have used the row: see seeds/source_availability.csv' CODEC(GCD, Delta(8), ZSTD(1)),
    data_source LowCardinality(String),
    created_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(GCD, Delta(8), ZSTD(1)),
    CONSTRAINT known_market_type CHECK market_type IN ('spot', 'linear', 'inverse', 'option'),
    CONSTRAINT not_known_before_it_happened CHECK known_at >= timestamp
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(timestamp)
ORDER BY (exchange, market_type, symbol, timestamp, period)
SETTINGS non_replicated_deduplication_window = 10000;
