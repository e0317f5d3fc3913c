-- When the live views began a pass: a row each, written by the view `live_passes_live`; empty while there are none. A pass trusts the
-- watermarks that were there when it began: what they vouch for is in the raw tables for all of its views.
create table live_passes (
    started_at DateTime64(3, 'UTC')
)
engine = MergeTree
order by started_at
ttl toDateTime(started_at) + interval 1 day;
