//! Rooms: who gets which event.
//!
//! One task owns them all ([`Rooms::run`]); connections and the reader send it commands through one
//! bounded channel, so that a subscription is live exactly from the position that its answer tells.
//! Rooms know nothing of Postgres and nothing of sockets: an event goes in, frames come out in
//! outboxes. Work per event grows with the members of its rooms and with nothing else.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::event::{self, Changed, Event, View};
use crate::frame;
use crate::outbox::Outbox;
use crate::traffic::Traffic;

/// A connection, as rooms know it; never used twice.
pub type Member = u64;

/// What the task that owns the rooms is asked to do.
#[derive(Debug)]
pub enum Command {
    /// A connection is there.
    Enter {
        /// Its number.
        member: Member,
        /// Where its frames go.
        outbox: Arc<Outbox>,
        /// Whether it wants several events of a transaction as one frame.
        transactions: bool,
    },
    /// It wants these rooms, which are well-formed.
    Subscribe {
        /// The connection.
        member: Member,
        /// The rooms, each once.
        rooms: Vec<String>,
        /// The answer, without its cursor, which is known when the rooms are live.
        answer: serde_json::Map<String, Value>,
    },
    /// It no longer wants these.
    Unsubscribe {
        /// The connection.
        member: Member,
        /// The rooms.
        rooms: Vec<String>,
        /// The answer.
        answer: Value,
    },
    /// It is gone.
    Leave {
        /// The connection.
        member: Member,
    },
    /// A transaction's events, or a piece of a very large one.
    Publish {
        /// In order, all of one transaction.
        events: Vec<Event>,
    },
    /// All up to here was published.
    Reached {
        /// The cursor from now on.
        cursor: Arc<str>,
    },
    /// History is another than the one that clients know.
    EpochChanged {
        /// The cursor from now on.
        cursor: Arc<str>,
    },
}

/// All rooms and their members.
pub struct Rooms {
    rooms: HashMap<Arc<str>, HashSet<Member>>,
    members: HashMap<Member, Membership>,
    cursor: watch::Sender<Arc<str>>,
    traffic: Traffic,
}

struct Membership {
    outbox: Arc<Outbox>,
    rooms: HashSet<Arc<str>>,
    transactions: bool,
}

/// In which of an event's rooms a connection is.
#[derive(Clone, Copy, Default)]
struct Seen {
    stayed: bool,
    left: bool,
    entered: bool,
}

impl Seen {
    const STAYED: Seen = Seen {
        stayed: true,
        left: false,
        entered: false,
    };
    const LEFT: Seen = Seen {
        stayed: false,
        left: true,
        entered: false,
    };
    const ENTERED: Seen = Seen {
        stayed: false,
        left: false,
        entered: true,
    };

    fn add(&mut self, other: Seen) {
        self.stayed |= other.stayed;
        self.left |= other.left;
        self.entered |= other.entered;
    }

    fn view(self) -> View {
        match self {
            Seen { stayed: true, .. } => View::Stayed,
            Seen {
                left: true,
                entered: true,
                ..
            } => View::Crossed,
            Seen { left: true, .. } => View::Left,
            Seen { .. } => View::Entered,
        }
    }
}

impl Rooms {
    /// None yet. What `cursor` holds is the position of everything that was published.
    pub fn new(cursor: watch::Sender<Arc<str>>) -> Rooms {
        Rooms {
            rooms: HashMap::new(),
            members: HashMap::new(),
            cursor,
            traffic: Traffic::default(),
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
                let Some(membership) = self.members.get_mut(&member) else {
                    return;
                };
                for room in rooms {
                    let room: Arc<str> = room.into();
                    self.rooms.entry(room.clone()).or_default().insert(member);
                    membership.rooms.insert(room);
                }
                answer.insert(
                    "cursor".to_owned(),
                    Value::from(self.cursor.borrow().as_ref()),
                );
                membership
                    .outbox
                    .push(frame::text(Value::Object(answer).to_string().as_bytes()));
            }
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
                    abandon(&mut self.rooms, room, member);
                }
            }
            Command::Publish { events } => self.publish(&events),
            Command::Reached { cursor } => {
                self.cursor.send_replace(cursor);
            }
            Command::EpochChanged { cursor } => {
                self.cursor.send_replace(cursor);
                let rooms: Vec<Arc<str>> = self.rooms.keys().cloned().collect();
                self.resync(&rooms, "epoch_changed");
            }
        }
    }

    /// How many rooms have members.
    pub fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Whether no room has a member.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    fn publish(&mut self, events: &[Event]) {
        let several = events.len() > 1;
        let mut whole: HashMap<Member, Vec<Bytes>> = HashMap::new();
        for event in events {
            if let Event::Changed(changed) = event {
                let receivers = self.deliver(changed, several, &mut whole);
                self.traffic.event(changed, receivers);
            }
        }
        self.deliver_whole(events, whole);
        // last: who fetches anew sees the end of the transaction
        for event in events {
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
    }

    /// Gives one event to all members of its rooms, each once; those who want transactions whole get
    /// theirs in `whole`. Returns their number.
    fn deliver(
        &self,
        changed: &Changed,
        several: bool,
        whole: &mut HashMap<Member, Vec<Bytes>>,
    ) -> usize {
        let stayed = std::iter::once(&changed.record_room)
            .chain(&changed.stayed_in)
            .map(|room| (room, Seen::STAYED));
        let left = changed.left.iter().map(|room| (room, Seen::LEFT));
        let entered = changed.entered.iter().map(|room| (room, Seen::ENTERED));
        let present: Vec<(&str, &HashSet<Member>, Seen)> = stayed
            .chain(left)
            .chain(entered)
            .filter_map(|(room, seen)| Some((room.as_str(), self.rooms.get(room.as_str())?, seen)))
            .collect();
        let mut give = |members: &mut dyn Iterator<Item = Member>, view: View, rooms: &[&str]| {
            let frame = changed.frame(view, rooms);
            for member in members {
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

/// Whether a room can hold records of a module: a record's room or a scope's, of all or of this one.
fn holds(room: &str, module: &str) -> bool {
    let Some((name, id)) = room.split_once(':') else {
        return false;
    };
    match name {
        "user" | "team" | "broker" => id.split_once('/').is_none_or(|(_, only)| only == module),
        _ => name == module,
    }
}
