-- Who submitted a job, as the caller's token has it (sub, email, azp, name) in JSON; empty for anonymous callers.

alter table job add column submitter text not null default '{}';
