-- How far each instrument's feed of a kind is complete (exclusive). Closes time and anchor cuts when no trade follows.
CREATE TABLE IF NOT EXISTS watermarks
(
    kind LowCardinality(String),
    exchange LowCardinality(String),
    market_type LowCardinality(String),
    symbol LowCardinality(String),
    watermark DateTime64(6, 'UTC'),
    data_source LowCardinality(String),
    load_id String,
    created_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(created_at)
ORDER BY (kind, exchange, market_type, symbol, load_id);
