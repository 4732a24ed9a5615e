//! Who may see what is told: what the policy said is remembered here, and what it was not asked yet is
//! asked before anything is told.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::{FxBuildHasher, FxHashMap};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Agreed, Asked, Bearer, Command, ITSELF, Inquiry, Member, Rooms, Verdicts, abandon};
use crate::answers::{Answers, REMEMBERED};
use crate::event::{Changed, Event};
use crate::frame::{self, Frame};
use crate::outbox::Close;
use crate::policy::{Credential, Question};
use crate::registry::is_scope;
use crate::replay::Eyes;
use crate::standing::Standing;

/// Most answers that are remembered.
const MOST_VERDICTS: usize = 1_000_000;

/// Most questions that are asked again at once, and most that wait for it.
const ASKED_AGAIN: usize = 1000;
const MOST_AGAIN: usize = 100_000;

/// How long after an access that may have changed for many everybody is asked about again.
const REVIEW_SOON: Duration = Duration::from_secs(10);

/// Most rooms that are reviewed by one question.
const ROOMS_A_REVIEW: usize = 500;

/// The ways to the policy, one for what must be told now and one for the rest.
#[derive(Debug, Clone)]
pub struct Judges {
    /// Takes [`Asked::Judge`]; one question is out at a time.
    pub now: mpsc::Sender<Asked>,
    /// Takes [`Asked::JudgeAgain`] and [`Asked::Review`]; the same.
    pub later: mpsc::Sender<Asked>,
}

/// Questions, by credential and standing.
pub(super) type Questions = FxHashMap<(u64, u64), Question>;

/// Of what is to be told, what the policy is to be asked.
#[derive(Default)]
pub(super) struct Doubts {
    /// What nobody has judged: it must be asked before.
    pub unknown: Questions,
    /// What is told by an answer that is not new any more: it is asked again beside.
    pub aged: Questions,
}

/// What is known of who may see what.
pub(super) struct Access {
    /// Where questions go; None where everybody may see everything.
    judges: Option<Judges>,
    /// By credential and standing.
    verdicts: Answers<(u64, u64), bool, FxBuildHasher>,
    /// Grows whenever answers are forgotten.
    era: u64,
    /// Grows whenever something else is known.
    version: u64,
    /// Whether an answer is awaited.
    asking: bool,
    /// What is to be asked again, with what is.
    again: Questions,
    asking_again: Vec<(u64, u64)>,
    /// What is yet to be asked for that nothing waits for.
    later: VecDeque<Asked>,
    asking_later: bool,
    /// What became live while a review is out, whose answer may be older than the grant.
    begun: HashSet<(Member, Arc<str>)>,
    /// When everybody is to be reviewed.
    pub review_at: Option<Instant>,
}

/// One member, as a replay needs them.
pub(super) struct Looking<'a> {
    pub access: &'a Access,
    pub who: Option<&'a Arc<Credential>>,
}

impl Eyes for Looking<'_> {
    fn see(&self, changed: &Changed) -> (bool, bool) {
        self.access.sees(self.who, changed)
    }

    fn user(&self) -> Option<&str> {
        self.who.map(|who| who.user.as_str())
    }
}

impl Access {
    /// Everybody may see everything.
    pub fn open() -> Access {
        Access {
            judges: None,
            verdicts: Answers::new(MOST_VERDICTS),
            era: 0,
            version: 0,
            asking: false,
            again: Questions::default(),
            asking_again: Vec::new(),
            later: VecDeque::new(),
            asking_later: false,
            begun: HashSet::new(),
            review_at: None,
        }
    }

    /// Asks these from now on.
    pub fn begin(&mut self, judges: Judges) {
        self.judges = Some(judges);
        self.review_at = Some(Instant::now() + REMEMBERED);
    }

    /// Whether everybody may see everything.
    pub fn is_open(&self) -> bool {
        self.judges.is_none()
    }

    /// Whether somebody may see a record as it was before and as it is after a change. Where it was
    /// not there before, or is not there after, the other answer counts for both.
    pub fn sees(&self, who: Option<&Arc<Credential>>, changed: &Changed) -> (bool, bool) {
        let Some(who) = who else {
            // nobody in particular: only where nobody is asked
            return (self.is_open(), self.is_open());
        };
        let verdict = |number: u64| self.verdicts.get(&(who.number, number)).copied();
        let (before, after) = changed.standings();
        let (before, after) = (before.map(|old| old.number), after.map(|new| new.number));
        // what nobody has judged is not seen
        let seen_after = after.map(|number| verdict(number).unwrap_or(false));
        let seen_before = match before == after {
            true => seen_after,
            false => before.map(|number| verdict(number).unwrap_or(false)),
        };
        (
            seen_before.or(seen_after).unwrap_or(false),
            seen_after.or(seen_before).unwrap_or(false),
        )
    }

    /// Adds what is to be asked when this one is told of this change; tells whether nothing is, and they may
    /// see it as it was and as it is.
    pub fn doubt(&self, who: &Arc<Credential>, changed: &Changed, doubts: &mut Doubts) -> bool {
        let (before, after) = changed.standings();
        let mut sees = before.is_some() || after.is_some();
        let other = before.filter(|old| after.is_none_or(|new| new.number != old.number));
        for standing in after.into_iter().chain(other) {
            let key = (who.number, standing.number);
            if let Some(&yes) = self.verdicts.recent(&key) {
                sees &= yes;
                continue;
            }
            sees = false;
            let questions = match self.verdicts.get(&key) {
                None => &mut doubts.unknown,
                Some(_) if doubts.aged.len() < MOST_AGAIN => &mut doubts.aged,
                Some(_) => continue,
            };
            questions.entry(key).or_insert_with(|| Question {
                who: who.clone(),
                standing: standing.clone(),
            });
        }
        sees
    }

    /// What all members of a room have to agree on to see this change.
    pub fn agreed(&self, changed: &Changed) -> Agreed {
        let (before, after) = changed.standings();
        let number = |standing: &Arc<Standing>| standing.number;
        (before.map(number), after.map(number), self.version)
    }

    /// These questions, as they are to be asked now: those of one person together, who is looked up once
    /// for all that are asked at once.
    pub fn inquiry(&self, questions: Questions) -> Inquiry {
        let mut questions: Vec<Question> = questions.into_values().collect();
        questions.sort_unstable_by_key(|question| (question.who.number, question.standing.number));
        Inquiry {
            questions,
            era: self.era,
        }
    }

    /// Asks, unless an answer is awaited already.
    pub fn ask(&mut self, questions: Questions) {
        if self.asking || questions.is_empty() {
            return;
        }
        let inquiry = self.inquiry(questions);
        if let Some(judges) = &self.judges {
            self.asking = judges.now.try_send(Asked::Judge(inquiry)).is_ok();
        }
    }

    /// Takes in the answers that were awaited.
    pub fn judged(&mut self, verdicts: Verdicts) {
        self.asking = false;
        self.know(verdicts);
    }

    /// Asks again, some at a time.
    pub fn ask_again(&mut self, questions: Questions) {
        let left = MOST_AGAIN.saturating_sub(self.again.len());
        self.again.extend(questions.into_iter().take(left));
        if !self.asking_again.is_empty() || self.again.is_empty() {
            return;
        }
        let some = self.again.iter().take(ASKED_AGAIN);
        let some: Questions = some.map(|(key, asked)| (*key, asked.clone())).collect();
        self.asking_again.extend(some.keys());
        self.later.push_front(Asked::JudgeAgain(self.inquiry(some)));
        self.ask_later();
    }

    /// Takes in answers that nothing waited for; what there is no answer to is asked when it is needed.
    pub fn judged_again(&mut self, verdicts: Verdicts) {
        for key in self.asking_again.drain(..) {
            self.again.remove(&key);
        }
        self.know(verdicts);
        self.asking_later = false;
        // first what waits already: who may no longer be where they are must not wait for the rest
        self.ask_later();
        self.ask_again(Questions::default());
    }

    /// Lets time pass for what is known.
    pub fn pass(&mut self) {
        if self.verdicts.pass() {
            self.version += 1;
        }
    }

    /// Takes in answers.
    pub fn know(&mut self, verdicts: Verdicts) {
        if verdicts.era != self.era {
            return; // they may be about what is no longer so
        }
        // not into a turn that is long over
        self.pass();
        self.version += 1;
        self.verdicts.expect(verdicts.answers.len());
        for (question, yes) in verdicts.answers {
            let key = (question.who.number, question.standing.number);
            self.verdicts.insert(key, yes);
        }
    }

    /// Forgets all answers: what they depended on is another now.
    pub fn forget(&mut self) {
        self.verdicts.clear();
        self.again.clear();
        self.era += 1;
        self.version += 1;
    }

    /// Everybody is to be asked about, soon.
    pub fn review_soon(&mut self) {
        let soon = Instant::now() + REVIEW_SOON;
        if !self.is_open() && self.review_at.is_none_or(|at| at > soon) {
            self.review_at = Some(soon);
        }
    }

    /// Asks about these, when it is their turn; first of all where it must be at once.
    fn review(&mut self, rooms: Vec<(Arc<Credential>, Arc<str>)>, resync: bool, at_once: bool) {
        for some in rooms.chunks(ROOMS_A_REVIEW) {
            let asked = Asked::Review {
                rooms: some.to_vec(),
                resync,
            };
            if at_once {
                self.later.push_front(asked);
            } else {
                self.later.push_back(asked);
            }
        }
        self.ask_later();
    }

    /// Sends the next question out that nothing waits for, if none is.
    fn ask_later(&mut self) {
        let Some(judges) = &self.judges else {
            self.later.clear();
            return;
        };
        if !self.asking_later
            && let Some(asked) = self.later.pop_front()
        {
            self.begun.clear();
            self.asking_later = judges.later.try_send(asked).is_ok();
        }
    }

    /// A room of a member has become live.
    pub fn begun(&mut self, member: Member, room: &Arc<str>) {
        if self.asking_later {
            self.begun.insert((member, room.clone()));
        }
    }
}

impl Rooms {
    /// The policy decides who may see what.
    pub fn judged_by(mut self, judges: Judges) -> Rooms {
        self.access.begin(judges);
        self
    }

    /// Adds what is to be asked when these events are told: nothing for rooms that the present
    /// transaction floods, when they are of it.
    pub(super) fn doubts(&self, events: &[Event], is_present: bool, doubts: &mut Doubts) {
        if self.access.is_open() {
            return;
        }
        for event in events {
            let Event::Changed(changed) = event else {
                continue;
            };
            let rooms = changed.rooms().map(|(room, _)| room);
            let rooms = rooms.filter(|room| !is_present || !self.is_flooded(room));
            let agreed = self.access.agreed(changed);
            for room in rooms.filter_map(|room| self.rooms.get(room)) {
                if room.all_see.get() == Some(agreed) {
                    continue;
                }
                let mut all_see = true;
                for (member, membership) in self.of(room) {
                    all_see &= match membership.who() {
                        Some(who) => self.access.doubt(who, changed, doubts),
                        None => member == ITSELF,
                    };
                }
                if all_see {
                    room.all_see.set(Some(agreed));
                }
            }
        }
    }

    /// Whoever is in a room is asked about again.
    pub(super) fn review_everybody(&mut self) {
        self.access.review_at = Some(Instant::now() + REMEMBERED);
        let mut later = self.access.later.iter();
        if later.any(|asked| matches!(asked, Asked::Review { .. })) {
            // when those who are asked about now are not any more
            return self.access.review_soon();
        }
        let all = self.held_by(|_, _| true);
        self.access.review(all, false, false);
    }

    /// Whether a token is of before its user was thrown out; one that does not say when it was issued
    /// may be.
    pub(super) fn is_refused(&self, bearer: Option<&Bearer>) -> bool {
        bearer.is_some_and(|bearer| {
            let thrown_out = self.disconnected.get(&bearer.who.user);
            thrown_out.is_some_and(|at| bearer.issued_at.is_none_or(|issued| issued <= *at))
        })
    }

    /// A connection has another token: its rooms are asked about again, at once, where that says
    /// something else.
    pub(super) fn renew(&mut self, member: Member, bearer: Bearer, accepted: &Frame) {
        let is_refused = self.is_refused(Some(&bearer));
        let Some(membership) = self.members.get_mut(&member) else {
            return;
        };
        if is_refused {
            return membership.outbox.close(Close::DISCONNECTED);
        }
        membership.outbox.push(accepted.clone());
        let known = membership.bearer.replace(bearer.clone());
        if known.is_some_and(|known| known.who.number == bearer.who.number) {
            return;
        }
        for room in membership
            .rooms
            .iter()
            .filter_map(|room| self.rooms.get(room))
        {
            room.all_see.set(None);
        }
        let rooms = membership.rooms.iter();
        let rooms = rooms.map(|room| (bearer.who.clone(), room.clone()));
        let rooms = rooms.collect();
        self.access.review(rooms, false, true);
    }

    /// Whose rooms those are that this is so of, each once.
    fn held_by(
        &self,
        which: impl Fn(&Credential, &str) -> bool,
    ) -> Vec<(Arc<Credential>, Arc<str>)> {
        let mut known = HashSet::new();
        let mut held = Vec::new();
        for membership in self.members.values() {
            let Some(who) = membership.who() else {
                continue;
            };
            for room in &membership.rooms {
                if which(who, room) && known.insert((who.number, room)) {
                    held.push((who.clone(), room.clone()));
                }
            }
        }
        held
    }

    /// Whose these rooms are, each once.
    fn held_in(&self, rooms: &HashSet<&str>) -> Vec<(Arc<Credential>, Arc<str>)> {
        let mut held = Vec::new();
        for (room, of_room) in rooms
            .iter()
            .filter_map(|room| self.rooms.get_key_value(*room))
        {
            let mut known = HashSet::new();
            for (_, membership) in self.of(of_room) {
                if let Some(who) = membership.who()
                    && known.insert(who.number)
                {
                    held.push((who.clone(), room.clone()));
                }
            }
        }
        held
    }

    /// What this transaction changes of who may see what: before any of it is told.
    pub(super) fn begin_upheaval(&mut self, events: &[Event]) {
        let is_upheaval = |event: &Event| match event {
            Event::Changed(changed) => !changed.heirs().is_empty(),
            Event::UserChanged { .. } => true,
            Event::Truncated { .. } | Event::Disconnected { .. } => false,
        };
        if !self.access.is_open() && events.iter().any(is_upheaval) {
            self.access.forget();
        }
    }

    /// Asks again about those whose access it may have changed, and has them fetch anew what may have
    /// changed with it; who was thrown out goes.
    pub(super) fn end_upheaval(&mut self, events: &[Event]) {
        if self.access.is_open() {
            return;
        }
        // of all of it at once: a bulk is thousands of them
        let mut orphans: HashSet<&str> = HashSet::new();
        let mut users: HashSet<&str> = HashSet::new();
        let mut anybody = false;
        let mut of_heirs: HashSet<&str> = HashSet::new();
        let mut scopes: HashSet<&str> = HashSet::new();
        let mut disconnected: HashSet<&str> = HashSet::new();
        for event in events {
            match event {
                Event::Changed(changed) => {
                    for heir in changed.heirs() {
                        orphans.insert(&heir.room);
                        of_heirs.extend(heir.rooms.iter().map(String::as_str));
                    }
                }
                Event::UserChanged { user, rooms, .. } => {
                    match user {
                        Some(user) => _ = users.insert(user),
                        None => anybody = true,
                    }
                    scopes.extend(rooms.iter().map(String::as_str));
                }
                Event::Disconnected { user, at, .. } => {
                    self.disconnected.insert(user.clone(), *at);
                    disconnected.insert(user);
                }
                Event::Truncated { .. } => {}
            }
        }
        // nearly all events concern nobody here, and everybody is not walked through for them
        let concerned = if anybody || !users.is_empty() {
            self.access.review_soon();
            let is_theirs = |who: &Credential| anybody || users.contains(who.user.as_str());
            self.held_by(|who, room| orphans.contains(room) || is_theirs(who))
        } else {
            self.held_in(&orphans)
        };
        if !concerned.is_empty() {
            self.access.review(concerned, true, true);
        }
        let is_within = |room: &str| {
            let mut ends = room.match_indices('/').map(|(end, _)| &room[..end]);
            scopes.contains(room) || ends.any(|scope| scopes.contains(scope))
        };
        let of_heirs = of_heirs.into_iter().filter(|room| is_scope(room));
        let mut moved: HashSet<Arc<str>> =
            of_heirs.filter_map(|room| self.known_room(room)).collect();
        if !scopes.is_empty() {
            let scope_rooms = self.rooms.keys().filter(|room| is_scope(room));
            moved.extend(scope_rooms.filter(|room| is_within(room)).cloned());
        }
        self.resync(&moved.into_iter().collect::<Vec<_>>(), "access_changed");
        if !disconnected.is_empty() {
            // all of theirs, whatever the clock says of their tokens
            for membership in self.members.values() {
                let who = membership.who();
                if who.is_some_and(|who| disconnected.contains(who.user.as_str())) {
                    membership.outbox.close(Close::DISCONNECTED);
                }
            }
        }
    }

    /// Closes the connections that are there with tokens of before their user was thrown out.
    pub(super) fn throw_out(&self) {
        for membership in self.members.values() {
            if self.is_refused(membership.bearer.as_ref()) {
                membership.outbox.close(Close::DISCONNECTED);
            }
        }
    }

    /// Takes rooms away from those who may no longer be in them; the others fetch anew where it is
    /// asked for: what they were told meanwhile was judged by who they were for a moment.
    pub(super) fn reviewed(&mut self, rooms: Vec<(Arc<Credential>, Arc<str>, bool)>, resync: bool) {
        self.access.asking_later = false;
        let begun = std::mem::take(&mut self.access.begun);
        let mut again = Vec::new();
        let mut lost: HashSet<(Member, Arc<str>)> = HashSet::new();
        let mut told: FxHashMap<Member, Vec<serde_json::Value>> = FxHashMap::default();
        for (who, room, granted) in rooms {
            let of_room = self.rooms.get(&room).into_iter();
            for (member, membership) in of_room.flat_map(|room| self.of(room)) {
                let known = membership.who();
                if known.is_none_or(|known| known.number != who.number) {
                    continue;
                }
                if !granted && begun.contains(&(member, room.clone())) {
                    again.push((who.clone(), room.clone()));
                } else if !granted {
                    lost.insert((member, room.clone()));
                } else if resync {
                    let one = json!({"room": &*room, "reason": "access_changed"});
                    told.entry(member).or_default().push(one);
                }
            }
        }
        self.revoke(lost);
        for (member, rooms) in told {
            self.metrics.resynced("access_changed", rooms.len());
            self.tell(member, &json!({"type": "resync", "rooms": rooms}));
        }
        self.access.review(again, resync, true);
    }

    /// Takes rooms away from members, and tells them.
    pub(super) fn revoke(&mut self, lost: HashSet<(Member, Arc<str>)>) {
        let mut by_member: FxHashMap<Member, Vec<Arc<str>>> = FxHashMap::default();
        for (member, room) in lost {
            by_member.entry(member).or_default().push(room);
        }
        for (member, mut rooms) in by_member {
            let Some(membership) = self.members.get_mut(&member) else {
                continue;
            };
            rooms.sort_unstable();
            for room in &rooms {
                membership.rooms.remove(room);
                abandon(&mut self.rooms, room.clone(), member);
            }
            tracing::info!(connection = %membership.session, rooms = rooms.len(), "revoked");
            self.metrics.revoked.inc_by(rooms.len() as u64);
            let names: Vec<&str> = rooms.iter().map(|room| &**room).collect();
            let text = json!({"type": "revoked", "rooms": names, "reason": "access_lost"});
            membership
                .outbox
                .push(frame::text(text.to_string().as_bytes()));
        }
    }
}

/// News that wait until the policy has answered.
pub(super) type Pending = VecDeque<Command>;
