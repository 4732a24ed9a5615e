//! Rooms: who gets which event.
//!
//! One task owns them all ([`Rooms::run`]); connections and the reader send it commands through one
//! bounded channel, so that a subscription is live exactly from the position that its answer tells.
//! Rooms know nothing of Postgres and nothing of sockets: an event goes in, frames come out in
//! outboxes. Work per event grows with the members of its rooms and with nothing else.

mod access;
mod command;
mod delivery;
mod subscribing;

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use rustc_hash::FxHashMap;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::feed::Feed;
use crate::frame;
use crate::metrics::Metrics;
use crate::outbox::{Close, Outbox};
use crate::policy::Credential;
use crate::recent::Recent;
use crate::traffic::Traffic;

use access::{Access, Doubts, Pending};

pub use access::Judges;
pub use command::{
    Asked, Bearer, Beginning, Command, Enter, ITSELF, Inquiry, Member, Missed, Present, Reply,
    Subscribe, Survey, Verdicts,
};

/// Most news that wait for the policy's answer; then the reader waits.
const MOST_PENDING: usize = 256;

/// With so many questions about what must be told first, nothing more is asked about with it.
const ASKED_AHEAD: usize = 1000;

/// All rooms and their members.
pub struct Rooms {
    rooms: HashMap<Arc<str>, Room>,
    members: FxHashMap<Member, Membership>,
    recent: Recent,
    /// Whether it holds what was told before this relay began, or as much of that as it ever will.
    remembers: bool,
    cursor: watch::Sender<Arc<str>>,
    /// Subscriptions that were granted at moments that the reader has yet to come to, or that came before
    /// memory was filled.
    ahead: Vec<Subscribe>,
    /// Has the reader look at the journal, so that those wait for no bell.
    look: Arc<Notify>,
    access: Access,
    /// Who was thrown out, and when.
    disconnected: HashMap<String, SystemTime>,
    /// News that wait until the policy has answered.
    pending: Pending,
    /// How many news have come that are not looked at yet.
    more: usize,
    /// Whether no other task runs while this one does.
    is_alone: bool,
    /// Whether what the first of them changes of access, and which rooms it floods, is known already.
    begun: bool,
    traffic: Traffic,
    feed: Feed,
    metrics: Metrics,
    bounds: Bounds,
    /// Of the present transaction, when it is a large one: its number of changes by scope room.
    flood: (u64, HashMap<String, usize>),
}

/// A room.
#[derive(Default)]
struct Room {
    /// Each with where its frames go: that is all that is looked at while everybody may see everything. In the order
    /// in which they came, as their sockets lie in memory.
    members: BTreeMap<Member, Arc<Outbox>>,
    /// Of these, those that were told a snapshot of the record lately, and its `seq`: what a throttle held back is
    /// in it already.
    fresh: FxHashMap<Member, u64>,
    /// By which knowledge all of them may see records that stand in which way: one after the other is looked
    /// up only where that is not so.
    all_see: Cell<Option<Agreed>>,
}

/// The standing before and after a change, and the version of what is known of access.
type Agreed = (Option<u64>, Option<u64>, u64);

/// A member: where its frames go, in which rooms it is, and who it is.
struct Membership {
    outbox: Arc<Outbox>,
    rooms: HashSet<Arc<str>>,
    transactions: bool,
    bearer: Option<Bearer>,
    /// Its connection, as the log names it.
    session: Uuid,
}

impl Membership {
    fn who(&self) -> Option<&Arc<Credential>> {
        self.bearer.as_ref().map(|bearer| &bearer.who)
    }
}

/// What is bounded by settings.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of recent events that are kept in memory.
    pub recent_bytes: usize,
    /// Changes of one transaction that one scope room gets; with more it is told to fetch anew.
    pub flood_changes: usize,
    /// Rooms of one connection.
    pub rooms: usize,
}

impl Rooms {
    /// None yet. What `cursor` holds is the position of everything that was published; `look` has the
    /// reader look at the journal.
    pub fn new(cursor: watch::Sender<Arc<str>>, look: Arc<Notify>, bounds: Bounds) -> Rooms {
        Rooms {
            rooms: HashMap::new(),
            members: FxHashMap::default(),
            recent: Recent::new(bounds.recent_bytes),
            remembers: false,
            cursor,
            ahead: Vec::new(),
            look,
            access: Access::open(),
            disconnected: HashMap::new(),
            pending: Pending::new(),
            more: 0,
            is_alone: false,
            begun: false,
            traffic: Traffic::default(),
            feed: Feed::default(),
            metrics: Metrics::default(),
            bounds,
            flood: (0, HashMap::new()),
        }
    }

    /// What happens is counted in these.
    pub fn counted_by(self, metrics: Metrics) -> Rooms {
        Rooms {
            traffic: Traffic::counted_by(metrics.clone()),
            metrics,
            ..self
        }
    }

    /// Does what connections ask and tells the news, until nobody is left to ask.
    pub async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut news: mpsc::Receiver<Command>,
    ) {
        let mut is_over = false;
        self.is_alone = Handle::current().metrics().num_workers() == 1;
        loop {
            let review_at = self.access.review_at;
            let takes_news = !is_over && self.pending.len() < MOST_PENDING;
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command @ Command::Drain { .. }) => {
                        // what was read is told first
                        while let Ok(command) = news.try_recv() {
                            self.obey(command);
                        }
                        self.obey(command);
                    }
                    Some(command) => {
                        self.more = news.len();
                        self.obey(command);
                    }
                    None => break,
                },
                command = news.recv(), if takes_news => match command {
                    Some(command) => {
                        self.more = news.len();
                        self.obey(command);
                    }
                    None => is_over = true,
                },
                () = sleep_until(review_at.unwrap_or_else(Instant::now)), if review_at.is_some() => {
                    self.review_everybody();
                }
                () = self.traffic.second_over() => self.traffic.sum_up(),
            }
        }
        self.traffic.sum_up();
    }

    /// Does one thing, at once; news wait while the policy is asked who may see them.
    pub fn obey(&mut self, command: Command) {
        match command {
            Command::Enter(enter) => self.enter(*enter),
            Command::Renew {
                member,
                bearer,
                accepted,
            } => self.renew(member, bearer, &accepted),
            Command::Subscribe(subscribe) => self.subscribe(*subscribe),
            Command::Unsubscribe {
                member,
                rooms,
                id,
                reply,
            } => {
                let Some(membership) = self.members.get_mut(&member) else {
                    return;
                };
                let mut had = Vec::new();
                for room in rooms {
                    if let Some(known) = membership.rooms.take(room.as_str()) {
                        abandon(&mut self.rooms, known, member);
                        had.push(room);
                    }
                }
                // nobody listens any more where the connection is gone
                let _ = reply.send((had.len(), membership.rooms.len()));
                self.tell(
                    member,
                    &json!({"type": "unsubscribed", "id": id, "rooms": had}),
                );
            }
            Command::Leave { member } => {
                let Some(membership) = self.members.remove(&member) else {
                    return;
                };
                for room in membership.rooms {
                    abandon(&mut self.rooms, room, member);
                }
            }
            Command::Publish { .. } | Command::Reached { .. } | Command::BeginAnew { .. } => {
                self.pending.push_back(command);
                self.tell_news();
            }
            Command::Remember { since, until, past } => {
                self.recent.remember(since, &until, past);
                self.remembers = true;
                self.catch_up();
            }
            Command::Judged(verdicts) => {
                self.access.judged(verdicts);
                self.tell_news();
            }
            Command::Known(verdicts) => self.access.know(verdicts),
            Command::JudgedAgain(verdicts) => self.access.judged_again(verdicts),
            Command::Reviewed { rooms, resync } => self.reviewed(rooms, resync),
            Command::Watch(mut viewer) => {
                if self.is_refused(viewer.bearer()) {
                    viewer.blind();
                }
                self.feed.watch(viewer);
            }
            Command::Survey { most, reply } => {
                // whoever asked may have lost patience
                let _ = reply.send(self.survey(most));
            }
            Command::Drain { told } => {
                self.drain();
                // whoever asked may have lost patience
                let _ = told.send(());
            }
        }
    }

    /// Tells what happened, as far as it is known who may see it.
    fn tell_news(&mut self) {
        while let Some(news) = self.pending.pop_front() {
            match news {
                Command::Publish { events } => {
                    if !self.begun {
                        self.begin_upheaval(&events);
                        self.count_flood(&events);
                        self.begun = true;
                    }
                    self.access.pass();
                    let mut doubts = Doubts::default();
                    self.doubts(&events, true, &mut doubts);
                    if !doubts.unknown.is_empty() {
                        self.pending.push_front(Command::Publish { events });
                        // What waits behind it is asked about with it, so far as that keeps nobody
                        // waiting; of what may be a flood it is known when it begins.
                        for news in self.pending.iter().skip(1) {
                            if doubts.unknown.len() >= ASKED_AHEAD {
                                break;
                            }
                            if let Command::Publish { events } = news
                                && events.len() <= self.bounds.flood_changes
                            {
                                self.doubts(events, false, &mut doubts);
                            }
                        }
                        self.access.ask(doubts.unknown);
                        return;
                    }
                    self.access.ask_again(doubts.aged);
                    self.begun = false;
                    self.publish(events);
                }
                Command::Reached { place, told } => {
                    self.cursor.send_replace(told.text.clone());
                    self.recent.reached(place);
                    self.catch_up();
                }
                Command::BeginAnew {
                    place,
                    why,
                    disconnected,
                } => {
                    self.disconnected = disconnected.into_iter().collect();
                    self.throw_out();
                    self.cursor.send_replace(place.text.clone());
                    let is_first = self.recent.now().cursor.epoch.is_empty();
                    self.recent.begin(place);
                    self.remembers = false;
                    if !is_first {
                        let rooms: Vec<Arc<str>> = self.rooms.keys().cloned().collect();
                        self.resync(&rooms, why);
                        self.access.forget();
                        self.review_everybody();
                    }
                    self.catch_up();
                }
                // nothing else waits
                _ => {}
            }
        }
    }

    fn enter(&mut self, enter: Enter) {
        if self.is_refused(enter.bearer.as_ref()) {
            return enter.outbox.close(Close::DISCONNECTED);
        }
        enter.outbox.push(enter.welcome);
        let membership = Membership {
            outbox: enter.outbox,
            rooms: HashSet::new(),
            transactions: enter.transactions,
            bearer: enter.bearer,
            session: enter.session,
        };
        self.members.insert(enter.member, membership);
    }

    /// Subscriptions that waited for this moment.
    fn catch_up(&mut self) {
        for subscribe in std::mem::take(&mut self.ahead) {
            self.subscribe(subscribe);
        }
    }

    fn survey(&self, most: usize) -> Survey {
        let transactions = self.pending.iter();
        let mut survey = Survey {
            rooms: self.rooms.len(),
            unjudged: transactions
                .filter(|news| matches!(news, Command::Publish { .. }))
                .count(),
            ..Survey::default()
        };
        for membership in self.members.values() {
            let bytes = membership.outbox.bytes();
            survey.subscriptions += membership.rooms.len();
            survey.queue_bytes += bytes;
            survey.longest_queue_bytes = survey.longest_queue_bytes.max(bytes);
        }
        if most > 0 {
            let sizes = self
                .rooms
                .iter()
                .map(|(name, room)| (room.members.len(), name));
            let crowded = greatest(sizes, most);
            survey.crowded = crowded
                .map(|(members, room)| (room.clone(), members))
                .collect();
            let queues = self.members.iter();
            let queues =
                queues.map(|(member, known)| ((known.outbox.bytes(), known.rooms.len()), member));
            let present = greatest(queues, most).filter_map(|((queue_bytes, rooms), member)| {
                let membership = self.members.get(member)?;
                let who = membership.who();
                Some(Present {
                    session: membership.session,
                    user: who.map(|who| who.user.clone()),
                    rooms,
                    queue_bytes,
                })
            });
            survey.present = present.collect();
        }
        survey
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

    fn tell(&self, member: Member, frame: &Value) {
        if let Some(membership) = self.members.get(&member) {
            let text = frame.to_string();
            membership.outbox.push(frame::text(text.as_bytes()));
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
}

/// The greatest of these, at most so many, the greatest first; the rest is not kept.
fn greatest<T: Ord>(all: impl Iterator<Item = T>, most: usize) -> impl Iterator<Item = T> {
    let mut heap = BinaryHeap::with_capacity(most + 1);
    for one in all {
        heap.push(Reverse(one));
        if heap.len() > most {
            heap.pop();
        }
    }
    let sorted = heap.into_sorted_vec().into_iter();
    sorted.map(|Reverse(one)| one)
}

/// Takes a member out of a room, and the room away when it was the last.
fn abandon(rooms: &mut HashMap<Arc<str>, Room>, room: Arc<str>, member: Member) {
    if let Entry::Occupied(mut entry) = rooms.entry(room) {
        entry.get_mut().members.remove(&member);
        entry.get_mut().fresh.remove(&member);
        if entry.get().members.is_empty() {
            entry.remove();
        }
    }
}
