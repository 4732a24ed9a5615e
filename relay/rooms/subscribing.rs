//! How a subscription becomes live: the client is answered, told what it missed and put into its rooms
//! in one step, so that nothing comes between.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::access::{Doubts, Looking};
use super::{Beginning, ITSELF, Member, Missed, Reply, Rooms, Subscribe};
use crate::event::Event;
use crate::frame;
use crate::recent::Found;
use crate::registry::RoomSet;
use crate::replay::{self, Replay};
use crate::snapshot::Cursor;

/// Most events that are looked through in memory for one client: all others wait for it. Who missed more
/// is told from the journal, which finds a record's own.
const MOST_MISSED: usize = 10_000;

/// Whether a subscription can be live.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
    /// Now.
    Now,
    /// When the relay has come to the moment at which it was granted, or at which its records were read; or
    /// when memory is filled, so that not everybody who comes back to a new relay asks the journal.
    Later,
    /// Not before it was granted again: access may have changed since.
    Again,
}

impl Rooms {
    pub(super) fn subscribe(&mut self, mut subscribe: Subscribe) {
        self.access.pass();
        let member = subscribe.member;
        if !self.members.contains_key(&member) {
            return;
        }
        match self.admission(&subscribe) {
            Admission::Now => {}
            Admission::Later => {
                self.ahead.push(subscribe);
                self.look.notify_one();
                return;
            }
            Admission::Again => {
                // nobody listens any more where the connection is gone
                let _ = subscribe.reply.send(Reply::IsItStillGranted);
                return;
            }
        }
        if let Beginning::Since {
            since,
            journal: Some(Missed::Nothing),
        } = &subscribe.from
            && self.recent.now().cursor.epoch == since.epoch
        {
            self.recent.vouch(since);
        }
        self.deny_too_many(&mut subscribe);
        let rooms = &subscribe.rooms;
        let replay = match &subscribe.from {
            Beginning::Now => Ok(Replay::default()),
            Beginning::Anew(reason) => Ok(Replay::none(rooms, reason)),
            Beginning::Since { since, journal } => match self.missed(since, journal.as_ref()) {
                Ok(Some(missed)) => self.replay(member, rooms, &missed),
                Ok(None) => Ok(Replay::none(rooms, "epoch_changed")),
                Err(reply) => Err(reply),
            },
            Beginning::Records { at, .. } => {
                if self.recent.now().cursor.epoch != at.epoch {
                    Err(Reply::IsItGood)
                } else if let Some(missed) = self.recent.after(&at.position.snapshot) {
                    self.replay(member, rooms, &missed)
                } else {
                    // memory has moved on: once more
                    Err(Reply::WhatWasMissed)
                }
            }
        };
        match replay {
            Ok(replay) => self.begin(subscribe, replay),
            Err(mut reply) => {
                if let (Reply::WhoMaySee { journal, .. }, Beginning::Since { journal: told, .. }) =
                    (&mut reply, subscribe.from)
                {
                    *journal = told;
                }
                let _ = subscribe.reply.send(reply);
            }
        }
    }

    /// A grant counts from the moment at which it was made: everything that happened later must have
    /// been applied to it.
    fn admission(&self, subscribe: &Subscribe) -> Admission {
        let now = &self.recent.now().cursor;
        let is_ahead = |moment: &Cursor| {
            let snapshot = &moment.position.snapshot;
            now.epoch == moment.epoch && !snapshot.is_within(&now.position.snapshot)
        };
        // what changed access until then is yet to be applied
        let is_early = match &subscribe.from {
            Beginning::Records { at, .. } => is_ahead(at),
            Beginning::Since {
                since,
                journal: Some(Missed::Events(_, until)),
            } => now.epoch == since.epoch && !until.is_within(&now.position.snapshot),
            Beginning::Since { since, .. } if !self.remembers => {
                now.epoch == since.epoch && self.recent.is_older(since)
            }
            _ => false,
        };
        if is_early {
            return Admission::Later;
        }
        let Some(granted) = &subscribe.granted else {
            return if self.access.is_open() || subscribe.member == ITSELF {
                Admission::Now
            } else {
                Admission::Again
            };
        };
        if is_ahead(granted) {
            return Admission::Later;
        }
        if now.epoch != granted.epoch {
            return Admission::Again;
        }
        let Some(since) = self.recent.after(&granted.position.snapshot) else {
            return Admission::Again;
        };
        if since.is_empty() {
            return Admission::Now;
        }
        let wanted = RoomSet::of(&subscribe.rooms);
        let is_concerned = |event: &&Event| match event {
            Event::Changed(changed) => {
                let (before, after) = changed.standings();
                before != after && wanted.has(&changed.record_room)
                    || changed.heirs().iter().any(|heir| wanted.has(&heir.room))
            }
            // their own, or that of a record's owner
            Event::UserChanged { .. } => true,
            Event::Truncated { .. } | Event::Disconnected { .. } => false,
        };
        if since
            .into_iter()
            .flatten()
            .any(|event| is_concerned(&event))
        {
            return Admission::Again;
        }
        Admission::Now
    }

    /// Rooms above the bound of one connection.
    fn deny_too_many(&self, subscribe: &mut Subscribe) {
        let Some(membership) = self.members.get(&subscribe.member) else {
            return;
        };
        let has = |room: &String| membership.rooms.contains(room.as_str());
        let mut left = self.bounds.rooms.saturating_sub(membership.rooms.len());
        let denied = &mut subscribe.denied;
        subscribe.rooms.retain(|room| {
            if has(room) {
                return true;
            }
            if left == 0 {
                denied.push(json!({"room": room, "code": "too_many_rooms"}));
                return false;
            }
            left -= 1;
            true
        });
    }

    /// What a client with this cursor missed, by transaction; None in another history.
    fn missed<'a>(
        &'a self,
        since: &Cursor,
        journal: Option<&'a Missed>,
    ) -> Result<Option<Vec<Vec<&'a Event>>>, Reply> {
        if self.recent.now().cursor.epoch != since.epoch {
            return Ok(None);
        }
        let found = match journal {
            Some(Missed::Events(_, until)) => {
                let recent = self.recent.after(until);
                recent.map_or(Found::Older, Found::Missed)
            }
            Some(Missed::Nothing) | None => self.recent.since(since),
        };
        let older = match journal {
            Some(Missed::Events(older, _)) => &older[..],
            Some(Missed::Nothing) | None => &[],
        };
        match found {
            Found::Missed(missed) if missed.iter().map(Vec::len).sum::<usize>() > MOST_MISSED => {
                Err(Reply::WhatWasMissed)
            }
            Found::Missed(missed) => {
                let older = older.iter().map(|events| events.iter().collect());
                Ok(Some(older.chain(missed).collect()))
            }
            Found::Unknown => Err(Reply::IsItGood),
            Found::Older => Err(Reply::WhatWasMissed),
        }
    }

    /// Frames for what was missed, unless the policy has yet to be asked about it.
    fn replay(
        &self,
        member: Member,
        rooms: &[String],
        missed: &[Vec<&Event>],
    ) -> Result<Replay, Reply> {
        let Some(membership) = self.members.get(&member) else {
            return Ok(Replay::default());
        };
        // most of it is nothing to this client, and is looked at once
        let wanted = RoomSet::of(rooms);
        let concerns = |event: &&&Event| match event {
            Event::Changed(changed) => {
                !changed.heirs().is_empty() || changed.rooms().any(|(room, _)| wanted.has(room))
            }
            Event::Truncated { .. } | Event::UserChanged { .. } | Event::Disconnected { .. } => {
                true
            }
        };
        let missed = missed
            .iter()
            .map(|events| events.iter().filter(concerns).copied().collect());
        let missed: Vec<Vec<&Event>> = missed
            .filter(|events: &Vec<_>| !events.is_empty())
            .collect();
        if let Some(who) = membership.who() {
            let mut doubts = Doubts::default();
            for event in missed.iter().flatten() {
                if let Event::Changed(changed) = event
                    && changed.rooms().any(|(room, _)| wanted.has(room))
                {
                    self.access.doubt(who, changed, &mut doubts);
                }
            }
            if !doubts.unknown.is_empty() {
                return Err(Reply::WhoMaySee {
                    asked: self.access.inquiry(doubts.unknown),
                    journal: None,
                });
            }
        }
        let eyes = Looking {
            access: &self.access,
            who: membership.who(),
        };
        let half = membership.outbox.limit() / 2;
        Ok(Replay::of(
            &missed,
            rooms,
            membership.transactions,
            half,
            &eyes,
        ))
    }

    fn begin(&mut self, subscribe: Subscribe, replay: Replay) {
        let Some(membership) = self.members.get_mut(&subscribe.member) else {
            return;
        };
        let cursor: Arc<str> = match &subscribe.from {
            Beginning::Since { since, .. } if !replay.frames.is_empty() => since.to_string().into(),
            Beginning::Records { at, .. } => at.to_string().into(),
            _ => self.cursor.borrow().clone(),
        };
        let source = match &subscribe.from {
            Beginning::Now | Beginning::Records { .. } => None,
            Beginning::Anew(_) => Some("resync"),
            Beginning::Since { .. } if !replay.resync.is_empty() => Some("resync"),
            Beginning::Since {
                journal: Some(Missed::Events(..)),
                ..
            } => Some("journal"),
            Beginning::Since { .. } => Some("memory"),
        };
        if let Some(source) = source {
            self.metrics.resumes.of([source.into()]).inc();
        }
        for told in &replay.resync {
            let reason = told["reason"].as_str().unwrap_or_default();
            self.metrics.resynced(reason, 1);
        }
        let (rooms, denied) = (subscribe.rooms.len(), subscribe.denied.len());
        let mut answer = Map::new();
        answer.insert("type".to_owned(), "subscribed".into());
        answer.insert("id".to_owned(), subscribe.id);
        answer.insert("rooms".to_owned(), subscribe.rooms.clone().into());
        if denied > 0 {
            answer.insert("denied".to_owned(), subscribe.denied.into());
        }
        if !replay.resync.is_empty() {
            answer.insert("resync".to_owned(), replay.resync.into());
        }
        answer.insert("cursor".to_owned(), Value::from(&*cursor));
        let mut frames = vec![frame::text(Value::Object(answer).to_string().as_bytes())];
        for room in &subscribe.rooms {
            let room = match self.rooms.get_key_value(room.as_str()) {
                Some((known, _)) => known.clone(),
                None => room.as_str().into(),
            };
            let entered = self.rooms.entry(room.clone()).or_default();
            let outbox = membership.outbox.clone();
            entered.members.insert(subscribe.member, outbox);
            // what it is told from here on, it is told by what it asked for now
            entered.fresh.remove(&subscribe.member);
            entered.all_see.set(None);
            self.access.begun(subscribe.member, &room);
            membership.rooms.insert(room);
        }
        if let Beginning::Records { records, .. } = subscribe.from {
            for record in records {
                let room = format!("{}:{}", record.module, record.record_id);
                if !membership.rooms.contains(room.as_str()) {
                    continue;
                }
                frames.push(replay::snapshot(&record, &cursor));
                if let (Some(seq), Some(of_room)) = (record.seq, self.rooms.get_mut(room.as_str()))
                {
                    of_room.fresh.insert(subscribe.member, seq);
                }
            }
        }
        frames.extend(replay.frames);
        membership.outbox.push_all(frames);
        let _ = subscribe.reply.send(Reply::Live {
            rooms,
            denied,
            of_all: membership.rooms.len(),
        });
    }
}
