-- the schema as it is installed: complete, commented, and every right where it belongs

begin;
select plan(15);

select is(version, 7, 'the version is set') from crm_relay.setting;
select is_empty(
  $$ select c.relname from pg_class c
      where c.relnamespace = 'crm_relay'::regnamespace and c.relkind in ('r', 'p', 'v', 'S', 'i')
        and obj_description(c.oid, 'pg_class') is null
        and c.relname !~ '_(pkey|key|idx)$' and not c.relispartition $$,
  'every table, view, sequence and index has a comment');
select is_empty(
  $$ select c.relname || '.' || a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
      where c.relnamespace = 'crm_relay'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
        and a.attnum > 0 and not a.attisdropped and a.attname <> 'only_row'
        and col_description(c.oid, a.attnum) is null $$,
  'every column has a comment');
select is_empty(
  $$ select p.oid::regprocedure from pg_proc p
      where p.pronamespace = 'crm_relay'::regnamespace and obj_description(p.oid, 'pg_proc') is null $$,
  'every function has a comment');
select isnt_empty(
  $$ select from pg_trigger where tgrelid = 'listings'::regclass and tgname = '!crm_relay' and obj_description(oid, 'pg_trigger') is not null $$,
  'the triggers have comments, too');

-- these run text that crm_relay.watch() put together with every name quoted
select is_empty(
  $$ select p.proname, c.lineno, c.message, c.detail from pg_proc p join pg_language l on l.oid = p.prolang
      cross join lateral plpgsql_check_function_tb(
        p.oid, case when p.proname = 'refresh_module' then 'crm_relay.module'::regclass when p.prorettype = 'trigger'::regtype then 'public.listings'::regclass else 0 end,
        anyelememttype => 'public.listings'::regtype, performance_warnings => false,
        security_warnings => p.proname not in ('in_short_transaction', 'watch', 'records_of', 'record_now', 'access_now', 'accesses_now', 'heirs_of', 'verify')) c
      where p.pronamespace = 'crm_relay'::regnamespace and l.lanname = 'plpgsql' $$,
  'plpgsql_check finds nothing wrong');

select is(
  (select string_agg(p.proname || ' as ' || p.proowner::regrole, ', ' order by p.proname) from pg_proc p
    where p.pronamespace = 'crm_relay'::regnamespace and p.prosecdef),
  'access_now as crm_relay_policy, accesses_now as crm_relay_policy, capture as crm_relay_capture, capture_truncate as crm_relay_capture, disconnect as crm_relay_capture, disown as crm_relay_prune, heirs_of as crm_relay_policy, image as crm_relay_image, images as crm_relay_image, prune as crm_relay_prune, record_now as crm_relay_snapshot, records_of as crm_relay_part, renew as crm_relay_prune, verify_policy as crm_relay_verify',
  'these functions run with the rights of their owner, and no others');
select is_empty(
  $$ select p.oid::regprocedure from pg_proc p
      where p.pronamespace = 'crm_relay'::regnamespace and has_function_privilege('public', p.oid, 'execute')
        and p.proname not in ('capture', 'capture_truncate') $$,
  'the public may run none of them but as triggers');
select is_empty(
  $$ select p.oid::regprocedure from pg_proc p
      where p.pronamespace = 'crm_relay'::regnamespace and p.prokind = 'f'
        and not coalesce(p.proconfig::text like '%search_path=pg_catalog, pg_temp%', false) $$,
  'every function pins its search path');

select is(
  (select string_agg(rolname, ', ' order by rolname) from pg_roles
    where rolname like 'crm\_relay\_%' and not (rolcanlogin or rolsuper or rolcreaterole or rolcreatedb or rolreplication)),
  'crm_relay_audit, crm_relay_capture, crm_relay_image, crm_relay_part, crm_relay_policy, crm_relay_prune, crm_relay_serve, crm_relay_snapshot, crm_relay_verify',
  'no role can log in or do more than its job');
select is(
  (select string_agg(grantee || ' ' || lower(privilege_type), ', ' order by grantee, privilege_type)
     from information_schema.role_table_grants
    where table_schema = 'crm_relay' and grantee like 'crm\_relay\_%' and table_name = 'change'),
  'crm_relay_audit select, crm_relay_capture insert, crm_relay_prune select, crm_relay_serve select',
  'the trigger may only add to the journal, the relay and the DBA may only read it');
select is_empty(
  $$ select relation::text from (
       select c.oid::regclass as relation from pg_class c
        where c.relnamespace = 'crm_relay'::regnamespace and c.relkind in ('r', 'p', 'v')) r
      where has_table_privilege('public', relation, 'select, insert, update, delete, truncate') $$,
  'the public may not touch the tables');
select is(
  (select count(*)::int from information_schema.role_table_grants
    where grantee = 'crm_relay_image' and table_schema not in ('pg_catalog', 'information_schema')),
  0, 'the role that renders rows may touch no table at all');

select is(
  (select string_agg(concat_ws(' of ', m.module, m.part_of), ', ' order by m.module) from crm_relay.module m),
  'appointments, clients, contacts of clients, crm_relay_canary, escrows, leads, listings, users',
  'the CRM''s tables are watched, and the relay''s own canary');

select is(
  (select string_agg(distinct table_name, ', ') from information_schema.role_table_grants
    where grantee = 'crm_relay_serve' and privilege_type <> 'SELECT'),
  'canary', 'the daemon may write to the canary''s table and to no other');

select * from finish();
rollback;
