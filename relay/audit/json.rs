//! Changes as JSON lines, named as the columns of the view `crm_relay.audit`.

use std::io::{self, Write};

use super::fields;
use crate::diff::{object, quoted};
use crate::journal::Entry;
use crate::terminal::visible_json;

/// One change; values digit for digit as Postgres wrote them, `seq` and `txid` as texts because they are
/// 64 bit. `fields` holds what differs, each with `old` and `new`: null where the value is, or where there
/// was no row or is none any more, which `action` tells.
pub fn line(entry: &Entry, out: &mut Vec<u8>) -> io::Result<()> {
    let change = &entry.change;
    let text = |text: Option<&str>| text.map_or("null".to_owned(), quoted);
    let id = Some(change.record_id.as_str()).filter(|id| !id.is_empty());
    let part = change.part.as_ref();
    let fields = fields(entry);
    let changed: Vec<(&str, String)> = fields
        .iter()
        .map(|field| {
            let value = |value: &Option<String>| value.clone().unwrap_or("null".to_owned());
            let both = format!(
                "{{\"old\":{},\"new\":{}}}",
                value(&field.was),
                value(&field.is)
            );
            (field.name.as_str(), both)
        })
        .collect();
    let line = object(
        [
            ("changed_at", quoted(&at(entry))),
            ("txid", quoted(&change.txid.to_string())),
            ("seq", quoted(&change.seq.to_string())),
            ("module", quoted(&change.module)),
            ("record_id", text(id)),
            ("part", text(part.map(|(part, _)| part.as_str()))),
            ("part_id", text(part.map(|(_, id)| id.as_str()))),
            ("action", quoted(change.action.name())),
            ("actor", text(change.actor.as_deref())),
            ("db_user", quoted(&entry.db_user)),
            ("db_role", quoted(&entry.db_role)),
            ("application", quoted(&entry.application)),
            (
                "fields",
                object(changed.iter().map(|(name, both)| (*name, both.as_str()))),
            ),
        ]
        .iter()
        .map(|(name, value)| (*name, value.as_str())),
    );
    writeln!(out, "{}", visible_json(&line))
}

/// When it was made, to the microsecond, in UTC.
pub fn at(entry: &Entry) -> String {
    humantime::format_rfc3339_micros(entry.change.changed_at).to_string()
}
