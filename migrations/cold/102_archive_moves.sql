-- Which rows of hot are on their way to cold: the last row of a table and range counts. Whoever reads both databases
-- (macro raw_rows) sees each row once, whatever dies between two states.
--   copying  rows of cold in the range that were loaded after `since` are not there yet
--   copied   rows of hot in the range that were loaded by `until` are gone
--   done     each database shows what it has
CREATE TABLE IF NOT EXISTS archive_moves
(
    data_type LowCardinality(String) COMMENT 'the raw table',
    range_start DateTime64(6, 'UTC') COMMENT 'event time of the partition',
    range_end DateTime64(6, 'UTC') COMMENT 'not included',
    since DateTime64(3, 'UTC') COMMENT 'load time of the newest row archived before; 1970: none',
    until DateTime64(3, 'UTC') COMMENT 'load time of the newest row that moves',
    rows_moved UInt64 COMMENT 'of this move; 0 until verified',
    checksum UInt64 COMMENT 'of these rows in hot and in cold; 0 until verified',
    state LowCardinality(String),
    version UInt64,
    at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    CONSTRAINT known_state CHECK state IN ('copying', 'copied', 'done')
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (data_type, range_start);
