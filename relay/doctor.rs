//! The doctor: what is wrong, why it matters, and what mends it.
//!
//! What SQL can know, `crm_relay.verify()` tells. Here is what only a client sees: whether a
//! notification arrives, whose clock is right, which version it is itself.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use thiserror::Error;
use tokio_postgres::error::SqlState;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use crate::doorbell::{Doorbell, Unheard};
use crate::journal::SCHEMA_VERSION;
use crate::postgres::{ConnectError, Database, Session, chain};

/// How far the clocks of relay and Postgres may be apart.
const CLOCKS_APART: Duration = Duration::from_secs(1);

/// Who holds what the doctor waited for in vain.
const HOLDERS: &str = "select a.pid, a.usename, a.xact_start, a.query from pg_locks l join pg_stat_activity a using (pid) \
                       join pg_class c on c.oid = l.relation where c.relnamespace::regnamespace::text = 'crm_relay' and l.mode like '%Exclusive%';";

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Somebody has to do something.
    Wrong,
    /// Worth knowing.
    Note,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name for machines; all of them are in `sql/README.md`.
    pub code: String,
    /// Whether somebody has to do something.
    pub severity: Severity,
    /// What it is about, such as a table.
    pub object: String,
    /// What is the matter.
    pub what: String,
    /// Why that matters.
    pub why: String,
    /// The command or SQL that mends it.
    pub mend: String,
}

impl Finding {
    fn wrong(code: &str, object: &str, what: String, why: &str, mend: String) -> Finding {
        Finding {
            code: code.to_owned(),
            severity: Severity::Wrong,
            object: object.to_owned(),
            what,
            why: why.to_owned(),
            mend,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Wrong => "wrong",
            Severity::Note => "note ",
        };
        let Finding {
            code,
            what,
            why,
            mend,
            ..
        } = self;
        write!(
            f,
            "{severity}  {what}  [{code}]\n       why:  {why}\n       mend: {mend}"
        )
    }
}

/// So many findings need somebody.
#[derive(Debug, Error)]
#[error("things that are wrong: {0}")]
pub struct Unwell(usize);

/// Looks for everything; what is wrong comes first. Changes nothing.
pub async fn examine(database: &Database) -> Result<Vec<Finding>, ConnectError> {
    let session = database.session("doctor").await?;
    let lost = |error: &tokio_postgres::Error| ConnectError::Refused {
        target: database.target(),
        reason: chain(error),
    };
    // "local", so that a pooler's next client does not find it set
    let begin =
        "begin read only; set local lock_timeout = '2s'; set local statement_timeout = '60s'";
    let begun = session.client.batch_execute(begin).await;
    begun.map_err(|error| lost(&error))?;
    let asked = ask(&session).await;
    let polls = "select doorbell = 'never' from crm_relay.setting";
    let polls = value(&session, polls).await.ok().flatten().as_deref() == Some("t");
    let ended = session.client.batch_execute("rollback").await;
    ended.map_err(|error| lost(&error))?;
    let mut findings = match asked {
        Ok(findings) => findings,
        // a session that is lost on the way is as good as none
        Err(error) if error.as_db_error().is_none() => return Err(lost(&error)),
        Err(error) => {
            let grant = "select format('grant crm_relay_audit to %I; -- as a superuser, or ask as one', current_user)";
            let mend = match error.code() {
                Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    value(&session, grant).await.ok().flatten()
                }
                _ => None,
            };
            vec![Finding::wrong(
                "unchecked",
                "crm_relay",
                format!("the schema could not be asked: {}", chain(&error)),
                "what is wrong there is not told here",
                mend.unwrap_or_else(|| HOLDERS.to_owned()),
            )]
        }
    };
    // whoever must not look still sees whether they are heard
    findings.extend(clocks(database, &session).await);
    if !polls {
        findings.extend(bell(database, &session).await);
    }
    findings.sort_by_key(|finding| finding.severity);
    Ok(findings)
}

/// The findings for people, or as one JSON array.
pub fn report(findings: &[Finding], json: bool) -> String {
    if json {
        return serde_json::to_string(findings).expect("texts are always JSON");
    }
    let mut lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
    if verdict(findings).is_ok() {
        lines.push("nothing is wrong".to_owned());
    }
    lines.join("\n")
}

/// Whether anything needs somebody.
pub fn verdict(findings: &[Finding]) -> Result<(), Unwell> {
    let wrong = |finding: &&Finding| finding.severity == Severity::Wrong;
    match findings.iter().filter(wrong).count() {
        0 => Ok(()),
        wrong => Err(Unwell(wrong)),
    }
}

/// What the schema tells of itself, where there is one that this relay knows.
async fn ask(session: &Session) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let installed = "select to_regclass('crm_relay.setting') is not null";
    if value(session, installed).await?.as_deref() != Some("t") {
        return Ok(vec![Finding::wrong(
            "not_installed",
            "crm_relay",
            "schema crm_relay is not installed in this database".to_owned(),
            "nothing is captured here",
            "crm-relay install".to_owned(),
        )]);
    }
    let version = value(session, "select version from crm_relay.setting").await?;
    let version = version.unwrap_or_default();
    if version != SCHEMA_VERSION.to_string() {
        let is_older = version.parse::<i32>().is_ok_and(|it| it < SCHEMA_VERSION);
        let mend = match is_older {
            true => "crm-relay install",
            false => "use the crm-relay that installed it, or a later one",
        };
        return Ok(vec![Finding::wrong(
            "schema_version",
            "crm_relay.setting",
            format!(
                "schema crm_relay has version {version}, crm-relay {} knows version {SCHEMA_VERSION}",
                env!("CARGO_PKG_VERSION")
            ),
            "this relay does not read it, and the rest was not looked at",
            mend.to_owned(),
        )]);
    }
    let verify = "select code, severity, object, what, why, mend from crm_relay.verify()";
    // no prepared statement, which some poolers lose
    let said = session.client.simple_query(verify).await?;
    let rows = said.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(finding(row)),
        _ => None,
    });
    Ok(rows.collect())
}

fn finding(row: &SimpleQueryRow) -> Finding {
    let text = |name: &str| row.get(name).unwrap_or_default().to_owned();
    Finding {
        code: text("code"),
        severity: match row.get("severity") {
            Some("note") => Severity::Note,
            _ => Severity::Wrong,
        },
        object: text("object"),
        what: text("what"),
        why: text("why"),
        mend: text("mend"),
    }
}

/// Whether this machine's clock and that of Postgres agree.
async fn clocks(database: &Database, session: &Session) -> Option<Finding> {
    let before = SystemTime::now();
    let now = "select (extract(epoch from clock_timestamp()) * 1000)::bigint";
    let told = value(session, now).await.ok()??;
    let after = SystemTime::now();
    let server = UNIX_EPOCH + Duration::from_millis(told.parse().ok()?);
    let (apart, order) = apart(before, server, after)?;
    Some(Finding::wrong(
        "clock_skew",
        &database.target(),
        format!(
            "the clock of Postgres is {:.1} s {order} this machine's",
            apart.as_secs_f64()
        ),
        "a token issued before crm_relay.disconnect() may count as issued after it, or the other way round, and delays are told wrong",
        "sudo timedatectl set-ntp true   # on both machines".to_owned(),
    ))
}

/// How far a clock that was read between two moments is outside of them, and on which side; None within
/// [`CLOCKS_APART`].
fn apart(
    before: SystemTime,
    read: SystemTime,
    after: SystemTime,
) -> Option<(Duration, &'static str)> {
    let behind = before.duration_since(read).unwrap_or_default();
    let ahead = read.duration_since(after).unwrap_or_default();
    match behind.max(ahead) {
        apart if apart <= CLOCKS_APART => None,
        apart if behind > ahead => Some((apart, "behind")),
        apart => Some((apart, "ahead of")),
    }
}

/// Whether a notification gets from one session to another, as the relay needs it.
async fn bell(database: &Database, session: &Session) -> Option<Finding> {
    let unheard = Doorbell::hang(database).await.err()?;
    // of a server behind a pooler it tells where the pooler found it
    let place = "select format('export DATABASE_URL=postgresql://%s@%s:%s/%s   # Postgres itself, with the password',
                        current_user, coalesce(host(inet_server_addr()), 'localhost'), current_setting('port'), current_database())";
    let direct = value(session, place).await.ok().flatten();
    let mend = match unheard {
        Unheard::Silent => direct,
        _ => None,
    };
    Some(Finding::wrong(
        "doorbell_unheard",
        &database.target(),
        unheard.to_string(),
        "the relay is not ready and tells nobody anything",
        mend.unwrap_or_else(|| "crm-relay doctor   # again, once that is mended".to_owned()),
    ))
}

/// The first column of the first row.
async fn value(session: &Session, sql: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let said = session.client.simple_query(sql).await?;
    Ok(said.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_apart_by_what_the_time_for_asking_cannot_explain() {
        let at = |ms: u64| UNIX_EPOCH + Duration::from_millis(ms);
        let second = Duration::from_secs(1);
        for (before, read, after, expected) in [
            (10_000, 10_000, 10_000, None),
            (10_000, 9_000, 10_000, None),
            (10_000, 11_500, 10_700, None),
            (10_000, 8_000, 10_001, Some((2 * second, "behind"))),
            (10_000, 13_000, 11_000, Some((2 * second, "ahead of"))),
        ] {
            assert_eq!(
                apart(at(before), at(read), at(after)),
                expected,
                "{before} {read} {after}"
            );
        }
    }
}
