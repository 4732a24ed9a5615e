-- reading: what changed since a cursor, who changed what

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
  parts text[] := regexp_match(cursor, '^([0-9a-f]{8})[.]([0-9]{1,20}):([0-9]{1,20}):([0-9,+]*)[.]([0-9]{0,19})$');
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
  -- each is written whole, or with what it is above the one before it
  old_xip := array(
    select sum(step.value::numeric) over (partition by stretch.place order by step.place)::text::xid8
      from unnest(string_to_array(nullif(parts[4], ''), ',')) with ordinality as stretch (value, place)
     cross join unnest(string_to_array(stretch.value, '+')) with ordinality as step (value, place)
     order by stretch.place, step.place);
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
        -- readable() only where it must: called for each image it took as long as all the rest
        from json_each(case when position(E'\\u0000' in c.old_image::text) > 0 then crm_relay.readable(c.old_image)
                            else coalesce(c.old_image, '{}') end) o
        full join json_each(case when position(E'\\u0000' in c.new_image::text) > 0 then crm_relay.readable(c.new_image)
                                 else coalesce(c.new_image, '{}') end) n on n.key = o.key
       -- what a new or a deleted row did not fill in is no change
       where coalesce(o.value::text, 'null') <> coalesce(n.value::text, 'null')
    ) f on true;
comment on view crm_relay.audit is
  'who changed what from what to what, field by field: one row for each field of each change; ten questions to it are in sql/README.md';
comment on column crm_relay.audit.changed_at is 'when the row changed (clock, not start of the transaction)';
comment on column crm_relay.audit.txid is 'the transaction that made the change';
comment on column crm_relay.audit.seq is 'the number of the change in the journal; grows with each change of a record';
comment on column crm_relay.audit.module is 'the module of the record, such as listings';
comment on column crm_relay.audit.record_id is
  'the record''s key as Postgres prints it; null when truncated: any record of the module may be concerned';
comment on column crm_relay.audit.part is 'the watched part that changed, such as contacts; null for the record''s own row';
comment on column crm_relay.audit.part_id is 'the key of the part''s row';
comment on column crm_relay.audit.action is 'created, updated, deleted or truncated';
comment on column crm_relay.audit.actor is 'the user of the CRM who made the change where that is certain, else null';
comment on column crm_relay.audit.db_user is 'session_user: who logged in to Postgres';
comment on column crm_relay.audit.db_role is 'the role it had taken by set role, else the same';
comment on column crm_relay.audit.application is 'application_name of the session';
comment on column crm_relay.audit.field is 'the column that changed, never a hidden one; null where rows cannot say it, as when truncated';
comment on column crm_relay.audit.old_value is
  'its value before, as json; null where there was no row. As text: old_value #>> ''{}''';
comment on column crm_relay.audit.new_value is 'its value after; null where there is no row any more';

grant select on crm_relay.audit to crm_relay_audit;
revoke all on function crm_relay.changes_since(text), crm_relay.epoch(),
  crm_relay.record_id(json, text[]), crm_relay.slot(timestamptz, interval), crm_relay.slot_seconds(interval) from public;
grant execute on function crm_relay.epoch() to crm_relay_prune, crm_relay_serve, crm_relay_audit;
grant execute on function crm_relay.changes_since(text) to crm_relay_serve, crm_relay_audit;
grant execute on function crm_relay.slot(timestamptz, interval), crm_relay.slot_seconds(interval) to crm_relay_capture, crm_relay_prune;
