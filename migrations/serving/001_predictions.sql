-- One row per instrument and request. Latency parts in microseconds.
CREATE TABLE IF NOT EXISTS predictions
(
    request_id UUID,
    predicted_at DateTime64(6, 'UTC'),
    exchange LowCardinality(String),
    market_type LowCardinality(String),
    symbol LowCardinality(String),
    bucket_id UInt64,
    bucket_ts_end DateTime64(6, 'UTC') COMMENT 'as_of of the features used',
    model_name LowCardinality(String),
    model_version LowCardinality(String) COMMENT 'sha256 of the ONNX file, first 12 hex digits',
    feature_vector_version UInt16,
    feature_hash String COMMENT 'sha256 over the float32 inputs in model order',
    missing_features UInt16 COMMENT 'inputs that were NULL',
    stale Bool COMMENT 'the row was older than the limit when it was scored',
    age_ms Int64 COMMENT 'predicted_at - bucket_ts_end',
    probabilities Array(Float32) COMMENT 'in the order of the card classes',
    score Float32 COMMENT 'P(up) - P(down)',
    read_us UInt64,
    prepare_us UInt64,
    run_us UInt64,
    total_us UInt64 COMMENT 'read + prepare + run; the insert comes after',
    created_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(predicted_at)
ORDER BY (exchange, market_type, symbol, predicted_at, request_id);
