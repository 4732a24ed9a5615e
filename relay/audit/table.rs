//! Changes as people read them: a block for each transaction.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::fields;
use crate::journal::Entry;
use crate::registry::Registry;
use crate::terminal::{Style, shortened, visible, visible_json};

/// Longest name of a field that others are put in line with.
const WIDEST: usize = 28;

/// Changes of one transaction that are so much later than its first say when they were made.
const LATER: Duration = Duration::from_secs(1);

/// How blocks look.
pub struct Table {
    /// In colour or not.
    pub style: Style,
    /// Which columns are quiet.
    pub registry: Arc<Registry>,
}

impl Table {
    /// Changes of one transaction, with a head where they begin it.
    pub fn block(&self, entries: &[Entry], begins: bool, out: &mut Vec<u8>) -> io::Result<()> {
        let Some(first) = entries.first() else {
            return Ok(());
        };
        let began = first.change.changed_at;
        if begins {
            let who = match first.db_user == first.db_role {
                true => first.db_user.clone(),
                false => format!("{} as {}", first.db_user, first.db_role),
            };
            let head = format!(
                "{}  txid {}  {}  {}",
                time(began),
                first.change.txid,
                visible(&who),
                visible(&first.application)
            );
            writeln!(out, "{}", self.style.head(head.trim_end()))?;
        }
        for entry in entries {
            self.change(entry, began, out)?;
        }
        Ok(())
    }

    fn change(&self, entry: &Entry, began: SystemTime, out: &mut Vec<u8>) -> io::Result<()> {
        let change = &entry.change;
        let record = record(entry);
        let by = change.actor.as_deref().map(|actor| format!("  by {actor}"));
        let since = change.changed_at.duration_since(began).unwrap_or_default();
        let at = (since >= LATER).then(|| format!("  at {}", time(change.changed_at)));
        writeln!(
            out,
            "  {record}  {}{}{}  seq {}",
            change.action.name(),
            visible(&by.unwrap_or_default()),
            at.unwrap_or_default(),
            change.seq
        )?;
        let fields = fields(entry);
        let part = change
            .part
            .as_ref()
            .map_or(&*change.module, |(part, _)| part);
        let quiet = self.registry.module(part);
        let quiet = quiet.map_or(&[][..], |module| &module.quiet_columns);
        // what changes with everything is only worth a word, unless nothing else did
        let (aside, told): (Vec<_>, Vec<_>) = fields.iter().partition(|field| {
            field.was.is_some() && field.is.is_some() && quiet.contains(&field.name)
        });
        let (aside, told) = match told.is_empty() {
            true => (told, aside),
            false => (aside, told),
        };
        let width = told.iter().map(|field| field.name.chars().count());
        let width = width.max().unwrap_or_default().min(WIDEST);
        for field in told {
            let (was, is) = shortened(
                field.was.as_deref().map(visible_json).as_deref(),
                field.is.as_deref().map(visible_json).as_deref(),
            );
            writeln!(
                out,
                "    {:width$}  {}",
                visible(&field.name),
                self.style.change(was.as_deref(), is.as_deref())
            )?;
        }
        if !aside.is_empty() {
            let names: Vec<_> = aside.iter().map(|field| visible(&field.name)).collect();
            let also = format!("    also {}", names.join(", "));
            writeln!(out, "{}", self.style.aside(&also))?;
        }
        Ok(())
    }
}

/// Which record, and which part of it, such as `clients:5d1f… (contacts:77…)`.
pub fn record(entry: &Entry) -> String {
    let change = &entry.change;
    let mut text = change.module.to_string();
    if !change.record_id.is_empty() {
        text = format!("{text}:{}", change.record_id);
    }
    if let Some((part, id)) = &change.part {
        text = format!("{text} ({part}:{id})");
    }
    visible(&text).into_owned()
}

/// A moment, to the millisecond, in UTC.
pub fn time(moment: SystemTime) -> String {
    let text = humantime::format_rfc3339_millis(moment).to_string();
    text.replacen('T', " ", 1)
}
