CREATE TABLE IF NOT EXISTS orderbooks
(
    timestamp DateTime64(6, 'UTC') COMMENT 'exchange event time of the update' CODEC(GCD, Delta(8), ZSTD(1)),
    exchange LowCardinality(String),
    market_type LowCardinality(String),
    symbol LowCardinality(String),
    last_update_id UInt64 CODEC(Delta(8), ZSTD(1)),
    bids_count UInt32 CODEC(ZSTD(1)),
    asks_count UInt32 CODEC(ZSTD(1)),
    best_bid_price Decimal(18, 8) COMMENT '0: no bid' CODEC(GCD, ZSTD(1)),
    best_ask_price Decimal(18, 8) COMMENT '0: no ask' CODEC(GCD, ZSTD(1)),
    best_bid_quantity Decimal(18, 8) CODEC(GCD, ZSTD(1)),
    best_ask_quantity Decimal(18, 8) CODEC(GCD, ZSTD(1)),
    bids String COMMENT 'JSON [[price, quantity], ...], best first' CODEC(ZSTD(1)),
    asks String COMMENT 'JSON [[price, quantity], ...], best first' CODEC(ZSTD(1)),
    received_at Nullable(DateTime64(6, 'UTC')) COMMENT 'recorder clock; may run slow: never used without the event time' CODEC(GCD, Delta(8), ZSTD(1)),
    known_at DateTime64(6, 'UTC') COMMENT 'when this system could have used the row: see seeds/source_availability.csv' CODEC(GCD, Delta(8), ZSTD(1)),
    data_source LowCardinality(String),
    created_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(GCD, Delta(8), ZSTD(1)),
    CONSTRAINT known_market_type CHECK market_type IN ('spot', 'linear', 'inverse', 'option'),
    CONSTRAINT not_known_before_it_happened CHECK known_at >= timestamp,
    CONSTRAINT not_crossed CHECK best_bid_price = 0 OR best_ask_price = 0 OR best_bid_price < best_ask_price
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(timestamp)
ORDER BY (exchange, market_type, symbol, timestamp, last_update_id, data_source)
SETTINGS non_replicated_deduplication_window = 10000;
