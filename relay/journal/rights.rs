//! What the relay's login has more than it needs: `crm_relay_serve` and nothing else.

use super::{Journal, JournalError};

/// One thing that is too much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    /// What it is.
    pub what: String,
    /// The SQL that takes it away.
    pub mend: String,
}

/// A superuser has all of it, so nothing else is said of one.
const EXCESS: &str = "
    with me as (
      select quote_ident(r.rolname) as login, r.* from pg_roles r where r.rolname = current_user),
    watched as (
      select c.oid::regclass::text as name, c.relowner, c.relacl from crm_relay.module m join pg_class c on c.oid = m.relation
       where c.relnamespace <> 'crm_relay'::regnamespace),
    another as (
      select 'create role relay login password ''…'' in role crm_relay_serve; /* and name it in DATABASE_URL */' as login)
    select 'it is a superuser' as what, another.login as mend from me cross join another where me.rolsuper
    union all
    select 'it has ' || string_agg(a.name, ', '), format('alter role %s %s;', me.login, string_agg('no' || a.name, ' '))
      from me cross join lateral (values ('createrole', rolcreaterole), ('createdb', rolcreatedb),
                                         ('bypassrls', rolbypassrls), ('replication', rolreplication)) as a (name, has)
     where a.has and not me.rolsuper group by me.login
    union all
    select 'it is a member of ' || string_agg(quote_ident(g.rolname), ', ' order by g.rolname),
           string_agg(format('revoke %I from %I;', g.rolname, t.rolname), ' ' order by g.rolname)
      from me
      join pg_auth_members m on pg_has_role(me.oid, m.member, 'member')
      join pg_roles g on g.oid = m.roleid
      join pg_roles t on t.oid = m.member
     where not me.rolsuper and g.rolname <> 'crm_relay_serve'
       and (g.rolsuper or g.rolname ~ '^crm_relay_'
            or g.rolname ~ '^pg_' and g.rolname !~ '^pg_(monitor|read_all_stats|read_all_settings|stat_scan_tables|signal_backend)$')
    having count(*) > 0
    union all
    select 'it owns ' || string_agg(o.name, ', ' order by o.name), max(another.login)
      from me cross join another
     cross join lateral (
       select name, relowner from watched
       union all select 'schema crm_relay', n.nspowner from pg_namespace n where n.nspname = 'crm_relay') as o (name, owner)
     where not me.rolsuper and pg_has_role(me.oid, o.owner, 'member')
    having count(*) > 0
    union all
    select format('it may %s %s', g.rights, g.tables), format('revoke all on %s from %s;', g.tables, g.grantee)
      from (select g.rights, g.grantee, string_agg(g.name, ', ' order by g.name) as tables
              from (select w.name, string_agg(lower(a.privilege_type), ', ' order by a.privilege_type) as rights,
                           case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as grantee
                      from me cross join watched w cross join lateral aclexplode(w.relacl) as a
                     where not me.rolsuper and not pg_has_role(me.oid, w.relowner, 'member')
                       and (a.grantee = 0 or pg_has_role(me.oid, a.grantee, 'member') and pg_get_userbyid(a.grantee) !~ '^crm_relay_(image|part|snapshot|policy|capture|prune|audit)$')
                     group by w.name, a.grantee) g
             group by g.rights, g.grantee) g";

impl Journal {
    /// What this session's login has more than `crm_relay_serve`: attributes, other roles of the relay or
    /// of Postgres, watched tables or the schema as its own, rights on watched tables.
    pub async fn excess(&self) -> Result<Vec<Excess>, JournalError> {
        let rows = self.session.client.query(EXCESS, &[]).await?;
        let excess = rows.iter().map(|row| Excess {
            what: row.get(0),
            mend: row.get(1),
        });
        Ok(excess.collect())
    }
}
