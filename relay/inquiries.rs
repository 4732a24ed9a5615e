//! Questions to the journal and the policy: a few sessions for all who ask, so that a thousand clients
//! that come at once do not become a thousand queries at once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_postgres::error::SqlState;

use crate::journal::{Journal, JournalError};
use crate::postgres::{ConnectError, Database};

/// How long an answer may take, the wait for its turn included.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The same of what several ask together.
const TOGETHER_WITHIN: Duration = Duration::from_secs(2);

/// Most questions of one query: it must be answered in time, also by a busy server.
const AT_ONCE: usize = 1000;

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

    /// Whether less of it may be answered in time: the answer was late here, or in Postgres.
    pub fn is_late(&self) -> bool {
        match self {
            NotTold::Late => true,
            NotTold::Journal(JournalError::Postgres(error)) => {
                error.code() == Some(&SqlState::QUERY_CANCELED)
            }
            NotTold::Connect(_) | NotTold::Journal(_) => false,
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
        self.ask_within(ANSWER_WITHIN, look).await
    }

    /// What several ask, who would rather be asked about apart than wait for long because of one of them.
    pub async fn ask_together<T, E>(
        &self,
        look: impl AsyncFnOnce(&Journal) -> Result<T, E>,
    ) -> Result<T, NotTold>
    where
        NotTold: From<E>,
    {
        self.ask_within(TOGETHER_WITHIN, look).await
    }

    async fn ask_within<T, E>(
        &self,
        within: Duration,
        look: impl AsyncFnOnce(&Journal) -> Result<T, E>,
    ) -> Result<T, NotTold>
    where
        NotTold: From<E>,
    {
        let is_short = within < ANSWER_WITHIN;
        let answer = async {
            // never closed
            let _place = self.places.acquire().await;
            let journal = self.journal().await?;
            if is_short {
                journal.limit(within).await?;
            }
            // a session that failed is not used again
            let told = look(&journal).await?;
            if is_short {
                journal.limit(ANSWER_WITHIN).await?;
            }
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

/// Many questions, asked some at a time. A piece that is late would be late again, and is halved: however
/// slow Postgres is, something is answered each time. Who is cut off asks on where they were.
#[derive(Debug)]
pub struct Pieces {
    most: usize,
    asked: usize,
}

impl Default for Pieces {
    fn default() -> Pieces {
        Pieces {
            most: AT_ONCE,
            asked: 0,
        }
    }
}

impl Pieces {
    /// What is to be asked when so many are answered; None when all are.
    pub fn next<'a, Q>(&mut self, questions: &'a [Q], answered: usize) -> Option<&'a [Q]> {
        let rest = questions.get(answered..)?;
        self.asked = self.most.min(rest.len());
        (self.asked > 0).then(|| &rest[..self.asked])
    }

    /// Takes in the answers to the last piece, one to each question; an error where it cannot be asked in
    /// less.
    pub fn take<T>(
        &mut self,
        told: Result<Vec<T>, NotTold>,
        answers: &mut Vec<T>,
    ) -> Result<(), NotTold> {
        match told {
            Ok(told) => answers.extend(told),
            Err(error) if error.is_late() && self.asked > 1 => {
                tracing::warn!(
                    questions = self.asked,
                    "no answer in time: asking fewer at once"
                );
                self.most = self.asked / 2;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_much_is_asked_each_query_is_bounded_and_what_is_late_is_asked_in_less() {
        let questions: Vec<usize> = (0..AT_ONCE * 2 + 7).collect();
        let mut answers = Vec::new();
        let mut sizes = Vec::new();
        let mut pieces = Pieces::default();
        while let Some(piece) = pieces.next(&questions, answers.len()) {
            sizes.push(piece.len());
            // as many as this Postgres answers in time
            let told = match piece.len() > 300 {
                true => Err(NotTold::Late),
                false => Ok(piece.to_vec()),
            };
            pieces.take(told, &mut answers).unwrap();
        }
        assert_eq!(answers, questions);
        assert_eq!(sizes[..4], [AT_ONCE, AT_ONCE / 2, AT_ONCE / 4, AT_ONCE / 4]);
        assert_eq!(
            sizes.iter().filter(|&&size| size > 300).count(),
            2,
            "what was late is tried again: {sizes:?}"
        );
    }

    #[test]
    fn who_is_cut_off_asks_on_where_they_were() {
        let questions: Vec<usize> = (0..AT_ONCE + 1).collect();
        let mut answers = Vec::new();
        let mut pieces = Pieces::default();
        let first = pieces.next(&questions, 0).unwrap().to_vec();
        pieces.take(Ok(first), &mut answers).unwrap();
        assert_eq!(pieces.next(&questions, answers.len()).unwrap(), [AT_ONCE]);
        let cut_off = pieces.take(Err(NotTold::Late), &mut answers);
        assert!(cut_off.is_err(), "one alone has no half");
        let mut again = Pieces::default();
        let rest = again.next(&questions, answers.len()).unwrap().to_vec();
        assert_eq!(rest, [AT_ONCE]);
        again.take(Ok(rest), &mut answers).unwrap();
        assert_eq!(answers, questions);
        assert_eq!(again.next(&questions, answers.len()), None);
    }
}
