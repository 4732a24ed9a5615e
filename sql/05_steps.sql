-- steps: what the tables of an earlier version lack, by the version that brought it
--
-- Everything but tables is made anew by each installation, so that a step has little to do, and each version
-- that there ever was comes to the same schema. tests/sql/versions/ holds what earlier versions ran.
--
-- Each writer of a watched table reads registry and settings, and keeps them locked until its transaction
-- ends: to alter them waits for it, and new writers wait behind. So it waits shortly, lets them pass, and
-- tries again; once it has the lock, writers wait for the rest of this installation, a fraction of a second.

do $steps$
declare
  version integer;
  tries integer := 0;
  usual_timeout text := current_setting('lock_timeout');
begin
  if pg_catalog.to_regclass('crm_relay.setting') is null then
    return; -- a first installation
  end if;
  execute 'select version from crm_relay.setting' into version;

  if version < 6 then
    loop
      tries := tries + 1;
      begin
        perform pg_catalog.set_config('lock_timeout', '300ms', true);
        if version < 4 then
          lock table crm_relay.change in access exclusive mode;
        end if;
        if version < 3 then
          lock table crm_relay.setting in access exclusive mode;
        end if;
        lock table crm_relay.module in access exclusive mode;
        exit;
      exception when lock_not_available then
        if tries >= 100 then
          raise exception 'crm_relay: registry, settings or journal are locked by others for a long time, gave up after % tries', tries
            using hint = 'a transaction that writes to a watched table is open; end it (pg_blocking_pids, pg_stat_activity) and run this again; nothing was changed';
        end if;
      end;
      perform pg_catalog.pg_sleep(0.2);
    end loop;
    perform pg_catalog.set_config('lock_timeout', usual_timeout, true);
  end if;

  if version < 2 then
    alter table crm_relay.module
      add column narrow boolean not null default false,
      add column access_of text,
      add column access_link text,
      add column lookup text,
      add column lookup_types oid[];
    drop function if exists crm_relay.watch(pg_catalog.regclass, text, text, text[], text[], text[], text[], text, text);
    if to_regprocedure('crm_relay.rooms_of(text, json)') is not null then
      comment on function crm_relay.rooms_of(text, json) is
        'the scope rooms that an image of a record is in, by its access columns; may be replaced by the CRM''s owner';
    end if;
  end if;

  -- 3 brought verify() and the canary, too, which lock nothing that anybody uses
  if version < 3 then
    alter table crm_relay.setting
      drop constraint setting_doorbell_check,
      add constraint setting_doorbell_check check (doorbell in ('adaptive', 'always', 'never')),
      alter column doorbell set default 'adaptive';
  end if;

  -- the check was read and planned anew for each row, a third of what writing it took
  if version < 4 then
    alter table crm_relay.change drop constraint if exists change_action_check;
    for slot in 0..9 loop
      execute format('alter table crm_relay.change_%s set (toast_tuple_target = 1600)', slot);
    end loop;
  end if;

  -- what they are given is something else; and whoever has them is told to install, as they read a row wrongly
  -- whose table was altered in the same transaction
  if version < 5 then
    drop function if exists crm_relay.images(anyelement, anyelement, json, json), crm_relay.without_nulls(json, text[]);
  end if;

  -- what capture() goes by is kept once, by what it does with it
  if version < 6 then
    drop function if exists crm_relay.images(anyelement, anyelement, text[], text[]);
    alter table crm_relay.module
      drop column if exists created_by_columns, drop column if exists modified_by_column, drop column if exists version_column, drop column if exists deleted_by_column,
      add column if not exists marks text[] not null default '{}',
      add column if not exists large_null jsonb,
      add column if not exists others_null jsonb,
      add column if not exists large_columns text[],
      add column if not exists large_nulls text[],
      add column if not exists names_size integer not null default 0,
      add column if not exists doorbell text not null default 'adaptive',
      add column if not exists slot_seconds double precision not null default 100800 check (slot_seconds > 0);
  end if;

  -- the records of those who subscribe together are looked up together
  if version < 7 then
    drop function if exists crm_relay.key_condition(crm_relay.module), crm_relay.heirs_of(text, text), crm_relay.access_of_record(text, text);
  end if;
end
$steps$;
