-- the canary: a table of the relay's own, to which it writes to see its own change arrive

create table if not exists crm_relay.canary (
  relay uuid primary key,
  beat bigint not null,
  written_at timestamptz not null default pg_catalog.clock_timestamp()
);
comment on table crm_relay.canary is 'one row for each relay that runs with --canary; watched like a table of the CRM';
comment on column crm_relay.canary.relay is 'the relay, anew with each start';
comment on column crm_relay.canary.beat is 'counts what it wrote';
comment on column crm_relay.canary.written_at is 'when it last wrote';
-- of all tables the only one that the daemon may write to
grant select, insert, update, delete on crm_relay.canary to crm_relay_serve;
grant select on crm_relay.canary to crm_relay_snapshot, crm_relay_policy;

insert into crm_relay.module (module, event, relation, key_columns)
values ('crm_relay_canary', 'CANARY', 'crm_relay.canary', '{relay}')
on conflict (module) do nothing;
do $triggers$ begin perform crm_relay.add_triggers('crm_relay.canary', 'crm_relay_canary', null); end $triggers$;
