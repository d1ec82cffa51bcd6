-- For people: distributions by the image that they copy, and every copy with what it took.

drop view job_history;

create view job_history as
select
    id,
    uuid,
    kind,
    tenant,
    state,
    coalesce(
        spec ->> 'image_name',
        spec ->> 'image',
        (spec ->> '$.source.image') || iif(spec ->> '$.source.ref' like 'sha%:%', '@', ':') || (spec ->> '$.source.ref'),
        spec ->> '$.source.image',
        spec ->> '$.source.images[0]',
        result ->> 'image'
    ) as image,
    strftime('%Y-%m-%dT%H:%M:%fZ', created_ms / 1000.0, 'unixepoch') as created,
    strftime('%Y-%m-%dT%H:%M:%fZ', started_ms / 1000.0, 'unixepoch') as started,
    strftime('%Y-%m-%dT%H:%M:%fZ', finished_ms / 1000.0, 'unixepoch') as finished,
    round((coalesce(started_ms, finished_ms) - created_ms) / 1000.0, 3) as seconds_waited,
    round((finished_ms - started_ms) / 1000.0, 3) as seconds_run,
    attempt,
    crashes,
    error_code,
    error_message
from job;

create view copy_history as
select
    event.job_id,
    job.uuid,
    strftime('%Y-%m-%dT%H:%M:%fZ', event.at_ms / 1000.0, 'unixepoch') as finished,
    event.data ->> 'source' as source,
    event.data ->> 'endpoint' as endpoint,
    event.data ->> 'image' as image,
    event.data ->> 'tags' as tags,
    event.data ->> 'digest' as digest,
    coalesce(event.data ->> 'sent_bytes', 0) as sent_bytes,
    coalesce(event.data ->> 'mounted_bytes', 0) as mounted_bytes,
    coalesce(event.data ->> 'skipped_bytes', 0) as skipped_bytes,
    coalesce(event.data ->> 'seconds', 0) as seconds,
    event.data ->> 'error' as error
from event
join job on job.id = event.job_id
where event.type = 'target';
