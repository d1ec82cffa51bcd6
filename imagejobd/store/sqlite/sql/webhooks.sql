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
