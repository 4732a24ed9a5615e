//! The WebSocket handshake (RFC 6455, section 4), and who may ask for it.

use base64::Engine;
use sha1::{Digest, Sha1};
use warp::Reply;
use warp::http::{HeaderMap, StatusCode, header};
use warp::reply::Response;

use super::origin::Origin;
use crate::deflate;

/// The subprotocol that is spoken, where the client offers any (RFC 6455, section 1.9).
const SUBPROTOCOL: &str = "crm-relay.1";

/// Before a token that is offered as a subprotocol.
const TOKEN_OFFER: &str = "crm-relay.bearer.";

/// Checks a WebSocket handshake (RFC 6455, section 4.2.1) and where it comes from; returns the value
/// of `Sec-WebSocket-Accept`.
pub fn handshake(
    headers: &HeaderMap,
    origins: &[Origin],
    is_open: bool,
) -> Result<String, (StatusCode, String)> {
    let get = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let has = |name: &str, token: &str| {
        let values = headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    let host = get("host").unwrap_or_default();
    // without tokens the loopback address is the only guard: a page of a foreign name that resolves
    // to it (DNS rebinding) sends that name
    if is_open && !is_loopback(host) {
        return Err((
            StatusCode::FORBIDDEN,
            format!("Host is \"{host}\"; without authentication it must be a loopback name"),
        ));
    }
    if let Some(origin) = get("origin") {
        let authority = origin
            .split_once("://")
            .map_or("", |(_, authority)| authority);
        let is_own = !authority.is_empty() && authority.eq_ignore_ascii_case(host);
        if !is_own && !origins.iter().any(|allowed| allowed.admits(origin)) {
            return Err((
                StatusCode::FORBIDDEN,
                format!(
                    "origin \"{origin}\" is not allowed; RELAY_ALLOWED_ORIGINS lists those that are"
                ),
            ));
        }
    } else if headers.contains_key("origin") {
        return Err((StatusCode::FORBIDDEN, "the origin is unreadable".to_owned()));
    }
    if !has("upgrade", "websocket") || !has("connection", "upgrade") {
        return Err((
            StatusCode::UPGRADE_REQUIRED,
            "this is a WebSocket: connect with Upgrade: websocket".to_owned(),
        ));
    }
    if get("sec-websocket-version") != Some("13") {
        return Err((
            StatusCode::UPGRADE_REQUIRED,
            "Sec-WebSocket-Version must be 13".to_owned(),
        ));
    }
    let base64 = &base64::engine::general_purpose::STANDARD;
    let key = get("sec-websocket-key").unwrap_or_default().trim();
    if base64.decode(key).map_or(0, |nonce| nonce.len()) != 16 {
        return Err((
            StatusCode::BAD_REQUEST,
            "Sec-WebSocket-Key must be 16 bytes in base64".to_owned(),
        ));
    }
    let digest = Sha1::new()
        .chain_update(key)
        .chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
        .finalize();
    Ok(base64.encode(digest))
}

/// The token that a handshake brings, as `Authorization: Bearer` or, from clients that can set nothing
/// else, among the subprotocols that it offers; and the subprotocol to select.
pub fn offered(headers: &HeaderMap) -> (Option<String>, Option<&'static str>) {
    let text = |value: &header::HeaderValue| value.to_str().ok().map(str::to_owned);
    let bearer = headers.get(header::AUTHORIZATION).and_then(text);
    let bearer = bearer.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        (scheme.eq_ignore_ascii_case("bearer")).then(|| token.trim().to_owned())
    });
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offers: Vec<String> = values
        .iter()
        .filter_map(text)
        .flat_map(|value| {
            value
                .split(',')
                .map(|offer| offer.trim().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let mut tokens = offers.iter();
    let token = tokens.find_map(|offer| offer.strip_prefix(TOKEN_OFFER).map(str::to_owned));
    let knows = offers.iter().any(|offer| offer == SUBPROTOCOL);
    (bearer.or(token), knows.then_some(SUBPROTOCOL))
}

/// Whether a `Host` header names a loopback address.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// What is answered to the extensions that a handshake offers (RFC 6455, section 9.1).
pub fn extension(headers: &HeaderMap) -> Option<&'static str> {
    let offers = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS);
    let mut offers = offers.iter().filter_map(|value| value.to_str().ok());
    offers.find_map(deflate::negotiate)
}

/// The answer to a good handshake.
pub fn switching(
    accept: &str,
    subprotocol: Option<&'static str>,
    extension: Option<&'static str>,
) -> Response {
    let mut reply = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = reply.headers_mut();
    headers.insert(
        header::UPGRADE,
        header::HeaderValue::from_static("websocket"),
    );
    headers.insert(
        header::CONNECTION,
        header::HeaderValue::from_static("Upgrade"),
    );
    if let Ok(accept) = header::HeaderValue::from_str(accept) {
        headers.insert("sec-websocket-accept", accept);
    }
    if let Some(subprotocol) = subprotocol {
        let subprotocol = header::HeaderValue::from_static(subprotocol);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, subprotocol);
    }
    if let Some(extension) = extension {
        let extension = header::HeaderValue::from_static(extension);
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, extension);
    }
    reply
}
