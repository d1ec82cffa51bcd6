-- name: queue_depth
-- How many jobs wait, the last row id that was given out, and the first job whose terms are not in job_term yet.
select
    (select coalesce(sum(ready + delayed), 0) from lane indexed by lane_busy where ready + delayed + running > 0) as depth,
    (select coalesce(max(seq), 0) from sqlite_sequence where name = 'job') as last_id,
    (select min(job_id) from job_term_new) as first_new_id;

-- name: known_keys
-- Which of the pairs [tenant, idempotency key] have made a job before.
select job.tenant, job.idempotency_key, job.id, job.uuid, job.fingerprint
from json_each(:pairs) as pair
join job on job.tenant = pair.value ->> 0 and job.idempotency_key = pair.value ->> 1;

-- name: insert_jobs
-- One statement for a whole run of new jobs: each further one would cost the writer a wait for the interpreter lock.
insert into job (id, uuid, kind, tenant, client, submitter, spec, delayed, moved_ms, priority, not_before_ms, labels,
                 idempotency_key, fingerprint, has_secret, secret_names, retry_of, created_ms)
select
    :last_id + 1 + key,
    value ->> 'uuid',
    value ->> 'kind',
    value ->> 'tenant',
    value ->> 'client',
    value ->> 'submitter',
    value ->> 'spec',
    coalesce(value ->> 'not_before_ms', 0) > :now_ms,
    :now_ms,
    value ->> 'priority',
    value ->> 'not_before_ms',
    value ->> 'labels',
    value ->> 'idempotency_key',
    value ->> 'fingerprint',
    value ->> 'has_secret',
    value ->> 'secret_names',
    value ->> 'retry_of',
    :now_ms
from json_each(:jobs);

-- name: insert_terms
-- What the jobs are found by: [number in the run, tenant, terms].
insert into job_term_new (job_id, tenant, terms)
select :last_id + 1 + (value ->> 0), value ->> 1, value -> 2 from json_each(:terms);

-- name: sort_terms
insert or ignore into job_term (term, job_id, tenant)
select term.value, job_id, tenant from job_term_new, json_each(terms) as term order by term.value, job_id;

-- name: forget_new_terms
delete from job_term_new;

-- name: retries_of
-- Which of these jobs were tried again, and as which.
select retry_of, uuid from job where retry_of in (select value from json_each(:uuids));

-- name: blobs_of
select digest from job_blob where job_id = (select id from job where uuid = ?);

-- name: insert_secret
insert into job_secret (job_id, sealed) values (?, ?);

-- name: insert_blob
insert or ignore into job_blob (job_id, digest, size_bytes) values (?, ?, ?);

-- name: tenant_depth
-- How many jobs of a tenant wait.
select coalesce(sum(ready + delayed), 0) as depth from lane where tenant = ?;

-- name: tenant_storage
select coalesce(sum(stored_bytes), 0) as stored_bytes from tenant_storage where tenant = ?;
