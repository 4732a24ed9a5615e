//! `crm-relay token`: tokens for development, signed as the CRM's backend signs them.
//!
//! Whoever has the secret can be anybody. So this signs with a secret that says of itself that it is
//! for development, and with another only for those who say that they mean it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Map, Value};

use super::{Secret, Settings};
use crate::config::{BadSettings, Given};

/// Words by one of which a secret says that it is for development.
const WORDS: [&str; 7] = [
    "dev",
    "development",
    "test",
    "tests",
    "demo",
    "local",
    "example",
];

/// Longest life of such a token.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What `token` is asked.
#[derive(Args)]
pub struct Issue {
    #[command(flatten)]
    given: Given,
    /// Whose token it is
    #[arg(long, value_name = "ID")]
    user: String,
    /// Its claim role; where table users knows the user, the role there counts
    #[arg(long)]
    role: Option<String>,
    /// How long it is good, at most 24h
    #[arg(long = "for", value_name = "TIME", default_value = "15m")]
    lasts: humantime::Duration,
    /// Sign with a secret that does not say that it is for development: whoever has this token is that user,
    /// wherever the secret is trusted
    #[arg(long)]
    sign_as_production: bool,
}

impl Issue {
    /// The token.
    pub fn issue(&self) -> Result<String, BadSettings> {
        let settings = self.given.tokens()?;
        let bad = |why: String| Err(BadSettings(vec![why]));
        let Some(secret) = settings.secrets.first() else {
            return bad("jwt_secret (RELAY_JWT_SECRET): missing; tokens for jwks (RELAY_JWKS) are signed by whoever has the private key".to_owned());
        };
        if !self.sign_as_production && !is_for_development(secret) {
            return bad(format!(
                "jwt_secret (RELAY_JWT_SECRET): it looks like production's, and whoever has a token signed by that is whoever it names; a secret for development says so by one of the words {}, such as dev-only-0123456789abcdef0123456789; if you mean it: --sign-as-production",
                WORDS.join(", ")
            ));
        }
        if *self.lasts > LONGEST || self.lasts.as_secs() == 0 {
            return bad(format!(
                "--for: {}; it must be at least 1s and at most 24h",
                self.lasts
            ));
        }
        if self.user.is_empty() {
            return bad(
                "--user: empty; it must be the id of a user, as table users has it".to_owned(),
            );
        }
        let claims = self.claims(&settings, SystemTime::now());
        let key = EncodingKey::from_secret(&secret.0);
        jsonwebtoken::encode(&Header::default(), &claims, &key)
            .or_else(|error| bad(format!("jwt_secret (RELAY_JWT_SECRET): {error}")))
    }

    /// What a relay with these settings wants to know.
    fn claims(&self, settings: &Settings, now: SystemTime) -> Map<String, Value> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let user = settings.user_claims.first();
        let user = user.map_or("id", String::as_str);
        let mut claims = Map::new();
        claims.insert(user.to_owned(), self.user.clone().into());
        claims.extend(
            self.role
                .clone()
                .map(|role| ("role".to_owned(), role.into())),
        );
        for (name, value) in [("aud", &settings.audience), ("iss", &settings.issuer)] {
            claims.extend(value.clone().map(|value| (name.to_owned(), value.into())));
        }
        claims.insert("iat".to_owned(), now.into());
        claims.insert("exp".to_owned(), (now + self.lasts.as_secs()).into());
        claims
    }
}

/// Whether it says so by a word of its own: what is random holds one by no chance that matters.
fn is_for_development(secret: &Secret) -> bool {
    let text = String::from_utf8_lossy(&secret.0).to_lowercase();
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.any(|word| WORDS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_says_by_a_word_of_its_own_that_it_is_for_development() {
        for (secret, is_so) in [
            ("dev-only-0123456789abcdef0123456789", true),
            ("The secret of the tests, which is no secret", true),
            ("LOCAL_0123456789abcdef0123456789abcdef", true),
            ("Zk3vdevT8qP0testW1xY2zA3bB4cC5dD6eE7f", false),
            ("development0123456789abcdef0123456789", false),
            ("correct horse battery staple 1234567", false),
        ] {
            let secret = Secret(secret.as_bytes().to_vec());
            assert_eq!(is_for_development(&secret), is_so, "{secret:?}");
        }
    }
}
