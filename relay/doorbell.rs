//! The doorbell: LISTEN on `crm_relay`.
//!
//! A ring is a hint to look, never believed: anyone may NOTIFY. The session does nothing else, since
//! an unread query response would hold up notifications.

use crate::postgres::{ConnectError, Database, Said, Session};

/// A session that listens.
pub struct Doorbell {
    session: Session,
}

/// The session that listened is gone; what was committed since rang for nobody.
#[derive(Debug, thiserror::Error)]
#[error("the session that listens was lost")]
pub struct Unheard;

impl Doorbell {
    /// Listens from now on.
    pub async fn hang(database: &Database) -> Result<Doorbell, ConnectError> {
        let session = database.session("doorbell").await?;
        session
            .client
            .batch_execute("listen crm_relay")
            .await
            .map_err(|error| ConnectError::Refused {
                target: database.target(),
                reason: crate::postgres::chain(&error),
            })?;
        Ok(Doorbell { session })
    }

    /// Waits for a ring; rings that came together are one.
    pub async fn rung(&mut self) -> Result<(), Unheard> {
        loop {
            match self.session.said.recv().await {
                Some(Said::Notified(_)) => break,
                Some(Said::Notice(_)) => {}
                None => return Err(Unheard),
            }
        }
        while self.session.said.try_recv().is_ok() {}
        Ok(())
    }
}
