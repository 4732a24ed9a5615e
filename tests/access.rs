//! Who sees what, in any interleaving: records that move between two teams, a user who changes team,
//! grants and answers of the policy that come late, batches, subscriptions of every kind.
//!
//! What somebody is told must have been theirs to see at some moment between its commit and its
//! telling, and who may see a record and is in its room knows how it is.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use crm_relay::answers::TURN;
use crm_relay::change::{Action, Change};
use crm_relay::event::Event;
use crm_relay::frame;
use crm_relay::journal::RecordNow;
use crm_relay::outbox::Outbox;
use crm_relay::policy::{Credential, Question};
use crm_relay::reader::events;
use crm_relay::registry::{KeyForm, Module, Registry};
use crm_relay::rooms::{
    Asked, Bearer, Beginning, Bounds, Command, Enter, Inquiry, Judges, Missed, Reply, Rooms,
    Subscribe, Verdicts,
};
use crm_relay::snapshot::{Cursor, Place, Position, Snapshot};
use crm_relay::standing::Standing;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;
use tokio::runtime::{self, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

const RECORDS: usize = 2;
const ROOMS: [&str; 4] = ["leads:0", "leads:1", "team:0", "team:1"];

#[derive(Debug, Clone)]
enum Step {
    /// A record gets another value, and perhaps another team; with the user's change in the same
    /// transaction, or without.
    Edit {
        record: usize,
        team: usize,
        with_user: bool,
    },
    /// The user changes team.
    Move { team: usize },
    /// The relay reads what was committed.
    Read,
    /// Rooms are wanted: the policy grants them now.
    Ask { wanted: Vec<usize>, kind: usize },
    /// What the policy granted, or the journal told, reaches the rooms.
    Register,
    /// The policy looks at what it was asked.
    Think,
    /// Its answer arrives.
    Answer,
    /// Time passes, and answers are not as good as new any more.
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..RECORDS, 0..2usize, prop::bool::weighted(0.1)).prop_map(|(record, team, with_user)| Step::Edit { record, team, with_user }),
        1 => (0..2usize).prop_map(|team| Step::Move { team }),
        5 => Just(Step::Read),
        2 => (vec(0..ROOMS.len(), 1..4), 0..3usize).prop_map(|(wanted, kind)| Step::Ask { wanted, kind }),
        4 => Just(Step::Register),
        5 => Just(Step::Think),
        5 => Just(Step::Answer),
        1 => Just(Step::Wait),
    ]
}

/// Postgres: one transaction after the other, so that its id is the time.
struct Database {
    now: u64,
    values: [u64; RECORDS],
    teams: [usize; RECORDS],
    seqs: [u64; RECORDS],
    seq: u64,
    /// The user's team from a moment on.
    of_user: Vec<(u64, usize)>,
    journal: Vec<Change>,
    standings: [Arc<Standing>; 2],
}

fn standing(number: u64, module: &str) -> Arc<Standing> {
    let access = format!(r#"{{"team":{number}}}"#);
    let rooms = [format!("team:{number}")];
    Arc::new(Standing::of(number, module.into(), &access, &rooms))
}

impl Database {
    fn new() -> Database {
        let mut database = Database {
            now: 10,
            values: [0; RECORDS],
            teams: [0; RECORDS],
            seqs: [0; RECORDS],
            seq: 0,
            of_user: vec![(0, 0)],
            journal: Vec::new(),
            standings: [standing(0, "leads"), standing(1, "leads")],
        };
        for record in 0..RECORDS {
            database.edit(record, 0, None);
        }
        database
    }

    fn write(&mut self, module: &str, record_id: String, images: (String, String)) -> &mut Change {
        self.seq += 1;
        self.journal.push(Change {
            seq: self.seq,
            txid: self.now,
            module: module.into(),
            action: Action::Updated,
            record_id,
            part: None,
            actor: None,
            changed_at: SystemTime::UNIX_EPOCH,
            depth: 1,
            old_image: Some(images.0),
            new_image: Some(images.1),
            record_image: None,
            before: None,
            after: None,
            heirs: Vec::new(),
        });
        self.journal.last_mut().unwrap()
    }

    fn edit(&mut self, record: usize, team: usize, user: Option<usize>) {
        let was = self.teams[record];
        let value = self.values[record];
        // a value tells when it was written
        let (old, new) = (value, self.now);
        let image =
            |team: usize, value: u64| format!(r#"{{"id":{record},"team":{team},"value":{value}}}"#);
        let standings = self.standings.clone();
        let change = self.write(
            "leads",
            record.to_string(),
            (image(was, old), image(team, new)),
        );
        change.before = Some(standings[was].clone());
        change.after = Some(standings[team].clone());
        self.values[record] = new;
        self.teams[record] = team;
        self.seqs[record] = self.seq;
        if let Some(team) = user {
            self.of_the_user(team);
        }
        self.now += 1;
    }

    fn of_the_user(&mut self, team: usize) {
        let was = self.team_at(self.now);
        let image = |team: usize| format!(r#"{{"id":"ann","team":{team}}}"#);
        let change = self.write("users", "ann".to_owned(), (image(was), image(team)));
        change.before = Some(standing(10 + was as u64, "users"));
        change.after = Some(standing(10 + team as u64, "users"));
        self.of_user.push((self.now, team));
    }

    fn team_at(&self, moment: u64) -> usize {
        let known = self.of_user.iter().rev();
        known.clone().find(|(since, _)| *since <= moment).unwrap().1
    }

    /// Whether the user was ever of this team from one moment to the present.
    fn was_of(&self, team: usize, since: u64) -> bool {
        (since..self.now + 1).any(|moment| self.team_at(moment) == team)
    }

    /// Whether the policy lets the user be in a room now.
    fn grants(&self, room: &str) -> bool {
        self.granted_at(room, self.now)
    }

    fn granted_at(&self, room: &str, moment: u64) -> bool {
        let team = self.team_at(moment);
        let (kind, id) = room.split_once(':').unwrap();
        if kind == "team" {
            return id.parse::<usize>().unwrap() == team;
        }
        let mut edits = self.journal.iter().rev();
        let last = edits.find(|change| {
            &*change.module == "leads" && change.record_id == id && change.txid <= moment
        });
        last.is_some_and(|change| change.after.as_ref().unwrap().number as usize == team)
    }

    fn judge(&self, question: &Question) -> bool {
        question.standing.number as usize == self.team_at(self.now)
    }

    fn cursor(&self) -> Cursor {
        let newest = self.journal.last().unwrap();
        Cursor {
            epoch: "3f2a91c0".to_owned(),
            position: Position {
                snapshot: Snapshot {
                    xmax: newest.txid + 1,
                    xip: Vec::new(),
                },
                witness: Some(newest.seq),
            },
        }
    }
}

fn registry() -> Registry {
    let module = |name: &str, is_narrow| Module {
        name: name.into(),
        event: name.to_uppercase(),
        key_columns: vec!["id".to_owned()],
        key: KeyForm::Text,
        quiet_columns: Vec::new(),
        access_columns: vec!["team".to_owned()],
        is_narrow,
        access_of: None,
        missing: Vec::new(),
        is_part: false,
    };
    Registry::of([module("leads", false), module("users", true)])
}

/// A subscription under way.
struct Wish {
    rooms: Vec<&'static str>,
    kind: usize,
    since: Option<Cursor>,
    granted: Option<(Vec<String>, Cursor)>,
    /// Records as they were when somebody looked, after the grant.
    records: Option<(Vec<RecordNow>, Cursor)>,
    journal: Option<Missed>,
    /// What the policy answered and the rooms were not told yet.
    verdicts: Option<Verdicts>,
    replied: Option<oneshot::Receiver<Reply>>,
}

struct World {
    /// Whose time passes when it is told to.
    time: Arc<Runtime>,
    database: Database,
    rooms: Rooms,
    place: Arc<Place>,
    outbox: Arc<Outbox>,
    asked: [mpsc::Receiver<Asked>; 2],
    /// What the policy was asked, and what it answered but did not tell yet.
    questions: VecDeque<Asked>,
    answers: VecDeque<Command>,
    wish: Option<Wish>,
    /// What the client knows: of each record the last `seq`; in which rooms it is.
    known: HashMap<String, u64>,
    is_in: Vec<String>,
    cursor: Option<Cursor>,
    /// From where its last subscription goes on.
    resumes: Option<Cursor>,
    /// When each of its rooms was granted, last.
    granted_at: HashMap<String, u64>,
    /// The same of those that it waits for.
    granting: HashMap<String, u64>,
}

fn enters(member: u64, outbox: &Arc<Outbox>, bearer: Bearer) -> Command {
    Command::Enter(Box::new(Enter {
        member,
        session: Uuid::nil(),
        outbox: outbox.clone(),
        transactions: false,
        bearer: Some(bearer),
        welcome: frame::text(b"{}"),
    }))
}

/// To these rooms, as they were granted at a moment.
fn subscribes(
    member: u64,
    rooms: Vec<String>,
    granted: &Cursor,
    from: Beginning,
) -> (Command, oneshot::Receiver<Reply>) {
    let (reply, replied) = oneshot::channel();
    let subscribe = Subscribe {
        member,
        rooms,
        granted: Some(granted.clone()),
        from,
        id: 1.into(),
        denied: Vec::new(),
        reply,
    };
    (Command::Subscribe(Box::new(subscribe)), replied)
}

impl World {
    fn new(recent_bytes: usize) -> World {
        let time = runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let time = Arc::new(time);
        let _now = time.enter();
        let database = Database::new();
        let bounds = Bounds {
            recent_bytes,
            flood_changes: 500,
            rooms: 1000,
        };
        let (now, asked_now) = mpsc::channel(1);
        let (later, asked_later) = mpsc::channel(1);
        let cursor = watch::channel(Arc::from("")).0;
        let mut rooms = Rooms::new(cursor, Arc::default(), bounds).judged_by(Judges { now, later });
        let place = Place::of(database.cursor());
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
        let who = Arc::new(Credential {
            number: 1,
            user: "ann".to_owned(),
            claims: "{}".to_owned(),
        });
        let outbox = Arc::new(Outbox::new(1 << 22));
        let bearer = Bearer {
            who,
            issued_at: None,
        };
        rooms.obey(enters(1, &outbox, bearer));
        World {
            time: time.clone(),
            database,
            rooms,
            place,
            outbox,
            asked: [asked_now, asked_later],
            questions: VecDeque::new(),
            answers: VecDeque::new(),
            wish: None,
            known: HashMap::new(),
            is_in: Vec::new(),
            cursor: None,
            resumes: None,
            granted_at: HashMap::new(),
            granting: HashMap::new(),
        }
    }

    fn go(&mut self, step: Step) {
        let time = self.time.clone();
        let _now = time.enter();
        match step {
            Step::Wait => time.block_on(tokio::time::advance(TURN)),
            Step::Edit {
                record,
                team,
                with_user,
            } => self.database.edit(record, team, with_user.then_some(team)),
            Step::Move { team } => {
                self.database.of_the_user(team);
                self.database.now += 1;
            }
            Step::Read => self.read(),
            Step::Ask { wanted, kind } => {
                if self.wish.is_none() {
                    let mut rooms: Vec<_> = wanted.iter().map(|&room| ROOMS[room]).collect();
                    rooms.sort_unstable();
                    rooms.dedup();
                    rooms.retain(|room| kind != 2 || room.starts_with("leads"));
                    self.wish = Some(Wish {
                        rooms,
                        kind,
                        since: self.cursor.clone().filter(|_| kind == 1),
                        granted: None,
                        records: None,
                        journal: None,
                        verdicts: None,
                        replied: None,
                    });
                    self.grant();
                }
            }
            Step::Register => self.register(),
            Step::Think => self.think(),
            Step::Answer => {
                if let Some(answer) = self.answers.pop_front() {
                    self.rooms.obey(answer);
                }
            }
        }
        self.listen();
    }

    fn read(&mut self) {
        let old = self.place.cursor.position.snapshot.clone();
        let mut by_txid: Vec<Vec<Change>> = Vec::new();
        for change in self
            .database
            .journal
            .iter()
            .filter(|change| !old.sees(change.txid))
        {
            match by_txid
                .last_mut()
                .filter(|last| last[0].txid == change.txid)
            {
                Some(last) => last.push(change.clone()),
                None => by_txid.push(vec![change.clone()]),
            }
        }
        for changes in by_txid {
            let events = events(changes, &registry(), &self.place);
            self.rooms.obey(Command::Publish { events });
        }
        self.place = Place::of(self.database.cursor());
        self.rooms.obey(Command::Reached {
            place: self.place.clone(),
            told: self.place.clone(),
        });
    }

    fn grant(&mut self) {
        let database = &self.database;
        if let Some(wish) = &mut self.wish {
            let rooms = wish.rooms.iter().filter(|room| database.grants(room));
            let rooms = rooms.map(|&room| room.to_owned()).collect();
            wish.granted = Some((rooms, database.cursor()));
            wish.records = None;
        }
    }

    /// One step of what a connection's task does for its subscription.
    fn register(&mut self) {
        let Some(mut wish) = self.wish.take() else {
            return;
        };
        if let Some(verdicts) = wish.verdicts.take() {
            self.rooms.obey(Command::Known(verdicts));
        }
        if let Some(mut replied) = wish.replied.take() {
            match replied.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => wish.replied = Some(replied),
                Err(_) => panic!("dropped without a word"),
                Ok(Reply::Live { .. }) => return,
                Ok(Reply::IsItStillGranted) => wish.granted = None,
                Ok(Reply::IsItGood) => wish.journal = Some(Missed::Nothing),
                Ok(Reply::WhatWasMissed) => match &wish.since {
                    None => wish.records = None,
                    Some(since) => {
                        let snapshot = &since.position.snapshot;
                        let place = Place::of(since.clone());
                        let unseen = self.database.journal.iter();
                        let unseen = unseen.filter(|change| !snapshot.sees(change.txid));
                        let all: Vec<Vec<Event>> = unseen
                            .map(|change| events(vec![change.clone()], &registry(), &place))
                            .collect();
                        let until = self.database.cursor().position.snapshot;
                        wish.journal = Some(Missed::Events(all, until));
                    }
                },
                Ok(Reply::WhoMaySee { asked, journal }) => {
                    wish.journal = journal;
                    let judged = |question: Question| {
                        let answer = self.database.judge(&question);
                        (question, answer)
                    };
                    wish.verdicts = Some(Verdicts {
                        answers: asked.questions.into_iter().map(judged).collect(),
                        era: asked.era,
                    });
                }
            }
            self.wish = Some(wish);
            return;
        }
        if wish.granted.is_none() {
            self.wish = Some(wish);
            return self.grant();
        }
        let Some((rooms, granted)) = wish.granted.clone() else {
            return;
        };
        if wish.kind == 2 && wish.records.is_none() {
            let record = |room: &String| {
                let id = room.split_once(':').unwrap().1.to_owned();
                let record: usize = id.parse().unwrap();
                let (team, value) = (self.database.teams[record], self.database.values[record]);
                RecordNow {
                    module: "leads".into(),
                    record_id: id,
                    image: Some(format!(
                        r#"{{"id":{record},"team":{team},"value":{value}}}"#
                    )),
                    seq: Some(self.database.seqs[record]),
                }
            };
            wish.records = Some((rooms.iter().map(record).collect(), self.database.cursor()));
            self.wish = Some(wish);
            return;
        }
        let from = match (wish.records.take(), &wish.since) {
            (Some((records, at)), _) => Beginning::Records { records, at },
            (None, Some(since)) => Beginning::Since {
                since: since.clone(),
                journal: wish.journal.take(),
            },
            (None, None) => Beginning::Now,
        };
        self.resumes = wish.since.clone();
        let moment = granted.position.snapshot.xmax - 1;
        self.granting = rooms.iter().map(|room| (room.clone(), moment)).collect();
        let (command, replied) = subscribes(1, rooms, &granted, from);
        wish.replied = Some(replied);
        self.rooms.obey(command);
        self.wish = Some(wish);
    }

    fn think(&mut self) {
        for asked in &mut self.asked {
            while let Ok(question) = asked.try_recv() {
                self.questions.push_back(question);
            }
        }
        let judged = |inquiry: Inquiry| {
            let answers = (inquiry.questions.iter()).map(|question| self.database.judge(question));
            inquiry.answered(&answers.collect::<Vec<_>>())
        };
        let answer = match self.questions.pop_front() {
            None => return,
            Some(Asked::Judge(inquiry)) => Command::Judged(judged(inquiry)),
            Some(Asked::JudgeAgain(inquiry)) => Command::JudgedAgain(judged(inquiry)),
            Some(Asked::Review { rooms, resync }) => Command::Reviewed {
                rooms: rooms
                    .into_iter()
                    .map(|(who, room)| {
                        let granted = self.database.grants(&room);
                        (who, room, granted)
                    })
                    .collect(),
                resync,
            },
        };
        self.answers.push_back(answer);
    }

    /// What the client is told.
    fn listen(&mut self) {
        let mut told = VecDeque::new();
        self.outbox.take(&mut told);
        for bytes in told {
            self.outbox.written(bytes.size(), 1);
            let frame: Value = serde_json::from_slice(bytes.payload()).unwrap();
            self.check(&frame);
            let rooms = |name: &str| {
                let all = frame[name].as_array().cloned().unwrap_or_default();
                all.iter()
                    .map(|room| room.as_str().or(room["room"].as_str()).unwrap().to_owned())
                    .collect::<Vec<_>>()
            };
            match frame["type"].as_str() {
                Some("subscribed") => {
                    let new = rooms("rooms");
                    self.granted_at.extend(self.granting.drain());
                    // who does not resume fetches
                    match self.resumes.clone() {
                        None => new.iter().for_each(|room| self.fetch(room)),
                        Some(since) => self.knew(&since),
                    }
                    rooms("resync").iter().for_each(|room| self.fetch(room));
                    self.is_in.retain(|room| !new.contains(room));
                    self.is_in.extend(new);
                }
                Some("resync") => rooms("rooms").iter().for_each(|room| self.fetch(room)),
                Some("revoked") => {
                    let lost = rooms("rooms");
                    for room in &lost {
                        // (who has changed team since then may lose a room for a moment that was between
                        // two answers: they are told, and may ask again)
                        let granted_at = self.granted_at[room];
                        let denied = |moment| !self.database.granted_at(room, moment);
                        let mut since = granted_at..=self.database.now;
                        let mut moves = self.database.of_user.iter();
                        let has_moved = moves.any(|(at, _)| *at > granted_at);
                        assert!(has_moved || since.any(denied), "it was theirs: {frame}");
                    }
                    self.is_in.retain(|room| !lost.contains(room));
                }
                _ => {
                    if let Some(seq) = frame["seq"].as_str() {
                        let id = frame["recordId"].as_str().unwrap();
                        let known = self.known.entry(format!("leads:{id}")).or_default();
                        *known = seq.parse::<u64>().unwrap().max(*known);
                    }
                }
            }
            if let Some(cursor) = frame["cursor"].as_str() {
                self.cursor = Some(cursor.parse().unwrap());
            }
        }
    }

    /// Nothing that was not theirs to see since it was written.
    fn check(&self, frame: &Value) {
        for side in ["data", "previous"] {
            let image = &frame[side];
            let Some(value) = image["value"].as_u64() else {
                continue;
            };
            // values are times: who wrote it then, and of which team was the record from then on?
            let txid = frame["txid"]
                .as_str()
                .map(|txid| txid.parse::<u64>().unwrap());
            let by = |change: &&Change| {
                change
                    .new_image
                    .as_deref()
                    .is_some_and(|image| image.contains(&format!(r#""value":{value}}}"#)))
            };
            let Some(written) = self.database.journal.iter().find(by) else {
                continue; // as it was at the very beginning
            };
            let team = written.after.as_ref().unwrap().number as usize;
            let since = match side {
                "previous" => txid.unwrap_or(value),
                _ => value,
            };
            assert!(
                self.database.was_of(team, since.min(self.database.now)),
                "team {team} was not theirs since {since}: {frame}"
            );
        }
    }

    /// The client asks the CRM's backend, which may be a moment ahead of what it grants.
    fn fetch(&mut self, room: &str) {
        for record in 0..RECORDS {
            let of_room = room == format!("leads:{record}") || room.starts_with("team");
            if of_room {
                let known = self.known.entry(format!("leads:{record}")).or_default();
                *known = self.database.seqs[record].max(*known);
            }
        }
    }

    /// Who goes on from a cursor says that they know how it was then.
    fn knew(&mut self, since: &Cursor) {
        for change in &self.database.journal {
            if &*change.module == "leads" && since.position.snapshot.sees(change.txid) {
                let room = format!("leads:{}", change.record_id);
                let known = self.known.entry(room).or_default();
                *known = change.seq.max(*known);
            }
        }
    }

    /// Until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..60 {
            for step in [Step::Read, Step::Register, Step::Think, Step::Answer] {
                self.go(step);
            }
        }
        assert!(
            self.wish.is_none(),
            "a subscription that never comes to an end"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn nobody_is_told_what_is_not_theirs_and_everybody_knows_what_is(
        steps in vec(step(), 1..100),
        recent_bytes in prop_oneof![Just(1usize), Just(6_000), Just(1 << 20)],
    ) {
        let mut world = World::new(recent_bytes);
        for step in steps {
            world.go(step);
        }
        world.settle();
        for room in world.is_in.clone() {
            prop_assert!(world.database.grants(&room), "still in {}", room);
            for record in 0..RECORDS {
                let own = format!("leads:{record}");
                let team = format!("team:{}", world.database.teams[record]);
                if room == own || room == team {
                    prop_assert_eq!(world.known.get(&own), Some(&world.database.seqs[record]), "{}", own);
                }
            }
        }
    }
}

#[test]
fn a_denial_from_before_a_grant_takes_nothing_away() {
    let mut world = World::new(1 << 20);
    let ask = || Step::Ask {
        wanted: vec![0],
        kind: 0,
    };
    let mut go = |steps: Vec<Step>| steps.into_iter().for_each(|step| world.go(step));
    go(vec![ask(), Step::Register, Step::Register]);
    // asked about while of the other team; the answer is under way while they come back and ask anew
    go(vec![Step::Move { team: 1 }, Step::Read, Step::Think]);
    go(vec![Step::Move { team: 0 }, Step::Read]);
    go(vec![ask(), Step::Register, Step::Register, Step::Answer]);
    world.settle();
    assert_eq!(world.is_in, ["leads:0"]);
}

/// A user who is in the rooms of a team and of a record.
fn at_home() -> World {
    let mut world = World::new(1 << 20);
    let wanted = vec![0, 2];
    for step in [
        Step::Ask { wanted, kind: 0 },
        Step::Register,
        Step::Register,
    ] {
        world.go(step);
    }
    world.settle();
    assert_eq!(world.is_in, ["leads:0", "team:0"]);
    world
}

/// One transaction's changes of records that each stand as no other does, in the room of a team or in none.
fn bulk(world: &mut World, records: std::ops::Range<u64>, rooms: &[&str]) -> Vec<Change> {
    let changes = records.map(|record| {
        let image = |value: u64| format!(r#"{{"id":{record},"team":0,"value":{value}}}"#);
        let change = (world.database).write("leads", record.to_string(), (image(0), image(1)));
        let access = format!(r#"{{"team":0,"owner":{record}}}"#);
        let rooms: Vec<_> = rooms.iter().map(|&room| room.to_owned()).collect();
        let stands = Arc::new(Standing::of(1000 + record, "leads".into(), &access, &rooms));
        change.before = Some(stands.clone());
        change.after = Some(stands);
        change.clone()
    });
    let changes = changes.collect();
    world.database.now += 1;
    changes
}

fn publish(world: &mut World, changes: Vec<Change>) {
    let time = world.time.clone();
    let _now = time.enter();
    let events = events(changes, &registry(), &world.place);
    world.rooms.obey(Command::Publish { events });
}

fn questions(world: &mut World) -> Option<usize> {
    match world.asked[0].try_recv() {
        Ok(Asked::Judge(inquiry)) => Some(inquiry.questions.len()),
        _ => None,
    }
}

/// The frames of a type that wait for the client.
fn told(world: &World, kind: &str) -> Vec<Value> {
    let mut frames = VecDeque::new();
    world.outbox.take(&mut frames);
    let frames = frames.iter();
    let frames = frames.map(|frame| serde_json::from_slice::<Value>(frame.payload()).unwrap());
    frames.filter(|frame| frame["type"] == kind).collect()
}

/// What is asked again, beside.
fn again(world: &mut World) -> Option<Inquiry> {
    match world.asked[1].try_recv() {
        Ok(Asked::JudgeAgain(inquiry)) => Some(inquiry),
        _ => None,
    }
}

#[test]
fn what_is_known_for_a_while_is_told_and_asked_again_beside() {
    let mut world = at_home();
    let some = bulk(&mut world, 100..103, &["team:0"]);
    publish(&mut world, some.clone());
    let Ok(Asked::Judge(inquiry)) = world.asked[0].try_recv() else {
        panic!("nobody is asked");
    };
    let answers = Command::Judged(inquiry.answered(&[true; 3]));
    world.rooms.obey(answers);
    assert_eq!(told(&world, "LEADS_UPDATED").len(), 3);
    assert!(again(&mut world).is_none(), "what is new is asked again");
    // nobody waits
    world.go(Step::Wait);
    publish(&mut world, some.clone());
    publish(&mut world, some[..1].to_vec());
    assert_eq!(told(&world, "LEADS_UPDATED").len(), 4);
    assert_eq!(questions(&mut world), None);
    let inquiry = again(&mut world).expect("it is asked again");
    assert_eq!(inquiry.questions.len(), 3);
    assert!(again(&mut world).is_none(), "two at once");
    // until there is another answer
    let answers = (inquiry.questions.iter()).map(|question| question.standing.number != 1101);
    let answers = inquiry.answered(&answers.collect::<Vec<_>>());
    world.rooms.obey(Command::JudgedAgain(answers));
    assert!(
        again(&mut world).is_none(),
        "what came meanwhile is once more"
    );
    publish(&mut world, some.clone());
    assert_eq!(told(&world, "LEADS_UPDATED").len(), 2, "one is hidden now");
    assert!(again(&mut world).is_none());
    // what nobody needed for long is asked before it is told
    world.go(Step::Wait);
    world.go(Step::Wait);
    publish(&mut world, some);
    assert_eq!(told(&world, "LEADS_UPDATED").len(), 0);
    assert_eq!(questions(&mut world), Some(3));
}

#[test]
fn an_answer_from_before_all_was_forgotten_counts_for_nothing_either_when_it_was_asked_again() {
    let mut world = at_home();
    let some = bulk(&mut world, 100..101, &["team:0"]);
    publish(&mut world, some.clone());
    let Ok(Asked::Judge(inquiry)) = world.asked[0].try_recv() else {
        panic!("nobody is asked");
    };
    world.rooms.obey(Command::Judged(inquiry.answered(&[true])));
    told(&world, "LEADS_UPDATED");
    world.go(Step::Wait);
    publish(&mut world, some.clone());
    let inquiry = again(&mut world).expect("it is asked again");
    // who the user is has changed since
    world.database.of_the_user(1);
    let moved = world.database.journal.last().cloned().unwrap();
    publish(&mut world, vec![moved]);
    world
        .rooms
        .obey(Command::JudgedAgain(inquiry.answered(&[true])));
    told(&world, "LEADS_UPDATED");
    publish(&mut world, some);
    assert_eq!(told(&world, "LEADS_UPDATED").len(), 0);
    assert_eq!(questions(&mut world), Some(1));
}

#[test]
fn whoever_comes_into_a_room_where_all_see_is_asked_about_and_so_is_who_becomes_somebody_else() {
    let mut world = at_home();
    let some = bulk(&mut world, 100..101, &["team:0"]);
    publish(&mut world, some.clone());
    let answer = |world: &mut World, yes: bool| {
        let Ok(Asked::Judge(inquiry)) = world.asked[0].try_recv() else {
            panic!("nobody is asked");
        };
        let [question] = &inquiry.questions[..] else {
            panic!("others are asked about, too: {inquiry:?}");
        };
        let number = question.who.number;
        world.rooms.obey(Command::Judged(inquiry.answered(&[yes])));
        (number, inquiry)
    };
    let (number, inquiry) = answer(&mut world, true);
    assert_eq!(number, 1);
    publish(&mut world, some.clone());
    assert_eq!(questions(&mut world), None);
    assert_eq!(told(&world, "LEADS_UPDATED").len(), 2);
    // another answer, which somebody else waited for
    for (yes, events) in [(false, 0), (true, 1)] {
        let answers = inquiry.answered(&[yes]);
        world.rooms.obey(Command::Known(answers));
        publish(&mut world, some.clone());
        assert_eq!(told(&world, "LEADS_UPDATED").len(), events);
    }

    let outbox = come(&mut world, 2);
    publish(&mut world, some.clone());
    assert_eq!(answer(&mut world, false).0, 2);
    publish(&mut world, some.clone());
    assert_eq!(questions(&mut world), None);
    assert_eq!(told(&world, "LEADS_UPDATED").len(), 2);
    let mut frames = VecDeque::new();
    outbox.take(&mut frames);
    assert_eq!(frames.len(), 2, "welcome and subscribed");

    world.rooms.obey(Command::Leave { member: 2 });
    publish(&mut world, some.clone());
    renew(&mut world, 1, 3);
    publish(&mut world, some);
    assert_eq!(answer(&mut world, false).0, 3);
    assert_eq!(told(&world, "LEADS_UPDATED").len(), 1);
}

fn bearer(number: u64) -> Bearer {
    Bearer {
        who: Arc::new(Credential {
            number,
            user: format!("user {number}"),
            claims: "{}".to_owned(),
        }),
        issued_at: None,
    }
}

/// Another member, in the room of the team.
fn come(world: &mut World, member: u64) -> Arc<Outbox> {
    let time = world.time.clone();
    let _now = time.enter();
    let outbox = Arc::new(Outbox::new(1 << 22));
    world.rooms.obey(enters(member, &outbox, bearer(member)));
    let team = vec!["team:0".to_owned()];
    let (command, _) = subscribes(member, team, &world.place.cursor, Beginning::Now);
    world.rooms.obey(command);
    outbox
}

/// Another token of theirs: their rooms are to be asked about at once.
fn renew(world: &mut World, member: u64, number: u64) {
    world.rooms.obey(Command::Renew {
        member,
        bearer: bearer(number),
        accepted: frame::text(b"{}"),
    });
}

/// Says yes to what must be answered; how much it was.
fn yes(world: &mut World) -> usize {
    let time = world.time.clone();
    let _now = time.enter();
    let Ok(Asked::Judge(inquiry)) = world.asked[0].try_recv() else {
        return 0;
    };
    let many = inquiry.questions.len();
    let answers = inquiry.answered(&vec![true; many]);
    world.rooms.obey(Command::Judged(answers));
    many
}

/// Says yes to the review that is out; about whom it is.
fn review(world: &mut World) -> Vec<u64> {
    let time = world.time.clone();
    let _now = time.enter();
    let Ok(Asked::Review { rooms, resync }) = world.asked[1].try_recv() else {
        return Vec::new();
    };
    let about = rooms.iter().map(|(who, _)| who.number).collect();
    let rooms = rooms.into_iter().map(|(who, room)| (who, room, true));
    let rooms = rooms.collect();
    world.rooms.obey(Command::Reviewed { rooms, resync });
    about
}

fn begin_anew(world: &mut World) {
    let time = world.time.clone();
    let _now = time.enter();
    let mut cursor = world.place.cursor.clone();
    cursor.epoch = "ffffffff".to_owned();
    world.rooms.obey(Command::BeginAnew {
        place: Place::of(cursor),
        why: "epoch_changed",
        disconnected: Vec::new(),
    });
}

#[test]
fn who_may_still_be_where_they_are_does_not_wait_for_what_nobody_waits_for() {
    let mut world = at_home();
    come(&mut world, 2);
    let some: Vec<_> = (100..110)
        .map(|record| bulk(&mut world, record..record + 1, &["team:0"]))
        .collect();
    for one in &some {
        publish(&mut world, one.clone());
        assert_eq!(yes(&mut world), 2);
    }
    told(&world, "LEADS_UPDATED");
    world.go(Step::Wait);
    publish(&mut world, some[0].clone());
    publish(&mut world, some[1].clone());
    renew(&mut world, 2, 77);
    let inquiry = again(&mut world).expect("it is asked again");
    // there is always more to ask again
    publish(&mut world, some[2].clone());
    let answers = inquiry.answered(&vec![true; inquiry.questions.len()]);
    world.rooms.obey(Command::JudgedAgain(answers));
    assert_eq!(review(&mut world), [77]);
    assert!(again(&mut world).is_some(), "and then the rest");
}

#[test]
fn an_answer_that_took_long_counts_all_the_same() {
    let mut world = at_home();
    let some = bulk(&mut world, 100..101, &["team:0"]);
    publish(&mut world, some);
    world.go(Step::Wait);
    world.go(Step::Wait);
    assert_eq!(yes(&mut world), 1);
    assert_eq!(told(&world, "LEADS_UPDATED").len(), 1);
}

#[test]
fn what_somebody_missed_is_not_told_by_answers_that_count_no_more() {
    let mut world = at_home();
    let since = world.place.cursor.clone();
    let (record, team, with_user) = (0, 0, false);
    world.go(Step::Edit {
        record,
        team,
        with_user,
    });
    world.settle();
    for (waits, is_told) in [(0, true), (2, false)] {
        (0..waits).for_each(|_| world.go(Step::Wait));
        let time = world.time.clone();
        let _now = time.enter();
        let from = Beginning::Since {
            since: since.clone(),
            journal: Some(Missed::Nothing),
        };
        let lead = vec!["leads:0".to_owned()];
        let (command, mut replied) = subscribes(1, lead, &world.place.cursor, from);
        world.rooms.obey(command);
        let replied = replied.try_recv().expect("it is answered");
        match is_told {
            true => assert!(matches!(replied, Reply::Live { .. }), "{replied:?}"),
            false => assert!(matches!(replied, Reply::WhoMaySee { .. }), "{replied:?}"),
        }
        told(&world, "LEADS_UPDATED");
    }
}

#[test]
fn nobody_waits_for_answers_about_a_large_room_in_which_little_happens() {
    let mut world = at_home();
    for member in 2..=3000 {
        come(&mut world, member);
    }
    let some = bulk(&mut world, 100..101, &["team:0"]);
    publish(&mut world, some.clone());
    assert_eq!(yes(&mut world), 3000);
    for _ in 0..3 {
        told(&world, "LEADS_UPDATED");
        world.go(Step::Wait);
        publish(&mut world, some.clone());
        assert_eq!(yes(&mut world), 0);
        let mut asked = 0;
        while let Some(inquiry) = again(&mut world) {
            // and not all at once
            assert!(inquiry.questions.len() <= 1000);
            asked += inquiry.questions.len();
            let answers = inquiry.answered(&vec![true; inquiry.questions.len()]);
            let time = world.time.clone();
            let _now = time.enter();
            world.rooms.obey(Command::JudgedAgain(answers));
        }
        assert_eq!(asked, 3000);
    }
}

#[test]
fn what_could_not_be_asked_again_is_asked_when_it_is_needed() {
    let mut world = at_home();
    let some = bulk(&mut world, 100..102, &["team:0"]);
    publish(&mut world, some.clone());
    assert_eq!(yes(&mut world), 2);
    told(&world, "LEADS_UPDATED");
    world.go(Step::Wait);
    for answered in [1, 1] {
        publish(&mut world, some.clone());
        let inquiry = again(&mut world).expect("it is asked again");
        let answers = inquiry.answered(&vec![true; answered]);
        world.rooms.obey(Command::JudgedAgain(answers));
        assert!(again(&mut world).is_none(), "without anybody who needs it");
    }
    publish(&mut world, some);
    assert!(again(&mut world).is_none());
    assert_eq!(questions(&mut world), None);
}

#[test]
fn in_another_history_nothing_is_known_and_everybody_is_asked_about() {
    let mut world = at_home();
    come(&mut world, 2);
    let some = bulk(&mut world, 100..101, &["team:0"]);
    publish(&mut world, some.clone());
    assert_eq!(yes(&mut world), 2);
    begin_anew(&mut world);
    let mut about = review(&mut world);
    about.sort_unstable();
    // two rooms of the first, one of the second
    assert_eq!(about, [1, 1, 2]);
    publish(&mut world, some);
    assert_eq!(questions(&mut world), Some(2));
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_about_by_turns_is_so_though_somebody_else_is_asked_about() {
    let (now, mut asked_now) = mpsc::channel(1);
    let (later, mut asked_later) = mpsc::channel(1);
    let bounds = Bounds {
        recent_bytes: 1,
        flood_changes: 500,
        rooms: 1000,
    };
    let (cursor, mut reached) = watch::channel(Arc::from(""));
    let rooms = Rooms::new(cursor, Arc::default(), bounds).judged_by(Judges { now, later });
    let (commands, obeyed) = mpsc::channel(100);
    let (told, news) = mpsc::channel(1);
    tokio::spawn(rooms.run(obeyed, news));
    let send = async |command| commands.send(command).await.unwrap();
    let cursor = Database::new().cursor();
    let place = Place::of(cursor.clone());
    told.send(Command::BeginAnew {
        place: place.clone(),
        why: "epoch_changed",
        disconnected: Vec::new(),
    })
    .await
    .unwrap();
    reached.changed().await.unwrap();
    send(Command::Remember {
        since: place.clone(),
        until: place,
        past: Vec::new(),
    })
    .await;
    for member in [1, 2] {
        let outbox = Arc::new(Outbox::new(1 << 22));
        send(enters(member, &outbox, bearer(member))).await;
        let team = vec!["team:0".to_owned()];
        let (command, replied) = subscribes(member, team, &cursor, Beginning::Now);
        send(command).await;
        assert!(matches!(replied.await, Ok(Reply::Live { .. })));
    }
    // one question is out and another one waits when the time of all has come
    for number in [77, 78] {
        send(Command::Renew {
            member: 2,
            bearer: bearer(number),
            accepted: frame::text(b"{}"),
        })
        .await;
    }
    tokio::time::sleep(TURN * 2 + TURN / 4).await;
    let mut about = Vec::new();
    for _ in 0..3 {
        let Some(Asked::Review { rooms, resync }) = asked_later.recv().await else {
            panic!("nobody is asked about any more");
        };
        about.push(rooms.iter().map(|(who, _)| who.number).collect::<Vec<_>>());
        let rooms = rooms.into_iter().map(|(who, room)| (who, room, true));
        let rooms = rooms.collect();
        send(Command::Reviewed { rooms, resync }).await;
    }
    about[2].sort_unstable();
    assert_eq!(about, [vec![77], vec![78], vec![1, 78]]);
    assert!(asked_now.try_recv().is_err());
}

#[test]
fn who_is_to_fetch_anew_is_not_asked_about() {
    let mut world = at_home();
    let flood = bulk(&mut world, 100..601, &["team:0"]);
    publish(&mut world, flood);
    assert_eq!(questions(&mut world), None, "the policy is asked");
    let told = told(&world, "resync");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["rooms"][0]["reason"], "too_many_changes");
    // no larger than the bound: each is judged
    let many = bulk(&mut world, 1000..1500, &["team:0"]);
    publish(&mut world, many);
    assert_eq!(questions(&mut world), Some(500));
}

#[test]
fn what_must_be_told_first_does_not_wait_for_the_answers_to_a_bulk_behind_it() {
    let mut world = at_home();
    let first = bulk(&mut world, 0..1, &["team:0"]);
    let flood = bulk(&mut world, 100..900, &["team:0"]);
    // one is out while these come; what is asked next is about them
    publish(&mut world, first);
    publish(&mut world, flood);
    for records in [2000..2400, 3000..3400, 4000..4400, 5000..5400] {
        let some = bulk(&mut world, records, &["team:0"]);
        publish(&mut world, some);
    }
    let Ok(Asked::Judge(inquiry)) = world.asked[0].try_recv() else {
        panic!("nobody is asked");
    };
    assert_eq!(inquiry.questions.len(), 1);
    let forgotten = inquiry.answered(&[true]);
    // an answer that counts for nothing: everything is asked again, with what waits by now
    let era = u64::MAX;
    let answers = Verdicts { era, ..forgotten };
    world.rooms.obey(Command::Judged(answers));
    assert_eq!(
        questions(&mut world),
        Some(1201),
        "three of four, and nothing of the flood"
    );
}

#[test]
fn a_bulk_that_changes_who_may_see_what_has_everybody_fetch_anew_once() {
    let mut world = at_home();
    let mut changes = bulk(&mut world, 100..500, &[]);
    for change in &mut changes {
        change.heirs = vec![crm_relay::standing::Heir {
            room: format!("visits:{}", change.record_id),
            rooms: vec!["team:0".to_owned(), "team:0/visits".to_owned()],
        }];
    }
    publish(&mut world, changes);
    let told = told(&world, "resync");
    assert_eq!(told.len(), 1, "{} times", told.len());
}

#[test]
fn who_was_thrown_out_while_nobody_read_does_not_stay() {
    let mut world = World::new(1 << 20);
    let begin_anew = |disconnected: &str| Command::BeginAnew {
        place: Place::of(Database::new().cursor()),
        why: "cursor_too_old",
        disconnected: vec![(disconnected.to_owned(), SystemTime::now())],
    };
    world.rooms.obey(begin_anew("bea"));
    assert_eq!(world.outbox.closed(), None, "another was meant");
    world.rooms.obey(begin_anew("ann"));
    let closed = world.outbox.closed().expect("she is still connected");
    assert_eq!(closed.code, 4403);
}

#[test]
fn who_missed_more_than_all_others_can_wait_for_is_told_from_the_journal() {
    for (more, is_too_much) in [(0, false), (1, true)] {
        let mut world = at_home();
        let since = world.place.cursor.clone();
        for changes in [5000, 5000 + more] {
            let changes = bulk(&mut world, 1000..1000 + changes, &["team:9"]);
            publish(&mut world, changes);
        }
        world.place = Place::of(world.database.cursor());
        let place = world.place.clone();
        let told = place.clone();
        world.rooms.obey(Command::Reached { place, told });
        let from = Beginning::Since {
            since,
            journal: None,
        };
        let lead = vec!["leads:1".to_owned()];
        let (command, mut replied) = subscribes(1, lead, &world.place.cursor, from);
        world.rooms.obey(command);
        let reply = replied.try_recv().unwrap();
        match is_too_much {
            true => assert!(matches!(reply, Reply::WhatWasMissed), "{reply:?}"),
            false => assert!(matches!(reply, Reply::Live { .. }), "{reply:?}"),
        }
    }
}
