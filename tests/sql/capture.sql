-- the trigger: what it writes, who it names, and that nothing makes it raise

begin;
select plan(78);

create function pg_temp.last(wanted text) returns text language plpgsql as $$
declare
  found text;
begin
  execute format('select %I::text from crm_relay.change order by seq desc limit 1', wanted) into found;
  return found;
end
$$;
create function pg_temp.journaled() returns bigint language sql as $$ select count(*) from crm_relay.change $$;

insert into users (id, email, first_name, last_name) values
  ('00000000-0000-4000-8000-00000000000a', 'ann@crm.example', 'Ann', 'A'),
  ('00000000-0000-4000-8000-00000000000b', 'bea@crm.example', 'Bea', 'B');
delete from crm_relay.change; -- users are journaled in a narrow form, see policy.sql
insert into teams (name) values ('T');
select is(pg_temp.journaled(), 0::bigint, 'what is not watched is not journaled');

-- actions, ids, images
insert into listings (id, list_price, created_by)
values ('00000000-0000-4000-8000-000000000001', 400000, '00000000-0000-4000-8000-00000000000a');
select is(pg_temp.last('action'), 'created', 'an insert is journaled');
select is(pg_temp.last('record_id'), '00000000-0000-4000-8000-000000000001', 'with its key');
select is(pg_temp.last('actor'), '00000000-0000-4000-8000-00000000000a', 'and created_by as its actor');
select is(pg_temp.last('old_image'), null, 'it has no image of before');
select is((pg_temp.last('new_image')::json) ->> 'list_price', '400000.00', 'and one of after, digit for digit');
select is(pg_temp.last('txid'), pg_current_xact_id()::text, 'in the transaction that made it');
select is(pg_temp.last('db_user'), session_user::text, 'with who was logged in');

update listings set list_price = list_price;
select is(pg_temp.journaled(), 1::bigint, 'an update that changes nothing is not journaled');
update listings set list_price = 395000, version = version + 1, last_modified_by = '00000000-0000-4000-8000-00000000000b';
select is(pg_temp.last('action'), 'updated', 'an update is journaled');
select is(pg_temp.last('actor'), '00000000-0000-4000-8000-00000000000b', 'last_modified_by made it');
update listings set list_price = 394000, version = version + 1;
select is(pg_temp.last('actor'), '00000000-0000-4000-8000-00000000000b', 'the same editor again, told by the version');
update listings set is_archived = true;
select is(pg_temp.last('actor'), null, 'an update that says nothing of its editor has none');
update listings set deleted_at = now(), deleted_by = '00000000-0000-4000-8000-00000000000a';
select is(pg_temp.last('actor'), '00000000-0000-4000-8000-00000000000a', 'a soft delete names deleted_by');
set local crm_relay.user_id = 'told';
update listings set city = 'Reno';
select is(pg_temp.last('actor'), 'told', 'the setting crm_relay.user_id goes before all');
reset crm_relay.user_id;
update listings set id = '00000000-0000-4000-8000-000000000002';
select results_eq(
  $$ select action, record_id from crm_relay.change order by seq desc limit 2 $$,
  $$ values ('created', '00000000-0000-4000-8000-000000000002'), ('deleted', '00000000-0000-4000-8000-000000000001') $$,
  'another key is another record');
delete from listings;
select is(pg_temp.last('action'), 'deleted', 'a delete is journaled');
select is(pg_temp.last('actor'), null, 'with nobody''s name');
truncate listings;
select is(pg_temp.last('action'), 'truncated', 'a truncate is journaled for its module');

-- rolled back is no trace
savepoint before_it;
insert into leads (first_name) values ('gone');
rollback to before_it;
select is_empty($$ select from crm_relay.change where module = 'leads' $$, 'what is rolled back leaves no trace');

-- large columns, hidden columns
insert into escrows (id, notes, people) values ('00000000-0000-4000-8000-000000000003', repeat('x', 5000), jsonb_build_object('a', repeat('y', 5000)));
update escrows set purchase_price = 1;
select ok((pg_temp.last('new_image')::jsonb) ?& '{purchase_price,id}' and not (pg_temp.last('new_image')::jsonb) ?| '{notes,people}',
          'what is large and unchanged is left out');
update escrows set people = people || '{"b": 1}';
select ok((pg_temp.last('new_image')::jsonb) ? 'people' and (pg_temp.last('old_image')::jsonb) ? 'people', 'what is large and changed is there');
update escrows set is_private = true;
select ok((pg_temp.last('new_image')::jsonb) ?& '{notes,people}', 'whoever sees a record enter gets all of it');
-- what is stored out of line, which is not looked into
create function pg_temp.large(seed text) returns jsonb language sql as $$ select jsonb_object_agg(n, md5(seed || n)) from generate_series(1, 500) n $$;
insert into escrows (id, city, people, documents) values ('00000000-0000-4000-8000-000000000004', 'Reno', pg_temp.large('a'), pg_temp.large('b'));
update escrows set purchase_price = 2 where people <> '{}' and city = 'Reno';
select ok((pg_temp.last(image)::jsonb) ?& '{purchase_price,city,id}' and not (pg_temp.last(image)::jsonb) ?| '{people,documents}' and length(pg_temp.last(image)) < 1500,
          'what is out of line and unchanged is left out of ' || image) from unnest('{old_image,new_image}'::text[]) image;
update escrows set team_id = null, is_private = true where city = 'Reno';
select ok((pg_temp.last('new_image')::jsonb) ?& '{people,documents,timeline}', 'unless the record moves');
-- of the same length, and not by the statement
create function pg_temp.edit() returns trigger language plpgsql as $$ begin new.people := pg_temp.large('c'); return new; end $$;
create trigger edit before update on escrows for each row execute function pg_temp.edit();
update escrows set purchase_price = 3 where city = 'Reno';
select ok((pg_temp.last('new_image')::jsonb) -> 'people' = pg_temp.large('c') and (pg_temp.last('old_image')::jsonb) -> 'people' = pg_temp.large('a')
          and not (pg_temp.last('new_image')::jsonb) ? 'documents', 'a large column that a before trigger changed is there');
drop trigger edit on escrows;
create domain filled as int not null;
create table wide (body jsonb, id int primary key, note json, number filled, token text);
select crm_relay.watch('wide');
insert into wide values (pg_temp.large('a'), 1, '{"a": [1],"body":null,"note":null}', 7, 'secret');
update wide set number = 8;
select ok((pg_temp.last('new_image')::jsonb) - 'note' = '{"id": 1, "number": 8}' and pg_temp.last('new_image') like '%{"a": [1],"body":null,"note":null}%',
          'a domain that takes no null is no hindrance, nor what looks like a column in a value');
alter table wide alter number type int;
update wide set number = 9;
select is(pg_temp.last('new_image')::jsonb, '{"id": 1, "number": 9}', 'without it what is out of line is not even fetched to be shown, nor what is small beside it');
update wide set note = '{"a": [1],"body":null,"note":1}';
select ok(pg_temp.last('new_image') like '%{"a": [1],"body":null,"note":1}%' and pg_temp.last('old_image') like '%{"a": [1],"body":null,"note":null}%'
          and not (pg_temp.last('new_image')::jsonb) ?| '{body,token}', 'until it changes');
-- a table that is altered between two updates of one transaction
create function pg_temp.written(wanted text) returns text language sql as $$ select string_agg(new_image ->> wanted, ' ' order by seq) from crm_relay.change where module = 'altered' and action = 'updated' $$;
create table altered (id int primary key, n int, body jsonb, t text);
select crm_relay.watch('altered');
insert into altered values (1, 7, pg_temp.large('a'), 'a');
update altered set t = 'b';
alter table altered alter column n type text using 'abcdAAAAAAAAAAAA';
update altered set t = 'c';
alter table altered add column y text;
update altered set y = 'why';
update altered set t = 'd';
select is(pg_temp.written('t') || ' ' || pg_temp.written('n') || ' ' || pg_temp.written('y'), 'b c c d 7 abcdAAAAAAAAAAAA abcdAAAAAAAAAAAA abcdAAAAAAAAAAAA why why',
          'is read as it is by then');
-- names and values that look like what is left out
create type like_it as (x int, body text);
create table hiding (id int primary key, c like_it, token text, body jsonb);
select crm_relay.watch('hiding');
insert into hiding values (1, row(1, null), 's', pg_temp.large('a'));
update hiding set c = row(2, null);
select is(pg_temp.last('new_image')::jsonb, '{"id": 1, "c": {"x": 2, "body": null}}', 'a field is not taken for a column that is left out beside a hidden one');
create table cutting (id int primary key, ":123," jsonb, "foo," int, ":null" jsonb, t text);
select crm_relay.watch('cutting');
insert into cutting values (1, pg_temp.large('a'), 123, '{}', 'a');
update cutting set t = 'b';
select is(pg_temp.last('new_image')::jsonb, '{"id": 1, "foo,": 123, "t": "b"}', 'nor a part of a name');
update crm_relay.module set large_from = 1 where module = 'altered';
update altered set t = 'e';
select is(pg_temp.last('new_image')::jsonb ->> 't', 'e', 'however little is large');
create table by_object (id int primary key, last_modified_by jsonb, version int, body jsonb);
select crm_relay.watch('by_object');
insert into by_object values (1, '{"id": 7}', 1, pg_temp.large('a'));
update by_object set version = 2;
select is(pg_temp.last('actor'), '{"id": 7}', 'who made it is never left out');

select crm_relay.watch('users', module => 'people', narrow => false);
update users set password_hash = 'secret', first_name = 'Anna' where email like 'ann@%';
select ok(not (pg_temp.last('new_image')::jsonb) ? 'password_hash' and pg_temp.last('new_image') like '%Anna%', 'a column named like a secret is hidden');
update users set password_hash = 'other secret';
select is_empty($$ select from crm_relay.change where module = 'people' and new_image ->> 'first_name' = 'Bea' $$,
                'an update of a hidden column alone is not journaled');

-- what may not make it raise
create table odd (id int primary key, body json, note text);
select crm_relay.watch('odd');
insert into odd values (1, '{"nul": "\u0000", "a": 1}', repeat('z', 3000)), (2, '"\u0000"', '\u0000 \ufffd\u2400\ufffd');
update odd set body = '{"nul": "\u0000", "a": 2}' where id = 1;
select ok(pg_temp.last('new_image') like '%"\\u0000"%a": 2%' and pg_temp.last('new_image') not like '%zzz%',
          'a NUL in json is kept as it was written, beside what is left out');
select is(count(*), 3::bigint, 'and the audit view can be read')
  from crm_relay.audit where module = 'odd' and field = 'body';

create table long_key (id text primary key);
select crm_relay.watch('long_key');
insert into long_key values (repeat('k', 2600));
select is(pg_temp.last('action'), 'truncated', 'a key that fits no index is told as an upheaval of its module');

create table loud (id int primary key, body text);
create function pg_temp.settings() returns void language plpgsql as $$
begin
  perform set_config(name, value, true) from (values
    ('timezone', 'Asia/Kathmandu'), ('datestyle', 'SQL, DMY'), ('intervalstyle', 'iso_8601'), ('bytea_output', 'escape'),
    ('extra_float_digits', '-15'), ('standard_conforming_strings', 'off'), ('escape_string_warning', 'on'),
    ('backslash_quote', 'off'), ('array_nulls', 'off'), ('transform_null_equals', 'on'), ('row_security', 'off'),
    ('search_path', 'pg_temp, public'), ('lc_monetary', 'C'), ('xmlbinary', 'hex'), ('plpgsql.extra_errors', 'all'),
    ('plpgsql.variable_conflict', 'error'), ('quote_all_identifiers', 'on'), ('default_transaction_isolation', 'serializable'),
    ('enable_seqscan', 'off'), ('crm_relay.user_id', ''), ('application_name', E'\\ud83d '' "')
  ) as odd (name, value);
end
$$;
select pg_temp.settings();
select lives_ok($$ insert into public.listings (id, list_price) values ('00000000-0000-4000-8000-000000000009', 1) $$, 'no setting of the session makes an insert raise');
select lives_ok($$ update public.listings set list_price = 2, updated_at = '2026-11-23 12:00+00', description = E'\\u0000 \\ ''''' $$, 'nor an update');
select lives_ok($$ insert into public.odd values (7, E'{"nul": "\\\\u0000"}', '') $$, 'nor a NUL');
select lives_ok($$ delete from public.listings $$, 'nor a delete');
select lives_ok($$ truncate public.leads $$, 'nor a truncate');
select ok(
  (select new_image ->> 'updated_at' = '2026-11-23T12:00:00+00:00' from crm_relay.change where action = 'updated' and record_id = '00000000-0000-4000-8000-000000000009'),
  'and values are rendered as ever');
reset all;

-- each of the settings that values are rendered by, odd alone: seen by a cast, as not every server has another lc_monetary
create type seen as enum ('x');
create function cast_to_json(seen) returns json language sql as $$
  select json_object_agg(name, current_setting(name)) from unnest('{datestyle,intervalstyle,extra_float_digits,bytea_output,lc_monetary,quote_all_identifiers}'::text[]) name
$$;
create cast (seen as json) with function cast_to_json(seen);
create table rendered (id int primary key, seen seen default 'x', at timestamptz default '2026-11-23 12:00:00+00', on_day tstzrange default '[2026-11-23 12:00:00+00,)',
  days daterange default '[2026-11-01,2026-11-05)', takes interval default '-1 day 02:00:00', share float8 default 0.1::float8 + 0.2::float8, body bytea default '\x27ff',
  price money default '12.5', relation regclass default 'listings');
create table rendered_part (id int primary key);
select crm_relay.watch('rendered', access_columns => '{at,on_day,days,takes,share,body,price,relation}');
select crm_relay.watch('rendered_part', part_of => 'rendered', part_link => 'id');
insert into rendered values (0);
create temporary table usual as select new_image::jsonb - 'id' as image from crm_relay.change where module = 'rendered';
grant select on usual to public;
select is(image -> 'seen', '{"datestyle": "ISO, MDY", "intervalstyle": "postgres", "extra_float_digits": "1", "bytea_output": "hex", "lc_monetary": "C", "quote_all_identifiers": "off"}',
          'what a value looks like is settled') from usual;
create temporary table odd_setting (id serial, name text, value text);
insert into odd_setting (name, value) values ('timezone', 'Asia/Kathmandu'), ('datestyle', 'SQL, DMY'), ('intervalstyle', 'iso_8601'), ('extra_float_digits', '-5'),
  ('bytea_output', 'escape'), ('lc_monetary', 'C.UTF-8'), ('quote_all_identifiers', 'on');
create function pg_temp.rendered_under(setting odd_setting, out written jsonb, out read jsonb, out looked_up jsonb) language plpgsql as $$
begin
  perform set_config(setting.name, setting.value, true);
  insert into public.rendered values (setting.id);
  written := pg_temp.last('new_image')::jsonb - 'id';
  insert into public.rendered_part values (setting.id);
  looked_up := pg_temp.last('record_image')::jsonb - 'id';
  read := crm_relay.record_now('rendered', setting.id::text)::jsonb - 'id';
  execute format('reset %I', setting.name);
end
$$;
select is(array[under.written, under.read, under.looked_up], array[usual.image, usual.image, usual.image - 'seen'], 'whatever the session''s ' || odd.name || ' is')
  from odd_setting odd cross join usual cross join lateral pg_temp.rendered_under(odd) as under;
select is(count(distinct pins), 1::bigint, 'the same is settled wherever a value is rendered')
  from pg_proc p
 cross join lateral (select array_agg(c order by c) from unnest(p.proconfig) c where c !~ '^(search_path|lock_timeout|row_security)=') as s (pins)
 where p.oid in ('crm_relay.images(anyelement, anyelement, text[], jsonb, jsonb)'::regprocedure, 'crm_relay.records_of(crm_relay.module, text[])'::regprocedure,
                 'crm_relay.record_now(text, text)'::regprocedure);

-- a cast of the owner's that breaks
create type mood as enum ('fine');
create function cast_to_json(mood) returns json language plpgsql as $$ begin raise exception 'not today'; end $$;
create cast (mood as json) with function cast_to_json(mood);
create table moods (id int primary key, mood mood);
select crm_relay.watch('moods');
select lives_ok($$ insert into moods values (1, 'fine') $$, 'a cast that raises does not stop the writer');
select is(pg_temp.last('action'), 'truncated', 'it is told as an upheaval of its module');

-- a transaction that looked before the table was watched sees no registry row
delete from crm_relay.module where module = 'moods';
select lives_ok($$ insert into moods values (2, 'fine') $$, 'a trigger that sees no registry row stops nobody');
select is(pg_temp.last('action') || ' ' || pg_temp.last('module'), 'truncated moods', 'and says that something changed');

-- a large column that stands first, and its name once more in a value that must be told as it is
create table nested (body jsonb, id int primary key, rule json, number int);
select crm_relay.watch('nested', access_columns => '{rule}');
insert into nested values (pg_temp.large('a'), 1, '{"a":1,"body":null}', 7);
update nested set number = 8;
select is(pg_temp.last('new_image')::jsonb, '{"id":1,"rule":{"a":1,"body":null},"number":8}'::jsonb, 'a column is left out where it is one, and not where its name stands in a value');

-- names that changed since
create table renamed (id int primary key, password_hash text, note text);
select crm_relay.watch('renamed');
insert into renamed values (1, 'secret', 'a');
alter table renamed rename password_hash to pw;
update renamed set note = 'b';
select is(pg_temp.last('action'), 'truncated', 'a hidden column does not get out under another name');
select crm_relay.watch('renamed', hidden_columns => '{pw}');
update renamed set note = 'c';
select ok(pg_temp.last('new_image') not like '%secret%' and pg_temp.last('action') = 'updated', 'watched again it is hidden again');
alter table renamed rename id to number;
update renamed set note = 'd';
select is(pg_temp.last('action'), 'truncated', 'a key that is not there is no record');
create table signed (id int primary key, note text, body jsonb, version int, last_modified_by text, deleted_by text);
select crm_relay.watch('signed');
insert into signed values (1, 'a', pg_temp.large('a'), 1, 'ann', null);
alter table signed rename deleted_by to removed_by;
update signed set note = 'b', last_modified_by = 'ben';
select is(pg_temp.last('action') || ' ' || pg_temp.last('actor'), 'updated ben', 'a column that would say who, and is not there, hinders no other');
alter table signed drop column version;
update signed set note = 'c', last_modified_by = 'cid';
select is(pg_temp.last('action') || ' ' || pg_temp.last('actor'), 'updated cid', 'nor do two of them');
alter table signed rename last_modified_by to by_whom;
update signed set note = 'd', by_whom = 'dan';
select is(pg_temp.last('action') || ' ' || coalesce(pg_temp.last('actor'), 'nobody'), 'updated nobody', 'without any there is no actor');
alter table signed rename body to content;
update signed set note = 'e';
select is(pg_temp.last('new_image')::jsonb, '{"id":1,"note":"e","by_whom":"dan","removed_by":null}'::jsonb,
          'a large column under another name is left out for its size');
update signed set note = 'f', content = pg_temp.large('f');
select ok(pg_temp.last('new_image')::jsonb -> 'content' = pg_temp.large('f'), 'and told when it changed');
alter table signed add column more text;
update signed set more = repeat('m', 1022);
update signed set note = 'g';
select is(pg_temp.last('new_image')::jsonb ->> 'more', null, 'a column that came later is left out, too, from the size on that counts');
alter table signed alter id type bigint;
update signed set note = 'h';
select is(pg_temp.last('action') || ' ' || pg_temp.last('record_id'), 'updated 1', 'a key may get another type in the middle of a session');
alter table signed rename by_whom to last_modified_by;
alter table signed alter last_modified_by type varchar;
update signed set note = 'i', last_modified_by = 'eve';
select is(pg_temp.last('action') || ' ' || pg_temp.last('actor'), 'updated eve', 'and so may what says who');
create table inside (id int primary key, body jsonb, rule json, token text, note text);
select crm_relay.watch('inside', access_columns => '{rule}');
insert into inside values (1, pg_temp.large('a'), '{"a":1,"body":null}', 'x', 'a');
alter table inside rename body to content;
update inside set note = 'b';
select is(pg_temp.last('new_image')::jsonb -> 'rule', '{"a":1,"body":null}', 'the name of a large column that was renamed is not cut out of a value');
update inside set token = 'y', rule = '{"a":2,"token":"y"}';
update inside set token = 'z';
select is(count(*), 3::bigint, 'what differs in hidden columns alone is the same, however these were cut out') from crm_relay.change where module = 'inside';
create table edges (id int primary key, body text, more text, deleted_by text, last_modified_by text);
select crm_relay.watch('edges');
insert into edges values (1, repeat('m', 1022), 'x', 'ann');
update edges set deleted_by = '', last_modified_by = 'ben';
select is(pg_temp.last('actor'), 'ben', 'no name is nobody''s');
select ok(not pg_temp.last('new_image')::jsonb ? 'body', 'a column is left out from 1024 bytes on, as they stand in the image');
update edges set body = repeat('m', 1021);
update edges set more = 'y';
select ok(pg_temp.last('new_image')::jsonb ? 'body', 'and stays with fewer');
create table strange (id int primary key, created_by json);
select crm_relay.watch('strange');
insert into strange values (1, '"\u0000"');
select is(pg_temp.last('action') || ' ' || pg_temp.last('record_id'), 'created 1', 'whoever cannot be told hinders nothing');
create table text_keys (id text primary key);
select crm_relay.watch('text_keys');
insert into text_keys values ('a\u0000b');
select is(pg_temp.last('record_id'), 'a\u0000b', 'a key that looks like an escape stays as it is');

select * from finish();
rollback;
