-- How the last refresh of each live view went, as the server tells it; empty while there are none.
select
    view as name, -- noqa: RF04
    status,
    toDateTime64(last_success_time, 3, 'UTC') as last_success_at,
    toDateTime64(last_refresh_time, 3, 'UTC') as last_refresh_at,
    last_success_duration_ms as duration_ms,
    written_rows as `rows`,
    retry as retries,
    exception
from system.view_refreshes
where database = '{{ this.schema }}' and endsWith(view, '_live')
