-- name: apply
-- The one way out of `running`, for a whole run of jobs: to an end, or back to the queue. Going back keeps the checkpoint
-- and, unless there is a new one, the error of the attempt before.
update job set
    state = change.value ->> 'state',
    move = change.value ->> 'move',
    moved_ms = :now_ms,
    claim_token = null,
    lease_until_ms = null,
    worker = iif(change.value ->> 'state' = 'queued', null, worker),
    phase = null,
    phase_ms = :now_ms,
    attempt = attempt - (change.value ->> 'attempts_restored'),
    crashes = crashes + (change.value ->> 'crashes'),
    -- An attempt that ended with a fault, and not in a crash, speaks for its job.
    crashes_in_phase = max(0, crashes_in_phase - (change.value ->> 'faults')) + (change.value ->> 'crashes'),
    crashes_alone = iif(change.value ->> 'crashes' = 0, crashes_alone * (change.value ->> 'faults' = 0),
                        change.value ->> 'crashes_alone'),
    crash_phase = iif(change.value ->> 'crashes' = 0, crash_phase, phase),
    faults = faults + (change.value ->> 'faults'),
    -- The time for retries does not begin with what was no attempt.
    faults_since_ms = iif(change.value ->> 'faults' = 0 or change.value ->> 'attempts_restored' > 0, faults_since_ms,
                          coalesce(faults_since_ms, :now_ms)),
    fault_phase = iif(change.value ->> 'faults' = 0, fault_phase, phase),
    waits_for = change.value ->> 'waits_for',
    delayed = change.value ->> 'state' = 'queued' and coalesce(change.value ->> 'not_before_ms', 0) > :now_ms,
    not_before_ms = coalesce(change.value ->> 'not_before_ms', not_before_ms),
    result = change.value ->> 'result',
    error_code = coalesce(change.value ->> 'error_code', iif(change.value ->> 'state' = 'queued', error_code, null)),
    error_message = coalesce(change.value ->> 'error_message', iif(change.value ->> 'state' = 'queued', error_message, null)),
    finished_ms = iif(change.value ->> 'state' = 'queued', null, :now_ms)
from json_each(:changes) as change
where job.id = change.value ->> 'id' and job.claim_token = change.value ->> 'token' and job.state = 'running';

-- name: claimed
-- What a verb has to know of a job whose claim still holds.
select cancel_requested_ms, checkpoint, phase, attempt, faults, fault_phase, error_code, error_message
from job where id = :id and claim_token = :token;

-- name: forget_repeat
-- The history of an attempt that failed as the one before it, which the newest fault counts. The first of such faults
-- stays, because the time from it to the newest is a pause and no work.
with before as (select id from event where job_id = :id and type = 'retry' order by id desc limit 1 offset 1)
delete from event
where job_id = :id
    and id > (select before.id - ((select type from event where job_id = :id and id < before.id order by id desc limit 1)
                                  = 'retry') from before)
    and id < (select max(id) from event where job_id = :id and type = 'retry')
    and type in ('retry', 'claim', 'enter_phase', 'leave_phase');

-- name: forget_phases
delete from job_phase where job_id = :id and attempt = :attempt;

-- name: orphans
-- Running jobs that belong to another worker than this one.
select id, uuid, claim_token, crashes, crashes_alone, drained, cancel_requested_ms from job
where state = 'running' and worker <> :worker;

-- name: drain
-- Whatever ends this worker from now on, these jobs have not caused it.
update job set drained = 1 where state = 'running' and worker = :worker;

-- name: set_phase
-- Who has left the phase of its last fault or crash behind has got further.
update job set
    phase = :phase,
    phase_ms = :now_ms,
    faults = iif(phase is not null and phase is coalesce(fault_phase, phase), 0, faults),
    faults_since_ms = iif(phase is not null and phase is coalesce(fault_phase, phase), null, faults_since_ms),
    crashes_in_phase = iif(phase is not null and phase is coalesce(crash_phase, phase), 0, crashes_in_phase),
    crashes_alone = iif(phase is not null and phase is coalesce(crash_phase, phase), 0, crashes_alone)
where id = :id and claim_token = :token;

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

-- name: record_push
insert or replace into push (
    job_id, image, target, registry, repository, source, tags, digest, source_digest, sent_bytes, mounted_bytes,
    skipped_bytes, total_bytes, seconds, error, is_final, tries, waits_for, not_before_ms, wait_ms, updated_ms
) values (
    :job_id, :image, :target, :registry, :repository, :source, :tags, :digest, :source_digest, :sent_bytes, :mounted_bytes,
    :skipped_bytes, :total_bytes, :seconds, :error, :is_final, :tries, :waits_for, :not_before_ms, :wait_ms, :now_ms
);

-- name: answered
-- Jobs that waited for a peer are ready as soon as it answers; for any peer where none is named.
update job set delayed = 0, waits_for = null
where waits_for is not null and (:peer is null or waits_for = :peer) and state = 'queued';

-- name: try_one
-- The job that waits for a peer and was tried longest ago, of those kinds that have room, unless one is on its way.
update job set delayed = 0
where id = (select id from job indexed by job_waiting
            where waits_for = :peer and state = 'queued' and delayed = 1
                and kind in (select value from json_each(:kinds))
            order by moved_ms limit 1)
    and not exists (select 1 from job where waits_for = :peer and state = 'queued' and delayed = 0
                        and kind in (select value from json_each(:kinds)));

-- name: clamp_delays
-- After the clock was set back no pause between two attempts is longer than it was meant to be.
update job set
    not_before_ms = min(not_before_ms - :set_back_ms, :now_ms + (not_before_ms - moved_ms)),
    moved_ms = min(moved_ms - :set_back_ms, :now_ms)
where delayed = 1 and move = 'retry' and (:set_back_ms > 0 or moved_ms > :now_ms);
