-- roles: one for each job, none can log in, none can do anything else.
--
-- A function with "security definer" runs with the rights of its owner, and rendering a row runs
-- code that the owner of the table may have written (casts to json). So no such function belongs
-- to a superuser or to whoever installs: the role that renders rows has no right at all, the one
-- that looks for a part's records and the one that looks up who may see them may read keys and access
-- columns, and the one that writes the journal never runs anybody's code.
-- https://www.postgresql.org/docs/current/sql-createfunction.html#SQL-CREATEFUNCTION-SECURITY

do $roles$
declare
  job record;
  found record;
begin
  for job in
    select * from (values
      ('crm_relay_image',   'crm-relay: renders a row as json; has no right to anything'),
      ('crm_relay_part',    'crm-relay: finds the records that a part belongs to; may read their keys and access columns'),
      ('crm_relay_snapshot', 'crm-relay: reads records as they are now; may read watched tables'),
      ('crm_relay_policy',  'crm-relay: looks up what decides who may see a record; may read keys and access columns'),
      ('crm_relay_capture', 'crm-relay: owns the trigger function; may insert into the journal'),
      ('crm_relay_prune',   'crm-relay: owns prune(); may truncate the slots of the journal'),
      ('crm_relay_serve',   'crm-relay: what the daemon runs as; reads the journal'),
      ('crm_relay_audit',   'crm-relay: for DBAs; reads the journal and the audit view'),
      -- not the daemon's own role: who is a member of an owner may alter the function, and a superuser calls this one
      ('crm_relay_verify',  'crm-relay: owns verify_policy(); may what crm_relay_serve may')
    ) as jobs (name, purpose)
  loop
    begin
      execute format('create role %I nologin', job.name);
      execute format('comment on role %I is %L', job.name, job.purpose);
    exception when duplicate_object or unique_violation then
      null; -- another database of this server has the relay, too: roles belong to the server
    end;

    select r.rolcanlogin, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication,
           array(select g.rolname from pg_catalog.pg_auth_members m
                   join pg_catalog.pg_roles g on g.oid = m.roleid
                  where m.member = r.oid
                    and not (r.rolname = 'crm_relay_verify' and g.rolname = 'crm_relay_serve')) as member_of
      into found
      from pg_catalog.pg_roles r
     where r.rolname = job.name;
    if job.name not in ('crm_relay_serve', 'crm_relay_audit')
       and (found.rolcanlogin or found.rolsuper or found.rolcreaterole or found.rolcreatedb
            or found.rolreplication or found.member_of <> '{}') then
      raise exception 'crm_relay: role % must be without login, attributes and memberships, but it has more', job.name
        using hint = format('drop it or take away what it has: alter role %I nologin nosuperuser nocreaterole nocreatedb noreplication', job.name);
    end if;

    -- to hand a function to a role one must be a member of it
    if not pg_catalog.pg_has_role(current_user, job.name, 'member') then
      execute format('grant %I to %I', job.name, current_user);
    end if;
  end loop;
  if not exists (select from pg_catalog.pg_auth_members m
                  where m.member = 'crm_relay_verify'::pg_catalog.regrole and m.roleid = 'crm_relay_serve'::pg_catalog.regrole) then
    begin
      grant crm_relay_serve to crm_relay_verify;
    exception when unique_violation or internal_error then
      null; -- an install in another database of this server did it just now
    end;
  end if;
  -- a part's change finds its records, and a snapshot or the policy its record, also under row level security
  if (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) then
    for job in
      select r.rolname as name from pg_catalog.pg_roles r
       where r.rolname in ('crm_relay_part', 'crm_relay_snapshot', 'crm_relay_policy') and not r.rolbypassrls
    loop
      begin
        execute format('alter role %I bypassrls', job.name);
      exception when internal_error then
        -- 'tuple concurrently updated': an install in another database of this server did the same just now
        if not (select r.rolbypassrls from pg_catalog.pg_roles r where r.rolname = job.name) then
          raise;
        end if;
      end;
    end loop;
  end if;
end
$roles$;
