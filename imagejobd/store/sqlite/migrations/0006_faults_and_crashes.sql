-- Faults and crashes count against the place where they happened; jobs wait for peers that do not answer; tenants have
-- bounds of their own.

alter table job add column faults integer not null default 0; -- temporary faults since the job last got any further
alter table job add column faults_since_ms integer; -- when the first of them happened
alter table job add column fault_phase text; -- where the last of them happened
alter table job add column waits_for text; -- the peer without which a delayed job cannot go on
alter table job add column crash_phase text; -- where the job was in its last crash
alter table job add column crashes_in_phase integer not null default 0; -- of `crashes`, those since it got any further
alter table job add column crashes_alone integer not null default 0; -- of these, the last ones with nothing beside it
alter table job add column drained integer not null default 0; -- 1: running while its worker was told to stop
alter table job add column has_secret integer not null default 0; -- 1: it came with secrets, which its end may have deleted
alter table job add column retry_of text; -- the UUID of the job that this one repeats
alter table job_blob add column size_bytes integer not null default 0;

create index job_waiting on job (waits_for, moved_ms) where waits_for is not null;
create index job_crashed on job (id) where state = 'queued' and crashes_in_phase > 0;

update job set has_secret = 1 where id in (select job_id from job_secret);

-- What is kept for each tenant: payloads and contexts that its jobs refer to, each once however many jobs they are.
create table tenant_storage (
    tenant       text    primary key,
    stored_bytes integer not null
) strict, without rowid;

create trigger blob_stored after insert on job_blob when new.size_bytes > 0 begin
    insert into tenant_storage (tenant, stored_bytes)
        select tenant, new.size_bytes from job as own
        where own.id = new.job_id and not exists (
            select 1 from job_blob as other join job on job.id = other.job_id
            where other.digest = new.digest and other.size_bytes > 0 and job.tenant = own.tenant and job.id <> own.id)
        on conflict do update set stored_bytes = stored_bytes + excluded.stored_bytes;
end;

create trigger blob_forgotten after delete on job_blob when old.size_bytes > 0 begin
    update tenant_storage set stored_bytes = stored_bytes - old.size_bytes
        where tenant = (select tenant from job where id = old.job_id) and not exists (
            select 1 from job_blob as other join job on job.id = other.job_id
            where other.digest = old.digest and other.size_bytes > 0 and job.tenant = tenant_storage.tenant);
end;

drop trigger job_moved;
create trigger job_moved after update of move on job begin
    -- json_patch drops the members that are null.
    insert into event (job_id, at_ms, type, data) values (new.id, new.moved_ms, new.move, json_patch('{}', json_object(
        'worker', iif(new.move in ('claim', 'rescue'), coalesce(new.worker, old.worker), null),
        'attempt', iif(new.move = 'claim', new.attempt, null),
        'crashes', iif(new.crashes > old.crashes, new.crashes, null),
        'not_before_ms', iif(new.move = 'retry', new.not_before_ms, null),
        'waits_for', iif(new.move = 'retry', new.waits_for, null),
        'faults', iif(new.move = 'retry' and new.faults > 1, new.faults, null),
        'error', json(iif(new.move in ('fail', 'cancel', 'retry') and new.error_code is not null,
                          json_object('code', new.error_code, 'message', new.error_message), null)))));
end;

-- Made anew after it, because of two triggers SQLite fires the later one first: a phase is left before its job moves on.
drop trigger job_phased;
create trigger job_phased after update of phase on job when old.phase is not null or new.phase is not null begin
    -- A crash (crashes has grown) did not end the phase it cut: nobody knows when that was.
    update job_phase set finished_ms = new.phase_ms
        where old.phase is not null and new.crashes = old.crashes
            and id = (select max(id) from job_phase where job_id = new.id);
    insert into event (job_id, at_ms, type, data)
        select new.id, new.phase_ms, 'leave_phase', json_object('phase', old.phase, 'attempt', old.attempt)
        where old.phase is not null and new.crashes = old.crashes;
    insert into job_phase (job_id, attempt, name, started_ms)
        select new.id, new.attempt, new.phase, new.phase_ms where new.phase is not null;
    insert into event (job_id, at_ms, type, data)
        select new.id, new.phase_ms, 'enter_phase', json_object('phase', new.phase, 'attempt', new.attempt)
        where new.phase is not null;
end;

drop trigger job_ended;
create trigger job_ended after update of state on job when new.finished_ms is not null begin
    -- A job that is held to have crashed the daemon may be tried again with all that it needs.
    delete from job_secret where job_id = new.id and coalesce(new.error_code, '') <> 'quarantined';
end;

-- A clock that was set back makes no duration negative.
drop view phase_history;
create view phase_history as
select
    job.id as job_id,
    job.uuid,
    job_phase.name as phase,
    job_phase.attempt,
    strftime('%Y-%m-%dT%H:%M:%fZ', job_phase.started_ms / 1000.0, 'unixepoch') as started,
    round(max(0, job_phase.finished_ms - job_phase.started_ms) / 1000.0, 3) as seconds
from job_phase
join job on job.id = job_phase.job_id;
