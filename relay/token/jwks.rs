//! The public keys that are trusted: a JSON Web Key Set (RFC 7517, section 5), from a file or a URL.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::BadToken;

/// Least time between two looks.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// After so long keys are looked for again, so that those that were taken away do not stay.
const GOOD_FOR: Duration = Duration::from_secs(600);

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Largest key set, in bytes.
const LARGEST: usize = 256 * 1024;

/// Most keys of a set.
const MOST_KEYS: usize = 64;

/// Where the keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In a file.
    File(PathBuf),
    /// Behind an `https` URL, or an `http` one of this machine.
    Url(reqwest::Url),
}

impl Source {
    /// From a setting; says what would be right.
    pub fn of(text: &str) -> Result<Source, String> {
        if !text.contains("://") {
            return Ok(Source::File(text.into()));
        }
        let url = reqwest::Url::parse(text).map_err(|error| error.to_string())?;
        let is_own = url.host_str().is_some_and(crate::server::is_loopback);
        match url.scheme() {
            "https" => Ok(Source::Url(url)),
            "http" if is_own => Ok(Source::Url(url)),
            "http" => Err(
                "keys that come unencrypted can be exchanged by anybody; it must be https"
                    .to_owned(),
            ),
            other => Err(format!("scheme {other}; it must be a path or an https URL")),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => path.display().fmt(f),
            Source::Url(url) => url.fmt(f),
        }
    }
}

/// Why there are no keys.
#[derive(Debug, Error)]
pub enum BadKeys {
    /// The file cannot be read.
    #[error("{source_of_keys}: {error}")]
    File {
        /// Which.
        source_of_keys: Source,
        /// Why.
        error: std::io::Error,
    },
    /// The URL does not answer as it should.
    #[error("{source_of_keys}: {error}")]
    Url {
        /// Which.
        source_of_keys: Source,
        /// Why.
        error: reqwest::Error,
    },
    /// What is there is no key set.
    #[error(
        "{source_of_keys}: {why}; it must be a JSON Web Key Set, {{\"keys\":[…]}}, of at most {LARGEST} bytes with a public key for signatures"
    )]
    NoSet {
        /// Where.
        source_of_keys: Source,
        /// What is wrong with it.
        why: String,
    },
}

/// Keys, looked for again when somebody names one that is not among them.
pub(super) struct KeySet {
    source: Source,
    http: reqwest::Client,
    known: RwLock<Arc<Known>>,
    looked: Mutex<Instant>,
}

struct Known {
    keys: Vec<PublicKey>,
    since: Instant,
}

struct PublicKey {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl KeySet {
    /// Looks for the first time.
    pub async fn open(source: Source) -> Result<KeySet, BadKeys> {
        let http = reqwest::Client::builder()
            .timeout(ANSWER_WITHIN)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| BadKeys::Url {
                source_of_keys: source.clone(),
                error,
            })?;
        let keys = look(&source, &http).await?;
        let since = Instant::now();
        Ok(KeySet {
            source,
            http,
            known: RwLock::new(Arc::new(Known { keys, since })),
            looked: Mutex::new(since),
        })
    }

    fn known(&self) -> Arc<Known> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    /// The keys that may have signed this; looks for them, but not too often.
    pub async fn find(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
    ) -> Result<Vec<DecodingKey>, BadToken> {
        let known = self.known();
        let found = known.find(algorithm, kid);
        if !found.is_empty() && known.since.elapsed() < GOOD_FOR {
            return Ok(found);
        }
        let known = self.look_again(known).await;
        let found = known.find(algorithm, kid);
        if found.is_empty() {
            return Err(BadToken::UnknownKey);
        }
        Ok(found)
    }

    /// One looks for all who wait; where there is nothing to be had, what is known goes on.
    async fn look_again(&self, known: Arc<Known>) -> Arc<Known> {
        let mut looked = self.looked.lock().await;
        let now = self.known();
        if now.since != known.since || looked.elapsed() < LOOK_AGAIN_AFTER {
            return now;
        }
        match look(&self.source, &self.http).await {
            Ok(keys) => {
                let since = Instant::now();
                let found = Arc::new(Known { keys, since });
                *self.known.write().unwrap_or_else(PoisonError::into_inner) = found;
            }
            Err(error) => {
                tracing::warn!(%error, "could not read the keys for tokens again: those that are known go on");
            }
        }
        *looked = Instant::now();
        self.known()
    }
}

impl Known {
    fn find(&self, algorithm: Algorithm, kid: Option<&str>) -> Vec<DecodingKey> {
        let fits = |key: &&PublicKey| {
            let is_named = kid.is_none() || key.kid.is_none() || key.kid.as_deref() == kid;
            is_named && key.algorithms.contains(&algorithm)
        };
        let found = self.keys.iter().filter(fits);
        found.map(|key| key.key.clone()).collect()
    }
}

async fn look(source: &Source, http: &reqwest::Client) -> Result<Vec<PublicKey>, BadKeys> {
    let no_set = |why: String| BadKeys::NoSet {
        source_of_keys: source.clone(),
        why,
    };
    let bytes = match source {
        Source::File(path) => tokio::fs::read(path).await.map_err(|error| BadKeys::File {
            source_of_keys: source.clone(),
            error,
        })?,
        Source::Url(url) => {
            let bad = |error: reqwest::Error| BadKeys::Url {
                source_of_keys: source.clone(),
                error: error.without_url(),
            };
            let answer = http.get(url.clone()).send().await.map_err(bad)?;
            let mut answer = answer.error_for_status().map_err(bad)?;
            if !answer.status().is_success() {
                return Err(no_set(format!("status {}", answer.status())));
            }
            let mut bytes = Vec::new();
            while let Some(some) = answer.chunk().await.map_err(bad)? {
                bytes.extend_from_slice(&some);
                if bytes.len() > LARGEST {
                    break;
                }
            }
            bytes
        }
    };
    if bytes.len() > LARGEST {
        return Err(no_set("it is too large".to_owned()));
    }
    let keys = read(&bytes).map_err(no_set)?;
    tracing::info!(%source, keys = keys.len(), "read the keys for tokens");
    Ok(keys)
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Box<RawValue>>,
}

/// The public keys for signatures of a key set; others are left out.
fn read(bytes: &[u8]) -> Result<Vec<PublicKey>, String> {
    let set: Set = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut keys = Vec::new();
    for raw in set.keys.iter().take(MOST_KEYS) {
        let key = serde_json::from_str::<Jwk>(raw.get())
            .map_err(|error| error.to_string())
            .and_then(|jwk| public_key(&jwk));
        match key {
            Ok(key) => keys.push(key),
            Err(why) => tracing::warn!(why, "left out a key for tokens"),
        }
    }
    if keys.is_empty() {
        return Err("it holds no usable key".to_owned());
    }
    Ok(keys)
}

fn public_key(jwk: &Jwk) -> Result<PublicKey, String> {
    let common = &jwk.common;
    if !matches!(common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return Err("it is not for signatures".to_owned());
    }
    let operations = common.key_operations.as_ref();
    if operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
        return Err("it is not to verify with".to_owned());
    }
    let mut algorithms = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa.algorithms().to_vec(),
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => vec![Algorithm::ES256],
            EllipticCurve::P384 => vec![Algorithm::ES384],
            _ => return Err("its curve is none of P-256 and P-384".to_owned()),
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            vec![Algorithm::EdDSA]
        }
        AlgorithmParameters::OctetKey(_) => {
            return Err(
                "it is a secret, which RELAY_JWT_SECRET may hold and no key set".to_owned(),
            );
        }
        _ => return Err("its kind is none of RSA, EC and Ed25519".to_owned()),
    };
    if let Some(only) = &common.key_algorithm {
        let only = only.to_string();
        algorithms.retain(|algorithm| format!("{algorithm:?}") == only);
        if algorithms.is_empty() {
            return Err(format!("its algorithm {only} does not fit its kind"));
        }
    }
    Ok(PublicKey {
        kid: common.key_id.clone(),
        algorithms,
        key: DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?,
    })
}
