-- What the daemon has to know of its Docker Engine beyond a restart.

-- Who it is there: everything that it makes in an engine is named after this id.
create table installation (
    only_row integer not null primary key default 1 check (only_row = 1),
    id       text    not null check (length(id) = 12)
) strict;

insert into installation (id) values (lower(hex(randomblob(6))));

-- The public base images that it pulled and that keep their names in the engine, until they go unused.
create table pulled_base (
    name     text    not null primary key, -- with tag or digest, as the engine has it
    image_id text    not null,             -- what the name meant when it was pulled
    used_ms  integer not null
) strict, without rowid;
