-- name: begin
insert into schedule (name, rule, settled_ms) select key, value, :now_ms from json_each(:rules) where true
on conflict do update set rule = excluded.rule, settled_ms = excluded.settled_ms where rule <> excluded.rule;

-- name: forget_others
delete from schedule where name not in (select key from json_each(:rules));

-- name: all
select name, settled_ms, last_ms, skipped_ms, job from schedule;

-- name: is_busy
-- Whether the job of the last run, or one that tries that again, has not ended.
with recursive run (uuid, finished_ms) as (
    select job.uuid, job.finished_ms from schedule join job on job.uuid = schedule.job where schedule.name = :name
    union
    select job.uuid, job.finished_ms from run join job on job.retry_of = run.uuid
)
select exists (select 1 from run where finished_ms is null);

-- name: skip
update schedule set settled_ms = :due_ms, skipped_ms = :due_ms where name = :name;

-- name: run
update schedule set settled_ms = :due_ms, last_ms = :due_ms, job = :job where name = :name;

-- name: settle
update schedule set settled_ms = :at_ms where name = :name;
