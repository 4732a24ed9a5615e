//! Sessions with Postgres.

use std::time::Duration;

use futures::future::poll_fn;
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::{AsyncMessage, Config, Notification};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::tls::{self, BadTls, Roots, Trust};

pub use tokio_postgres::Client;

/// How long a session may take to open, over all hosts that the URL names.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long sent data may stay unacknowledged before the session counts as lost.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// No session, or none that is of use.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The text of `DATABASE_URL` is none.
    #[error("DATABASE_URL: {0}; it must be like postgresql://user@host:5432/database")]
    BadUrl(String),
    /// TLS cannot be set up as the URL wants it.
    #[error("DATABASE_URL: {0}")]
    Tls(#[from] BadTls),
    /// Nobody answered, or refused.
    #[error("could not connect to Postgres at {target}: {reason}")]
    Refused {
        /// Host, port and database.
        target: String,
        /// What the attempt ended with.
        reason: String,
    },
}

/// Where sessions go to.
#[derive(Debug, Clone)]
pub struct Database {
    config: Config,
    tls: ClientConfig,
}

/// What a session says by itself.
#[derive(Debug)]
pub enum Said {
    /// A NOTIFY on a channel that it listens on.
    Notified(Notification),
    /// A notice, such as those of `install`.
    Notice(String),
}

/// One session; its background task ends with it.
pub struct Session {
    /// For queries.
    pub client: Client,
    /// What the session says by itself; closed when the session is lost.
    pub said: mpsc::Receiver<Said>,
    driver: Driver,
}

/// What a session says by itself, apart from the queries; the session ends with it.
pub struct Ears {
    said: mpsc::Receiver<Said>,
    _driver: Driver,
}

struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    /// Queries on one side, the rest on the other.
    pub fn split(self) -> (Client, Ears) {
        let Session {
            client,
            said,
            driver,
        } = self;
        (
            client,
            Ears {
                said,
                _driver: driver,
            },
        )
    }
}

impl Ears {
    /// Waits until the session is lost.
    pub async fn lost(&mut self) {
        while self.said.recv().await.is_some() {}
    }
}

impl Database {
    /// From a URL or a `key=value` text, as libpq takes them; `sslmode` and `sslrootcert` mean what they
    /// mean there.
    pub fn of(url: &str) -> Result<Database, ConnectError> {
        let (url, mode) = take(url, "sslmode");
        let (url, roots) = take(&url, "sslrootcert");
        let (mode, trust) = protection(mode.as_deref(), roots.as_deref())?;
        let parsed = url.parse();
        let mut config: Config =
            parsed.map_err(|error: tokio_postgres::Error| ConnectError::BadUrl(chain(&error)))?;
        config.ssl_mode(mode);
        // a standby's snapshot does not tell which transactions are open
        config
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .connect_timeout(CONNECT_TIMEOUT / 4)
            .tcp_user_timeout(TCP_USER_TIMEOUT)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(3))
            .keepalives_retries(3);
        let tls = tls::client(&trust)?;
        Ok(Database { config, tls })
    }

    /// Host, port and database, for people; never the password.
    pub fn target(&self) -> String {
        let hosts = self.config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            #[cfg(unix)]
            Host::Unix(path) => path.display().to_string(),
        });
        let ports = self.config.get_ports();
        let port = |place: usize| ports.get(place).or(ports.first()).copied().unwrap_or(5432);
        let hosts: Vec<String> = hosts
            .enumerate()
            .map(|(place, host)| format!("{host}:{}", port(place)))
            .collect();
        format!(
            "{}/{}",
            hosts.join(","),
            self.config
                .get_dbname()
                .or(self.config.get_user())
                .unwrap_or_default()
        )
    }

    /// Opens a session; `purpose` shows in `pg_stat_activity` as `crm-relay <purpose> <version>`.
    pub async fn session(&self, purpose: &str) -> Result<Session, ConnectError> {
        // a server that takes the connection and says nothing is none
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, self.open(purpose));
        opened.await.unwrap_or_else(|_| {
            Err(ConnectError::Refused {
                target: self.target(),
                reason: format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            })
        })
    }

    async fn open(&self, purpose: &str) -> Result<Session, ConnectError> {
        let refused = |error: tokio_postgres::Error| ConnectError::Refused {
            target: self.target(),
            reason: chain(&error),
        };
        let mut config = self.config.clone();
        let version = env!("CARGO_PKG_VERSION");
        config.application_name(format!("crm-relay {purpose} {version}"));
        let tls = MakeRustlsConnect::new(self.tls.clone());
        let (client, mut connection) = config.connect(tls).await.map_err(refused)?;
        let (say, said) = mpsc::channel(64);
        let driver = tokio::spawn(async move {
            loop {
                let message = match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(notification))) => {
                        Said::Notified(notification)
                    }
                    Some(Ok(AsyncMessage::Notice(notice))) => {
                        Said::Notice(notice.message().to_owned())
                    }
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => {
                        tracing::debug!(error = chain(&error), "session with Postgres ended");
                        return;
                    }
                    None => return,
                };
                // A full channel means that enough was said already. It must not stop the session,
                // which answers queries, too.
                if say
                    .try_send(message)
                    .is_err_and(|error| matches!(error, mpsc::error::TrySendError::Closed(_)))
                {
                    return;
                }
            }
        });
        // a pooler or a cautious DBA may end sessions that are idle, which ours are most of the time
        let settings = "set idle_session_timeout = 0; set statement_timeout = 0; set lock_timeout = 0; \
                        set default_transaction_isolation = 'read committed'; \
                        set idle_in_transaction_session_timeout = 0; set search_path = pg_catalog, pg_temp";
        client.batch_execute(settings).await.map_err(refused)?;
        Ok(Session {
            client,
            said,
            driver: Driver(driver),
        })
    }
}

/// A URL or `key=value` text without one of its parameters, and that one's value.
fn take(text: &str, name: &str) -> (String, Option<String>) {
    if !text.contains("://") {
        return take_pair(text, name);
    }
    let Some((before, parameters)) = text.split_once('?') else {
        return (text.to_owned(), None);
    };
    let mut found = None;
    let others = parameters.split('&').filter(|parameter| {
        let value = parameter
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='));
        found = value.or(found);
        value.is_none()
    });
    let others = others.collect::<Vec<_>>().join("&");
    let found = found.map(|value| percent_decode_str(value).decode_utf8_lossy().into_owned());
    match others.is_empty() {
        true => (before.to_owned(), found),
        false => (format!("{before}?{others}"), found),
    }
}

/// The same of `key = 'value'` pairs, with blanks, quotes and backslashes as libpq reads them:
/// <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-KEYWORD-VALUE>. What it
/// could not read is left for whoever reads the rest to complain of.
fn take_pair(text: &str, name: &str) -> (String, Option<String>) {
    let (mut others, mut found) = (String::new(), None);
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let pair = rest;
        let Some((key, value)) = rest.split_once('=') else {
            others.push_str(rest);
            break;
        };
        let mut characters = value.trim_start().chars();
        let is_quoted = characters.clone().next() == Some('\'');
        if is_quoted {
            characters.next();
        }
        let mut value = String::new();
        while let Some(character) = characters.next() {
            match character {
                '\\' => value.extend(characters.next()),
                '\'' if is_quoted => break,
                blank if blank.is_whitespace() && !is_quoted => break,
                other => value.push(other),
            }
        }
        rest = characters.as_str().trim_start();
        if key.trim() == name {
            found = Some(value);
        } else {
            others.push_str(pair[..pair.len() - rest.len()].trim_end());
            others.push(' ');
        }
    }
    (others.trim_end().to_owned(), found)
}

/// What libpq's words for TLS mean here.
fn protection(mode: Option<&str>, roots: Option<&str>) -> Result<(SslMode, Trust), ConnectError> {
    let given = match roots {
        Some("system") => Some(Roots::System),
        Some(path) => Some(Roots::File(path.into())),
        None => None,
    };
    let needed = || {
        let home = std::env::var_os("HOME").map(std::path::PathBuf::from);
        let usual = home.map(|home| Roots::File(home.join(".postgresql/root.crt")));
        let roots = given.clone().or(usual);
        roots.ok_or_else(|| ConnectError::BadUrl("sslmode=verify-… needs sslrootcert".to_owned()))
    };
    let usual = match given {
        // whoever the system trusts may be anybody's: only with the name does it mean something
        Some(Roots::System) => "verify-full",
        _ => "prefer",
    };
    let mode = mode.unwrap_or(usual);
    if given == Some(Roots::System) && mode != "verify-full" {
        return Err(ConnectError::BadUrl(format!(
            "sslmode={mode} with sslrootcert=system; it must be verify-full"
        )));
    }
    Ok(match mode {
        "disable" => (SslMode::Disable, Trust::Anybody),
        "prefer" => (SslMode::Prefer, Trust::Anybody),
        // as libpq does, for those who gave a root and forgot the rest
        "require" => {
            let trust = given.clone().map_or(Trust::Anybody, Trust::Authority);
            (SslMode::Require, trust)
        }
        "verify-ca" => (SslMode::Require, Trust::Authority(needed()?)),
        "verify-full" => (SslMode::Require, Trust::Name(needed()?)),
        other => {
            return Err(ConnectError::BadUrl(format!(
                "sslmode={other}; it must be disable, prefer, require, verify-ca or verify-full"
            )));
        }
    })
}

/// An error with all its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_tls_is_read_as_libpq_reads_it() {
        let file = |path: &str| Roots::File(path.into());
        for (url, rest, mode, trust) in [
            ("host=h", "host=h", SslMode::Prefer, Trust::Anybody),
            (
                "host=h sslmode=require",
                "host=h",
                SslMode::Require,
                Trust::Anybody,
            ),
            (
                "host=h sslmode = require",
                "host=h",
                SslMode::Require,
                Trust::Anybody,
            ),
            (
                "host=h\tsslmode=require",
                "host=h",
                SslMode::Require,
                Trust::Anybody,
            ),
            (
                "sslmode= 'require' host=h",
                "host=h",
                SslMode::Require,
                Trust::Anybody,
            ),
            (
                "password='a sslmode=disable' sslmode=require",
                "password='a sslmode=disable'",
                SslMode::Require,
                Trust::Anybody,
            ),
            (
                r"password='\'' sslmode=disable",
                r"password='\''",
                SslMode::Disable,
                Trust::Anybody,
            ),
            (
                "sslmode=verify-ca sslrootcert='/x y/ca.pem'",
                "",
                SslMode::Require,
                Trust::Authority(file("/x y/ca.pem")),
            ),
            (
                r"sslmode=verify-full sslrootcert=/x\ y",
                "",
                SslMode::Require,
                Trust::Name(file("/x y")),
            ),
            (
                "sslrootcert=system",
                "",
                SslMode::Require,
                Trust::Name(Roots::System),
            ),
            (
                "postgresql://h/d?sslmode=disable",
                "postgresql://h/d",
                SslMode::Disable,
                Trust::Anybody,
            ),
            (
                "postgresql://h/d?a=b&sslrootcert=%2Fx%20y&sslmode=require&c=d",
                "postgresql://h/d?a=b&c=d",
                SslMode::Require,
                Trust::Authority(file("/x y")),
            ),
            (
                "postgresql://h/d?sslrootcert=system",
                "postgresql://h/d",
                SslMode::Require,
                Trust::Name(Roots::System),
            ),
        ] {
            let (left, given) = take(url, "sslmode");
            let (left, roots) = take(&left, "sslrootcert");
            let told = protection(given.as_deref(), roots.as_deref()).unwrap();
            assert_eq!((left.as_str(), told), (rest, (mode, trust)), "{url}");
        }
        for (mode, roots) in [
            (Some("allow"), None),
            (Some(""), None),
            (Some("require"), Some("system")),
            (Some("verify-ca"), Some("system")),
            (Some("disable"), Some("system")),
        ] {
            assert!(protection(mode, roots).is_err(), "{mode:?} {roots:?}");
        }
    }
}
