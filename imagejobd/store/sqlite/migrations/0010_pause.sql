-- Kinds may be paused; a retry is known as such; jobs are found by image, by person and by time.

-- A row for each kind of which no job is started now.
create table pause (
    kind      text    not null primary key,
    reason    text    not null,
    since_ms  integer not null,
    paused_by text    not null
) strict, without rowid;

alter table job add column secret_names text not null default '[]'; -- JSON: of the secrets that it came with

create index job_retry_of on job (retry_of) where retry_of is not null;
create index job_created on job (created_ms);
create index job_unsuccessful on job (finished_ms) where state in ('failed', 'cancelled');
create index job_unsuccessful_of_tenant on job (tenant, finished_ms) where state in ('failed', 'cancelled');

-- What a job is found by besides its labels: `image=<host>/<path>`, the same with `:<tag>` or `@<digest>`, and
-- `submitter=<claim>` for each claim on the person who has submitted it.
create table job_term (
    term   text    not null,
    -- Of a term that tenants share each walks its own jobs, and learns nothing of how many the others have.
    tenant text    not null,
    job_id integer not null references job on delete cascade,
    primary key (term, tenant, job_id)
) strict, without rowid;
create index job_term_by_job on job_term (job_id);

-- The same of the newest jobs. They come into job_term many at a time, in its order: each for itself, at a place of its
-- own, they would cost half as much as all else of taking a job in.
create table job_term_new (
    job_id integer not null primary key references job on delete cascade,
    tenant text    not null,
    terms  text    not null -- JSON: a list
) strict;

alter table job_label add column tenant text not null default '';
update job_label set tenant = (select tenant from job where id = job_id);
create index job_label_of_tenant on job_label (tenant, key, value, job_id);
drop trigger job_labelled;
create trigger job_labelled after insert on job when new.labels <> '{}' begin
    insert into job_label (key, value, job_id, tenant) select key, value, new.id, new.tenant from json_each(new.labels);
end;

insert or ignore into job_term (term, job_id, tenant)
select 'submitter=' || claim.value, job.id, job.tenant
from job, json_each(job.submitter) as claim
where job.submitter <> '{}';

-- What was pushed or copied, to each tag or digest.
insert or ignore into job_term (term, job_id, tenant)
select term, job_id, job.tenant
from (
    select 'image=' || registry || '/' || repository as term, job_id from push
    union
    select 'image=' || registry || '/' || repository || iif(tag.key like 'sha%:%', '@', ':') || tag.key, job_id
    from push, json_each(push.tags) as tag
)
join job on job.id = job_id;

-- What a build was to push, also where it never came to that.
with
named as (
    select
        id,
        tenant,
        spec ->> 'image' as image,
        iif(instr(spec ->> 'image', '/') > 0, substr(spec ->> 'image', 1, instr(spec ->> 'image', '/') - 1), '') as first
    from job
    where kind = 'build' and spec ->> 'image' is not null
),
located as (
    select
        id,
        tenant,
        iif(first glob '*[.:]*' or first = 'localhost', replace(lower(first) || ' ', ':443 ', ' '), 'docker.io') as host,
        iif(first glob '*[.:]*' or first = 'localhost', substr(image, length(first) + 2), image) as name
    from named
),
normal as (
    select
        id,
        tenant,
        iif(trim(host) in ('index.docker.io', 'registry-1.docker.io', 'docker.io'), 'docker.io', trim(host)) as host,
        iif(trim(host) glob '*docker.io' and instr(name, '/') = 0, 'library/', '')
            || name || iif(instr(name, ':') > 0, '', ':latest') as name
    from located
)
insert or ignore into job_term (term, job_id, tenant)
select 'image=' || host || '/' || name, id, tenant from normal
union
select 'image=' || host || '/' || substr(name, 1, instr(name, ':') - 1), id, tenant from normal;

-- What a distribution was to copy.
with
source as (
    select
        job.id,
        job.tenant,
        replace(replace(rtrim(lower(spec ->> '$.source.endpoint'), '/'), 'https://', ''), 'http://', '') as host,
        coalesce(entry.value, (spec ->> '$.source.image')
            || coalesce(iif(spec ->> '$.source.ref' like 'sha%:%', '@', ':') || (spec ->> '$.source.ref'), '')) as name
    from job left join json_each(job.spec, '$.source.images') as entry
    where job.kind = 'distribute'
),
located as (
    select id, tenant, iif(host like '%/v2', substr(host, 1, length(host) - 3), host) as host, name
    from source
    where name is not null
),
normal as (
    select
        id,
        tenant,
        iif(host in ('index.docker.io', 'registry-1.docker.io', 'docker.io'), 'docker.io',
            iif(host like '%:443', substr(host, 1, length(host) - 4), host)) as host,
        iif(host glob '*docker.io' and instr(name, '/') = 0, 'library/', '') || name as name
    from located
)
insert or ignore into job_term (term, job_id, tenant)
select 'image=' || host || '/' || name, id, tenant from normal
union
select 'image=' || host || '/' || substr(name, 1, instr(replace(name, '@', ':') || ':', ':') - 1), id, tenant from normal;
