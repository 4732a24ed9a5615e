//! The policy, as the relay asks it: SQL functions that the CRM's owner may replace (`sql/55_policy.sql`).
//!
//! What an answer depends on is a token's claims and a record's access columns, and what Postgres holds
//! of users and of records that others depend on. So answers are remembered, by [`Placement`] the
//! rooms of a standing and by [`crate::rooms`] who may see it, until one of those changes, and for
//! [`REMEMBERED`] at most.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::change::{Action, Change};
use crate::diff::quoted;
use crate::inquiries::{Inquiries, NotTold};
use crate::journal;
use crate::registry::Registry;
use crate::rooms::{Asked, Command, Inquiry, Verdicts};
use crate::snapshot::Cursor;
use crate::standing::{self, Standing};
use crate::token::Members;

/// After so long everything is asked again.
pub const REMEMBERED: Duration = Duration::from_secs(240);

/// Most standings that are remembered.
const MOST_STANDINGS: usize = 100_000;

/// Claims that tell about the token and nothing about its bearer (RFC 7519, section 4.1).
const OF_THE_TOKEN: [&str; 4] = ["exp", "iat", "jti", "nbf"];

/// Longest wait before Postgres is asked again what it did not answer.
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// Who somebody is, as far as the policy can tell apart.
#[derive(Debug)]
pub struct Credential {
    /// Tells it from every other credential of this relay.
    pub number: u64,
    /// The user.
    pub user: String,
    /// The claims of their token, without those that tell about the token, as JSON.
    pub claims: String,
}

/// Whether somebody may see a record that stands so.
#[derive(Debug, Clone)]
pub struct Question {
    /// Who.
    pub who: Arc<Credential>,
    /// A record.
    pub standing: Arc<Standing>,
}

/// Asks who may see what.
pub struct Policy {
    inquiries: Inquiries,
    credentials: Mutex<HashMap<String, Weak<Credential>>>,
    next: AtomicU64,
}

impl Policy {
    /// Asks by these sessions.
    pub fn new(inquiries: Inquiries) -> Policy {
        Policy {
            inquiries,
            credentials: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    /// The bearer of a token with these claims. The same claims make the same credential; `id` is
    /// always the user.
    pub fn credential(&self, user: &str, claims: &Members) -> Arc<Credential> {
        let id = quoted(user);
        let others = claims
            .iter()
            .filter(|(name, _)| *name != "id" && !OF_THE_TOKEN.contains(name));
        let others = others.map(|(name, raw)| format!(",{}:{}", quoted(name), raw.get()));
        let claims = format!("{{\"id\":{id}{}}}", others.collect::<String>());
        let mut known = self
            .credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(credential) = known.get(&claims).and_then(Weak::upgrade) {
            return credential;
        }
        if known.len() >= 64 && known.len().is_power_of_two() {
            known.retain(|_, credential| credential.strong_count() > 0);
        }
        let credential = Arc::new(Credential {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            user: user.to_owned(),
            claims: claims.clone(),
        });
        known.insert(claims, Arc::downgrade(&credential));
        credential
    }

    /// The answers to these questions.
    pub async fn judge(&self, inquiry: &Inquiry) -> Result<Verdicts, NotTold> {
        let asked: Vec<_> = inquiry
            .questions
            .iter()
            .map(|question| journal::Question {
                claims: &question.who.claims,
                module: &question.standing.module,
                access: &question.standing.access,
            })
            .collect();
        let answers = self
            .inquiries
            .ask(async |journal| journal.judge(&asked).await)
            .await?;
        Ok(Verdicts {
            answers: inquiry.questions.iter().cloned().zip(answers).collect(),
            era: inquiry.era,
        })
    }

    /// Whether somebody may subscribe to these rooms, and the cursor of the moment at which it was so.
    pub async fn grants(
        &self,
        who: &Credential,
        rooms: &[String],
        replays: bool,
    ) -> Result<(Vec<bool>, Cursor), NotTold> {
        let wanted: Vec<_> = rooms
            .iter()
            .map(|room| (who.claims.as_str(), room.as_str()))
            .collect();
        self.inquiries
            .ask(async |journal| journal.grants(&wanted, replays).await)
            .await
    }

    /// Whether somebody is a `system_admin`, who sees everything.
    pub async fn is_admin(&self, who: &Credential) -> Result<bool, NotTold> {
        self.inquiries
            .ask(async |journal| journal.is_admin(&who.claims).await)
            .await
    }

    async fn answer(&self, asked: &Asked) -> Result<Command, NotTold> {
        match asked {
            Asked::Judge(inquiry) => Ok(Command::Judged(self.judge(inquiry).await?)),
            Asked::Review { rooms, resync } => {
                let wanted: Vec<_> = rooms
                    .iter()
                    .map(|(who, room)| (who.claims.as_str(), &**room))
                    .collect();
                let (answers, _) = self
                    .inquiries
                    .ask(async |journal| journal.grants(&wanted, true).await)
                    .await?;
                let rooms = rooms.iter().cloned().zip(answers);
                Ok(Command::Reviewed {
                    rooms: rooms
                        .map(|((who, room), granted)| (who, room, granted))
                        .collect(),
                    resync: *resync,
                })
            }
        }
    }

    /// Answers what the rooms ask, until nobody asks any more. What Postgres does not answer is asked
    /// again: nothing is told without an answer.
    pub async fn serve(
        self: Arc<Self>,
        mut asked: mpsc::Receiver<Asked>,
        rooms: mpsc::Sender<Command>,
    ) {
        while let Some(asked) = asked.recv().await {
            let mut backoff = Duration::from_millis(50);
            let answer = loop {
                match self.answer(&asked).await {
                    Ok(answer) => break answer,
                    Err(error) => {
                        tracing::warn!(%error, "could not ask the policy: what must be judged waits");
                        tokio::time::sleep(backoff).await;
                        backoff = (backoff * 2).min(LONGEST_BACKOFF);
                    }
                }
            };
            if rooms.send(answer).await.is_err() {
                return;
            }
        }
    }
}

/// Knows in which rooms records are.
pub struct Placement {
    inquiries: Inquiries,
    known: Mutex<Known>,
    next: AtomicU64,
}

struct Known {
    standings: HashMap<(Arc<str>, String), Arc<Standing>>,
    since: Instant,
}

impl Placement {
    /// Asks by these sessions.
    pub fn new(inquiries: Inquiries) -> Placement {
        Placement {
            inquiries,
            known: Mutex::new(Known {
                standings: HashMap::new(),
                since: Instant::now(),
            }),
            next: AtomicU64::new(0),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds out how these records stood and stand. What cannot be judged becomes an upheaval of its
    /// module.
    pub async fn place(&self, changes: &mut [Change], registry: &Registry) -> Result<(), NotTold> {
        {
            let mut known = self.known();
            if known.since.elapsed() >= REMEMBERED || known.standings.len() > MOST_STANDINGS {
                known.standings.clear();
                known.since = Instant::now();
            }
        }
        let accesses: Vec<(Option<String>, Option<String>)> = changes
            .iter_mut()
            .map(|change| accesses(change, registry))
            .collect();
        let mut wanted: Vec<(Arc<str>, String)> = Vec::new();
        {
            let known = self.known();
            for (change, (before, after)) in changes.iter().zip(&accesses) {
                for access in before.iter().chain(after) {
                    let key = (change.module.clone(), access.clone());
                    if !known.standings.contains_key(&key) && !wanted.contains(&key) {
                        wanted.push(key);
                    }
                }
            }
        }
        let mut found: HashMap<(Arc<str>, String), Option<Arc<Standing>>> = HashMap::new();
        if !wanted.is_empty() {
            let asked: Vec<_> = wanted
                .iter()
                .map(|(module, access)| (&**module, access.as_str()))
                .collect();
            let answers = (self.inquiries)
                .ask(async |journal| journal.places(&asked).await)
                .await?;
            for ((module, access), rooms) in wanted.into_iter().zip(answers) {
                let standing = rooms.map(|rooms| {
                    Arc::new(Standing {
                        number: self.next.fetch_add(1, Ordering::Relaxed),
                        module: module.clone(),
                        access: access.as_str().into(),
                        rooms,
                    })
                });
                found.insert((module, access), standing);
            }
        }
        {
            let mut known = self.known();
            for (key, standing) in &found {
                if let Some(standing) = standing {
                    known.standings.insert(key.clone(), standing.clone());
                }
            }
            for (change, (before, after)) in changes.iter_mut().zip(accesses) {
                let module = change.module.clone();
                let stand = |access: String| {
                    let key = (module.clone(), access);
                    let standing = known.standings.get(&key);
                    standing
                        .or(found.get(&key).and_then(Option::as_ref))
                        .cloned()
                };
                let (is_before, is_after) = (before.is_some(), after.is_some());
                change.before = before.and_then(stand);
                change.after = after.and_then(stand);
                if (is_before && change.before.is_none()) || (is_after && change.after.is_none()) {
                    tracing::error!(seq = change.seq, module = %change.module, "crm_relay.rooms_of() raised for this row: its module's rooms fetch anew");
                    change.action = Action::Truncated;
                }
            }
        }
        self.find_heirs(changes, registry).await
    }

    /// Finds the records whose access may have changed with these.
    async fn find_heirs(&self, changes: &mut [Change], registry: &Registry) -> Result<(), NotTold> {
        let mut concerned: Vec<&mut Change> = changes
            .iter_mut()
            .filter(|change| change.part.is_none() && change.before != change.after)
            .filter(|change| registry.has_heirs(&change.module))
            .collect();
        if concerned.is_empty() {
            return Ok(());
        }
        let records: Vec<_> = concerned
            .iter()
            .map(|change| (&*change.module, change.record_id.as_str()))
            .collect();
        let heirs = (self.inquiries)
            .ask(async |journal| journal.heirs(&records).await)
            .await?;
        for (place, heir) in heirs {
            concerned[place].heirs.push(heir);
        }
        drop(concerned);
        // where they are placed depends on it
        self.forget();
        Ok(())
    }

    /// Everything is to be asked again: who users are, or what records depend on, has changed.
    pub fn forget(&self) {
        self.known().standings.clear();
    }
}

/// The access columns of a change's images; an image that is none makes it an upheaval.
fn accesses(change: &mut Change, registry: &Registry) -> (Option<String>, Option<String>) {
    let Some(module) = registry.module(&change.module) else {
        return (None, None);
    };
    let of = |image: &Option<String>| {
        let image = image.as_deref()?;
        Some(standing::access(image, &module.access_columns))
    };
    let (before, after) = match &change.record_image {
        None => (of(&change.old_image), of(&change.new_image)),
        record => (of(record), of(record)),
    };
    match (before.transpose(), after.transpose()) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(seq = change.seq, %error, "an image that cannot be read: its module's rooms fetch anew");
            change.action = Action::Truncated;
            (None, None)
        }
    }
}
