-- policy: who may see what, by the rules of the usual CRM and of whoever replaces them

begin;
select plan(91);

-- people: Ann and Bea in team T of brokerage B, Cem in team U of brokerage C, and who stands out
create function pg_temp.id(name text) returns uuid language sql immutable as $$
  select ('00000000-0000-4000-8000-' || lpad(encode(convert_to(name, 'UTF8'), 'hex'), 12, '0'))::uuid
$$;
insert into brokers (id, name) values (pg_temp.id('B'), 'B'), (pg_temp.id('C'), 'C');
insert into teams (id, name) values (pg_temp.id('T'), 'T'), (pg_temp.id('U'), 'U');
insert into users (id, email, first_name, last_name, role, team_id, broker_id, is_active)
select pg_temp.id(name), name, name, name, role, pg_temp.id(team), pg_temp.id(broker), active
  from (values ('ann', 'agent', 'T', 'B', true), ('bea', 'team_owner', 'T', 'B', true), ('cem', 'agent', 'U', 'C', true),
               ('dan', 'broker', null, 'B', true), ('eve', 'broker', null, 'C', true), ('adm', 'system_admin', null, null, true),
               ('off', 'agent', 'T', 'B', false), ('odd', 'intern', 'T', 'B', true), ('non', 'broker', null, null, true)) as p (name, role, team, broker, active);
create function pg_temp.who(name text) returns jsonb language sql as $$
  select crm_relay.principal(jsonb_build_object('id', pg_temp.id(name), 'role', 'system_admin', 'team_id', pg_temp.id('U')))
$$;
create function pg_temp.seen(module text, image json) returns text language sql as $$
  select string_agg(name, ' ' order by name)
    from unnest(array['ann', 'bea', 'cem', 'dan', 'eve', 'adm', 'off', 'odd', 'non', 'xxx']) name
   where crm_relay.sees(pg_temp.who(name), module, image)
$$;
create function pg_temp.image(variadic given text[]) returns json language sql as $$
  select json_object(array(select case when n % 2 = 0 and g in ('ann', 'bea', 'cem', 'odd', 'off', 'T', 'U', 'B', 'C') then pg_temp.id(g)::text else g end
                             from unnest(given) with ordinality as g (g, n) order by n))
$$;

-- who a token is
select is(pg_temp.who('ann'), jsonb_build_object('user', pg_temp.id('ann'), 'team', pg_temp.id('T'), 'broker', pg_temp.id('B'), 'role', 'agent'),
          'the table says who a user is, not the token');
select is(pg_temp.who('off'), null, 'who is not active is nobody');
select is(pg_temp.who('xxx'), null, 'who is not known is nobody');
select is(crm_relay.principal('{"id": "no uuid"}'), null, 'an id that does not cast is nobody''s');
select is(crm_relay.principal('{}'), null, 'without an id a token is nobody''s');
select is(crm_relay.principal(jsonb_build_object('sub', pg_temp.id('ann'))) ->> 'user', pg_temp.id('ann')::text, 'sub names the user where id does not');
select is(crm_relay.principal(jsonb_build_object('id', pg_temp.id('ann'), 'sub', pg_temp.id('adm'))) ->> 'user', pg_temp.id('ann')::text, 'but id first');

-- who sees a record
select is(pg_temp.seen('listings', pg_temp.image('owner_id', 'ann', 'team_id', 'T', 'broker_id', 'B', 'is_private', 'false')), 'adm ann bea dan', 'a team''s record: its team, the owner''s broker, admins');
select is(pg_temp.seen('listings', pg_temp.image('owner_id', 'ann', 'team_id', 'U', 'broker_id', 'C')), 'adm ann cem dan', 'the owner''s brokerage counts, not the record''s');
select is(pg_temp.seen('listings', pg_temp.image('owner_id', null, 'team_id', null, 'broker_id', 'C')), 'adm eve', 'the record''s own where it has no owner');
select is(pg_temp.seen('listings', pg_temp.image('owner_id', null, 'team_id', null, 'broker_id', null)), 'adm', 'nulls match nobody');
select is(pg_temp.seen('listings', pg_temp.image('owner_id', 'ann', 'team_id', 'T', 'is_private', 'true')), 'adm ann', 'a private one is its owner''s');
select is(pg_temp.seen('listings', pg_temp.image('owner_id', 'ann', 'team_id', 'T', 'access_level', 'personal')), 'adm ann', 'a personal one, too');
select is(pg_temp.seen('listings', pg_temp.image('owner_id', 'odd', 'team_id', 'U')), 'adm cem dan odd', 'another role sees its own');
select is(pg_temp.seen('listings', pg_temp.image('owner_id', 'off', 'team_id', 'T')), 'adm ann bea dan', 'who is not active does not even see that');
select is(pg_temp.seen('listings', pg_temp.image('listing_agent_id', 'cem', 'user_id', 'ann', 'team_id', 'T')), 'adm ann bea cem eve', 'the first owner that is not null counts');
select is(pg_temp.seen('appointments', pg_temp.image('agent_id', 'cem', 'user_id', 'ann')), 'adm cem eve', 'agent_id is one');
select is(pg_temp.seen('listings', '{}'), 'adm', 'an image without any of these columns is nobody''s');
select is(pg_temp.seen('listings', null), null, 'no image is seen by nobody');
select is(pg_temp.seen('listings', '{"owner_id": "\u0000", "is_private": "x"}'), 'adm', 'odd values are no obstacle and no door');
select is(crm_relay.usual_may_see_row('{"user": null, "role": "agent", "team": null}', 'listings', '{"team_id": null, "owner_id": null}'), false, 'nobody sees nothing');
select is(crm_relay.usual_may_see_row('{"user": "x", "role": ["system_admin"]}', 'listings', '{}'), false, 'a role that is an array is the table''s to resolve');

-- a private lead takes its appointments with it
insert into leads (id, owner_id, team_id, is_private) values (pg_temp.id('l1'), pg_temp.id('bea'), pg_temp.id('T'), true), (pg_temp.id('l2'), pg_temp.id('bea'), pg_temp.id('T'), false);
create function pg_temp.visit(lead text, private text default 'false') returns json language sql as $$
  select json_build_object('agent_id', pg_temp.id('ann'), 'team_id', pg_temp.id('T'), 'lead_id', pg_temp.id(lead), 'is_private', private)
$$;
select is(pg_temp.seen('appointments', pg_temp.visit('l2')), 'adm ann bea dan', 'an appointment of a lead that all may see');
select is(pg_temp.seen('appointments', pg_temp.visit('l1')), 'adm ann bea', 'of a private one: its owner and the lead''s');
select is(pg_temp.seen('appointments', pg_temp.visit('l1', 'true')), 'adm ann', 'one that is private itself: its owner alone');
select is(pg_temp.seen('appointments', pg_temp.visit('l9')), 'adm ann', 'of a lead that cannot be found: as if it were private');
select is(crm_relay.rooms_of('appointments', pg_temp.visit('l1')), array['user:' || pg_temp.id('ann')], 'and it is in no room of many');
select is(crm_relay.rooms_of('appointments', pg_temp.visit('l2')), array['user:' || pg_temp.id('ann'), 'team:' || pg_temp.id('T'), 'broker:' || pg_temp.id('B')], 'where the other is');
insert into appointments (id, agent_id, team_id, lead_id) values (pg_temp.id('a1'), pg_temp.id('ann'), pg_temp.id('T'), pg_temp.id('l1')), (pg_temp.id('a2'), pg_temp.id('ann'), pg_temp.id('T'), null);
insert into appointments (id, agent_id, team_id, lead_id) values (pg_temp.id('a3'), pg_temp.id('ann'), pg_temp.id('T'), pg_temp.id('l2'));
select results_eq($$ select h ->> 'of', h ->> 'module', h ->> 'record_id', h -> 'image' ->> 'lead_id'
                       from crm_relay.heirs_of('leads', array[pg_temp.id('l1'), pg_temp.id('l2'), pg_temp.id('l9')]::text[]) h order by 3 $$,
  $$ values (pg_temp.id('l1')::text, 'appointments', pg_temp.id('a1')::text, pg_temp.id('l1')::text),
            (pg_temp.id('l2')::text, 'appointments', pg_temp.id('a3')::text, pg_temp.id('l2')::text) $$, 'the appointments of leads are found');
select is_empty($$ select crm_relay.heirs_of('listings', array[pg_temp.id('l1')]::text[]) $$, 'what nothing depends on has none');

-- today's row
select is(crm_relay.may_see(pg_temp.who('bea'), 'leads', pg_temp.id('l1')::text), true, 'today''s row is judged');
select is(crm_relay.may_see(pg_temp.who('ann'), 'leads', pg_temp.id('l1')::text), false, 'by the same rules');
select is(crm_relay.may_see(pg_temp.who('adm'), 'leads', pg_temp.id('l9')::text), false, 'what is not there is seen by nobody');
select is(crm_relay.may_see(pg_temp.who('adm'), 'leads', $x$' or true --$x$), false, 'an id that does not cast is no record''s');
select is((crm_relay.accesses_now('contacts', '{x}'))[1]::text, null, 'a part has no access of its own');
select is(crm_relay.access_now('leads', pg_temp.id('l2')::text) ->> 'first_name', null, 'nothing but key and access columns is looked up');
select is(crm_relay.access_now('users', pg_temp.id('ann')::text) ->> 'email', null, 'of users, too');

-- several at once
create function pg_temp.private(ids text[]) returns text language sql as $$
  select string_agg(coalesce(image ->> 'is_private', 'none'), ' ' order by place) from unnest(crm_relay.accesses_now('leads', ids)) with ordinality as u (image, place)
$$;
select is(pg_temp.private(array[pg_temp.id('l1'), pg_temp.id('l9'), pg_temp.id('l2'), pg_temp.id('l1')]::text[]), 'true none false true', 'records that are looked up together come in the order of their ids');
select is(crm_relay.may_subscribe(pg_temp.who('bea'), 'leads:' || pg_temp.id('l1'), true), true, 'a relay of version 6 is answered');
select is(crm_relay.may_subscribe(pg_temp.who('ann'), 'leads:' || pg_temp.id('l1'), true), false, 'by the same rules');
select is(crm_relay.may_subscribe(pg_temp.who('adm'), 'users:' || pg_temp.id('ann'), true), false, 'and not in what has no room');
select is(pg_temp.private(array[pg_temp.id('l1')::text, 'x', null, pg_temp.id('l2')::text]), 'true none none false', 'one that is no id, or none, does not hide the others');
select is(pg_temp.private(array[pg_temp.id('l2')]::text[]), 'false', 'one alone');
select is(pg_temp.private('{}'), null, 'and none');
select is(crm_relay.accesses_now('leads', array[id1, id2])::text, array[crm_relay.access_now('leads', id1), crm_relay.access_now('leads', id2)]::text, 'as each of them comes')
  from (select pg_temp.id('l1')::text, pg_temp.id('l2')::text) as c (id1, id2);
create table boxes (id int[] primary key, owner_id text);
insert into boxes values ('{1}', 'ann'), ('{2}', 'bea');
select crm_relay.watch('boxes');
select is((select string_agg(coalesce(image ->> 'owner_id', 'none'), ' ' order by place) from unnest(crm_relay.accesses_now('boxes', '{"{1}","{{{{{{{1}}}}}}}","{2}"}')) with ordinality as u (image, place)),
  'ann none bea', 'nor one that cannot be read for another reason');
update crm_relay.setting set version = 6;
select throws_ok($$ select crm_relay.accesses_now('leads', '{x,y}') $$, '40001', null, 'who looks with the eyes of an earlier version has to look again');
update crm_relay.setting set version = 7;
create table heaps (id int, owner_id text, "100%s" text);
create table heirlooms () inherits (heaps);
insert into heaps values (1, 'ann'), (2, 'bea'), (1, 'cem');
insert into heirlooms values (1, 'dan');
select crm_relay.watch('heaps', key_columns => '{id}', access_columns => '{owner_id,"100%s"}');
select is(format('%s %s', cardinality(found), found[2] ->> 'owner_id'), '3 bea', 'where several rows have an id one of them counts, and none for another id') from (select crm_relay.accesses_now('heaps', '{1,2,1}')) as f (found);
alter table heaps rename to piles;
select is((crm_relay.accesses_now('heaps', '{2,1}'))[1] ->> 'owner_id', crm_relay.access_now('heaps', '2') ->> 'owner_id', 'a table is looked into under whatever name it has by now');
create table heaps as select 2 as id, 'eve'::text as owner_id, ''::text as "100%s";
grant select on heaps to crm_relay_policy;
select is(crm_relay.access_now('heaps', '2') ->> 'owner_id', 'bea', 'and not another one that has its name');
alter table leads enable row level security;
select is(pg_temp.private(array[pg_temp.id('l1'), pg_temp.id('l2')]::text[]), 'true false', 'also under row level security, as their role bypasses it');
alter role crm_relay_policy nobypassrls;
create policy any_of_them on leads using (true);
select is(pg_temp.private(array[pg_temp.id('l1'), pg_temp.id('l2')]::text[]), 'none none', 'where it does not there is none');
alter table leads disable row level security;
alter table leads alter column access_level type text;
select is(pg_temp.private(array[pg_temp.id('l1'), pg_temp.id('l2')]::text[]), 'none none', 'nor where a column has another type than when the table was watched');
alter table leads alter column access_level type varchar;
create function pg_temp.claims(variadic names text[]) returns text[] language sql as $$ select array_agg(jsonb_build_object('id', pg_temp.id(name))::text) from unnest(names) name $$;
create function pg_temp.each_known(claims text[]) returns jsonb[] language sql as $$ select array(select crm_relay.known(c) from unnest(claims) with ordinality as u (c, place) order by place) $$;
select is(crm_relay.known(c), pg_temp.each_known(c), 'people are known together as each of them is') from (select pg_temp.claims('dan', 'off', 'ann', 'nobody', 'adm') || '{"sub": "x"}'::text) as c (c);
select is(crm_relay.known(c), pg_temp.each_known(c), 'also with somebody who has no name, or claims that are none') from (select '{"role": "system_admin"}'::text || pg_temp.claims('ann') || '{"id": "\u0000"}'::text) as c (c);
select is((crm_relay.known(pg_temp.claims('ann', 'off', 'bea')))[2], null, 'who is not active is nobody');

-- scope rooms
create function pg_temp.enters(name text) returns text language sql as $$
  select string_agg(room, ' ' order by room) from unnest(array['user:ann', 'user:bea', 'team:T', 'team:U', 'broker:B', 'broker:C', 'team:T/listings']) room
   where crm_relay.enters(pg_temp.who(name), regexp_replace(room, ':([a-zA-Z]+)', ':' || pg_temp.id(substring(room from ':([a-zA-Z]+)'))::text))
$$;
select is(pg_temp.enters('ann'), 'team:T team:T/listings user:ann', 'an agent: their own and their team''s');
select is(pg_temp.enters('dan'), 'broker:B', 'a broker: the brokerage''s');
select is(pg_temp.enters('adm'), 'broker:B broker:C team:T team:T/listings team:U user:ann user:bea', 'an admin: any');
select is(pg_temp.enters('off'), null, 'who is not active: none');
select is(pg_temp.enters('non'), null, 'a broker of no brokerage: none');
select is(crm_relay.enters('{"user": "x", "team": null}', 'team:'), false, 'nulls match no room');
select is(crm_relay.rooms_of('listings', pg_temp.image('owner_id', 'ann', 'team_id', 'T', 'broker_id', 'C')),
          array['user:' || pg_temp.id('ann'), 'team:' || pg_temp.id('T'), 'broker:' || pg_temp.id('B')], 'a record is in its owner''s, its team''s and its owner''s brokerage''s room');
select is(crm_relay.rooms_of('listings', pg_temp.image('team_id', 'T', 'broker_id', 'C')),
          array['team:' || pg_temp.id('T'), 'broker:' || pg_temp.id('C')], 'without an owner in its own brokerage''s');
select is(crm_relay.rooms_of('leads', pg_temp.image('owner_id', 'ann', 'team_id', 'T', 'is_private', 'true')), array['user:' || pg_temp.id('ann')], 'a private one is in its owner''s alone');
select is(crm_relay.rooms_of('leads', '{"id": 1}'), '{}'::text[], 'a record without any of it is in none');
select is(crm_relay.placed('leads', null), '{}'::text[], 'no image is in no room');
select is(crm_relay.placed('leads', '{"listing_agent_id": "o", "x": "\u0000"}'), '{user:o}'::text[], 'a NUL elsewhere is no obstacle');

-- users are journaled in a narrow form
delete from crm_relay.change;
update users set email = 'other', last_login_at = now(), password_hash = 'x' where id = pg_temp.id('ann');
select is_empty('select from crm_relay.change', 'a login is not journaled');
update users set team_id = pg_temp.id('U'), email = 'third' where id = pg_temp.id('ann');
select results_eq('select module, action, record_id, old_image::text, new_image::text from crm_relay.change',
  $$ values ('users', 'updated', pg_temp.id('ann')::text,
     format('{ "id" : "%s", "role" : "agent", "team_id" : "%s", "broker_id" : "%s", "is_active" : true }', pg_temp.id('ann'), pg_temp.id('T'), pg_temp.id('B')),
     format('{ "id" : "%s", "role" : "agent", "team_id" : "%s", "broker_id" : "%s", "is_active" : true }', pg_temp.id('ann'), pg_temp.id('U'), pg_temp.id('B'))) $$,
  'another team is, with what decides access and nothing else');
select is((select count(*)::int from crm_relay.module where narrow and relation = 'users'::regclass), 1, 'as the registry says');
select ok(not has_table_privilege('crm_relay_snapshot', 'users', 'select'), 'no snapshot of them can be read');
select ok(not has_column_privilege('crm_relay_policy', 'users', 'email', 'select') and has_column_privilege('crm_relay_policy', 'users', 'team_id', 'select'),
          'and the policy may read only what decides');

-- disconnect
select crm_relay.disconnect('ann');
select is((select format('%s %s by %s', module, record_id, db_user) from crm_relay.change where module = 'crm_relay'), format('crm_relay ann by %s', session_user), 'whom an administrator throws out stands in the journal');
select is((select format('%s by %s', user_id, by_role) from crm_relay.disconnected), format('ann by %s', session_user), 'and with the time up to which their tokens are refused');
select crm_relay.disconnect(upper(pg_temp.id('ann')::text));
select ok(exists (select from crm_relay.disconnected where user_id = pg_temp.id('ann')::text) and exists (select from crm_relay.change where record_id = pg_temp.id('ann')::text),
          'a uuid in upper case is the one that tokens name');
select ok(not has_function_privilege('crm_relay_serve', 'crm_relay.disconnect(text)', 'execute') and has_function_privilege('crm_relay_audit', 'crm_relay.disconnect(text)', 'execute'), 'only the DBA''s role may do it');

-- what is missing or raises opens nothing
alter table users rename column role to duty;
select is(crm_relay.known(jsonb_build_object('id', pg_temp.id('ann'))::text), null, 'a column that has another name lets nobody in');
alter table users rename column duty to role;
create or replace function crm_relay.may_see_row(principal jsonb, module text, image json) returns boolean language plpgsql as $$ begin raise exception 'x'; end $$;
select is(crm_relay.sees(pg_temp.who('adm'), 'listings', '{}'), null, 'rules of the CRM''s owner that raise open nothing');
create or replace function crm_relay.rooms_of(module text, image json) returns text[] language plpgsql as $$ begin raise exception 'x'; end $$;
select is(crm_relay.placed('leads', '{}'), null, 'and are told as unknown');
create or replace function crm_relay.may_enter(principal jsonb, room text) returns boolean language sql as $$ select null::boolean $$;
select is(crm_relay.enters(pg_temp.who('adm'), 'team:x'), false, 'null is no permission');
alter function crm_relay.access_now(text, text) rename to look_at_one;
create function crm_relay.access_now(module text, id text) returns json language plpgsql as $$ begin raise exception 'by itself'; end $$;
select is(pg_temp.private(array[pg_temp.id('l1'), pg_temp.id('l2')]::text[]), 'true false', 'several records take one look, and not one each');
select is(array_position(crm_relay.known(pg_temp.claims('ann', 'bea')), null), null, 'several people, too');
drop function crm_relay.access_now(text, text);
alter function crm_relay.look_at_one(text, text) rename to access_now;
create or replace function crm_relay.principal(claims jsonb) returns jsonb language plpgsql as $$ begin return '{"user": "all"}'; end $$;
select is(crm_relay.known(pg_temp.claims('ann', 'bea')), array['{"user": "all"}', '{"user": "all"}']::jsonb[], 'rules of the CRM''s owner are asked for each');
create or replace function crm_relay.principal(claims jsonb) returns jsonb language sql as 'select crm_relay.usual_principal(claims)';
drop function crm_relay.principal(jsonb);
discard plans;
select is(crm_relay.known(pg_temp.claims('ann', 'bea')), array[null, null]::jsonb[], 'where there are no rules nobody is anybody');
create function crm_relay.principal(claims jsonb) returns jsonb language plpgsql as 'begin return crm_relay.usual_principal(claims); end';
create table agents (id text, role text, is_active boolean, primary key (id, is_active));
insert into agents values ('q', 'system_admin', false), ('r', 'agent', true);
select crm_relay.unwatch('users');
select crm_relay.watch('agents', module => 'users', key_columns => '{id,is_active}', narrow => true, access_columns => '{role}');
select is(crm_relay.known(c), pg_temp.each_known(c), 'nor is anybody who is not active, where that is part of a key')
  from (select array[jsonb_build_object('id', '["q", false]'), jsonb_build_object('id', '["r", true]')]::text[]) as c (c);
select is((crm_relay.known('{"{\"id\": \"[\\\"q\\\", false]\"}","{\"id\": \"[\\\"r\\\", true]\"}"}'::text[]))[2] ->> 'role', 'agent', 'and the others are who they are');
select crm_relay.unwatch('agents');
select is(crm_relay.known('{"{\"id\": 1}","{\"id\": 2}"}'::text[]), array['{"user": "1"}', '{"user": "2"}']::jsonb[], 'without a table of users each is their own');
select is(crm_relay.principal('{"id": "ann", "role": "system_admin", "team_id": "T"}'), '{"user": "ann"}'::jsonb, 'without a table of users a token is its own user and nothing else');
select is(crm_relay.usual_may_see_row('{"user": "ann"}', 'listings', '{"owner_id": "ann"}'), true, 'who sees their own records');
select is(crm_relay.usual_may_see_row('{"user": "ann"}', 'listings', '{"owner_id": "bea", "team_id": "T"}'), false, 'and no others');

select * from finish();
rollback;
