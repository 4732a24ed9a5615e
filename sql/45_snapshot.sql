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
set quote_all_identifiers = off
set row_security = on
as $$
declare
  watched crm_relay.module;
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
  if crm_relay.key_condition(watched) is null then
    raise exception 'crm_relay: the key of module % has a type of somebody''s own, or a column that is not there any more', watched.module;
  end if;
  begin
    execute format('select crm_relay.image(r) from %s r where %s', watched.relation, crm_relay.key_condition(watched))
       into image using id;
    raise sqlstate 'CR000';
  exception
    when sqlstate 'CR000' then
      null; -- what the owner's code did is undone, see image()
    when data_exception then
      return null; -- an id that does not cast is no record's
  end;
  if image is not null and cardinality(watched.hidden_columns) > 0 then
    return crm_relay.without(image, watched.hidden_columns);
  end if;
  return image;
end
$$;
comment on function crm_relay.record_now(text, text) is
  'a record as it is, without its hidden columns; null if there is none';
alter function crm_relay.record_now(text, text) owner to crm_relay_snapshot;
revoke all on function crm_relay.record_now(text, text) from public;
grant execute on function crm_relay.record_now(text, text) to crm_relay_serve;
grant execute on function crm_relay.image(anyelement) to crm_relay_snapshot;
