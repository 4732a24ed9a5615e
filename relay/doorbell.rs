//! The doorbell: LISTEN on `crm_relay`.
//!
//! A ring is a hint to look, never believed: anyone may NOTIFY. That it works is proved again and
//! again: a second session rings it with a heartbeat, which must arrive. A pooler between, a network
//! that is cut, a server that is stopped: each is noticed within [`BEAT`] and [`ANSWER_WITHIN`].

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

/// A session that listens, and one that proves that it does.
pub struct Doorbell {
    ear: Session,
    hand: Session,
    rang: bool,
    next_beat: Instant,
    /// When a heartbeat that was sent must have been heard.
    expected: Option<Instant>,
}

/// Nobody would hear a ring; what was committed since rang in vain.
#[derive(Debug, Error)]
pub enum Unheard {
    /// A session could not be opened.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It was there and is gone.
    #[error("the session that listens was lost")]
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
        let listening = ear.client.batch_execute("listen crm_relay");
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
        };
        doorbell.beat().await?;
        while doorbell.expected.is_some() {
            doorbell.listen().await?;
        }
        // whatever rang before is read anyway
        doorbell.rang = false;
        Ok(doorbell)
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
        tokio::select! {
            biased;
            said = self.ear.said.recv() => {
                let mut said = said.ok_or(Unheard::Lost)?;
                loop {
                    if let Said::Notified(notification) = said {
                        // any will do as proof, also another relay's
                        self.expected = None;
                        self.rang |= notification.payload() != HEARTBEAT;
                    }
                    match self.ear.said.try_recv() {
                        Ok(more) => said = more,
                        Err(_) => break,
                    }
                }
            }
            () = sleep_until(deadline) => {
                if self.expected.is_some() {
                    return Err(Unheard::Silent);
                }
                self.beat().await?;
            }
        }
        Ok(())
    }

    async fn beat(&mut self) -> Result<(), Unheard> {
        let notify = format!("notify crm_relay, '{HEARTBEAT}'");
        match timeout(ANSWER_WITHIN, self.hand.client.batch_execute(&notify)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Unheard::Mute(chain(&error))),
            Err(_) => {
                let why = format!("no answer within {} s", ANSWER_WITHIN.as_secs());
                return Err(Unheard::Mute(why));
            }
        }
        self.expected = Some(Instant::now() + ANSWER_WITHIN);
        self.next_beat = Instant::now() + BEAT;
        Ok(())
    }
}
