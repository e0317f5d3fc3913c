-- Two rows per run of a scheduled job: one at its start, one at its end, which replaces it.
CREATE TABLE IF NOT EXISTS job_runs
(
    job LowCardinality(String),
    run_id UUID,
    started_at DateTime64(3, 'UTC'),
    finished_at Nullable(DateTime64(3, 'UTC')) COMMENT 'NULL while it runs',
    status LowCardinality(String) COMMENT 'running, ok, failed, or skipped: another run or build was under way',
    detail String COMMENT 'what it did, or why it failed',
    host LowCardinality(String),
    CONSTRAINT known_status CHECK status IN ('running', 'ok', 'failed', 'skipped')
)
ENGINE = ReplacingMergeTree
ORDER BY (job, started_at, run_id);
