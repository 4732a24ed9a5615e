//! What a client that comes back gets of what it missed: frames for its rooms, or `resync`.
//!
//! Pure: no I/O.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use crate::diff::quoted;
use crate::event::{self, Changed, Event, Seen};
use crate::frame::{self, Frame};
use crate::journal::RecordNow;
use crate::registry::{RoomSet, holds, is_scope, within};

/// Most events that one room gets; with more it is told to fetch anew.
pub const MOST_OF_A_ROOM: usize = 1000;

/// What somebody may see.
pub trait Eyes {
    /// Whether they may see the record as it was before and as it is after a change.
    fn see(&self, changed: &Changed) -> (bool, bool);

    /// Who they are; None where nobody is asked.
    fn user(&self) -> Option<&str>;
}

/// The answer to what was missed.
#[derive(Debug, Default)]
pub struct Replay {
    /// In order.
    pub frames: Vec<Frame>,
    /// The rooms that cannot be told everything, with the reason, as the protocol lists them.
    pub resync: Vec<Value>,
}

impl Replay {
    /// Nothing for these rooms, and why.
    pub fn none(rooms: &[String], reason: &str) -> Replay {
        let resync = rooms
            .iter()
            .map(|room| json!({"room": room, "reason": reason}));
        Replay {
            frames: Vec::new(),
            resync: resync.collect(),
        }
    }

    /// Of the events that were missed, by transaction, those of these rooms, at most `most_bytes`.
    pub fn of(
        missed: &[Vec<&Event>],
        rooms: &[String],
        transactions: bool,
        most_bytes: usize,
        eyes: &dyn Eyes,
    ) -> Replay {
        let wanted = RoomSet::of(rooms);
        let mut replay = Replay::default();
        let too_much = too_much(missed, &wanted, eyes);
        let told = too_much.iter();
        let told = told.map(|(room, reason)| json!({"room": room, "reason": reason}));
        replay.resync.extend(told);
        let too_much: Vec<&str> = too_much.into_iter().map(|(room, _)| room).collect();
        let wanted = wanted.without(&too_much);
        let mut bytes = 0;
        for events in missed {
            let mut frames = Vec::new();
            for event in events {
                let Event::Changed(changed) = event else {
                    continue;
                };
                let mut seen: Option<Seen> = None;
                let mut scopes = Vec::new();
                let (before, after) = eyes.see(changed);
                for (room, in_room) in changed.rooms().filter(|(room, _)| wanted.has(room)) {
                    let Some(by_room) = in_room.by(before, after) else {
                        continue;
                    };
                    // of the one room that is the record's own it is not told that it was lost
                    if room == changed.record_room && !after {
                        continue;
                    }
                    seen.get_or_insert_default().add(by_room);
                    if room != changed.record_room {
                        scopes.push(room);
                    }
                }
                if let Some(seen) = seen {
                    frames.push(changed.frame(seen.view(), &scopes));
                }
            }
            bytes += frames.iter().map(Frame::size).sum::<usize>();
            if bytes > most_bytes {
                replay.frames.clear();
                let rest = rooms.iter().filter(|room| wanted.has(room));
                let told = rest.map(|room| json!({"room": room, "reason": "too_many_changes"}));
                replay.resync.extend(told);
                break;
            }
            let cursor = events.iter().find_map(|event| match event {
                Event::Changed(changed) => Some((changed.txid, changed.cursor())),
                _ => None,
            });
            match cursor {
                Some((txid, cursor)) if transactions && frames.len() > 1 => {
                    replay
                        .frames
                        .push(event::transaction_frame(txid, cursor, &frames));
                }
                _ => replay.frames.extend(frames),
            }
        }
        replay
    }
}

/// A record as it was at this cursor.
pub fn snapshot(record: &RecordNow, cursor: &str) -> Frame {
    let room = format!("{}:{}", record.module, record.record_id);
    let seq = record
        .seq
        .map_or("null".to_owned(), |seq| format!("\"{seq}\""));
    let text = format!(
        "{{\"type\":\"snapshot\",\"room\":{},\"module\":\"{}\",\"recordId\":{},\"data\":{},\"seq\":{seq},\"cursor\":\"{cursor}\"}}",
        quoted(&room),
        record.module,
        quoted(&record.record_id),
        record.image.as_deref().unwrap_or("null"),
    );
    frame::text(text.as_bytes())
}

/// The rooms of which more was missed than can be told one by one, sorted.
fn too_much<'a>(
    missed: &[Vec<&'a Event>],
    wanted: &RoomSet<'a>,
    eyes: &dyn Eyes,
) -> Vec<(&'a str, &'static str)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut upheaved: Vec<&str> = Vec::new();
    let mut moved: HashSet<&str> = HashSet::new();
    for event in missed.iter().flatten() {
        match event {
            Event::Changed(changed) => {
                // their own changes say nothing of how the one that they depend on stood then
                let heirs = changed.heirs().iter();
                let heirs = heirs.flat_map(|heir| heir.rooms.iter().chain([&heir.room]));
                moved.extend(heirs.filter_map(|room| wanted.get(room)));
                for (room, _) in changed.rooms() {
                    if let Some(room) = wanted.get(room) {
                        *counts.entry(room).or_default() += 1;
                    }
                }
            }
            Event::Truncated { module, .. } => upheaved.push(module),
            Event::UserChanged { user, rooms, .. } => {
                let is_own = eyes
                    .user()
                    .is_some_and(|own| user.as_deref().is_none_or(|user| user == own));
                moved.extend(wanted.iter().filter(|room| {
                    is_own || is_scope(room) && rooms.iter().any(|moved| within(room, moved))
                }));
            }
            Event::Disconnected { .. } => {}
        }
    }
    let judged = wanted.iter().filter_map(|room| {
        if upheaved.iter().any(|module| holds(room, module)) {
            return Some((room, "truncated"));
        }
        if moved.contains(room) {
            return Some((room, "access_changed"));
        }
        let many = counts
            .get(room)
            .is_some_and(|&count| count > MOST_OF_A_ROOM);
        many.then_some((room, "too_many_changes"))
    });
    judged.collect()
}
