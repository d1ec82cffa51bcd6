-- For people: what runs have measured.

create view run_result as
select
    id as job_id,
    uuid, -- the version that its image was told
    tenant,
    state,
    strftime('%Y-%m-%dT%H:%M:%fZ', finished_ms / 1000.0, 'unixepoch') as finished,
    cast(iif(json_valid(result), result, null) ->> '$.perf' as real) as perf,
    iif(json_valid(result), result, null) -> '$.metrics' as metrics,
    error_code,
    error_message
from job
where kind = 'run';
