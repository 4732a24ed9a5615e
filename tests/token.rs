//! Tokens: each way to come by one that should not count, and those that should.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crm_relay::token::{BadToken, Keys, LONGEST, Secret, Settings, Source};
use futures::executor::block_on;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const SECRET: &str = "a secret of at least 32 bytes, it is";
const OTHER: &str = "another one, that took its place long ago";

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64
}

fn settings(secrets: &[&str]) -> Settings {
    Settings {
        secrets: secrets
            .iter()
            .map(|secret| Secret(secret.as_bytes().to_vec()))
            .collect(),
        user_claims: vec!["id".to_owned(), "sub".to_owned()],
        ..Settings::default()
    }
}

async fn keys() -> Keys {
    Keys::open(&settings(&[SECRET])).await.unwrap()
}

/// A token with this header and payload, signed by this key whatever they say.
fn signed(header: &str, payload: &str, algorithm: Algorithm, key: &EncodingKey) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", part(header), part(payload));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn by_secret(payload: &str) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    signed(
        r#"{"alg":"HS256","typ":"JWT"}"#,
        payload,
        Algorithm::HS256,
        &key,
    )
}

fn claims(more: Value) -> String {
    let mut claims = json!({"id": "ann", "exp": now() + 60});
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.to_string()
}

/// A key, its public half as a JWK, and how it signs.
struct Pair {
    key: EncodingKey,
    jwk: Value,
    algorithm: Algorithm,
}

fn pair(algorithm: Algorithm, kid: &str) -> Pair {
    let key = match algorithm {
        Algorithm::ES256 => {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref())
        }
        Algorithm::EdDSA => {
            let pair = Ed25519KeyPair::generate().unwrap();
            EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref())
        }
        _ => {
            let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
            let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
            // PKCS #1 is what PKCS #8 wraps, here in 26 bytes
            EncodingKey::from_rsa_der(&der.as_ref()[26..])
        }
    };
    let jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
    let mut jwk = serde_json::to_value(jwk).unwrap();
    jwk["kid"] = kid.into();
    Pair {
        key,
        jwk,
        algorithm,
    }
}

impl Pair {
    fn token(&self, kid: Option<&str>, payload: &str) -> String {
        let mut header = json!({"alg": format!("{:?}", self.algorithm)});
        if let Some(kid) = kid {
            header["kid"] = kid.into();
        }
        signed(&header.to_string(), payload, self.algorithm, &self.key)
    }
}

/// Keys of a set in a file, beside no secret.
async fn of_file(jwks: &[Value]) -> Keys {
    let path = std::env::temp_dir().join(format!("crm-relay-{}.json", uuid::Uuid::new_v4()));
    std::fs::write(&path, json!({"keys": jwks}).to_string()).unwrap();
    let settings = Settings {
        jwks: Some(Source::File(path.clone())),
        ..settings(&[])
    };
    let keys = Keys::open(&settings).await;
    std::fs::remove_file(path).unwrap();
    keys.unwrap()
}

#[tokio::test]
async fn a_good_token_says_who_until_when_and_since_when() {
    let token = by_secret(&claims(json!({"iat": 1_700_000_000, "team": "T"})));
    let claims = keys().await.verify(&token).await.unwrap();
    assert_eq!(claims.user, "ann");
    assert_eq!(claims.all.get("team").unwrap().get(), "\"T\"");
    let issued = claims
        .issued_at
        .unwrap()
        .duration_since(UNIX_EPOCH)
        .unwrap();
    assert_eq!(issued.as_secs(), 1_700_000_000);
    let left = claims.expires_at.duration_since(SystemTime::now()).unwrap();
    assert!((50..=65).contains(&left.as_secs()), "{left:?}");
}

#[tokio::test]
async fn every_claim_that_is_not_as_it_must_be_is_refused() {
    let keys = keys().await;
    let at = now();
    let huge = "9".repeat(400);
    let deep = format!(
        r#"{{"id":"ann","exp":{},"x":{}1{}}}"#,
        at + 60,
        "[".repeat(2000),
        "]".repeat(2000)
    );
    keys.verify(&by_secret(&deep))
        .await
        .expect("what is not asked for may nest");
    for (payload, bad) in [
        (r#"{"id":"ann"}"#.to_owned(), BadToken::Expired),
        (claims(json!({"exp": at - 6})), BadToken::Expired),
        (claims(json!({"exp": -1})), BadToken::Expired),
        (
            claims(json!({"exp": (at + 60).to_string()})),
            BadToken::Expired,
        ),
        (claims(json!({"exp": null})), BadToken::Expired),
        (format!(r#"{{"id":"ann","exp":{huge}}}"#), BadToken::Expired),
        (r#"{"id":"ann","exp":1e999}"#.to_owned(), BadToken::Expired),
        (
            r#"{"id":"ann","exp":{"$serde_json::private::Number":"9999999999"}}"#.to_owned(),
            BadToken::Expired,
        ),
        (claims(json!({"nbf": at + 60})), BadToken::NotYet),
        (claims(json!({"nbf": "never"})), BadToken::NotYet),
        (claims(json!({"iat": "once"})), BadToken::Malformed),
        (claims(json!({"id": ["ann"]})), BadToken::User),
        (claims(json!({"id": {"a": 1}})), BadToken::User),
        (claims(json!({"id": null, "sub": "ann"})), BadToken::User),
        (claims(json!({"id": ""})), BadToken::User),
        (claims(json!({"id": true})), BadToken::User),
        (claims(json!({"id": 1.5})), BadToken::User),
        (claims(json!({"id": "a\u{0}b"})), BadToken::User),
        (claims(json!({"id": "a\nb"})), BadToken::User),
        (claims(json!({"id": "x".repeat(201)})), BadToken::User),
        (format!(r#"{{"exp":{}}}"#, at + 60), BadToken::User),
        (
            format!(r#"{{"id":"ann","id":"bea","exp":{}}}"#, at + 60),
            BadToken::Malformed,
        ),
        (
            format!(r#"{{"id":"ann","exp":1,"exp":{}}}"#, at + 60),
            BadToken::Malformed,
        ),
        ("[]".to_owned(), BadToken::Malformed),
        ("".to_owned(), BadToken::Malformed),
        ("{".to_owned(), BadToken::Malformed),
    ] {
        let told = keys.verify(&by_secret(&payload)).await.err();
        assert_eq!(told, Some(bad), "{payload}");
    }
    for (payload, user) in [
        (claims(json!({"id": 42})), "42"),
        (claims(json!({"exp": at - 3})), "ann"),
        (claims(json!({"exp": at as f64 + 60.5})), "ann"),
        (claims(json!({"nbf": at + 3})), "ann"),
        (format!(r#"{{"sub":"bea","exp":{}}}"#, at + 60), "bea"),
        (
            claims(json!({"id": "5D1F0000-0000-4000-8000-00000000000A"})),
            "5d1f0000-0000-4000-8000-00000000000a",
        ),
    ] {
        let told = keys.verify(&by_secret(&payload)).await;
        assert_eq!(
            told.map(|claims| claims.user).as_deref(),
            Ok(user),
            "{payload}"
        );
    }
}

#[tokio::test]
async fn audience_and_issuer_count_where_they_are_set() {
    let settings = Settings {
        audience: Some("relay".to_owned()),
        issuer: Some("crm".to_owned()),
        ..settings(&[SECRET])
    };
    let keys = Keys::open(&settings).await.unwrap();
    for (aud, iss, bad) in [
        (json!("relay"), json!("crm"), None),
        (json!(["other", "relay"]), json!("crm"), None),
        (json!("other"), json!("crm"), Some(BadToken::Audience)),
        (json!([]), json!("crm"), Some(BadToken::Audience)),
        (
            json!(["other", 1, "relay"]),
            json!("crm"),
            Some(BadToken::Audience),
        ),
        (json!(null), json!("crm"), Some(BadToken::Audience)),
        (json!("relay"), json!("crm2"), Some(BadToken::Issuer)),
        (json!("relay"), json!(["crm"]), Some(BadToken::Issuer)),
        (json!("relay"), json!(null), Some(BadToken::Issuer)),
    ] {
        let token = by_secret(&claims(json!({"aud": aud, "iss": iss})));
        assert_eq!(keys.verify(&token).await.err(), bad, "{aud} {iss}");
    }
    let token = by_secret(&claims(json!({})));
    assert_eq!(keys.verify(&token).await.err(), Some(BadToken::Audience));
}

#[tokio::test]
async fn what_is_no_token_is_refused() {
    let keys = keys().await;
    let good = by_secret(&claims(json!({})));
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else {
        panic!()
    };
    let crit = by_header(r#"{"alg":"HS256","crit":["exp"]}"#);
    let twice = by_header(r#"{"alg":"none","alg":"HS256"}"#);
    for (token, bad) in [
        (String::new(), BadToken::Malformed),
        (".".to_owned(), BadToken::Malformed),
        ("..".to_owned(), BadToken::Malformed),
        (format!("{header}.{payload}"), BadToken::Malformed),
        (format!("{good}.{signature}"), BadToken::Malformed),
        (format!("{header}.{payload}."), BadToken::Signature),
        (
            format!("{header}=.{payload}.{signature}"),
            BadToken::Malformed,
        ),
        (
            format!("{header}.{payload}.{signature}="),
            BadToken::Signature,
        ),
        (
            format!("{header}.{payload}!.{signature}"),
            BadToken::Malformed,
        ),
        (format!(" {good}"), BadToken::Malformed),
        (good[..good.len() - 1].to_owned(), BadToken::Signature),
        ("ü.ü.ü".to_owned(), BadToken::Malformed),
        (crit, BadToken::Malformed),
        (twice, BadToken::Malformed),
        ("x".repeat(LONGEST + 1), BadToken::TooLong),
    ] {
        assert_eq!(keys.verify(&token).await.err(), Some(bad), "{token:.80}");
    }
    let invalid = URL_SAFE_NO_PAD.encode(b"{\"id\":\"\xff\",\"exp\":9999999999}");
    let message = format!("{header}.{invalid}");
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    let told = keys.verify(&format!("{message}.{signature}")).await.err();
    assert_eq!(told, Some(BadToken::Malformed), "not UTF-8");
}

fn by_header(header: &str) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    signed(header, &claims(json!({})), Algorithm::HS256, &key)
}

#[tokio::test]
async fn an_unsigned_token_is_refused_however_it_says_so() {
    let keys = keys().await;
    for alg in [
        "none", "None", "NONE", "nOnE", "", "hs256", "HS1", "ES256", "RS256",
    ] {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": alg}).to_string());
        let payload = URL_SAFE_NO_PAD.encode(claims(json!({})));
        for signature in ["", "AAAA"] {
            let told = keys
                .verify(&format!("{header}.{payload}.{signature}"))
                .await;
            assert_eq!(told.err(), Some(BadToken::Algorithm), "{alg}");
        }
    }
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":null}"#);
    let told = keys.verify(&format!("{header}.e30.")).await.err();
    assert_eq!(told, Some(BadToken::Malformed));
}

#[tokio::test]
async fn either_of_two_secrets_is_good_and_no_third() {
    let keys = Keys::open(&settings(&[OTHER, SECRET])).await.unwrap();
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let header = json!({"alg": format!("{algorithm:?}")}).to_string();
        for (secret, bad) in [
            (SECRET, None),
            (OTHER, None),
            (
                "a third one, that nobody trusts at all",
                Some(BadToken::Signature),
            ),
        ] {
            let key = EncodingKey::from_secret(secret.as_bytes());
            let token = signed(&header, &claims(json!({})), algorithm, &key);
            assert_eq!(keys.verify(&token).await.err(), bad, "{algorithm:?}");
        }
    }
}

#[tokio::test]
async fn each_kind_of_key_verifies_its_own_kind_of_signature() {
    let pairs = [
        pair(Algorithm::RS256, "rsa"),
        pair(Algorithm::ES256, "ec"),
        pair(Algorithm::EdDSA, "ed"),
    ];
    let mut jwks: Vec<Value> = pairs.iter().map(|pair| pair.jwk.clone()).collect();
    jwks[0].as_object_mut().unwrap().remove("alg");
    let keys = of_file(&jwks).await;
    for pair in &pairs {
        let kid = pair.jwk["kid"].as_str();
        for kid in [kid, None] {
            let token = pair.token(kid, &claims(json!({})));
            keys.verify(&token).await.unwrap();
        }
    }
    // an RSA key whose algorithm the set leaves open
    for algorithm in [
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS512,
    ] {
        let header = json!({"alg": format!("{algorithm:?}"), "kid": "rsa"}).to_string();
        let token = signed(&header, &claims(json!({})), algorithm, &pairs[0].key);
        keys.verify(&token).await.unwrap();
    }
    let pinned = of_file(&[pairs[0].jwk.clone()]).await;
    let header = r#"{"alg":"PS256","kid":"rsa"}"#;
    let token = signed(header, &claims(json!({})), Algorithm::PS256, &pairs[0].key);
    assert_eq!(
        pinned.verify(&token).await.err(),
        Some(BadToken::UnknownKey)
    );
    // by the other key's name
    let token = pairs[1].token(Some("rsa"), &claims(json!({})));
    assert_eq!(keys.verify(&token).await.err(), Some(BadToken::UnknownKey));
    let stranger = pair(Algorithm::ES256, "ec");
    let token = stranger.token(Some("ec"), &claims(json!({})));
    assert_eq!(keys.verify(&token).await.err(), Some(BadToken::Signature));
}

#[tokio::test]
async fn a_public_key_is_no_secret() {
    let rsa = pair(Algorithm::RS256, "rsa");
    let keys = of_file(std::slice::from_ref(&rsa.jwk)).await;
    let modulus = rsa.jwk["n"].as_str().unwrap();
    let decoded = URL_SAFE_NO_PAD.decode(modulus).unwrap();
    let whole = rsa.jwk.to_string();
    for secret in [modulus.as_bytes(), &decoded, whole.as_bytes(), b""] {
        let key = EncodingKey::from_secret(secret);
        for header in [r#"{"alg":"HS256","kid":"rsa"}"#, r#"{"alg":"HS256"}"#] {
            let token = signed(header, &claims(json!({})), Algorithm::HS256, &key);
            assert_eq!(keys.verify(&token).await.err(), Some(BadToken::Algorithm));
        }
    }
    // nor does a token bring its own key
    let own = pair(Algorithm::RS256, "own");
    for header in [
        json!({"alg": "RS256", "jwk": own.jwk}),
        json!({"alg": "RS256", "jku": "http://127.0.0.1:1/keys"}),
        json!({"alg": "RS256", "x5u": "http://127.0.0.1:1/keys", "kid": "../../etc/passwd"}),
    ] {
        let token = signed(
            &header.to_string(),
            &claims(json!({})),
            Algorithm::RS256,
            &own.key,
        );
        let told = keys.verify(&token).await.err();
        assert!(
            matches!(told, Some(BadToken::Signature | BadToken::UnknownKey)),
            "{header}: {told:?}"
        );
    }
}

#[tokio::test]
async fn a_key_set_without_a_usable_key_is_refused() {
    let oct = json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET), "alg": "HS256"});
    let mut encryption = pair(Algorithm::RS256, "e").jwk;
    encryption["use"] = "enc".into();
    let odd = json!({"kty": "EC", "crv": "P-256"});
    for set in [
        json!({"keys": []}),
        json!({"keys": [oct]}),
        json!({"keys": [encryption, odd, 7, null]}),
        json!({}),
        json!({"keys": [], "x": "x".repeat(300_000)}),
    ] {
        let path = std::env::temp_dir().join(format!("crm-relay-{}.json", uuid::Uuid::new_v4()));
        std::fs::write(&path, set.to_string()).unwrap();
        let settings = Settings {
            jwks: Some(Source::File(path.clone())),
            ..settings(&[])
        };
        let refused = Keys::open(&settings)
            .await
            .err()
            .expect("refused")
            .to_string();
        std::fs::remove_file(path).unwrap();
        assert!(refused.contains("must be a JSON Web Key Set"), "{refused}");
    }
    assert!(
        Source::of("http://keys.example/jwks").is_err(),
        "unencrypted"
    );
    assert!(Source::of("ftp://keys.example/jwks").is_err());
    assert!(Source::of("https://keys.example/jwks").is_ok());
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic_and_none_comes_in(text in "\\PC{0,120}") {
        let keys = block_on(keys());
        prop_assert!(block_on(keys.verify(&text)).is_err());
    }

    #[test]
    fn whatever_is_signed_is_read_or_refused(
        members in vec(("(id|sub|exp|iat|nbf|aud|\\PC{0,4})", "(\"\\PC{0,9}\"|-?[0-9]{1,20}(e[0-9]{1,3})?|null|\\[\\]|\\{\\}|\\PC{0,9})"), 0..6),
    ) {
        let members = members.iter().map(|(name, value)| format!("\"{name}\":{value}"));
        let payload = format!("{{{}}}", members.collect::<Vec<_>>().join(","));
        if let Ok(claims) = block_on(block_on(keys()).verify(&by_secret(&payload))) {
            prop_assert!(!claims.user.is_empty());
            prop_assert!(claims.expires_at > SystemTime::now());
        }
    }
}

/// A server of key sets; an answer that is null is a 503. Tells how often it was asked.
async fn server(answers: Vec<Value>) -> (String, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let mut answers = VecDeque::from(answers);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            *count.lock().unwrap() += 1;
            let answer = match answers.len() {
                1 => answers[0].clone(),
                _ => answers.pop_front().unwrap(),
            };
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            let (status, body) = match answer {
                Value::Null => ("503 Service Unavailable", String::new()),
                set => ("200 OK", set.to_string()),
            };
            let text = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    (url, asked)
}

async fn by_url(url: &str) -> Keys {
    let settings = Settings {
        jwks: Some(Source::of(url).unwrap()),
        ..settings(&[])
    };
    Keys::open(&settings).await.unwrap()
}

#[tokio::test]
async fn keys_are_looked_for_again_when_one_is_unknown_but_seldom() {
    let (first, second) = (pair(Algorithm::ES256, "1"), pair(Algorithm::ES256, "2"));
    let sets = vec![
        json!({"keys": [first.jwk]}),
        json!({"keys": [first.jwk, second.jwk]}),
    ];
    let (url, asked) = server(sets).await;
    let keys = by_url(&url).await;
    let (old, new) = (
        first.token(Some("1"), &claims(json!({"exp": now() + 600}))),
        second.token(Some("2"), &claims(json!({"exp": now() + 600}))),
    );
    keys.verify(&old).await.unwrap();
    // just read: not again so soon, however many ask
    for _ in 0..20 {
        assert_eq!(keys.verify(&new).await.err(), Some(BadToken::UnknownKey));
    }
    assert_eq!(*asked.lock().unwrap(), 1);
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(11)).await;
    tokio::time::resume();
    let all = futures::future::join_all((0..20).map(|_| keys.verify(&new))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(*asked.lock().unwrap(), 2, "one asks for all");
}

#[tokio::test]
async fn while_the_keys_cannot_be_had_those_that_are_known_go_on() {
    let known = pair(Algorithm::ES256, "1");
    let (url, asked) = server(vec![json!({"keys": [known.jwk]}), Value::Null]).await;
    let keys = by_url(&url).await;
    let good = known.token(Some("1"), &claims(json!({"exp": now() + 6000})));
    for asked_then in [2, 3] {
        tokio::time::pause();
        tokio::time::advance(std::time::Duration::from_secs(700)).await;
        tokio::time::resume();
        keys.verify(&good).await.unwrap();
        assert_eq!(*asked.lock().unwrap(), asked_then);
    }
}
