-- watch and unwatch

begin;
select plan(35);

select throws_like($$ select crm_relay.watch('crm_relay.change') $$, '%never watched%', 'the relay''s own tables are refused');
select throws_like($$ select crm_relay.watch('pg_catalog.pg_class') $$, '%never watched%', 'the server''s, too');
create view seen as select 1 as id;
select throws_like($$ select crm_relay.watch('seen') $$, '%is not a table%', 'a view is refused');
create table keyless (a int);
select throws_like($$ select crm_relay.watch('keyless') $$, '%no primary key%', 'a table without a key is refused');
select lives_ok($$ select crm_relay.watch('keyless', key_columns => '{a}') $$, 'unless it is said what tells its rows apart');
create table "user" (id int primary key);
select throws_like($$ select crm_relay.watch('"user"') $$, '%no module may be called user%', 'no module may be called like a scope');
select lives_ok($$ select crm_relay.watch('"user"', module => 'person') $$, 'but by another name');
select throws_like($$ select crm_relay.watch('listings', hidden_columns => '{nothing}') $$, '%has no column nothing%', 'a column that is not there is named');
select throws_like($$ select crm_relay.watch('listings', hidden_columns => '{id}') $$, '%cannot be hidden%', 'a key cannot be hidden');
select throws_ok($$ select crm_relay.watch('leads', module => 'listings') $$, '23505', null, 'two tables cannot share a module');
select throws_like($$ select crm_relay.unwatch('teams') $$, '%is not watched%', 'what is not watched cannot be unwatched');
select throws_like($$ select crm_relay.unwatch('clients') $$, '%has parts%', 'what has parts cannot be unwatched before them');

-- watching again changes what is given and leaves the rest
create table notes (id bigint primary key, body text, author text);
select crm_relay.watch('notes', hidden_columns => '{author}');
select crm_relay.watch('notes', event => 'REMARK');
select results_eq($$ select event, hidden_columns, module from crm_relay.module where relation = 'notes'::regclass $$,
                  $$ values ('REMARK', '{author}'::text[], 'notes') $$, 'watching again leaves what is not given');
create temporary table standing as select oid from pg_trigger where tgrelid = 'notes'::regclass;
select crm_relay.watch('notes');
select set_eq($$ select oid from pg_trigger where tgrelid = 'notes'::regclass $$, 'select oid from standing', 'triggers that stand are left alone');
alter table notes disable trigger "!crm_relay";
select crm_relay.watch('notes');
insert into notes values (1, 'x', 'secret');
select is((select count(*) from crm_relay.change where module = 'notes'), 1::bigint, 'one that was disabled is put right');
select crm_relay.unwatch('notes');
select is_empty($$ select from pg_trigger where tgrelid = 'notes'::regclass $$, 'unwatching takes the triggers away');
select is((select count(*) from crm_relay.change where module = 'notes'), 1::bigint, 'and leaves the journal');

-- names
create schema "Odd Schema";
create table "Odd Schema"."Big ""Deals""" ("The Key" text, "No" int, "Data" text, primary key ("No", "The Key"));
select crm_relay.watch('"Odd Schema"."Big ""Deals"""');
select results_eq($$ select module, event, key_columns from crm_relay.module where relation = '"Odd Schema"."Big ""Deals"""'::regclass $$,
                  $$ values ('big_deals_', 'BIG_DEALS_', '{No,The Key}'::text[]) $$, 'a module''s name follows from the table''s');
insert into "Odd Schema"."Big ""Deals""" values ('a"b', 7, 'x');
select is((select record_id from crm_relay.change order by seq desc limit 1), '["7","a\"b"]', 'a key of two columns is a JSON array of texts, in the key''s order');
select is((select event from crm_relay.watch('listings')), 'LISTING', 'an event''s name is the module''s in the singular');

-- partitioned tables, inheritance
create table visits (id int, place text, note text, primary key (id, place)) partition by list (place);
create table visits_a partition of visits for values in ('a');
create table visits_b partition of visits for values in ('b');
select throws_like($$ select crm_relay.watch('visits_a') $$, '%is a partition%', 'a partition alone is refused');
select crm_relay.watch('visits', key_columns => '{id}');
insert into visits values (1, 'a', 'x');
insert into visits_b values (2, 'b', 'x');
select is((select count(*) from crm_relay.change where module = 'visits' and action = 'created'), 2::bigint, 'rows are captured however they come in');
create table visits_c partition of visits for values in ('c');
insert into visits values (3, 'c', 'x');
select is((select count(*) from crm_relay.change where module = 'visits'), 3::bigint, 'also those of a partition that came later');
truncate visits_a;
select is((select action from crm_relay.change order by seq desc limit 1), 'truncated', 'a truncate of one partition is told');
select crm_relay.unwatch('visits');
select is_empty($$ select from pg_trigger where tgrelid in ('visits'::regclass, 'visits_a'::regclass) and tgname like '!crm_relay%' $$, 'nothing is left on any partition');

-- what the trigger goes by is made of what there is
create function pg_temp.goes_by(module text) returns text language sql as $$
  select concat_ws(' ', m.doorbell, m.slot_seconds, m.marks) from crm_relay.module m where m.module = goes_by.module
$$;
update crm_relay.setting set doorbell = 'never', retention = '6 hours';
select is(pg_temp.goes_by('listings'), 'never 3600 {id,user_id,version,last_modified_by,created_by,deleted_by}', 'settings that change are in the registry');
create table signed (id int primary key, note text, last_modified_by text);
select crm_relay.watch('signed');
select is(pg_temp.goes_by('signed'), 'never 3600 {id,last_modified_by}', 'and those that are there');
select crm_relay.watch('signed', hidden_columns => '{last_modified_by}');
select is(pg_temp.goes_by('signed'), 'never 3600 {id}', 'a hidden column names nobody');
update crm_relay.module set hidden_columns = '{}', key_columns = '{note}' where module = 'signed';
select is(pg_temp.goes_by('signed'), 'never 3600 {last_modified_by}', 'also where the registry is changed by hand');
select crm_relay.unwatch('signed');
update crm_relay.setting set doorbell = 'adaptive', retention = '7 days';

-- the trigger fires first
select is((select min(t.tgname) from pg_trigger t where t.tgrelid = 'listings'::regclass and not t.tgisinternal), '!crm_relay', 'its name sorts first');

-- a table that is dropped while it is watched
create table brief (id int primary key);
select crm_relay.watch('brief');
drop table brief;
select lives_ok($$ update listings set city = 'x' $$, 'a table that was dropped harms nobody');
select results_eq($$ select crm_relay.unwatch(relation) from crm_relay.module where module = 'brief' $$, $$ values ('brief') $$, 'and can be unwatched');

-- no rights of the relay's are left on the CRM's tables
select crm_relay.unwatch(relation) from (select relation from crm_relay.module order by part_of is null, module) m;
select is_empty($$ select c.oid::regclass from pg_class c join pg_attribute a on a.attrelid = c.oid where a.attacl::text like '%crm_relay%' and c.relnamespace <> 'crm_relay'::regnamespace $$, 'no right on a column is left');
select crm_relay.watch('clients');
select lives_ok($$ select crm_relay.watch('contacts', part_of => 'clients', part_link => 'contact_id') $$, 'and it may be watched again');
select ok(has_column_privilege('crm_relay_part', 'clients', 'contact_id', 'select')
          and not has_column_privilege('crm_relay_part', 'clients', 'status', 'select'),
          'the role that looks for a part''s records reads keys and access columns only');

select * from finish();
rollback;
