-- For people with the sqlite3 shell, and for datasette (docs/metadata.yaml): what ran, what runs, what waits, attempt by
-- attempt. Each reads only the rows that it shows where it is asked for some jobs, or for the newest with a LIMIT.

-- `image` is what was asked for, `reference` its full name: registry/repository:tag, the registry in lower case and with
-- its port unless that is 443. `phase` is the one that goes on, or the last that there was. `who` is what names the
-- person best. seconds_working counts the attempts, and not the pauses between them: in the history of a job what lies
-- between a claim and the move that ended it. Of an attempt that a crash cut, up to the last that was heard of it.
drop view job_history;

create view job_history as
with
asked as (
    select
        *,
        iif(json_valid(result), result, null) as outcome,
        coalesce(
            spec ->> 'image_name',
            spec ->> 'image',
            (spec ->> '$.source.image') || iif(spec ->> '$.source.ref' like 'sha%:%', '@', ':') || (spec ->> '$.source.ref'),
            spec ->> '$.source.image',
            spec ->> '$.source.images[0]',
            iif(json_valid(result), result, null) ->> 'image'
        ) as image,
        lower(rtrim(spec ->> '$.source.endpoint', '/')) as endpoint
    from job
),
-- A name without a host is the Hub's, that of a distribution's source is its endpoint's.
located as (
    select
        *,
        endpoint is null and instr(image, '/') > 0
            and (substr(image, 1, instr(image, '/')) glob '*[.:]*/' or image like 'localhost/%') as has_host,
        replace(replace(iif(endpoint like '%/v2', substr(endpoint, 1, length(endpoint) - 3), endpoint), 'https://', ''),
                'http://', '') as bare
    from asked
),
split as (
    select
        *,
        iif(has_host, substr(image, instr(image, '/') + 1), image) as path,
        case
            when has_host then lower(substr(image, 1, instr(image, '/') - 1))
            when endpoint like 'http://%' and (bare glob '*]' or bare not glob '*:[0-9]*') then bare || ':80'
            else coalesce(bare, 'docker.io')
        end as host
    from located
),
named as (
    select
        *,
        case
            when host in ('index.docker.io', 'registry-1.docker.io', 'docker.io') then 'docker.io'
            when host like '%:443' then substr(host, 1, length(host) - 4)
            else host
        end as registry
    from split
)
select
    id,
    uuid,
    kind,
    tenant,
    state,
    coalesce(phase, (select name from job_phase where job_id = named.id order by job_phase.id desc limit 1)) as phase,
    image,
    registry || '/' || iif(registry = 'docker.io' and instr(path, '/') = 0, 'library/', '') || path
        || iif(endpoint is null and instr(path, ':') = 0, ':latest', '') as reference,
    coalesce(
        outcome ->> '$.digest',
        iif(json_array_length(outcome, '$.images') = 1, outcome ->> '$.images[0].digest', null),
        outcome ->> '$.location.digest'
    ) as digest,
    coalesce(submitter ->> '$.email', submitter ->> '$.name', submitter ->> '$.sub', submitter ->> '$.azp') as who,
    nullif(client, '') as client,
    nullif(labels, '{}') as labels,
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
                data ->> '$.crashes' as crashes,
                lag(type) over (order by id) as since,
                lag(at_ms) over (order by id) as since_ms
            from event
            where event.job_id = named.id
        )
        where type not in ('claim', 'rescue') and crashes is null
            and since not in ('enqueue', 'retry', 'interrupt', 'rescue', 'succeed', 'fail', 'cancel', 'webhook', 'prune_log')
    )) as seconds_working,
    attempt,
    crashes,
    retry_of,
    error_code,
    error_message
from named;

-- Every attempt that has ended, with what came of it; `id` grows with the end of attempts. Of attempts in a row that
-- failed alike in the same phase there are the first and the last, and nobody knows any more when that one began.
create view attempt_history as
with ending as (
    select
        *,
        (select earlier.id from event as earlier
            where earlier.job_id = event.job_id and earlier.id < event.id and earlier.type = 'claim'
            order by earlier.id desc limit 1) as claim_id,
        -- An attempt begins with a claim; what ended in the queue was none.
        (select earlier.type from event as earlier
            where earlier.job_id = event.job_id and earlier.id < event.id
                and earlier.type in ('enqueue', 'claim', 'retry', 'interrupt', 'rescue')
            order by earlier.id desc limit 1) = 'claim' as is_whole
    from event
    where type in ('succeed', 'fail', 'cancel', 'retry', 'interrupt', 'rescue')
)
select
    ending.id,
    ending.job_id as job,
    job.uuid,
    job.kind,
    iif(is_whole, claim.data ->> '$.attempt', max(claim.data ->> '$.attempt', coalesce(
        (select later.data ->> '$.attempt' from event as later
            where later.job_id = ending.job_id and later.id > ending.id and later.type = 'claim'
            order by later.id limit 1) - 1,
        job.attempt))) as attempt,
    (select entered.data ->> '$.phase' from event as entered
        where entered.job_id = ending.job_id and entered.id > claim.id and entered.id < ending.id
            and entered.type = 'enter_phase'
        order by entered.id desc limit 1) as phase,
    iif(is_whole, strftime('%Y-%m-%dT%H:%M:%fZ', claim.at_ms / 1000.0, 'unixepoch'), null) as started,
    -- When a crash cut it, nobody knows: it counts up to the last that was heard of it.
    iif(is_whole, round(max(0, iif(
        ending.type = 'rescue' or ending.data ->> '$.crashes' is not null,
        (select last.at_ms from event as last where last.job_id = ending.job_id and last.id < ending.id
            order by last.id desc limit 1),
        ending.at_ms
    ) - claim.at_ms) / 1000.0, 3), null) as seconds,
    case
        when ending.type = 'succeed' then 'succeeded'
        when ending.type = 'fail' then 'failed'
        when ending.type = 'cancel' then 'cancelled'
        when ending.type = 'retry' then 'retry'
        when ending.data ->> '$.crashes' is not null then 'crashed'
        else 'interrupted'
    end as outcome,
    ending.data ->> '$.error.code' as code,
    ending.data ->> '$.error.message' as message,
    case ending.type
        when 'retry' then coalesce('when ' || (ending.data ->> '$.waits_for') || ' answers, or at ', 'at ')
            || strftime('%Y-%m-%dT%H:%M:%SZ', (ending.data ->> '$.not_before_ms') / 1000, 'unixepoch')
        when 'interrupt' then 'after the restart'
        when 'rescue' then 'at once'
    end as next
from ending
join job on job.id = ending.job_id
join event as claim on claim.id = ending.claim_id
where is_whole or ending.type = 'retry';

create view running_now as
select
    job_history.id as job,
    job_history.uuid,
    job_history.kind,
    job_history.tenant,
    job_history.who,
    job_history.image,
    job_history.attempt,
    job_history.phase,
    round(max(0, (julianday('now') - 2440587.5) * 86400 - job.phase_ms / 1000.0), 1) as seconds_in_phase,
    -- `move` is the claim as long as a job runs.
    round(max(0, (julianday('now') - 2440587.5) * 86400 - job.moved_ms / 1000.0), 1) as seconds,
    job.progress
from job
join job_history on job_history.id = job.id
where job.state = 'running';

-- Neither the order in which jobs start, which depends on the tenants' turns, nor what waits for the Docker Engine.
create view queue_now as
select
    job_history.id as job,
    job_history.uuid,
    job_history.kind,
    job_history.tenant,
    job_history.who,
    job_history.image,
    job.priority,
    round(max(0, (julianday('now') - 2440587.5) * 86400 - job.created_ms / 1000.0), 1) as seconds,
    strftime('%Y-%m-%dT%H:%M:%SZ', iif(queued.is_delayed, job.not_before_ms, null) / 1000, 'unixepoch') as not_before,
    job.waits_for,
    pause.reason as paused,
    job.attempt,
    job.crashes,
    job.error_code as last_code,
    job.error_message as last_message
from (
    select id, 0 as is_delayed from job where state = 'queued' and delayed = 0
    union all
    select id, 1 from job where delayed = 1
) as queued
join job on job.id = queued.id
join job_history on job_history.id = job.id
left join pause on pause.kind = job.kind;
