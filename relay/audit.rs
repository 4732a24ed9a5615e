//! `crm-relay audit`: who changed what, when, from what to what, out of the journal.
//!
//! The same as the view `crm_relay.audit`, for people, and for programs as JSON lines or CSV. It needs
//! the rights of `crm_relay_audit` and nothing else.

pub mod json;
pub mod sheet;
pub mod table;

use std::sync::Arc;
use std::time::SystemTime;

use clap::{Args, ColorChoice, ValueEnum};

use crate::config::{BadSettings, GivenDatabase};
use crate::diff::{self, BadImage, Columns};
use crate::follow::{self, Follower, Interrupted, Listener};
use crate::journal::{Entry, Filter, Journal, JournalError};
use crate::registry::Registry;
use crate::terminal::Style;
use table::Table;

/// What `audit` is asked.
#[derive(Args)]
pub struct Audit {
    #[command(flatten)]
    at: GivenDatabase,
    /// A module, such as listings, or a record of it, such as listings:5d1f…: its whole history
    #[arg(value_name = "MODULE[:ID]")]
    what: Option<String>,
    /// Of this module
    #[arg(long, conflicts_with = "what")]
    module: Option<String>,
    /// Of the record with this id
    #[arg(long, value_name = "ID", requires = "module")]
    record: Option<String>,
    /// By this user of the CRM
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// By this user or role of Postgres
    #[arg(long, value_name = "NAME")]
    db_user: Option<String>,
    /// By sessions with this application_name
    #[arg(long, value_name = "NAME")]
    application: Option<String>,
    /// Not before: so long ago, such as 2h or 7d, or a date or time, in UTC unless it says otherwise
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Before: the same
    #[arg(long, value_name = "TIME", conflicts_with = "follow")]
    until: Option<String>,
    /// Of this transaction
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    txid: Option<i64>,
    /// Go on live
    #[arg(long, short)]
    follow: bool,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Colours: auto heeds NO_COLOR and whether it is a terminal
    #[arg(long, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    color: ColorChoice,
}

/// How changes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A block for each transaction, for people; long values shortened
    Table,
    /// One JSON object a line for each change
    Json,
    /// RFC 4180, one row for each field of each change
    Csv,
}

impl Audit {
    /// Prints what was asked for.
    pub async fn run(self) -> anyhow::Result<()> {
        let database = self.at.database()?;
        let journal = follow::open(&database, "audit").await?;
        let registry = Arc::new(journal.registry().await.map_err(Interrupted::from)?);
        let (module, record) = match (&self.what, self.module, self.record) {
            (Some(what), ..) => match what.split_once(':') {
                Some((module, id)) => (Some(module.to_owned()), Some(id.to_owned())),
                None => (Some(what.clone()), None),
            },
            (None, module, record) => (module, record),
        };
        if let Some(module) = &module {
            look_up(&registry, module, record.as_deref())?;
        }
        let filter = Filter {
            modules: module.map(|module| vec![module]),
            records: record.map(|record| vec![record]),
            actor: self.user,
            db_user: self.db_user,
            application: self.application,
            since: moment(&journal, "since", self.since.as_deref()).await?,
            until: moment(&journal, "until", self.until.as_deref()).await?,
            txid: self.txid,
            seq: None,
        };
        let printer = Printer {
            format: self.format,
            table: Table {
                style: Style::of(self.color),
                registry,
            },
        };
        if self.format == Format::Csv {
            let mut head = Vec::new();
            sheet::head(&mut head)
                .and_then(|()| follow::print(&mut head))
                .map_err(Interrupted::from)?;
        }
        let mut follower = Follower::new(&database, filter, None, printer);
        let found = follower.look(&journal).await?;
        if self.follow {
            drop(journal);
            follower.go_on().await?;
        } else if found == 0 && self.format == Format::Table {
            let kept = journal.retention().await.map_err(Interrupted::from)?;
            eprintln!(
                "crm-relay: no such change is in the journal, which keeps what happened in the last {kept}"
            );
        }
        Ok(())
    }
}

/// Complains of a record that cannot be, or a module that is none.
fn look_up(registry: &Registry, module: &str, record: Option<&str>) -> Result<(), BadSettings> {
    let bad = |why: String| Err(BadSettings(vec![why]));
    match registry.module(module) {
        // it may have been watched once
        None if module != "crm_relay" => {
            let mut known: Vec<&str> = registry
                .modules()
                .filter(|module| !module.is_part)
                .map(|module| &*module.name)
                .collect();
            known.sort_unstable();
            eprintln!(
                "crm-relay: module \"{module}\" is not watched; watched are {}",
                known.join(", ")
            );
            Ok(())
        }
        Some(known) if known.is_part => bad(format!(
            "\"{module}\" is watched as a part of other records; ask for those that it belongs to, such as clients for contacts"
        )),
        Some(known) => match record {
            Some(id) if !known.key.fits(id) => bad(format!(
                "\"{module}:{id}\": no record of {module} has such an id; it must be {}, as Postgres prints it",
                known.key.name()
            )),
            _ => Ok(()),
        },
        None => Ok(()),
    }
}

/// A moment as somebody writes it: `2h` ago, a date, a time.
pub async fn moment(
    journal: &Journal,
    name: &str,
    text: Option<&str>,
) -> anyhow::Result<Option<SystemTime>> {
    let Some(text) = text else {
        return Ok(None);
    };
    let told = match humantime::parse_duration(text) {
        Ok(time) => journal.ago(time).await,
        Err(_) => journal.moment(text).await,
    };
    match told {
        Ok(moment) => Ok(Some(moment)),
        // https://www.postgresql.org/docs/current/errcodes-appendix.html: class 22, data exceptions
        Err(JournalError::Postgres(error))
            if (error.code()).is_some_and(|code| code.code().starts_with("22")) =>
        {
            Err(BadSettings(vec![format!(
                "--{name}: \"{text}\"; it must be like 2h, 7d, 2026-11-22 or 2026-11-22T14:30:00Z"
            )])
            .into())
        }
        Err(error) => Err(error.into()),
    }
}

/// The fields of a change that differ. Images that are no JSON objects, as somebody may write them by hand,
/// are told as they are, as a field `*`.
pub fn fields(entry: &Entry) -> Vec<Field> {
    let (was, is) = (&entry.change.old_image, &entry.change.new_image);
    fn columns(image: &Option<String>) -> Result<Option<Columns<'_>>, BadImage> {
        image.as_deref().map(Columns::of).transpose()
    }
    let (Ok(old), Ok(new)) = (columns(was), columns(is)) else {
        return vec![Field {
            name: "*".to_owned(),
            was: was.clone(),
            is: is.clone(),
        }];
    };
    let changed = diff::changed(old.as_ref(), new.as_ref()).into_iter();
    let fields = changed.map(|(name, before, after)| Field {
        name: name.to_owned(),
        was: old.is_some().then(|| before.to_owned()),
        is: new.is_some().then(|| after.to_owned()),
    });
    fields.collect()
}

/// A field that changed, with the JSON of its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The column.
    pub name: String,
    /// What it was; None where there was no row.
    pub was: Option<String>,
    /// What it is; None where there is no row any more.
    pub is: Option<String>,
}

struct Printer {
    format: Format,
    table: Table,
}

impl Listener for Printer {
    async fn take(
        &mut self,
        entries: Vec<Entry>,
        begins: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Interrupted> {
        match self.format {
            Format::Table => self.table.block(&entries, begins, out)?,
            Format::Json => {
                for entry in &entries {
                    json::line(entry, out)?;
                }
            }
            Format::Csv => sheet::rows(&entries, out)?,
        }
        Ok(())
    }
}
