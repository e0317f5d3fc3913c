-- When the live views began a pass: a row each, written by the view `live_passes_live`; empty while there are none. A pass trusts the
-- watermarks that were there when it began: what they vouch for is in the raw tables for all of its views.
CREATE TABLE IF NOT EXISTS live_passes
(
    started_at DateTime64(3, 'UTC')
)
ENGINE = MergeTree
ORDER BY started_at
TTL toDateTime(started_at) + INTERVAL 1 DAY;
