//! Changes as CSV (RFC 4180), with the columns of the view `crm_relay.audit`: one row for each field.
//!
//! Who opens it in a spreadsheet must not run what somebody typed into the CRM. A value is written as
//! JSON, so it begins with a quote, a digit, a bracket or a word, and is no formula. Other texts that would
//! begin one get an apostrophe before them (<https://owasp.org/www-community/attacks/CSV_Injection>).

use std::borrow::Cow;
use std::io;

use super::{fields, json};
use crate::journal::Entry;
use crate::terminal::{visible, visible_json};

const COLUMNS: [&str; 15] = [
    "changed_at",
    "txid",
    "seq",
    "module",
    "record_id",
    "part",
    "part_id",
    "action",
    "actor",
    "db_user",
    "db_role",
    "application",
    "field",
    "old_value",
    "new_value",
];

/// The names of the columns.
pub fn head(out: &mut Vec<u8>) -> io::Result<()> {
    let mut sheet = sheet(out);
    sheet.write_record(COLUMNS)?;
    sheet.flush()
}

/// Changes, each with a row for each of its fields; of one without any, such as `truncated`, one row.
pub fn rows(entries: &[Entry], out: &mut Vec<u8>) -> io::Result<()> {
    let mut sheet = sheet(out);
    for entry in entries {
        let change = &entry.change;
        let part = change.part.as_ref();
        let [at, txid, seq] = [
            json::at(entry),
            change.txid.to_string(),
            change.seq.to_string(),
        ];
        let who = [
            at.into(),
            txid.into(),
            seq.into(),
            plain(&change.module),
            plain(&change.record_id),
            plain(part.map_or("", |(part, _)| part)),
            plain(part.map_or("", |(_, id)| id)),
            change.action.name().into(),
            plain(change.actor.as_deref().unwrap_or_default()),
            plain(&entry.db_user),
            plain(&entry.db_role),
            plain(&entry.application),
        ];
        let fields = fields(entry);
        let mut row = |what: [Cow<str>; 3]| {
            sheet.write_record(
                who.iter()
                    .chain(&what)
                    .map(|cell: &Cow<str>| cell.as_bytes()),
            )
        };
        if fields.is_empty() {
            row(["".into(), "".into(), "".into()])?;
        }
        for field in &fields {
            let value = |value: &Option<String>| {
                let text = value
                    .as_deref()
                    .map(|value| visible_json(value).into_owned());
                text.unwrap_or_default().into()
            };
            row([plain(&field.name), value(&field.was), value(&field.is)])?;
        }
    }
    sheet.flush()
}

fn sheet(out: &mut Vec<u8>) -> csv::Writer<&mut Vec<u8>> {
    csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(out)
}

/// A text that no spreadsheet takes for a formula; a number may begin with its sign.
fn plain(text: &str) -> Cow<'_, str> {
    let text = visible(text);
    let begins = text.starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
    match begins && text.parse::<f64>().is_err() {
        true => format!("'{text}").into(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn no_text_is_a_formula() {
        for (text, written) in [
            ("crm backend", "crm backend"),
            ("-42", "-42"),
            ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
            ("+1+1", "'+1+1"),
            ("-1+1", "'-1+1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("＝1", "'＝1"),
            ("\t=1", "\\u0009=1"),
            ("-inf", "-inf"),
        ] {
            assert_eq!(plain(text), written);
        }
    }
}
