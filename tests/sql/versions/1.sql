-- installs crm-relay:   psql -v ON_ERROR_STOP=1 -f sql/install.sql
-- The same as `crm-relay install`. The schema comes in one transaction, then each table's triggers
-- in a short one of their own. It may be run again at any time.
\set ON_ERROR_STOP on
\if :{?crm_schema}
\else
  \set crm_schema public
\endif
-- whoever may create functions in the CRM's schemas must not lend us theirs
set search_path = pg_catalog, pg_temp;
begin;
set local client_min_messages = warning;
set local lock_timeout = '5s';
-- before anything: one installation at a time, never over a newer one, never on what cannot work

do $guard$
declare
  version integer;
begin
  if current_setting('server_version_num')::integer < 140000 then
    raise exception 'crm_relay: this server is PostgreSQL %, at least 14 is needed', current_setting('server_version');
  end if;
  if pg_catalog.pg_is_in_recovery() then
    raise exception 'crm_relay: this server is a standby: install on the primary';
  end if;
  if pg_catalog.current_setting('server_encoding') = 'SQL_ASCII' then
    raise exception 'crm_relay: this database has encoding SQL_ASCII: nobody knows which characters its bytes are'
      using hint = 'use a database with encoding UTF8';
  end if;
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('crm_relay.install', 0));
  if pg_catalog.to_regclass('crm_relay.setting') is not null then
    execute 'select version from crm_relay.setting' into version;
    if version > 1 then
      raise exception 'crm_relay: schema version % is installed, newer than this one, which is 1', version
        using hint = 'use the crm-relay that installed it, or a later one';
    end if;
  end if;
end
$guard$;
-- roles: one for each job, none can log in, none can do anything else.
--
-- A function with "security definer" runs with the rights of its owner, and rendering a row runs
-- code that the owner of the table may have written (casts to json). So no such function belongs
-- to a superuser or to whoever installs: the role that renders rows has no right at all, the one
-- that looks for a part's records may read their keys, and the one that writes the journal never
-- runs anybody's code.
-- https://www.postgresql.org/docs/current/sql-createfunction.html#SQL-CREATEFUNCTION-SECURITY

do $roles$
declare
  job record;
  found record;
begin
  for job in
    select * from (values
      ('crm_relay_image',   'crm-relay: renders a row as json; has no right to anything'),
      ('crm_relay_part',    'crm-relay: finds the records that a part belongs to; may read their keys and access columns'),
      ('crm_relay_snapshot', 'crm-relay: reads records as they are now; may read watched tables'),
      ('crm_relay_capture', 'crm-relay: owns the trigger function; may insert into the journal'),
      ('crm_relay_prune',   'crm-relay: owns prune(); may truncate the slots of the journal'),
      ('crm_relay_serve',   'crm-relay: what the daemon runs as; reads the journal'),
      ('crm_relay_audit',   'crm-relay: for DBAs; reads the journal and the audit view')
    ) as jobs (name, purpose)
  loop
    begin
      execute format('create role %I nologin', job.name);
      execute format('comment on role %I is %L', job.name, job.purpose);
    exception when duplicate_object or unique_violation then
      null; -- another database of this server has the relay, too: roles belong to the server
    end;

    select r.rolcanlogin, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication,
           array(select g.rolname from pg_catalog.pg_auth_members m
                   join pg_catalog.pg_roles g on g.oid = m.roleid
                  where m.member = r.oid) as member_of
      into found
      from pg_catalog.pg_roles r
     where r.rolname = job.name;
    if job.name not in ('crm_relay_serve', 'crm_relay_audit')
       and (found.rolcanlogin or found.rolsuper or found.rolcreaterole or found.rolcreatedb
            or found.rolreplication or found.member_of <> '{}') then
      raise exception 'crm_relay: role % must be without login, attributes and memberships, but it has more', job.name
        using hint = format('drop it or take away what it has: alter role %I nologin nosuperuser nocreaterole nocreatedb noreplication', job.name);
    end if;

    -- to hand a function to a role one must be a member of it
    if not pg_catalog.pg_has_role(current_user, job.name, 'member') then
      execute format('grant %I to %I', job.name, current_user);
    end if;
  end loop;
  -- a part's change finds its records, and a snapshot its record, also under row level security
  if (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) then
    alter role crm_relay_part bypassrls;
    alter role crm_relay_snapshot bypassrls;
  end if;
end
$roles$;
-- the schema, the settings of this installation, the registry of watched tables

create schema if not exists crm_relay;
comment on schema crm_relay is
  'crm-relay: captures changes of watched tables and hands them to the relay; see sql/README.md';

-- create: to own their functions; taken away again at the end
grant usage, create on schema crm_relay
  to crm_relay_image, crm_relay_part, crm_relay_snapshot, crm_relay_capture, crm_relay_prune;
grant usage on schema crm_relay
  to crm_relay_image, crm_relay_part, crm_relay_snapshot, crm_relay_capture, crm_relay_prune, crm_relay_serve, crm_relay_audit;

create table if not exists crm_relay.setting (
  only_row boolean primary key default true check (only_row),
  version integer not null,
  install_id uuid not null default pg_catalog.gen_random_uuid(),
  installed_at timestamptz not null default pg_catalog.now(),
  doorbell text not null default 'always' check (doorbell in ('always', 'never')),
  retention interval not null default '7 days' check (retention >= '1 minute'),
  pruned_txid xid8 not null default '0',
  pruned_at timestamptz
);
comment on table crm_relay.setting is 'the settings of this installation: one row';
comment on column crm_relay.setting.version is 'version of the schema; an older crm-relay refuses to install over it';
comment on column crm_relay.setting.install_id is 'tells this installation from every other; part of the epoch of cursors';
comment on column crm_relay.setting.installed_at is 'when it was first installed';
comment on column crm_relay.setting.doorbell is
  'always: each transaction with changes rings by notify; never: the relay polls (for servers with two-phase commit, which refuses notify)';
comment on column crm_relay.setting.retention is 'how long a change is kept in the journal at least';
comment on column crm_relay.setting.pruned_txid is 'greatest transaction id that was ever truncated away: a cursor below it is not whole';
comment on column crm_relay.setting.pruned_at is 'when a slot was last truncated';

create table if not exists crm_relay.module (
  module text primary key,
  event text not null check (event ~ '^[A-Z][A-Z0-9_]{0,62}$'),
  relation regclass not null unique,
  key_columns text[] not null check (pg_catalog.cardinality(key_columns) > 0),
  access_columns text[] not null default '{}',
  hidden_columns text[] not null default '{}',
  quiet_columns text[] not null default '{}',
  created_by_columns text[] not null default '{}',
  modified_by_column text,
  version_column text,
  deleted_by_column text,
  large_from integer not null default 1024 check (large_from > 0),
  part_of text references crm_relay.module (module),
  part_link text,
  chosen text[] not null default '{}',
  constraint module_name check (module ~ '^[a-z_][a-z0-9_]{0,62}$' and module not in ('user', 'team', 'broker')),
  constraint part_whole check ((part_of is null) = (part_link is null)),
  constraint hidden_is_hidden check (not hidden_columns && (key_columns || access_columns))
);
comment on table crm_relay.module is 'the registry: one row for each watched table; written by crm_relay.watch() and unwatch()';
comment on column crm_relay.module.module is 'name of the module in rooms and events, such as listings';
comment on column crm_relay.module.event is 'name of the module in event types, such as LISTING';
comment on column crm_relay.module.relation is 'the watched table';
comment on column crm_relay.module.key_columns is 'the columns that make a record''s id; more than one: the id is a JSON array of texts';
comment on column crm_relay.module.access_columns is 'columns that decide who may see a record and in which scope rooms it is';
comment on column crm_relay.module.hidden_columns is 'columns that never leave the table: in no journal row, event or log';
comment on column crm_relay.module.quiet_columns is 'columns whose change alone is no event';
comment on column crm_relay.module.created_by_columns is 'on insert the actor is the first of these that is not null';
comment on column crm_relay.module.modified_by_column is 'on update the actor, if this update changed it or the version column';
comment on column crm_relay.module.version_column is 'counts the updates of a record';
comment on column crm_relay.module.deleted_by_column is 'on a soft delete the actor, if this update set it';
comment on column crm_relay.module.large_from is
  'a column that an update leaves as it was is left out of the images from this many bytes on';
comment on column crm_relay.module.part_of is 'the module whose records this table''s rows belong to; null for a table of its own';
comment on column crm_relay.module.part_link is 'the column of that module''s table that names the row of this one';
comment on column crm_relay.module.chosen is
  'which of these were chosen by whoever watched the table; the others follow the table when it is watched again';

grant select on crm_relay.module to crm_relay_part, crm_relay_snapshot;
grant select on crm_relay.module, crm_relay.setting
  to crm_relay_capture, crm_relay_prune, crm_relay_serve, crm_relay_audit;
grant update (pruned_txid, pruned_at, install_id) on crm_relay.setting to crm_relay_prune;
-- the journal: what changed, in the transaction that changed it

create sequence if not exists crm_relay.change_seq as bigint cache 1;
comment on sequence crm_relay.change_seq is
  'numbers the journal; cache 1, so that of two changes of one record the later has the greater number';

create table if not exists crm_relay.change (
  seq bigint not null default pg_catalog.nextval('crm_relay.change_seq'),
  slot smallint not null,
  txid xid8 not null default pg_catalog.pg_current_xact_id(),
  module text not null,
  action text not null check (action in ('created', 'updated', 'deleted', 'truncated')),
  record_id text,
  part text,
  part_id text,
  actor text,
  changed_at timestamptz not null default pg_catalog.clock_timestamp(),
  db_user text not null,
  db_role text not null,
  application text not null,
  depth smallint not null default pg_catalog.pg_trigger_depth(),
  old_image json,
  new_image json,
  record_image json
) partition by list (slot);
comment on table crm_relay.change is 'the journal: one row for each change of a watched table, kept for crm_relay.setting.retention';
comment on column crm_relay.change.seq is 'grows with each change of a record; numbers of rolled back changes are missing';
comment on column crm_relay.change.slot is 'which partition of the ring holds the row; follows from changed_at';
comment on column crm_relay.change.txid is 'the transaction that made the change';
comment on column crm_relay.change.module is 'the module of the record (of the record that the part belongs to)';
comment on column crm_relay.change.action is
  'created, updated, deleted; truncated: of this module more was lost or changed than rows can say (a truncate, or a row too large to render)';
comment on column crm_relay.change.record_id is 'the record''s key as Postgres prints it; more than one column: a JSON array of texts; null when truncated';
comment on column crm_relay.change.part is 'the watched part that changed, such as contacts; null for the record''s own row';
comment on column crm_relay.change.part_id is 'the key of the part''s row';
comment on column crm_relay.change.actor is 'the user who made the change where that is certain, else null';
comment on column crm_relay.change.changed_at is 'when the row changed (clock, not start of the transaction)';
comment on column crm_relay.change.db_user is 'session_user: who logged in to Postgres';
comment on column crm_relay.change.db_role is 'the role it had taken by set role, else the same';
comment on column crm_relay.change.application is 'application_name of the session';
comment on column crm_relay.change.depth is
  'how deep in triggers the change was made: a trigger that edits the same row again can write its journal row first';
comment on column crm_relay.change.old_image is 'the row before, without hidden columns; of an update without what is large and unchanged';
comment on column crm_relay.change.new_image is 'the row after, the same way';
comment on column crm_relay.change.record_image is 'of a part: key and access columns of the record it belongs to';

-- A fixed ring of partitions, more than the retention needs. An expired one is truncated, never
-- detached or dropped, and there is no default partition: detach, drop and create wait for every
-- open transaction of the CRM, and every writer waits behind them.
-- Each only where it is not there yet: even looking again would wait for writers that are open, and
-- all other writers would wait behind it.
do $ring$
declare
  partition text;
  image text;
begin
  for slot in 0..9 loop
    partition := format('crm_relay.change_%s', slot);
    if to_regclass(partition) is null then
      execute format('create table %s partition of crm_relay.change for values in (%s)', partition, slot);
      execute format('comment on table %s is %L', partition, 'a slot of the journal''s ring; read crm_relay.change');
      execute format('grant select, truncate on %s to crm_relay_prune', partition);
    end if;
  end loop;
  if to_regclass('crm_relay.change_txid') is null then
    create index change_txid on crm_relay.change (txid);
    comment on index crm_relay.change_txid is 'for the relay, which reads from snapshot to snapshot';
  end if;
  if to_regclass('crm_relay.change_record') is null then
    create index change_record on crm_relay.change (module, record_id, txid);
    comment on index crm_relay.change_record is 'for the history of one record, also from a snapshot on';
    foreach image in array array['old_image', 'new_image', 'record_image'] loop
      execute format('alter table crm_relay.change alter column %I set compression lz4', image);
      for slot in 0..9 loop
        execute format('alter table crm_relay.change_%s alter column %I set compression lz4', slot, image);
      end loop;
    end loop;
  end if;
exception when feature_not_supported or invalid_parameter_value then
  raise exception 'crm_relay: this server was built without lz4, which keeps the journal small and its writers fast';
end
$ring$;

grant insert on crm_relay.change to crm_relay_capture;
grant usage on sequence crm_relay.change_seq to crm_relay_capture;
grant select on crm_relay.change to crm_relay_serve, crm_relay_audit;

create or replace function crm_relay.slot(at timestamptz, retention interval) returns smallint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select (floor(extract(epoch from at) / (extract(epoch from retention) / 6))::bigint % 10)::smallint
$$;
comment on function crm_relay.slot(timestamptz, interval) is
  'the slot of the ring that a moment falls in: six slots hold the retention, so at least two of the ten are always spare';

create or replace function crm_relay.prune(needed xid8 default pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()))
returns setof text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
as $$
declare
  settings crm_relay.setting;
  partition regclass;
  greatest_txid xid8;
  newest timestamptz;
  fresh boolean;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'crm_relay: prune() in a transaction of isolation level %, which does not see what others committed',
      current_setting('transaction_isolation') using hint = 'call it in a transaction of isolation level read committed';
  end if;
  -- one at a time, whoever calls: two would only wait for each other
  if not pg_try_advisory_xact_lock('crm_relay.setting'::regclass::oid::int, 1) then
    return;
  end if;
  select * into settings from crm_relay.setting;
  -- nothing of a transaction that may still be open, or that the caller still needs
  needed := least(needed, pg_snapshot_xmin(pg_current_snapshot()));
  for slot in 0..9 loop
    continue when slot = crm_relay.slot(clock_timestamp(), settings.retention);
    partition := format('crm_relay.change_%s', slot)::regclass;
    execute format('select txid, changed_at from %s order by txid desc limit 1', partition)
      into greatest_txid, newest;
    continue when greatest_txid is null
      or greatest_txid >= needed
      or newest > clock_timestamp() - settings.retention;
    execute format('select exists (select from %s where changed_at > $1)', partition)
      into fresh using clock_timestamp() - settings.retention;
    continue when fresh;
    begin
      execute format('lock table %s in access exclusive mode', partition);
      -- whoever was about to write here when we looked was open then, so its txid tells
      execute format('select exists (select from %s where txid >= $1)', partition)
        into fresh using needed;
      continue when fresh;
      update crm_relay.setting
         set pruned_txid = greatest(pruned_txid, greatest_txid), pruned_at = clock_timestamp();
      execute format('truncate table %s', partition);
      return next partition::text;
    exception when lock_not_available then
      null; -- somebody reads it: next time
    end;
  end loop;
end
$$;
comment on function crm_relay.prune(xid8) is
  'truncates the slots whose every row is older than the retention and below the transaction that anybody still needs; returns their names';
alter function crm_relay.prune(xid8) owner to crm_relay_prune;
revoke all on function crm_relay.prune(xid8) from public;
grant execute on function crm_relay.prune(xid8) to crm_relay_serve;

create or replace function crm_relay.renew() returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- such rows would come to be read as new when the server gets to their transactions
  if not exists (select from crm_relay.change c where c.txid >= pg_snapshot_xmax(pg_current_snapshot()) and c.txid <> coalesce(pg_current_xact_id_if_assigned(), '0')) then
    return false;
  end if;
  for slot in 0..9 loop
    execute format('truncate table crm_relay.change_%s', slot);
  end loop;
  update crm_relay.setting set install_id = gen_random_uuid(), pruned_txid = '0', pruned_at = clock_timestamp();
  return true;
end
$$;
comment on function crm_relay.renew() is
  'empties a journal that holds transactions which this server has not come to, as after the restore of a dump, and makes its history another; tells whether it did';
alter function crm_relay.renew() owner to crm_relay_prune;
revoke all on function crm_relay.renew() from public;
grant execute on function crm_relay.renew() to crm_relay_serve;
grant select on crm_relay.change to crm_relay_prune;
-- capture: the trigger that writes the journal and rings

create or replace function crm_relay.readable(image json) returns json
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  -- not where the backslash is itself escaped
  select case when position(E'\\u0000' in image::text) > 0
              then regexp_replace(image::text, E'(?<!\\\\)((?:\\\\\\\\)*)\\\\u0000', E'\\1\\\\ufffd\\\\u2400\\\\ufffd', 'g')::json
              else image end
$$;
comment on function crm_relay.readable(json) is
  'an image that can be looked into: json may hold \u0000, but every operator on it raises then; here it stands as three other characters';

create or replace function crm_relay.without(image json, columns text[]) returns json
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  seen text := crm_relay.readable(image)::text;
  rest json;
begin
  if seen <> image::text and position(E'\\ufffd\\u2400\\ufffd' in image::text) > 0 then
    raise exception 'crm_relay: an image holds both \u0000 and what stands for it';
  end if;
  -- a column that has another name by now must not get out under it
  if (select count(*) from json_object_keys(seen::json) as keys (key) where key = any (columns)) < cardinality(columns) then
    raise exception 'crm_relay: not all of the columns % are there any more', columns
      using hint = 'watch the table again';
  end if;
  select json_object_agg(key, value) into rest from json_each(seen::json) where key <> all (columns);
  if seen <> image::text then
    rest := replace(rest::text, E'\\ufffd\\u2400\\ufffd', E'\\u0000')::json;
  end if;
  return coalesce(rest, '{}');
end
$$;
comment on function crm_relay.without(json, text[]) is 'an image without these columns, its other values as they were written';

create or replace function crm_relay.image(record anyelement, hidden text[]) returns json
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- a dump that was restored without its owners must not lend anybody's rights to the rows' casts
  if current_user <> 'crm_relay_image' then
    raise exception 'crm_relay: image() belongs to %, it must belong to crm_relay_image', current_user
      using hint = 'run crm-relay install again';
  end if;
  if cardinality(hidden) > 0 then
    return crm_relay.without(row_to_json(record), hidden);
  end if;
  return row_to_json(record);
end
$$;
comment on function crm_relay.image(anyelement, text[]) is
  'a row as json without its hidden columns; runs as a role without any right, because row_to_json runs casts that the table''s owner may have written';
alter function crm_relay.image(anyelement, text[]) owner to crm_relay_image;
revoke all on function crm_relay.image(anyelement, text[]) from public;
revoke all on function crm_relay.readable(json), crm_relay.without(json, text[]) from public;
grant execute on function crm_relay.image(anyelement, text[]) to crm_relay_capture;
grant execute on function crm_relay.readable(json) to crm_relay_image, crm_relay_capture, crm_relay_serve, crm_relay_audit;
grant execute on function crm_relay.without(json, text[]) to crm_relay_image, crm_relay_capture;

create or replace function crm_relay.record_id(image json, key_columns text[]) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  id text;
begin
  if exists (select from unnest(key_columns) k where image -> k is null) then
    return null; -- a column that has another name by now
  end if;
  if cardinality(key_columns) = 1 then
    id := coalesce(image ->> key_columns[1], '');
  else
    id := array_to_json(array(
      select image ->> key_column
        from unnest(key_columns) with ordinality as keys (key_column, place)
       order by place));
  end if;
  return case when octet_length(id) <= 2000 then id end; -- more does not fit into an index
end
$$;
comment on function crm_relay.record_id(json, text[]) is
  'a record''s id from its image: the key''s text; of several columns a JSON array of their texts; null if it has none that can be used';

create or replace function crm_relay.base_type(type oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive bases (type, base) as (
    select t.oid, t.typbasetype from pg_type t where t.oid = base_type.type
    union all
    select t.oid, t.typbasetype from bases b join pg_type t on t.oid = b.base
  )
  select format_type(b.type, -1) from bases b where b.base = 0
$$;
comment on function crm_relay.base_type(oid) is
  'a type by its name, a domain by that of what it is made of: its checks are somebody''s code';

create or replace function crm_relay.records_of(part crm_relay.module, ids text[], out record_ids text[], out record_images json[])
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '10ms' -- the part's writer must not wait for whoever alters the record's table
as $$
declare
  parent crm_relay.module;
  columns text;
  link text;
begin
  if current_user <> 'crm_relay_part' then
    raise exception 'crm_relay: records_of() belongs to %, it must belong to crm_relay_part', current_user
      using hint = 'run crm-relay install again';
  end if;
  select * into strict parent from crm_relay.module m where m.module = part.part_of;
  -- the table itself, whatever its name is by now, and not a view that was put in its place
  if not exists (select from pg_class c where c.oid = parent.relation and c.relkind in ('r', 'p')) then
    raise exception 'crm_relay: module % has no table any more', parent.module;
  end if;
  -- rendering a type of the owner's own could run the owner's code: an enum goes by its label, a domain
  -- by what it is made of, anything else not at all
  select string_agg(
           format('%L, ', a.attname) || case
             when t.typtype = 'e' then format('enum_out(r.%I)::text', a.attname)
             when t.typtype = 'd' then format('r.%I::%s', a.attname, crm_relay.base_type(t.oid))
             when t.oid < 16384 then format('r.%I', a.attname)
           end, ', ')
    into columns
    from unnest(parent.key_columns || parent.access_columns) k (name)
    left join pg_attribute a on a.attrelid = parent.relation and a.attname = k.name and not a.attisdropped
    left join pg_type t on t.oid = a.atttypid
   having bool_and(coalesce(t.typtype in ('e', 'd') or t.oid < 16384, false));
  select format('r.%I operator(pg_catalog.=) any ($1::%s[])', a.attname, crm_relay.base_type(a.atttypid)) into link
    from pg_attribute a
   where a.attrelid = parent.relation and a.attname = part.part_link and not a.attisdropped;
  if columns is null or link is null then
    raise exception 'crm_relay: the key, access and link columns of % are not what they were when % was watched', parent.relation, part.relation;
  end if;
  execute format('select array_agg(crm_relay.record_id(image, $2)), array_agg(image)
                    from (select json_build_object(%s) as image from %s r where %s) parents', columns, parent.relation, link)
     into record_ids, record_images using ids, parent.key_columns;
end
$$;
comment on function crm_relay.records_of(crm_relay.module, text[]) is
  'the records that rows of a part belong to; runs as a role that may do only this, because looking can run the table owner''s code, too (policies, views)';
alter function crm_relay.records_of(crm_relay.module, text[]) owner to crm_relay_part;
revoke all on function crm_relay.records_of(crm_relay.module, text[]), crm_relay.base_type(oid) from public;
grant execute on function crm_relay.records_of(crm_relay.module, text[]) to crm_relay_capture;
grant execute on function crm_relay.base_type(oid) to crm_relay_part, crm_relay_snapshot;

create or replace function crm_relay.actor(watched crm_relay.module, old_image json, new_image json) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  told text := nullif(current_setting('crm_relay.user_id', true), '');
  column_name text;
begin
  if told is not null then
    return told;
  end if;
  if new_image is null then
    return null;
  end if;
  if old_image is null then
    -- a row that comes from another partition was not made here
    if new_image ->> watched.version_column <> '1' then
      return null;
    end if;
    foreach column_name in array watched.created_by_columns loop
      if new_image ->> column_name is not null then
        return new_image ->> column_name;
      end if;
    end loop;
    return null;
  end if;
  if new_image ->> watched.deleted_by_column is distinct from old_image ->> watched.deleted_by_column
     and new_image ->> watched.deleted_by_column is not null then
    return new_image ->> watched.deleted_by_column;
  end if;
  if new_image ->> watched.modified_by_column is distinct from old_image ->> watched.modified_by_column
     or new_image ->> watched.version_column is distinct from old_image ->> watched.version_column then
    return new_image ->> watched.modified_by_column;
  end if;
  return null;
end
$$;
comment on function crm_relay.actor(crm_relay.module, json, json) is
  'who made a change, certain or null: the setting crm_relay.user_id, else what this very change says of itself';

create or replace function crm_relay.ring(module text, doorbell text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  -- a full queue of notifications would abort the writer's commit; the relay's safety poll finds
  -- what no bell announced
  if doorbell = 'always' and pg_notification_queue_usage() < 0.5 then
    -- the same for all rows of a transaction, so that Postgres folds them into one
    perform pg_notify('crm_relay', '{"txid":"' || pg_current_xact_id() || '","module":"' || module || '"}');
  end if;
end
$$;
comment on function crm_relay.ring(text, text) is
  'the doorbell: a hint to look at the journal; everybody may hear and forge it, so it names no record and is never believed';

-- The settings decide what a rendered value looks like: unpinned, one unchanged row differed in six
-- columns between two sessions. search_path is pinned against tables and types of the caller's own,
-- row_security because "off" in the caller's session would make a look-up raise.
create or replace function crm_relay.capture() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
set array_nulls = on
set row_security = on
as $$
#variable_conflict use_column
declare
  watched crm_relay.module;
  settings crm_relay.setting;
  old_row json;
  new_row json;
  old_seen json;
  new_seen json;
  old_id text;
  new_id text;
  actor_id text;
  unchanged text[];
  is_told boolean;
  record_ids text[];
  record_images json[];
  role_name text := coalesce(nullif(current_setting('role'), 'none'), session_user);
  application_name text := current_setting('application_name');
begin
  select * into watched from crm_relay.module m where m.module = tg_argv[0];
  -- whoever may make triggers on a table of their own must not speak for another module
  if found and watched.relation <> tg_relid
     and not exists (select from pg_partition_ancestors(tg_relid) a where a.relid = watched.relation) then
    return null;
  end if;
  select * into settings from crm_relay.setting;

  -- Nothing in a row may make the CRM's write fail. The block takes no transaction id of its own,
  -- because it only reads.
  begin
    -- a transaction that looked before the table was watched sees no registry: then nothing is known
    is_told := watched.module is not null;
    if is_told and tg_op <> 'INSERT' then
      old_row := crm_relay.image(old, watched.hidden_columns);
      old_seen := crm_relay.readable(old_row);
      old_id := crm_relay.record_id(old_seen, watched.key_columns);
      is_told := old_id is not null;
    end if;
    if is_told and tg_op <> 'DELETE' then
      new_row := crm_relay.image(new, watched.hidden_columns);
      new_seen := crm_relay.readable(new_row);
      new_id := crm_relay.record_id(new_seen, watched.key_columns);
      is_told := new_id is not null;
    end if;
    if is_told and tg_op = 'UPDATE' and old_row::text = new_row::text then
      return null; -- nothing that anybody may see has changed
    end if;
    -- both have to fit into one journal row
    is_told := is_told and coalesce(octet_length(old_row::text), 0) + coalesce(octet_length(new_row::text), 0) < 500000000;
    if is_told then
      actor_id := crm_relay.actor(watched, old_seen, new_seen);
    end if;

    -- Leave out what is large and unchanged, except where the record moves: whoever sees it enter
    -- gets the whole record.
    if is_told and tg_op = 'UPDATE' and old_id = new_id and octet_length(new_row::text) >= watched.large_from
       and not exists (
         select from unnest(watched.access_columns) as access (column_name)
          where old_seen ->> column_name is distinct from new_seen ->> column_name) then
      select array_agg(n.key) into unchanged
        from json_each(new_seen) n join json_each(old_seen) o on o.key = n.key
       where octet_length(n.value::text) >= watched.large_from
         and n.value::text = o.value::text
         and n.key <> all (watched.key_columns || watched.access_columns);
      if unchanged is not null then
        old_row := crm_relay.without(old_row, unchanged);
        new_row := crm_relay.without(new_row, unchanged);
      end if;
    end if;
    if is_told and watched.part_of is not null then
      -- before a cascade has reached the records they still name the old key
      select r.record_ids, r.record_images into record_ids, record_images
        from crm_relay.records_of(watched, array_remove(array[old_id, new_id], null)) r;
    end if;
  exception when others or assert_failure then
    -- such as a cast of the owner's that raises, or a record's table that was changed so that its
    -- part's look-up fails
    is_told := false;
  end;
  if not is_told then
    -- say that something changed
    insert into crm_relay.change (slot, module, action, db_user, db_role, application)
    values (crm_relay.slot(clock_timestamp(), coalesce(settings.retention, '7 days')), coalesce(tg_argv[1], tg_argv[0]),
            'truncated', session_user, role_name, application_name);
    perform crm_relay.ring(coalesce(tg_argv[1], tg_argv[0]), coalesce(settings.doorbell, 'always'));
    return null;
  end if;

  if watched.part_of is not null then
    insert into crm_relay.change (slot, module, action, record_id, part, part_id, actor,
                                  db_user, db_role, application, old_image, new_image, record_image)
    select crm_relay.slot(clock_timestamp(), settings.retention), watched.part_of, 'updated',
           record_id, watched.module, coalesce(new_id, old_id), actor_id,
           session_user, role_name, application_name, old_row, new_row, record_image
      from unnest(record_ids, record_images) as belongs (record_id, record_image);
  elsif tg_op = 'UPDATE' and old_id <> new_id then
    -- another key is another record
    insert into crm_relay.change (slot, module, action, record_id, actor,
                                  db_user, db_role, application, old_image)
    values (crm_relay.slot(clock_timestamp(), settings.retention), watched.module, 'deleted', old_id, actor_id,
            session_user, role_name, application_name, old_row);
    insert into crm_relay.change (slot, module, action, record_id, actor,
                                  db_user, db_role, application, new_image)
    values (crm_relay.slot(clock_timestamp(), settings.retention), watched.module, 'created', new_id, actor_id,
            session_user, role_name, application_name, new_row);
  else
    insert into crm_relay.change (slot, module, action, record_id, actor,
                                  db_user, db_role, application, old_image, new_image)
    values (crm_relay.slot(clock_timestamp(), settings.retention), watched.module,
            case tg_op when 'INSERT' then 'created' when 'UPDATE' then 'updated' else 'deleted' end,
            coalesce(new_id, old_id), actor_id,
            session_user, role_name, application_name, old_row, new_row);
  end if;
  perform crm_relay.ring(coalesce(watched.part_of, watched.module), settings.doorbell);
  return null;
end
$$;
comment on function crm_relay.capture() is
  'after row trigger of watched tables, its argument is the module: writes the change to the journal and rings';

create or replace function crm_relay.capture_truncate() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  watched crm_relay.module;
  settings crm_relay.setting;
begin
  select * into watched from crm_relay.module m where m.module = tg_argv[0];
  if found and watched.relation <> tg_relid
     and not exists (select from pg_partition_ancestors(tg_relid) a where a.relid = watched.relation) then
    return null;
  end if;
  select * into settings from crm_relay.setting;
  insert into crm_relay.change (slot, module, action, db_user, db_role, application)
  values (crm_relay.slot(clock_timestamp(), coalesce(settings.retention, '7 days')), coalesce(tg_argv[1], tg_argv[0]), 'truncated',
          session_user, coalesce(nullif(current_setting('role'), 'none'), session_user), current_setting('application_name'));
  perform crm_relay.ring(coalesce(tg_argv[1], tg_argv[0]), coalesce(settings.doorbell, 'always'));
  return null;
end
$$;
comment on function crm_relay.capture_truncate() is
  'after truncate trigger of watched tables: there are no rows to journal, so everybody fetches anew';

alter function crm_relay.record_id(json, text[]) owner to crm_relay_capture;
grant execute on function crm_relay.record_id(json, text[]) to crm_relay_part;
alter function crm_relay.actor(crm_relay.module, json, json) owner to crm_relay_capture;
alter function crm_relay.ring(text, text) owner to crm_relay_capture;
alter function crm_relay.capture() owner to crm_relay_capture;
alter function crm_relay.capture_truncate() owner to crm_relay_capture;
revoke all on function crm_relay.ring(text, text), crm_relay.actor(crm_relay.module, json, json) from public;
-- a new partition copies the triggers of its table with the rights of whoever creates it; only the
-- schema's own privileges keep others from naming these functions, and they look whose table it is
grant execute on function crm_relay.capture(), crm_relay.capture_truncate() to public;
-- snapshots: records as they are now, for clients that ask for them when they subscribe

create or replace function crm_relay.record_now(module text, id text) returns json
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
set array_nulls = on
set row_security = on
as $$
declare
  watched crm_relay.module;
  condition text;
  image json;
begin
  if current_user <> 'crm_relay_snapshot' then
    raise exception 'crm_relay: record_now() belongs to %, it must belong to crm_relay_snapshot', current_user
      using hint = 'run crm-relay install again';
  end if;
  select * into strict watched from crm_relay.module m where m.module = record_now.module and m.part_of is null;
  -- Reading a view in the table's place, or a table under policies, would run their owner's code with
  -- the rights of this function's owner.
  if not exists (select from pg_class c, pg_roles r
                  where c.oid = watched.relation and c.relkind in ('r', 'p')
                    and r.rolname = current_user and (r.rolbypassrls or not c.relrowsecurity)) then
    raise exception 'crm_relay: module % cannot be read', watched.module
      using hint = 'it has no table any more, or row level security: alter role crm_relay_snapshot bypassrls';
  end if;
  select string_agg(
           format('r.%I operator(pg_catalog.=) %s::%s', k.name,
                  case when cardinality(watched.key_columns) = 1 then '$1' else format('($1::json ->> %s)', k.place - 1) end,
                  crm_relay.base_type(a.atttypid)), ' and ')
    into condition
    from unnest(watched.key_columns) with ordinality as k (name, place)
    join pg_attribute a on a.attrelid = watched.relation and a.attname = k.name;
  begin
    execute format('select crm_relay.image(r, $2) from %s r where %s', watched.relation, condition)
       into image using id, watched.hidden_columns;
  exception when data_exception then
    return null; -- an id that does not cast is no record's
  end;
  return image;
end
$$;
comment on function crm_relay.record_now(text, text) is
  'a record as it is, without its hidden columns; null if there is none';
alter function crm_relay.record_now(text, text) owner to crm_relay_snapshot;
revoke all on function crm_relay.record_now(text, text) from public;
grant execute on function crm_relay.record_now(text, text) to crm_relay_serve;
grant execute on function crm_relay.image(anyelement, text[]) to crm_relay_snapshot;
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

create or replace function crm_relay.watch(
  target regclass,
  module text default null,
  event text default null,
  key_columns text[] default null,
  access_columns text[] default null,
  hidden_columns text[] default null,
  quiet_columns text[] default null,
  part_of text default null,
  part_link text default null
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
  if watched.module in ('user', 'team', 'broker') then
    raise exception 'crm_relay: no module may be called %', watched.module
      using hint = 'that is the name of a scope in room names; give another: watch(…, module => ''…'')';
  end if;
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
           where c = any ('{owner_id,listing_agent_id,agent_id,user_id,team_id,broker_id,is_private,access_level,lead_id}')));
  watched.hidden_columns := coalesce(hidden_columns, case when 'hidden_columns' = any (present.chosen) then present.hidden_columns end,
    array(select c from unnest(columns) c
           where lower(c) like any (array['password%', E'%\\_hash', E'%\\_secret', '%token%', 'ssn', E'%\\_ssn', E'tax\\_id'])));
  watched.quiet_columns := coalesce(quiet_columns, case when 'quiet_columns' = any (present.chosen) then present.quiet_columns end,
    array(select c from unnest(columns) c where c = any ('{updated_at,version,last_modified_by}')));
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
  watched.created_by_columns := array(select c from unnest('{created_by,user_id}'::text[]) c where c = any (columns));
  watched.modified_by_column := (select c from unnest(columns) c where c = 'last_modified_by');
  watched.version_column := (select c from unnest(columns) c where c = 'version');
  watched.deleted_by_column := (select c from unnest(columns) c where c = 'deleted_by');
  watched.large_from := coalesce(present.large_from, 1024);
  watched.part_of := coalesce(part_of, present.part_of);
  watched.part_link := coalesce(part_link, present.part_link);

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
      from pg_attribute a join pg_type t on t.oid = a.atttypid
     where a.attrelid = parent.relation and a.attname::text = any (parent.key_columns || parent.access_columns)
       and t.typtype not in ('e', 'd') and t.oid >= 16384;
    if readable is not null then
      raise exception 'crm_relay: columns % of % have types of somebody''s own, which a change of % cannot show', readable, parent.relation, target
        using hint = 'leave them out of the key and access columns: watch(…, access_columns => ''{…}'')';
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
    quiet_columns = excluded.quiet_columns, created_by_columns = excluded.created_by_columns,
    modified_by_column = excluded.modified_by_column, version_column = excluded.version_column,
    deleted_by_column = excluded.deleted_by_column, part_of = excluded.part_of,
    part_link = excluded.part_link, chosen = excluded.chosen
  where (module.*) is distinct from (excluded.*);

  perform crm_relay.add_triggers(target, watched.module, watched.part_of);
  if watched.part_of is null then
    execute format('grant usage on schema %I to crm_relay_snapshot', namespace);
    execute format('grant select on %s to crm_relay_snapshot', target);
  end if;
  -- its parts may read what their changes are judged by
  for part in select m.relation from crm_relay.module m where m.part_of = watched.module loop
    perform crm_relay.watch(part);
  end loop;
  return watched;
end
$$;
comment on function crm_relay.watch(regclass, text, text, text[], text[], text[], text[], text, text) is
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
    execute format('revoke all on %s from crm_relay_snapshot', target);
    select relnamespace::regnamespace into namespace from pg_class where oid = target;
    if not exists (select from crm_relay.module m join pg_class c on c.oid = m.relation
                    where c.relnamespace = namespace and m.relation <> target) then
      execute format('revoke usage on schema %s from crm_relay_snapshot', namespace);
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
      (6, 'contacts',     'CONTACT',     null, 'clients', 'contact_id')
    ) as crm (place, table_name, event, owners, part_of, part_link)
    order by place
  loop
    target := pg_catalog.to_regclass(pg_catalog.format('%I.%I', crm_schema, wanted.table_name));
    if target is null then
      if wanted.part_of is null then
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
    -- what was chosen since stays
    select wanted.event into event where not exists (select from crm_relay.module m where m.relation = target);
    call crm_relay.in_short_transaction(
      pg_catalog.format('select crm_relay.watch(%L, event => %L, part_of => %L, part_link => %L)',
                        target, event, wanted.part_of, wanted.part_link), target::text);
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
  crm_relay.watch(regclass, text, text, text[], text[], text[], text[], text, text),
  crm_relay.unwatch(regclass), crm_relay.add_triggers(regclass, text, text) from public;
revoke all on procedure
  crm_relay.watch_crm(text), crm_relay.unwatch_all(), crm_relay.in_short_transaction(text, text) from public;
-- reading: where a record is placed, what changed since a cursor, who changed what

create or replace function crm_relay.usual_rooms_of(module text, image json) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with placed as (
    select coalesce(image ->> 'owner_id', image ->> 'listing_agent_id', image ->> 'agent_id', image ->> 'user_id') as owner,
           image ->> 'team_id' as team,
           image ->> 'broker_id' as broker,
           coalesce(image ->> 'is_private', 'false') = 'true' or coalesce(image ->> 'access_level', '') = 'personal' as private
  )
  select array_remove(array[
           'user:' || owner,
           case when not private then 'team:' || team end,
           case when not private then 'broker:' || broker end], null)
    from placed
   where image is not null
$$;
comment on function crm_relay.usual_rooms_of(text, json) is
  'the scope rooms that an image of a record is in, by the columns of the usual CRM';

-- yours to replace: an installation leaves it as it finds it
do $rooms$
begin
  if to_regprocedure('crm_relay.rooms_of(text, json)') is null then
    create function crm_relay.rooms_of(module text, image json) returns text[]
    language sql stable
    set search_path = pg_catalog, pg_temp
    as 'select crm_relay.usual_rooms_of(module, image)';
    comment on function crm_relay.rooms_of(text, json) is
      'the scope rooms that an image of a record is in; may be replaced by the CRM''s owner';
  end if;
end
$rooms$;

create or replace function crm_relay.placed(module text, image json) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(crm_relay.rooms_of(module, crm_relay.readable(image)), '{}');
exception when others then
  return null;
end
$$;
comment on function crm_relay.placed(text, json) is
  'rooms_of() as the relay asks it; null where it raises, so that one row that it cannot judge does not stop all others';

create or replace function crm_relay.epoch() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select left(md5(concat_ws('.', s.install_id, c.system_identifier, d.oid,
                            substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))), 8)
    from crm_relay.setting s, pg_control_system() c, pg_database d
   where d.datname = current_database()
$$;
comment on function crm_relay.epoch() is
  'tells this history from every other: installation, server, database and timeline; part of each cursor';

create or replace function crm_relay.changes_since(cursor text) returns setof crm_relay.change
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  parts text[] := regexp_match(cursor, '^([0-9a-f]{8})[.]([0-9]{1,20}):([0-9]{1,20}):([0-9,]*)[.]([0-9]{0,19})$');
  old_xmax xid8;
  old_xip xid8[];
begin
  if parts is null or length(cursor) > 4096 then
    raise exception 'crm_relay: % is no cursor', quote_literal(left(cursor, 100))
      using hint = 'a cursor looks like 3f2a91c0.7423:7430:7425.990; every event carries one';
  end if;
  if parts[1] <> crm_relay.epoch() then
    raise exception 'crm_relay: the cursor is of epoch %, this database is in epoch %', parts[1], crm_relay.epoch()
      using hint = 'it comes from another database, or this one was restored or failed over';
  end if;
  old_xmax := parts[3]::xid8;
  old_xip := string_to_array(nullif(parts[4], ''), ',')::xid8[];
  if exists (select from crm_relay.setting s where s.pruned_txid >= least(old_xmax, old_xip[1])) then
    raise exception 'crm_relay: the cursor reaches back before what the journal still holds'
      using hint = 'select retention, pruned_at from crm_relay.setting';
  end if;
  -- two ranges of one index, never one "or": what began after the old snapshot, and what was open then
  return query
    select c.* from (
      select new_range.* from crm_relay.change new_range where new_range.txid >= old_xmax
      union all
      select was_open.* from crm_relay.change was_open where was_open.txid < old_xmax and was_open.txid = any (old_xip)
    ) c
    order by max(c.seq) over (partition by c.txid), c.seq;
end
$$;
comment on function crm_relay.changes_since(text) is
  'every change that a client with this cursor has not had, in the order of delivery';

create or replace view crm_relay.audit as
  select c.changed_at, c.txid, c.seq, c.module, c.record_id, c.part, c.part_id, c.action, c.actor,
         c.db_user, c.db_role, c.application, f.field, f.old_value, f.new_value
    from crm_relay.change c
    left join lateral (
      select coalesce(o.key, n.key) as field, o.value as old_value, n.value as new_value
        from json_each(coalesce(crm_relay.readable(c.old_image), '{}')) o
        full join json_each(coalesce(crm_relay.readable(c.new_image), '{}')) n on n.key = o.key
       where o.value::text is distinct from n.value::text
    ) f on true;
comment on view crm_relay.audit is 'who changed what from what to what, field by field: one row for each field of each change';

grant select on crm_relay.audit to crm_relay_audit;
revoke all on function crm_relay.changes_since(text), crm_relay.rooms_of(text, json),
  crm_relay.usual_rooms_of(text, json), crm_relay.placed(text, json), crm_relay.epoch(),
  crm_relay.record_id(json, text[]), crm_relay.slot(timestamptz, interval) from public;
grant execute on function crm_relay.epoch() to crm_relay_serve, crm_relay_audit;
grant execute on function crm_relay.changes_since(text) to crm_relay_serve, crm_relay_audit;
grant execute on function crm_relay.rooms_of(text, json), crm_relay.usual_rooms_of(text, json), crm_relay.placed(text, json) to crm_relay_serve;
grant execute on function crm_relay.slot(timestamptz, interval) to crm_relay_capture, crm_relay_prune;
-- the version of the schema, written last

insert into crm_relay.setting (version) values (1)
on conflict (only_row) do update set version = excluded.version
 where crm_relay.setting.version is distinct from excluded.version;

do $last$
declare
  job text;
begin
  revoke create on schema crm_relay
    from crm_relay_image, crm_relay_part, crm_relay_snapshot, crm_relay_capture, crm_relay_prune;
  -- whoever installed needs no more to be all of them
  if not (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) then
    foreach job in array array['crm_relay_image', 'crm_relay_part', 'crm_relay_snapshot', 'crm_relay_capture', 'crm_relay_prune'] loop
      execute format('revoke %I from %I', job, current_user);
    end loop;
  end if;
end
$last$;
commit;
call crm_relay.watch_crm(:'crm_schema');
