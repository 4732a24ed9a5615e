-- who owns a watched table gains nothing by the trigger

begin;
select plan(37);

create role mallory;
grant create, usage on schema public to mallory;
insert into leads (id, first_name) values ('00000000-0000-4000-8000-000000000001', 'not mallory''s');

set local role mallory;
create table public.loot (as_role text, tried text, got text);
grant insert on public.loot to public;
-- what is put into loot is taken back with all else that such code does; a prepared statement is not
create function public.tell(what text) returns void language plpgsql as $$
begin
  execute format('prepare %I as select 1', concat_ws(' ', 'loot', (select count(*) from pg_prepared_statements), current_user, what));
end
$$;
create view public.told as
  select split_part(name, ' ', 3) as as_role, substr(name, length(split_part(name, ' ', 2) || split_part(name, ' ', 3)) + 8) as what
    from pg_prepared_statements where name like 'loot %';
create type public.bait as enum ('x');

-- code of mallory's that runs when a row is rendered, and tries all that it can think of
create function public.rob(public.bait) returns json language plpgsql as $$
declare
  tried text;
begin
  foreach tried in array array[
    'insert into crm_relay.change (slot, module, action, record_id, db_user, db_role, application, new_image)
     values (0, ''leads'', ''created'', ''forged'', ''x'', ''x'', ''x'', ''{}'')',
    'delete from crm_relay.module',
    'update crm_relay.setting set install_id = pg_catalog.gen_random_uuid()',
    'select first_name from public.leads',
    'select new_image from crm_relay.change limit 1',
    'select crm_relay.watch(''public.leads'')',
    'select crm_relay.prune()',
    'select crm_relay.records_of(null, null)',
    'set role postgres',
    'reset role',
    'set session authorization postgres',
    'alter role mallory superuser',
    'create table public.mine (a int)',
    'create temp table mine (a int)',
    'alter function crm_relay.image(anyelement) security invoker',
    'alter function crm_relay.image(anyelement) set search_path = public, pg_catalog',
    'alter function crm_relay.images(anyelement, anyelement, text[], jsonb, jsonb) security invoker',
    'drop owned by crm_relay_image',
    'copy (select 1) to program ''true''']
  loop
    begin
      execute tried;
      perform public.tell('done ' || tried);
    exception when others then
      perform public.tell('denied');
    end;
  end loop;
  return '"robbed"';
end
$$;
create cast (public.bait as json) with function public.rob(public.bait);
create table public.traps (id int primary key, bait public.bait, token text);
reset role;
select crm_relay.watch('public.traps');
set local role mallory;
insert into public.traps values (1, 'x');
reset role;

select is((select action from crm_relay.change where module = 'traps'), 'created', 'the change is journaled');
select set_eq('select distinct as_role from public.told', array['crm_relay_image'], 'mallory''s code ran as the role without rights');
select is((select count(*)::int from public.told), 19, 'it tried everything');
-- a temporary table is everybody's right, and to drop what one owns
select set_eq($$ select what from public.told where what like 'done%' $$, array['done create temp table mine (a int)', 'done drop owned by crm_relay_image'],
              'and got nothing but what everybody may');
select ok(to_regprocedure('crm_relay.image(anyelement)') is not null and to_regclass('pg_temp.mine') is null, 'which is taken back');
deallocate all;

-- a cast that changes what the names of those who go on mean, so that they run an operator of mallory's
create schema evil authorization mallory;
set local role mallory;
grant usage on schema evil to public;
create function evil.plus(int4, int4) returns int4 language plpgsql as $$
begin
  if current_user operator(pg_catalog.<>) 'mallory' then
    perform public.tell('went on');
    insert into crm_relay.change (slot, module, action, record_id, db_user, db_role, application)
    values (0, 'leads', 'created', 'forged', 'x', 'x', 'x');
  end if;
  return $1 operator(pg_catalog.+) $2;
end
$$;
create operator evil.+ (leftarg = int4, rightarg = int4, function = evil.plus);
create type public.lure as enum ('for the session', 'for the transaction', 'one under the other', 'TimeZone');
create function public.mislead(public.lure) returns json language plpgsql as $$
begin
  if $1 <> 'TimeZone' then
    perform set_config('search_path', 'evil, pg_catalog', $1 = 'for the transaction');
  end if;
  if $1 = 'one under the other' then
    perform set_config('search_path', 'pg_catalog, pg_temp', true);
  elsif $1 = 'TimeZone' then
    perform set_config('TimeZone', 'Asia/Tokyo', false);
  end if;
  return '"misled"';
end
$$;
create cast (public.lure as json) with function public.mislead(public.lure);
create table public.lures (id int primary key, lure public.lure);
reset role;
select crm_relay.watch('public.lures');
select current_setting('search_path') as search_path, current_setting('timezone') as timezone \gset
set local role mallory;
insert into public.lures select place, lure from unnest(enum_range(null::public.lure)) with ordinality as l (lure, place);
reset role;
select is_empty('select from public.told', 'none of these ways has mallory''s code run as anybody else');
select is_empty($$ select from crm_relay.change where record_id = 'forged' $$, 'and nothing is forged');
select results_eq($$ select action, count(*) from crm_relay.change where module = 'lures' group by action order by action $$, $$ values ('created', 2::bigint), ('truncated', 2) $$,
                  'a row whose rendering would have gone on in another search_path is told as truncated');
select ok(current_setting('search_path') = :'search_path' and current_setting('timezone') = :'timezone',
          'what a cast sets does not stay in the writer''s session');

-- the same of whoever reads such a record as it is now, or looks up who may see it
set local role crm_relay_serve;
select crm_relay.record_now('lures', '3'), crm_relay.record_now('lures', '4');
reset role;
select ok(current_setting('search_path') = :'search_path' and current_setting('timezone') = :'timezone', 'nor in the session of who reads the record');
set local role mallory;
create table public.shelves (id int primary key, link int, team_id uuid, lead_id int);
create table public.books (id int primary key, note text);
insert into public.shelves values (1, 1, null, 1);
reset role;
select crm_relay.watch('public.shelves', access_of => 'traps', access_link => 'lead_id'), crm_relay.watch('public.books', part_of => 'shelves', part_link => 'link');
set local role mallory;
create function public.plan() returns boolean language plpgsql as $$
begin
  if current_user operator(pg_catalog.<>) 'mallory' then
    perform public.tell('planned');
    perform pg_catalog.set_config('search_path', 'evil, pg_catalog', false);
    if current_user operator(pg_catalog.=) 'crm_relay_part' then
      alter function crm_relay.records_of(crm_relay.module, text[]) security invoker set search_path = evil, pg_catalog;
    end if;
  end if;
  return true;
end
$$;
create function public.is_planned(int) returns boolean language plpgsql immutable as 'begin return (select public.plan()); end';
create index on public.shelves (id) where public.is_planned(1);
insert into public.books values (1, 'a');
update public.books set note = 'b';
reset role;
set local role crm_relay_serve;
select crm_relay.access_now('shelves', '1'), crm_relay.accesses_now('shelves', '{1,2}'), crm_relay.record_now('shelves', '1'), crm_relay.heirs_of('traps', '{1}');
reset role;
select ok('crm_relay_part' = any (array_agg(as_role)) and bool_and(what = 'planned'), 'code in the predicate of an index runs when a query is planned') from public.told;
select ok(current_setting('search_path') = :'search_path' and (select prosecdef from pg_proc where proname = 'records_of'), 'and changes nothing for good');
select is((select count(*) from crm_relay.change where part = 'books'), 2::bigint, 'a part is told all the same');
deallocate all;
select is_empty($$ select from crm_relay.change where record_id = 'forged' $$, 'the journal has no row of its own');

-- types of mallory's, as they are or under a domain, as what tells records apart and decides who sees them
set local role mallory;
create type public.code as enum ('x', 'y');
create function public.told_of(text) returns text language plpgsql as $$
begin
  if current_user not in ('mallory', 'crm_relay_image') then
    perform public.tell('cast');
  end if;
  return $1;
end
$$;
create function public.as_code(text) returns public.code language sql as 'select public.told_of(null); select enum_first(null::public.code)';
create function public.as_json(public.code) returns json language sql as 'select to_json(public.told_of(enum_out($1)::text))';
create cast (text as public.code) with function public.as_code(text);
create cast (public.code as json) with function public.as_json(public.code);
create domain public.disguise as public.code check (public.told_of('') = '');
create type public.pair as (a public.disguise);
create domain public.disguised_pair as public.pair;
create table public.chests (id public.disguise primary key, link public.code, team_id public.disguise, owner_id public.code, lead_id public.code);
create table public.locks (id text primary key, note text);
insert into public.chests values ('y', 'y', 'x', 'y', 'y');
reset role;
select crm_relay.watch('public.chests', access_of => 'traps', access_link => 'lead_id'), crm_relay.watch('public.locks', part_of => 'chests', part_link => 'link');
set local role mallory;
insert into public.locks values ('y', 'a');
reset role;
select results_eq($$ select record_id, record_image::jsonb from crm_relay.change where part = 'locks' $$,
                  $$ values ('y', '{"id": "y", "team_id": "x", "owner_id": "y", "lead_id": "y"}'::jsonb) $$, 'enums are shown by their label, also under a domain');
set local role crm_relay_serve;
select is(crm_relay.access_now('chests', 'y')::jsonb, '{"id": "y", "team_id": "x", "owner_id": "y", "lead_id": "y"}', 'and found by it');
select is((crm_relay.accesses_now('chests', '{y,x}'))[1]::jsonb, '{"id": "y", "team_id": "x", "owner_id": "y", "lead_id": "y"}', 'or together with others');
select is(crm_relay.record_now('chests', 'y') ->> 'link', 'y', 'also to be read as a whole');
select is((select count(*) from crm_relay.heirs_of('traps', '{y}')), 1::bigint, 'or to be found by another');
reset role;
select is_empty('select from public.told where what <> ''planned''', 'without that any cast of mallory''s runs as anybody with rights');
set local role mallory;
create table public.pairs (id public.disguised_pair primary key, link public.disguised_pair, team_id uuid);
reset role;
select is((select lookup from crm_relay.watch('public.pairs')), null, 'what a domain hides is looked through');
select throws_like($$ select crm_relay.watch('public.locks', part_of => 'pairs', part_link => 'link') $$, '%types of somebody%', 'and refused where it would have to be read');
set local role crm_relay_serve;
select throws_like($$ select crm_relay.record_now('pairs', '(x)') $$, '%type of somebody%', 'or compared with');
reset role;

-- what cannot be kept from an owner is said
select ok(others like '%leads%' and others not like '%traps%' and owner = 'mallory', 'an owner who may not read what else is watched is named')
  from crm_relay.owners_apart() where relation = 'public.chests'::regclass;
select is_empty($$ select from crm_relay.owners_apart() where relation = 'public.leads'::regclass $$, 'one who may is not');

-- a view in the place of a part's records, with code in it
create function public.forge() returns boolean language plpgsql as $$
begin
  insert into public.loot values (current_user, 'view', 'ran');
  insert into crm_relay.change (slot, module, action, record_id, db_user, db_role, application)
  values (0, 'leads', 'created', 'forged', 'x', 'x', 'x');
  return true;
end
$$;
set local role mallory;
create table public.wholes (id int primary key, link int, team_id uuid);
create table public.pieces (id int primary key, note text);
reset role;
select crm_relay.watch('public.wholes'), crm_relay.watch('public.pieces', part_of => 'wholes', part_link => 'link');
set local role mallory;
alter table public.wholes rename to wholes_before;
create view public.wholes as select id, link, team_id from public.wholes_before where public.forge();
grant select on public.wholes to public;
insert into public.pieces values (1, 'a');
select is_empty($$ select from public.loot where tried = 'view' $$, 'a view under the name of the table is not looked into');
-- a policy with code in it
alter table public.wholes_before enable row level security;
create policy evil on public.wholes_before using (public.forge());
insert into public.wholes_before values (1, 1, null);
update public.pieces set note = 'b';
reset role;
select is_empty($$ select from public.loot where tried = 'view' and as_role like 'crm%' and as_role <> 'crm_relay_part' $$, 'nor does a policy run as anyone with rights');
select is_empty($$ select from crm_relay.change where record_id = 'forged' $$, 'still nothing is forged');

-- triggers of one's own with the relay's functions
set local role mallory;
select throws_like(
  $$ create trigger mine after insert on public.pieces for each row execute function crm_relay.capture('leads') $$,
  '%permission denied%', 'nobody may make a trigger of their own with the relay''s function');
reset role;
-- and if they could
create table public.mine (id int primary key);
create trigger mine after insert on public.mine for each row execute function crm_relay.capture('leads');
insert into public.mine values (1);
select is_empty($$ select from crm_relay.change where module = 'leads' and record_id = '1' $$, 'it would not speak for another''s module');
set local role mallory;
-- what a new partition needs
create table public.halls (id int, place text, primary key (id, place)) partition by list (place);
reset role;
select crm_relay.watch('public.halls');
set local role mallory;
select lives_ok($$ create table public.halls_a partition of public.halls for values in ('a') $$, 'an owner may add partitions to a watched table');
insert into public.halls values (1, 'a');
select throws_like($$ select crm_relay.changes_since('3f2a91c0.1:1:.') $$, '%permission denied%', 'the journal is not for everybody');
select throws_like($$ select * from crm_relay.audit $$, '%permission denied%', 'nor the audit view');
select throws_like($$ select crm_relay.epoch() $$, '%permission denied%', 'nor anything else');
reset role;

select is((select count(*) from crm_relay.change where module = 'halls'), 1::bigint, 'whose rows are captured');

-- a dump that was restored without its owners
alter function crm_relay.images(anyelement, anyelement, text[], jsonb, jsonb) owner to current_user;
set local role mallory;
insert into public.traps values (2, 'x');
reset role;
select is_empty('select from public.told where what <> ''planned''', 'a function that belongs to a superuser by mistake lends its rights to nobody''s code');
-- and after all that
select ok(not rolcanlogin and not rolsuper, 'the role of the trigger is a plain one') from pg_roles where rolname = 'crm_relay_capture';

select * from finish();
rollback;
