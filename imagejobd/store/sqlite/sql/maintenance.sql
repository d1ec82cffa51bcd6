-- name: find
select id, state from job where uuid = :uuid and (:tenant is null or tenant = :tenant);

-- name: pause
insert into pause (kind, reason, since_ms, paused_by) select value, :reason, :now_ms, :by from json_each(:kinds) where true
on conflict do update set reason = excluded.reason, paused_by = excluded.paused_by;

-- name: resume
delete from pause where kind in (select value from json_each(:kinds));

-- name: unstarted
-- Queued jobs that no worker has ever started, though they were due before then. A delayed one is not due yet.
select id, kind, max(created_ms, coalesce(not_before_ms, 0)) as due_ms from job indexed by job_ready
where state = 'queued' and delayed = 0 and started_ms is null
    and max(created_ms, coalesce(not_before_ms, 0)) < :before_ms;

-- name: end_queued
-- End jobs that wait, without a run. Only those that never ran may fail that way.
update job set
    state = :state,
    move = :move,
    moved_ms = :now_ms,
    delayed = 0,
    error_code = :error_code,
    error_message = :error_message,
    finished_ms = :now_ms
where id in (select value from json_each(:ids)) and state = 'queued' and (:move = 'cancel' or started_ms is null)
returning id, uuid;

-- name: request_cancel
update job set cancel_requested_ms = :now_ms where id = :id and state = 'running' and cancel_requested_ms is null;

-- name: prune_logs
delete from log_block where id in (
    select log_block.id
    from job indexed by job_with_log
    join log_block on log_block.job_id = job.id
    where job.log_bytes > 0 and job.finished_ms < :before_ms
    order by job.finished_ms
    limit :limit
)
returning job_id;

-- name: record_pruned_logs
-- In the history of those jobs whose last block was just deleted, that there was a log.
insert into event (job_id, at_ms, type)
select id, :now_ms, 'prune_log' from job
where id in (select value from json_each(:ids))
    and not exists (select 1 from log_block where job_id = job.id);

-- name: note_pruned_logs
-- Of the jobs whose blocks were just deleted: to read all old ones again would cost each batch as much as the history.
update job set log_bytes = 0
where id in (select value from json_each(:ids)) and not exists (select 1 from log_block where job_id = job.id);

-- name: prune_blobs
delete from job_blob where (job_id, digest) in (
    select job_blob.job_id, job_blob.digest
    from job indexed by job_with_blob
    join job_blob on job_blob.job_id = job.id
    where job.has_blob = 1 and job.finished_ms < :before_ms
    order by job.finished_ms
    limit :limit
)
returning job_id;

-- name: note_pruned_blobs
update job set has_blob = 0
where id in (select value from json_each(:ids)) and not exists (select 1 from job_blob where job_id = job.id);

-- name: prune_contents
-- Payloads that are kept in their job's row.
update job set spec = json_remove(spec, '$.content') where id in (
    select id from job indexed by job_with_content
    where finished_ms is not null and spec ->> '$.content' is not null and finished_ms < :before_ms
    order by finished_ms
    limit :limit
);

-- name: prune_secrets
-- Of jobs that were quarantined; those of all others went when they ended.
delete from job_secret where job_id in (
    select job_secret.job_id from job_secret join job on job.id = job_secret.job_id where job.finished_ms < :before_ms
);

-- name: oldest
-- The ended jobs that are to go next.
select id from job indexed by job_finished where finished_ms < :before_ms order by finished_ms limit :limit;

-- name: prune_events
delete from event where id in (
    select event.id from json_each(:ids) as old cross join event on event.job_id = old.value limit :limit
);

-- name: prune_phases
delete from job_phase where id in (
    select job_phase.id from json_each(:ids) as old cross join job_phase on job_phase.job_id = old.value limit :limit
);

-- name: prune_pushes
delete from push where (job_id, image, target) in (
    select push.job_id, push.image, push.target
    from json_each(:ids) as old cross join push on push.job_id = old.value
    limit :limit
);

-- name: prune_labels
delete from job_label where (key, value, job_id) in (
    select job_label.key, job_label.value, job_label.job_id
    from json_each(:ids) as old cross join job_label on job_label.job_id = old.value
    limit :limit
);

-- name: prune_terms
delete from job_term where (term, tenant, job_id) in (
    select job_term.term, job_term.tenant, job_term.job_id
    from json_each(:ids) as old cross join job_term indexed by job_term_by_job on job_term.job_id = old.value
    limit :limit
);

-- name: prune_new_terms
delete from job_term_new where job_id in (select value from json_each(:ids) limit :limit);

-- name: prune_jobs
-- Only jobs that nothing hangs on any more, so that one batch stays a bounded number of rows.
delete from job where id in (select value from json_each(:ids) limit :limit);

-- name: prune_lanes
-- A lane is kept as long as it has jobs, finished ones too: listings find a tenant's kinds here.
delete from lane
where ready + delayed + running = 0
    and not exists (
        select 1 from job indexed by job_ended_by_tenant
        where job.tenant = lane.tenant and job.kind = lane.kind and job.finished_ms is not null
    );

-- name: probe
update probe set at_ms = :now_ms, commits = commits + 1;
