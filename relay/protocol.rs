//! What clients say, and the answers that need nothing but the question; see `relay/PROTOCOL.md`.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Version of the contract.
pub const VERSION: u32 = 1;

/// Most rooms of one connection.
pub const MOST_ROOMS: usize = 1000;

/// Largest message of a client, in bytes.
pub const LARGEST_MESSAGE: usize = 65_536;

/// One frame of a client.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// The first frame.
    Hello {
        /// Whether it wants several events of a transaction as one frame.
        transactions: bool,
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

#[derive(Deserialize)]
struct Hello {
    #[serde(default)]
    transactions: bool,
}

#[derive(Deserialize)]
struct Subscribe {
    id: Value,
    rooms: Vec<String>,
    since: Option<String>,
    #[serde(default)]
    snapshot: bool,
}

#[derive(Deserialize)]
struct Unsubscribe {
    id: Value,
    rooms: Vec<String>,
}

#[derive(Deserialize)]
struct Ping {
    id: Value,
}

/// Reads one text message.
pub fn read(text: &str) -> Result<Request, Refusal> {
    let refusal = |id: &Value, code, message: String| Refusal {
        id: id.clone(),
        code,
        message,
    };
    let frame: Map<String, Value> = match serde_json::from_str(text) {
        Ok(Value::Object(frame)) => frame,
        Ok(other) => {
            let message = format!("a frame must be a JSON object, not {}", kind_of(&other));
            return Err(refusal(&Value::Null, "bad_frame", message));
        }
        Err(error) => {
            return Err(refusal(
                &Value::Null,
                "bad_json",
                format!("not JSON: {error}"),
            ));
        }
    };
    let id = frame
        .get("id")
        .filter(|id| id.is_string() || id.is_number())
        .cloned()
        .unwrap_or_default();
    let kind = match frame.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        _ => {
            return Err(refusal(
                &id,
                "bad_frame",
                "a frame must have a \"type\", a string".to_owned(),
            ));
        }
    };
    let bad = |error: serde_json::Error| refusal(&id, "bad_frame", format!("{kind}: {error}"));
    let with_id = |given: &Value| match given {
        Value::String(_) | Value::Number(_) => Ok(()),
        other => {
            let message = format!(
                "{kind}: \"id\" must be a string or a number, not {}",
                kind_of(other)
            );
            Err(refusal(&Value::Null, "bad_frame", message))
        }
    };
    let frame = Value::Object(frame);
    match kind.as_str() {
        "hello" => {
            let Hello { transactions } = serde_json::from_value(frame).map_err(bad)?;
            Ok(Request::Hello { transactions })
        }
        "subscribe" => {
            let asked: Subscribe = serde_json::from_value(frame).map_err(bad)?;
            with_id(&asked.id)?;
            if asked.snapshot && asked.since.is_some() {
                let message = "subscribe: \"since\" and \"snapshot\" exclude each other".to_owned();
                return Err(refusal(&asked.id, "bad_frame", message));
            }
            let Subscribe {
                id,
                rooms,
                since,
                snapshot,
            } = asked;
            Ok(Request::Subscribe {
                id,
                rooms,
                since,
                snapshot,
            })
        }
        "unsubscribe" => {
            let Unsubscribe { id, rooms } = serde_json::from_value(frame).map_err(bad)?;
            with_id(&id)?;
            Ok(Request::Unsubscribe { id, rooms })
        }
        "ping" => {
            let Ping { id } = serde_json::from_value(frame).map_err(bad)?;
            with_id(&id)?;
            Ok(Request::Ping { id })
        }
        other => {
            let other: String = other.chars().take(50).collect();
            let message = format!(
                "type \"{other}\" is unknown; it must be hello, subscribe, unsubscribe or ping"
            );
            Err(refusal(&id, "unknown_type", message))
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
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
                },
            ),
            (
                r#"{"type":"hello","transactions":true}"#,
                Request::Hello { transactions: true },
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

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,120}") {
            let _ = read(&text);
        }
    }
}
