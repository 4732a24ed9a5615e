-- the version of the schema, written last

insert into crm_relay.setting (version) values (7)
on conflict (only_row) do update set version = excluded.version
 where crm_relay.setting.version is distinct from excluded.version;

-- how the functions stand now is how crm_relay.verify() wants to find them
delete from crm_relay.installed;
insert into crm_relay.installed (signature, fingerprint, owner)
select p.oid::pg_catalog.regprocedure::text,
       case when p.proname not in ('principal', 'may_see_row', 'may_enter', 'rooms_of') then crm_relay.fingerprint(p.oid) end,
       case when p.prosecdef then p.proowner::pg_catalog.regrole::text end
  from pg_catalog.pg_proc p
 where p.pronamespace = 'crm_relay'::pg_catalog.regnamespace;

do $last$
declare
  job text;
begin
  revoke create on schema crm_relay
    from crm_relay_image, crm_relay_part, crm_relay_snapshot, crm_relay_policy, crm_relay_capture, crm_relay_prune;
  -- whoever installed needs no more to be all of them
  if not (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) then
    foreach job in array array['crm_relay_image', 'crm_relay_part', 'crm_relay_snapshot', 'crm_relay_policy', 'crm_relay_capture', 'crm_relay_prune', 'crm_relay_verify'] loop
      execute format('revoke %I from %I', job, current_user);
    end loop;
  end if;
end
$last$;
