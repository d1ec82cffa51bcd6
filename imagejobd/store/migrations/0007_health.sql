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

-- seconds_run counts the attempts, and not the pauses between them: each from its claim to the move that ended it.
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
    iif(finished_ms is null, null, (
        select round(sum(max(0, coalesce((
            select ended.at_ms
            from event as ended
            where ended.job_id = job.id and ended.id > claim.id
                and ended.type in ('succeed', 'fail', 'cancel', 'retry', 'interrupt', 'rescue')
            order by ended.id
            limit 1
        ), claim.at_ms) - claim.at_ms)) / 1000.0, 3)
        from event as claim
        where claim.job_id = job.id and claim.type = 'claim'
    )) as seconds_run,
    attempt,
    crashes,
    error_code,
    error_message
from job;
