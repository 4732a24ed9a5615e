//! What an update changed, column by column, digit for digit.
//!
//! Pure: no I/O. Images are text from `row_to_json`; their values are compared and passed on as the
//! bytes that Postgres wrote, never read into numbers, so that a `numeric` keeps its scale.

use std::borrow::Cow;

use thiserror::Error;

/// A row image that cannot be used.
#[derive(Debug, Error)]
pub enum BadImage {
    /// It is no JSON object.
    #[error("a row image must be a JSON object; byte {0} does not belong there")]
    NoObject(usize),
    /// A column that decides who may see the record is not in it.
    #[error(
        "a row image must have every access column, but \"{0}\" is missing: was it renamed? watch the table again"
    )]
    Lacks(String),
    /// More changes of one record in one transaction than can be brought in order.
    #[error(
        "{0} changes of one record in one transaction do not follow each other, as where a trigger edits the row again; that many are not brought in order"
    )]
    Tangled(usize),
}

/// The columns of an image, in the table's order, each with the text of its value.
#[derive(Debug, Default)]
pub struct Columns<'a>(Vec<(Cow<'a, str>, &'a str)>);

impl<'a> Columns<'a> {
    /// Those of this image.
    pub fn of(image: &'a str) -> Result<Columns<'a>, BadImage> {
        let mut columns = Vec::with_capacity(32);
        each(image, |name, value| {
            columns.push((name, value));
            true
        })?;
        Ok(Columns(columns))
    }

    /// The text of a column's value.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find(|(column, _)| column == name)
            .map(|(_, value)| *value)
    }

    /// Name and text of value of each column.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), *value))
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

/// Tells the name and the text of the value of each column of an image, until it is told that this is enough.
///
/// It does not read what is inside them: that it is JSON Postgres has made sure of (the type of the journal's
/// columns is `json`), so of a value only its end is looked for.
pub fn each<'a>(
    image: &'a str,
    mut goes_on: impl FnMut(Cow<'a, str>, &'a str) -> bool,
) -> Result<(), BadImage> {
    let mut scan = Scan { image, at: 0 };
    scan.expect(b'{')?;
    if scan.next() != Some(b'}') {
        loop {
            scan.space();
            let name = scan.name()?;
            scan.expect(b':')?;
            if !goes_on(name, scan.value()?) {
                return Ok(());
            }
            if scan.next() != Some(b',') {
                break;
            }
            scan.at += 1;
        }
    }
    scan.expect(b'}')?;
    match scan.next() {
        None => Ok(()),
        Some(_) => Err(BadImage::NoObject(scan.at)),
    }
}

/// A place in an image (RFC 8259).
struct Scan<'a> {
    image: &'a str,
    at: usize,
}

// inlined where they are called for each column of each image: a tenth of what an event takes
impl<'a> Scan<'a> {
    #[inline(always)]
    fn space(&mut self) {
        let rest = &self.image.as_bytes()[self.at..];
        let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        self.at += rest.iter().take_while(is_space).count();
    }

    /// The next byte that is no space; it is where the scan stands then.
    #[inline(always)]
    fn next(&mut self) -> Option<u8> {
        self.space();
        self.image.as_bytes().get(self.at).copied()
    }

    #[inline(always)]
    fn expect(&mut self, wanted: u8) -> Result<(), BadImage> {
        if self.next() != Some(wanted) {
            return Err(BadImage::NoObject(self.at));
        }
        self.at += 1;
        Ok(())
    }

    /// The string that begins here, quotes included, and whether anything is escaped in it.
    fn string(&mut self) -> Result<(&'a str, bool), BadImage> {
        let start = self.at;
        let bytes = self.image.as_bytes();
        if bytes.get(start) != Some(&b'"') {
            return Err(BadImage::NoObject(start));
        }
        let mut end = start + 1;
        let mut is_escaped = false;
        loop {
            match memchr::memchr2(b'"', b'\\', bytes.get(end..).unwrap_or_default()) {
                None => return Err(BadImage::NoObject(bytes.len())),
                Some(length) if bytes[end + length] == b'"' => {
                    self.at = end + length + 1;
                    return Ok((&self.image[start..self.at], is_escaped));
                }
                Some(length) => {
                    is_escaped = true;
                    end += length + 2;
                }
            }
        }
    }

    #[inline(always)]
    fn name(&mut self) -> Result<Cow<'a, str>, BadImage> {
        let start = self.at;
        match self.string()? {
            (quoted, false) => Ok(Cow::Borrowed(&quoted[1..quoted.len() - 1])),
            (quoted, true) => match serde_json::from_str(quoted) {
                Ok(name) => Ok(Cow::Owned(name)),
                Err(_) => Err(BadImage::NoObject(start)),
            },
        }
    }

    /// The value that comes next, to its end.
    #[inline(always)]
    fn value(&mut self) -> Result<&'a str, BadImage> {
        let first = self.next();
        let start = self.at;
        let bytes = self.image.as_bytes();
        match first {
            Some(b'"') => return Ok(self.string()?.0),
            Some(b'{' | b'[') => {
                let mut depth = 0_usize;
                loop {
                    let rest = bytes.get(self.at..).unwrap_or_default();
                    let is_mark = |byte: &u8| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']');
                    let Some(length) = rest.iter().position(is_mark) else {
                        return Err(BadImage::NoObject(bytes.len()));
                    };
                    self.at += length;
                    match bytes[self.at] {
                        b'"' => {
                            self.string()?;
                            continue;
                        }
                        b'{' | b'[' => depth += 1,
                        _ => depth -= 1,
                    }
                    self.at += 1;
                    if depth == 0 {
                        break;
                    }
                }
            }
            _ => {
                let rest = bytes.get(start..).unwrap_or_default();
                let is_part =
                    |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
                self.at += rest.iter().take_while(is_part).count();
            }
        }
        if self.at == start {
            return Err(BadImage::NoObject(start));
        }
        Ok(&self.image[start..self.at])
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
                    Some((same, was)) if same == name => Some(*was),
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
pub fn object<'a>(members: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> String {
    let sizes = (members.clone()).map(|(name, value)| name.len() + value.len() + 4);
    let mut text = String::with_capacity(sizes.sum::<usize>() + 2);
    text.push('{');
    for (name, value) in members {
        if text.len() > 1 {
            text.push(',');
        }
        push_quoted(&mut text, name);
        text.push(':');
        text.push_str(value);
    }
    text.push('}');
    text
}

/// A text as a JSON string.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    push_quoted(&mut quoted, text);
    quoted
}

fn push_quoted(json: &mut String, text: &str) {
    let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        json.extend(["\"", text, "\""]);
    } else {
        json.push_str(&serde_json::Value::from(text).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use serde::de::{Deserializer, MapAccess, Visitor};
    use serde_json::value::RawValue;

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

    /// JSON texts, some with more space than they need.
    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|is| is.to_string()),
            "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,9})?([eE][+-]?[0-9]{1,3})?",
            ".*".prop_map(|text| serde_json::Value::from(text).to_string()),
            r#""(\\\\|\\"|\\u00e9|\\n|[{}\[\]:,é ]){0,9}""#,
        ];
        leaf.prop_recursive(4, 20, 4, |inner| {
            let member = (any::<String>(), inner.clone(), "[ \t\r\n]{0,2}");
            let member = member.prop_map(|(name, value, space)| {
                let name = serde_json::Value::from(name);
                format!("{space}{name}{space}:{space}{value}{space}")
            });
            prop_oneof![
                vec(member, 0..6).prop_map(|members| format!("{{{}}}", members.join(","))),
                vec(inner, 0..4).prop_map(|values| format!("[{}]", values.join(" ,"))),
            ]
        })
    }

    /// As serde_json splits it; None where it is no object.
    fn by_serde(image: &str) -> Option<Vec<(String, String)>> {
        struct Split;
        impl<'de> Visitor<'de> for Split {
            type Value = Vec<(String, String)>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    members.push((name, value.get().to_owned()));
                }
                Ok(members)
            }
        }
        let mut json = serde_json::Deserializer::from_str(image);
        let members = json.deserialize_map(Split).ok()?;
        json.end().ok().map(|()| members)
    }

    fn by_us(image: &str) -> Option<Vec<(String, String)>> {
        let columns = Columns::of(image).ok()?;
        let members = columns.iter();
        Some(
            members
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn an_image_is_split_as_serde_json_splits_it(image in json()) {
            prop_assert_eq!(by_us(&image), by_serde(&image));
        }

        /// Postgres lets no such thing into the journal; whoever gets it in makes nobody panic.
        #[test]
        fn what_is_no_json_harms_nobody(image in json(), at in any::<Index>(), with in ".{0,2}") {
            let mut places = image.char_indices().map(|(place, _)| place).collect::<Vec<_>>();
            places.push(image.len());
            let at = *at.get(&places);
            let damaged = format!("{}{with}{}", &image[..at], image[at..].get(1..).unwrap_or_default());
            if let Some(members) = by_serde(&damaged) {
                prop_assert_eq!(by_us(&damaged), Some(members));
            } else {
                let _ = by_us(&damaged);
            }
        }

        #[test]
        fn a_text_is_quoted_as_serde_json_quotes_it(text in any::<String>()) {
            prop_assert_eq!(quoted(&text), serde_json::Value::from(text).to_string());
        }
    }

    #[test]
    fn what_is_no_row_is_an_error() {
        assert!(difference(Some("[1]"), Some("{}"), &[]).is_err());
        assert!(difference(Some("{}"), Some("{} x"), &[]).is_err());
        assert!(difference(Some(r#"{"a":}"#), Some("{}"), &[]).is_err());
    }
}
