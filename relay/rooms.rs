//! Rooms: who gets which event.
//!
//! One task owns them all ([`Rooms::run`]); connections and the reader send it commands through one
//! bounded channel, so that a subscription is live exactly from the position that its answer tells.
//! Rooms know nothing of Postgres and nothing of sockets: an event goes in, frames come out in
//! outboxes. Work per event grows with the members of its rooms and with nothing else.

mod command;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::event::{self, Changed, Event, Seen, View};
use crate::frame;
use crate::outbox::{Close, Outbox};
use crate::recent::{Found, Recent};
use crate::registry::holds;
use crate::replay::{self, Replay};
use crate::traffic::Traffic;

pub use command::{Command, FromSnapshot, Member, Missed, Resume, Unanswered};

/// All rooms and their members.
pub struct Rooms {
    rooms: HashMap<Arc<str>, HashSet<Member>>,
    members: HashMap<Member, Membership>,
    recent: Recent,
    cursor: watch::Sender<Arc<str>>,
    /// By record's room the members that were told a snapshot lately, and its `seq`: what a throttle
    /// held back is in it already.
    fresh: HashMap<Arc<str>, HashMap<Member, u64>>,
    /// Snapshots of moments that the reader has yet to come to.
    ahead: Vec<FromSnapshot>,
    traffic: Traffic,
    bounds: Bounds,
    /// Of the present transaction, when it is a large one: its number of changes by scope room.
    flood: (u64, HashMap<String, usize>),
}

/// What is bounded by settings.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of recent events that are kept in memory.
    pub recent_bytes: usize,
    /// Changes of one transaction that one scope room gets; with more it is told to fetch anew.
    pub flood_changes: usize,
}

struct Membership {
    outbox: Arc<Outbox>,
    rooms: HashSet<Arc<str>>,
    transactions: bool,
}

impl Rooms {
    /// None yet. What `cursor` holds is the position of everything that was published.
    pub fn new(cursor: watch::Sender<Arc<str>>, bounds: Bounds) -> Rooms {
        Rooms {
            rooms: HashMap::new(),
            members: HashMap::new(),
            recent: Recent::new(bounds.recent_bytes),
            cursor,
            fresh: HashMap::new(),
            ahead: Vec::new(),
            traffic: Traffic::default(),
            bounds,
            flood: (0, HashMap::new()),
        }
    }

    /// Does what it is told until nobody is left who could tell it anything.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => break,
                },
                () = self.traffic.second_over() => self.traffic.sum_up(),
            }
        }
        self.traffic.sum_up();
    }

    /// Does one thing, at once.
    pub fn obey(&mut self, command: Command) {
        match command {
            Command::Enter {
                member,
                outbox,
                transactions,
            } => {
                self.members.insert(
                    member,
                    Membership {
                        outbox,
                        rooms: HashSet::new(),
                        transactions,
                    },
                );
            }
            Command::Subscribe {
                member,
                rooms,
                mut answer,
            } => {
                self.enter(member, rooms);
                let cursor = self.cursor.borrow().clone();
                answer.insert("cursor".to_owned(), Value::from(&*cursor));
                self.tell(member, &Value::Object(answer));
            }
            Command::Resume(resume) => self.resume(*resume),
            Command::Snapshot(from) => self.snapshot(*from),
            Command::Unsubscribe {
                member,
                rooms,
                answer,
            } => {
                let Some(membership) = self.members.get_mut(&member) else {
                    return;
                };
                for room in &rooms {
                    if let Some(room) = membership.rooms.take(room.as_str()) {
                        abandon(&mut self.rooms, room, member);
                    }
                }
                membership
                    .outbox
                    .push(frame::text(answer.to_string().as_bytes()));
            }
            Command::Leave { member } => {
                let Some(membership) = self.members.remove(&member) else {
                    return;
                };
                for room in membership.rooms {
                    if let Some(members) = self.fresh.get_mut(&room) {
                        members.remove(&member);
                    }
                    abandon(&mut self.rooms, room, member);
                }
            }
            Command::Publish { events } => self.publish(events),
            Command::Reached { place, told } => {
                self.cursor.send_replace(told.text.clone());
                self.recent.reached(place);
                for from in std::mem::take(&mut self.ahead) {
                    self.snapshot(from);
                }
            }
            Command::Remember { since, until, past } => self.recent.remember(since, &until, past),
            Command::Drain { told } => {
                self.drain();
                // whoever asked may have lost patience
                let _ = told.send(());
            }
            Command::BeginAnew { place, why } => {
                self.cursor.send_replace(place.text.clone());
                let first = self.recent.now().cursor.epoch.is_empty();
                self.recent.begin(place);
                if !first {
                    let rooms: Vec<Arc<str>> = self.rooms.keys().cloned().collect();
                    self.resync(&rooms, why);
                }
                for from in std::mem::take(&mut self.ahead) {
                    self.snapshot(from);
                }
            }
        }
    }

    /// Each is told a moment of its own, so that not all come back at once.
    fn drain(&mut self) {
        let count = self.members.len() as u64;
        tracing::info!(members = count, rooms = self.rooms.len(), "draining");
        let window = (count * 2).clamp(1000, 30_000);
        for (place, membership) in self.members.values().enumerate() {
            let after = 500 + window * place as u64 / count;
            let text = json!({"type": "draining", "reconnectAfterMs": after}).to_string();
            membership.outbox.push(frame::text(text.as_bytes()));
            membership.outbox.close(Close::GOING_AWAY);
        }
    }

    /// Makes rooms live for a member.
    fn enter(&mut self, member: Member, rooms: Vec<String>) {
        let Some(membership) = self.members.get_mut(&member) else {
            return;
        };
        for room in rooms {
            let room: Arc<str> = room.into();
            self.rooms.entry(room.clone()).or_default().insert(member);
            membership.rooms.insert(room);
        }
    }

    fn tell(&self, member: Member, frame: &Value) {
        if let Some(membership) = self.members.get(&member) {
            let text = frame.to_string();
            membership.outbox.push(frame::text(text.as_bytes()));
        }
    }

    /// Answers, sends what was missed and makes the rooms live, in one step: nothing comes between.
    fn resume(&mut self, resume: Resume) {
        let Resume {
            member,
            rooms,
            since,
            journal,
            mut answer,
            unanswered,
        } = resume;
        let Some(membership) = self.members.get(&member) else {
            return;
        };
        let checked = journal.is_some();
        let (older, recent) = match &journal {
            Some(Missed::Events(events, until)) => {
                let older = events.iter().map(|events| events.iter().collect());
                (older.collect(), self.recent.after(until).map(Found::Missed))
            }
            _ => (Vec::new(), Some(self.recent.since(&since, checked))),
        };
        let another_history = self.recent.now().cursor.epoch != since.epoch;
        let missed = match recent {
            _ if another_history => None,
            Some(Found::Missed(recent)) => Some([older, recent].concat()),
            Some(Found::Unknown) => {
                // nobody listens any more where the connection is gone
                let _ = unanswered.send(Unanswered::IsItGood);
                return;
            }
            Some(Found::Older) | None => {
                let _ = unanswered.send(Unanswered::WhatWasMissed);
                return;
            }
        };
        let replay = match missed {
            Some(missed) => Replay::of(
                &missed,
                &rooms,
                membership.transactions,
                membership.outbox.limit() / 2,
            ),
            None => Replay::none(&rooms, "epoch_changed"),
        };
        let cursor = if replay.frames.is_empty() {
            self.cursor.borrow().clone()
        } else {
            since.to_string().into()
        };
        if !replay.resync.is_empty() {
            answer.insert("resync".to_owned(), replay.resync.into());
        }
        answer.insert("cursor".to_owned(), Value::from(&*cursor));
        let mut frames = vec![frame::text(Value::Object(answer).to_string().as_bytes())];
        frames.extend(replay.frames);
        membership.outbox.push_all(frames);
        self.enter(member, rooms);
    }

    /// How many rooms have members.
    pub fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Whether no room has a member.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// Answers, sends the records and what happened to them since, and makes the rooms live, once
    /// everything up to the moment of the snapshot was published.
    fn snapshot(&mut self, from: FromSnapshot) {
        let now = &self.recent.now().cursor;
        let another_history = now.epoch != from.at.epoch;
        if !another_history && !from.at.position.snapshot.is_within(&now.position.snapshot) {
            self.ahead.push(from);
            return;
        }
        let FromSnapshot {
            member,
            rooms,
            records,
            at,
            mut answer,
            unanswered,
        } = from;
        let since = self.recent.after(&at.position.snapshot);
        let (Some(membership), Some(since)) = (self.members.get(&member), since) else {
            // memory has moved on: once more; nobody listens where the connection is gone
            let _ = unanswered.send(Unanswered::WhatWasMissed);
            return;
        };
        if another_history {
            let _ = unanswered.send(Unanswered::IsItGood);
            return;
        }
        let half = membership.outbox.limit() / 2;
        let replay = Replay::of(&since, &rooms, membership.transactions, half);
        if !replay.resync.is_empty() {
            answer.insert("resync".to_owned(), replay.resync.into());
        }
        let cursor = at.to_string();
        answer.insert("cursor".to_owned(), Value::from(&*cursor));
        let mut frames = vec![frame::text(Value::Object(answer).to_string().as_bytes())];
        let snapshots = records
            .iter()
            .map(|record| replay::snapshot(record, &cursor));
        frames.extend(snapshots);
        frames.extend(replay.frames);
        membership.outbox.push_all(frames);
        for record in &records {
            if let Some(seq) = record.seq {
                let room = format!("{}:{}", record.module, record.record_id);
                let members = self.fresh.entry(room.into()).or_default();
                members.insert(member, seq);
            }
        }
        self.enter(member, rooms);
    }

    fn publish(&mut self, events: Vec<Event>) {
        let flooded = self.count_flood(&events);
        let several = events.len() > 1;
        let mut whole: HashMap<Member, Vec<Bytes>> = HashMap::new();
        for event in &events {
            if let Event::Changed(changed) = event {
                let receivers = self.deliver(changed, &flooded, several, &mut whole);
                self.traffic.event(changed, receivers);
                self.no_longer_fresh(changed);
            }
        }
        self.deliver_whole(&events, whole);
        // last: who fetches anew sees the end of the transaction
        for event in &events {
            if let Event::Truncated { module, txid, .. } = event {
                let rooms: Vec<Arc<str>> = self
                    .rooms
                    .keys()
                    .filter(|room| holds(room, module))
                    .cloned()
                    .collect();
                let receivers = self.resync(&rooms, "truncated");
                tracing::info!(target: "crm_relay::event", kind = "truncated", %module, txid, receivers, "event");
            }
        }
        self.resync(&flooded.into_iter().collect::<Vec<_>>(), "too_many_changes");
        self.recent.push(events);
    }

    /// Forgets snapshots that this change came after: so do all that come now.
    fn no_longer_fresh(&mut self, changed: &Changed) {
        if let Some(members) = self.fresh.get_mut(changed.record_room.as_str()) {
            members.retain(|_, seq| changed.part().is_some() || *seq >= changed.seq);
            if members.is_empty() {
                self.fresh.remove(changed.record_room.as_str());
            }
        }
    }

    /// The scope rooms that are to fetch anew instead of getting these events one by one.
    fn count_flood(&mut self, events: &[Event]) -> HashSet<Arc<str>> {
        let Some(txid) = events.first().map(Event::txid) else {
            return HashSet::new();
        };
        // a transaction that is no larger can flood nobody, except as the next piece of a larger one
        if self.flood.0 != txid {
            self.flood = (txid, HashMap::new());
        }
        if self.flood.1.is_empty() && events.len() <= self.bounds.flood_changes {
            return HashSet::new();
        }
        for event in events {
            let Event::Changed(changed) = event else {
                continue;
            };
            for (room, _) in changed.rooms().skip(1) {
                if self.rooms.contains_key(room) {
                    *self.flood.1.entry(room.to_owned()).or_default() += 1;
                }
            }
        }
        let flooded = self.flood.1.iter();
        flooded
            .filter(|(_, changes)| **changes > self.bounds.flood_changes)
            .filter_map(|(room, _)| Some(self.rooms.get_key_value(room.as_str())?.0.clone()))
            .collect()
    }

    /// Gives one event to all members of its rooms, each once; those who want transactions whole get
    /// theirs in `whole`. Returns their number.
    fn deliver(
        &self,
        changed: &Changed,
        flooded: &HashSet<Arc<str>>,
        several: bool,
        whole: &mut HashMap<Member, Vec<Bytes>>,
    ) -> usize {
        let present: Vec<(&str, &HashSet<Member>, Seen)> = changed
            .rooms()
            .filter(|(room, _)| flooded.is_empty() || !flooded.contains(*room))
            .filter_map(|(room, seen)| Some((room, self.rooms.get(room)?, seen)))
            .collect();
        let fresh = self.fresh.get(changed.record_room.as_str());
        let has_it = |member: &Member| {
            let seq = fresh.and_then(|members| members.get(member));
            changed.part().is_none() && seq.is_some_and(|&seq| changed.seq <= seq)
        };
        let mut give = |members: &mut dyn Iterator<Item = Member>, view: View, rooms: &[&str]| {
            let frame = changed.frame(view, rooms);
            for member in members.filter(|member| !has_it(member)) {
                match self.members.get(&member) {
                    Some(membership) if several && membership.transactions => {
                        whole.entry(member).or_default().push(frame.clone());
                    }
                    Some(membership) => {
                        membership.outbox.push(frame.clone());
                    }
                    None => {}
                }
            }
        };
        let is_scope = |room: &&str| **room != changed.record_room;
        // one room is by far the most frequent: nobody can be in it twice
        if let [(room, members, seen)] = present[..] {
            let rooms: Vec<&str> = Some(room).into_iter().filter(is_scope).collect();
            give(&mut members.iter().copied(), seen.view(), &rooms);
            return members.len();
        }
        let mut seen_by: HashMap<Member, Seen> = HashMap::new();
        for (_, members, seen) in &present {
            for &member in *members {
                seen_by.entry(member).or_default().add(*seen);
            }
        }
        for view in [View::Stayed, View::Left, View::Entered, View::Crossed] {
            let has_view =
                |member: &Member| seen_by.get(member).is_some_and(|seen| seen.view() == view);
            if !seen_by.keys().any(&has_view) {
                continue;
            }
            let rooms: Vec<&str> = present
                .iter()
                .filter(|(room, members, _)| is_scope(room) && members.iter().any(&has_view))
                .map(|(room, ..)| *room)
                .collect();
            give(&mut seen_by.keys().copied().filter(&has_view), view, &rooms);
        }
        seen_by.len()
    }

    fn deliver_whole(&self, events: &[Event], whole: HashMap<Member, Vec<Bytes>>) {
        let Some((txid, cursor)) = events.iter().find_map(|event| match event {
            Event::Changed(changed) => Some((changed.txid, changed.cursor())),
            Event::Truncated { .. } => None,
        }) else {
            return;
        };
        // many members have the same events: those share one frame, too
        let mut encoded: HashMap<Vec<*const u8>, Bytes> = HashMap::new();
        for (member, frames) in whole {
            let Some(membership) = self.members.get(&member) else {
                continue;
            };
            if let [one] = &frames[..] {
                membership.outbox.push(one.clone());
                continue;
            }
            let which = frames.iter().map(|frame| frame.as_ptr()).collect();
            let frame = match encoded.entry(which) {
                Entry::Occupied(known) => known.get().clone(),
                Entry::Vacant(new) => new
                    .insert(event::transaction_frame(txid, cursor, &frames))
                    .clone(),
            };
            membership.outbox.push(frame);
        }
    }

    /// Tells the members of these rooms that they missed something; returns their number.
    fn resync(&self, rooms: &[Arc<str>], reason: &str) -> usize {
        let mut concerned: HashMap<Member, Vec<Value>> = HashMap::new();
        for room in rooms {
            for &member in self.rooms.get(room).into_iter().flatten() {
                concerned
                    .entry(member)
                    .or_default()
                    .push(json!({"room": &**room, "reason": reason}));
            }
        }
        let receivers = concerned.len();
        for (member, rooms) in concerned {
            if let Some(membership) = self.members.get(&member) {
                let text = json!({"type": "resync", "rooms": rooms}).to_string();
                membership.outbox.push(frame::text(text.as_bytes()));
            }
        }
        receivers
    }
}

/// Takes a member out of a room, and the room away when it was the last.
fn abandon(rooms: &mut HashMap<Arc<str>, HashSet<Member>>, room: Arc<str>, member: Member) {
    if let Entry::Occupied(mut entry) = rooms.entry(room) {
        entry.get_mut().remove(&member);
        if entry.get().is_empty() {
            entry.remove();
        }
    }
}
