//! What happened is told: each event to the members of its rooms, as far as they may see it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{ITSELF, Member, Membership, Room, Rooms};
use crate::event::{self, Changed, Event, Seen, View};
use crate::frame::{self, Frame};
use crate::outbox::{Outbox, Post};
use crate::registry::holds;

/// To so many of a room an event is written by the task of the rooms itself: that takes less than to have it
/// done.
const AT_ONCE: usize = 64;

/// The same where no other task could do it meanwhile: some milliseconds of a processor that has nothing
/// else to tell.
const AT_ONCE_ALONE: usize = 1024;

/// A frame of more bytes is left to others all the same: who writes it may have to compress or encrypt it first.
const LONG: usize = 64 * 1024;

/// Of one transaction, what is put together until its end.
#[derive(Default)]
struct Told {
    /// Scope rooms that are to fetch anew instead of getting its events one by one.
    flooded: HashSet<Arc<str>>,
    /// Whether there are several events.
    several: bool,
    /// To how many an event is written at once; to more of them, by the post.
    at_once: usize,
    /// The frames of those who want transactions whole.
    whole: FxHashMap<Member, Vec<Frame>>,
    /// Who may no longer be in the room of which record.
    lost: HashSet<(Member, Arc<str>)>,
    post: Post,
}

impl Rooms {
    pub(super) fn publish(&mut self, events: Vec<Event>) {
        let mut told = Told {
            flooded: self.flooded(),
            several: events.len() > 1,
            at_once: self.at_once(&events),
            ..Told::default()
        };
        for event in &events {
            if let Event::Changed(changed) = event {
                let receivers = self.deliver(changed, &mut told);
                self.traffic.event(changed, receivers);
                self.feed.tell(changed, receivers);
                self.no_longer_fresh(changed);
            }
        }
        self.deliver_whole(&events, told.whole, &mut told.post);
        told.post.send();
        self.revoke(told.lost);
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
        self.resync(
            &told.flooded.into_iter().collect::<Vec<_>>(),
            "too_many_changes",
        );
        self.end_upheaval(&events);
        self.feed.tell_else(&events);
        self.recent.push(events);
    }

    /// To how many of a room an event is written at once: to none while more is to be told, which then goes out
    /// with it.
    fn at_once(&self, events: &[Event]) -> usize {
        // behind each transaction comes where it ends
        match events.len() > 1 || self.pending.len() + self.more > 1 {
            true => 0,
            false if self.is_alone => AT_ONCE_ALONE,
            false => AT_ONCE,
        }
    }

    /// Forgets snapshots that this change came after: so do all that come now.
    fn no_longer_fresh(&mut self, changed: &Changed) {
        let room = self.rooms.get_mut(changed.record_room.as_str());
        if let Some(room) = room.filter(|_| changed.part().is_none()) {
            room.fresh.retain(|_, seq| *seq >= changed.seq);
        }
    }

    /// Counts what scope rooms would get of these events, whoever is in them by the time that they are
    /// told.
    pub(super) fn count_flood(&mut self, events: &[Event]) {
        let txid = events.first().map_or(0, Event::txid);
        // a transaction that is no larger can flood nobody, except as the next piece of a larger one
        if self.flood.0 != txid {
            self.flood = (txid, HashMap::new());
        }
        if self.flood.1.is_empty() && events.len() <= self.bounds.flood_changes {
            return;
        }
        for event in events {
            let Event::Changed(changed) = event else {
                continue;
            };
            for (room, _) in changed.rooms().skip(1) {
                match self.flood.1.get_mut(room) {
                    Some(count) => *count += 1,
                    None => _ = self.flood.1.insert(room.to_owned(), 1),
                }
            }
        }
    }

    /// Whether a scope room is to fetch anew instead of getting the present transaction's events one by
    /// one.
    pub(super) fn is_flooded(&self, room: &str) -> bool {
        let changes = self.flood.1.get(room);
        changes.is_some_and(|changes| *changes > self.bounds.flood_changes)
    }

    fn flooded(&self) -> HashSet<Arc<str>> {
        let rooms = self.flood.1.keys().filter(|room| self.is_flooded(room));
        rooms.filter_map(|room| self.known_room(room)).collect()
    }

    /// The name of a room that has members.
    pub(super) fn known_room(&self, room: &str) -> Option<Arc<str>> {
        Some(self.rooms.get_key_value(room)?.0.clone())
    }

    /// Gives one event to all members of its rooms, each once. Returns their number.
    fn deliver(&self, changed: &Changed, told: &mut Told) -> usize {
        let present: Vec<(&Arc<str>, &Room, Seen)> = changed
            .rooms()
            .filter(|(room, _)| told.flooded.is_empty() || !told.flooded.contains(*room))
            .filter_map(|(name, seen)| {
                let (name, room) = self.rooms.get_key_value(name)?;
                Some((name, room, seen))
            })
            .collect();
        let agreed = Some(self.access.agreed(changed));
        let all_see = |room: &Room| room.all_see.get() == agreed;
        let is_scope = |room: &str| *room != changed.record_room;
        // one room is by far the most frequent: nobody can be in it twice
        let mut views: FxHashMap<View, Vec<(Member, &Arc<Outbox>)>> = FxHashMap::default();
        let mut rooms: FxHashMap<View, Vec<&str>> = FxHashMap::default();
        if let [(name, room, seen)] = present[..] {
            let view = seen.by(true, true).map(Seen::view);
            if let Some(view) = view.filter(|_| all_see(room) && told.lost.is_empty()) {
                let outboxes = (room.members.iter()).map(|(member, outbox)| (*member, outbox));
                views.insert(view, outboxes.collect());
            } else {
                for (member, membership) in self.of(room) {
                    if let Some(seen) = self.sees(member, membership, changed, name, seen, told) {
                        let view = views.entry(seen.view()).or_default();
                        view.push((member, &membership.outbox));
                    }
                }
            }
            for view in views.keys().filter(|_| is_scope(name)) {
                rooms.insert(*view, vec![name]);
            }
        } else {
            // room after room, each in the order of its members: sorting only merges them
            let mut all: Vec<(Member, &Membership, Seen)> = Vec::new();
            for &(name, room, seen) in &present {
                for (member, membership) in self.of(room) {
                    if let Some(seen) = self.sees(member, membership, changed, name, seen, told) {
                        all.push((member, membership, seen));
                    }
                }
            }
            all.sort_by_key(|(member, ..)| *member);
            all.dedup_by(|(again, _, more), (member, _, seen)| {
                let is_same = again == member;
                if is_same {
                    seen.add(*more);
                }
                is_same
            });
            let seen_by = |member: &Member| {
                let place = all
                    .binary_search_by_key(member, |(member, ..)| *member)
                    .ok()?;
                Some(all[place].2)
            };
            for &(name, room, _) in present.iter().filter(|(name, ..)| is_scope(name)) {
                for seen in room.members.keys().filter_map(seen_by) {
                    let listed = rooms.entry(seen.view()).or_default();
                    if listed.last() != Some(&&**name) {
                        listed.push(name);
                    }
                }
            }
            for (member, membership, seen) in all {
                let view = views.entry(seen.view()).or_default();
                view.push((member, &membership.outbox));
            }
        }
        let mut receivers = 0;
        for (view, members) in views {
            let scopes = rooms.get(&view).map_or(&[][..], Vec::as_slice);
            receivers += self.give(changed, &changed.frame(view, scopes), &members, told);
        }
        receivers
    }

    /// The members of a room.
    pub(super) fn of(&self, room: &Room) -> impl Iterator<Item = (Member, &Membership)> {
        let known = |&member| Some((member, self.members.get(&member)?));
        room.members.keys().filter_map(known)
    }

    /// What a member of a room may get of a change; who lost the record's own room is noted.
    fn sees(
        &self,
        member: Member,
        membership: &Membership,
        changed: &Changed,
        room: &Arc<str>,
        in_room: Seen,
        told: &mut Told,
    ) -> Option<Seen> {
        if self.access.is_open() || member == ITSELF {
            return Some(in_room);
        }
        let (before, after) = self.access.sees(membership.who(), changed);
        if **room == *changed.record_room {
            if !after {
                told.lost.insert((member, room.clone()));
                return None;
            }
            if !told.lost.is_empty() {
                told.lost.remove(&(member, room.clone()));
            }
        }
        in_room.by(before, after)
    }

    /// Puts a frame into outboxes, except of those whose snapshot has it already. Returns their number.
    fn give(
        &self,
        changed: &Changed,
        frame: &Frame,
        members: &[(Member, &Arc<Outbox>)],
        told: &mut Told,
    ) -> usize {
        let room = self.rooms.get(changed.record_room.as_str());
        let fresh = room.filter(|room| changed.part().is_none() && !room.fresh.is_empty());
        let has_it = |member: Member| {
            let seq = fresh.and_then(|room| room.fresh.get(&member));
            seq.is_some_and(|&seq| changed.seq <= seq)
        };
        let mut receivers = 0;
        let is_at_once = members.len() <= told.at_once && frame.size() <= LONG;
        let now = Instant::now();
        for &(member, outbox) in members.iter().filter(|(member, _)| !has_it(*member)) {
            receivers += 1;
            if is_at_once {
                outbox.send(frame, now);
            } else if told.several && self.wants_whole(member) {
                told.whole.entry(member).or_default().push(frame.clone());
            } else {
                told.post.put(outbox, frame.clone());
            }
        }
        receivers
    }

    fn wants_whole(&self, member: Member) -> bool {
        let membership = self.members.get(&member);
        membership.is_some_and(|membership| membership.transactions)
    }

    fn deliver_whole(
        &self,
        events: &[Event],
        whole: FxHashMap<Member, Vec<Frame>>,
        post: &mut Post,
    ) {
        let Some((txid, cursor)) = events.iter().find_map(|event| match event {
            Event::Changed(changed) => Some((changed.txid, changed.cursor())),
            _ => None,
        }) else {
            return;
        };
        // many members have the same events: those share one frame, too
        let mut encoded: HashMap<Vec<*const u8>, Frame> = HashMap::new();
        for (member, frames) in whole {
            let Some(membership) = self.members.get(&member) else {
                continue;
            };
            if let [one] = &frames[..] {
                post.put(&membership.outbox, one.clone());
                continue;
            }
            let which = frames.iter().map(|frame| frame.plain().as_ptr()).collect();
            let frame = match encoded.entry(which) {
                Entry::Occupied(known) => known.get().clone(),
                Entry::Vacant(new) => new
                    .insert(event::transaction_frame(txid, cursor, &frames))
                    .clone(),
            };
            post.put(&membership.outbox, frame);
        }
    }

    /// Tells the members of these rooms that they missed something; returns their number.
    pub(super) fn resync(&self, rooms: &[Arc<str>], reason: &str) -> usize {
        if rooms.is_empty() {
            return 0;
        }
        let mut concerned: FxHashMap<Member, Vec<Value>> = FxHashMap::default();
        for room in rooms {
            let members = self.rooms.get(room).map(|room| &room.members);
            for &member in members.into_iter().flat_map(BTreeMap::keys) {
                concerned
                    .entry(member)
                    .or_default()
                    .push(json!({"room": &**room, "reason": reason}));
            }
        }
        let receivers = concerned.len();
        let all = concerned.values().map(Vec::len).sum();
        self.metrics.resynced(reason, all);
        for (member, rooms) in concerned {
            if let Some(membership) = self.members.get(&member) {
                let text = json!({"type": "resync", "rooms": rooms}).to_string();
                membership.outbox.push(frame::text(text.as_bytes()));
            }
        }
        receivers
    }
}
