-- the journal: what changed, in the transaction that changed it

create sequence if not exists crm_relay.change_seq as bigint cache 1;
comment on sequence crm_relay.change_seq is
  'numbers the journal; cache 1, so that of two changes of one record the later has the greater number';

create table if not exists crm_relay.change (
  seq bigint not null default pg_catalog.nextval('crm_relay.change_seq'),
  slot smallint not null,
  txid xid8 not null default pg_catalog.pg_current_xact_id(),
  module text not null,
  action text not null,
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
      -- above it images are compressed: two of a record of sixty columns, of which most are empty
      execute format('create table %s partition of crm_relay.change for values in (%s) with (toast_tuple_target = 1600)', partition, slot);
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

create or replace function crm_relay.slot_seconds(retention interval) returns double precision
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select date_part('epoch', retention) / 6
$$;
comment on function crm_relay.slot_seconds(interval) is
  'how many seconds fall into one slot of the ring: six slots hold the retention, so at least two of the ten are always spare';

create or replace function crm_relay.slot(at timestamptz, retention interval) returns smallint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select (floor(date_part('epoch', at) / crm_relay.slot_seconds(retention))::bigint % 10)::smallint
$$;
comment on function crm_relay.slot(timestamptz, interval) is
  'the slot of the ring that a moment falls in';

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
      if not fresh then
        update crm_relay.setting
           set pruned_txid = greatest(pruned_txid, greatest_txid), pruned_at = clock_timestamp();
        execute format('truncate table %s', partition);
        return next partition::text;
      end if;
      -- who reads the journal waits for that lock until this transaction ends
      exit;
    exception when lock_not_available then
      null; -- somebody reads it: next time
    end;
  end loop;
end
$$;
comment on function crm_relay.prune(xid8) is
  'truncates a slot whose every row is older than the retention and below the transaction that anybody still needs; returns its name. Another one that is due is the next call''s';
alter function crm_relay.prune(xid8) owner to crm_relay_prune;
revoke all on function crm_relay.prune(xid8) from public;
grant execute on function crm_relay.prune(xid8) to crm_relay_serve;

create or replace function crm_relay.renew() returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- such rows would come to be read as new when the server gets to their transactions
  if not exists (select from crm_relay.change c where c.txid >= pg_snapshot_xmax(pg_current_snapshot()) and c.txid <> coalesce(pg_current_xact_id_if_assigned(), '0'))
     and not exists (select from crm_relay.setting s where s.pruned_txid >= pg_snapshot_xmax(pg_current_snapshot())) then
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
  'empties a journal that holds, or held, transactions which this server has not come to, as after the restore of a dump, and makes its history another; tells whether it did';
alter function crm_relay.renew() owner to crm_relay_prune;
revoke all on function crm_relay.renew() from public;
grant execute on function crm_relay.renew() to crm_relay_serve;
grant select on crm_relay.change to crm_relay_prune;

create or replace function crm_relay.disown(known text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- one after the other: the first of several that notice does it, the others find another epoch
  perform from crm_relay.setting for update;
  if crm_relay.epoch() is distinct from known then
    return false;
  end if;
  update crm_relay.setting set install_id = gen_random_uuid();
  return true;
end
$$;
comment on function crm_relay.disown(text) is
  'makes this history another than the one of this epoch, because something that was read of it is gone, as after a crash without synchronous_commit or a journal emptied by hand; tells whether it did';
alter function crm_relay.disown(text) owner to crm_relay_prune;
revoke all on function crm_relay.disown(text) from public;
grant execute on function crm_relay.disown(text) to crm_relay_serve;
