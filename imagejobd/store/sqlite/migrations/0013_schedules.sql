-- How far each schedule of the configuration has come.
create table schedule (
    name       text    not null primary key,
    rule       text    not null, -- expression and time zone; with another rule it begins anew
    settled_ms integer not null, -- when it was due last, be it run or skipped, or when it began
    last_ms    integer,          -- when its last run was due
    skipped_ms integer,          -- when a run was due that was skipped
    job        text              -- UUID of the last run's job, which retention may have taken
) strict, without rowid;
