//! Whether a relay of this machine is ready, for container images that have nothing else to ask with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use thiserror::Error;

/// How long the answer may take.
const WITHIN: Duration = Duration::from_secs(5);

/// Not ready, or not to be asked.
#[derive(Debug, Error)]
pub enum NotReady {
    /// It says so, and why.
    #[error("{url} says {status}: {body}")]
    Said {
        /// What was asked.
        url: String,
        /// The status of the answer.
        status: u16,
        /// The answer.
        body: String,
    },
    /// There is no answer.
    #[error("{url} does not answer")]
    Silent {
        /// What was asked.
        url: String,
        /// Why there is none.
        source: reqwest::Error,
    },
}

/// Asks `/readyz` of the relay that listens there and returns what it says.
pub async fn ask(listen: SocketAddr, is_tls: bool) -> Result<String, NotReady> {
    let scheme = if is_tls { "https" } else { "http" };
    let url = format!("{scheme}://{}/readyz", reached(listen));
    let silent = |source| NotReady::Silent {
        url: url.clone(),
        source,
    };
    let client = reqwest::Client::builder()
        .timeout(WITHIN)
        .no_proxy()
        // its certificate is for the name that clients know, not for the loopback address
        .tls_danger_accept_invalid_certs(true)
        .build()
        .map_err(silent)?;
    let answer = client.get(&url).send().await.map_err(silent)?;
    let status = answer.status();
    let body = answer.text().await.map_err(silent)?;
    if status.is_success() {
        return Ok(body);
    }
    Err(NotReady::Said {
        url,
        status: status.as_u16(),
        body,
    })
}

/// The address by which a listener is reached from its own machine.
fn reached(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_the_loopback_one() {
        for (listen, asked) in [
            ("0.0.0.0:7420", "127.0.0.1:7420"),
            ("[::]:7420", "[::1]:7420"),
            ("192.0.2.1:80", "192.0.2.1:80"),
        ] {
            let asked: SocketAddr = asked.parse().unwrap();
            assert_eq!(reached(listen.parse().unwrap()), asked);
        }
    }
}
