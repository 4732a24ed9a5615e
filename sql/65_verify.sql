-- verify: what is wrong here, why it matters, and what mends it
--
-- One function for each subject. Each reads catalogs, statistics and small samples of the journal, never all
-- of it, and runs with the rights of whoever asks; a subject that they may not look into is a finding, too.
-- "wrong" needs somebody; "note" is worth knowing. What only a client can see, such as a pooler between or
-- two clocks that differ, `crm-relay doctor` adds.

do $finding$
begin
  if to_regtype('crm_relay.finding') is null then
    create type crm_relay.finding as (code text, severity text, object text, what text, why text, mend text);
  end if;
end
$finding$;
comment on type crm_relay.finding is
  'what crm_relay.verify() found: code, severity (wrong or note), the object, what is the matter, why that matters, and the command or SQL that mends it';

create table if not exists crm_relay.installed (
  signature text primary key,
  fingerprint text,
  owner text
);
comment on table crm_relay.installed is 'the functions as they were installed, so that crm_relay.verify() sees what was changed by hand';
comment on column crm_relay.installed.signature is 'the function';
comment on column crm_relay.installed.fingerprint is 'of its text and settings; null of one that may be replaced';
comment on column crm_relay.installed.owner is 'whose rights it runs with; null of one that runs with its caller''s';
grant select on crm_relay.installed to crm_relay_audit, crm_relay_serve;

create or replace function crm_relay.fingerprint(function oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select md5(concat_ws('|', p.prosrc, p.prosecdef, p.provolatile, array(select c from unnest(p.proconfig) c order by c))) from pg_proc p where p.oid = function
$$;
comment on function crm_relay.fingerprint(oid) is 'tells a function that was changed from the one that was installed';

create or replace function crm_relay.watch_command(relation regclass) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when relation = 'crm_relay.canary'::regclass then 'crm-relay install' else 'crm-relay watch ' || case when relation::text ~ '^[a-z0-9_.]+$' then relation::text
                                    else '''' || replace(relation::text, '''', '''\''''') || '''' end end
$$;
comment on function crm_relay.watch_command(regclass) is
  'the command that watches a table again, with what was chosen for it; it waits for nobody''s lock longer than 300 ms at a time';

create or replace function crm_relay.watch_call(watched crm_relay.module, relation text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('select crm_relay.watch(%s)', string_agg(argument, ', ' order by place))
    from unnest(array[
      quote_literal(relation),
      'module => ' || quote_literal(watched.module),
      'event => ' || quote_literal(watched.event),
      'key_columns => ' || quote_literal(case when 'key_columns' = any (watched.chosen) then watched.key_columns end),
      'access_columns => ' || quote_literal(case when 'access_columns' = any (watched.chosen) then watched.access_columns end),
      'hidden_columns => ' || quote_literal(case when 'hidden_columns' = any (watched.chosen) then watched.hidden_columns end),
      'quiet_columns => ' || quote_literal(case when 'quiet_columns' = any (watched.chosen) then watched.quiet_columns end),
      'part_of => ' || quote_literal(watched.part_of),
      'part_link => ' || quote_literal(watched.part_link),
      case when watched.narrow then 'narrow => true' end,
      'access_of => ' || quote_literal(watched.access_of),
      'access_link => ' || quote_literal(watched.access_link)]) with ordinality as given (argument, place)
   where argument is not null
$$;
comment on function crm_relay.watch_call(crm_relay.module, text) is 'the SQL that watches a table as this module, with all that was chosen for it';

create or replace function crm_relay.verify_tables() returns setof crm_relay.finding
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with watched as (
    select m as registered, m.*, c.relname, n.nspname, coalesce(c.relkind in ('r', 'p'), false) as is_table,
           c.relrowsecurity, m.relation::text as name,
           -- what stands there now under the module's name
           (select o.oid::regclass from pg_class o join pg_namespace s on s.oid = o.relnamespace
             where o.relname = m.module and s.nspname = coalesce(n.nspname, 'public') and o.relkind in ('r', 'p')
               and o.oid <> m.relation and not exists (select from crm_relay.module w where w.relation = o.oid)) as namesake
      from crm_relay.module m
      left join pg_class c on c.oid = m.relation
      left join pg_namespace n on n.oid = c.relnamespace
  ), swapped as (
    select w.*,
           (select string_agg(format('select crm_relay.unwatch(%L);', p.relation), ' ') from crm_relay.module p where p.part_of = w.module) as parts_away,
           (select string_agg(crm_relay.watch_call(p, p.relation::text) || ';', ' ') from crm_relay.module p where p.part_of = w.module) as parts_back
      from watched w
     where not w.is_table
        or w.namesake is not null and w.relname <> w.module
       and not exists (
         select from unnest(w.key_columns || w.access_columns) k (name)
          where not exists (select from pg_attribute a where a.attrelid = w.namesake and a.attname = k.name and not a.attisdropped))
  ), readers as (
    select w.*, r.role, r.does
      from watched w
     cross join (values ('crm_relay_snapshot', 'snapshots of its records are refused'),
                        ('crm_relay_policy', 'nobody can be let in by what its rows say today'),
                        ('crm_relay_part', 'changes of its parts find no record')) as r (role, does)
     where w.is_table and w.part_of is null
       and case r.role when 'crm_relay_snapshot' then not w.narrow
                       when 'crm_relay_part' then exists (select from crm_relay.module p where p.part_of = w.module)
                       else true end
  )
  select case when s.is_table then 'table_swapped' else 'table_gone' end, 'wrong', s.module,
         case when s.is_table then format('module %s watches %s, while another table is called %s', s.module, s.name, s.namesake)
              else format('the table that module %s watched was dropped', s.module)
                   || coalesce(', and another is called ' || s.namesake::text, '') end,
         case when s.namesake is null then 'its rooms stay silent' else 'changes of the table that the CRM uses now reach nobody' end,
         concat_ws(' ', 'begin;', s.parts_away,
                   format('select crm_relay.unwatch(%L);', case when s.is_table then s.name else s.relation::oid::text end),
                   case when s.namesake is not null then crm_relay.watch_call(s.registered, s.namesake::text) || ';' end,
                   case when s.namesake is not null then s.parts_back end, 'commit;')
    from swapped s
  union all
  select 'row_security', 'wrong', r.name,
         format('%s has row level security, and role %s does not pass it', r.name, r.role), r.does,
         format('alter role %I bypassrls;', r.role)
    from readers r join pg_roles g on g.rolname = r.role
   where r.relrowsecurity and not g.rolbypassrls
  union all
  select 'right_missing', 'wrong', r.name,
         format('role %s may not read %s', r.role, r.name), r.does, crm_relay.watch_command(r.relation)
    from readers r join pg_roles g on g.rolname = r.role
   where not has_schema_privilege(g.oid, r.nspname, 'usage')
      or case when r.role = 'crm_relay_snapshot' then not has_table_privilege(g.oid, r.relation, 'select')
              else exists (select from unnest(r.key_columns || r.access_columns) k (name)
                             join pg_attribute a on a.attrelid = r.relation and a.attname = k.name and not a.attisdropped
                            where not has_column_privilege(g.oid, r.relation, a.attnum, 'select')) end
  union all
  select 'owners_apart', 'note', o.relation::text,
         format('%s belongs to %s, who may not read %s', o.relation, o.owner, o.others),
         'a function in an index of that table runs as the roles that look records up, and may read what they may',
         format('alter table %s owner to …; -- the owner of the others; or: select crm_relay.unwatch(%L)', o.relation, o.relation)
    from crm_relay.owners_apart() o
$$;
comment on function crm_relay.verify_tables() is 'watched tables that are gone, replaced by another, or not readable for the relay''s roles';

create or replace function crm_relay.verify_triggers() returns setof crm_relay.finding
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with member as (
    select m.module, m.part_of, m.relation as root, t.relid as relation, t.relid = m.relation as is_root
      from crm_relay.module m
     cross join lateral (select m.relation::oid as relid union select p.relid from pg_partition_tree(m.relation) p) t
      join pg_class c on c.oid = t.relid and c.relkind in ('r', 'p')
  ), wanted as (
    select m.*, w.name, w.function, w.type,
           convert_to(m.module, 'UTF8') || decode('00', 'hex')
             || coalesce(convert_to(m.part_of, 'UTF8') || decode('00', 'hex'), '') as argument
      from member m
     cross join (values ('!crm_relay', 'crm_relay.capture()'::regprocedure, 29),
                        ('!crm_relay_truncate', 'crm_relay.capture_truncate()'::regprocedure, 32)) as w (name, function, type)
  ), seen as (
    select w.*, t.oid is not null as is_there, t.tgenabled, t.tgparentid <> 0 as is_copy, t.tgconstraint <> 0 as is_constraint,
           t.tgfoid = w.function and t.tgtype = w.type and t.tgargs = w.argument and t.tgqual is null
             and t.tgattr::text = '' and t.tgconstraint = 0 as is_same
      from wanted w
      left join pg_trigger t on t.tgrelid = w.relation and t.tgname = w.name
  ), other as (
    select m.relation, t.tgname, t.tgfoid, t.tgtype
      from member m
      join pg_trigger t on t.tgrelid = m.relation and not t.tgisinternal and t.tgparentid = 0 and t.tgenabled <> 'D'
     where t.tgname not in ('!crm_relay', '!crm_relay_truncate')
  ), asleep as (
    -- those whose triggers would not fire under session_replication_role = replica
    select w.root, w.name from seen w where w.is_root and w.tgenabled = 'O' and w.is_same
  )
  select case when not s.is_there then 'trigger_missing' when s.tgenabled in ('D', 'R') then 'trigger_disabled' else 'trigger_changed' end,
         'wrong', s.relation::regclass::text,
         format('trigger "%s" of %s ', s.name, s.relation::regclass) || case
           when not s.is_there then 'is not there'
           when s.tgenabled = 'D' then 'is disabled'
           when s.tgenabled = 'R' then 'fires under session_replication_role = replica only'
           else 'is not as it was made: other events, condition, function or argument' end,
         case s.name when '!crm_relay' then 'changes of its rows are lost, for the relay and for the audit'
                     else 'a truncate of it is not told: everybody goes on showing what is gone' end,
         case
           when not s.is_there and (s.is_root or s.name = '!crm_relay_truncate') then crm_relay.watch_command(s.root)
           when s.is_constraint or not s.is_there then
             format('begin; drop trigger if exists %I on %s; select crm_relay.watch(%L); commit;', s.name,
                    case when s.is_there then s.relation::regclass else s.root end, s.root)
           when s.is_copy and s.is_same then format('alter table %s enable trigger %I;', s.relation::regclass, s.name)
           else crm_relay.watch_command(s.root) end
    from seen s
   where not s.is_there or s.tgenabled in ('D', 'R') or not s.is_same
  union all
  select 'trigger_doubled', 'wrong', o.relation::regclass::text,
         format('trigger %I of %s captures, too', o.tgname, o.relation::regclass),
         'each change is in the journal twice',
         format('drop trigger %I on %s;', o.tgname, o.relation::regclass)
    from other o
   where o.tgfoid in ('crm_relay.capture()'::regprocedure, 'crm_relay.capture_truncate()'::regprocedure)
  union all
  select 'trigger_late', 'wrong', o.relation::regclass::text,
         format('after trigger %I of %s fires before the relay''s', o.tgname, o.relation::regclass),
         'where it edits the row again, the journal and the audit have the two edits in the wrong order',
         format('alter trigger %I on %s rename to %I;', o.tgname, o.relation::regclass,
                left('after_' || regexp_replace(o.tgname, '^[^a-zA-Z0-9]+', ''), 63))
    from other o
   where o.tgname < '!crm_relay' and o.tgtype & 1 = 1 and o.tgtype & 66 = 0 and o.tgtype & 20 <> 0
     and o.tgfoid <> 'crm_relay.capture()'::regprocedure
  union all
  select 'replication_role', 'wrong', coalesce(r.rolname, d.datname),
         format('%s begin with session_replication_role = replica, under which the relay''s triggers do not fire',
                concat_ws(' in ', 'sessions of role ' || r.rolname, case when r.rolname is null then 'sessions of ' end || 'database ' || d.datname)),
         'what they write is in no journal and reaches nobody',
         case when r.rolname is null then format('alter database %I reset session_replication_role;', d.datname)
              else format('alter role %I%s reset session_replication_role;', r.rolname, ' in database ' || quote_ident(d.datname)) end
    from pg_db_role_setting s
    left join pg_database d on d.oid = s.setdatabase
    left join pg_roles r on r.oid = s.setrole
   where 'session_replication_role=replica' = any (s.setconfig) and exists (select from asleep)
     and (d.datname is null or d.datname = current_database())
  union all
  select 'replication_role', 'wrong', 'server', 'the server''s settings say session_replication_role = replica',
         'no trigger fires: nothing is captured', 'alter system reset session_replication_role; select pg_reload_conf();'
    from pg_settings s
   where s.name = 'session_replication_role' and s.setting = 'replica' and s.source in ('configuration file', 'command line')
  union all
  select 'replication_role', 'wrong', a.root::text,
         format('%s gets rows by a subscription, which writes under session_replication_role = replica', a.root),
         'what it writes is in no journal and reaches nobody',
         format('alter table %s enable always trigger %I;', a.root, a.name)
    from asleep a
   where exists (select from pg_subscription_rel s where s.srrelid = a.root)
$$;
comment on function crm_relay.verify_triggers() is
  'triggers that are missing, disabled, changed by hand, doubled, too late, or asleep where somebody writes as a replica';

create or replace function crm_relay.recent_rows(per_slot integer) returns setof crm_relay.change
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- each by the index on txid, so that a large journal costs no more than a small one
  select c.* from generate_series(0, 9) as s (slot)
   cross join lateral (select r.* from crm_relay.change r where r.slot = s.slot order by r.txid desc limit per_slot) c
$$;
comment on function crm_relay.recent_rows(integer) is 'the newest rows of each slot of the journal, so many at most';

create or replace function crm_relay.verify_columns() returns setof crm_relay.finding
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with watched as (
    select m as registered, m.*, p.relation as parent, columns.names, known.names as told,
           array(select c from unnest(m.key_columns) c where c <> all (columns.names)) as keys_gone,
           array(select c from unnest(m.access_columns) c where c <> all (columns.names)) as access_gone,
           array(select c from unnest(m.hidden_columns) c where c <> all (columns.names)) as hidden_gone,
           array(select c from unnest(m.quiet_columns || m.marks) c where c <> all (columns.names || m.key_columns)) as others_gone,
           p.relation is not null and not exists (
             select from pg_attribute a where a.attrelid = p.relation and a.attname = m.part_link and not a.attisdropped) as link_gone
      from crm_relay.module m
      join pg_class c on c.oid = m.relation
      left join crm_relay.module p on p.module = m.part_of and exists (select from pg_class t where t.oid = p.relation)
     cross join lateral (
       select array_agg(a.attname::text order by a.attnum) from pg_attribute a
        where a.attrelid = m.relation and a.attnum > 0 and not a.attisdropped) as columns (names)
     -- what the journal has seen of it under the names of then: what is not among them is new, or has a new name
      left join lateral (
       select array(select distinct k from crm_relay.recent_rows(50) r
                     cross join lateral json_object_keys(crm_relay.readable(coalesce(r.new_image, r.old_image))) k
                     where coalesce(r.part, r.module) = m.module)
        where exists (select from unnest(m.access_columns || m.hidden_columns) c where c <> all (columns.names))) as known (names) on true
  ), gone as (
    select w.*, keys_gone || access_gone || hidden_gone || others_gone as names_gone,
           case when coalesce(told, '{}') = '{}' then array['<its name now>']
                else array(select c from unnest(w.names) c where c <> all (told || w.hidden_columns)) end as renamed
      from watched w
  )
  select 'column_gone', case when names_gone = others_gone then 'note' else 'wrong' end, g.relation::text,
         format('%s was watched with column%s %s, which it no longer has', g.relation,
                case when cardinality(names_gone) > 1 then 's' else '' end, array_to_string(names_gone, ', ')),
         case when names_gone = others_gone then 'changes are told, but not as well: no actor, or an event for what should be quiet'
              else 'what they may have hidden must not get out, so that nothing of its rows is told but "fetch anew"' end,
         case when access_gone || hidden_gone = '{}' and not g.chosen && '{key_columns,quiet_columns}' then crm_relay.watch_command(g.relation)
              else format('select crm_relay.watch(%s);', concat_ws(', ', quote_literal(g.relation),
                'key_columns => ' || quote_literal(case when 'key_columns' = any (g.chosen) and keys_gone <> '{}' then (
                  select array_agg(a.attname) from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey::int2[])
                   where i.indrelid = g.relation and i.indisprimary) end),
                'hidden_columns => ' || quote_literal(case when hidden_gone <> '{}' then
                  array(select c from unnest(g.hidden_columns) c where c <> all (hidden_gone)) || renamed end),
                'access_columns => ' || quote_literal(case when access_gone <> '{}' then
                  array(select c from unnest(g.access_columns) c where c <> all (access_gone))
                    || case when hidden_gone = '{}' then renamed else array['<its name now>'] end end),
                'quiet_columns => ' || quote_literal(case when 'quiet_columns' = any (g.chosen) then
                  array(select c from unnest(g.quiet_columns) c where c = any (g.names)) end))) end
    from gone g
   where names_gone <> '{}'
  union all
  select 'column_gone', 'wrong', g.parent::text,
         format('%s has no column %s, which named the rows of %s', g.parent, g.part_link, g.relation),
         'changes of the part find no record: the record''s rooms are told to fetch anew at each',
         format('select crm_relay.watch(%L, part_link => %L);', g.relation, coalesce((
           select a.attname from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
            where k.conrelid = g.parent and k.confrelid = g.relation and k.contype = 'f' and cardinality(k.conkey) = 1
            order by k.oid limit 1), '<its name now>'))
    from gone g
   where g.link_gone
  union all
  select 'column_retyped', 'wrong', g.relation::text,
         format('a key or access column of %s has another type than when it was watched', g.relation),
         'nobody can be let in by what its rows say today',
         crm_relay.watch_command(g.relation)
    from gone g
   where names_gone = '{}' and g.lookup is not null
     and g.lookup_types is distinct from crm_relay.column_types(g.relation, g.key_columns || g.access_columns)
  union all
  select 'column_open', 'wrong', g.relation::text,
         format('%s has got columns since it was watched that are named like secrets: %s', g.relation, array_to_string(secret.names, ', ')),
         'they are in the journal and in events',
         format('select crm_relay.watch(%L, hidden_columns => %L);', g.relation, g.hidden_columns || secret.names)
    from gone g
   cross join lateral (
     select array(select c from unnest(g.names) c
                   where crm_relay.is_secret(c) and c <> all (g.hidden_columns || g.key_columns || g.access_columns))) as secret (names)
   where not g.narrow and secret.names <> '{}' and 'hidden_columns' <> all (g.chosen)
  union all
  select 'column_new', 'note', g.relation::text,
         format('%s has other columns than when it was watched, or the registry other settings than there are', g.relation),
         'changes are told, but not as well: no actor, or large columns whole',
         crm_relay.watch_command(g.relation)
    from gone g
   cross join lateral crm_relay.goes_by(g.registered) o
   where names_gone = '{}'
     and ((o.marks, o.large_null, o.doorbell, o.slot_seconds) is distinct from (g.marks, g.large_null, g.doorbell, g.slot_seconds)
          or g.large_null is not null and o.others_null is distinct from g.others_null)
$$;
comment on function crm_relay.verify_columns() is 'columns that were renamed, dropped, retyped, came later and should be hidden, or are not made use of';

create or replace function crm_relay.verify_hidden() returns setof crm_relay.finding
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select 'hidden_journaled', 'wrong', m.module,
         format('the journal holds hidden columns of module %s, written before they were hidden: %s', m.module, string_agg(distinct k.name, ', ')),
         'who may read the journal reads them, and a client that resumes may get them',
         format('select crm_relay.redact(%L);', m.module)
    from (select r.part, r.module, r.old_image, r.new_image from crm_relay.recent_rows(100) r
          union all
          select r.part, r.module, r.old_image, r.new_image from generate_series(0, 9) as s (slot)
           cross join lateral (select o.* from crm_relay.change o where o.slot = s.slot order by o.txid limit 100) r) r
    join crm_relay.module m on m.module = coalesce(r.part, r.module) and m.hidden_columns <> '{}'
   cross join lateral (
     select key as name from json_object_keys(crm_relay.readable(r.old_image)) as keys (key)
     union
     select key from json_object_keys(crm_relay.readable(r.new_image)) as keys (key)) k
   where k.name = any (m.hidden_columns)
   group by m.module
$$;
comment on function crm_relay.verify_hidden() is 'hidden columns in the oldest and newest hundred rows of each slot of the journal';


create or replace function crm_relay.verify_functions() returns setof crm_relay.finding
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with known as (
    select i.signature, i.fingerprint, i.owner, p.oid, p.proowner::regrole::text as owner_now, p.prosecdef, o.rolsuper,
           -- a procedure that commits cannot pin it
           p.prokind = 'p' or coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false) as is_pinned
      from crm_relay.installed i
      left join pg_proc p on p.oid = to_regprocedure(i.signature)
      left join pg_roles o on o.oid = p.proowner
  ), job as (
    select j.name, r.oid, r.rolname is null as is_gone, r.rolcanlogin, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication,
           array(select g.rolname::text from pg_auth_members a join pg_roles g on g.oid = a.roleid where a.member = r.oid
                    and not (j.name = 'crm_relay_verify' and g.rolname = 'crm_relay_serve') order by 1) as member_of
      from unnest(array['crm_relay_image', 'crm_relay_part', 'crm_relay_snapshot', 'crm_relay_policy', 'crm_relay_capture', 'crm_relay_prune', 'crm_relay_verify']) j (name)
      left join pg_roles r on r.rolname = j.name
  )
  select 'function_missing', 'wrong', k.signature, format('function %s is not there', k.signature),
         'whoever calls it fails', 'crm-relay install'
    from known k where k.oid is null
  union all
  select 'function_owner', 'wrong', k.signature, format('function %s belongs to %s, it must belong to %s', k.signature, k.owner_now, k.owner),
         case when k.rolsuper then 'it would lend a superuser''s rights to code of a table''s owner, and so refuses to work'
              else 'it would run with rights that are not its own, and so refuses to work' end,
         'crm-relay install'
    from known k where k.owner <> k.owner_now
  union all
  select 'function_search_path', case when k.fingerprint is null then 'note' else 'wrong' end, k.signature,
         format('function %s does not pin its search_path to pg_catalog, pg_temp', k.signature),
         'who may create functions or tables elsewhere can lend it theirs',
         format('alter function %s set search_path = pg_catalog, pg_temp;', k.signature)
    from known k
   where k.oid is not null and not k.is_pinned
  union all
  select 'function_changed', 'wrong', k.signature, format('function %s is not the one that was installed', k.signature),
         'what it does now no one has tested', 'crm-relay install'
    from known k
   where k.oid is not null and k.fingerprint <> crm_relay.fingerprint(k.oid) and k.is_pinned
  union all
  select 'function_public', 'wrong', k.signature, format('everybody may run %s, which runs with the rights of %s', k.signature, k.owner_now),
         'it is for the relay''s roles alone', format('revoke all on function %s from public;', k.signature)
    from known k
   where k.owner is not null and has_function_privilege('public', k.oid, 'execute')
     and k.signature not in ('crm_relay.capture()', 'crm_relay.capture_truncate()')
  union all
  select 'policy_unasked', 'wrong', k.signature, format('role crm_relay_serve may not run %s', k.signature),
         'the relay cannot ask it: what it would grant stays closed', format('grant execute on function %s to crm_relay_serve;', k.signature)
    from known k
   where k.fingerprint is null and k.oid is not null and not has_function_privilege('crm_relay_serve', k.oid, 'execute')
  union all
  select 'role_unsafe', 'wrong', j.name,
         format('role %s ', j.name) || case when j.is_gone then 'is not there'
           else 'has more than its job needs: ' || concat_ws(', ', case when j.rolcanlogin then 'login' end, case when j.rolsuper then 'superuser' end,
             case when j.rolcreaterole then 'createrole' end, case when j.rolcreatedb then 'createdb' end,
             case when j.rolreplication then 'replication' end, 'member of ' || nullif(array_to_string(j.member_of, ', '), '')) end,
         case when j.is_gone then 'its functions do not work' else 'functions run with its rights, some of them over code of a table''s owner' end,
         case when j.is_gone then 'crm-relay install'
              else concat_ws(' ', format('alter role %I nologin nosuperuser nocreaterole nocreatedb noreplication;', j.name),
                             (select string_agg(format('revoke %I from %I;', g, j.name), ' ') from unnest(j.member_of) g)) end
    from job j
   where j.is_gone or j.rolcanlogin or j.rolsuper or j.rolcreaterole or j.rolcreatedb or j.rolreplication or j.member_of <> '{}'
$$;
comment on function crm_relay.verify_functions() is
  'functions that are missing, changed, unpinned, or belong to somebody else, and roles that have more than their job needs';

create or replace function crm_relay.verify_journal() returns setof crm_relay.finding
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with slots as (
    select s.slot, format('crm_relay.change_%s', s.slot) as name, newest.txid as greatest_txid, newest.changed_at as newest_at, oldest.changed_at as oldest_at,
           newest.seq as newest_seq, oldest.seq as oldest_seq,
           s.slot = crm_relay.slot(clock_timestamp(), c.retention) as is_written, c.retention,
           pg_total_relation_size(format('crm_relay.change_%s', s.slot)::regclass) as bytes
      from generate_series(0, 9) as s (slot)
     cross join crm_relay.setting c
      -- a transaction that began early may have written late
      left join lateral (
        select max(r.txid) as txid, max(r.seq) as seq, max(r.changed_at) as changed_at
          from (select * from crm_relay.change c where c.slot = s.slot order by c.txid desc limit 100) r) newest on true
      left join lateral (select r.seq, r.changed_at from crm_relay.change r where r.slot = s.slot order by r.txid limit 1) oldest on true
  ), all_slots as (
    select sum(bytes)::bigint as bytes, coalesce(max(newest_seq) - min(oldest_seq) + 1, 0) as changes, max(retention) as retention,
           extract(epoch from max(newest_at) - min(oldest_at)) / 86400 as days
      from slots
  ), holder as (
    -- the transaction that was the first of those still open to take an id: nothing since then can go
    select format('the session %s (%s, %s)', a.pid, coalesce(a.usename, '?'), coalesce(nullif(a.application_name, ''), '?')) as who,
           format('select pg_terminate_backend(%s, 5000); ', a.pid) as mend
      from pg_stat_activity a where a.backend_xid = pg_snapshot_xmin(pg_current_snapshot())::xid
    union all
    select format('the prepared transaction %s', quote_literal(p.gid)), format('rollback prepared %L; ', p.gid)
      from pg_prepared_xacts p where p.transaction = pg_snapshot_xmin(pg_current_snapshot())::xid
    limit 1
  )
  select 'journal_size', 'note', 'crm_relay.change',
         format('the journal takes %s for about %s changes%s', pg_size_pretty(a.bytes), a.changes,
                case when a.days > 1.0 / 24 then format(', and grows by %s a day', pg_size_pretty((a.bytes / a.days)::bigint)) else '' end),
         format('it keeps changes for %s, and a sixth more', a.retention),
         'update crm_relay.setting set retention = ''3 days''; -- where it is too much'
    from all_slots a
  union all
  select 'slot_due', 'wrong', s.name,
         format('%s could not be truncated: its newest row is of %s, older than the retention of %s', s.name, s.newest_at, s.retention)
           || case when s.greatest_txid >= pg_snapshot_xmin(pg_current_snapshot())
                   then coalesce(format('; %s is open since before', h.who), '; an open transaction is older') else '' end,
         'the journal grows; no relay prunes, or somebody stands in its way',
         case when s.greatest_txid >= pg_snapshot_xmin(pg_current_snapshot()) then coalesce(h.mend, '') else '' end
           || 'select crm_relay.prune();'
    from slots s
    left join holder h on true
   where not s.is_written and s.newest_at < clock_timestamp() - s.retention - interval '3 minutes'
  union all
  select 'journal_foreign', 'wrong', 'crm_relay.change',
         'the journal holds transactions that this server has not come to: it was restored from elsewhere',
         'they would be told as new when the server gets to their numbers', 'select crm_relay.renew();'
   where exists (select from crm_relay.change c where c.txid >= pg_snapshot_xmax(pg_current_snapshot())
                    and c.txid <> coalesce(pg_current_xact_id_if_assigned(), '0'))
$$;
comment on function crm_relay.verify_journal() is 'how large the journal is, slots that could not be truncated, a journal that comes from another server';

create or replace function crm_relay.verify_sessions(old interval default '1 minute') returns setof crm_relay.finding
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with other as (
    select a.*, clock_timestamp() - a.xact_start as open_for, coalesce(a.usename, '?') as who,
           coalesce(nullif(a.application_name, ''), '?') as application, coalesce(host(a.client_addr), 'this machine') as host
      from pg_stat_activity a where a.pid <> pg_backend_pid()
  ), relay as (
    select o.*, r.version[1] as version
      from other o
     cross join lateral regexp_match(o.application, '^crm-relay reader ([0-9][^ ]*)$') as r (version)
     where o.datname = current_database() and r.version is not null
  ), queue as (
    select pg_notification_queue_usage() as usage
  )
  select 'sessions_unseen', 'wrong', current_user::text,
         format('role %s may not see what the sessions of others do', current_user),
         'long transactions and who holds notifications or locks cannot be found',
         format('grant pg_read_all_stats to %I; -- as a superuser', current_user)
   where not pg_has_role(current_user, 'pg_read_all_stats', 'usage')
  union all
  select 'transaction_old', case when o.state like 'idle in transaction%' then 'wrong' else 'note' end, format('session %s', o.pid),
         format('a transaction of %s (%s, from %s) is open for %s, and %s', o.who, o.application, o.host,
                date_trunc('second', o.open_for),
                case when o.state like 'idle in transaction%' then 'idle for ' || date_trunc('second', clock_timestamp() - o.state_change) else 'at work' end),
         concat_ws(' and ', case when o.backend_xid is not null then 'no slot of the journal that is younger can be truncated' end,
                   'vacuum keeps what it could see'),
         format('select pg_terminate_backend(%s, 5000);', o.pid)
    from other o
   where o.open_for > old and o.backend_type = 'client backend'
     and (o.backend_xid is not null or o.backend_xmin is not null and o.datname = current_database())
  union all
  select 'transaction_old', 'wrong', format('prepared transaction %s', quote_literal(p.gid)),
         format('transaction %L of %s was prepared %s ago and neither committed nor rolled back', p.gid, p.owner, date_trunc('second', clock_timestamp() - p.prepared)),
         'no slot of the journal that is younger can be truncated, and its locks stay',
         format('rollback prepared %L; -- or commit prepared', p.gid)
    from pg_prepared_xacts p
   where p.prepared < clock_timestamp() - old and p.database = current_database()
  union all
  select 'notifications_held', case when q.usage >= 0.25 then 'wrong' else 'note' end, coalesce('session ' || l.pid, 'server'),
         format('the queue of notifications is %s %% full', round((q.usage * 100)::numeric, 1))
           || coalesce(format('; who holds it the server does not say, most likely the session %s (%s, %s), idle in a transaction for %s',
                              l.pid, l.who, l.application, date_trunc('second', l.open_for)), ''),
         'from half full on writers ring no more and events come seconds late; a full one would abort who notifies',
         coalesce(format('select pg_terminate_backend(%s, 5000);', l.pid),
                  'select pid, usename, state, xact_start from pg_stat_activity where xact_start is not null order by xact_start;')
    from queue q
    left join lateral (
      select o.* from other o where o.state like 'idle in transaction%' and o.datname is not null order by o.xact_start limit 1) l on true
   where q.usage >= 0.01
  union all
  select 'lock_held', 'wrong', format('session %s', l.pid),
         format('the session %s (%s, %s) holds the advisory lock under which %s', l.pid, coalesce(o.who, '?'), coalesce(o.application, '?'), k.does),
         'that waits, or does not happen, for as long',
         format('select pg_terminate_backend(%s, 5000);', l.pid)
    from pg_locks l
    -- as crm_relay.prune(), relays and the installation take them
    join (values ('crm_relay.setting'::regclass::oid::bigint, 1::bigint, 2, 'the journal is pruned'),
                 ('crm_relay.setting'::regclass::oid::bigint, 2, 2, 'the leading relay sleeps'),
                 ('crm_relay.setting'::regclass::oid::bigint, 3, 2, 'one relay leads'),
                 (hashtextextended('crm_relay.install', 0) >> 32 & 4294967295, hashtextextended('crm_relay.install', 0) & 4294967295, 1, 'the schema is installed'))
      as k (class, object, kind, does)
      on l.classid::bigint = k.class and l.objid::bigint = k.object and l.objsubid = k.kind
    left join other o on o.pid = l.pid
   where l.locktype = 'advisory' and l.granted and l.database = (select d.oid from pg_database d where d.datname = current_database())
     and l.pid <> pg_backend_pid()
     -- they are the transaction's own there, and short
     and (o.state is null or o.state = 'idle' or o.open_for > old)
     and not (k.kind = 2 and k.object in (2, 3) and coalesce(o.application, '') like 'crm-relay sleep%')
     -- a writer's share ends with its transaction, and an old one of those is another finding
     and not (k.kind = 2 and k.object = 2 and l.mode = 'ShareLock' and o.state <> 'idle')
  union all
  select 'relay_missing', 'note', current_database()::text, 'no relay reads this journal',
         'nothing is told to anybody, and nobody prunes', 'crm-relay serve'
   where pg_has_role(current_user, 'pg_read_all_stats', 'usage')
     and not exists (select from other o where o.datname = current_database() and o.application like 'crm-relay reader%')
  union all
  select 'relay_versions', 'note', current_database()::text,
         'relays of different versions read this journal: '
           || (select string_agg(distinct format('%s on %s', r.version, r.host), ', ') from relay r),
         'while one is being upgraded that is as it should be; else one was forgotten',
         (select string_agg(format('select pg_terminate_backend(%s, 5000);', r.pid), ' ') || ' -- the older ones, once their daemons are stopped'
            from relay r where string_to_array(regexp_replace(r.version, '[^0-9.].*$', ''), '.')::int[]
                             < (select max(string_to_array(regexp_replace(v.version, '[^0-9.].*$', ''), '.')::int[]) from relay v))
   where (select count(distinct r.version) from relay r) > 1
$$;
comment on function crm_relay.verify_sessions(interval) is
  'transactions that are open for longer than a minute, notifications that nobody takes, locks of the relay''s that others hold, relays of several versions';

create or replace function crm_relay.verify_settings() returns setof crm_relay.finding
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select 'doorbell_two_phase', 'wrong', 'crm_relay.setting',
         format('writers ring by notify, and this server allows %s prepared transactions', current_setting('max_prepared_transactions')),
         'prepare transaction fails after a write to a watched table', 'update crm_relay.setting set doorbell = ''never'';'
    from crm_relay.setting s
   where s.doorbell <> 'never' and current_setting('max_prepared_transactions')::int > 0
  union all
  select 'doorbell_never', 'note', 'crm_relay.setting',
         'the relay polls, though this server allows no prepared transactions that notify would disturb',
         'four queries a second that a bell would spare, and up to a quarter of a second more until an event is there',
         'update crm_relay.setting set doorbell = ''adaptive'';'
    from crm_relay.setting s
   where s.doorbell = 'never' and current_setting('max_prepared_transactions')::int = 0
  union all
  select 'wal_level', 'note', 'server', 'wal_level is logical, and nothing decodes it',
         'the relay needs no more than minimal: logical writes more for each update of a table with replica identity full',
         'alter system set wal_level = replica; -- and restart the server'
   where current_setting('wal_level') = 'logical'
     and not exists (select from pg_replication_slots s where s.slot_type = 'logical')
     and not exists (select from pg_publication)
  union all
  select 'max_locks', 'note', 'server',
         format('max_locks_per_transaction is %s; a read of the journal locks forty tables and indexes', current_setting('max_locks_per_transaction')),
         'with many sessions "out of shared memory" ends a statement, the CRM''s as well as the relay''s',
         'alter system set max_locks_per_transaction = 64; -- and restart the server'
   where current_setting('max_locks_per_transaction')::int < 64
  union all
  select 'commits_late', 'note', 'server', 'synchronous_commit is off',
         'a crash takes back commits whose events were sent; a relay that does not fall with the server notices, and then everybody fetches anew',
         'alter system set synchronous_commit = on; select pg_reload_conf();'
   where current_setting('synchronous_commit') = 'off'
$$;
comment on function crm_relay.verify_settings() is 'settings of the server and of the relay that do not go together';

create or replace function crm_relay.verify_policy() returns setof crm_relay.finding
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set client_min_messages = error -- what is found is told, not logged
as $$
declare
  sample record;
  somebody text;
  person jsonb;
  people jsonb[] := array[]::jsonb[];
  names integer := 0;
  -- nobody whom the CRM could know
  stranger jsonb := jsonb_build_object('user', gen_random_uuid(), 'team', gen_random_uuid(), 'broker', gen_random_uuid(), 'role', 'agent');
  unknown text := gen_random_uuid()::text;
  images integer := 0;
  seen integer := 0;
  open_modules text[] := array[]::text[];
  asked text;
  -- the rules as they come, in the place of what does not work
  usual constant jsonb := jsonb_build_object(
    'principal', $mend$create or replace function crm_relay.principal(claims jsonb) returns jsonb language plpgsql stable set search_path = pg_catalog, pg_temp as 'begin return crm_relay.usual_principal(claims); end'; -- or correct yours$mend$,
    'may_see_row', $mend$create or replace function crm_relay.may_see_row(principal jsonb, module text, image json) returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as 'begin return crm_relay.usual_may_see_row(principal, module, image); end'; -- or correct yours$mend$,
    'may_enter', $mend$create or replace function crm_relay.may_enter(principal jsonb, room text) returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as 'begin return crm_relay.usual_may_enter(principal, room); end'; -- or correct yours$mend$,
    'rooms_of', $mend$create or replace function crm_relay.rooms_of(module text, image json) returns text[] language plpgsql stable set search_path = pg_catalog, pg_temp as 'begin return crm_relay.usual_rooms_of(module, image); end'; -- or correct yours$mend$);
begin
  if current_user <> 'crm_relay_verify' then
    raise exception 'crm_relay: verify_policy() belongs to %, it must belong to crm_relay_verify', current_user
      using hint = 'run crm-relay install again';
  end if;
  asked := 'principal';
  -- whoever the journal names
  for somebody in
    select distinct u.id from (
      select * from crm_relay.change c where c.module <> 'crm_relay_canary' order by c.txid desc limit 300) c
     cross join lateral (values (c.actor), (crm_relay.owner_of(crm_relay.readable(coalesce(c.new_image, c.old_image))))) as u (id)
     where u.id is not null limit 20
  loop
    names := names + 1;
    person := crm_relay.principal(jsonb_build_object('id', somebody, 'sub', somebody));
    if person is not null then
      people := people || person;
    end if;
  end loop;
  if names >= 3 and people = '{}' then
    return next ('policy_closed', 'wrong', 'crm_relay.principal(jsonb)',
      format('principal() knows none of the %s users whom the journal names', names), 'every token is refused',
      usual ->> 'principal')::crm_relay.finding;
  end if;
  if crm_relay.principal(jsonb_build_object('id', unknown, 'sub', unknown)) is not null
     and exists (select from crm_relay.module m where m.module = 'users') then
    return next ('policy_open', 'note', 'crm_relay.principal(jsonb)', 'principal() knows a user who was just made up',
      'who is removed or not active keeps what their token gives them',
      usual ->> 'principal')::crm_relay.finding;
  end if;
  asked := 'may_enter';
  if crm_relay.may_enter(stranger, 'team:' || gen_random_uuid()) or crm_relay.may_enter(stranger, 'user:' || gen_random_uuid()) then
    return next ('policy_open', 'wrong', 'crm_relay.may_enter(jsonb,text)', 'may_enter() lets somebody who was just made up into rooms of others',
      'what they get there may_see_row() decides alone',
      usual ->> 'may_enter')::crm_relay.finding;
  end if;
  for sample in
    select s.module, array_agg(s.image) as images,
           -- private, and somebody else's
           (select json_object_agg(c, case c when 'is_private' then 'true' when 'access_level' then 'personal' else gen_random_uuid()::text end)
              from unnest(m.access_columns) c) as made_up
      from (select c.module, i.image, row_number() over (partition by c.module order by max(c.seq) desc) as place
              from (select * from crm_relay.change r where r.part is null and r.module <> 'crm_relay_canary' order by r.txid desc limit 300) c
              join crm_relay.module m on m.module = c.module and not m.narrow and m.access_columns <> '{}'
             cross join lateral (
               select json_object_agg(key, value order by key)::text from json_each(crm_relay.readable(coalesce(c.new_image, c.old_image)))
                where key = any (m.access_columns)) as i (image)
             where i.image is not null
             group by c.module, i.image) s
      join crm_relay.module m on m.module = s.module
     where s.place <= 10
     group by s.module, m.access_columns
  loop
    asked := 'rooms_of';
    perform crm_relay.rooms_of(sample.module, i::json) from unnest(sample.images) i;
    asked := 'may_see_row';
    if crm_relay.sees(stranger, sample.module, sample.made_up)
       and (select bool_and(crm_relay.may_see_row(stranger, sample.module, i::json)) from unnest(sample.images) i) then
      open_modules := open_modules || sample.module::text;
    end if;
    select images + count(*), seen + count(*) filter (where crm_relay.may_see_row(p, sample.module, i::json))
      into images, seen from unnest(sample.images) i cross join unnest(people) p;
  end loop;
  if open_modules <> '{}' then
    return next ('policy_open', 'wrong', 'crm_relay.may_see_row(jsonb,text,json)',
      format('may_see_row() shows every record of %s to somebody who was just made up, private ones, too', array_to_string(open_modules, ', ')),
      'everybody with a token sees everything',
      usual ->> 'may_see_row')::crm_relay.finding;
  end if;
  if images >= 3 and seen = 0 then
    return next ('policy_closed', 'wrong', 'crm_relay.may_see_row(jsonb,text,json)',
      format('may_see_row() shows none of the records that were tried to any of the %s users whom the journal names', cardinality(people)),
      'every subscription is denied',
      usual ->> 'may_see_row')::crm_relay.finding;
  end if;
exception when others then
  if asked is null or sqlstate = '55P03' then
    raise; -- not the policy's doing: somebody locks the journal
  end if;
  return next ('policy_raises', 'wrong', 'crm_relay.' || asked, format('%s() raised: %s', asked, sqlerrm),
    'whatever it would grant stays closed', usual ->> asked)::crm_relay.finding;
end
$$;
comment on function crm_relay.verify_policy() is
  'a policy that raises, or says yes to everybody or to nobody: asked as the relay asks it, about recent images of the journal, for users whom it names and for one who was made up';

create or replace function crm_relay.verify() returns setof crm_relay.finding
language plpgsql stable
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  subject text;
begin
  foreach subject in array array['tables', 'triggers', 'columns', 'hidden', 'functions', 'policy', 'journal', 'sessions', 'settings'] loop
    begin
      return query execute format('select * from crm_relay.verify_%s()', subject);
    exception when others then
      return next ('unchecked', 'wrong', subject, format('%s could not be looked at: %s', subject, sqlerrm),
        'what is wrong there is not told here',
        case when sqlstate = '42501' then format('grant crm_relay_audit to %I; -- or ask as a superuser', current_user)
             else format('select * from crm_relay.verify_%s(); -- again; after a lock timeout once who holds it is gone (pg_locks, pg_stat_activity)', subject) end)::crm_relay.finding;
    end;
  end loop;
end
$$;
comment on function crm_relay.verify() is
  'what is wrong with the relay''s schema and its surroundings, why it matters and what mends it: one row each, none in health but notes; never raises';

revoke all on function
  crm_relay.verify(), crm_relay.verify_tables(), crm_relay.verify_triggers(), crm_relay.verify_columns(), crm_relay.verify_hidden(),
  crm_relay.verify_functions(), crm_relay.verify_policy(), crm_relay.verify_journal(), crm_relay.verify_sessions(interval), crm_relay.verify_settings(),
  crm_relay.recent_rows(integer), crm_relay.fingerprint(oid), crm_relay.watch_command(regclass),
  crm_relay.watch_call(crm_relay.module, text) from public;
grant execute on function
  crm_relay.verify(), crm_relay.verify_tables(), crm_relay.verify_triggers(), crm_relay.verify_columns(), crm_relay.verify_hidden(),
  crm_relay.verify_functions(), crm_relay.verify_policy(), crm_relay.verify_journal(), crm_relay.verify_sessions(interval), crm_relay.verify_settings(),
  crm_relay.recent_rows(integer), crm_relay.fingerprint(oid), crm_relay.watch_command(regclass), crm_relay.watch_call(crm_relay.module, text),
  crm_relay.is_secret(text), crm_relay.column_types(regclass, text[]), crm_relay.slot(timestamptz, interval), crm_relay.slot_seconds(interval) to crm_relay_audit, crm_relay_serve;
grant create on schema crm_relay to crm_relay_verify;
alter function crm_relay.verify_policy() owner to crm_relay_verify;
revoke create on schema crm_relay from crm_relay_verify;
