-- The durable queue and its history. Times are epoch milliseconds, UTC; JSON is kept as text.
--
-- What must follow from a change of a job follows in the same statement, by trigger: lane counters, history,
-- phases, and the deletion of secrets. So no verb can forget it, and a verb stays one statement.

pragma application_id = 0x494d4a44; -- "IMJD"

create table job (
    id                  integer primary key autoincrement,
    uuid                text    not null unique,
    kind                text    not null,
    tenant              text    not null,
    client              text    not null,
    state               text    not null default 'queued'
                                check (state in ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    delayed             integer not null default 0, -- 1: queued, but its not_before_ms had not come when last looked at
    move                text    not null default 'enqueue', -- the last move of model/state.py, and when it was made
    moved_ms            integer not null,
    phase               text,
    phase_ms            integer, -- when the phase was entered or left
    attempt             integer not null default 0,
    crashes             integer not null default 0,
    priority            integer not null,
    not_before_ms       integer,
    idempotency_key     text,
    fingerprint         text, -- of what was asked, to tell a repeated request from a reused key
    cancel_requested_ms integer,
    claim_token         text,
    worker              text,
    lease_until_ms      integer,
    created_ms          integer not null,
    started_ms          integer, -- of the first attempt
    finished_ms         integer,
    log_bytes           integer not null default 0, -- UTF-8 bytes of log that are kept
    has_blob            integer not null default 0,
    error_code          text,
    error_message       text,
    labels              text    not null default '{}',
    progress            text    not null default '{}',
    checkpoint          text    not null default '{}',
    result              text,
    spec                text    not null,
    check ((state = 'running') = (claim_token is not null)),
    check ((state in ('queued', 'running')) = (finished_ms is null)),
    check (delayed = 0 or state = 'queued')
) strict;

-- Claiming and waiting: partial, so that finished jobs cost them nothing.
create index job_ready on job (tenant, kind, priority desc, id) where state = 'queued' and delayed = 0;
create index job_delayed on job (not_before_ms) where delayed = 1;
create index job_running on job (worker) where state = 'running';
create unique index job_idempotency on job (tenant, idempotency_key) where idempotency_key is not null;

-- Listing what has ended, newest first (the row id is the last column of every index): a listing that leaves kind or state
-- open merges one ordered range of these for each of their few values. Jobs that have not ended are few and are found by
-- the indexes above, so that accepting and claiming a job does not pay for listings.
create index job_ended_by_tenant on job (tenant, kind, state) where finished_ms is not null;
create index job_ended_by_kind on job (kind, state) where finished_ms is not null;

-- Retention.
create index job_finished on job (finished_ms) where finished_ms is not null;
create index job_with_log on job (finished_ms) where log_bytes > 0 and finished_ms is not null;
create index job_with_blob on job (finished_ms) where has_blob = 1 and finished_ms is not null;

-- Copied from job.labels, to find jobs by label.
create table job_label (
    key    text    not null,
    value  text    not null,
    job_id integer not null references job on delete cascade,
    primary key (key, value, job_id)
) strict, without rowid;
create index job_label_by_job on job_label (job_id);

create table job_phase (
    id          integer primary key,
    job_id      integer not null references job on delete cascade,
    attempt     integer not null,
    name        text    not null,
    started_ms  integer not null,
    finished_ms integer -- null while it goes on, and for ever when a crash cut it
) strict;
create index job_phase_by_job on job_phase (job_id);

create table event (
    id     integer primary key autoincrement, -- the cursor of changes_since: never given out twice
    job_id integer not null references job on delete cascade,
    at_ms  integer not null,
    type   text    not null,
    data   text    not null default '{}'
) strict;
create index event_by_job on event (job_id);

create table log_block (
    id     integer primary key,
    job_id integer not null references job on delete cascade,
    offset integer not null, -- bytes of UTF-8 before this block
    size   integer not null, -- bytes of UTF-8 in it
    at_ms  integer not null,
    text   text    not null,
    unique (job_id, offset)
) strict;

-- Sealed by store/vault.py, and gone when the job ends.
create table job_secret (
    job_id integer primary key references job on delete cascade,
    sealed blob    not null
) strict;

create table job_blob (
    job_id integer not null references job on delete cascade,
    digest text    not null,
    primary key (job_id, digest)
) strict, without rowid;
create index job_blob_by_digest on job_blob (digest);

-- One row per tenant and kind, so that claims, the queue's bound and statistics never count jobs.
create table lane (
    tenant         text    not null,
    kind           text    not null,
    ready          integer not null default 0 check (ready >= 0),
    delayed        integer not null default 0 check (delayed >= 0),
    running        integer not null default 0 check (running >= 0),
    last_claim_seq integer not null default 0, -- grows with every claim of any lane
    primary key (tenant, kind)
) strict, without rowid;
create index lane_busy on lane (tenant) where ready + delayed + running > 0;

create trigger job_inserted after insert on job begin
    insert into lane (tenant, kind, ready, delayed) values (new.tenant, new.kind, 1 - new.delayed, new.delayed)
        on conflict do update set ready = ready + excluded.ready, delayed = delayed + excluded.delayed;
    insert into event (job_id, at_ms, type) values (new.id, new.created_ms, 'enqueue');
end;

create trigger job_labelled after insert on job when new.labels <> '{}' begin
    insert into job_label (key, value, job_id) select key, value, new.id from json_each(new.labels);
end;

create trigger job_counted after update of state, delayed on job
when old.state <> new.state or old.delayed <> new.delayed begin
    update lane set
        ready = ready + (new.state = 'queued' and new.delayed = 0) - (old.state = 'queued' and old.delayed = 0),
        delayed = delayed + new.delayed - old.delayed,
        running = running + (new.state = 'running') - (old.state = 'running')
    where tenant = new.tenant and kind = new.kind;
end;

create trigger job_uncounted after delete on job when old.finished_ms is null begin
    update lane set
        ready = ready - (old.state = 'queued' and old.delayed = 0),
        delayed = delayed - old.delayed,
        running = running - (old.state = 'running')
    where tenant = old.tenant and kind = old.kind;
end;

create trigger job_moved after update of move on job begin
    -- json_patch drops the members that are null.
    insert into event (job_id, at_ms, type, data) values (new.id, new.moved_ms, new.move, json_patch('{}', json_object(
        'worker', iif(new.move in ('claim', 'rescue'), coalesce(new.worker, old.worker), null),
        'attempt', iif(new.move = 'claim', new.attempt, null),
        'crashes', iif(new.crashes > old.crashes, new.crashes, null),
        'not_before_ms', iif(new.move = 'retry', new.not_before_ms, null),
        'error', json(iif(new.move in ('fail', 'cancel', 'retry') and new.error_code is not null,
                          json_object('code', new.error_code, 'message', new.error_message), null)))));
end;

create trigger job_ended after update of state on job when new.finished_ms is not null begin
    delete from job_secret where job_id = new.id;
end;

create trigger job_cancel_requested after update of cancel_requested_ms on job
when old.cancel_requested_ms is null and new.cancel_requested_ms is not null begin
    insert into event (job_id, at_ms, type) values (new.id, new.cancel_requested_ms, 'request_cancel');
end;

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

create trigger log_grown after insert on log_block begin
    update job set log_bytes = new.offset + new.size where id = new.job_id;
end;

create trigger blob_referenced after insert on job_blob begin
    update job set has_blob = 1 where id = new.job_id and has_blob = 0;
end;

-- For people with the sqlite3 shell.
create view job_history as
select
    id,
    uuid,
    kind,
    tenant,
    state,
    coalesce(spec ->> 'image_name', spec ->> 'image', result ->> 'image') as image,
    strftime('%Y-%m-%dT%H:%M:%fZ', created_ms / 1000.0, 'unixepoch') as created,
    strftime('%Y-%m-%dT%H:%M:%fZ', started_ms / 1000.0, 'unixepoch') as started,
    strftime('%Y-%m-%dT%H:%M:%fZ', finished_ms / 1000.0, 'unixepoch') as finished,
    round((coalesce(started_ms, finished_ms) - created_ms) / 1000.0, 3) as seconds_waited,
    round((finished_ms - started_ms) / 1000.0, 3) as seconds_run,
    attempt,
    crashes,
    error_code,
    error_message
from job;

create view phase_history as
select
    job.id as job_id,
    job.uuid,
    job_phase.name as phase,
    job_phase.attempt,
    strftime('%Y-%m-%dT%H:%M:%fZ', job_phase.started_ms / 1000.0, 'unixepoch') as started,
    round((job_phase.finished_ms - job_phase.started_ms) / 1000.0, 3) as seconds
from job_phase
join job on job.id = job_phase.job_id;

create view job_log as
select
    job.id as job_id,
    job.uuid,
    strftime('%Y-%m-%dT%H:%M:%fZ', log_block.at_ms / 1000.0, 'unixepoch') as at,
    log_block.offset,
    rtrim(log_block.text, char(10)) as text
from log_block
join job on job.id = log_block.job_id;
