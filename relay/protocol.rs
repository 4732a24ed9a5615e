//! What clients say, and the answers that need nothing but the question; see `relay/PROTOCOL.md`.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Version of the contract.
pub const VERSION: u32 = 1;

/// Largest message of a client, in bytes.
pub const LARGEST_MESSAGE: usize = 65_536;

/// One frame of a client.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// The first frame.
    Hello {
        /// Whether it wants several events of a transaction as one frame.
        transactions: bool,
        /// Who it is, unless the handshake said so.
        token: Option<String>,
    },
    /// It has a fresh token.
    Token {
        /// The token.
        token: String,
    },
    /// It wants rooms.
    Subscribe {
        /// Comes back in the answer.
        id: Value,
        /// As it wrote them.
        rooms: Vec<String>,
        /// From where it wants to resume.
        since: Option<String>,
        /// Whether it wants the records' present state.
        snapshot: bool,
    },
    /// It no longer wants them.
    Unsubscribe {
        /// Comes back in the answer.
        id: Value,
        /// As it wrote them.
        rooms: Vec<String>,
    },
    /// It asks for a sign of life.
    Ping {
        /// Comes back in the answer.
        id: Value,
    },
}

/// A frame that cannot be obeyed, as the client is told of it.
#[derive(Debug, PartialEq)]
pub struct Refusal {
    /// The frame's `id`, where it has one.
    pub id: Value,
    /// One of the codes of the contract.
    pub code: &'static str,
    /// What was wrong, and what would be right.
    pub message: String,
}

impl Refusal {
    /// The `error` frame.
    pub fn text(&self) -> String {
        let mut error = json!({"type": "error", "code": self.code, "message": self.message});
        if !self.id.is_null() {
            error["id"] = self.id.clone();
        }
        error.to_string()
    }
}

/// A client's frame, its members as they were written.
///
/// Never read into a [`Value`] as a whole: a member named as serde_json names its raw values would be
/// parsed again, with a recursion limit of its own, as deep as a frame is long.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    rooms: Option<&'a RawValue>,
    #[serde(borrow)]
    since: Option<&'a RawValue>,
    #[serde(borrow)]
    snapshot: Option<&'a RawValue>,
    #[serde(borrow)]
    transactions: Option<&'a RawValue>,
    #[serde(borrow)]
    token: Option<&'a RawValue>,
}

/// The value of a member, as the type that it must have; null and absent are the default.
fn member<T: DeserializeOwned + Default>(
    raw: Option<&RawValue>,
    name: &str,
    must_be: &str,
) -> Result<T, String> {
    let Some(raw) = raw.filter(|raw| raw.get() != "null") else {
        return Ok(T::default());
    };
    serde_json::from_str(raw.get()).map_err(|_| format!("\"{name}\" must be {must_be}"))
}

/// A string or a number, the only values that cannot nest.
fn scalar(raw: Option<&RawValue>) -> Option<Value> {
    let text = raw?.get();
    let is_scalar = text.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit());
    serde_json::from_str(text).ok().filter(|_| is_scalar)
}

/// The `id` of a message that is not read any further; null where it has none.
pub fn id(text: &str) -> Value {
    let frame: Option<Members> = serde_json::from_str(text).ok();
    frame.and_then(|frame| scalar(frame.id)).unwrap_or_default()
}

/// Reads one text message.
pub fn read(text: &str) -> Result<Request, Refusal> {
    let refusal = |id: &Value, code, message: String| Refusal {
        id: id.clone(),
        code,
        message,
    };
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        let message = format!("not JSON: {error}");
        return Err(refusal(&Value::Null, "bad_json", message));
    }
    let frame: Members = match serde_json::from_str(text) {
        Ok(frame) if text.trim_start().starts_with('{') => frame,
        _ => {
            let message = "a frame must be a JSON object, each of its members once".to_owned();
            return Err(refusal(&Value::Null, "bad_frame", message));
        }
    };
    let id = scalar(frame.id).unwrap_or_default();
    let kind: Option<String> = member(frame.kind, "type", "a string").ok().flatten();
    let Some(kind) = kind else {
        let message = "a frame must have a \"type\", a string".to_owned();
        return Err(refusal(&id, "bad_frame", message));
    };
    let bad = |message: String| refusal(&id, "bad_frame", format!("{kind}: {message}"));
    let with_id = || match &id {
        Value::Null => Err(bad("\"id\" must be a string or a number".to_owned())),
        id => Ok(id.clone()),
    };
    let rooms = || -> Result<Vec<String>, Refusal> {
        let rooms: Option<Vec<String>> =
            member(frame.rooms, "rooms", "an array of strings").map_err(&bad)?;
        rooms.ok_or_else(|| bad("\"rooms\" must be an array of strings".to_owned()))
    };
    match kind.as_str() {
        "hello" => {
            let transactions =
                member(frame.transactions, "transactions", "true or false").map_err(bad)?;
            let token = member(frame.token, "token", "a string").map_err(bad)?;
            Ok(Request::Hello {
                transactions,
                token,
            })
        }
        "token" => {
            let token: Option<String> = member(frame.token, "token", "a string").map_err(&bad)?;
            let token = token.ok_or_else(|| bad("\"token\" must be a string".to_owned()))?;
            Ok(Request::Token { token })
        }
        "subscribe" => {
            let (id, rooms) = (with_id()?, rooms()?);
            let since: Option<String> =
                member(frame.since, "since", "a cursor, a string").map_err(bad)?;
            let snapshot = member(frame.snapshot, "snapshot", "true or false").map_err(bad)?;
            if snapshot && since.is_some() {
                let message = "\"since\" and \"snapshot\" exclude each other".to_owned();
                return Err(bad(message));
            }
            Ok(Request::Subscribe {
                id,
                rooms,
                since,
                snapshot,
            })
        }
        "unsubscribe" => Ok(Request::Unsubscribe {
            id: with_id()?,
            rooms: rooms()?,
        }),
        "ping" => Ok(Request::Ping { id: with_id()? }),
        other => {
            let other: String = other.chars().take(50).collect();
            let message = format!(
                "type \"{other}\" is unknown; it must be hello, subscribe, unsubscribe, token or ping"
            );
            Err(refusal(&id, "unknown_type", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_of_the_contract_are_read() {
        let rooms = vec!["listings:1".to_owned()];
        for (text, request) in [
            (
                r#"{"type":"hello","token":"x","more":[]}"#,
                Request::Hello {
                    transactions: false,
                    token: Some("x".to_owned()),
                },
            ),
            (
                r#"{"type":"hello","transactions":true}"#,
                Request::Hello {
                    transactions: true,
                    token: None,
                },
            ),
            (
                r#"{"type":"token","token":"y"}"#,
                Request::Token {
                    token: "y".to_owned(),
                },
            ),
            (
                r#"{"type":"ping","id":"a"}"#,
                Request::Ping { id: json!("a") },
            ),
            (
                r#"{"rooms":["listings:1"],"type":"subscribe","id":1.5,"since":"x"}"#,
                Request::Subscribe {
                    id: json!(1.5),
                    rooms: rooms.clone(),
                    since: Some("x".into()),
                    snapshot: false,
                },
            ),
            (
                r#"{"type":"unsubscribe","id":2,"rooms":["listings:1"]}"#,
                Request::Unsubscribe {
                    id: json!(2),
                    rooms,
                },
            ),
        ] {
            assert_eq!(read(text), Ok(request), "{text}");
        }
    }

    #[test]
    fn a_frame_that_is_not_heeded_is_known_by_its_id() {
        for (text, known) in [
            (r#"{"type":"unsubscribe","rooms":[],"id":7}"#, json!(7)),
            (r#"{"type":"ping","id":"a"}"#, json!("a")),
            (r#"{"type":"ping","id":[7]}"#, Value::Null),
            (r#"{"type":"hello"}"#, Value::Null),
            ("no JSON", Value::Null),
        ] {
            assert_eq!(id(text), known, "{text}");
        }
    }

    #[test]
    fn every_bad_frame_is_told_its_code() {
        let deep = "[".repeat(10_000);
        for (text, code, id) in [
            ("", "bad_json", Value::Null),
            ("{", "bad_json", Value::Null),
            (&deep, "bad_json", Value::Null),
            ("[]", "bad_frame", Value::Null),
            ("{}", "bad_frame", Value::Null),
            (r#"{"type":7,"id":3}"#, "bad_frame", json!(3)),
            (r#"{"type":"nonsense","id":3}"#, "unknown_type", json!(3)),
            (r#"{"type":"ping"}"#, "bad_frame", Value::Null),
            (r#"{"type":"ping","id":{}}"#, "bad_frame", Value::Null),
            (r#"{"type":"subscribe","id":1}"#, "bad_frame", json!(1)),
            (
                r#"{"type":"subscribe","id":1,"rooms":"x"}"#,
                "bad_frame",
                json!(1),
            ),
            (
                r#"{"type":"subscribe","id":1,"rooms":[1]}"#,
                "bad_frame",
                json!(1),
            ),
            (
                r#"{"type":"subscribe","id":1,"rooms":[],"since":"x","snapshot":true}"#,
                "bad_frame",
                json!(1),
            ),
            (
                r#"{"type":"hello","transactions":"yes"}"#,
                "bad_frame",
                Value::Null,
            ),
        ] {
            let refusal = read(text).unwrap_err();
            assert_eq!((refusal.code, &refusal.id), (code, &id), "{text}");
        }
    }

    #[test]
    fn what_nests_within_texts_is_not_followed() {
        let mut nested = "[".repeat(126);
        for _ in 0..60 {
            let text = nested.replace('\\', "\\u005c").replace('"', "\\u0022");
            let brackets = "[".repeat(120);
            nested = format!(r#"{brackets}{{"$serde_json::private::RawValue":"{text}"}}"#);
            nested.push_str(&"]".repeat(120));
        }
        let frame = format!(r#"{{"type":"ping","id":1,"x":{nested}}}"#);
        assert!(frame.len() > 20_000);
        let _ = read(&frame);
        let id = r#"{"type":"ping","id":{"$serde_json::private::Number":"7"}}"#;
        assert_eq!(read(id).unwrap_err().code, "bad_frame");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,120}") {
            let _ = read(&text);
        }
    }
}
