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
    if version > 7 then
      raise exception 'crm_relay: schema version % is installed, newer than this one, which is 7', version
        using hint = 'use the crm-relay that installed it, or a later one';
    end if;
  end if;
end
$guard$;
