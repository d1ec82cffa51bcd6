-- name: last_event
select coalesce(max(seq), 0) as id from sqlite_sequence where name = 'event';

-- name: activity
-- What happened in a range of the history, with how long it took, like things counted together. A job is due when it
-- comes or when its `not_before` does; one that a retry has set since is later than the first claim.
select
    job.kind,
    event.type as event,
    event.data ->> '$.phase' as phase,
    event.data ->> '$.error.code' as code,
    event.data ->> '$.crashes' is not null as is_crash,
    max(0, case
        when event.type = 'claim' and event.at_ms = job.started_ms
            then event.at_ms - iif(job.not_before_ms <= event.at_ms, max(job.created_ms, job.not_before_ms), job.created_ms)
        when event.type = 'leave_phase'
            then event.at_ms - (select max(started_ms) from job_phase
                                where job_id = event.job_id and name = event.data ->> '$.phase'
                                    and attempt = event.data ->> '$.attempt' and finished_ms = event.at_ms)
        when event.type in ('succeed', 'fail', 'cancel')
            then event.at_ms - job.started_ms
    end) as duration_ms,
    count(*) as count
from event cross join job on job.id = event.job_id
where event.id > :after and event.id <= :upto
    and event.type in ('enqueue', 'claim', 'leave_phase', 'succeed', 'fail', 'cancel', 'retry', 'interrupt', 'rescue')
group by 1, 2, 3, 4, 5, 6;

-- name: lanes_by_kind
select kind, sum(ready) as ready, sum(delayed) as delayed, sum(running) as running
from lane indexed by lane_busy where ready + delayed + running > 0 group by kind;

-- name: oldest_due
-- Since when the job that waits longest for its turn could have started. Walks what is ready, which the queue's limit
-- bounds. One that did not have to wait for its time has one that is still to come.
select kind, min(iif(not_before_ms <= :now_ms, max(created_ms, not_before_ms), created_ms)) as due_ms
from job indexed by job_ready where state = 'queued' and delayed = 0 group by kind;

-- name: suspects_by_kind
select kind, count(*) as suspects
from job indexed by job_crashed
where state = 'queued' and crashes_in_phase > 0 and crashes_in_phase >= :crashes_max
group by kind;

-- name: paused_kinds
select kind from pause;
