//! Any bytes as a token, and as the claims of one that is signed: never a panic, and whoever comes in
//! has a name and an end.
use std::sync::LazyLock;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crm_relay::token::{Keys, Secret, Settings};
use futures::FutureExt;
use jsonwebtoken::{Algorithm, EncodingKey};

const SECRET: &[u8] = b"a secret of at least 32 bytes, it is";

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let settings = Settings {
        secrets: vec![Secret(SECRET.to_vec())],
        user_claims: vec!["id".to_owned(), "sub".to_owned()],
        ..Settings::default()
    };
    Keys::open(&settings).now_or_never().unwrap().unwrap()
});

pub fn check(bytes: &[u8]) {
    if let Ok(token) = std::str::from_utf8(bytes) {
        assert!(KEYS.verify(token).now_or_never().unwrap().is_err());
    }
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(bytes));
    let key = EncodingKey::from_secret(SECRET);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    let token = format!("{message}.{signature}");
    if let Ok(claims) = KEYS.verify(&token).now_or_never().unwrap() {
        assert!(!claims.user.is_empty() && !claims.user.contains('\0'));
        assert!(claims.expires_at > SystemTime::now());
    }
}
