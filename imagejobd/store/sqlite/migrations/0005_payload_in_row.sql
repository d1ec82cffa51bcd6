-- Payloads of few bytes are in their job's spec, and age as blobs do. Of a row that is added only the first condition is
-- looked at.

create index job_with_content on job (finished_ms) where finished_ms is not null and spec ->> '$.content' is not null;
