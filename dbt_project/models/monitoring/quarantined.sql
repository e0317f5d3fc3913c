-- One row per kind, source and reason: input that was not loaded.
select
    kind,
    data_source,
    reason_code,
    count() as lines,
    any(file) as example_file,
    any(line) as example_line,
    any(reason) as example_reason
from {{ source('hot', 'quarantine') }} final
group by kind, data_source, reason_code
