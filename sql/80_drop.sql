-- drops the schema with its journal, and the roles where no other database of the server uses them

begin;
set local search_path = pg_catalog, pg_temp;
-- no table calls it any more; whoever still reads the journal is waited for shortly, again and again, so that
-- nobody queues behind
do $drop$
declare
  tries integer := 0;
begin
  set local lock_timeout = '300ms';
  loop
    tries := tries + 1;
    begin
      drop schema crm_relay cascade;
      exit;
    exception when lock_not_available or deadlock_detected then
      if tries >= 100 then
        raise exception 'crm_relay: the journal is read by others for a long time, gave up after % tries', tries
          using hint = 'stop the relays, end what reads it (pg_blocking_pids, pg_stat_activity) and run this again; it goes on where it stopped';
      end if;
    end;
    perform pg_catalog.pg_sleep(0.2);
  end loop;
end
$drop$;
do $roles$
declare
  job text;
begin
  foreach job in array array['crm_relay_verify', 'crm_relay_image', 'crm_relay_part', 'crm_relay_snapshot', 'crm_relay_policy', 'crm_relay_capture', 'crm_relay_prune', 'crm_relay_serve', 'crm_relay_audit'] loop
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
