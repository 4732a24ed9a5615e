//! How a record stands at a moment: the columns that decide who may see it, and the scope rooms that
//! it is in by them.
//!
//! The policy is asked once for each value of these columns, and not for each change.

use std::sync::Arc;

use crate::diff::{self, BadImage, object};

/// The access columns of an image, and what follows from them.
#[derive(Debug, PartialEq, Eq)]
pub struct Standing {
    /// Tells it from every other standing that this relay has met.
    pub number: u64,
    /// The module of the record.
    pub module: Arc<str>,
    /// Its access columns, a JSON object as Postgres wrote their values.
    pub access: Arc<str>,
    /// The scope rooms that it is in, such as `team:7`, each followed by that of its module alone,
    /// `team:7/leads`.
    pub scopes: Arc<[String]>,
}

impl Standing {
    /// Of a record of this module, with these access columns and in these scope rooms.
    pub fn of(number: u64, module: Arc<str>, access: &str, rooms: &[String]) -> Standing {
        let both = |room: &String| [room.clone(), format!("{room}/{module}")];
        Standing {
            number,
            access: access.into(),
            scopes: rooms.iter().flat_map(both).collect(),
            module,
        }
    }

    /// The scope rooms without those of its module alone.
    pub fn rooms(&self) -> impl Iterator<Item = &String> {
        self.scopes.iter().step_by(2)
    }
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
#[derive(Debug, PartialEq, Eq)]
pub struct Access<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Access<'a> {
    /// Of this image.
    pub fn of(image: &'a str, access_columns: &'a [String]) -> Result<Access<'a>, BadImage> {
        let mut values = vec![None; access_columns.len()];
        let mut missing = values.len();
        diff::each(image, |name, value| {
            for (column, known) in access_columns.iter().zip(&mut values) {
                if *column == name && known.is_none() {
                    *known = Some(value);
                    missing -= 1;
                }
            }
            missing > 0
        })?;
        let value = |(name, value): (&'a String, Option<&'a str>)| match value {
            Some(value) => Ok((name.as_str(), value)),
            None => Err(BadImage::Lacks(name.clone())),
        };
        let values = access_columns.iter().zip(values).map(value);
        Ok(Access(values.collect::<Result<_, _>>()?))
    }

    /// As a JSON object.
    pub fn json(&self) -> String {
        object(self.0.iter().copied())
    }
}
