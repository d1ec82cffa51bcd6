-- How far each webhook of the configuration has come in the history: every end of a job up to there was delivered, given
-- up, or not its business.
create table webhook (
    name     text    not null primary key,
    event_id integer not null
) strict, without rowid;
