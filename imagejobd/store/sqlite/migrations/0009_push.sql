-- What became of each image at each place that its job brings it to: a row for each push of a build and each copy of a
-- distribution, written when it changes, instead of one growing checkpoint of all and an event for each.

create table push (
    job_id        integer not null references job on delete cascade,
    image         integer not null, -- which of the job's images, from 0
    target        integer not null, -- which of the places that it goes to, from 0
    registry      text    not null, -- host in lower case, with its port unless that is 443
    repository    text    not null,
    source        text,             -- what was copied, with tag or digest; null for what the job built
    tags          text    not null default '{}', -- JSON: what became of each tag, or digest
    digest        text,             -- of the image at the target
    source_digest text,             -- what the name of the source pointed at
    sent_bytes    integer,          -- of blobs, at the last attempt; null where nobody tells
    mounted_bytes integer,
    skipped_bytes integer,
    total_bytes   integer,
    seconds       real    not null default 0,
    error         text,
    is_final      integer not null default 0, -- 1: there is no use in another attempt
    tries         integer not null default 1,
    waits_for     text,             -- the peer that has to answer before the next attempt
    not_before_ms integer not null default 0,
    wait_ms       integer not null default 0, -- how far away not_before_ms was when it was set
    updated_ms    integer not null,
    -- A tag holds neither quotes nor colons.
    outcome       text    not null generated always as (
        case
            when error is not null then 'failed'
            when tags like '%:"pushed"%' then 'pushed'
            when tags like '%:"copied"%' then 'copied'
            when tags like '%:"wanted"%' then 'wanted'
            when tags like '%:"skipped"%' then 'skipped'
            else 'identical'
        end
    ) virtual,
    primary key (job_id, image, target)
) strict, without rowid;

-- Out of the checkpoints, where a distribution kept its outcomes under "<image>.<target>". When the last of each was
-- written says the history.
with
outcome as materialized (
    select
        job.id as job_id,
        job.moved_ms,
        cast(substr(entry.key, 1, instr(entry.key, '.') - 1) as integer) as image,
        cast(substr(entry.key, instr(entry.key, '.') + 1) as integer) as target,
        entry.value as record
    from job, json_each(job.checkpoint, '$.outcomes') as entry
    where job.kind = 'distribute' and entry.key glob '[0-9]*.[0-9]*'
),
-- The images of a distribution: the tags that a filter found, a list of them, or one. On the Hub `busybox` is
-- `library/busybox`.
named as (
    select job.id as job_id, entry.key as number, job.spec, (job.spec ->> '$.source.image') || ':' || entry.value as name
    from job, json_each(job.checkpoint, '$.tags') as entry
    where job.kind = 'distribute' and job.spec -> '$.source.tags' is not null
    union all
    select job.id, entry.key, job.spec, entry.value
    from job, json_each(job.spec, '$.source.images') as entry
    where job.kind = 'distribute'
    union all
    select
        id,
        0,
        spec,
        (spec ->> '$.source.image') || iif(spec ->> '$.source.ref' like 'sha%:%', '@', ':') || (spec ->> '$.source.ref')
    from job
    where kind = 'distribute' and spec -> '$.source.ref' is not null
),
image as materialized (
    select
        job_id,
        cast(number as integer) as number,
        iif(instr(name, '/') = 0
                and rtrim(replace(replace(lower(spec ->> '$.source.endpoint'), 'https://', ''), '/v2', ''), '/')
                    in ('docker.io', 'index.docker.io', 'registry-1.docker.io'),
            'library/', '') || name as name
    from named
),
-- The targets, their endpoints without scheme, `/v2` and slash.
endpoint as materialized (
    select
        job.id as job_id,
        cast(entry.key as integer) as number,
        entry.value ->> 'image' as renamed,
        entry.value ->> 'endpoint' as sent,
        lower(entry.value ->> 'endpoint') like 'http://%' as is_plain,
        replace(replace(rtrim(lower(entry.value ->> 'endpoint'), '/'), 'https://', ''), 'http://', '') as bare
    from job, json_each(job.spec, '$.targets') as entry
    where job.kind = 'distribute'
),
host as (
    select *, iif(bare like '%/v2', substr(bare, 1, length(bare) - 3), bare) as name from endpoint
),
registry as materialized (
    select
        *,
        case
            when name in ('index.docker.io', 'registry-1.docker.io', 'docker.io') then 'docker.io'
            when name like '%:443' then substr(name, 1, length(name) - 4)
            when is_plain and (name glob '*]' or name not glob '*:[0-9]*') then name || ':80'
            else name
        end as host
    from host
),
written as materialized (
    select
        job_id,
        data ->> 'endpoint' as endpoint,
        data ->> 'source' as source,
        data ->> 'image' as repository,
        max(at_ms) as at_ms
    from event
    where type = 'target'
    group by 1, 2, 3, 4
)
insert into push (
    job_id, image, target, registry, repository, source, tags, digest, source_digest, sent_bytes, mounted_bytes,
    skipped_bytes, total_bytes, seconds, error, is_final, tries, waits_for, not_before_ms, wait_ms, updated_ms
)
select
    outcome.job_id,
    outcome.image,
    outcome.target,
    registry.host,
    coalesce(registry.renamed, substr(image.name, 1, instr(replace(image.name, '@', ':'), ':') - 1)),
    image.name,
    coalesce(record -> 'tags', '{}'),
    record ->> 'digest',
    record ->> 'source_digest',
    coalesce(record ->> 'sent_bytes', 0),
    coalesce(record ->> 'mounted_bytes', 0),
    coalesce(record ->> 'skipped_bytes', 0),
    coalesce(record ->> 'total_bytes', 0),
    coalesce(record ->> 'seconds', 0.0),
    record ->> 'error',
    coalesce(record ->> 'is_final', 0),
    coalesce(record ->> 'tries', 1),
    record ->> '$.wait.peer',
    coalesce(record ->> '$.wait.not_before_ms', 0),
    coalesce(record ->> '$.wait.wish_ms', 0),
    coalesce(written.at_ms, outcome.moved_ms)
from outcome
join image on image.job_id = outcome.job_id and image.number = outcome.image
join registry on registry.job_id = outcome.job_id and registry.number = outcome.target
left join written
    on written.job_id = outcome.job_id
    and written.endpoint = registry.sent
    and written.source = image.name
    and written.repository
        = coalesce(registry.renamed, substr(image.name, 1, instr(replace(image.name, '@', ':'), ':') - 1));

update job set checkpoint = json_remove(checkpoint, '$.outcomes')
where kind = 'distribute' and checkpoint -> '$.outcomes' is not null;

-- What was pushed by builds, as far as their checkpoints say it.
insert into push (job_id, image, target, registry, repository, tags, digest, updated_ms)
select
    job_id,
    0,
    number,
    iif(host like '%:443', substr(host, 1, length(host) - 4), host),
    substr(path, 1, instr(path, ':') - 1),
    json_object(substr(path, instr(path, ':') + 1), 'pushed'),
    digest,
    updated_ms
from (
    select
        job.id as job_id,
        row_number() over (partition by job.id order by entry.id) - 1 as number,
        lower(substr(entry.key, 1, instr(entry.key, '/') - 1)) as host,
        substr(entry.key, instr(entry.key, '/') + 1) as path,
        entry.value as digest,
        coalesce(job.finished_ms, job.moved_ms) as updated_ms
    from job, json_each(job.checkpoint, '$.pushed') as entry
    where job.kind in ('build', 'dispatch') and entry.key glob '?*/?*:?*'
);

drop view copy_history;

create view copy_history as
select
    push.job_id,
    job.uuid,
    strftime('%Y-%m-%dT%H:%M:%fZ', push.updated_ms / 1000.0, 'unixepoch') as finished,
    push.source,
    push.registry as endpoint,
    push.repository as image,
    push.tags,
    push.digest,
    push.outcome,
    push.sent_bytes,
    push.mounted_bytes,
    push.skipped_bytes,
    push.seconds,
    push.error
from push
join job on job.id = push.job_id
where job.kind = 'distribute';

create view push_history as
select
    push.job_id,
    job.uuid,
    job.kind,
    strftime('%Y-%m-%dT%H:%M:%fZ', push.updated_ms / 1000.0, 'unixepoch') as finished,
    push.registry,
    push.repository,
    (select group_concat(key, ' ') from json_each(push.tags)) as tag,
    push.digest,
    push.sent_bytes,
    push.seconds,
    push.outcome,
    push.error
from push
join job on job.id = push.job_id;
