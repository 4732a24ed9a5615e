//! Questions to the journal and the policy: a few sessions for all who ask, so that a thousand clients
//! that come at once do not become a thousand queries at once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::journal::{Journal, JournalError};
use crate::postgres::{ConnectError, Database};

/// How long an answer may take, the wait for its turn included.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// So long an idle session is taken to be alive; then it is tried first, and must answer in time.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
const ALIVE_WITHIN: Duration = Duration::from_secs(1);

/// A few sessions, opened when somebody asks.
pub struct Inquiries {
    database: Database,
    purpose: &'static str,
    places: Semaphore,
    /// With when they were used last.
    idle: Mutex<Vec<(Journal, Instant)>>,
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

impl NotTold {
    /// Whether to ask again may help: Postgres is away, on its way, or was too busy.
    pub fn will_pass(&self) -> bool {
        match self {
            NotTold::Connect(_) | NotTold::Late => true,
            NotTold::Journal(JournalError::Postgres(error)) => error
                .code()
                // https://www.postgresql.org/docs/current/errcodes-appendix.html: connections,
                // conflicts, resources, an operator's will
                .is_none_or(|code| matches!(&code.code()[..2], "08" | "40" | "53" | "55" | "57")),
            NotTold::Journal(_) => false,
        }
    }
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
            if !journal.is_spoilt() {
                self.idle().push((journal, Instant::now()));
            }
            Ok(told)
        };
        timeout(ANSWER_WITHIN, answer)
            .await
            .unwrap_or(Err(NotTold::Late))
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Journal, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn journal(&self) -> Result<Journal, NotTold> {
        loop {
            let idle = self.idle().pop();
            let Some((journal, since)) = idle else {
                let session = self.database.session(self.purpose).await?;
                let journal = Journal::open(session).await?;
                // what nobody awaits any more is not looked for on the server either
                journal.limit(ANSWER_WITHIN).await?;
                return Ok(journal);
            };
            // one that rested may have ended meanwhile, or its wire
            if since.elapsed() < TRUSTED_FOR
                || matches!(timeout(ALIVE_WITHIN, journal.mode()).await, Ok(Ok(_)))
            {
                return Ok(journal);
            }
        }
    }
}
