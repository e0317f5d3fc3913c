CREATE TABLE IF NOT EXISTS liquidations
(
    timestamp DateTime64(6, 'UTC') COMMENT 'exchange event time' CODEC(GCD, Delta(8), ZSTD(1)),
    exchange LowCardinality(String),
    market_type LowCardinality(String),
    symbol LowCardinality(String),
    side LowCardinality(String) COMMENT 'of the liquidation order: sell closes a long',
    price Decimal(18, 8) CODEC(GCD, ZSTD(1)),
    quantity Decimal(18, 8) CODEC(GCD, ZSTD(1)),
    liquidation_time DateTime64(6, 'UTC') CODEC(GCD, Delta(8), ZSTD(1)),
    received_at Nullable(DateTime64(6, 'UTC')) COMMENT 'recorder clock; may run slow: never used without the event time' CODEC(GCD, Delta(8), ZSTD(1)),
    known_at DateTime64(6, 'UTC') COMMENT 'when this system could have used the row: see seeds/source_availability.csv' CODEC(GCD, Delta(8), ZSTD(1)),
    data_source LowCardinality(String),
    created_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(GCD, Delta(8), ZSTD(1)),
    CONSTRAINT known_market_type CHECK market_type IN ('spot', 'linear', 'inverse', 'option'),
    CONSTRAINT not_known_before_it_happened CHECK known_at >= timestamp,
    CONSTRAINT known_side CHECK side IN ('buy', 'sell')
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(timestamp)
ORDER BY (exchange, market_type, symbol, timestamp, side, price, quantity)
SETTINGS non_replicated_deduplication_window = 10000;
