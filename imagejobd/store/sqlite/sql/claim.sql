-- name: promote_due
-- Delayed jobs whose time has come are ready from now on, even if the clock is set back.
update job set delayed = 0, waits_for = null where delayed = 1 and not_before_ms <= :now_ms;

-- name: paused
select kind from pause;

-- name: is_alone
-- Whether a job is running that has to be alone.
select exists (select 1 from job where state = 'running' and crashes_in_phase >= :crashes_max) as is_alone;

-- name: suspects
-- The ready job that has to run alone and comes first, and whether anything runs now.
select id, (select exists (select 1 from job where state = 'running')) as is_busy
from job indexed by job_crashed
where state = 'queued' and crashes_in_phase > 0 and crashes_in_phase >= :crashes_max and delayed = 0
    and kind in (select value from json_each(:kinds))
order by id limit 1;

-- name: lanes
-- Every lane of the tenants that have something ready, and the claim sequence so far (each claim writes an event).
select tenant, kind, ready, running, last_claim_seq,
       (select coalesce(max(seq), 0) from sqlite_sequence where name = 'event') as seq
from lane
where tenant in (select tenant from lane indexed by lane_busy where ready > 0 and ready + delayed + running > 0);

-- name: head_of_lane
-- The jobs of one lane that are next in turn.
select id, priority
from job indexed by job_ready
where state = 'queued' and delayed = 0 and tenant = :tenant and kind = :kind
order by priority desc, id
limit :limit;

-- name: start
-- Hand the picked jobs to a worker. A claim is an attempt.
update job set
    state = :state,
    move = :move,
    moved_ms = :now_ms,
    claim_token = lower(hex(randomblob(16))),
    worker = :worker,
    attempt = attempt + 1,
    waits_for = null,
    drained = 0,
    started_ms = coalesce(started_ms, :now_ms)
where id in (select value from json_each(:ids)) and state = 'queued'
returning *, (select sealed from job_secret where job_id = job.id) as sealed;

-- name: note_turns
-- Remember in which order the lanes were served.
update lane set last_claim_seq = turn.value ->> 'seq'
from json_each(:turns) as turn
where lane.tenant = turn.value ->> 'tenant' and lane.kind = turn.value ->> 'kind';
