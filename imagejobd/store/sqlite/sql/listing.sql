-- name: all_kinds
select distinct kind from lane;

-- name: kinds_of_tenant
select kind from lane where tenant = ?;

-- name: listed
-- The columns of a job in a page of them: without what may be long.
job.id, job.uuid, job.kind, job.tenant, job.client, job.submitter, job.state, job.phase, job.progress, job.error_code,
job.error_message, job.attempt, job.crashes, job.priority, job.not_before_ms, job.labels, job.idempotency_key,
job.crashes_in_phase, job.faults, job.faults_since_ms, job.fault_phase, job.waits_for, job.has_secret, job.secret_names,
job.retry_of, job.log_bytes, job.cancel_requested_ms, job.worker, job.created_ms, job.started_ms, job.finished_ms,
json_remove(job.spec, '$.dockerfile', '$.build_args', '$.labels', '$.source.images', '$.content') as spec,
json_remove(job.result, '$.images', '$.metrics') as result, '{}' as checkpoint

-- name: created_from
-- The least row id of the jobs that were created from then on. Ids follow the clock but where it was set back: the first
-- rows in the order of time show it.
select min(id) as id from (
    select id from job indexed by job_created where created_ms >= :at_ms order by created_ms limit :rows
);

-- name: created_before
-- The greatest row id of the jobs that were created before then, likewise.
select max(id) as id from (
    select id from job indexed by job_created where created_ms < :at_ms order by created_ms desc limit :rows
);

-- name: newest
select id from job where id < :below and id >= :from_id {conditions}

-- name: ended_of_tenant
-- One ordered range of a listing; the braces become the names of its parameters, and further conditions.
select id from job indexed by job_ended_by_tenant
where finished_ms is not null and tenant = :tenant and kind = {kind} and state = {state}
    and id < :below and id >= :from_id {conditions}

-- name: ended_of_all
-- One ordered range of a listing for those who may see every tenant.
select id from job indexed by job_ended_by_kind
where finished_ms is not null and kind = {kind} and state = {state} and id < :below and id >= :from_id {conditions}

-- name: not_ended
-- The part of a listing that has not ended: bounded by the queue's limit, so it may be sorted.
select id from job indexed by job_ready
where state = 'queued' and delayed = 0 and id < :below and id >= :from_id
    and (:states is null or state in (select value from json_each(:states)))
    and (:tenant is null or tenant = :tenant)
    and (:kinds is null or kind in (select value from json_each(:kinds))) {conditions}
union all
select id from job indexed by job_delayed
where delayed = 1 and id < :below and id >= :from_id
    and (:states is null or state in (select value from json_each(:states)))
    and (:tenant is null or tenant = :tenant)
    and (:kinds is null or kind in (select value from json_each(:kinds))) {conditions}
union all
select id from job indexed by job_running
where state = 'running' and id < :below and id >= :from_id
    and (:states is null or state in (select value from json_each(:states)))
    and (:tenant is null or tenant = :tenant)
    and (:kinds is null or kind in (select value from json_each(:kinds))) {conditions}

-- name: tenants_of_term
-- The tenants that have jobs of a term, each found behind the one before.
with recursive sharing (tenant) as (
    select min(tenant) from job_term where term = :walked
    union all
    select (select min(tenant) from job_term where term = :walked and tenant > sharing.tenant)
    from sharing
    where sharing.tenant is not null
)
select tenant from sharing where tenant is not null limit :tenants_max + 1;

-- name: term_range
-- A tenant's jobs of a term from new to old; the brace becomes the name of its parameter.
select job_id as id from job_term
where term = :walked and tenant = {tenant} and job_id < :below and job_id >= :from_id

-- name: term_range_filtered
select job_term.job_id as id from job_term cross join job on job.id = job_term.job_id
where job_term.term = :walked and job_term.tenant = {tenant}
    and job_term.job_id < :below and job_term.job_id >= :from_id {conditions}

-- name: new_of_term
-- The newest jobs of a term, of a tenant or everybody's.
select job_id as id from job_term_new
where (:tenant is null or tenant = :tenant) and job_id < :below and job_id >= :from_id
    and :walked in (select value from json_each(terms))

-- name: new_of_term_filtered
select job_term_new.job_id as id from job_term_new cross join job on job.id = job_term_new.job_id
where (:tenant is null or job_term_new.tenant = :tenant)
    and job_term_new.job_id < :below and job_term_new.job_id >= :from_id
    and :walked in (select value from json_each(terms)) {conditions}

-- name: label_walk
-- The jobs of a label from new to old, everybody's or a tenant's.
select job_id as id from job_label {indexed}
where {own} key = :key and value = :value and job_id < :below and job_id >= :from_id

-- name: label_walk_filtered
select job_label.job_id as id from job_label {indexed} cross join job on job.id = job_label.job_id
where {own} job_label.key = :key and job_label.value = :value
    and job_label.job_id < :below and job_label.job_id >= :from_id {conditions}

-- name: page
-- The newest of a source, or of several that are merged lazily.
with page (id) as ({source} order by 1 desc limit :limit)
select {listed} from page join job on job.id = page.id order by page.id desc;

-- name: scan_end
-- The last row of a source that one page may read; none where there are no more than that.
{source} order by 1 desc limit 1 offset :scanned;

-- name: has_tenant
job.tenant = :tenant

-- name: has_kind
job.kind in (select value from json_each(:kinds))

-- name: has_state
job.state in (select value from json_each(:states))

-- name: has_label
exists (select 1 from job_label where key = :key and value = :value and job_id = job.id)

-- name: has_submitter
(
    exists (select 1 from job_term where term = :submitter and tenant = job.tenant and job_id = job.id)
    or exists (
        select 1 from job_term_new
        where job_id = job.id and :submitter in (select value from json_each(terms))
    )
)

-- name: is_created_from
job.created_ms >= :created_from_ms

-- name: is_created_before
job.created_ms < :created_before_ms

-- name: unsuccessful_end
-- Of the jobs that failed or were cancelled, everybody's or a tenant's, in the order of their ends, the last one that one
-- look may read.
select id, finished_ms from job indexed by {index}
where {tenant} state in ('failed', 'cancelled') and finished_ms >= :from_ms and (finished_ms > :after_ms or id > :after_id)
order by finished_ms, id
limit 1 offset :scanned;

-- name: to_retry
-- Those of them that were not tried again and fit the filter, up to a place in that order.
select job.id, job.uuid, job.finished_ms from job indexed by {index}
where {tenant} job.state in ('failed', 'cancelled') and job.finished_ms >= :from_ms and job.finished_ms <= :until_ms
    and (job.finished_ms > :after_ms or job.id > :after_id)
    and (job.finished_ms < :until_ms or job.id <= :until_id)
    and not exists (select 1 from job as retry where retry.retry_of = job.uuid) {conditions}
order by job.finished_ms, job.id
limit :limit;

-- name: has_code
job.error_code = :code
