-- the version of the schema, written last

insert into crm_relay.setting (version) values (3)
on conflict (only_row) do update set version = excluded.version
 where crm_relay.setting.version is distinct from excluded.version;

do $last$
declare
  job text;
begin
  revoke create on schema crm_relay
    from crm_relay_image, crm_relay_part, crm_relay_snapshot, crm_relay_policy, crm_relay_capture, crm_relay_prune;
  -- whoever installed needs no more to be all of them
  if not (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) then
    foreach job in array array['crm_relay_image', 'crm_relay_part', 'crm_relay_snapshot', 'crm_relay_policy', 'crm_relay_capture', 'crm_relay_prune'] loop
      execute format('revoke %I from %I', job, current_user);
    end loop;
  end if;
end
$last$;
