-- name: by_uuid
select * from job where uuid = :uuid and (:tenant is null or tenant = :tenant);

-- name: by_id
select * from job where id = :id and (:tenant is null or tenant = :tenant);

-- name: position
-- How many ready jobs of the lane sort before a queued one.
select
    (select count(*) from job where state = 'queued' and delayed = 0 and tenant = :tenant and kind = :kind
        and priority > :priority)
    + (select count(*) from job where state = 'queued' and delayed = 0 and tenant = :tenant and kind = :kind
        and priority = :priority and id < :id) as position;

-- name: backlog
-- What of its kind other tenants will start before a job, what runs, and how long the last ones took.
select
    (select coalesce(sum(min(ready, :most_each)), 0) from lane indexed by lane_busy
        where ready + delayed + running > 0 and kind = :kind and tenant <> :tenant) as others,
    (select json_group_array(moved_ms) from job indexed by job_running
        where state = 'running' and kind = :kind) as running_since_ms,
    (select json_group_array(max(0, finished_ms - started_ms)) from (
        select finished_ms, started_ms from job indexed by job_ended_by_kind
        where finished_ms is not null and kind = :kind and state = 'succeeded'
        order by id desc limit :limit)) as durations_ms;

-- name: phases
select name, attempt, started_ms, finished_ms from job_phase where job_id = ? order by id;

-- name: pushes
-- Each as JSON, which takes a tenth of the loop's time: a distribution has thousands.
select json_object(
    'image', image, 'target', target, 'registry', registry, 'repository', repository, 'source', source,
    'tags', json(tags), 'digest', digest, 'source_digest', source_digest,
    'sent_bytes', sent_bytes, 'mounted_bytes', mounted_bytes, 'skipped_bytes', skipped_bytes, 'total_bytes', total_bytes,
    'seconds', seconds, 'error', error, 'is_final', json(iif(is_final, 'true', 'false')), 'tries', tries,
    'wait', json_object('peer', waits_for, 'not_before_ms', not_before_ms, 'length_ms', wait_ms)
) as push
from push where job_id = ? order by image, target;

-- name: log_from
-- Blocks that end after :from_offset, beginning with the one it falls into.
select offset, text from log_block
where job_id = :job_id
    and offset >= coalesce((select max(offset) from log_block where job_id = :job_id and offset <= :from_offset), 0)
    and offset + size > :from_offset and offset < :to_offset
order by offset
limit :limit;

-- name: log_breaks
-- How many lines end in each block, from the last one backwards; without the text, which stays where it is. The length of
-- a text would end at a NUL, that of its bytes does not.
select
    offset,
    size,
    size - length(cast(replace(text, char(10), '') as blob)) as breaks,
    substr(cast(text as blob), -1) = x'0a' as is_line_end
from log_block where job_id = :job_id and offset < :below
order by offset desc
limit :limit;

-- name: log_pruned
select 1 from event where job_id = ? and type = 'prune_log' limit 1;

-- name: events
select event.id, event.job_id, event.at_ms, event.type, event.data, job.uuid, job.tenant, job.kind
from event cross join job on job.id = event.job_id
where event.id > :event_id
order by event.id
limit :limit;

-- name: events_of_job
select event.id, event.job_id, event.at_ms, event.type, event.data, job.uuid, job.tenant, job.kind
from event cross join job on job.id = event.job_id
where event.job_id = :job_id and event.id > :event_id
order by event.id
limit :limit;

-- name: live
select uuid from job where state = 'queued' and delayed = 0
union all
select uuid from job where delayed = 1
union all
select uuid from job where state = 'running';

-- name: referenced_blobs
select distinct digest from job_blob;

-- name: cancel_requests
select uuid from job where state = 'running' and worker = ? and cancel_requested_ms is not null;

-- name: pauses
select kind, reason, since_ms, paused_by from pause;

-- name: depths
-- How many jobs of each kind wait and run.
select kind, sum(ready + delayed) as queued, sum(running) as running
from lane indexed by lane_busy
where ready + delayed + running > 0 and (:tenant is null or tenant = :tenant)
group by kind;

-- name: oldest_ready
-- When the oldest job of each kind was created that could start now: as many rows as the queue may have, of an index.
select kind, (select created_ms from job where id = oldest.id) as created_ms
from (
    select kind, min(id) as id
    from job indexed by job_ready
    where state = 'queued' and delayed = 0 and (:tenant is null or tenant = :tenant)
    group by kind
) as oldest;
