-- parts: contacts hold the name and phone of clients

begin;
select plan(18);

insert into contacts (id, phone) values
  ('00000000-0000-4000-8000-0000000000c1', '555-1'), ('00000000-0000-4000-8000-0000000000c2', '555-2');
select is_empty($$ select from crm_relay.change $$, 'a contact that belongs to no client is no change of one');
insert into clients (id, contact_id, team_id) values
  ('00000000-0000-4000-8000-000000000001', '00000000-0000-4000-8000-0000000000c1', null),
  ('00000000-0000-4000-8000-000000000002', '00000000-0000-4000-8000-0000000000c1', null);
update contacts set phone = '555-9' where phone = '555-1';
select results_eq(
  $$ select module, action, record_id, part, part_id from crm_relay.change where part is not null order by record_id $$,
  $$ values ('clients', 'updated', '00000000-0000-4000-8000-000000000001', 'contacts', '00000000-0000-4000-8000-0000000000c1'),
            ('clients', 'updated', '00000000-0000-4000-8000-000000000002', 'contacts', '00000000-0000-4000-8000-0000000000c1') $$,
  'a change of a contact is told for each client that it belongs to');
select is_empty(
  $$ select from crm_relay.change where part = 'contacts'
      and (new_image ->> 'phone' <> '555-9' or old_image ->> 'phone' <> '555-1' or record_image ->> 'id' <> record_id) $$,
  'with the contact''s images, and the client''s key and access columns');
update contacts set updated_at = clock_timestamp();
delete from clients where id = '00000000-0000-4000-8000-000000000002';
update contacts set phone = '555-8' where phone = '555-9';
select is((select count(*) from crm_relay.change where part is not null and new_image ->> 'phone' = '555-8'), 1::bigint,
          'a client that is gone is not told');

-- where the clients have row level security, their contacts' changes still find them
alter table clients enable row level security;
alter table clients force row level security;
update contacts set phone = '555-7' where phone = '555-8';
select is((select count(*) from crm_relay.change where new_image ->> 'phone' = '555-7'), 1::bigint, 'row level security hides no record from its part');
alter table clients no force row level security;
alter table clients disable row level security;

-- names that are odd, a table that is renamed
create table "Odd % {relation}" ("The Id" bigint primary key, "part ""of""" bigint, team_id uuid);
create table "Odd part" (id bigint primary key, note text);
select crm_relay.watch('"Odd % {relation}"', module => 'odd');
select lives_ok($$ select crm_relay.watch('"Odd part"', module => 'odd_part', part_of => 'odd', part_link => 'part "of"') $$, 'any name will do');
insert into "Odd part" values (7, 'a');
insert into "Odd % {relation}" values (1, 7, null);
update "Odd part" set note = 'b';
select is((select record_id from crm_relay.change where part = 'odd_part'), '1', 'and is found');
alter table "Odd % {relation}" rename to renamed;
update "Odd part" set note = 'c';
select is((select count(*) from crm_relay.change where part = 'odd_part'), 2::bigint, 'also under another name');
drop table renamed;
select lives_ok($$ update "Odd part" set note = 'd' $$, 'a record''s table that is gone does not stop the part''s writer');
select is((select action from crm_relay.change order by seq desc limit 1), 'truncated', 'it is told as an upheaval');

-- types of one's own among the columns that decide
create type access as enum ('personal', 'team');
create domain number as int check (value > 0);
create domain small_number as number check (value < 1000);
create table wholes (id small_number primary key, piece_id char(36), team_id int, access_level access);
create table pieces (id char(36) primary key, phone text);
select crm_relay.watch('wholes'), crm_relay.watch('pieces', part_of => 'wholes', part_link => 'piece_id');
insert into pieces values ('p', '1');
insert into wholes values (10, 'p', 7, 'personal');
update pieces set phone = '2';
select is((select record_image::jsonb from crm_relay.change where part = 'pieces' and record_id = '10'),
          '{"id": 10, "team_id": 7, "access_level": "personal"}'::jsonb, 'enums and domains are shown, and fixed widths compared');
select is((select crm_relay.rooms_of(module, record_image) from crm_relay.change where part = 'pieces'), '{}'::text[], 'so what is personal stays so');
alter table wholes add is_private boolean default true;
select crm_relay.watch('wholes');
update pieces set phone = '3';
select ok((select record_image ->> 'is_private' = 'true' from crm_relay.change where part = 'pieces' order by seq desc limit 1),
          'a column that decides and came later counts once its table is watched again');
create type pair as (a int, b int);
alter table wholes add owner_id pair;
select throws_like($$ select crm_relay.watch('wholes') $$, '%types of somebody%', 'a type that cannot be shown safely is refused');
alter table wholes drop owner_id;

-- a part's key that changes
create table cards (id int primary key, phone text);
create table people (id int primary key, card_id int references cards on update cascade);
select crm_relay.watch('people'), crm_relay.watch('cards', part_of => 'people', part_link => 'card_id');
insert into cards values (1, '1');
insert into people values (5, 1);
update cards set id = 2, phone = '2';
select is((select new_image ->> 'phone' from crm_relay.change where part = 'cards' and action = 'updated'), '2', 'a part whose key changes under its records is told');

-- watched again
select crm_relay.watch('people', event => 'PERSON');
select is((select event from crm_relay.watch('people')), 'PERSON', 'what was chosen stays chosen');
alter table people add ssn text;
select is((select hidden_columns from crm_relay.watch('people')), '{ssn}'::text[], 'what was not follows the table');

select throws_like($$ select crm_relay.watch('teams', part_of => 'listings', part_link => 'nothing') $$, '%has no column nothing%',
                   'a link that is not there is refused');

select * from finish();
rollback;
