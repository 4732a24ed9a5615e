//! What the policy says: who somebody is, what they may see, in which scope rooms a record is.

use std::collections::HashMap;
use std::time::SystemTime;

use super::{Journal, JournalError};
use crate::snapshot::{Cursor, Position};
use crate::standing::Heir;

/// Somebody's claims and access columns of a record that they may or may not see.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// JSON of the token's claims.
    pub claims: &'a str,
    /// The record's module.
    pub module: &'a str,
    /// Its access columns, a JSON object.
    pub access: &'a str,
}

/// Somebody's claims and a room that they want to be in.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// JSON of the token's claims.
    pub claims: &'a str,
    /// The room.
    pub room: &'a str,
    /// Whether also that of a record that is gone and that they were allowed to see.
    pub replays: bool,
}

/// Access columns ($2) of records of modules ($1), and the scope rooms that they are in.
const PLACES: &str = "
    select crm_relay.placed(w.module, w.access::json)
      from unnest($1::text[], $2::text[]) with ordinality as w (module, access, place)
     order by w.place";

/// Records of a module ($1) by their ids ($2, each once), and those whose access depends on them. Their rooms are
/// those that they would have been in if it did not depend: an answer now cannot tell what was before.
/// The policy is asked once for all that stand the same.
const HEIRS: &str = "
    with heirs as materialized (
      select h.heir ->> 'of' as of, m.module, h.heir ->> 'record_id' as record_id,
             case when h.heir -> 'image' is null then '{}'
                  else coalesce(crm_relay.only(h.heir -> 'image', array_remove(m.access_columns, m.access_link))::text, '{}') end as access
        from crm_relay.heirs_of($1, $2) as h (heir)
        join crm_relay.module m on m.module = h.heir ->> 'module'),
    places as materialized (
      select e.module, e.access, crm_relay.placed(e.module, e.access::json) as rooms
        from (select distinct module, access from heirs) e)
    select h.of, h.module, h.record_id, p.rooms
      from heirs h join places p on p.module = h.module and p.access = h.access";

/// Whether these ($1 claims, each once; $2 whose) may see these ($3 modules, $4 access columns).
const JUDGE: &str = "
    with people as materialized (
      select p.place, p.principal from unnest(crm_relay.known($1::text[])) with ordinality as p (principal, place))
    select crm_relay.sees(p.principal, w.module, w.access::json)
      from unnest($2::bigint[], $3::text[], $4::text[]) with ordinality as w (person, module, access, place)
      join people p on p.place = w.person
     order by w.place";

/// Whether these ($1 claims; $2 whose) may be in these rooms ($3), or were, where they come back ($4).
/// The records of a module are looked up together.
const GRANTS: &str = "
    with people as materialized (
      select p.place, p.principal from unnest(crm_relay.known($1::text[])) with ordinality as p (principal, place)),
    wishes as materialized (
      select p.principal, w.room, w.replays, w.place, n.module, substr(w.room, length(n.module) + 2) as id
        from unnest($2::bigint[], $3::text[], $4::boolean[]) with ordinality as w (person, room, replays, place)
        join people p on p.place = w.person
       cross join lateral split_part(w.room, ':', 1) as n (module)),
    records as materialized (
      select a.module, r.id,
             case when r.image is not null then coalesce(crm_relay.only(crm_relay.readable(r.image), a.access_columns), '{}') end as image
        from (select m.module, m.access_columns, array_agg(distinct w.id) as ids
                from wishes w join crm_relay.module m on m.module = w.module and m.part_of is null and not m.narrow
               where w.principal is not null
               group by m.module) a
       cross join lateral unnest(a.ids, crm_relay.accesses_now(a.module, a.ids)) as r (id, image))
    select crm_relay.may_subscribe(w.principal, w.room, r.image, w.replays)
      from wishes w left join records r on r.module = w.module and r.id = w.id
     order by w.place";

impl Journal {
    /// The scope rooms of records by module and access columns; None where the policy raises.
    pub async fn places(
        &self,
        standings: &[(&str, &str)],
    ) -> Result<Vec<Option<Vec<String>>>, JournalError> {
        let (modules, access): (Vec<&str>, Vec<&str>) = standings.iter().copied().unzip();
        let rows = (self.session.client)
            .query(PLACES, &[&modules, &access])
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// For each of these records of a module, each given once, those whose access depends on it.
    pub async fn heirs(&self, module: &str, ids: &[&str]) -> Result<Vec<Vec<Heir>>, JournalError> {
        let rows = (self.session.client).query(HEIRS, &[&module, &ids]).await?;
        let mut heirs: HashMap<&str, Vec<Heir>> = HashMap::new();
        for row in &rows {
            let (module, id): (&str, &str) = (row.get(1), row.get(2));
            let rooms: Option<Vec<String>> = row.get(3);
            let rooms = rooms.unwrap_or_default();
            heirs.entry(row.get(0)).or_default().push(Heir {
                rooms: (rooms.iter())
                    .flat_map(|room| [room.clone(), format!("{room}/{module}")])
                    .collect(),
                room: format!("{module}:{id}"),
            });
        }
        let each = ids.iter().map(|id| heirs.remove(id).unwrap_or_default());
        Ok(each.collect())
    }

    /// The answers to these questions, in their order; where the policy raises, no.
    pub async fn judge(&self, questions: &[Question<'_>]) -> Result<Vec<bool>, JournalError> {
        let (people, whose) = each_once(questions.iter().map(|question| question.claims));
        let modules: Vec<&str> = questions.iter().map(|question| question.module).collect();
        let access: Vec<&str> = questions.iter().map(|question| question.access).collect();
        let rows = (self.session.client)
            .query(JUDGE, &[&people, &whose, &modules, &access])
            .await?;
        let answers = rows.iter().map(|row| row.get::<_, Option<bool>>(0));
        Ok(answers.map(|answer| answer.unwrap_or(false)).collect())
    }

    /// Whether these may subscribe, and the cursor of the moment at which it was so.
    pub async fn grants(&self, wanted: &[Wish<'_>]) -> Result<(Vec<bool>, Cursor), JournalError> {
        let (people, whose) = each_once(wanted.iter().map(|wish| wish.claims));
        let rooms: Vec<&str> = wanted.iter().map(|wish| wish.room).collect();
        let replays: Vec<bool> = wanted.iter().map(|wish| wish.replays).collect();
        let client = &self.session.client;
        let (snapshot, _) = self.begin().await?;
        let (highest, witness) = self.newest().await?;
        let epoch = self.epoch().await?;
        // last: it runs code of others
        let rows = client
            .query(GRANTS, &[&people, &whose, &rooms, &replays])
            .await?;
        self.end_after_others().await?;
        let answers = rows.iter().map(|row| row.get::<_, Option<bool>>(0));
        let position = Position {
            snapshot: snapshot.clipped(highest),
            witness,
        };
        Ok((
            answers.map(|answer| answer.unwrap_or(false)).collect(),
            Cursor { epoch, position },
        ))
    }

    /// Who somebody with these claims is, as JSON; None: nobody.
    pub async fn principal(&self, claims: &str) -> Result<Option<String>, JournalError> {
        let row = (self.session.client)
            .query_one("select crm_relay.known($1)::text", &[&claims])
            .await?;
        Ok(row.get(0))
    }

    /// Whether the bearer of these claims is a `system_admin` to the policy; where it raises, no.
    pub async fn is_admin(&self, claims: &str) -> Result<bool, JournalError> {
        let asked = "select coalesce(crm_relay.known($1) ->> 'role' = 'system_admin', false)";
        let row = self.session.client.query_one(asked, &[&claims]).await?;
        Ok(row.get(0))
    }

    /// What `crm_relay.verify()` finds, each finding as JSON.
    pub async fn verify(&self) -> Result<Vec<String>, JournalError> {
        let rows = (self.session.client)
            .query("select to_json(f)::text from crm_relay.verify() as f", &[])
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Who was thrown out, and when; see `crm_relay.disconnect()`.
    pub async fn disconnected(&self) -> Result<Vec<(String, SystemTime)>, JournalError> {
        let rows = (self.session.client)
            .query(
                "select user_id, disconnected_at from crm_relay.disconnected",
                &[],
            )
            .await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

/// Each text once, and for each of those given its place among them, from 1.
fn each_once<'a>(texts: impl Iterator<Item = &'a str>) -> (Vec<&'a str>, Vec<i64>) {
    let mut once: Vec<&str> = Vec::new();
    let mut known = HashMap::new();
    let places = texts.map(|text| {
        *known.entry(text).or_insert_with(|| {
            once.push(text);
            once.len() as i64
        })
    });
    let places = places.collect();
    (once, places)
}
