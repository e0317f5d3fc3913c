CREATE TABLE IF NOT EXISTS archive_status
(
    archive_date Date,
    data_type LowCardinality(String),
    exchange LowCardinality(String),
    records_archived UInt64,
    archive_size_bytes UInt64,
    archive_duration_seconds Float64,
    created_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(created_at)
ORDER BY (archive_date, data_type, exchange);
