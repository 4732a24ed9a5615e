//! The throttle: at most one update of a field of a record in a given time.
//!
//! The first goes at once; what comes sooner after it waits for the rest of that time and goes out as
//! one update, from the first one's old values to the last one's new ones. It happens once per record,
//! before anybody's room is looked at. Only an update that is a transaction's one event, moves nothing
//! and changes nobody's access is ever held back; anything else sends what waits of its record first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::change::Action;
use crate::event::{Changed, Event};
use crate::rooms::Command;
use crate::snapshot::Place;

/// What was sent lately, and what waits.
pub struct Throttle {
    every: Duration,
    /// By the record's room.
    records: HashMap<Arc<str>, Vec<History>>,
    /// When to look at which record again.
    due: BinaryHeap<Reverse<(Instant, Arc<str>)>>,
    /// Where each of those that wait came from, in the order in which they began to wait.
    held: BTreeMap<u64, Arc<Place>>,
    next: u64,
    /// How far the reader has come.
    place: Arc<Place>,
    last_txid: u64,
}

/// A record's own row, or one of its parts.
struct History {
    part: Option<String>,
    /// The fields that were sent, and when.
    sent: Vec<(String, Instant)>,
    waiting: Option<Waiting>,
}

struct Waiting {
    changed: Changed,
    due: Instant,
    /// Its number among those that wait.
    number: u64,
}

impl Throttle {
    /// One update of a field in this time; with none, nothing is ever held back.
    pub fn new(every: Duration) -> Throttle {
        Throttle {
            every,
            records: HashMap::new(),
            due: BinaryHeap::new(),
            held: BTreeMap::new(),
            next: 0,
            place: Place::nowhere(),
            last_txid: 0,
        }
    }

    /// Passes on what the reader says, until it says nothing more.
    pub async fn run(mut self, mut news: mpsc::Receiver<Command>, rooms: mpsc::Sender<Command>) {
        loop {
            let due = self.due.peek().map(|Reverse((due, _))| *due);
            let commands = tokio::select! {
                command = news.recv() => match command {
                    Some(command) => self.take(command, Instant::now()),
                    None => break,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.look(Instant::now()),
            };
            for command in commands {
                if rooms.send(command).await.is_err() {
                    return;
                }
            }
        }
        for command in self.send_all() {
            // at the end nobody may be left to hear
            let _ = rooms.send(command).await;
        }
    }

    /// What to pass on when the reader says this.
    pub fn take(&mut self, command: Command, now: Instant) -> Vec<Command> {
        match command {
            Command::Publish { events } => self.publish(events, now),
            Command::Reached { place, .. } => {
                self.place = place;
                vec![self.reached()]
            }
            Command::BeginAnew { ref place, .. } => {
                let mut commands = self.send_all();
                self.place = place.clone();
                commands.push(command);
                commands
            }
            other => vec![other],
        }
    }

    fn publish(&mut self, mut events: Vec<Event>, now: Instant) -> Vec<Command> {
        let txid = events.first().map_or(0, Event::txid);
        let is_next_piece = txid == self.last_txid;
        self.last_txid = txid;
        if self.every.is_zero() {
            return vec![Command::Publish { events }];
        }
        if events.len() == 1
            && !is_next_piece
            && matches!(&events[0], Event::Changed(changed) if may_wait(changed))
            && let Some(Event::Changed(changed)) = events.pop()
        {
            return self.offer(*changed, now);
        }
        let mut commands = Vec::new();
        for event in &events {
            match event {
                Event::Changed(changed) => {
                    commands.extend(self.send_waiting(&changed.record_room, |_| true));
                    for heir in changed.heirs() {
                        commands.extend(self.send_waiting(&heir.room, |_| true));
                    }
                    self.note(changed, now);
                }
                Event::Truncated { .. } => commands.extend(self.send_all()),
                Event::UserChanged { .. } | Event::Disconnected { .. } => {}
            }
        }
        commands.push(self.send(events));
        commands
    }

    /// Sends an update, or lets it wait.
    fn offer(&mut self, changed: Changed, now: Instant) -> Vec<Command> {
        let every = self.every;
        let room: Arc<str> = changed.record_room.as_str().into();
        let history = history(&mut self.records, &room, changed.part());
        let last_sent = history.sent.iter();
        let free = last_sent
            .filter(|(column, _)| changed.columns.contains(column))
            .map(|(_, at)| *at + every)
            .filter(|free| *free > now)
            .max();
        let upheaval = Event::Truncated {
            module: changed.module().clone(),
            txid: changed.txid,
            changed_at: changed.changed_at,
        };
        let waiting = match (history.waiting.take(), free) {
            (None, None) => {
                self.note(&changed, now);
                return vec![self.send(vec![Event::Changed(Box::new(changed))])];
            }
            (None, Some(due)) => {
                let number = self.next;
                self.next += 1;
                self.held.insert(number, changed.place().clone());
                Waiting {
                    changed,
                    due,
                    number,
                }
            }
            (Some(first), free) => match first.changed.join(changed) {
                Ok(Some(joined)) => Waiting {
                    changed: joined,
                    due: free.map_or(first.due, |free| free.max(first.due)),
                    number: first.number,
                },
                // the row is again as those who look at it know it
                Ok(None) => {
                    self.held.remove(&first.number);
                    return vec![self.reached()];
                }
                Err(error) => {
                    // both images were read before, so this is a fault of ours: honest about it
                    tracing::error!(%error, record = %room, "two updates could not be made one: the module's rooms fetch anew");
                    self.held.remove(&first.number);
                    let events = vec![upheaval];
                    return vec![Command::Publish { events }, self.reached()];
                }
            },
        };
        self.due.push(Reverse((waiting.due, room)));
        history.waiting = Some(waiting);
        Vec::new()
    }

    /// Remembers that these fields are sent now.
    fn note(&mut self, changed: &Changed, now: Instant) {
        if changed.columns.is_empty() {
            return;
        }
        let room: Arc<str> = changed.record_room.as_str().into();
        let sent = &mut history(&mut self.records, &room, changed.part()).sent;
        sent.retain(|(column, _)| !changed.columns.contains(column));
        sent.extend(changed.columns.iter().map(|column| (column.clone(), now)));
        self.due.push(Reverse((now + self.every, room)));
    }

    /// What to pass on at this time: what has waited long enough. Forgets what was sent long ago.
    pub fn look(&mut self, now: Instant) -> Vec<Command> {
        let mut commands = Vec::new();
        while self.due.peek().is_some_and(|Reverse((due, _))| *due <= now) {
            let Some(Reverse((_, room))) = self.due.pop() else {
                break;
            };
            commands.extend(self.send_waiting(&room, |waiting| waiting.due <= now));
            for command in &commands {
                if let Command::Publish { events } = command
                    && let [Event::Changed(changed)] = &events[..]
                    && *changed.record_room == *room
                {
                    self.note(changed, now);
                }
            }
            if let Some(histories) = self.records.get_mut(&room) {
                for history in histories.iter_mut() {
                    history.sent.retain(|(_, at)| *at + self.every > now);
                }
                histories.retain(|history| history.waiting.is_some() || !history.sent.is_empty());
                if histories.is_empty() {
                    self.records.remove(&room);
                }
            }
        }
        if !commands.is_empty() {
            commands.push(self.reached());
        }
        commands
    }

    /// Sends what waits of a record, its parts one after the other.
    fn send_waiting(&mut self, room: &str, which: impl Fn(&Waiting) -> bool) -> Vec<Command> {
        let Some(histories) = self.records.get_mut(room) else {
            return Vec::new();
        };
        let taken = histories
            .iter_mut()
            .filter_map(|history| history.waiting.take_if(|waiting| which(waiting)));
        let mut taken: Vec<Waiting> = taken.collect();
        taken.sort_by_key(|waiting| waiting.number);
        let mut commands = Vec::new();
        for waiting in taken {
            // not past itself, and so not past what was made part of it
            commands.push(self.send(vec![Event::Changed(Box::new(waiting.changed))]));
            self.held.remove(&waiting.number);
        }
        commands
    }

    fn send_all(&mut self) -> Vec<Command> {
        let rooms: Vec<Arc<str>> = self.records.keys().cloned().collect();
        let all = rooms
            .iter()
            .flat_map(|room| self.send_waiting(room, |_| true));
        all.collect()
    }

    fn send(&self, mut events: Vec<Event>) -> Command {
        if let Some(oldest) = self.held.values().next() {
            for event in &mut events {
                if let Event::Changed(changed) = event {
                    changed.not_past(oldest);
                }
            }
        }
        Command::Publish { events }
    }

    fn reached(&self) -> Command {
        let oldest = self.held.values().next();
        Command::Reached {
            place: self.place.clone(),
            told: oldest.unwrap_or(&self.place).clone(),
        }
    }
}

fn history<'a>(
    records: &'a mut HashMap<Arc<str>, Vec<History>>,
    room: &Arc<str>,
    part: Option<&str>,
) -> &'a mut History {
    let histories = records.entry(room.clone()).or_default();
    let place = histories
        .iter()
        .position(|known| known.part.as_deref() == part);
    let place = place.unwrap_or_else(|| {
        histories.push(History {
            part: part.map(str::to_owned),
            sent: Vec::new(),
            waiting: None,
        });
        histories.len() - 1
    });
    &mut histories[place]
}

/// Whether this one may be held back at all.
fn may_wait(changed: &Changed) -> bool {
    changed.action() == Action::Updated
        && !changed.changes_access
        && changed.left.is_empty()
        && changed.entered.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Change;
    use crate::registry::{KeyForm, Module, Registry};
    use crate::snapshot::{Cursor, Position, Snapshot};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::Value;

    const EVERY: Duration = Duration::from_millis(1000);

    /// A relay's world of one record with three fields, and what it was told.
    struct World {
        throttle: Throttle,
        began: Instant,
        fields: [u64; 3],
        seq: u64,
        told: Vec<(Instant, Value)>,
        cursors: Vec<u64>,
    }

    fn place(xmax: u64) -> Arc<Place> {
        let snapshot = Snapshot {
            xmax,
            xip: Vec::new(),
        };
        let position = Position {
            snapshot,
            witness: None,
        };
        Place::of(Cursor {
            epoch: "3f2a91c0".to_owned(),
            position,
        })
    }

    impl World {
        fn new() -> World {
            World {
                throttle: Throttle::new(EVERY),
                began: Instant::now(),
                fields: [0; 3],
                seq: 0,
                told: Vec::new(),
                cursors: Vec::new(),
            }
        }

        /// One transaction that sets these fields to new values, or none of them but says so by an
        /// insert of another record with it.
        fn update(&mut self, at: Instant, which: &[usize], with_other: bool) {
            self.seq += 1;
            let image = |fields: &[u64; 3], version: u64| {
                format!(
                    r#"{{"a":{},"b":{},"c":{},"version":{version}}}"#,
                    fields[0], fields[1], fields[2]
                )
            };
            let old_image = Some(image(&self.fields, self.seq - 1));
            for &field in which {
                self.fields[field] += 1;
            }
            let change = Change {
                seq: self.seq,
                txid: self.seq + 100,
                module: "leads".into(),
                action: Action::Updated,
                record_id: "1".to_owned(),
                part: None,
                actor: None,
                changed_at: std::time::SystemTime::UNIX_EPOCH,
                depth: 1,
                old_image,
                new_image: Some(image(&self.fields, self.seq)),
                record_image: None,
                before: None,
                after: None,
                heirs: Vec::new(),
            };
            let mut changes = vec![change];
            if with_other {
                let mut other = changes[0].clone();
                other.record_id = "2".to_owned();
                changes.push(other);
            }
            let registry = Registry::of([Module {
                name: "leads".into(),
                event: "LEAD".to_owned(),
                key_columns: vec!["id".to_owned()],
                key: KeyForm::Text,
                quiet_columns: vec!["version".to_owned()],
                access_columns: Vec::new(),
                is_narrow: false,
                access_of: None,
                missing: Vec::new(),
                is_part: false,
            }]);
            let events = crate::reader::events(changes, &registry, &place(self.seq));
            let commands = self.throttle.take(Command::Publish { events }, at);
            self.pass(at, commands);
            let reached = Command::Reached {
                place: place(self.seq + 1),
                told: place(self.seq + 1),
            };
            let commands = self.throttle.take(reached, at);
            self.pass(at, commands);
        }

        fn pass(&mut self, at: Instant, commands: Vec<Command>) {
            for command in commands {
                match command {
                    Command::Publish { events } => {
                        for event in events {
                            let Event::Changed(changed) = event else {
                                continue;
                            };
                            let frame = changed.frame(crate::event::View::Stayed, &[]);
                            let told: Value = serde_json::from_slice(frame.payload()).unwrap();
                            self.cursors
                                .push(changed.place().cursor.position.snapshot.xmax);
                            if told["recordId"] == "1" {
                                self.told.push((at, told));
                            }
                        }
                    }
                    Command::Reached { told, .. } => {
                        self.cursors.push(told.cursor.position.snapshot.xmax);
                    }
                    _ => {}
                }
            }
        }

        fn pass_time(&mut self, until: Instant) {
            while let Some(Reverse((due, _))) = self.throttle.due.peek() {
                let due = *due;
                if due > until {
                    break;
                }
                let commands = self.throttle.look(due);
                self.pass(due, commands);
            }
        }
    }

    #[test]
    fn the_first_goes_at_once_and_the_rest_of_the_second_as_one() {
        let mut world = World::new();
        for ms in [0, 100, 200, 300] {
            let at = world.began + Duration::from_millis(ms);
            world.pass_time(at);
            world.update(at, &[0], false);
        }
        assert_eq!(world.told.len(), 1);
        world.pass_time(world.began + EVERY * 3);
        let [(first_at, first), (second_at, second)] = &world.told[..] else {
            panic!("{:?}", world.told);
        };
        assert_eq!((*first_at, *second_at), (world.began, world.began + EVERY));
        assert!(first.get("coalesced").is_none());
        assert_eq!(
            (&second["coalesced"], &second["seq"]),
            (&3.into(), &"4".into())
        );
        assert_eq!(
            (&second["previous"]["a"], &second["data"]["a"]),
            (&1.into(), &4.into())
        );
        assert!(world.throttle.records.is_empty() && world.throttle.held.is_empty());
    }

    #[test]
    fn a_transaction_of_several_changes_waits_for_nothing_and_sends_what_waits_before() {
        let mut world = World::new();
        world.update(world.began, &[0], false);
        world.update(world.began, &[0], false);
        assert_eq!(world.told.len(), 1);
        world.update(world.began, &[1], true);
        let seqs: Vec<&Value> = world.told.iter().map(|(_, told)| &told["seq"]).collect();
        assert_eq!(seqs, ["1", "2", "3"]);
    }

    #[test]
    fn another_field_does_not_wait() {
        let mut world = World::new();
        world.update(world.began, &[0], false);
        world.update(world.began, &[1], false);
        assert_eq!(world.told.len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_field_flickers_and_the_last_value_always_arrives(
            steps in vec((0u64..700, vec(0usize..3, 1..3), prop::bool::weighted(0.15)), 1..60)
        ) {
            let mut world = World::new();
            let mut now = world.began;
            let mut alone = Vec::new();
            for (wait, which, with_other) in steps {
                now += Duration::from_millis(wait);
                world.pass_time(now);
                world.update(now, &which, with_other);
                alone.push(!with_other);
            }
            world.pass_time(now + EVERY * 2);
            let mut last_sent: HashMap<&str, Instant> = HashMap::new();
            let mut values: HashMap<&str, u64> = HashMap::new();
            let mut seq = 0;
            for (at, told) in &world.told {
                let this: u64 = told["seq"].as_str().unwrap().parse().unwrap();
                prop_assert!(this > seq, "{told}");
                let held_back = told.get("coalesced").is_some() || alone[this as usize - 1];
                for field in ["a", "b", "c"] {
                    let Some(is) = told["data"][field].as_u64() else { continue };
                    let was = told["previous"][field].as_u64().unwrap();
                    prop_assert_eq!(was, values.get(field).copied().unwrap_or(0), "{}", told);
                    values.insert(field, is);
                    let before = last_sent.insert(field, *at);
                    // what comes before a transaction of several changes is sent early
                    if held_back && !alone.contains(&false) {
                        prop_assert!(before.is_none_or(|before| *at >= before + EVERY), "{told}");
                    }
                }
                seq = this;
            }
            let end = ["a", "b", "c"].map(|field| values.get(field).copied().unwrap_or(0));
            prop_assert_eq!(end, world.fields);
            prop_assert!(world.throttle.records.is_empty() && world.throttle.held.is_empty());
            prop_assert_eq!(world.cursors.last(), Some(&(world.seq + 1)), "nothing is held, so the cursor is at the end");
        }

        #[test]
        fn a_cursor_never_passes_what_is_held_back(
            steps in vec((0u64..400, vec(0usize..3, 1..3)), 1..40)
        ) {
            let mut world = World::new();
            let mut now = world.began;
            for (wait, which) in steps {
                now += Duration::from_millis(wait);
                world.pass_time(now);
                world.update(now, &which, false);
                let sent = world.told.last().map_or(0, |(_, told)| told["seq"].as_str().unwrap().parse().unwrap());
                let cursor = world.cursors.last().copied().unwrap_or(0);
                // the batch of change n begins at n and ends at n + 1
                if sent < world.seq {
                    prop_assert!(cursor <= sent + 1, "cursor {} passes change {}", cursor, sent + 1);
                }
            }
        }
    }
}
