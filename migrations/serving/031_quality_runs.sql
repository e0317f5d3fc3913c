-- One row per run of `marketprism quality`. The newest one decides whether a model may be promoted.
CREATE TABLE IF NOT EXISTS quality_runs
(
    run_id UUID,
    started_at DateTime64(3, 'UTC'),
    finished_at DateTime64(3, 'UTC'),
    success Bool COMMENT 'every expectation was met',
    relations Array(String) COMMENT 'what was looked at',
    expectations UInt32,
    failed Array(String) COMMENT 'relation: expectation: what was found',
    docs String COMMENT 'folder of the HTML pages, on the host that ran it',
    who String COMMENT 'user@host'
)
ENGINE = MergeTree
ORDER BY (finished_at, run_id);
