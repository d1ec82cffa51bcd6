-- name: by_uuid
select * from job where uuid = :uuid and (:tenant is null or tenant = :tenant);

-- name: by_id
select * from job where id = :id and (:tenant is null or tenant = :tenant);

-- name: all_kinds
select distinct kind from lane;

-- name: kinds_of_tenant
select kind from lane where tenant = ?;

-- name: listed
-- The columns of a job in a page of them: without what may be long.
job.id, job.uuid, job.kind, job.tenant, job.client, job.submitter, job.state, job.phase, job.progress, job.error_code,
job.error_message, job.attempt, job.crashes, job.priority, job.not_before_ms, job.labels, job.idempotency_key,
job.crashes_in_phase, job.faults, job.faults_since_ms, job.fault_phase, job.waits_for, job.has_secret, job.retry_of,
job.log_bytes, job.cancel_requested_ms, job.worker, job.created_ms, job.started_ms, job.finished_ms,
json_remove(job.spec, '$.dockerfile', '$.build_args', '$.labels', '$.source.images', '$.content') as spec,
json_remove(job.result, '$.images', '$.metrics') as result, '{}' as checkpoint

-- name: newest
select {listed} from job where id < :below order by id desc limit :limit;

-- name: ended_of_tenant
-- One ordered range of a listing; the braces become the names of its parameters.
select id from job indexed by job_ended_by_tenant
where finished_ms is not null and tenant = :tenant and kind = {kind} and state = {state} and id < :below

-- name: ended_of_all
-- One ordered range of a listing for those who may see every tenant.
select id from job indexed by job_ended_by_kind
where finished_ms is not null and kind = {kind} and state = {state} and id < :below

-- name: not_ended
-- The part of a listing that has not ended: bounded by the queue's limit, so it may be sorted.
select id from job indexed by job_ready
where state = 'queued' and delayed = 0 and id < :below and (:state is null or state = :state)
    and (:tenant is null or tenant = :tenant) and (:kind is null or kind = :kind)
union all
select id from job indexed by job_delayed
where delayed = 1 and id < :below and (:state is null or state = :state)
    and (:tenant is null or tenant = :tenant) and (:kind is null or kind = :kind)
union all
select id from job indexed by job_running
where state = 'running' and id < :below and (:state is null or state = :state)
    and (:tenant is null or tenant = :tenant) and (:kind is null or kind = :kind)

-- name: page
-- The newest of all ranges, merged lazily where they are ordered.
with page (id) as ({ranges} order by 1 desc limit :limit)
select {listed} from page join job on job.id = page.id order by page.id desc;

-- name: labelled
-- Walks the label's own jobs from new to old and keeps those that fit the rest.
select {listed} from job_label cross join job on job.id = job_label.job_id
where job_label.key = :key and job_label.value = :value and job_label.job_id < :below
    and (:tenant is null or job.tenant = :tenant)
    and (:kind is null or job.kind = :kind)
    and (:state is null or job.state = :state)
order by job_label.job_id desc
limit :limit;

-- name: position
-- How many ready jobs of the lane sort before a queued one.
select
    (select count(*) from job where state = 'queued' and delayed = 0 and tenant = :tenant and kind = :kind
        and priority > :priority)
    + (select count(*) from job where state = 'queued' and delayed = 0 and tenant = :tenant and kind = :kind
        and priority = :priority and id < :id) as position;

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
    and offset + size > :from_offset
order by offset
limit :limit;

-- name: events
select id, job_id, at_ms, type, data from event where id > :event_id order by id limit :limit;

-- name: events_of_job
select id, job_id, at_ms, type, data from event where job_id = :job_id and id > :event_id order by id limit :limit;

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

-- name: counts
select kind, sum(ready + delayed) as queued, sum(running) as running
from lane indexed by lane_busy where ready + delayed + running > 0 group by kind;
