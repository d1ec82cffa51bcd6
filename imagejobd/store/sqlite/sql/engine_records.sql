-- name: installation
select id from installation;

-- name: known
-- Which of these UUIDs are jobs here.
select uuid from job where uuid in (select value from json_each(:uuids));

-- name: pulled
insert into pulled_base (name, image_id, used_ms) values (:name, :image_id, :now_ms)
on conflict do update set image_id = excluded.image_id, used_ms = excluded.used_ms;

-- name: used
-- Of a base that somebody else has put there nothing is kept.
update pulled_base set used_ms = :now_ms where name = :name;

-- name: bases
select name, image_id, used_ms from pulled_base order by used_ms desc, name;

-- name: forget
-- One that was pulled anew meanwhile stays.
delete from pulled_base where name = :name and image_id = :image_id;
