//! The files for browsers: the client, its hooks and the status dot, as `GET /client.js` and so on; and
//! `GET /asyncapi.yaml`, the schemas of the frames.
//!
//! Each has two names. `/client.js` is asked about anew each time and answered with 304 if it is still
//! the same; `/client-<tag>.js` is kept for a year, since another content has another tag. The
//! first tells the second in `Content-Location`. Anybody may have them: they are the same for all, and
//! the CRM's pages are often of another origin.

use std::collections::HashMap;
use std::sync::Arc;

use sha1::{Digest, Sha1};
use warp::http::{HeaderMap, HeaderValue, StatusCode, header};
use warp::reply::Response;
use warp::{Filter, Reply};

use crate::server::Routes;

const SCRIPT: (&str, &str) = ("js", "text/javascript; charset=utf-8");
/// RFC 9512, section 2.1.
const YAML: (&str, &str) = ("yaml", "application/yaml");

const FILES: [(&str, (&str, &str), &str); 4] = [
    ("client", SCRIPT, include_str!("web/client.js")),
    ("react", SCRIPT, include_str!("web/react.js")),
    ("status", SCRIPT, include_str!("web/status.js")),
    ("asyncapi", YAML, include_str!("asyncapi.yaml")),
];

/// A year, the longest that caches are asked for (RFC 9111, section 5.2.2.1; RFC 8246).
const KEPT: &str = "public, max-age=31536000, immutable";
const ASKED_ANEW: &str = "no-cache";

/// A file under one of its names.
struct File {
    text: &'static str,
    kind: &'static str,
    tag: String,
    also: String,
    kept: &'static str,
}

/// The routes of all files, for GET and HEAD.
pub fn routes() -> Routes {
    let mut files = HashMap::new();
    for (name, (extension, kind), text) in FILES {
        let digest = Sha1::digest(text);
        let tag: String = digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let versioned = format!("{name}-{tag}.{extension}");
        for (path, kept) in [
            (format!("{name}.{extension}"), ASKED_ANEW),
            (versioned.clone(), KEPT),
        ] {
            let file = File {
                text,
                kind,
                tag: format!("\"{tag}\""),
                also: format!("/{versioned}"),
                kept,
            };
            files.insert(path, file);
        }
    }
    let files = Arc::new(files);
    warp::path::param::<String>()
        .and(warp::path::end())
        .and(warp::get().or(warp::head()).unify())
        .and(warp::header::headers_cloned())
        .and_then(move |path: String, headers: HeaderMap| {
            let reply = files.get(&path).map(|file| file.reply(&headers));
            async move { reply.ok_or_else(warp::reject::not_found) }
        })
        .boxed()
}

impl File {
    fn reply(&self, asked: &HeaderMap) -> Response {
        let mut reply = if has(asked, &self.tag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            self.text.into_response()
        };
        let headers = reply.headers_mut();
        let mut set = |name, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set(header::CONTENT_TYPE, self.kind);
        set(header::ETAG, &self.tag);
        set(header::CACHE_CONTROL, self.kept);
        set(header::CONTENT_LOCATION, &self.also);
        set(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
        set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        reply
    }
}

/// Whether who asks has it already (RFC 9110, section 13.1.2: the comparison is the weak one).
fn has(asked: &HeaderMap, tag: &str) -> bool {
    asked
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.trim_start_matches("W/") == tag)
}
