//! Who may see what is told: what the policy said is remembered here, and what it was not asked yet is
//! asked before anything is told.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Asked, Bearer, Command, Inquiry, Member, Rooms, Verdicts, abandon};
use crate::event::{Changed, Event};
use crate::frame::{self, Frame};
use crate::outbox::Close;
use crate::policy::{Credential, Question, REMEMBERED};
use crate::registry::is_scope;
use crate::replay::Eyes;

/// Most answers that are remembered.
const MOST_VERDICTS: usize = 1_000_000;

/// How long after an access that may have changed for many everybody is asked about again.
const REVIEW_SOON: Duration = Duration::from_secs(10);

/// Most rooms that are reviewed by one question.
const ROOMS_A_REVIEW: usize = 500;

/// The ways to the policy, one for what must be told now and one for the rest.
#[derive(Debug, Clone)]
pub struct Judges {
    /// Takes [`Asked::Judge`]; one question is out at a time.
    pub now: mpsc::Sender<Asked>,
    /// Takes [`Asked::Review`]; the same.
    pub later: mpsc::Sender<Asked>,
}

/// What is known of who may see what.
#[derive(Default)]
pub(super) struct Access {
    /// Where questions go; None where everybody may see everything.
    judges: Option<Judges>,
    /// By credential and standing.
    verdicts: FxHashMap<(u64, u64), bool>,
    /// Grows whenever answers are forgotten.
    era: u64,
    /// Whether an answer is awaited.
    asking: bool,
    /// Reviews that are yet to be asked for.
    reviews: VecDeque<Asked>,
    reviewing: bool,
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

    /// Adds what must be asked before this one can be told of this change.
    pub fn doubt(
        &self,
        who: &Arc<Credential>,
        changed: &Changed,
        doubts: &mut FxHashMap<(u64, u64), Question>,
    ) {
        let (before, after) = changed.standings();
        let other = before.filter(|old| after.is_none_or(|new| new.number != old.number));
        for standing in after.into_iter().chain(other) {
            let key = (who.number, standing.number);
            if !self.verdicts.contains_key(&key) {
                doubts.entry(key).or_insert_with(|| Question {
                    who: who.clone(),
                    standing: standing.clone(),
                });
            }
        }
    }

    /// These questions, as they are to be asked now: those of one person together, who is looked up once
    /// for all that are asked at once.
    pub fn inquiry(&self, doubts: FxHashMap<(u64, u64), Question>) -> Inquiry {
        let mut questions: Vec<Question> = doubts.into_values().collect();
        questions.sort_unstable_by_key(|question| (question.who.number, question.standing.number));
        Inquiry {
            questions,
            era: self.era,
        }
    }

    /// Asks, unless an answer is awaited already.
    pub fn ask(&mut self, doubts: FxHashMap<(u64, u64), Question>) {
        if self.asking || doubts.is_empty() {
            return;
        }
        let inquiry = self.inquiry(doubts);
        if let Some(judges) = &self.judges {
            self.asking = judges.now.try_send(Asked::Judge(inquiry)).is_ok();
        }
    }

    /// Takes in the answers that were awaited.
    pub fn judged(&mut self, verdicts: Verdicts) {
        self.asking = false;
        self.know(verdicts);
    }

    /// Takes in answers.
    pub fn know(&mut self, verdicts: Verdicts) {
        if verdicts.era != self.era {
            return; // they may be about what is no longer so
        }
        if self.verdicts.len() + verdicts.answers.len() > MOST_VERDICTS {
            self.verdicts.clear();
        }
        let answers = verdicts.answers.into_iter();
        self.verdicts.extend(
            answers.map(|(question, yes)| ((question.who.number, question.standing.number), yes)),
        );
    }

    /// Forgets all answers: what they depended on is another now.
    pub fn forget(&mut self) {
        self.verdicts.clear();
        self.era += 1;
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
                self.reviews.push_front(asked);
            } else {
                self.reviews.push_back(asked);
            }
        }
        self.review_next();
    }

    /// Sends the next question out, if none is.
    fn review_next(&mut self) {
        let Some(judges) = &self.judges else {
            self.reviews.clear();
            return;
        };
        if !self.reviewing
            && let Some(asked) = self.reviews.pop_front()
        {
            self.begun.clear();
            self.reviewing = judges.later.try_send(asked).is_ok();
        }
    }

    /// A room of a member has become live.
    pub fn begun(&mut self, member: Member, room: &Arc<str>) {
        if self.reviewing {
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

    /// Adds what must be asked before these events can be told: nothing for rooms that the present
    /// transaction floods, when they are of it.
    pub(super) fn doubts(
        &self,
        events: &[Event],
        is_present: bool,
        doubts: &mut FxHashMap<(u64, u64), Question>,
    ) {
        if self.access.is_open() {
            return;
        }
        for event in events {
            let Event::Changed(changed) = event else {
                continue;
            };
            let rooms = changed.rooms().map(|(room, _)| room);
            let rooms = rooms.filter(|room| !is_present || !self.is_flooded(room));
            let members = rooms.filter_map(|room| self.rooms.get(room));
            let memberships = members.flatten().filter_map(|id| self.members.get(id));
            for who in memberships.filter_map(|membership| membership.who()) {
                self.access.doubt(who, changed, doubts);
            }
        }
    }

    /// All are asked about again.
    pub(super) fn review_everybody(&mut self) {
        self.access.forget();
        self.access.review_at = Some(Instant::now() + REMEMBERED);
        if self.access.reviews.is_empty() {
            let all = self.held_by(|_, _| true);
            self.access.review(all, false, false);
        }
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
        for (room, members) in rooms
            .iter()
            .filter_map(|room| self.rooms.get_key_value(*room))
        {
            let mut known = HashSet::new();
            for membership in members.iter().filter_map(|member| self.members.get(member)) {
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
        self.access.reviewing = false;
        let begun = std::mem::take(&mut self.access.begun);
        let mut again = Vec::new();
        let mut lost: HashSet<(Member, Arc<str>)> = HashSet::new();
        let mut told: FxHashMap<Member, Vec<serde_json::Value>> = FxHashMap::default();
        for (who, room, granted) in rooms {
            for &member in self.rooms.get(&room).into_iter().flatten() {
                let membership = self.members.get(&member);
                let is_they = membership
                    .and_then(|membership| membership.who())
                    .is_some_and(|known| known.number == who.number);
                if !is_they {
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
                if let Some(members) = self.fresh.get_mut(room) {
                    members.remove(&member);
                }
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
