//! Where pages come from that may connect.

/// An entry of the list of those that may (RFC 6454, section 4: scheme, host and port).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    /// With its port, in lower case; without the `*` that says whose subdomains they are.
    host: String,
    /// Whether every name below the host is meant, and not the host itself.
    is_below: bool,
}

impl Origin {
    /// From a setting such as `https://crm.example` or `https://*.crm.example`; None for what is none.
    pub fn of(text: &str) -> Option<Origin> {
        let (scheme, host) = text.split_once("://")?;
        let (is_below, host) = match host.strip_prefix("*.") {
            Some(host) => (true, host),
            None => (false, host),
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        let is_good = matches!(scheme, "http" | "https")
            && !host.is_empty()
            && !host.starts_with(['.', ':'])
            && host.chars().all(is_host)
            // all of a top-level domain is nobody's
            && (!is_below || host.contains('.'));
        is_good.then(|| Origin {
            scheme: scheme.to_owned(),
            host: host.to_ascii_lowercase(),
            is_below,
        })
    }

    /// Whether a page from there is meant.
    pub fn admits(&self, origin: &str) -> bool {
        let Some((scheme, host)) = origin.split_once("://") else {
            return false; // such as null
        };
        let host = host.to_ascii_lowercase();
        if scheme != self.scheme {
            return false;
        }
        if !self.is_below {
            return host == self.host;
        }
        let below = host
            .strip_suffix(&self.host)
            .and_then(|name| name.strip_suffix('.'));
        below.is_some_and(|name| {
            let mut labels = name.split('.');
            labels.all(|label| {
                !label.is_empty()
                    && label
                        .bytes()
                        .all(|c| c.is_ascii_alphanumeric() || c == b'-')
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_that_are_meant_are_admitted() {
        for (allowed, origin, is_good) in [
            ("https://crm.example", "https://crm.example", true),
            ("https://crm.example", "https://CRM.example", true),
            ("https://crm.example", "http://crm.example", false),
            ("https://crm.example", "https://crm.example:8443", false),
            ("https://crm.example:8443", "https://crm.example:8443", true),
            (
                "https://crm.example",
                "https://crm.example.evil.example",
                false,
            ),
            ("https://crm.example", "https://a.crm.example", false),
            ("https://crm.example", "null", false),
            ("https://crm.example", "", false),
            ("https://*.crm.example", "https://a.crm.example", true),
            ("https://*.crm.example", "https://a.b.crm.example", true),
            ("https://*.crm.example", "https://crm.example", false),
            ("https://*.crm.example", "https://.crm.example", false),
            ("https://*.crm.example", "https://evilcrm.example", false),
            (
                "https://*.crm.example",
                "https://evil.example/.crm.example",
                false,
            ),
            (
                "https://*.crm.example",
                "https://evil.example#.crm.example",
                false,
            ),
            ("https://*.crm.example", "https://evil@a.crm.example", false),
            ("https://*.crm.example", "https://a.crm.example.", false),
            ("https://*.crm.example", "https://a.crm.example:1", false),
            ("https://*.crm.example:1", "https://a.crm.example:1", true),
            ("https://*.crm.example", "http://a.crm.example", false),
        ] {
            let admits = Origin::of(allowed).unwrap().admits(origin);
            assert_eq!(admits, is_good, "{allowed} {origin}");
        }
        for text in [
            "",
            "crm.example",
            "*",
            "https://",
            "https://*",
            "https://*.",
            "https://*.example",
            "ftp://x",
            "https://a/b",
            "https://a@b",
            "https://a.*.b",
        ] {
            assert_eq!(Origin::of(text), None, "{text}");
        }
    }
}
