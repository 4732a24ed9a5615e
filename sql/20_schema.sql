-- the schema, the settings of this installation, the registry of watched tables

create schema if not exists crm_relay;
comment on schema crm_relay is
  'crm-relay: captures changes of watched tables and hands them to the relay; see sql/README.md';

-- create: to own their functions; taken away again at the end
grant create on schema crm_relay
  to crm_relay_image, crm_relay_part, crm_relay_snapshot, crm_relay_policy, crm_relay_capture, crm_relay_prune;
grant usage on schema crm_relay
  to crm_relay_part, crm_relay_snapshot, crm_relay_policy, crm_relay_capture, crm_relay_prune, crm_relay_serve, crm_relay_audit;
-- whose code may be anybody's: who owns a function may alter it, if they may name it
revoke usage on schema crm_relay from crm_relay_image;

create table if not exists crm_relay.setting (
  only_row boolean primary key default true check (only_row),
  version integer not null,
  install_id uuid not null default pg_catalog.gen_random_uuid(),
  installed_at timestamptz not null default pg_catalog.now(),
  doorbell text not null default 'adaptive' constraint setting_doorbell_check check (doorbell in ('adaptive', 'always', 'never')),
  retention interval not null default '7 days' check (retention >= '1 minute'),
  pruned_txid xid8 not null default '0',
  pruned_at timestamptz
);
comment on table crm_relay.setting is 'the settings of this installation: one row';
comment on column crm_relay.setting.version is 'version of the schema; an older crm-relay refuses to install over it';
comment on column crm_relay.setting.install_id is 'tells this installation from every other; part of the epoch of cursors';
comment on column crm_relay.setting.installed_at is 'when it was first installed';
comment on column crm_relay.setting.doorbell is
  'adaptive: transactions with changes ring by notify while the relay sleeps; always: each does; never: the relay polls (for servers with two-phase commit, which refuses notify)';
comment on column crm_relay.setting.retention is 'how long a change is kept in the journal at least';
comment on column crm_relay.setting.pruned_txid is 'greatest transaction id that was ever truncated away: a cursor below it is not whole';
comment on column crm_relay.setting.pruned_at is 'when a slot was last truncated';

create table if not exists crm_relay.module (
  module text primary key,
  event text not null check (event ~ '^[A-Z][A-Z0-9_]{0,62}$'),
  relation regclass not null unique,
  key_columns text[] not null check (pg_catalog.cardinality(key_columns) > 0),
  access_columns text[] not null default '{}',
  hidden_columns text[] not null default '{}',
  quiet_columns text[] not null default '{}',
  large_from integer not null default 1024 check (large_from > 0),
  part_of text references crm_relay.module (module),
  part_link text,
  chosen text[] not null default '{}',
  narrow boolean not null default false,
  access_of text,
  access_link text,
  lookup text,
  lookup_types oid[],
  marks text[] not null default '{}',
  large_null jsonb,
  others_null jsonb,
  large_columns text[],
  large_nulls text[],
  names_size integer not null default 0,
  doorbell text not null default 'adaptive',
  slot_seconds double precision not null default 100800 check (slot_seconds > 0),
  constraint module_name check (module ~ '^[a-z_][a-z0-9_]{0,62}$' and module not in ('user', 'team', 'broker')),
  constraint part_whole check ((part_of is null) = (part_link is null)),
  constraint hidden_is_hidden check (not hidden_columns && (key_columns || access_columns))
);
comment on table crm_relay.module is 'the registry: one row for each watched table; written by crm_relay.watch() and unwatch()';
comment on column crm_relay.module.module is 'name of the module in rooms and events, such as listings';
comment on column crm_relay.module.event is 'name of the module in event types, such as LISTING';
comment on column crm_relay.module.relation is 'the watched table';
comment on column crm_relay.module.key_columns is 'the columns that make a record''s id; more than one: the id is a JSON array of texts';
comment on column crm_relay.module.access_columns is 'columns that decide who may see a record and in which scope rooms it is';
comment on column crm_relay.module.hidden_columns is 'columns that never leave the table: in no journal row, event or log';
comment on column crm_relay.module.quiet_columns is 'columns whose change alone is no event';
comment on column crm_relay.module.large_from is
  'a column that an update leaves as it was is left out of the images from this many bytes on';
comment on column crm_relay.module.part_of is 'the module whose records this table''s rows belong to; null for a table of its own';
comment on column crm_relay.module.part_link is 'the column of that module''s table that names the row of this one';
comment on column crm_relay.module.chosen is
  'which of these were chosen by whoever watched the table; the others follow the table when it is watched again';

comment on column crm_relay.module.narrow is
  'of a table that says who users are: only key and access columns are journaled, when one of them changed, and nobody can subscribe to it';
comment on column crm_relay.module.access_of is
  'the module on whose records it depends, too, who may see this one''s, such as leads for appointments';
comment on column crm_relay.module.access_link is 'the column of this table that names that module''s record, such as lead_id';
comment on column crm_relay.module.lookup is
  'looks up key and access columns of the record whose id is w.id, in the table that format() is given for it; null where no such can be';
comment on column crm_relay.module.lookup_types is
  'the types of those columns when it was made: with others it is not run';
-- what capture() goes by, so that it need look at one row only, see goes_by()
comment on column crm_relay.module.marks is
  'the columns that say by themselves which record it is and who made the change: id where it alone is the key; and those of version, last_modified_by, deleted_by, created_by and user_id that the table has and that are not hidden';
comment on column crm_relay.module.large_null is
  'an object with each column that may be stored out of line, is shown and decides nothing (json, jsonb, xml, bytea) as null: an update that changed none of them is rendered so; null where there is none';
comment on column crm_relay.module.others_null is
  'an object with each column that is not of these and decides nothing as null: two rows that are the same so differ in nothing that is large or decides';
comment on column crm_relay.module.large_columns is 'the columns in large_null';
comment on column crm_relay.module.large_nulls is 'what large_null makes of an image, such as ,"people":null';
comment on column crm_relay.module.names_size is
  'bytes of an image that are not values, at least: one that is not larger than this and large_from has nothing large';
comment on column crm_relay.module.doorbell is 'as crm_relay.setting.doorbell';
comment on column crm_relay.module.slot_seconds is 'how many seconds fall into one slot of the journal''s ring, by crm_relay.setting.retention';

create table if not exists crm_relay.disconnected (
  user_id text primary key,
  disconnected_at timestamptz not null default pg_catalog.clock_timestamp(),
  by_role text not null default session_user
);
comment on table crm_relay.disconnected is
  'users whose tokens are refused that were issued before a moment; written by crm_relay.disconnect()';
comment on column crm_relay.disconnected.user_id is 'the user, as their tokens name them';
comment on column crm_relay.disconnected.disconnected_at is 'tokens issued up to then are refused';
comment on column crm_relay.disconnected.by_role is 'session_user: who did it';
grant select on crm_relay.disconnected to crm_relay_serve, crm_relay_audit;

grant select on crm_relay.module to crm_relay_part, crm_relay_snapshot, crm_relay_policy;
grant select (version) on crm_relay.setting to crm_relay_policy;
grant select on crm_relay.module, crm_relay.setting
  to crm_relay_capture, crm_relay_prune, crm_relay_serve, crm_relay_audit;
grant update (pruned_txid, pruned_at, install_id) on crm_relay.setting to crm_relay_prune;
