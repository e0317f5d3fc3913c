-- One row per finished load: written last, so a killed load leaves no row and is simply run again.
CREATE TABLE IF NOT EXISTS loads
(
    load_id String COMMENT 'sha256 over reader, options and the bytes of all files',
    files Array(String),
    data_source LowCardinality(String),
    rows_loaded Map(String, UInt64) COMMENT 'kind -> rows',
    rows_duplicate Map(String, UInt64) COMMENT 'kind -> rows that were there already',
    rows_rejected Map(String, UInt64) COMMENT 'kind -> lines in quarantine',
    notes Map(String, String),
    started_at DateTime64(3, 'UTC'),
    finished_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(finished_at)
ORDER BY load_id;
