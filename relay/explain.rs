//! `crm-relay explain`: why somebody did or did not get an event.
//!
//! It walks the way that a relay walks, by the relay's own code: the change in the journal, the event that
//! it makes, who the user is, the rooms, the policy on the record before and after, the throttle. What a
//! relay decided then is nowhere written but in its log; so the policy is asked as it is today, and of
//! connections it can only tell where to look.

mod report;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;

use crate::audit::{fields, table};
use crate::change::Action;
use crate::config::GivenDatabase;
use crate::diff::quoted;
use crate::event::{Changed, Event, Seen, View};
use crate::follow::{self, Interrupted};
use crate::inquiries::Inquiries;
use crate::journal::{Entry, Filter, Journal, Question, Wish};
use crate::policy::Placement;
use crate::reader::events;
use crate::registry::{Registry, is_scope};
use crate::snapshot::Place;
use report::{Answer, Explained, Outcome, Step};

/// Changes of one transaction that are looked at; of a larger one only those of the record in question.
const MOST: usize = 10_000;

/// Changes of one transaction that are explained at once.
const EXPLAINED: usize = 20;

/// What `explain` is asked.
#[derive(Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct Explain {
    #[command(flatten)]
    at: GivenDatabase,
    /// The user, as their tokens name them
    #[arg(long, value_name = "ID")]
    user: String,
    /// All that this transaction changed
    #[arg(long, value_name = "N", group = "which", value_parser = clap::value_parser!(i64).range(1..))]
    txid: Option<i64>,
    /// The change with this number
    #[arg(long, value_name = "N", group = "which", value_parser = clap::value_parser!(i64).range(1..))]
    seq: Option<i64>,
    /// What the relay runs with: shortest time between two updates of one field
    #[arg(
        long,
        env = "RELAY_THROTTLE",
        value_name = "TIME",
        default_value = "1s"
    )]
    throttle: humantime::Duration,
    /// What the relay runs with: changes of one transaction that a scope room gets one by one
    #[arg(
        long,
        env = "RELAY_FLOOD_CHANGES",
        value_name = "COUNT",
        default_value_t = 500
    )]
    flood_changes: usize,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

impl Explain {
    /// Prints the explanation.
    pub async fn run(self) -> anyhow::Result<()> {
        let database = self.at.database()?;
        let journal = follow::open(&database, "explain").await?;
        let placement = Placement::new(Inquiries::new(database.clone(), "explain", 1));
        let user = uuid::Uuid::try_parse(&self.user)
            .map_or(self.user.clone(), |uuid| uuid.hyphenated().to_string());
        let explained = Inquirer {
            registry: Arc::new(journal.registry().await.map_err(Interrupted::from)?),
            claims: format!("{{\"id\":{}}}", quoted(&user)),
            user,
            throttle: *self.throttle,
            flood_changes: self.flood_changes,
            journal: &journal,
            placement: &placement,
        }
        .explain(self.txid, self.seq)
        .await?;
        let mut out = Vec::new();
        match self.json {
            true => report::json(&self.user, &explained, &mut out),
            false => report::text(&self.user, &explained, &mut out),
        }
        .and_then(|()| follow::print(&mut out))
        .map_err(|error| Interrupted::from(error).into())
    }
}

struct Inquirer<'a> {
    journal: &'a Journal,
    placement: &'a Placement,
    registry: Arc<Registry>,
    user: String,
    claims: String,
    throttle: Duration,
    flood_changes: usize,
}

/// Who the user is today, and what may have made them somebody else then.
struct Person {
    principal: Option<String>,
    disconnected: Option<SystemTime>,
}

impl Inquirer<'_> {
    async fn explain(&self, txid: Option<i64>, seq: Option<i64>) -> anyhow::Result<Vec<Explained>> {
        let asked = Filter {
            txid,
            seq,
            ..Filter::default()
        };
        let found = self.read(&asked).await?;
        let Some(first) = found.first() else {
            anyhow::bail!(self.missing(txid, seq).await?);
        };
        // what else its transaction did decides how it is told
        let txid = Some(first.change.txid as i64);
        let mut transaction = match seq {
            None => found,
            Some(_) => {
                let whole = Filter {
                    txid,
                    ..Filter::default()
                };
                self.read(&whole).await?
            }
        };
        let is_huge = transaction.len() > MOST;
        if let (true, Some(wanted)) = (is_huge, seq) {
            let one = Filter {
                seq: Some(wanted),
                txid,
                ..Filter::default()
            };
            let one = self.read(&one).await?;
            let record = Filter {
                txid,
                modules: one
                    .first()
                    .map(|entry| vec![entry.change.module.to_string()]),
                records: one
                    .first()
                    .map(|entry| vec![entry.change.record_id.clone()]),
                ..Filter::default()
            };
            transaction = self.read(&record).await?;
        }
        let mut changes: Vec<_> = (transaction.iter())
            .map(|entry| entry.change.clone())
            .collect();
        self.placement
            .place(&mut changes, &self.registry)
            .await
            .map_err(Interrupted::from)?;
        let events = events(changes, &self.registry, &Place::nowhere());
        let person = self.person().await?;
        let wanted = |entry: &&Entry| seq.is_none_or(|seq| entry.change.seq == seq as u64);
        let mut explained = Vec::new();
        for entry in transaction.iter().filter(wanted).take(EXPLAINED) {
            explained.push(self.one(entry, &events, &person, is_huge).await?);
        }
        if let Some(last) = explained.last_mut()
            && seq.is_none()
        {
            last.more = transaction.len().saturating_sub(EXPLAINED);
        }
        Ok(explained)
    }

    /// Entries, at most one more than are looked at.
    async fn read(&self, filter: &Filter) -> Result<Vec<Entry>, Interrupted> {
        let found = self.journal.transactions(None, filter).await?;
        let mut read = Vec::new();
        let mut entries = self.journal.entries(&found, &found.txids, filter).await?;
        while let Some(entry) = entries.next().await? {
            // the rest is taken and dropped, so that the session stays of use
            if read.len() <= MOST {
                read.push(entry);
            }
        }
        entries.end().await?;
        Ok(read)
    }

    /// Why there is no such change.
    async fn missing(&self, txid: Option<i64>, seq: Option<i64>) -> Result<String, Interrupted> {
        let kept = self.journal.retention().await?;
        let Some(txid) = txid else {
            return Ok(format!(
                "--seq: {}; the journal has no change with this number: it was rolled back, is yet to come, or is older than {kept}",
                seq.unwrap_or_default()
            ));
        };
        let (fate, is_pruned) = self.journal.fate(txid).await?;
        let why = match fate.as_str() {
            "future" => "no transaction of this server has this number yet".to_owned(),
            "in progress" => "it is still open: what it changes is told when it commits".to_owned(),
            "aborted" => "it was rolled back: nothing happened".to_owned(),
            _ if is_pruned => format!("it may have been pruned, after {kept}"),
            _ => "it changed nothing that is watched, or only hidden columns: select relation from crm_relay.module".to_owned(),
        };
        Ok(format!(
            "--txid: {txid}; the journal has nothing of this transaction: {why}"
        ))
    }

    async fn person(&self) -> Result<Person, Interrupted> {
        let thrown_out = self.journal.disconnected().await?;
        let thrown_out = thrown_out.into_iter().find(|(user, _)| *user == self.user);
        Ok(Person {
            principal: self.journal.principal(&self.claims).await?,
            disconnected: thrown_out.map(|(_, at)| at),
        })
    }

    async fn one(
        &self,
        entry: &Entry,
        events: &[Event],
        person: &Person,
        is_huge: bool,
    ) -> Result<Explained, Interrupted> {
        let mut explained = Explained::of(entry);
        explained.steps.push(self.change(entry));
        let changed = match self.event(entry, events) {
            Ok((step, changed)) => {
                explained.steps.push(step);
                changed
            }
            Err((step, outcome, why)) => {
                explained.steps.push(step);
                explained.end(outcome, why);
                return Ok(explained);
            }
        };
        explained.steps.push(self.principal(entry, person).await?);
        let Some(principal) = &person.principal else {
            explained.end(
                Outcome::Nothing,
                "they get nothing at all: they are nobody".to_owned(),
            );
            return Ok(explained);
        };
        let (step, rooms) = self.rooms(changed).await?;
        explained.steps.push(step);
        let (step, before, after) = self.policy(changed, principal).await?;
        explained.steps.push(step);
        let mut ways = ways(changed, &rooms, before, after);
        let (step, flooded) = self.flood(changed, events, &rooms, is_huge);
        if step.answer == Answer::Yes {
            for (room, frame) in &mut ways {
                if flooded.contains(room) {
                    *frame = "resync, too_many_changes,";
                }
            }
        }
        explained.steps.push(step);
        let throttle = self.throttle(entry, changed, events, is_huge).await?;
        let is_late = throttle.answer == Answer::Maybe;
        explained.steps.push(throttle);
        explained.steps.push(self.connection(entry, person));
        let (outcome, mut why) = conclusion(changed, &ways, before, after);
        if is_late && outcome == Outcome::IfThere {
            why.push_str("; held back, as the throttle says");
        }
        explained.end(outcome, why);
        Ok(explained)
    }

    fn change(&self, entry: &Entry) -> Step {
        let fields = fields(entry);
        let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
        let by = entry.change.actor.as_deref().unwrap_or("nobody certain");
        Step {
            name: "change",
            answer: Answer::Yes,
            says: format!(
                "{} at {} by {by}, session of {} ({}): {}",
                entry.change.action.name(),
                table::time(entry.change.changed_at),
                entry.db_user,
                entry.application,
                names.join(", ")
            ),
            evidence: format!("crm-relay audit --txid {}", entry.change.txid),
        }
    }

    /// The event that a change became, or why it became none of its own.
    fn event<'e>(
        &self,
        entry: &Entry,
        events: &'e [Event],
    ) -> Result<(Step, &'e Changed), (Step, Outcome, String)> {
        let change = &entry.change;
        let part = change.part.as_ref().map(|(part, _)| part.as_str());
        let step = |answer, says: String, evidence: String| Step {
            name: "event",
            answer,
            says,
            evidence,
        };
        let registry = |column: &str| {
            format!(
                "select {column} from crm_relay.module where module = '{}'",
                part.unwrap_or(&change.module)
            )
        };
        let ended = |says: &str, evidence: String, outcome, why: &str| {
            Err((
                step(Answer::No, says.to_owned(), evidence),
                outcome,
                why.to_owned(),
            ))
        };
        let Some(module) = self.registry.module(&change.module) else {
            return match &*change.module {
                "crm_relay" => ended(
                    "somebody was disconnected, which is no record's change",
                    "select * from crm_relay.disconnected".to_owned(),
                    Outcome::Nothing,
                    "only connections of the user who was disconnected are told: they are closed with 4403",
                ),
                _ => ended(
                    "its table is not watched any more",
                    registry("*"),
                    Outcome::Nothing,
                    "a module that is not watched has no rooms",
                ),
            };
        };
        if module.is_narrow {
            return ended(
                "it says who users are, which is told to nobody; what they may see is asked again",
                registry("narrow"),
                Outcome::Nothing,
                "a change of users is no event; scope rooms of those concerned get resync, access_changed",
            );
        }
        if change.action == Action::Truncated {
            return ended(
                "more of the module was lost or changed than rows can say",
                format!("crm-relay audit --txid {}", change.txid),
                Outcome::Resync,
                "whoever is in a room that can hold such records gets resync, truncated; nobody gets an event",
            );
        }
        let same = |changed: &&Changed| {
            changed.module() == &change.module
                && changed.record_room == format!("{}:{}", change.module, change.record_id)
                && changed.part() == part
        };
        let mut told = events.iter().filter_map(|event| match event {
            Event::Changed(changed) => Some(&**changed),
            _ => None,
        });
        if let Some(changed) = told.clone().find(|changed| changed.seq == change.seq) {
            let says = format!("{} of room {}", changed.kind(), changed.record_room);
            return Ok((
                step(Answer::Yes, says, registry("event, quiet_columns")),
                changed,
            ));
        }
        if let Some(changed) = told.find(|changed| same(changed) && changed.seq > change.seq) {
            let says = format!(
                "its transaction changed this row again, also by triggers, and both were told as one, seq {}",
                changed.seq
            );
            let why = format!(
                "it went out as part of seq {}: explain that one",
                changed.seq
            );
            return Err((
                step(
                    Answer::No,
                    says,
                    format!("crm-relay explain --seq {}", changed.seq),
                ),
                Outcome::Nothing,
                why,
            ));
        }
        ended(
            "only columns changed whose change alone is no event, or nothing in the end",
            registry("quiet_columns"),
            Outcome::Nothing,
            "nobody got an event of it",
        )
    }

    async fn principal(&self, entry: &Entry, person: &Person) -> Result<Step, Interrupted> {
        let since = Filter {
            modules: Some(vec!["users".to_owned()]),
            records: Some(vec![self.user.clone()]),
            since: Some(entry.change.changed_at),
            ..Filter::default()
        };
        let changed = self.journal.transactions(None, &since).await?.txids;
        let doubt = match changed.first() {
            Some(txid) => format!(
                "; what decides about them has changed since, first in transaction {txid}, so then it may have been otherwise"
            ),
            None => String::new(),
        };
        Ok(Step {
            name: "principal",
            answer: match person.principal {
                Some(_) => Answer::Yes,
                None => Answer::No,
            },
            says: match &person.principal {
                Some(principal) => format!("today they are {principal}{doubt}"),
                None => format!(
                    "today they are nobody: table users does not have them, or they are not active{doubt}"
                ),
            },
            evidence: format!(
                "select crm_relay.known('{}')",
                self.claims.replace('\'', "''")
            ),
        })
    }

    /// The rooms of a change, and those of them that the user may be in as far as no record is asked about.
    async fn rooms(&self, changed: &Changed) -> Result<(Step, Vec<(String, Seen)>), Interrupted> {
        let all: Vec<(&str, Seen)> = changed.rooms().collect();
        let wanted: Vec<_> = all
            .iter()
            .map(|(room, _)| Wish {
                claims: &self.claims,
                room,
                replays: false,
            })
            .collect();
        let (granted, _) = self.journal.grants(&wanted).await?;
        let (mut may, mut may_not) = (Vec::new(), Vec::new());
        for ((room, seen), granted) in all.into_iter().zip(granted) {
            // who is in a record's room is asked of its images, next; before it is there nobody is
            let is_open = match is_scope(room) {
                true => granted,
                false => changed.action() != Action::Created,
            };
            match is_open {
                true => may.push((room.to_owned(), seen)),
                false => may_not.push(room.to_owned()),
            }
        }
        let names: Vec<&str> = may.iter().map(|(room, _)| room.as_str()).collect();
        let none = |text: String| {
            if text.is_empty() {
                "none".to_owned()
            } else {
                text
            }
        };
        let step = Step {
            name: "rooms",
            answer: if may.is_empty() {
                Answer::No
            } else {
                Answer::Yes
            },
            says: format!(
                "it went to rooms that they may be in: {}; to others: {}",
                none(names.join(", ")),
                none(may_not.join(", "))
            ),
            evidence: format!(
                "select room, crm_relay.enters(crm_relay.known('{}'), room) from unnest(crm_relay.rooms_of('{}', '{}')) room",
                self.claims.replace('\'', "''"),
                changed.module(),
                access(changed).replace('\'', "''"),
            ),
        };
        Ok((step, may))
    }

    /// Whether they may see the record as it was and as it is after the change.
    async fn policy(
        &self,
        changed: &Changed,
        principal: &str,
    ) -> Result<(Step, bool, bool), Interrupted> {
        let (before, after) = changed.standings();
        let questions: Vec<_> = (before.into_iter().chain(after))
            .map(|standing| Question {
                claims: &self.claims,
                module: &standing.module,
                access: &standing.access,
            })
            .collect();
        let mut answers = self.journal.judge(&questions).await?.into_iter();
        let before = before.and_then(|_| answers.next());
        let after = after.and_then(|_| answers.next());
        let word = |answer: Option<bool>| match answer {
            Some(true) => "yes",
            Some(false) => "no",
            None => "it was not there",
        };
        let says = format!(
            "may they see it as it was before: {}; after: {}. By today's rules, users and records that it depends on",
            word(before),
            word(after)
        );
        // where it was not there, the other answer counts for both
        let (was, is) = (
            before.or(after).unwrap_or(false),
            after.or(before).unwrap_or(false),
        );
        let step = Step {
            name: "policy",
            answer: if was || is { Answer::Yes } else { Answer::No },
            says,
            evidence: format!(
                "select crm_relay.may_see_row('{}', '{}', '{}')",
                principal.replace('\'', "''"),
                changed.module(),
                access(changed).replace('\'', "''"),
            ),
        };
        Ok((step, was, is))
    }

    fn flood(
        &self,
        changed: &Changed,
        events: &[Event],
        rooms: &[(String, Seen)],
        is_huge: bool,
    ) -> (Step, Vec<String>) {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for event in events {
            if let Event::Changed(changed) = event {
                for (room, _) in changed.rooms().skip(1) {
                    *counts.entry(room).or_default() += 1;
                }
            }
        }
        let flooded: Vec<String> = (rooms.iter())
            .filter(|(room, _)| is_scope(room))
            .filter(|(room, _)| {
                let count = counts.get(room.as_str());
                is_huge || count.is_some_and(|&count| count > self.flood_changes)
            })
            .map(|(room, _)| room.clone())
            .collect();
        let most = self.flood_changes;
        let (answer, says) = match (flooded.is_empty(), is_huge) {
            (true, _) => (
                Answer::No,
                format!("its transaction has no more than {most} changes for any of these rooms"),
            ),
            (false, true) => (
                Answer::Maybe,
                format!(
                    "its transaction has more than {MOST} changes: if more than {most} are for one of these, that one got resync, too_many_changes, instead: {}",
                    flooded.join(", ")
                ),
            ),
            (false, false) => (
                Answer::Yes,
                format!(
                    "its transaction has more than {most} changes for each of these, which got resync, too_many_changes, instead: {}",
                    flooded.join(", ")
                ),
            ),
        };
        let step = Step {
            name: "flood",
            answer,
            says,
            evidence: format!(
                "RELAY_FLOOD_CHANGES of the relay, and crm-relay audit --txid {}",
                changed.txid
            ),
        };
        (step, flooded)
    }

    async fn throttle(
        &self,
        entry: &Entry,
        changed: &Changed,
        events: &[Event],
        is_huge: bool,
    ) -> Result<Step, Interrupted> {
        let step = |answer, says: String| Step {
            name: "throttle",
            answer,
            says,
            evidence: format!(
                "RELAY_THROTTLE of the relay, taken to be {}, and crm-relay audit {}:{}",
                humantime::format_duration(self.throttle),
                entry.change.module,
                entry.change.record_id
            ),
        };
        let never = if self.throttle.is_zero() {
            "it is off"
        } else if changed.action() != Action::Updated {
            "only updates are held back"
        } else if changed.changes_access || !changed.left.is_empty() || !changed.entered.is_empty()
        {
            "what changes who may see the record is not held back"
        } else if is_huge || events.len() > 1 {
            "its transaction has several events, which are not held back"
        } else {
            ""
        };
        if !never.is_empty() {
            return Ok(step(Answer::No, never.to_owned()));
        }
        let at = entry.change.changed_at;
        let around = Filter {
            modules: Some(vec![entry.change.module.to_string()]),
            records: Some(vec![entry.change.record_id.clone()]),
            since: at.checked_sub(self.throttle),
            until: at.checked_add(self.throttle),
            ..Filter::default()
        };
        let same_fields = |other: &&Entry| {
            other.change.action == Action::Updated
                && other.change.part == entry.change.part
                && (fields(other).iter()).any(|field| changed.columns.contains(&field.name))
        };
        let around = self.read(&around).await?;
        let seqs = |others: &[&Entry]| {
            let seqs: Vec<String> = others
                .iter()
                .map(|entry| entry.change.seq.to_string())
                .collect();
            seqs.join(", ")
        };
        let (earlier, later): (Vec<&Entry>, Vec<&Entry>) = (around.iter())
            .filter(same_fields)
            .filter(|other| other.change.seq != entry.change.seq)
            .partition(|other| other.change.seq < entry.change.seq);
        if earlier.is_empty() {
            return Ok(step(
                Answer::No,
                "no field of it was changed so shortly before: it went out at once".to_owned(),
            ));
        }
        let with = match later.is_empty() {
            true => String::new(),
            false => format!(", as one with what came after it, seq {}", seqs(&later)),
        };
        Ok(step(
            Answer::Maybe,
            format!(
                "shortly before, seq {} changed the same fields: it waited, and went out later{with}, coalesced, under the last one's seq; or not at all, where the row was then as they knew it",
                seqs(&earlier)
            ),
        ))
    }

    fn connection(&self, entry: &Entry, person: &Person) -> Step {
        let thrown_out = match person.disconnected {
            Some(at) => format!(
                "; crm_relay.disconnect() threw them out at {}",
                table::time(at)
            ),
            None => String::new(),
        };
        Step {
            name: "connection",
            answer: Answer::Unknown,
            says: format!(
                "the database does not know who was connected at {} and in which rooms: only the relay's log does{thrown_out}",
                table::time(entry.change.changed_at)
            ),
            evidence: format!(
                "grep welcomed relay.log | grep -F {}   tells their connections; grep -F CONNECTION relay.log   what one of them did: subscribed, revoked, closing, disconnected; grep -F 'txid={}' relay.log   how many receivers it had",
                shell(&self.user),
                entry.change.txid
            ),
        }
    }
}

/// The access columns of the newest image.
fn access(changed: &Changed) -> String {
    let (before, after) = changed.standings();
    let standing = after.or(before);
    standing.map_or("{}".to_owned(), |standing| standing.access.to_string())
}

/// What each of these rooms gives to somebody who may see it before, after, or both.
fn ways(
    changed: &Changed,
    rooms: &[(String, Seen)],
    before: bool,
    after: bool,
) -> Vec<(String, &'static str)> {
    let of_room = |(room, in_room): &(String, Seen)| {
        let frame = match is_scope(room) {
            // who may not see it is not in its room, and who may no longer see it is put out of it
            false if !before => return None,
            false if !after => "revoked",
            _ => match in_room.by(before, after)?.view() {
                View::Stayed | View::Crossed => changed.action().name(),
                View::Left => "deleted, moved",
                View::Entered => "created, moved",
            },
        };
        Some((room.clone(), frame))
    };
    rooms.iter().filter_map(of_room).collect()
}

fn conclusion(
    changed: &Changed,
    ways: &[(String, &'static str)],
    before: bool,
    after: bool,
) -> (Outcome, String) {
    if !before && !after {
        let why = "they did not get it: the policy lets them see it neither before nor after";
        return (Outcome::Nothing, why.to_owned());
    }
    if ways.is_empty() {
        let why = match changed.action() {
            Action::Created => {
                "they did not get it: nobody is in a record's room before there is the record, and they may be in none of its scope rooms"
            }
            _ => "they did not get it: none of its rooms gives it to them",
        };
        return (Outcome::Nothing, why.to_owned());
    }
    let is_flooded = |(_, frame): &(String, &str)| frame.starts_with("resync");
    let outcome = match ways.iter().all(is_flooded) {
        true => Outcome::Resync,
        false => Outcome::IfThere,
    };
    let told: Vec<String> = (ways.iter())
        .map(|(room, frame)| format!("{frame} in {room}"))
        .collect();
    (
        outcome,
        format!(
            "they got it if they were connected then, or came back with a cursor, and were in one of these rooms: {}",
            told.join("; ")
        ),
    )
}

/// A word of a shell.
fn shell(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    match text.chars().all(is_plain) && !text.is_empty() {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}
