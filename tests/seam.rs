//! The seam between what a client missed and what happens: any interleaving of commits, batches,
//! losses and returns against a simple model, on two relays whose batches differ.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use crm_relay::change::{Action, Change};
use crm_relay::event::Event;
use crm_relay::frame::{self, Frame};
use crm_relay::outbox::Outbox;
use crm_relay::reader::events;
use crm_relay::registry::{KeyForm, Module, Registry};
use crm_relay::rooms::{Beginning, Bounds, Command, Enter, Missed, Reply, Rooms, Subscribe};
use crm_relay::snapshot::{Cursor, Place, Position, Snapshot};
use crm_relay::standing::Standing;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

const RECORDS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// A transaction takes its id.
    Begin,
    /// One that is open writes a record and commits.
    Commit { which: usize, record: usize },
    /// One that is open is rolled back.
    Rollback { which: usize },
    /// A relay reads what became visible.
    Read { relay: usize },
    /// The client takes some of what waits for it.
    Take { frames: usize },
    /// The client loses its connection, with what waits, and comes back.
    Return { relay: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Begin),
        4 => (0..8usize, 0..RECORDS).prop_map(|(which, record)| Step::Commit { which, record }),
        1 => (0..8usize).prop_map(|which| Step::Rollback { which }),
        4 => (0..2usize).prop_map(|relay| Step::Read { relay }),
        3 => (0..6usize).prop_map(|frames| Step::Take { frames }),
        2 => (0..2usize).prop_map(|relay| Step::Return { relay }),
    ]
}

/// Postgres, as far as it matters here.
#[derive(Default)]
struct Database {
    next: u64,
    open: Vec<u64>,
    seq: u64,
    values: [u64; RECORDS],
    journal: Vec<Change>,
}

impl Database {
    fn snapshot(&self) -> Snapshot {
        let mut xip = self.open.clone();
        xip.sort();
        Snapshot {
            xmax: self.next,
            xip,
        }
    }

    fn commit(&mut self, txid: u64, record: usize) {
        self.seq += 1;
        let value = &mut self.values[record];
        let image = |value: u64| Some(format!(r#"{{"value":{value}}}"#));
        let (old_image, new_image) = (image(*value), image(*value + 1));
        *value += 1;
        let standing = Arc::new(Standing::of(
            0,
            "leads".into(),
            "{}",
            &["team:1".to_owned()],
        ));
        self.journal.push(Change {
            seq: self.seq,
            txid,
            module: "leads".into(),
            action: Action::Updated,
            record_id: record.to_string(),
            part: None,
            actor: None,
            changed_at: SystemTime::UNIX_EPOCH,
            depth: 1,
            old_image,
            new_image,
            record_image: None,
            before: Some(standing.clone()),
            after: Some(standing),
            heirs: Vec::new(),
        });
    }

    /// What the reader's query would return: transactions here have one change, so `seq` is the order.
    fn between(&self, old: &Snapshot, new: &Snapshot) -> Vec<Change> {
        let unseen = |change: &&Change| new.sees(change.txid) && !old.sees(change.txid);
        self.journal.iter().filter(unseen).cloned().collect()
    }
}

struct Relay {
    rooms: Rooms,
    place: Arc<Place>,
    /// The connection of the client, while it has one here.
    outbox: Option<Arc<Outbox>>,
}

fn registry() -> Registry {
    Registry::of([Module {
        name: "leads".into(),
        event: "LEAD".to_owned(),
        key_columns: vec!["id".to_owned()],
        key: KeyForm::Text,
        quiet_columns: Vec::new(),
        access_columns: Vec::new(),
        is_narrow: false,
        access_of: None,
        missing: Vec::new(),
        is_part: false,
    }])
}

fn place(position: Position) -> Arc<Place> {
    Place::of(Cursor {
        epoch: "3f2a91c0".to_owned(),
        position,
    })
}

impl Relay {
    fn start(database: &Database, recent_bytes: usize) -> Relay {
        let bounds = Bounds {
            recent_bytes,
            flood_changes: 500,
            rooms: 1000,
        };
        let mut rooms = Rooms::new(watch::channel(Arc::from("")).0, Arc::default(), bounds);
        let place = place(Position {
            snapshot: database.snapshot().clipped(0),
            witness: None,
        });
        rooms.obey(Command::BeginAnew {
            place: place.clone(),
            why: "epoch_changed",
            disconnected: Vec::new(),
        });
        rooms.obey(Command::Remember {
            since: place.clone(),
            until: place.clone(),
            past: Vec::new(),
        });
        Relay {
            rooms,
            place,
            outbox: None,
        }
    }

    fn read(&mut self, database: &Database) {
        let old = &self.place.cursor.position;
        let new = database.snapshot();
        let changes = database.between(&old.snapshot, &new);
        let newest = changes.iter().max_by_key(|change| change.txid);
        let highest = newest.map_or(old.highest(), |change| change.txid.max(old.highest()));
        let witness = newest
            .filter(|change| change.txid > old.highest())
            .map(|change| change.seq);
        let next = Position {
            snapshot: new.clipped(highest),
            witness: witness.or(old.witness),
        };
        for change in changes {
            let events = events(vec![change], &registry(), &self.place);
            self.rooms.obey(Command::Publish { events });
        }
        self.place = place(next);
        self.rooms.obey(Command::Reached {
            place: self.place.clone(),
            told: self.place.clone(),
        });
    }
}

#[derive(Default)]
struct Client {
    relay: usize,
    member: u64,
    waits: VecDeque<Frame>,
    cursor: Option<Cursor>,
    last_seq: HashMap<String, u64>,
    values: HashMap<String, Vec<u64>>,
}

impl Client {
    fn connect(&mut self, relays: &mut [Relay; 2], relay: usize, database: &mut Database) {
        relays[self.relay].rooms.obey(Command::Leave {
            member: self.member,
        });
        relays[self.relay].outbox = None;
        self.waits.clear();
        self.relay = relay;
        self.member += 1;
        let Relay { rooms, outbox, .. } = &mut relays[relay];
        let own = Arc::new(Outbox::new(1 << 20));
        *outbox = Some(own.clone());
        rooms.obey(Command::Enter(Box::new(Enter {
            member: self.member,
            session: Uuid::nil(),
            outbox: own,
            transactions: false,
            bearer: None,
            welcome: frame::text(b"{}"),
        })));
        let mut from = match self.cursor.clone() {
            None => Beginning::Now,
            Some(since) => Beginning::Since {
                since,
                journal: None,
            },
        };
        for _ in 0..4 {
            let (reply, mut replied) = oneshot::channel();
            let subscribe = Subscribe {
                member: self.member,
                rooms: ["leads:0", "leads:1", "team:1"].map(str::to_owned).into(),
                granted: None,
                from,
                id: 1.into(),
                denied: Vec::new(),
                reply,
            };
            let subscribe = Command::Subscribe(Box::new(subscribe));
            relays[relay].rooms.obey(subscribe);
            let since = self
                .cursor
                .clone()
                .unwrap_or_else(|| relays[relay].place.cursor.clone());
            let journal = match replied.try_recv().expect("an answer") {
                Reply::Live { .. } => return,
                Reply::IsItGood => Missed::Nothing,
                Reply::WhatWasMissed => {
                    let until = database.snapshot();
                    let changes = database.between(&since.position.snapshot, &until);
                    let from = Place::of(since.clone());
                    let highest = database.journal.iter().map(|change| change.txid).max();
                    let events: Vec<Vec<Event>> = changes
                        .into_iter()
                        .map(|change| events(vec![change], &registry(), &from))
                        .collect();
                    // while the journal was looked at, life went on
                    let txid = database.next;
                    database.next += 1;
                    database.commit(txid, 0);
                    relays[relay].read(database);
                    Missed::Events(events, until.clipped(highest.unwrap_or(0)))
                }
                other => panic!("nobody is to be asked, but {other:?}"),
            };
            from = Beginning::Since {
                since,
                journal: Some(journal),
            };
        }
        panic!("never answered");
    }

    fn take(&mut self, relays: &[Relay; 2], frames: usize) {
        if let Some(outbox) = &relays[self.relay].outbox {
            let mut taken = VecDeque::new();
            outbox.take(&mut taken);
            self.waits.extend(taken);
        }
        for bytes in self.waits.drain(..frames.min(self.waits.len())) {
            let told: Value = serde_json::from_slice(bytes.payload()).unwrap();
            assert!(told.get("resync").is_none(), "{told}");
            if let Some(cursor) = told["cursor"].as_str() {
                self.cursor = Some(cursor.parse().unwrap());
            }
            let Some(seq) = told["seq"].as_str() else {
                continue;
            };
            let record = told["recordId"].as_str().unwrap().to_owned();
            let last = self.last_seq.entry(record.clone()).or_default();
            if seq.parse::<u64>().unwrap() > *last {
                *last = seq.parse().unwrap();
                let value = told["data"]["value"].as_u64().unwrap();
                let seen = self.values.entry(record).or_default();
                if let Some(before) = seen.last() {
                    assert_eq!(value, before + 1, "a gap, or out of order: {told}");
                }
                seen.push(value);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn whoever_comes_back_sees_every_history_whole(
        steps in vec(step(), 1..120),
        recent_bytes in prop_oneof![Just(1usize), Just(6_000), Just(1 << 20)],
    ) {
        let mut database = Database { next: 10, ..Database::default() };
        let mut relays = [Relay::start(&database, recent_bytes), Relay::start(&database, recent_bytes)];
        let mut client = Client::default();
        client.connect(&mut relays, 0, &mut database);
        client.take(&relays, 2);
        for step in steps {
            match step {
                Step::Begin => {
                    database.open.push(database.next);
                    database.next += 1;
                }
                Step::Commit { which, record } => {
                    if !database.open.is_empty() {
                        let txid = database.open.remove(which % database.open.len());
                        database.commit(txid, record);
                    }
                }
                Step::Rollback { which } => {
                    if !database.open.is_empty() {
                        database.open.remove(which % database.open.len());
                    }
                }
                Step::Read { relay } => relays[relay].read(&database),
                Step::Take { frames } => client.take(&relays, frames),
                Step::Return { relay } => client.connect(&mut relays, relay, &mut database),
            }
        }
        for relay in &mut relays {
            relay.read(&database);
        }
        client.take(&relays, usize::MAX);
        let records: HashSet<usize> = (0..RECORDS).filter(|&record| database.values[record] > 0).collect();
        for record in records {
            let seen = client.values.get(&record.to_string()).cloned().unwrap_or_default();
            prop_assert_eq!(seen, (1..=database.values[record]).collect::<Vec<_>>(), "record {}", record);
        }
    }
}
