-- name: needs
-- What a job was given besides its spec.
select (select sealed from job_secret where job_id = :id) as sealed,
       (select json_group_array(digest) from job_blob where job_id = :id) as blobs;

-- name: sealed
-- The secrets of all jobs that have not ended.
select job.uuid, job_secret.sealed from job_secret join job on job.id = job_secret.job_id;

-- name: known_key
select fingerprint from secrets_key;

-- name: note_key
insert into secrets_key (id, fingerprint) values (1, :fingerprint)
    on conflict do update set fingerprint = excluded.fingerprint;
