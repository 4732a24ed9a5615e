//! One subscription, from the client's wish to live rooms: the policy is asked whether it may, the
//! journal what it missed, and the rooms' task answers the client when nothing is left to ask.
//!
//! What asks Postgres by itself is boxed: ten thousand who come at once wait in the little that is left.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::connection::Shared;
use crate::history::Told;
use crate::inquiries::NotTold;
use crate::policy::{self, Credential, Policy, is_few};
use crate::rooms::{Beginning, Command, Inquiry, Member, Reply, Subscribe, Verdicts};
use crate::server::places::Turn;
use crate::snapshot::Cursor;

/// How often the journal is asked for one subscription: once for the cursor, once for what was missed,
/// and again where memory moved on meanwhile.
const MOST_LOOKS: u32 = 4;

/// Waits before the policy is asked again, when Postgres does not answer or access changes on and on.
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// What a client wants.
#[derive(Debug)]
pub struct Wanted {
    /// Its connection.
    pub member: Member,
    /// What the log calls that.
    pub connection: Uuid,
    /// The rooms, each once and well-formed.
    pub rooms: Vec<String>,
    /// Those that it cannot have, as the protocol lists them.
    pub denied: Vec<Value>,
    /// Comes back in the answer.
    pub id: Value,
    /// Where to begin.
    pub from: From,
}

/// Where a client wants to begin.
#[derive(Debug, PartialEq, Eq)]
pub enum From {
    /// Now.
    Now,
    /// Where it was.
    Since(Cursor),
    /// With the records as they are.
    Records,
}

/// Rooms that are live.
#[derive(Debug, Clone, Copy)]
pub struct Live {
    /// How many.
    pub rooms: usize,
    /// How many it cannot have.
    pub denied: usize,
    /// How many it has now.
    pub of_all: usize,
}

/// Subscribes; None when the relay stops. For as long as Postgres does not say what must be known, it
/// waits.
pub async fn subscribe(
    shared: Arc<Shared>,
    who: Option<Arc<Credential>>,
    wanted: Wanted,
) -> Option<Live> {
    let asker = shared.gate.as_ref().map(|gate| gate.policy()).zip(who);
    let user = asker.as_ref().map_or("", |(_, who)| &who.user);
    // few rooms are asked about with those of others; whoever asks for more waits for a turn
    let mut turn = None;
    if !is_few(wanted.rooms.len()) || wanted.from == From::Records {
        turn = Box::pin(take_turn(&shared, user)).await;
    }
    let mut grant = None;
    let mut journal = None;
    let mut anew = None;
    let mut looks = 0;
    let mut backoff = FIRST_BACKOFF;
    loop {
        let (rooms, denied, granted) = match (&asker, grant.take()) {
            (None, _) => (wanted.rooms.clone(), wanted.denied.clone(), None),
            (Some(_), Some(grant)) => grant,
            (Some((policy, who)), None) => Box::pin(grants(policy, who, &wanted)).await,
        };
        let from = match (&wanted.from, anew) {
            (From::Now, _) => Beginning::Now,
            (_, Some(reason)) => Beginning::Anew(reason),
            (From::Since(since), None) => Beginning::Since {
                since: since.clone(),
                journal: journal.take(),
            },
            (From::Records, None) => match Box::pin(shared.history.records_now(&rooms)).await {
                Ok((records, at)) => Beginning::Records { records, at },
                Err(error) if error.will_pass() => {
                    wait(&wanted, &error, &mut backoff).await;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(connection = %wanted.connection, %error, "could not read records for a client: it fetches them itself");
                    Beginning::Anew("too_many_changes")
                }
            },
        };
        let (reply, replied) = oneshot::channel();
        let subscribe = Subscribe {
            member: wanted.member,
            rooms: rooms.clone(),
            granted: granted.clone(),
            from,
            id: wanted.id.clone(),
            denied: denied.clone(),
            reply,
        };
        let subscribe = Command::Subscribe(Box::new(subscribe));
        shared.rooms.send(subscribe).await.ok()?;
        match replied.await.ok()? {
            Reply::Live {
                rooms,
                denied,
                of_all,
            } => {
                return Some(Live {
                    rooms,
                    denied,
                    of_all,
                });
            }
            Reply::IsItStillGranted => {
                sleep(backoff).await;
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
                continue;
            }
            Reply::WhoMaySee {
                asked,
                journal: told,
            } => {
                journal = told;
                if let Some((policy, _)) = &asker {
                    if turn.is_none() && !is_few(asked.questions.len()) {
                        turn = Box::pin(take_turn(&shared, user)).await;
                    }
                    let verdicts = Box::pin(judge(policy, &wanted, &asked)).await;
                    shared.rooms.send(Command::Known(verdicts)).await.ok()?;
                }
            }
            _ if looks == MOST_LOOKS => anew = Some("too_many_changes"),
            unanswered => {
                looks += 1;
                let From::Since(since) = &wanted.from else {
                    continue;
                };
                let told = match unanswered {
                    Reply::IsItGood => Box::pin(shared.history.vouch(user, since)).await,
                    _ => {
                        if turn.is_none() {
                            turn = Box::pin(take_turn(&shared, user)).await;
                        }
                        let missed = Box::pin(shared.history.missed(user, since, &rooms)).await;
                        missed.map_err(Arc::new)
                    }
                };
                match told {
                    Ok(Told::Missed(missed)) => journal = Some(missed),
                    Ok(Told::Resync(why)) => anew = Some(why),
                    // the same question again
                    Err(error) if error.will_pass() => {
                        looks -= 1;
                        Box::pin(wait(&wanted, &error, &mut backoff)).await;
                    }
                    Err(error) => {
                        tracing::warn!(connection = %wanted.connection, %error, "could not look up what a client missed: it fetches anew");
                        anew = Some("cursor_too_old");
                    }
                }
            }
        }
        grant = granted.map(|granted| (rooms, denied, Some(granted)));
    }
}

/// A turn of this user's; None where nobody is asked who somebody is.
async fn take_turn(shared: &Shared, user: &str) -> Option<Turn> {
    shared.gate.as_ref()?;
    Some(shared.subscribing.take(&user.to_owned()).await)
}

/// The rooms that are granted, those that are denied, and at which moment it was so.
async fn grants(
    policy: &Policy,
    who: &Arc<Credential>,
    wanted: &Wanted,
) -> (Vec<String>, Vec<Value>, Option<Cursor>) {
    let replays = matches!(wanted.from, From::Since(_));
    let mut backoff = FIRST_BACKOFF;
    let (answers, moment) = loop {
        match policy.grants(who, &wanted.rooms, replays).await {
            Ok(told) => break told,
            Err(error) => wait(wanted, &error, &mut backoff).await,
        }
    };
    let mut rooms = Vec::new();
    let mut denied = wanted.denied.clone();
    for (room, granted) in wanted.rooms.iter().zip(answers) {
        if granted {
            rooms.push(room.clone());
        } else {
            denied.push(json!({"room": room, "code": "forbidden"}));
        }
    }
    (rooms, denied, Some(moment))
}

async fn judge(policy: &Policy, wanted: &Wanted, asked: &Inquiry) -> Verdicts {
    let mut backoff = FIRST_BACKOFF;
    let mut answers = Vec::new();
    let mut began = Instant::now();
    loop {
        match policy.judge(asked, &mut answers).await {
            Ok(()) => return asked.answered(&answers),
            Err(error) => wait(wanted, &error, &mut backoff).await,
        }
        policy::forget_old(&mut answers, &mut began);
    }
}

async fn wait(wanted: &Wanted, error: &NotTold, backoff: &mut Duration) {
    tracing::warn!(connection = %wanted.connection, %error, "Postgres does not answer: a subscription waits");
    sleep(*backoff).await;
    *backoff = (*backoff * 2).min(LONGEST_BACKOFF);
}
