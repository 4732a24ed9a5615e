-- who owns a watched table gains nothing by the trigger

begin;
select plan(17);

create role mallory;
grant create, usage on schema public to mallory;
insert into leads (id, first_name) values ('00000000-0000-4000-8000-000000000001', 'not mallory''s');

set local role mallory;
create table public.loot (as_role text, tried text, got text);
grant insert on public.loot to public;
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
    'copy (select 1) to program ''true''']
  loop
    begin
      execute tried;
      insert into public.loot values (current_user, tried, 'done');
    exception when others then
      insert into public.loot values (current_user, tried, sqlerrm);
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
select set_eq('select distinct as_role from public.loot', array['crm_relay_image'], 'mallory''s code ran as the role without rights');
select is((select count(*)::int from public.loot), 14, 'it tried everything');
select is_empty($$ select tried, got from public.loot where got = 'done' $$, 'and got nothing');
select is_empty($$ select from crm_relay.change where record_id = 'forged' $$, 'the journal has no row of its own');

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
alter function crm_relay.image(anyelement, text[]) owner to current_user;
set local role mallory;
delete from public.loot;
insert into public.traps values (2, 'x');
reset role;
select is_empty('select from public.loot', 'a function that belongs to a superuser by mistake lends its rights to nobody''s code');
-- and after all that
select ok(not rolcanlogin and not rolsuper, 'the role of the trigger is a plain one') from pg_roles where rolname = 'crm_relay_capture';

select * from finish();
rollback;
