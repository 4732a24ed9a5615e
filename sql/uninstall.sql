-- uninstalls crm-relay and leaves the CRM as it was:   psql -v ON_ERROR_STOP=1 -f sql/uninstall.sql
-- The same as `crm-relay uninstall`: first each table's triggers in a short transaction of their
-- own, then the schema with the journal.
\set ON_ERROR_STOP on
set search_path = pg_catalog, pg_temp;
call crm_relay.unwatch_all();
\ir 80_drop.sql
