-- One row per command: the whole state after it. The last sequence is the present. Names are empty where there is no model.
-- Writers of the same sequence insert under the same deduplication token: the server keeps the first (python_udfs/scorer/deployment.py).
CREATE TABLE IF NOT EXISTS deployments
(
    sequence UInt64 COMMENT 'from 1, without gaps',
    id UUID COMMENT 'tells a writer whether the row is its own',
    at DateTime64(6, 'UTC'),
    action Enum8('promote' = 1, 'step' = 2, 'rollback' = 3, 'baseline' = 4, 'prune' = 5),
    champion_name LowCardinality(String),
    champion_version String,
    champion_table LowCardinality(String) COMMENT 'what it reads, with its version: feature_vector_v2',
    challenger_name LowCardinality(String),
    challenger_version String,
    challenger_table LowCardinality(String),
    baseline_name LowCardinality(String) COMMENT 'served where the others cannot be',
    baseline_version String,
    baseline_table LowCardinality(String),
    share UInt8 COMMENT 'percent of instruments that the challenger serves: 0, 1, 5, 20 or 100',
    rollback_to UInt64 COMMENT 'sequence of the state that rollback restores; 0: none',
    who String,
    reason String
)
ENGINE = MergeTree
ORDER BY sequence
SETTINGS non_replicated_deduplication_window = 10000;
