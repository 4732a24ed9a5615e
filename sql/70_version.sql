-- the version of the schema, written last

insert into crm_relay.setting (version) values (1)
on conflict (only_row) do update set version = excluded.version
 where crm_relay.setting.version is distinct from excluded.version;
