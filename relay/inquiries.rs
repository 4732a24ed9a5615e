//! Questions to the journal and the policy: a few sessions for all who ask, so that a thousand clients
//! that come at once do not become a thousand queries at once.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::journal::{Journal, JournalError};
use crate::postgres::{ConnectError, Database};

/// How long an answer may take, the wait for its turn included.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A few sessions, opened when somebody asks.
pub struct Inquiries {
    database: Database,
    purpose: &'static str,
    places: Semaphore,
    idle: Mutex<Vec<Journal>>,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum NotTold {
    /// Postgres is away.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Or does not answer as it should.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Or not in time.
    #[error("no answer within {} s", ANSWER_WITHIN.as_secs())]
    Late,
}

impl Inquiries {
    /// At most `sessions` at once; `purpose` shows in `pg_stat_activity`.
    pub fn new(database: Database, purpose: &'static str, sessions: usize) -> Inquiries {
        Inquiries {
            database,
            purpose,
            places: Semaphore::new(sessions),
            idle: Mutex::default(),
        }
    }

    /// Asks, when it is one's turn.
    pub async fn ask<T, E>(
        &self,
        look: impl AsyncFnOnce(&Journal) -> Result<T, E>,
    ) -> Result<T, NotTold>
    where
        NotTold: From<E>,
    {
        let answer = async {
            // never closed
            let _place = self.places.acquire().await;
            let journal = self.journal().await?;
            // a session that failed is not used again
            let told = look(&journal).await?;
            self.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(journal);
            Ok(told)
        };
        timeout(ANSWER_WITHIN, answer)
            .await
            .unwrap_or(Err(NotTold::Late))
    }

    async fn journal(&self) -> Result<Journal, NotTold> {
        loop {
            let idle = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            match idle {
                Some(journal) if journal.is_closed() => {}
                Some(journal) => return Ok(journal),
                None => {
                    let session = self.database.session(self.purpose).await?;
                    return Ok(Journal::open(session).await?);
                }
            }
        }
    }
}
