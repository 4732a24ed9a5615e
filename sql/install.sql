-- installs crm-relay:   psql -v ON_ERROR_STOP=1 -f sql/install.sql
-- The same as `crm-relay install`. The schema comes in one transaction, then each table's triggers
-- in a short one of their own. It may be run again at any time.
\set ON_ERROR_STOP on
\if :{?crm_schema}
\else
  \set crm_schema public
\endif
-- whoever may create functions in the CRM's schemas must not lend us theirs
set search_path = pg_catalog, pg_temp;
begin;
set local client_min_messages = warning;
set local lock_timeout = '5s';
\ir 00_guard.sql
\ir 05_steps.sql
\ir 10_roles.sql
\ir 20_schema.sql
\ir 30_journal.sql
\ir 40_capture.sql
\ir 45_snapshot.sql
\ir 50_watch.sql
\ir 55_policy.sql
\ir 60_read.sql
\ir 62_canary.sql
\ir 65_verify.sql
\ir 70_version.sql
commit;
call crm_relay.watch_crm(:'crm_schema');
