//! Tokens: JSON Web Tokens (RFC 7519), by which somebody shows who they are.
//!
//! What a token may be signed with is pinned to the kind of key: a secret verifies HMACs and nothing
//! else, a public key the algorithms of its own kind (RFC 8725, section 3.1). What a token says of
//! keys (`jwk`, `jku`, `x5u`) is never followed.

pub mod issue;
mod jwks;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

pub use jwks::{BadKeys, Source};

use jwks::KeySet;

/// Longest token, in bytes.
pub const LONGEST: usize = 8192;

/// How far the clocks of who issues tokens and of who checks them may be apart.
pub const LEEWAY: Duration = Duration::from_secs(5);

/// Shortest secret, in bytes: as long as the hash of HS256 (RFC 7518, section 3.2).
pub const SHORTEST_SECRET: usize = 32;

/// Longest name of a user, in bytes.
const LONGEST_USER: usize = 200;

/// Times after the year 9999 are no times.
const LAST_SECOND: f64 = 253_402_300_799.0;

/// Whose tokens are trusted, and how.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Secrets for HS256, HS384 and HS512; two while one takes the place of the other.
    pub secrets: Vec<Secret>,
    /// Where public keys for RS, PS, ES and EdDSA are.
    pub jwks: Option<Source>,
    /// What `aud` must name, if anything.
    pub audience: Option<String>,
    /// What `iss` must be, if anything.
    pub issuer: Option<String>,
    /// The claims that may name the user; the first that is there does.
    pub user_claims: Vec<String>,
}

/// A secret, which nobody gets to see.
#[derive(Clone)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes)", self.0.len())
    }
}

/// What a good token says.
#[derive(Debug)]
pub struct Claims {
    /// Who its bearer is.
    pub user: String,
    /// Until when it is good, the leeway included.
    pub expires_at: SystemTime,
    /// When it was issued, where it says so.
    pub issued_at: Option<SystemTime>,
    /// All claims, as they were written.
    pub all: Members,
}

/// Why a token is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadToken {
    /// More than [`LONGEST`].
    #[error("the token has more than {LONGEST} bytes")]
    TooLong,
    /// It cannot be read.
    #[error("the token is no JSON Web Token in compact form")]
    Malformed,
    /// Signed in a way for which there is no key.
    #[error("the token's algorithm is not one that is trusted")]
    Algorithm,
    /// By a key that is not among those that are trusted.
    #[error("the token's key is not known")]
    UnknownKey,
    /// Signed by nobody who is trusted.
    #[error("the token's signature is wrong")]
    Signature,
    /// Over, or without an end.
    #[error("the token has expired, or does not say when it does")]
    Expired,
    /// Not good yet.
    #[error("the token is not good yet")]
    NotYet,
    /// For somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// By somebody else.
    #[error("the token is by another issuer")]
    Issuer,
    /// It names nobody.
    #[error("the token names no user")]
    User,
}

impl BadToken {
    /// In one word, for log and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            BadToken::TooLong => "too_long",
            BadToken::Malformed => "malformed",
            BadToken::Algorithm => "algorithm",
            BadToken::UnknownKey => "unknown_key",
            BadToken::Signature => "signature",
            BadToken::Expired => "expired",
            BadToken::NotYet => "not_yet",
            BadToken::Audience => "audience",
            BadToken::Issuer => "issuer",
            BadToken::User => "user",
        }
    }
}

/// The keys that are trusted.
#[derive(Clone)]
pub struct Keys(Arc<Inner>);

struct Inner {
    secrets: Vec<DecodingKey>,
    set: Option<KeySet>,
    audience: Option<String>,
    issuer: Option<String>,
    user_claims: Vec<String>,
}

/// The header of a token, as far as it is heeded (RFC 7515, section 4.1).
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<de::IgnoredAny>,
}

impl Keys {
    /// Reads the public keys, if there are to be any.
    pub async fn open(settings: &Settings) -> Result<Keys, BadKeys> {
        let secrets = settings.secrets.iter();
        let set = match &settings.jwks {
            Some(source) => Some(KeySet::open(source.clone()).await?),
            None => None,
        };
        Ok(Keys(Arc::new(Inner {
            secrets: secrets
                .map(|secret| DecodingKey::from_secret(&secret.0))
                .collect(),
            set,
            audience: settings.audience.clone(),
            issuer: settings.issuer.clone(),
            user_claims: settings.user_claims.clone(),
        })))
    }

    /// Checks a token.
    pub async fn verify(&self, token: &str) -> Result<Claims, BadToken> {
        if token.len() > LONGEST {
            return Err(BadToken::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(BadToken::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(BadToken::Malformed)?;
        let [header, payload] = [header, payload].map(|part| URL_SAFE_NO_PAD.decode(part));
        let header = header.map_err(|_| BadToken::Malformed)?;
        let payload = payload.map_err(|_| BadToken::Malformed)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| BadToken::Malformed)?;
        if header.crit.is_some() {
            // what must be understood is not
            return Err(BadToken::Malformed);
        }
        let algorithm = Algorithm::from_str(&header.alg).map_err(|_| BadToken::Algorithm)?;
        let keys = self.keys(algorithm, header.kid.as_deref()).await?;
        let is_signed = keys.iter().any(|key| {
            jsonwebtoken::crypto::verify(signature, signed.as_bytes(), key, algorithm)
                .is_ok_and(|is_good| is_good)
        });
        if !is_signed {
            return Err(BadToken::Signature);
        }
        self.read(&payload, SystemTime::now())
    }

    async fn keys(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
    ) -> Result<Vec<DecodingKey>, BadToken> {
        let Inner { secrets, set, .. } = &*self.0;
        if algorithm.family() == AlgorithmFamily::Hmac {
            return match secrets.is_empty() {
                true => Err(BadToken::Algorithm),
                false => Ok(secrets.clone()),
            };
        }
        let set = set.as_ref().ok_or(BadToken::Algorithm)?;
        set.find(algorithm, kid).await
    }

    /// What the claims say; the signature was checked.
    fn read(&self, payload: &[u8], now: SystemTime) -> Result<Claims, BadToken> {
        let all: Members = serde_json::from_slice(payload).map_err(|_| BadToken::Malformed)?;
        let time = |name: &str, bad: BadToken| match all.get(name) {
            Some(raw) => seconds(raw).map(Some).ok_or(bad),
            None => Ok(None),
        };
        let expires_at = time("exp", BadToken::Expired)?.ok_or(BadToken::Expired)? + LEEWAY;
        if expires_at <= now {
            return Err(BadToken::Expired);
        }
        if time("nbf", BadToken::NotYet)?.is_some_and(|from| from > now + LEEWAY) {
            return Err(BadToken::NotYet);
        }
        let issued_at = time("iat", BadToken::Malformed)?;
        if let Some(audience) = &self.0.audience {
            let named = all.get("aud").map(|raw| {
                let one = serde_json::from_str(raw.get()).map(|one: String| vec![one]);
                one.or_else(|_| serde_json::from_str::<Vec<String>>(raw.get()))
            });
            if !matches!(named, Some(Ok(named)) if named.contains(audience)) {
                return Err(BadToken::Audience);
            }
        }
        if let Some(issuer) = &self.0.issuer {
            let named = all.get("iss");
            let named = named.map(|raw| serde_json::from_str::<String>(raw.get()));
            if !matches!(named, Some(Ok(named)) if named == *issuer) {
                return Err(BadToken::Issuer);
            }
        }
        let mut names = self.0.user_claims.iter();
        let user = names.find_map(|name| all.get(name)).and_then(user);
        Ok(Claims {
            user: user.ok_or(BadToken::User)?,
            expires_at,
            issued_at,
            all,
        })
    }
}

/// A `NumericDate` (RFC 7519, section 2).
fn seconds(raw: &RawValue) -> Option<SystemTime> {
    let seconds: f64 = raw.get().parse().ok()?;
    let is_time = (0.0..=LAST_SECOND).contains(&seconds);
    is_time.then(|| UNIX_EPOCH + Duration::from_secs_f64(seconds))
}

/// A user's id: a text or an integer; a uuid as Postgres prints it.
fn user(raw: &RawValue) -> Option<String> {
    let text = match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => text,
        Err(_) => raw.get().parse::<i64>().ok()?.to_string(),
    };
    let is_name =
        !text.is_empty() && text.len() <= LONGEST_USER && !text.contains(char::is_control);
    let is_uuid = text.len() == 36 && uuid::Uuid::try_parse(&text).is_ok();
    is_name.then(|| if is_uuid { text.to_lowercase() } else { text })
}

/// The members of a JSON object, as they were written, each once.
///
/// Never a [`serde_json::Value`]: what nests in them is not followed.
#[derive(Debug, Default)]
pub struct Members(BTreeMap<String, Box<RawValue>>);

impl Members {
    /// One of them.
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.get(name).map(|raw| &**raw)
    }

    /// All of them by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.0.iter().map(|(name, raw)| (name.as_str(), &**raw))
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Members::default();
                while let Some((name, raw)) = map.next_entry::<String, Box<RawValue>>()? {
                    if members.0.insert(name, raw).is_some() {
                        return Err(de::Error::custom("a member that is there twice"));
                    }
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Each)
    }
}
