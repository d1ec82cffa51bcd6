-- When the store last proved that commits go on: a change of a row, so that a disk which takes no more shows. It is
-- counted, because SQLite writes no page for a row that stays as it is.
create table probe (
    id      integer primary key check (id = 1),
    at_ms   integer not null,
    commits integer not null
) strict;

insert into probe (id, at_ms, commits) values (1, 0, 0);

-- Which key the secrets were sealed with when the daemon last started: a one-way fingerprint of 32 random bytes.
create table secrets_key (
    id          integer primary key check (id = 1),
    fingerprint text not null
) strict;

-- seconds_run counts the attempts, and not the pauses between them: in the history of a job what lies between a claim and
-- the move that ended it. Of an attempt that a crash cut, up to the last that was heard of it.
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
    round(max(0, coalesce(started_ms, finished_ms) - created_ms) / 1000.0, 3) as seconds_waited,
    iif(started_ms is null or finished_ms is null, null, (
        select round(sum(max(0, at_ms - since_ms)) / 1000.0, 3)
        from (
            select
                type,
                at_ms,
                lag(type) over (order by id) as since,
                lag(at_ms) over (order by id) as since_ms
            from event
            where event.job_id = job.id
        )
        where type not in ('claim', 'rescue') and since not in ('enqueue', 'retry', 'interrupt', 'rescue')
    )) as seconds_run,
    attempt,
    crashes,
    error_code,
    error_message
from job;
