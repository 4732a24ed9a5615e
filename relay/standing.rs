//! How a record stands at a moment: the columns that decide who may see it, and the scope rooms that
//! it is in by them.
//!
//! The policy is asked once for each value of these columns, and not for each change.

use std::sync::Arc;

use crate::diff::{BadImage, Columns};

/// The access columns of an image, and what follows from them.
#[derive(Debug, PartialEq, Eq)]
pub struct Standing {
    /// Tells it from every other standing that this relay has met.
    pub number: u64,
    /// The module of the record.
    pub module: Arc<str>,
    /// Its access columns, a JSON object as Postgres wrote their values.
    pub access: Arc<str>,
    /// The scope rooms that it is in, such as `team:7`.
    pub rooms: Vec<String>,
}

/// A record whose access depends on another one's, which changed, such as an appointment of a lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heir {
    /// Its room.
    pub room: String,
    /// The scope rooms in which it may be or may have been.
    pub rooms: Vec<String>,
}

/// The access columns of an image. One that lacks any of them is not to be judged: what is not there
/// might have been what closes it.
pub fn access(image: &str, access_columns: &[String]) -> Result<String, BadImage> {
    let columns = Columns::of(image)?;
    match access_columns
        .iter()
        .find(|name| columns.get(name).is_none())
    {
        Some(missing) => Err(BadImage::Lacks(missing.clone())),
        None => Ok(columns.only(access_columns)),
    }
}
