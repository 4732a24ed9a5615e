-- watch and unwatch: add the triggers to a table and take them away again

create or replace function crm_relay.add_triggers(target regclass, module text, part_of text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  given text := concat_ws(', ', quote_literal(module), quote_literal(part_of));
  argument bytea := convert_to(module, 'UTF8') || decode('00', 'hex') || coalesce(convert_to(part_of, 'UTF8') || decode('00', 'hex'), '');
  leaf regclass;
begin
  -- Creating a trigger locks out writers until the transaction ends, so what stands is left alone.
  -- '!' sorts before every letter and digit: the after triggers of a table fire by name.
  if not exists (
    select from pg_trigger t
     where t.tgrelid = target and t.tgname = '!crm_relay' and t.tgfoid = 'crm_relay.capture()'::regprocedure
       and t.tgtype = 1 + 4 + 8 + 16 -- for each row, insert, delete, update
       and t.tgenabled in ('O', 'A') and t.tgqual is null and t.tgattr::text = '' and t.tgargs = argument) then
    execute format('create or replace trigger "!crm_relay" after insert or update or delete on %s '
                   'for each row execute function crm_relay.capture(%s)', target, given);
    execute format('comment on trigger "!crm_relay" on %s is %L', target, 'crm-relay: writes each change to crm_relay.change');
  end if;
  -- a truncate fires the triggers of the tables that it names and of their partitions, no others
  for leaf in select t.relid from pg_partition_tree(target) t join pg_class c on c.oid = t.relid and c.relkind <> 'f'
              union select target loop
    if not exists (
      select from pg_trigger t
       where t.tgrelid = leaf and t.tgname = '!crm_relay_truncate' and t.tgfoid = 'crm_relay.capture_truncate()'::regprocedure
         and t.tgtype = 32 -- for each statement, truncate
         and t.tgenabled in ('O', 'A') and t.tgargs = argument) then
      execute format('create or replace trigger "!crm_relay_truncate" after truncate on %s '
                     'for each statement execute function crm_relay.capture_truncate(%s)', leaf, given);
      execute format('comment on trigger "!crm_relay_truncate" on %s is %L', leaf, 'crm-relay: tells everybody to fetch anew');
    end if;
  end loop;
end
$$;
comment on function crm_relay.add_triggers(regclass, text, text) is
  'gives a table (and for truncate its partitions) the relay''s triggers, unless they stand as they should';

create or replace function crm_relay.is_secret(column_name text) returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select lower(column_name) like any (array['password%', E'%\\_hash', E'%\\_secret', '%token%', 'ssn', E'%\\_ssn', E'tax\\_id'])
$$;
comment on function crm_relay.is_secret(text) is 'whether a column is named like a secret, and so is hidden unless it is said otherwise';

create or replace function crm_relay.stripped(image json, columns text[]) returns json
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return crm_relay.without(image, array(
    select key from json_object_keys(crm_relay.readable(image)) as keys (key) where key = any (columns)));
exception when others then
  return json '{}'; -- better nothing than what is to be hidden
end
$$;
comment on function crm_relay.stripped(json, text[]) is 'an image without those of these columns that it has';

create or replace function crm_relay.redact(module text) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  hidden text[] := (select m.hidden_columns from crm_relay.module m where m.module = redact.module);
  rewritten bigint;
begin
  update crm_relay.change c
     set old_image = crm_relay.stripped(c.old_image, hidden), new_image = crm_relay.stripped(c.new_image, hidden)
   where coalesce(c.part, c.module) = redact.module
     and exists (select from json_object_keys(crm_relay.readable(c.old_image)) k where k = any (hidden)
                 union all
                 select from json_object_keys(crm_relay.readable(c.new_image)) k where k = any (hidden));
  get diagnostics rewritten = row_count;
  if rewritten > 0 then
    -- relays remember what they told, and would tell it again to a cursor of before
    update crm_relay.setting set install_id = gen_random_uuid();
  end if;
  return rewritten;
end
$$;
comment on function crm_relay.redact(text) is
  'takes the columns of a module that are hidden now out of journal rows that were written before, and makes history another; returns the number of rows';

create or replace function crm_relay.owners_apart(out relation regclass, out owner name, out others text) returns setof record
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- The planner calls functions that it finds in a table's indexes, constraints and statistics: those are
  -- the owner's, and run as the role that looks a record up, which may read the other tables, too.
  select c.oid::regclass, r.rolname, string_agg(o.oid::regclass::text, ', ' order by o.oid::regclass::text)
    from crm_relay.module m
    join pg_class c on c.oid = m.relation
    join pg_roles r on r.oid = c.relowner
    join crm_relay.module n on n.relation <> m.relation
    join pg_class o on o.oid = n.relation
   where not has_table_privilege(c.relowner, o.oid, 'select')
      or o.relrowsecurity and not pg_has_role(c.relowner, o.relowner, 'usage')
   group by c.oid, r.rolname
$$;
comment on function crm_relay.owners_apart() is
  'watched tables whose owner may not read all that is watched: by a function in an index of hers she can, with the rights of the roles that look records up';

create or replace function crm_relay.goes_by(
  watched crm_relay.module,
  out marks text[], out large_null jsonb, out others_null jsonb, out large_columns text[], out large_nulls text[], out names_size integer,
  out doorbell text, out slot_seconds double precision
)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with columns (name, place, can_be_large, says_who, is_hidden) as (
    select a.attname::text, a.attnum, a.atttypid in ('json'::regtype, 'jsonb'::regtype, 'xml'::regtype, 'bytea'::regtype),
           a.attname in ('version', 'last_modified_by', 'deleted_by', 'created_by', 'user_id') and not watched.narrow,
           a.attname = any (watched.hidden_columns)
      from pg_attribute a
     where a.attrelid = watched.relation and a.attnum > 0 and not a.attisdropped
  ), undecided as (
    select c.name, c.place, c.can_be_large and not c.says_who and not c.is_hidden as is_large
      from columns c where c.name <> all (watched.key_columns || watched.access_columns)
  )
  select (select coalesce(array_agg(c.name order by c.place), '{}') from columns c
           where c.says_who and not c.is_hidden or c.name = 'id' and watched.key_columns = '{id}'),
         (select jsonb_object_agg(u.name, null) from undecided u where u.is_large),
         (select jsonb_object_agg(u.name, null) from undecided u where not u.is_large),
         (select array_agg(u.name order by u.place) from undecided u where u.is_large),
         (select array_agg(',' || to_json(u.name)::text || ':null' order by u.place) from undecided u where u.is_large),
         (select coalesce(sum(octet_length(to_json(c.name)::text) + 2), 0) from columns c where not c.is_hidden and not c.can_be_large),
         coalesce(s.doorbell, 'adaptive'), crm_relay.slot_seconds(coalesce(s.retention, '7 days'))
    from (values (true)) as one (row) left join crm_relay.setting s on true -- written last by a first installation
$$;
comment on function crm_relay.goes_by(crm_relay.module) is
  'what capture() goes by: made of a row of the registry, of its table''s columns and of the settings, and kept in that row';

create or replace function crm_relay.refresh_module() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  -- whoever changes them meanwhile comes before this, or after
  perform from crm_relay.setting for share;
  select o.* into new.marks, new.large_null, new.others_null, new.large_columns, new.large_nulls, new.names_size, new.doorbell, new.slot_seconds
    from crm_relay.goes_by(new) o;
  return new;
end
$$;
comment on function crm_relay.refresh_module() is 'before a row of the registry is written: what capture() goes by is made anew';
create or replace trigger refresh_module before insert or update on crm_relay.module
  for each row execute function crm_relay.refresh_module();
alter table crm_relay.module enable always trigger refresh_module; -- also where session_replication_role is replica

create or replace function crm_relay.refresh_modules() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  update crm_relay.module m set module = m.module;
  return null;
end
$$;
comment on function crm_relay.refresh_modules() is 'after an update of the settings: the registry goes by them, too';
create or replace trigger refresh_modules after update of doorbell, retention on crm_relay.setting
  for each statement execute function crm_relay.refresh_modules();
alter table crm_relay.setting enable always trigger refresh_modules;

create or replace function crm_relay.watch(
  target regclass,
  module text default null,
  event text default null,
  key_columns text[] default null,
  access_columns text[] default null,
  hidden_columns text[] default null,
  quiet_columns text[] default null,
  part_of text default null,
  part_link text default null,
  narrow boolean default null,
  access_of text default null,
  access_link text default null
) returns crm_relay.module
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  watched crm_relay.module;
  parent crm_relay.module;
  present crm_relay.module;
  columns text[];
  missing text[];
  readable text;
  part regclass;
  namespace text;
begin
  if (select relkind from pg_class where oid = target) not in ('r', 'p') then
    raise exception 'crm_relay: % is not a table', target
      using hint = 'views, foreign tables and sequences have no row triggers that could be trusted; watch the table behind it';
  end if;
  select nspname into namespace from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = target;
  if (select relpersistence from pg_class where oid = target) = 't' then
    raise exception 'crm_relay: % is temporary', target;
  end if;
  if exists (select from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = target and not c.relispartition) then
    raise notice 'crm_relay: other tables inherit from %: watch them, too, their rows are captured by themselves', target;
  end if;
  -- what was dropped since
  delete from crm_relay.module m where not exists (select from pg_class c where c.oid = m.relation)
     and not exists (select from crm_relay.module p where p.part_of = m.module);
  if namespace in ('crm_relay', 'pg_catalog', 'information_schema') then
    raise exception 'crm_relay: % belongs to schema %, which is never watched', target, namespace;
  end if;
  if (select relispartition from pg_class where oid = target) then
    raise exception 'crm_relay: % is a partition', target using hint = 'watch the partitioned table';
  end if;

  columns := array(select attname::text from pg_attribute
                    where attrelid = target and attnum > 0 and not attisdropped order by attnum);
  select m.* into present from crm_relay.module m where m.relation = target;

  watched.relation := target;
  watched.chosen := array(
    select distinct c from unnest(coalesce(present.chosen, '{}') || array_remove(array[
      case when event is not null then 'event' end,
      case when key_columns is not null then 'key_columns' end,
      case when access_columns is not null then 'access_columns' end,
      case when hidden_columns is not null then 'hidden_columns' end,
      case when quiet_columns is not null then 'quiet_columns' end], null)) c order by c);
  watched.module := coalesce(module, present.module,
    (select lower(regexp_replace(relname, '[^a-zA-Z0-9_]+', '_', 'g')) from pg_class where oid = target));
  if watched.module in ('user', 'team', 'broker', 'crm_relay') then
    raise exception 'crm_relay: no module may be called %', watched.module
      using hint = 'that is the name of a scope in room names, or the relay''s own; give another: watch(…, module => ''…'')';
  end if;
  watched.narrow := coalesce(narrow, present.narrow, false);
  watched.event := coalesce(event, case when 'event' = any (present.chosen) then present.event end,
    upper(regexp_replace(regexp_replace(watched.module, 'ies$', 'ys'), 's$', '')));
  watched.key_columns := coalesce(key_columns, case when 'key_columns' = any (present.chosen) then present.key_columns end,
    (select array_agg(a.attname::text order by k.place)
       from pg_index i
      cross join unnest(i.indkey::int2[]) with ordinality as k (attnum, place)
       join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
      where i.indrelid = target and i.indisprimary));
  if watched.key_columns is null or watched.key_columns = '{}' then
    raise exception 'crm_relay: % has no primary key', target
      using hint = 'say which columns tell its rows apart: watch(…, key_columns => ''{…}'')';
  end if;
  watched.access_columns := coalesce(access_columns, case when 'access_columns' = any (present.chosen) then present.access_columns end,
    array(select c from unnest(columns) c
           where c = any (case when watched.narrow then '{team_id,broker_id,role,is_active}'::text[]
                               else '{owner_id,listing_agent_id,agent_id,user_id,team_id,broker_id,is_private,access_level,lead_id}' end)));
  watched.hidden_columns := coalesce(hidden_columns, case when 'hidden_columns' = any (present.chosen) then present.hidden_columns end,
    array(select c from unnest(columns) c
           where not watched.narrow and crm_relay.is_secret(c)));
  watched.quiet_columns := coalesce(quiet_columns, case when 'quiet_columns' = any (present.chosen) then present.quiet_columns end,
    array(select c from unnest(columns) c where c = any ('{updated_at,version,last_modified_by}')));
  -- what closed something must not be forgotten in silence, as when a column was renamed
  missing := array(select c from unnest(case when hidden_columns is null then present.hidden_columns end
                                        || case when access_columns is null then present.access_columns end) c
                    where c <> all (columns));
  if missing <> '{}' then
    raise exception 'crm_relay: % was watched with columns % that it no longer has, and that may have hidden something', target, missing
      using hint = 'were they renamed? say which hide and which decide now: watch(…, hidden_columns => ''{…}'', access_columns => ''{…}'')';
  end if;
  missing := array(
    select c from unnest(watched.key_columns || watched.access_columns || watched.hidden_columns || watched.quiet_columns) c
     where c <> all (columns));
  if missing <> '{}' then
    raise exception 'crm_relay: % has no column %', target, array_to_string(missing, ', ')
      using hint = 'its columns are ' || array_to_string(columns, ', ');
  end if;
  if watched.hidden_columns && (watched.key_columns || watched.access_columns) then
    raise exception 'crm_relay: what tells records apart, or decides who sees them, cannot be hidden: %', array_to_string(watched.hidden_columns, ', ');
  end if;
  watched.large_from := coalesce(present.large_from, 1024);
  watched.part_of := coalesce(part_of, present.part_of);
  watched.part_link := coalesce(part_link, present.part_link);
  watched.access_of := coalesce(access_of, present.access_of);
  watched.access_link := coalesce(access_link, present.access_link);
  if (watched.access_of is null) <> (watched.access_link is null)
     or watched.access_link is not null and watched.access_link <> all (watched.access_columns) then
    raise exception 'crm_relay: access_of and access_link belong together, and % must be one of the access columns of %', watched.access_link, target;
  end if;
  if watched.narrow and watched.part_of is not null then
    raise exception 'crm_relay: % cannot be narrow and a part', target;
  end if;

  if watched.part_of is null then
    watched.lookup := crm_relay.lookup_of(watched);
    if watched.lookup is null then
      raise notice 'crm_relay: a key or access column of % has a type of somebody''s own, so that nobody can be let in by today''s row', target
        using hint = 'leave it out: watch(…, access_columns => ''{…}'')';
    end if;
    watched.lookup_types := crm_relay.column_types(target, watched.key_columns || watched.access_columns);
  end if;
  if watched.part_of is not null then
    select m.* into parent from crm_relay.module m where m.module = watched.part_of;
    if not found or parent.part_of is not null then
      raise exception 'crm_relay: % cannot be a part of %', target, watched.part_of
        using hint = 'a part belongs to a module that is watched itself and is no part';
    end if;
    if cardinality(watched.key_columns) <> 1 then
      raise exception 'crm_relay: a part needs a key of one column, % has %', target, array_to_string(watched.key_columns, ', ');
    end if;
    if not exists (select from pg_attribute a where a.attrelid = parent.relation and a.attname = watched.part_link and not a.attisdropped) then
      raise exception 'crm_relay: % has no column % that could name a row of %', parent.relation, watched.part_link, target
        using hint = 'say which: watch(…, part_link => ''…'')';
    end if;
    -- see crm_relay.records_of(): rendering another type could run its owner's code
    select string_agg(quote_ident(a.attname), ', ') into readable
      from pg_attribute a
     where a.attrelid = parent.relation and a.attname::text = any (parent.key_columns || parent.access_columns || watched.part_link)
       and not a.attisdropped and (crm_relay.base_of(a.atttypid)).oid is null;
    if readable is not null then
      raise exception 'crm_relay: columns % of % have types of somebody''s own, which a change of % cannot show', readable, parent.relation, target
        using hint = 'leave them out of the key, access and link columns: watch(…, access_columns => ''{…}'')';
    end if;
    select string_agg(quote_ident(c), ', ') into readable
      from unnest(parent.key_columns || parent.access_columns || watched.part_link) c;
    execute format('grant usage on schema %s to crm_relay_part',
                   (select c.relnamespace::regnamespace from pg_class c where c.oid = parent.relation));
    execute format('grant select (%s) on %s to crm_relay_part', readable, parent.relation);
    if (select relrowsecurity from pg_class where oid = parent.relation)
       and not (select rolbypassrls from pg_roles where rolname = 'crm_relay_part') then
      raise notice 'crm_relay: % has row level security; so that changes of % find its rows: alter role crm_relay_part bypassrls', parent.relation, target;
    end if;
    if not exists (
      select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
       where i.indrelid = parent.relation and a.attname = watched.part_link and i.indisvalid) then
      raise notice 'crm_relay: no index of % begins with %: each change of % reads the whole table', parent.relation, watched.part_link, target;
    end if;
  end if;

  insert into crm_relay.module select (watched).*
  on conflict on constraint module_relation_key do update set
    module = excluded.module, event = excluded.event, key_columns = excluded.key_columns,
    access_columns = excluded.access_columns, hidden_columns = excluded.hidden_columns,
    quiet_columns = excluded.quiet_columns, part_of = excluded.part_of, part_link = excluded.part_link, chosen = excluded.chosen, narrow = excluded.narrow,
    access_of = excluded.access_of, access_link = excluded.access_link,
    lookup = excluded.lookup, lookup_types = excluded.lookup_types
  where (module.*) is distinct from (excluded.*);

  if present.module = watched.module and not watched.hidden_columns <@ present.hidden_columns then
    perform crm_relay.redact(watched.module);
  end if;

  perform crm_relay.add_triggers(target, watched.module, watched.part_of);
  if watched.part_of is null then
    -- the policy looks at today's row
    execute format('grant usage on schema %I to crm_relay_policy', namespace);
    execute format('grant select (%s) on %s to crm_relay_policy',
      (select string_agg(quote_ident(c), ', ') from unnest(watched.key_columns || watched.access_columns) c), target);
    if (select relrowsecurity from pg_class where oid = target)
       and not (select rolbypassrls from pg_roles where rolname = 'crm_relay_policy') then
      raise notice 'crm_relay: % has row level security; so that the policy finds its rows: alter role crm_relay_policy bypassrls', target;
    end if;
  end if;
  if watched.access_link is not null and not exists (
    select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
     where i.indrelid = target and a.attname = watched.access_link and i.indisvalid) then
    raise notice 'crm_relay: no index of % begins with %: each change of who may see records of % reads the whole table', target, watched.access_link, watched.access_of
      using hint = format('create index concurrently on %s (%I)', target, watched.access_link);
  end if;
  if watched.part_of is null and not watched.narrow then
    execute format('grant usage on schema %I to crm_relay_snapshot', namespace);
    execute format('grant select on %s to crm_relay_snapshot', target);
  end if;
  if exists (select from crm_relay.owners_apart() o) then
    raise notice 'crm_relay: watched tables have different owners: %',
      (select string_agg(format('%s is %s''s, who may not read %s', o.relation, o.owner, o.others), '; ') from crm_relay.owners_apart() o)
      using hint = 'code in an index of such a table can run as the roles that look records up, see "Security" in deploy/README.md; watch tables only of owners whom you trust with all of them';
  end if;
  -- its parts may read what their changes are judged by
  for part in select m.relation from crm_relay.module m where m.part_of = watched.module loop
    perform crm_relay.watch(part);
  end loop;
  return watched;
end
$$;
comment on function crm_relay.watch(regclass, text, text, text[], text[], text[], text[], text, text, boolean, text, text) is
  'watches a table: enters it in the registry and adds its triggers; again: changes what is given and leaves the rest';


create or replace function crm_relay.unwatch(target regclass) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  watched crm_relay.module;
  parent crm_relay.module;
  leaf regclass;
  namespace regnamespace;
begin
  select m.* into watched from crm_relay.module m where m.relation = target;
  if not found then
    raise exception 'crm_relay: % is not watched', target
      using hint = 'select relation, module from crm_relay.module lists what is';
  end if;
  if exists (select from crm_relay.module m where m.part_of = watched.module) then
    raise exception 'crm_relay: % has parts that are watched: %', target,
      (select string_agg(m.relation::text, ', ') from crm_relay.module m where m.part_of = watched.module)
      using hint = 'unwatch those first';
  end if;
  -- of a table that was dropped nothing is left but the registry's row
  if exists (select from pg_class c where c.oid = target) then
    execute format('drop trigger if exists "!crm_relay" on %s', target);
    for leaf in select relid from pg_partition_tree(target) union select target loop
      execute format('drop trigger if exists "!crm_relay_truncate" on %s', leaf);
    end loop;
    execute format('revoke all on %s from crm_relay_snapshot, crm_relay_policy', target);
    execute format('revoke select (%s) on %s from crm_relay_policy',
      (select string_agg(quote_ident(attname), ', ') from pg_attribute
        where attrelid = target and attnum > 0 and not attisdropped), target);
    select relnamespace::regnamespace into namespace from pg_class where oid = target;
    if not exists (select from crm_relay.module m join pg_class c on c.oid = m.relation
                    where c.relnamespace = namespace and m.relation <> target) then
      execute format('revoke usage on schema %s from crm_relay_snapshot, crm_relay_policy', namespace);
    end if;
  end if;
  select m.* into parent from crm_relay.module m join pg_class c on c.oid = m.relation where m.module = watched.part_of;
  delete from crm_relay.module m where m.relation = target;
  if parent.relation is null then
    return watched.module;
  end if;
  -- what no other part needs
  select relnamespace::regnamespace into namespace from pg_class where oid = parent.relation;
  if not exists (select from crm_relay.module m where m.part_of = parent.module) then
    execute format('revoke select (%s) on %s from crm_relay_part',
      (select string_agg(quote_ident(attname), ', ') from pg_attribute
        where attrelid = parent.relation and attnum > 0 and not attisdropped), parent.relation);
  end if;
  if not exists (select from crm_relay.module m join crm_relay.module p on p.module = m.part_of
                   join pg_class c on c.oid = p.relation where c.relnamespace = namespace) then
    execute format('revoke usage on schema %s from crm_relay_part', namespace);
  end if;
  return watched.module;
end
$$;
comment on function crm_relay.unwatch(regclass) is
  'takes the triggers and the registry row of a table away; its changes so far stay in the journal';

create or replace procedure crm_relay.in_short_transaction(command text, about text)
language plpgsql
as $$
declare
  tries integer := 0;
begin
  -- Adding or dropping a trigger waits for the transactions that write to the table, and while it
  -- waits, new writers queue behind it: so it waits shortly, lets them pass, and tries again.
  loop
    tries := tries + 1;
    begin
      set local lock_timeout = '300ms';
      execute command;
      exit;
    exception when lock_not_available then
      if tries >= 100 then
        raise exception 'crm_relay: % is locked by others for a long time, gave up after % tries', about, tries
          using hint = 'end the transactions that hold it (pg_blocking_pids, pg_stat_activity) and run this again; it goes on where it stopped';
      end if;
    end;
    commit;
    perform pg_catalog.pg_sleep(0.2);
  end loop;
  commit;
end
$$;
comment on procedure crm_relay.in_short_transaction(text, text) is
  'runs one command in a transaction of its own, with a short lock_timeout and retries';

create or replace procedure crm_relay.watch_crm(crm_schema text default 'public')
language plpgsql
as $$
declare
  event text;
  of_lead boolean;
  wanted record;
  target regclass;
  missing text;
begin
  -- a procedure that commits cannot pin this by itself
  perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
  for wanted in
    select * from (values
      (1, 'escrows',      'ESCROW',      'owner_id', null, null),
      (2, 'listings',     'LISTING',     'owner_id,listing_agent_id', null, null),
      (3, 'clients',      'CLIENT',      'owner_id', null, null),
      (4, 'leads',        'LEAD',        'owner_id', null, null),
      (5, 'appointments', 'APPOINTMENT', 'agent_id,lead_id', null, null),
      (6, 'contacts',     'CONTACT',     null, 'clients', 'contact_id'),
      (7, 'users',        'USER',        null, null, null)
    ) as crm (place, table_name, event, owners, part_of, part_link)
    order by place
  loop
    target := pg_catalog.to_regclass(pg_catalog.format('%I.%I', crm_schema, wanted.table_name));
    if target is null then
      if wanted.table_name = 'users' then
        raise notice '%.users: no such table, so that everybody sees their own records only', crm_schema;
      elsif wanted.part_of is null then
        raise notice '%.%: no such table, not watched', crm_schema, wanted.table_name;
      end if;
      continue;
    end if;
    if wanted.part_of is not null and not exists (
      select from pg_catalog.pg_attribute a
       where a.attrelid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', crm_schema, wanted.part_of))
         and a.attname = wanted.part_link and not a.attisdropped) then
      raise notice '%: % has no column %, so it is no part of it, not watched', target, wanted.part_of, wanted.part_link;
      continue;
    end if;
    if not exists (select from pg_catalog.pg_class c join pg_catalog.pg_index i on i.indrelid = c.oid
                    where c.oid = target and c.relkind in ('r', 'p') and i.indisprimary) then
      raise notice '%: not a table with a primary key, not watched; say what tells its rows apart: select crm_relay.watch(%, key_columns => …)',
        target, pg_catalog.quote_literal(target);
      continue;
    end if;
    -- an appointment of a private lead is private, too
    of_lead := wanted.table_name = 'appointments' and exists (
      select from pg_catalog.pg_attribute a where a.attrelid = target and a.attname = 'lead_id' and not a.attisdropped);
    -- what was chosen since stays
    select wanted.event into event where not exists (select from crm_relay.module m where m.relation = target);
    call crm_relay.in_short_transaction(
      pg_catalog.format('select crm_relay.watch(%L, event => %L, part_of => %L, part_link => %L, narrow => %L, access_of => %L, access_link => %L)',
                        target, event, wanted.part_of, wanted.part_link, wanted.table_name = 'users',
                        case when of_lead then 'leads' end, case when of_lead then 'lead_id' end), target::text);
    continue when wanted.table_name = 'users';
    select pg_catalog.string_agg(expected, ', ') into missing
      from pg_catalog.unnest(pg_catalog.string_to_array(wanted.owners
             || ',user_id,team_id,broker_id,is_private,access_level,version,updated_at,last_modified_by,created_by,deleted_by', ',')) expected
     where not exists (select from pg_catalog.pg_attribute a
                        where a.attrelid = target and a.attname = expected and not a.attisdropped);
    raise notice '%: watched as %', target, coalesce(wanted.part_of || '''s part ', '') || wanted.table_name
      || coalesce('; expected columns that it does not have: ' || missing, '');
  end loop;
end
$$;
comment on procedure crm_relay.watch_crm(text) is
  'watches the CRM''s tables, those that exist, each in a short transaction of its own, and says table by table what it did';

create or replace procedure crm_relay.unwatch_all()
language plpgsql
as $$
declare
  target regclass;
begin
  -- a procedure that commits cannot pin this by itself
  perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
  loop
    -- parts before the modules that they belong to
    select m.relation into target from crm_relay.module m order by m.part_of is null, m.module limit 1;
    exit when target is null;
    call crm_relay.in_short_transaction(pg_catalog.format('select crm_relay.unwatch(%L)', target), target::text);
    raise notice '%: no longer watched', target;
  end loop;
end
$$;
comment on procedure crm_relay.unwatch_all() is 'unwatches every table, each in a short transaction of its own';

revoke all on function
  crm_relay.watch(regclass, text, text, text[], text[], text[], text[], text, text, boolean, text, text),
  crm_relay.unwatch(regclass), crm_relay.add_triggers(regclass, text, text), crm_relay.is_secret(text),
  crm_relay.goes_by(crm_relay.module), crm_relay.refresh_module(), crm_relay.refresh_modules(),
  crm_relay.stripped(json, text[]), crm_relay.redact(text), crm_relay.owners_apart() from public;
grant execute on function crm_relay.owners_apart(), crm_relay.goes_by(crm_relay.module) to crm_relay_audit, crm_relay_serve;
revoke all on procedure
  crm_relay.watch_crm(text), crm_relay.unwatch_all(), crm_relay.in_short_transaction(text, text) from public;

-- of tables that an earlier version watched; their types are looked at before it is run
update crm_relay.module m
   set lookup = crm_relay.lookup_of(m)
 where m.part_of is null and m.lookup is not null and m.lookup is distinct from crm_relay.lookup_of(m);

update crm_relay.module m set module = m.module; -- see refresh_module()
