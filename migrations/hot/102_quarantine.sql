-- Input that was not loaded, with the reason. Nothing is dropped silently.
CREATE TABLE IF NOT EXISTS quarantine
(
    kind LowCardinality(String),
    data_source LowCardinality(String),
    file String,
    line UInt64 COMMENT '1-based; 0 where the reason is about the whole file',
    field String,
    reason_code LowCardinality(String),
    reason String,
    raw String CODEC(ZSTD(3)),
    load_id String,
    created_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(created_at)
ORDER BY (load_id, kind, file, line, field, reason)
SETTINGS non_replicated_deduplication_window = 10000;
