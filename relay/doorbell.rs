//! The doorbell: LISTEN on `crm_relay`, on which writers ring, and on `crm_relay_led`, on which the
//! leading relay does for the others.
//!
//! A ring is a hint to look, never believed: anyone may NOTIFY. That it works is proved again and
//! again: a second session rings it with a heartbeat, which must arrive. A pooler between, a network
//! that is cut, a server that is stopped: each is noticed within [`BEAT`] and [`ANSWER_WITHIN`].
//!
//! A leader that nobody follows rings for nobody: those who follow say so, again and again, and are
//! told in the same way that the leader lives.

use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout};

use crate::postgres::{ConnectError, Database, Said, Session, chain};

/// How often the bell is tried.
pub const BEAT: Duration = Duration::from_secs(4);

/// How long it may take to be heard.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// A heartbeat's payload; nobody looks at the journal because of one.
const HEARTBEAT: &str = r#"{"heartbeat":true}"#;

/// The payloads of `crm_relay_led`: who follows, who leads, and that the leader has read something.
const FOLLOWS: &str = r#"{"follows":true}"#;
const LEADS: &str = r#"{"leads":true}"#;
const READ: &str = r#"{"read":true}"#;

/// How often relays tell each other that they are there; and how long one is thought to be there.
const CALL: Duration = Duration::from_secs(1);
const HEARD_FOR: Duration = Duration::from_secs(4);

/// A session that listens, and one that proves that it does.
pub struct Doorbell {
    ear: Session,
    hand: Session,
    rang: bool,
    next_beat: Instant,
    /// When a heartbeat that was sent must have been heard.
    expected: Option<Instant>,
    /// Of several relays; None where each is rung for.
    company: Option<Company>,
}

/// What is known of the other relays.
struct Company {
    leads: bool,
    next_call: Instant,
    /// When the leader, or for a leader one who follows, was heard last.
    heard: Instant,
    /// Whether a leader that is heard now knows since when it must ring.
    is_known: bool,
}

/// Nobody would hear a ring; what was committed since rang in vain.
#[derive(Debug, Error)]
pub enum Unheard {
    /// A session could not be opened.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It was there and is gone.
    #[error("a session of the doorbell was lost")]
    Lost,
    /// The heartbeat could not be sent.
    #[error("the doorbell cannot be rung: {0}")]
    Mute(String),
    /// It was sent and did not arrive.
    #[error(
        "the doorbell is not heard: a notification of one session did not reach LISTEN in another within {} s; a transaction pooler such as PgBouncer between relay and Postgres does that: connect directly",
        ANSWER_WITHIN.as_secs()
    )]
    Silent,
}

impl Doorbell {
    /// Listens from now on, once it was heard.
    pub async fn hang(database: &Database) -> Result<Doorbell, Unheard> {
        let ear = database.session("doorbell").await?;
        let hand = database.session("heartbeat").await?;
        let listening = ear
            .client
            .batch_execute("listen crm_relay; listen crm_relay_led");
        match timeout(ANSWER_WITHIN, listening).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Unheard::Mute(chain(&error))),
            Err(_) => return Err(Unheard::Mute("no answer to LISTEN".to_owned())),
        }
        let mut doorbell = Doorbell {
            ear,
            hand,
            rang: false,
            next_beat: Instant::now(),
            expected: None,
            company: None,
        };
        doorbell.beat().await?;
        while doorbell.expected.is_some() {
            doorbell.listen().await?;
        }
        // whatever rang before is read anyway
        doorbell.rang = false;
        Ok(doorbell)
    }

    /// One of several relays rings for the others from now on.
    pub fn keep_company(&mut self) {
        self.company = Some(Company {
            leads: false,
            next_call: Instant::now(),
            heard: Instant::now(),
            is_known: false,
        });
    }

    /// Whether it has rung since [`Doorbell::rung`] told it.
    pub fn has_rung(&self) -> bool {
        self.rang
    }

    /// Whether this relay leads from now on.
    pub fn lead(&mut self, leads: bool) {
        if let Some(company) = &mut self.company
            && company.leads != leads
        {
            company.leads = leads;
            company.is_known = false;
            company.heard = Instant::now();
            company.next_call = Instant::now();
        }
    }

    /// Whether a relay that follows has not heard of its leader for long.
    pub fn leader_is_silent(&self) -> bool {
        let heard = self.company.as_ref().map(|company| company.heard);
        heard.is_some_and(|heard| heard.elapsed() > HEARD_FOR)
    }

    /// Rings for those who follow, if anybody does: there is something to read.
    pub async fn pass_on(&self) -> Result<(), Unheard> {
        let company = self.company.as_ref();
        if company.is_some_and(|company| company.leads && company.heard.elapsed() < HEARD_FOR) {
            self.notify("crm_relay_led", READ).await?;
        }
        Ok(())
    }

    /// Waits for a ring; rings that came together are one.
    pub async fn rung(&mut self) -> Result<(), Unheard> {
        while !std::mem::take(&mut self.rang) {
            self.listen().await?;
        }
        Ok(())
    }

    /// Listens for as long as it is heard; rings are kept for [`Doorbell::rung`].
    pub async fn watch(&mut self) -> Unheard {
        loop {
            if let Err(unheard) = self.listen().await {
                return unheard;
            }
        }
    }

    async fn listen(&mut self) -> Result<(), Unheard> {
        let deadline = self.expected.unwrap_or(self.next_beat);
        let next_call = self.company.as_ref().map(|company| company.next_call);
        tokio::select! {
            biased;
            said = self.ear.said.recv() => {
                let mut said = said.ok_or(Unheard::Lost)?;
                loop {
                    if let Said::Notified(notification) = said {
                        self.hear(notification.channel(), notification.payload());
                    }
                    match self.ear.said.try_recv() {
                        Ok(more) => said = more,
                        Err(_) => break,
                    }
                }
            }
            () = sleep_until(next_call.unwrap_or(deadline)), if next_call.is_some() => self.call().await?,
            () = sleep_until(deadline) => {
                if self.expected.is_some() {
                    return Err(Unheard::Silent);
                }
                self.beat().await?;
            }
        }
        Ok(())
    }

    fn hear(&mut self, channel: &str, payload: &str) {
        if channel == "crm_relay" {
            // any will do as proof, also another relay's
            self.expected = None;
            self.rang |= payload != HEARTBEAT;
        } else if let Some(company) = &mut self.company {
            if (payload == FOLLOWS) != company.leads {
                return;
            }
            if !company.leads {
                // until the leader knew of this one it did not ring
                let is_known = company.is_known && company.heard.elapsed() < HEARD_FOR;
                self.rang |= payload == READ || !is_known;
                company.is_known = true;
            }
            company.heard = Instant::now();
        }
    }

    /// Tells other relays that this one is there: a leader only those who said the same.
    async fn call(&mut self) -> Result<(), Unheard> {
        let Some(company) = &mut self.company else {
            return Ok(());
        };
        company.next_call = Instant::now() + CALL;
        if !company.leads {
            self.notify("crm_relay_led", FOLLOWS).await
        } else if company.heard.elapsed() < HEARD_FOR {
            self.notify("crm_relay_led", LEADS).await
        } else {
            Ok(())
        }
    }

    async fn beat(&mut self) -> Result<(), Unheard> {
        self.notify("crm_relay", HEARTBEAT).await?;
        self.expected = Some(Instant::now() + ANSWER_WITHIN);
        self.next_beat = Instant::now() + BEAT;
        Ok(())
    }

    async fn notify(&self, channel: &str, payload: &str) -> Result<(), Unheard> {
        let notify = format!("notify {channel}, '{payload}'");
        match timeout(ANSWER_WITHIN, self.hand.client.batch_execute(&notify)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Unheard::Mute(chain(&error))),
            Err(_) => {
                let why = format!("no answer within {} s", ANSWER_WITHIN.as_secs());
                Err(Unheard::Mute(why))
            }
        }
    }
}
