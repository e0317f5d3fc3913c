CREATE TABLE IF NOT EXISTS trades
(
    timestamp DateTime64(6, 'UTC') COMMENT 'exchange trade time' CODEC(GCD, Delta(8), ZSTD(1)),
    exchange LowCardinality(String),
    market_type LowCardinality(String),
    symbol LowCardinality(String),
    trade_id String CODEC(ZSTD(3)),
    trade_seq UInt64 MATERIALIZED toUInt64OrZero(if(startsWith(trade_id, 'agg:'), substring(trade_id, 5), trade_id)) COMMENT 'numeric trade id; 0 where the venue has none' CODEC(DoubleDelta, ZSTD(1)),
    price Decimal(18, 8) CODEC(GCD, ZSTD(1)),
    quantity Decimal(18, 8) CODEC(GCD, ZSTD(1)),
    side LowCardinality(String) COMMENT 'of the taker: buy or sell',
    is_maker Bool COMMENT 'the buyer was the maker',
    trade_time DateTime64(6, 'UTC') COMMENT 'as the venue reports it' CODEC(GCD, Delta(8), ZSTD(1)),
    received_at Nullable(DateTime64(6, 'UTC')) COMMENT 'recorder clock; may run slow: never used without the event time' CODEC(GCD, Delta(8), ZSTD(1)),
    known_at DateTime64(6, 'UTC') COMMENT 'when this system could have used the row: see seeds/source_availability.csv' CODEC(GCD, Delta(8), ZSTD(1)),
    data_source LowCardinality(String),
    created_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(GCD, Delta(8), ZSTD(1)),
    CONSTRAINT known_market_type CHECK market_type IN ('spot', 'linear', 'inverse', 'option'),
    CONSTRAINT not_known_before_it_happened CHECK known_at >= timestamp,
    CONSTRAINT known_side CHECK side IN ('buy', 'sell'),
    CONSTRAINT positive_price CHECK price > 0,
    CONSTRAINT positive_quantity CHECK quantity > 0
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(timestamp)
ORDER BY (exchange, market_type, symbol, timestamp, trade_seq, trade_id)
SETTINGS non_replicated_deduplication_window = 10000;
