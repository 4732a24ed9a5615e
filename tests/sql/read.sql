-- reading: changes since a cursor, the audit view, pruning

begin;
select plan(33);

-- changes since a cursor
create function pg_temp.cursor() returns text language sql as $$
  select crm_relay.epoch() || '.' || pg_current_snapshot() || '.'
$$;
create temporary table start as select pg_temp.cursor() as cursor;
insert into leads (id, first_name) values ('00000000-0000-4000-8000-000000000001', 'a'), ('00000000-0000-4000-8000-000000000002', 'b');
update leads set first_name = 'c' where first_name = 'a';
select results_eq($$ select action, record_id from crm_relay.changes_since((select cursor from start)) $$,
  $$ values ('created', '00000000-0000-4000-8000-000000000001'), ('created', '00000000-0000-4000-8000-000000000002'), ('updated', '00000000-0000-4000-8000-000000000001') $$,
  'what came after a cursor, in order');
select is_empty($$ select crm_relay.changes_since(crm_relay.epoch() || '.' || pg_snapshot_xmin(pg_current_snapshot()) || ':' || pg_current_xact_id()::text::bigint + 1 || ':.1') $$,
  'a later cursor has seen it');
select isnt_empty($$ select crm_relay.changes_since(crm_relay.epoch() || '.' || pg_current_xact_id() || ':' || pg_current_xact_id()::text::bigint + 5 || ':' || pg_current_xact_id() || '.1') $$,
  'what was open then is told');
select isnt_empty($$ select crm_relay.changes_since(crm_relay.epoch() || '.' || pg_current_xact_id()::text::bigint - 3 || ':' || pg_current_xact_id()::text::bigint + 5 || ':' || pg_current_xact_id()::text::bigint - 3 || '+1+2.1') $$,
  'also where it is written by what it is above another');
select throws_like($$ select crm_relay.changes_since('nonsense') $$, '%is no cursor%', 'what is no cursor is refused');
select throws_like($$ select crm_relay.changes_since('00000000.1:1:.') $$, '%this database is in epoch%', 'another history''s cursor is refused');
select throws_like($$ select crm_relay.changes_since(crm_relay.epoch() || '.1:1:' || repeat('1,', 4000) || '1.') $$, '%is no cursor%', 'an endless one, too');
update crm_relay.setting set pruned_txid = pg_current_xact_id();
select throws_like($$ select crm_relay.changes_since((select cursor from start)) $$, '%still holds%', 'a cursor from before what was pruned is refused');
update crm_relay.setting set pruned_txid = '0';

-- audit
select results_eq($$ select action, field, old_value::text, new_value::text from crm_relay.audit where action = 'updated' $$,
  $$ values ('updated', 'first_name', '"a"', '"c"') $$, 'the audit view tells what changed from what to what');
select ok(bool_and(db_user = session_user and application = current_setting('application_name') and txid = pg_current_xact_id()), 'and who did it') from crm_relay.audit;

select is_empty($$ select from crm_relay.audit where old_value::text = 'null' and new_value is null or old_value is null and new_value::text = 'null' $$,
  'what a new row leaves empty is no change');
update leads set notes = 'kept', tags = '["a"]' where id = '00000000-0000-4000-8000-000000000002';
delete from leads where id = '00000000-0000-4000-8000-000000000002';
select results_eq($$ select field, old_value::text, new_value::text from crm_relay.audit where action = 'deleted' and field in ('notes', 'tags', 'last_name') order by field $$,
  $$ values ('notes', '"kept"', null), ('tags', '["a"]', null) $$, 'of what was deleted it tells all that was in it');
truncate leads;
select results_eq($$ select module, record_id, field, old_value::text, new_value::text from crm_relay.audit where action = 'truncated' $$,
  $$ values ('leads', null::text, null::text, null::text, null::text) $$, 'and that more went than rows can say');

insert into crm_relay.change (slot, module, action, record_id, db_user, db_role, application, old_image, new_image)
values (0, 'odd', 'updated', '1', 'x', 'x', 'x', E'{"a":"\\u0000","b":1}', E'{"a":"\\\\u0000","b":1}');
select results_eq($$ select field, old_value::text, new_value::text from crm_relay.audit where module = 'odd' $$,
  $$ values ('a', E'"\\ufffd\\u2400\\ufffd"', E'"\\\\u0000"') $$, 'a value that no operator of json can look into is told by what stands for it');
select is((select string_agg(f.name, ' ' order by f.name) from (values ('known(text)'), ('sees(jsonb, text, json)'), ('enters(jsonb, text)'), ('placed(text, json)'), ('prune(xid8)'), ('renew()'), ('record_now(text, text)')) f (name)
            where has_function_privilege('crm_relay_audit', 'crm_relay.' || f.name, 'execute')),
  'enters(jsonb, text) known(text) placed(text, json) sees(jsonb, text, json)', 'who audits may ask the policy, and change nothing');

-- the ring
select is((select count(distinct crm_relay.slot(now() + n * interval '28 hours', '7 days')) from generate_series(0, 9) n), 10::bigint, 'a slot is a sixth of the retention, ten make the ring');
select is(crm_relay.slot(now(), '7 days'), crm_relay.slot(now() + interval '11 days 16 hours', '7 days'), 'and then it begins anew');
insert into crm_relay.change (slot, txid, module, action, changed_at, db_user, db_role, application)
select crm_relay.slot(now() - n * interval '28 hours' + interval '1 hour', '7 days'), '10', 'leads', 'truncated', now() - n * interval '28 hours' + interval '1 hour', 'x', 'x', 'x'
  from generate_series(5, 8) n;
create temporary table pruned as select crm_relay.prune() as slot;
select is((select count(*) from pruned), 1::bigint, 'one slot at a time: who reads the journal waits for its lock');
insert into pruned select crm_relay.prune();
select set_eq('select slot from pruned',
  $$ select 'crm_relay.change_' || crm_relay.slot(now() - n * interval '28 hours' + interval '1 hour', '7 days') from generate_series(7, 8) n $$,
  'slots that hold nothing younger than the retention are truncated');
select is((select pruned_txid::text from crm_relay.setting), '10', 'and what was lost is recorded');
select is((select count(*) from crm_relay.change where txid = '10'), 2::bigint, 'the rest stays');
select is_empty('select crm_relay.prune()', 'there is nothing to do twice');
insert into crm_relay.change (slot, module, action, changed_at, db_user, db_role, application)
values (crm_relay.slot(now() - interval '9 days', '7 days'), 'leads', 'truncated', now() - interval '9 days', 'x', 'x', 'x');
select is_empty('select crm_relay.prune()', 'nor is anything of a transaction that may still be open');
update crm_relay.setting set retention = '1 hour';
select lives_ok($$ select crm_relay.prune() $$, 'another retention is obeyed');

-- a history of which something is gone
create temporary table was as select crm_relay.epoch() as epoch;
select is(crm_relay.disown('00000000'), false, 'an epoch that has passed is nobody''s to disown');
select is((select epoch from was), crm_relay.epoch(), 'and this one stays');
select is(crm_relay.disown((select epoch from was)), true, 'this one is another from now on');
select isnt((select epoch from was), crm_relay.epoch(), 'for every cursor');

-- a journal from another server
select is(crm_relay.renew(), false, 'a journal of this server''s own stays');
create temporary table before as select install_id from crm_relay.setting;
insert into crm_relay.change (slot, txid, module, action, db_user, db_role, application)
values (0, (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000)::text::xid8, 'leads', 'truncated', 'x', 'x', 'x');
select is(crm_relay.renew(), true, 'one with transactions that are yet to come begins anew');
select ok((select count(*) from crm_relay.change) = 0 and (select b.install_id <> s.install_id from before b, crm_relay.setting s), 'empty, and as another history');

create temporary table renewed as select install_id from crm_relay.setting;
update crm_relay.setting set pruned_txid = '900000000000';
select is(crm_relay.renew(), true, 'as does an empty one that was pruned beyond what this server has come to');
select ok(s.pruned_txid = '0' and s.install_id <> r.install_id, 'so that no cursor is too old for it') from crm_relay.setting s, renewed r;

select * from finish();
rollback;
