-- drops the schema with its journal, and the roles where no other database of the server uses them

begin;
set local search_path = pg_catalog, pg_temp;
drop schema crm_relay cascade;
do $roles$
declare
  job text;
begin
  foreach job in array array['crm_relay_image', 'crm_relay_part', 'crm_relay_snapshot', 'crm_relay_policy', 'crm_relay_capture', 'crm_relay_prune', 'crm_relay_serve', 'crm_relay_audit'] loop
    begin
      if not pg_catalog.pg_has_role(current_user, job, 'member') then
        execute format('grant %I to %I', job, current_user);
      end if;
      execute format('drop owned by %I', job);
      execute format('drop role %I', job);
    exception when dependent_objects_still_exist then
      raise notice 'crm_relay: role % stays, another database of this server uses it', job;
    end;
  end loop;
end
$roles$;
commit;
