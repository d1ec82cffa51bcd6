-- name: begin
-- A webhook that is new hears of what happens from now on.
insert into webhook (name, event_id)
select value, (select coalesce(max(seq), 0) from sqlite_sequence where name = 'event') from json_each(:names) where true
on conflict do nothing;

-- name: forget_others
-- One that comes back to the configuration is new: nobody wants to hear of the months between.
delete from webhook where name not in (select value from json_each(:names));

-- name: place
select event_id, (select coalesce(max(seq), 0) from sqlite_sequence where name = 'event') as last_id
from webhook where name = :name;

-- name: next_end
-- The first end of a job in a range of the history; an empty list of kinds, tenants or moves stands for all.
select event.id as event_id, event.at_ms, event.job_id
from event cross join job on job.id = event.job_id
where event.id > :after and event.id <= :upto
    and event.type in (select value from json_each(:moves))
    and (:kinds = '[]' or job.kind in (select value from json_each(:kinds)))
    and (:tenants = '[]' or job.tenant in (select value from json_each(:tenants)))
order by event.id
limit 1;

-- name: advance
update webhook set event_id = :event_id where name = :name;

-- name: note
-- Unless retention has taken the job meanwhile.
insert into event (job_id, at_ms, type, data) select id, :now_ms, 'webhook', :data from job where id = :job_id;

-- name: attach
insert into job_webhook (uuid, sealed, written_ms) values (:uuid, :sealed, :now_ms);

-- name: detach
delete from job_webhook where uuid = :uuid;

-- name: due
select job.uuid, job.id as job_id, job.tenant, job.finished_ms as at_ms, job_webhook.sealed, job_webhook.tries
from job_webhook indexed by job_webhook_due join job on job.uuid = job_webhook.uuid
where job_webhook.due_ms is not null and job_webhook.due_ms <= :now_ms
    and job.tenant not in (select value from json_each(:except_tenants))
order by job_webhook.due_ms
limit :limit;

-- name: postpone
update job_webhook set due_ms = :due_ms, tries = tries + 1 where uuid = :uuid;

-- name: forget_jobless
-- Of requests that made no job in the end, and of jobs that retention has taken.
delete from job_webhook where written_ms < :before_ms and not exists (select 1 from job where job.uuid = job_webhook.uuid);
