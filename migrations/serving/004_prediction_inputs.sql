-- One row per distinct model input, under its hash: models that read the same share it, and so do calls on the same bucket.
-- `marketprism migrate` sets how long a row is kept.
CREATE TABLE IF NOT EXISTS prediction_inputs
(
    feature_hash String COMMENT 'sha256 over the float32 inputs in model order' CODEC(ZSTD(1)),
    inputs Array(Float32) COMMENT 'row by row, the oldest first; NaN: missing' CODEC(ZSTD(3)),
    created_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(created_at)
ORDER BY feature_hash
SETTINGS index_granularity = 256, ttl_only_drop_parts = 1;
