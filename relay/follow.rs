//! Following the journal without a relay: what `audit` and `tail` read, once or on and on.
//!
//! The same stations as the relay's [reader](crate::reader): a doorbell to wait for, snapshots to read
//! between, a position that is vouched for after every loss. What was printed is never printed again,
//! and nothing between is missed, also when Postgres goes away in the middle of it.

use std::io::Write;
use std::time::Duration;

use thiserror::Error;
use tokio::time::sleep;
use tokio_postgres::error::SqlState;

use crate::doorbell::{Doorbell, Unheard};
use crate::inquiries::NotTold;
use crate::journal::{Entry, Filter, Found, Journal, JournalError, Mode, Verdict};
use crate::postgres::{ConnectError, Database};
use crate::snapshot::{Cursor, Position};
use crate::terminal::reader_gone;

/// How often the journal is looked at though no bell rang.
const SAFETY_POLL: Duration = Duration::from_secs(5);

/// The same where writers do not ring.
const POLL_WITHOUT_BELL: Duration = Duration::from_millis(250);

/// Longest wait between two attempts to reach Postgres.
const LONGEST_BACKOFF: Duration = Duration::from_secs(8);

/// Transactions that are read at once, and printed when nothing is open on the server any more.
const TRANSACTIONS_A_READ: usize = 500;

/// Bytes of images of one transaction that are held at once; a larger one is handed on in pieces.
const PIECE: usize = 16 << 20;

/// Bytes that are printed while a read is still open: only of huge transactions.
const MOST_WAITING: usize = 8 << 20;

/// Why it does not go on.
#[derive(Debug, Error)]
pub enum Interrupted {
    /// Postgres is away.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Or does not answer as it should.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The policy was not told.
    #[error(transparent)]
    NotTold(#[from] NotTold),
    /// Nobody would hear a ring.
    #[error(transparent)]
    Unheard(#[from] Unheard),
    /// The login is not one of those who may read the journal.
    #[error(
        "{user} may not read the journal ({why}); let a superuser, or who installed it, run: grant crm_relay_audit to {user}"
    )]
    NoRight {
        /// Who has logged in.
        user: String,
        /// What Postgres said.
        why: String,
    },
    /// Nobody reads what is printed.
    #[error("could not print: {0}")]
    Output(#[from] std::io::Error),
}

/// Gets what was read, and says what is to be printed.
pub trait Listener {
    /// Entries of one transaction: all that are wanted, or of a huge one a piece; `begins` with its first.
    #[expect(async_fn_in_trait, reason = "nobody sends it to another thread")]
    async fn take(
        &mut self,
        entries: Vec<Entry>,
        begins: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Interrupted>;
}

/// Reads for a listener, and knows how far it has come.
pub struct Follower<'a, L> {
    database: &'a Database,
    filter: Filter,
    listener: L,
    reached: Option<Position>,
    epoch: Option<String>,
    /// What is being read, how many of its transactions were printed, and how much of the next.
    found: Option<Found>,
    printed: usize,
    printed_seq: Option<u64>,
    out: Vec<u8>,
}

/// A session that reads the journal for people; `purpose` shows in `pg_stat_activity`.
pub async fn open(database: &Database, purpose: &str) -> Result<Journal, Interrupted> {
    let session = database.session(purpose).await?;
    let user = session.client.query_one("select session_user::text", &[]);
    let user: String = user.await.map_err(JournalError::from)?.get(0);
    let journal = Journal::open(session).await.map_err(|error| match error {
        JournalError::Postgres(ref refused)
            if refused.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) =>
        {
            Interrupted::NoRight {
                user,
                why: error.to_string(),
            }
        }
        other => other.into(),
    })?;
    journal.plan_for_filters().await?;
    Ok(journal)
}

impl<'a, L: Listener> Follower<'a, L> {
    /// From a position on, or from the beginning of the journal.
    pub fn new(
        database: &'a Database,
        filter: Filter,
        from: Option<Position>,
        listener: L,
    ) -> Follower<'a, L> {
        Follower {
            database,
            filter,
            listener,
            reached: from,
            epoch: None,
            found: None,
            printed: 0,
            printed_seq: None,
            out: Vec::new(),
        }
    }

    /// Reads and prints all that there is; returns the number of transactions.
    pub async fn look(&mut self, journal: &Journal) -> Result<usize, Interrupted> {
        // of a read that was interrupted, which is read again
        self.out.clear();
        if self.epoch.is_none() {
            self.epoch = Some(journal.epoch().await?);
        }
        let found = match self.found.take() {
            Some(found) => found,
            None => {
                let reached = self.reached.as_ref();
                journal.transactions(reached, &self.filter).await?
            }
        };
        // kept here: who cuts this off finds what is left to be read
        let found = self.found.insert(found);
        while self.printed < found.txids.len() {
            let end = found.txids.len().min(self.printed + TRANSACTIONS_A_READ);
            let txids = &found.txids[self.printed..end];
            let mut entries = journal.entries(found, txids, &self.filter).await?;
            let mut piece: Vec<Entry> = Vec::new();
            let (mut bytes, mut begins) = (0, true);
            let printed_seq = self.printed_seq;
            let first = txids[0];
            loop {
                let entry = entries.next().await?;
                let is_next = match (&entry, piece.last()) {
                    (Some(entry), Some(last)) => entry.change.txid != last.change.txid,
                    (None, Some(_)) => true,
                    (_, None) => false,
                };
                if is_next || bytes > PIECE {
                    let last = piece.last().map(|last| (last.change.txid, last.change.seq));
                    let piece = std::mem::take(&mut piece);
                    self.listener.take(piece, begins, &mut self.out).await?;
                    (bytes, begins) = (0, is_next);
                    if self.out.len() > MOST_WAITING
                        && let Some((txid, seq)) = last
                    {
                        print(&mut self.out)?;
                        let place = txids.iter().position(|&known| known as u64 == txid);
                        self.printed = end - txids.len() + place.unwrap_or_default();
                        self.printed_seq = Some(seq);
                    }
                }
                let Some(entry) = entry else {
                    break;
                };
                let is_printed =
                    entry.change.txid == first as u64 && Some(entry.change.seq) <= printed_seq;
                if !is_printed {
                    bytes += entry.change.image_bytes();
                    piece.push(entry);
                }
            }
            entries.end().await?;
            print(&mut self.out)?;
            (self.printed, self.printed_seq) = (end, None);
        }
        let transactions = found.txids.len();
        self.reached = Some(found.position.clone());
        (self.found, self.printed) = (None, 0);
        Ok(transactions)
    }

    /// Goes on live until nobody reads what is printed. When Postgres goes away it says so on standard
    /// error, and comes back.
    pub async fn go_on(&mut self) -> Result<(), Interrupted> {
        // a task of its own: at once, also while somebody is slow to take what is printed
        let interrupt = tokio::spawn(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        });
        let ended = self.follow().await;
        interrupt.abort();
        ended
    }

    async fn follow(&mut self) -> Result<(), Interrupted> {
        let mut backoff = Duration::from_millis(100);
        let mut is_back = true;
        loop {
            let listening = self.listen(&mut is_back);
            let interrupted = tokio::select! {
                interrupted = listening => match interrupted {
                    Err(interrupted) => interrupted,
                    Ok(never) => match never {},
                },
                () = reader_gone() => return Ok(()),
            };
            if let Interrupted::Output(_) = interrupted {
                return Err(interrupted);
            }
            if let (Interrupted::Journal(JournalError::Pruned), Some(found)) =
                (&interrupted, self.found.take())
            {
                // what is left of it is gone
                (self.reached, self.printed, self.printed_seq) = (Some(found.position), 0, None);
            }
            if std::mem::take(&mut is_back) {
                backoff = Duration::from_millis(100);
            }
            eprintln!(
                "crm-relay: not reading the journal: {interrupted}; again in {} ms",
                backoff.as_millis()
            );
            sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    async fn listen(
        &mut self,
        is_back: &mut bool,
    ) -> Result<std::convert::Infallible, Interrupted> {
        // the bell first: what is committed from here on rings, what was before is read
        let mut doorbell = Doorbell::hang(self.database).await?;
        let journal = open(self.database, "follow").await?;
        self.find_position(&journal).await?;
        let poll = match journal.mode().await? {
            Mode::Always => SAFETY_POLL,
            // while a relay is awake, or there is none, nobody rings for who only looks on
            Mode::Adaptive | Mode::Never => POLL_WITHOUT_BELL,
        };
        loop {
            tokio::select! {
                looked = self.look(&journal) => { looked?; }
                unheard = doorbell.watch() => return Err(unheard.into()),
            }
            if !std::mem::replace(is_back, true) {
                eprintln!("crm-relay: reading the journal again, from where it was");
            }
            tokio::select! {
                rung = doorbell.rung() => rung?,
                () = sleep(poll) => {}
            }
        }
    }

    /// Goes on where it was, or says what is missing.
    async fn find_position(&mut self, journal: &Journal) -> Result<(), Interrupted> {
        let reading = self.found.as_ref().map(|found| &found.position);
        let (Some(epoch), Some(position)) = (&self.epoch, self.reached.as_ref().or(reading)) else {
            return Ok(());
        };
        let cursor = Cursor {
            epoch: epoch.clone(),
            position: position.clone(),
        };
        let missing = match journal.vouch(&cursor).await? {
            Verdict::Good => return Ok(()),
            Verdict::TooOld => "the journal was pruned beyond what was read",
            Verdict::OtherHistory => {
                "history is another than the one that was read: the database was restored, failed over or replaced"
            }
        };
        eprintln!("crm-relay: {missing}; what came between is not told, what comes now is");
        self.epoch = Some(journal.epoch().await?);
        self.reached = Some(journal.present().await?);
        (self.found, self.printed, self.printed_seq) = (None, 0, None);
        Ok(())
    }
}

/// Prints what waits.
pub fn print(out: &mut Vec<u8>) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(out)?;
    out.clear();
    stdout.flush()
}
