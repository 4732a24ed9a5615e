//! The gate: who somebody is by their token, before anything is read for them.

use std::sync::Arc;
use std::time::SystemTime;

use thiserror::Error;

use crate::policy::Policy;
use crate::rooms::Bearer;
use crate::token::{BadToken, Keys};

/// Checks tokens, and makes of their claims whom the policy is asked about.
#[derive(Clone)]
pub struct Gate {
    keys: Keys,
    policy: Arc<Policy>,
}

/// Somebody with a good token.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// Who.
    pub bearer: Bearer,
    /// Until when.
    pub expires_at: SystemTime,
}

/// Why somebody does not come in.
#[derive(Debug, Error)]
pub enum NotAdmitted {
    /// There is none.
    #[error("no token")]
    Missing,
    /// It is not good.
    #[error(transparent)]
    Bad(#[from] BadToken),
}

impl NotAdmitted {
    /// In one word, for the log.
    pub fn reason(&self) -> &'static str {
        match self {
            NotAdmitted::Missing => "missing",
            NotAdmitted::Bad(bad) => bad.reason(),
        }
    }
}

impl Gate {
    /// Trusts these keys.
    pub fn new(keys: Keys, policy: Arc<Policy>) -> Gate {
        Gate { keys, policy }
    }

    /// Who is asked about what the bearers may see.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Who it is that has this token.
    pub async fn admit(&self, token: Option<&str>) -> Result<Admitted, NotAdmitted> {
        let token = token.ok_or(NotAdmitted::Missing)?;
        let claims = self.keys.verify(token).await?;
        Ok(Admitted {
            bearer: Bearer {
                who: self.policy.credential(&claims.user, &claims.all),
                issued_at: claims.issued_at,
            },
            expires_at: claims.expires_at,
        })
    }
}
