//! The policy, as the relay asks it: SQL functions that the CRM's owner may replace (`sql/55_policy.sql`).
//!
//! What an answer depends on is a token's claims and a record's access columns, and what Postgres holds
//! of users and of records that others depend on. So [`Answers`] are remembered, by [`Placement`] the
//! rooms of a standing and by [`crate::rooms`] who may see it, until one of those changes, and for
//! [`REMEMBERED`](crate::answers::REMEMBERED) at most.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answers::{Answers, TURN};
use crate::change::{Action, Change};
use crate::diff::quoted;
use crate::gathering::Gathering;
use crate::inquiries::{Inquiries, NotTold, Pieces};
use crate::journal::{self, Journal};
use crate::registry::Registry;
use crate::rooms::{Asked, Command, Inquiry};
use crate::snapshot::Cursor;
use crate::standing::{self, Heir, Standing};
use crate::token::Members;

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

impl Question {
    fn asked(&self) -> journal::Question<'_> {
        journal::Question {
            claims: &self.who.claims,
            module: &self.standing.module,
            access: &self.standing.access,
        }
    }
}

/// So many rooms, or questions, of one who subscribes are asked about together with those of others; who asks
/// for more asks alone.
const FEW: usize = 4;

/// Queries at once about those who subscribe, as many of each kind, the slow ones included.
const GATHERED: usize = 4;

/// Asks who may see what.
pub struct Policy {
    /// For what is to be told now, and for who may still be where they are.
    judging: Inquiries,
    /// For those who subscribe: however many they are, nobody is told anything later for it.
    subscribing: Arc<Inquiries>,
    wishes: Gathering<Wishes, (Vec<bool>, Cursor)>,
    doubts: Gathering<Vec<Question>, Vec<bool>>,
    credentials: Mutex<HashMap<String, Weak<Credential>>>,
    next: AtomicU64,
}

impl Policy {
    /// Asks by these sessions, the latter for those who subscribe.
    pub fn new(judging: Inquiries, subscribing: Inquiries) -> Policy {
        let subscribing = Arc::new(subscribing);
        let inquiries = subscribing.clone();
        let wishes = Gathering::new(GATHERED, move |several| {
            let inquiries = inquiries.clone();
            async move { grants_of(&inquiries, &several).await }
        });
        let inquiries = subscribing.clone();
        let doubts = Gathering::new(GATHERED, move |several| {
            let inquiries = inquiries.clone();
            async move { judge_several(&inquiries, &several).await }
        });
        Policy {
            judging,
            subscribing,
            wishes,
            doubts,
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

    /// Adds the answers that are not there yet to the questions of somebody who subscribes.
    pub async fn judge(
        &self,
        inquiry: &Inquiry,
        answers: &mut Vec<bool>,
    ) -> Result<(), Arc<NotTold>> {
        if let Some(first) = inquiry.questions.first()
            && is_few(inquiry.questions.len())
        {
            let questions = inquiry.questions.clone();
            *answers = self.doubts.ask(&first.who.user, questions).await?;
            return Ok(());
        }
        Ok(Box::pin(judge(&self.subscribing, inquiry, answers)).await?)
    }

    /// Whether somebody may subscribe to these rooms, and the cursor of the moment at which it was so.
    /// With `replays` also to the room of a record that is gone and that they were allowed to see.
    pub async fn grants(
        &self,
        who: &Arc<Credential>,
        rooms: &[String],
        replays: bool,
    ) -> Result<(Vec<bool>, Cursor), Arc<NotTold>> {
        let wishes = Wishes {
            who: who.clone(),
            rooms: rooms.to_vec(),
            replays,
        };
        if is_few(rooms.len()) {
            return self.wishes.ask(&who.user, wishes).await;
        }
        let told = self.subscribing.ask(async |journal| {
            let wishes: Vec<_> = wishes.each().collect();
            journal.grants(&wishes).await
        });
        Ok(Box::pin(told).await?)
    }

    /// Whether somebody is a `system_admin`, who sees everything.
    pub async fn is_admin(&self, who: &Credential) -> Result<bool, NotTold> {
        self.subscribing
            .ask(async |journal| journal.is_admin(&who.claims).await)
            .await
    }

    /// `answers` are those that were given already.
    async fn answer(&self, asked: &Asked, answers: &mut Vec<bool>) -> Result<Command, NotTold> {
        match asked {
            Asked::Judge(inquiry) => {
                judge(&self.judging, inquiry, answers).await?;
                Ok(Command::Judged(inquiry.answered(answers)))
            }
            Asked::JudgeAgain(inquiry) => {
                // nobody waits for it, and others are waiting to be asked about
                if let Err(error) = judge(&self.judging, inquiry, answers).await {
                    tracing::warn!(%error, "could not ask the policy again: what is known counts for now");
                }
                Ok(Command::JudgedAgain(inquiry.answered(answers)))
            }
            Asked::Review { rooms, resync } => {
                let wanted: Vec<_> = rooms
                    .iter()
                    .map(|(who, room)| journal::Wish {
                        claims: &who.claims,
                        room,
                        replays: true,
                    })
                    .collect();
                let (answers, _) = self
                    .judging
                    .ask(async |journal| journal.grants(&wanted).await)
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
            let mut answers = Vec::new();
            let mut began = Instant::now();
            let answer = loop {
                match self.answer(&asked, &mut answers).await {
                    Ok(answer) => break answer,
                    Err(error) => {
                        tracing::warn!(%error, "could not ask the policy: what must be judged waits");
                        forget_old(&mut answers, &mut began);
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

/// What was answered before Postgres was away for long is asked once more.
pub fn forget_old(answers: &mut Vec<bool>, began: &mut Instant) {
    if began.elapsed() >= TURN {
        answers.clear();
        *began = Instant::now();
    }
}

/// Whether so much is asked about together with what others ask; who asks for more waits for a turn.
pub fn is_few(asked: usize) -> bool {
    asked <= FEW
}

/// Rooms that somebody wants to be in.
struct Wishes {
    who: Arc<Credential>,
    rooms: Vec<String>,
    replays: bool,
}

impl Wishes {
    fn each(&self) -> impl Iterator<Item = journal::Wish<'_>> {
        self.rooms.iter().map(|room| journal::Wish {
            claims: &self.who.claims,
            room,
            replays: self.replays,
        })
    }
}

/// What several wish, granted at one moment.
async fn grants_of(
    inquiries: &Inquiries,
    several: &[Arc<Wishes>],
) -> Result<Vec<(Vec<bool>, Cursor)>, NotTold> {
    let look = async |journal: &Journal| {
        let wishes: Vec<_> = several.iter().flat_map(|wishes| wishes.each()).collect();
        journal.grants(&wishes).await
    };
    let (answers, moment) = match several {
        [_] => inquiries.ask(look).await?,
        _ => inquiries.ask_together(look).await?,
    };
    let mut answers = answers.into_iter();
    let each = several.iter().map(|wishes| {
        let own = answers.by_ref().take(wishes.rooms.len());
        (own.collect(), moment.clone())
    });
    Ok(each.collect())
}

/// The answers to the questions of several.
async fn judge_several(
    inquiries: &Inquiries,
    several: &[Arc<Vec<Question>>],
) -> Result<Vec<Vec<bool>>, NotTold> {
    let look = async |journal: &Journal| {
        let questions = several.iter().flat_map(|questions| questions.iter());
        let questions: Vec<_> = questions.map(Question::asked).collect();
        journal.judge(&questions).await
    };
    let answers = match several {
        [_] => inquiries.ask(look).await?,
        _ => inquiries.ask_together(look).await?,
    };
    let mut answers = answers.into_iter();
    let each = several
        .iter()
        .map(|questions| answers.by_ref().take(questions.len()).collect());
    Ok(each.collect())
}

async fn judge(
    inquiries: &Inquiries,
    inquiry: &Inquiry,
    answers: &mut Vec<bool>,
) -> Result<(), NotTold> {
    let mut pieces = Pieces::default();
    while let Some(questions) = pieces.next(&inquiry.questions, answers.len()) {
        let asked: Vec<_> = questions.iter().map(Question::asked).collect();
        let told = inquiries
            .ask(async |journal| journal.judge(&asked).await)
            .await;
        pieces.take(told, answers)?;
    }
    Ok(())
}

/// Knows in which rooms records are.
#[derive(Clone)]
pub struct Placement {
    inquiries: Arc<Inquiries>,
    known: Arc<Mutex<Known>>,
}

/// Of what a standing is: the module, and the access columns.
type Access = (Arc<str>, String);

struct Known {
    standings: Answers<Access, Arc<Standing>, RandomState>,
    next: u64,
    /// Grows whenever standings are forgotten: what was asked before is not remembered.
    era: u64,
    /// Whether some are asked for again.
    asking_again: bool,
}

impl Known {
    /// The standing by an answer: the one that was known, if it says nothing else.
    fn standing(
        &mut self,
        access: &Access,
        rooms: Vec<String>,
        known: Option<&Arc<Standing>>,
    ) -> Arc<Standing> {
        let is_same = |known: &&Arc<Standing>| {
            let mut were: Vec<&String> = known.rooms().collect();
            let mut are: Vec<&String> = rooms.iter().collect();
            were.sort_unstable();
            are.sort_unstable();
            were == are
        };
        if let Some(known) = known.filter(is_same) {
            return known.clone();
        }
        let (number, (module, access)) = (self.next, access);
        self.next += 1;
        Arc::new(Standing::of(number, module.clone(), access, &rooms))
    }

    /// Takes in answers to what was asked in an era, and known before or not; gives back what follows from each,
    /// None where the policy raised.
    fn know(
        &mut self,
        era: u64,
        asked: Vec<(Access, Option<Arc<Standing>>)>,
        places: Vec<Option<Vec<String>>>,
    ) -> Vec<Option<Arc<Standing>>> {
        // not into a turn that is long over
        self.standings.pass();
        self.standings.expect(asked.len());
        let mut standings = Vec::with_capacity(asked.len());
        for ((access, known), rooms) in asked.into_iter().zip(places) {
            let standing = rooms.map(|rooms| self.standing(&access, rooms, known.as_ref()));
            if let Some(standing) = standing.as_ref().filter(|_| self.era == era) {
                self.standings.insert(access, standing.clone());
            }
            standings.push(standing);
        }
        standings
    }
}

impl Placement {
    /// Asks by these sessions.
    pub fn new(inquiries: Inquiries) -> Placement {
        Placement {
            inquiries: Arc::new(inquiries),
            known: Arc::new(Mutex::new(Known {
                standings: Answers::new(MOST_STANDINGS),
                next: 0,
                era: 0,
                asking_again: false,
            })),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds out how these records stood and stand. What cannot be judged becomes an upheaval of its
    /// module.
    pub async fn place(&self, changes: &mut [Change], registry: &Registry) -> Result<(), NotTold> {
        let mut accesses = Accesses::default();
        let numbers: Vec<_> = (changes.iter_mut())
            .map(|change| accesses.of(change, registry))
            .collect();
        let standings = self.standings(accesses.each()).await?;
        for (change, (before, after)) in changes.iter_mut().zip(numbers) {
            let stand = |number: Option<usize>| match number {
                None => Some(None),
                Some(number) => standings[number].clone().map(Some),
            };
            if let (Some(before), Some(after)) = (stand(before), stand(after)) {
                change.before = before;
                change.after = after;
            } else {
                tracing::error!(seq = change.seq, module = %change.module, "crm_relay.rooms_of() raised for this row: its module's rooms fetch anew");
                change.action = Action::Truncated;
            }
        }
        self.find_heirs(changes, registry).await
    }

    /// The standings of these; None where the policy raises.
    async fn standings(
        &self,
        accesses: Vec<Access>,
    ) -> Result<Vec<Option<Arc<Standing>>>, NotTold> {
        let mut standings = vec![None; accesses.len()];
        let mut missing = Vec::new();
        let mut wanted = Vec::new();
        let mut aged: HashMap<Access, Arc<Standing>> = HashMap::new();
        let era = {
            let mut known = self.known();
            known.standings.pass();
            for (number, access) in accesses.into_iter().enumerate() {
                let Some(standing) = known.standings.get(&access).cloned() else {
                    missing.push(number);
                    wanted.push((access, None));
                    continue;
                };
                standings[number] = Some(standing.clone());
                if known.standings.recent(&access).is_none() {
                    aged.insert(access, standing);
                }
            }
            if !aged.is_empty() && !known.asking_again {
                known.asking_again = true;
                tokio::spawn(self.clone().ask_again(known.era, aged));
            }
            known.era
        };
        if wanted.is_empty() {
            return Ok(standings);
        }
        let mut places = Vec::new();
        let asked = self.ask_places(&wanted, &mut places).await;
        let found = self.known().know(era, wanted, places);
        // what was answered before is known when this is asked again
        asked?;
        for (number, standing) in missing.into_iter().zip(found) {
            standings[number] = standing;
        }
        Ok(standings)
    }

    /// Asks again for what is told by an answer that is not new any more. Whatever is not answered now is
    /// asked for again when it is needed.
    async fn ask_again(self, era: u64, aged: HashMap<Access, Arc<Standing>>) {
        let aged: Vec<_> = (aged.into_iter())
            .map(|(access, known)| (access, Some(known)))
            .collect();
        let mut places = Vec::new();
        if let Err(error) = self.ask_places(&aged, &mut places).await {
            tracing::warn!(%error, "could not ask the policy again: what is known counts for now");
        }
        let mut known = self.known();
        known.know(era, aged, places);
        known.asking_again = false;
    }

    async fn ask_places(
        &self,
        wanted: &[(Access, Option<Arc<Standing>>)],
        places: &mut Vec<Option<Vec<String>>>,
    ) -> Result<(), NotTold> {
        let wanted: Vec<(&str, &str)> = (wanted.iter())
            .map(|((module, access), _)| (&**module, access.as_str()))
            .collect();
        let mut pieces = Pieces::default();
        while let Some(piece) = pieces.next(&wanted, places.len()) {
            let told = (self.inquiries)
                .ask(async |journal| journal.places(piece).await)
                .await;
            pieces.take(told, places)?;
        }
        Ok(())
    }

    /// Finds the records whose access may have changed with these. Also with those that are new: a record
    /// may have named one that was yet to come, and who may see it then is the policy's to say.
    async fn find_heirs(&self, changes: &mut [Change], registry: &Registry) -> Result<(), NotTold> {
        let is_concerned = |change: &Change| {
            change.part.is_none()
                && change.before != change.after
                && registry.has_heirs(&change.module)
        };
        let mut wanted: HashMap<&Arc<str>, HashSet<&str>> = HashMap::new();
        for change in changes.iter().filter(|change| is_concerned(change)) {
            let ids = wanted.entry(&change.module).or_default();
            ids.insert(&change.record_id);
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let mut heirs: HashMap<(Arc<str>, String), Vec<Heir>> = HashMap::new();
        let modules: HashSet<Arc<str>> = wanted.keys().map(|&module| module.clone()).collect();
        for (module, ids) in wanted {
            let ids: Vec<&str> = ids.into_iter().collect();
            let mut found = Vec::new();
            let mut pieces = Pieces::default();
            while let Some(piece) = pieces.next(&ids, found.len()) {
                let told = (self.inquiries)
                    .ask(async |journal| journal.heirs(module, piece).await)
                    .await;
                pieces.take(told, &mut found)?;
            }
            let records = ids.iter().map(|&id| (module.clone(), id.to_owned()));
            heirs.extend(records.zip(found));
        }
        for change in changes.iter_mut().filter(|change| is_concerned(change)) {
            let record = (change.module.clone(), change.record_id.clone());
            change.heirs = heirs.get(&record).cloned().unwrap_or_default();
        }
        // where the heirs are placed depends on it
        let mut known = self.known();
        known.era += 1;
        known.standings.retain(|(module, _)| {
            let known = registry.module(module);
            let of = known.and_then(|known| known.access_of.as_deref());
            !of.is_some_and(|of| modules.contains(of))
        });
        Ok(())
    }

    /// Everything is to be asked again: who users are, or what records depend on, has changed.
    pub fn forget(&self) {
        let mut known = self.known();
        known.era += 1;
        known.standings.clear();
    }
}

/// The access columns of several changes' images, each once and by a number.
#[derive(Default)]
struct Accesses(HashMap<Access, usize>);

impl Accesses {
    /// Those of a change, before and after; an image that is none makes it an upheaval.
    fn of(&mut self, change: &mut Change, registry: &Registry) -> (Option<usize>, Option<usize>) {
        let Some(module) = registry.module(&change.module) else {
            return (None, None);
        };
        let (old, new) = match change.record_image.as_deref() {
            None => (change.old_image.as_deref(), change.new_image.as_deref()),
            record => (record, record),
        };
        let [before, after] = [old, new]
            .map(|image| image.map(|image| standing::Access::of(image, &module.access_columns)));
        match (before.transpose(), after.transpose()) {
            (Ok(before), Ok(after)) => {
                let is = after.as_ref().map(|after| self.number(change, after));
                // as in almost every update
                let is_same = before == after;
                let was = before.filter(|_| !is_same);
                let was = was.map(|before| self.number(change, &before));
                (if is_same { is } else { was }, is)
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(seq = change.seq, %error, "an image that cannot be read: its module's rooms fetch anew");
                change.action = Action::Truncated;
                (None, None)
            }
        }
    }

    fn number(&mut self, change: &Change, access: &standing::Access<'_>) -> usize {
        let next = self.0.len();
        let access = (change.module.clone(), access.json());
        *self.0.entry(access).or_insert(next)
    }

    /// By their numbers.
    fn each(self) -> Vec<Access> {
        let mut each: Vec<_> = self.0.into_iter().collect();
        each.sort_unstable_by_key(|(_, number)| *number);
        each.into_iter().map(|(access, _)| access).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Database;
    use crate::registry::{KeyForm, Module};

    /// Asks nobody.
    fn alone() -> Placement {
        let database = Database::of("postgresql://nobody@127.0.0.1:1/nothing").unwrap();
        Placement::new(Inquiries::new(database, "test", 1))
    }

    #[tokio::test]
    async fn what_is_not_answered_is_asked_again_and_no_upheaval() {
        let registry = Registry::of([Module {
            name: "leads".into(),
            event: "LEAD".to_owned(),
            key_columns: vec!["id".to_owned()],
            key: KeyForm::Text,
            quiet_columns: Vec::new(),
            access_columns: vec!["team".to_owned()],
            is_narrow: false,
            access_of: None,
            missing: Vec::new(),
            is_part: false,
        }]);
        let image = |team: u32| Some(format!(r#"{{"id":1,"team":{team}}}"#));
        let mut changes = [Change {
            seq: 1,
            txid: 1,
            module: "leads".into(),
            action: Action::Updated,
            record_id: "1".to_owned(),
            part: None,
            actor: None,
            changed_at: std::time::SystemTime::UNIX_EPOCH,
            depth: 1,
            old_image: image(1),
            new_image: image(2),
            record_image: None,
            before: None,
            after: None,
            heirs: Vec::new(),
        }];
        assert!(alone().place(&mut changes, &registry).await.is_err());
        assert_eq!(changes[0].action, Action::Updated);
        assert_eq!(changes[0].before, None);
    }

    #[test]
    fn a_standing_that_is_asked_again_is_the_same_unless_its_rooms_are_others() {
        let placement = alone();
        let mut known = placement.known();
        let mut know = |era, rooms: Option<&str>| {
            let access = (Arc::from("leads"), r#"{"team":1}"#.to_owned());
            let rooms = rooms.map(|room| vec![room.to_owned()]);
            let before = known.standings.get(&access).cloned();
            let told = known.know(era, vec![(access.clone(), before)], vec![rooms]);
            (
                told[0].as_ref().map(|standing| standing.number),
                known.standings.get(&access).map(|known| known.number),
            )
        };
        assert_eq!(know(0, Some("team:1")), (Some(0), Some(0)));
        assert_eq!(know(0, Some("team:1")), (Some(0), Some(0)));
        assert_eq!(know(0, Some("team:2")), (Some(1), Some(1)));
        // it raises: what is known counts for as long as it does
        assert_eq!(know(0, None), (None, Some(1)));
        // asked before all was forgotten: told, and not remembered
        assert_eq!(know(7, Some("team:1")), (Some(2), Some(1)));
    }
}
