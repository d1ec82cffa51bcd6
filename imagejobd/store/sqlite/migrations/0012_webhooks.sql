-- How far each webhook of the configuration has come in the history: every end of a job up to there was delivered, given
-- up, or not its business.
create table webhook (
    name     text    not null primary key,
    event_id integer not null
) strict, without rowid;

-- Who is to be told of the end of one job. Written before its job, so that an acknowledged one has it, and gone when it
-- was told or given up.
create table job_webhook (
    uuid       text    not null primary key, -- the job's
    sealed     blob    not null,             -- address and key, by store/vault.py
    written_ms integer not null,
    due_ms     integer,                      -- of the next try; null until the job has ended
    tries      integer not null default 0
) strict, without rowid;

create index job_webhook_due on job_webhook (due_ms) where due_ms is not null;

create trigger job_webhook_ended after update of state on job when new.finished_ms is not null begin
    update job_webhook set due_ms = 0 where uuid = new.uuid;
end;
