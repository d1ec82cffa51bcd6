-- name: leave
-- The one way out of `running`, for a whole run of jobs: to an end, or back to the queue. Going back keeps the checkpoint
-- and, unless there is a new one, the error of the attempt before.
update job set
    state = way.value ->> 'state',
    move = way.value ->> 'move',
    moved_ms = :now_ms,
    claim_token = null,
    lease_until_ms = null,
    worker = iif(way.value ->> 'state' = 'queued', null, worker),
    phase = null,
    phase_ms = :now_ms,
    attempt = attempt - (way.value ->> 'attempts_restored'),
    crashes = crashes + (way.value ->> 'crashes'),
    delayed = way.value ->> 'state' = 'queued' and coalesce(way.value ->> 'not_before_ms', 0) > :now_ms,
    not_before_ms = coalesce(way.value ->> 'not_before_ms', not_before_ms),
    result = way.value ->> 'result',
    error_code = coalesce(way.value ->> 'error_code', iif(way.value ->> 'state' = 'queued', error_code, null)),
    error_message = coalesce(way.value ->> 'error_message', iif(way.value ->> 'state' = 'queued', error_message, null)),
    finished_ms = iif(way.value ->> 'state' = 'queued', null, :now_ms)
from json_each(:ways) as way
where job.id = way.value ->> 'id' and job.claim_token = way.value ->> 'token' and job.state = 'running';

-- name: claimed
-- What a verb has to know of a job whose claim still holds.
select cancel_requested_ms, checkpoint from job where id = :id and claim_token = :token;

-- name: orphans
-- Running jobs that belong to another worker than this one.
select id, uuid, claim_token, crashes, cancel_requested_ms from job
where state = 'running' and worker <> :worker;

-- name: renew
update job set lease_until_ms = :lease_until_ms where state = 'running' and worker = :worker;

-- name: set_phase
update job set phase = :phase, phase_ms = :now_ms where id = :id and claim_token = :token;

-- name: set_progress
update job set progress = :progress where id = :id and claim_token = :token;

-- name: set_checkpoint
update job set checkpoint = :checkpoint where id = :id and claim_token = :token;

-- name: append_log
insert into log_block (job_id, offset, size, at_ms, text)
select id, log_bytes, :size, :now_ms, :text from job where id = :id and claim_token = :token;

-- name: append_event
insert into event (job_id, at_ms, type, data)
select id, :now_ms, :type, :data from job where id = :id and claim_token = :token;
