//! What an update changed, column by column, digit for digit.
//!
//! Pure: no I/O. Images are text from `row_to_json`; their values are compared and passed on as the
//! bytes that Postgres wrote, never read into numbers, so that a `numeric` keeps its scale.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

/// A row image that cannot be used.
#[derive(Debug, Error)]
pub enum BadImage {
    /// It is no JSON object.
    #[error("a row image must be a JSON object: {0}")]
    NoObject(#[from] serde_json::Error),
    /// A column that decides who may see the record is not in it.
    #[error(
        "a row image must have every access column, but \"{0}\" is missing: was it renamed? watch the table again"
    )]
    Lacks(String),
}

/// The columns of an image, in the table's order, each with the text of its value.
#[derive(Debug, Default)]
pub struct Columns<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Columns<'a> {
    /// Splits an image into its columns, without reading what is inside them.
    pub fn of(image: &'a str) -> Result<Columns<'a>, BadImage> {
        struct Split;
        impl<'de> Visitor<'de> for Split {
            type Value = Columns<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a row as a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Columns<'de>, M::Error> {
                #[derive(serde::Deserialize)]
                struct Name<'b>(#[serde(borrow)] Cow<'b, str>);
                let mut columns = Vec::with_capacity(32);
                while let Some((Name(name), value)) =
                    map.next_entry::<Name<'de>, &'de RawValue>()?
                {
                    columns.push((name, value));
                }
                Ok(Columns(columns))
            }
        }
        let mut json = serde_json::Deserializer::from_str(image);
        let columns = json.deserialize_map(Split)?;
        json.end()?;
        Ok(columns)
    }

    /// The text of a column's value.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find(|(column, _)| column == name)
            .map(|(_, value)| value.get())
    }

    /// Name and text of value of each column.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_ref(), value.get()))
    }

    /// Those columns alone, as a JSON object.
    pub fn only(&self, names: &[String]) -> String {
        object(
            names
                .iter()
                .filter_map(|name| Some((name.as_str(), self.get(name)?))),
        )
    }
}

/// The columns that differ between two images of one row.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    /// A JSON object with the new values.
    pub data: String,
    /// A JSON object with the old values of the same columns.
    pub previous: String,
    /// The columns.
    pub columns: Vec<String>,
}

/// What changed from one image to the other, or None if nothing but quiet columns did.
///
/// A column that is in one image alone is passed over: an update leaves what is large and unchanged
/// out of both. Where there is no old (or no new) row at all, its values count as null.
pub fn difference(
    old: Option<&str>,
    new: Option<&str>,
    quiet: &[String],
) -> Result<Option<Difference>, BadImage> {
    let (old, new) = (
        old.map(Columns::of).transpose()?,
        new.map(Columns::of).transpose()?,
    );
    let changed = changed(old.as_ref(), new.as_ref());
    if changed
        .iter()
        .all(|(name, ..)| quiet.iter().any(|column| column == name))
    {
        return Ok(None);
    }
    Ok(Some(Difference {
        data: object(changed.iter().map(|&(name, _, is)| (name, is))),
        previous: object(changed.iter().map(|&(name, was, _)| (name, was))),
        columns: changed
            .iter()
            .map(|(name, ..)| (*name).to_owned())
            .collect(),
    }))
}

/// The columns that differ, with their old and new values, in the order of the newer image.
///
/// A column that is in one image alone is passed over. Where there is no row at all, its values count
/// as null.
pub fn changed<'a>(
    old: Option<&'a Columns>,
    new: Option<&'a Columns>,
) -> Vec<(&'a str, &'a str, &'a str)> {
    let mut changed: Vec<(&str, &str, &str)> = Vec::new();
    match (old, new) {
        (Some(old), Some(new)) => {
            for (place, (name, is)) in new.iter().enumerate() {
                // the same place in almost every row: a look before a search
                let was = match old.0.get(place) {
                    Some((same, was)) if same == name => Some(was.get()),
                    _ => old.get(name),
                };
                changed.extend(was.map(|was| (name, was, is)));
            }
        }
        (None, Some(new)) => changed.extend(new.iter().map(|(name, is)| (name, "null", is))),
        (Some(old), None) => changed.extend(old.iter().map(|(name, was)| (name, was, "null"))),
        (None, None) => {}
    }
    changed.retain(|(_, was, is)| was != is);
    changed
}

/// A JSON object of names and JSON texts.
pub fn object<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::from("{");
    for (name, value) in members {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&quoted(name));
        text.push(':');
        text.push_str(value);
    }
    text.push('}');
    text
}

/// A text as a JSON string.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(old: &str, new: &str, data: &str, previous: &str) {
        let quiet = ["updated_at", "version"].map(String::from);
        let found = difference(Some(old), Some(new), &quiet).unwrap();
        let found = found.map(|found| (found.data, found.previous));
        let expected = (!data.is_empty()).then(|| (data.to_owned(), previous.to_owned()));
        assert_eq!(found, expected, "{old} → {new}");
    }

    #[test]
    fn only_changed_columns_are_told_digit_for_digit() {
        check(
            r#"{"a":1,"b":2}"#,
            r#"{"a":1,"b":3}"#,
            r#"{"b":3}"#,
            r#"{"b":2}"#,
        );
        check(
            r#"{"p":395000.00}"#,
            r#"{"p":395000.0}"#,
            r#"{"p":395000.0}"#,
            r#"{"p":395000.00}"#,
        );
        let digits = r#"{"n":1234567890123456789012345678901234567890.10}"#;
        check(r#"{"n":"NaN"}"#, digits, digits, r#"{"n":"NaN"}"#);
        check(
            r#"{"a":null}"#,
            r#"{"a":""}"#,
            r#"{"a":""}"#,
            r#"{"a":null}"#,
        );
        let (spaced, dense) = (r#"{"j":{"k": [1, 2]}}"#, r#"{"j":{"k": [1,2]}}"#);
        check(spaced, dense, dense, spaced);
    }

    #[test]
    fn a_change_of_quiet_columns_alone_is_none() {
        check(r#"{"a":1,"version":1}"#, r#"{"a":1,"version":2}"#, "", "");
        check(r#"{"a":1}"#, r#"{"a":1}"#, "", "");
        let (old, new) = (r#"{"a":1,"version":1}"#, r#"{"a":2,"version":2}"#);
        check(old, new, new, old);
    }

    #[test]
    fn odd_names_and_values_pass_unharmed() {
        check(
            r#"{"we\"ird\n":"\ud83d\ude00","e":"é","nul":"\u0000","half":"\ud800"}"#,
            r#"{"we\"ird\n":"😀","e":"é","nul":"\u0001","half":"\ud800"}"#,
            r#"{"we\"ird\n":"😀","nul":"\u0001"}"#,
            r#"{"we\"ird\n":"\ud83d\ude00","nul":"\u0000"}"#,
        );
        let deep = format!("{}1{}", "[".repeat(50_000), "]".repeat(50_000));
        check(
            &format!(r#"{{"deep":{deep},"a":1}}"#),
            &format!(r#"{{"deep":{deep},"a":2}}"#),
            r#"{"a":2}"#,
            r#"{"a":1}"#,
        );
    }

    #[test]
    fn columns_in_another_order_are_found() {
        check(
            r#"{"a":1,"b":2}"#,
            r#"{"b":2,"a":3}"#,
            r#"{"a":3}"#,
            r#"{"a":1}"#,
        );
    }

    #[test]
    fn a_row_that_was_not_there_counts_as_null() {
        let found = difference(None, Some(r#"{"a":1,"b":null}"#), &[])
            .unwrap()
            .unwrap();
        assert_eq!(
            (found.data.as_str(), found.previous.as_str()),
            (r#"{"a":1}"#, r#"{"a":null}"#)
        );
    }

    #[test]
    fn what_is_no_row_is_an_error() {
        assert!(difference(Some("[1]"), Some("{}"), &[]).is_err());
        assert!(difference(Some("{}"), Some("{} x"), &[]).is_err());
        assert!(difference(Some(r#"{"a":}"#), Some("{}"), &[]).is_err());
    }
}
