//! The order of a transaction's changes.
//!
//! Pure: no I/O. Between transactions the journal reader orders by each one's greatest `seq`: whoever
//! waited for a row lock wrote its journal row after the other's commit. Inside a transaction `seq`
//! is the order, except where a trigger of the CRM edits the same row again: then the rows of the
//! journal stand in the order in which the triggers ended, and the images tell which came first.

use crate::change::{Action, Change};
use crate::diff::{BadImage, Columns, object};

/// Splits changes, of which each transaction's stand together, into transactions.
pub fn by_transaction(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let mut transactions: Vec<Vec<Change>> = Vec::new();
    for change in changes {
        match transactions.last_mut() {
            Some(last) if last[0].txid == change.txid => last.push(change),
            _ => transactions.push(vec![change]),
        }
    }
    transactions
}

/// Brings the changes of one transaction into an order in which each record's images follow from
/// each other.
///
/// `changes` ascend by `seq`. Where an old image is not the previous new one, the record's changes
/// become their net change, with the greatest `seq`; a row that was deleted and created again (as a
/// move between partitions is journaled) becomes an update.
pub fn relink(changes: Vec<Change>) -> Result<Vec<Change>, BadImage> {
    if changes.len() < 2 {
        return Ok(changes);
    }
    let mut histories: Vec<Vec<Change>> = Vec::new();
    let mut place = std::collections::HashMap::new();
    let mut linked = Vec::with_capacity(changes.len());
    for change in changes {
        if change.action == Action::Truncated {
            linked.push(change);
            continue;
        }
        let history = *place
            .entry((
                change.module.clone(),
                change.record_id.clone(),
                change.part.clone(),
            ))
            .or_insert(histories.len());
        if history == histories.len() {
            histories.push(Vec::new());
        }
        histories[history].push(change);
    }
    for history in histories {
        linked.extend(relink_history(history)?);
    }
    linked.sort_by_key(|change| change.seq);
    Ok(linked)
}

fn relink_history(history: Vec<Change>) -> Result<Vec<Change>, BadImage> {
    let mut broken = false;
    for pair in history.windows(2) {
        broken |= !follows(&pair[0], &pair[1])?;
        // edited back by a trigger: the images fit both ways, only the depth tells
        broken |= pair[0].depth > pair[1].depth && follows(&pair[1], &pair[0])?;
    }
    if broken {
        return Ok(net(history)?.into_iter().collect());
    }
    let mut linked: Vec<Change> = Vec::with_capacity(history.len());
    for change in history {
        match linked.last_mut() {
            Some(gone) if gone.action == Action::Deleted && change.action == Action::Created => {
                *gone = Change {
                    action: Action::Updated,
                    // who is named as the creator has not made this change
                    actor: gone.actor.take(),
                    old_image: gone.old_image.take(),
                    before: gone.before.take(),
                    ..change
                };
            }
            _ => linked.push(change),
        }
    }
    Ok(linked)
}

/// Whether the second change begins where the first one ended, as far as both images tell.
fn follows(first: &Change, second: &Change) -> Result<bool, BadImage> {
    match (&first.new_image, &second.old_image) {
        (Some(left), Some(found)) if left == found => Ok(true),
        (Some(left), Some(found)) => {
            let (left, found) = (Columns::of(left)?, Columns::of(found)?);
            Ok(left
                .iter()
                .all(|(name, value)| found.get(name).is_none_or(|other| other == value)))
        }
        (None, None) => Ok(true),
        _ => Ok(false),
    }
}

/// The changes in the order that their images tell, as one.
fn net(history: Vec<Change>) -> Result<Option<Change>, BadImage> {
    let mut chain = follow_images(&history)?;
    if chain.len() < history.len() {
        // the images do not tell: keep to the order in which they were written
        chain = (0..history.len()).collect();
    }
    let chain: Vec<&Change> = chain.into_iter().map(|link| &history[link]).collect();
    merge(&chain)
}

/// Changes of one history, each beginning where the one before it ended, as one with the greatest
/// `seq`; None if the record was not there before and is not after.
pub fn merge(chain: &[&Change]) -> Result<Option<Change>, BadImage> {
    let [first, .., last] = chain else {
        return Ok(chain.first().map(|&only| only.clone()));
    };
    let mut old = Vec::new();
    let mut new = Vec::new();
    for change in chain {
        // a column that was large and unchanged is only in the images of the change that made it
        if let Some(image) = &change.old_image {
            for (name, value) in Columns::of(image)?.iter() {
                if !old.iter().any(|(known, _)| known == name) {
                    old.push((name.to_owned(), value));
                }
            }
        }
        if let Some(image) = &change.new_image {
            for (name, value) in Columns::of(image)?.iter() {
                match new
                    .iter_mut()
                    .find(|(known, _): &&mut (String, &str)| known == name)
                {
                    Some((_, known)) => *known = value,
                    None => new.push((name.to_owned(), value)),
                }
            }
        }
    }
    let text = |columns: &[(String, &str)]| {
        object(columns.iter().map(|(name, value)| (name.as_str(), *value)))
    };
    let old_image = first.old_image.is_some().then(|| text(&old));
    let new_image = last.new_image.is_some().then(|| text(&new));
    let action = match (&old_image, &new_image) {
        (None, None) => return Ok(None),
        (None, Some(_)) if first.part.is_none() => Action::Created,
        (Some(_), None) if first.part.is_none() => Action::Deleted,
        _ => Action::Updated,
    };
    let (before, after) = (first.before.clone(), last.after.clone());
    let heirs = chain
        .iter()
        .flat_map(|change| change.heirs.clone())
        .collect();
    let newest = chain.iter().max_by_key(|change| change.seq);
    Ok(newest.map(|&newest| Change {
        action,
        old_image,
        new_image,
        before,
        after,
        heirs,
        ..newest.clone()
    }))
}

/// The places of the changes, each beginning where the one before it ended; shorter than the history
/// where there is no single such way.
fn follow_images(history: &[Change]) -> Result<Vec<usize>, BadImage> {
    let mut chain = Vec::with_capacity(history.len());
    for start in 0..history.len() {
        let mut begins = true;
        for (other, change) in history.iter().enumerate() {
            begins &= other == start || !follows(change, &history[start])?;
        }
        if begins {
            chain.push(start);
            break;
        }
    }
    while let Some(&end) = chain.last() {
        let mut next = None;
        for (place, change) in history.iter().enumerate() {
            if !chain.contains(&place) && follows(&history[end], change)? {
                next = Some(place);
                break;
            }
        }
        match next {
            Some(place) => chain.push(place),
            None => break,
        }
    }
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    /// `(seq, record, old, new)`; an empty image is none.
    fn change(&(seq, record, old, new): &(u64, &str, &str, &str)) -> Change {
        let image = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let action = match (old, new) {
            ("", _) => Action::Created,
            (_, "") => Action::Deleted,
            _ => Action::Updated,
        };
        Change {
            seq,
            txid: 7,
            module: "listings".into(),
            action,
            record_id: record.to_owned(),
            part: None,
            actor: None,
            changed_at: SystemTime::UNIX_EPOCH,
            depth: 1,
            old_image: image(old),
            new_image: image(new),
            record_image: None,
            before: None,
            after: None,
            heirs: Vec::new(),
        }
    }

    fn check(written: &[(u64, &str, &str, &str)], expected: &[(u64, &str, &str, &str)]) {
        let linked = relink(written.iter().map(change).collect()).unwrap();
        let expected: Vec<_> = expected.iter().map(change).collect();
        assert_eq!(linked, expected);
    }

    const A: &str = r#"{"x":1}"#;
    const B: &str = r#"{"x":2}"#;
    const C: &str = r#"{"x":3}"#;
    const D: &str = r#"{"x":4}"#;

    #[test]
    fn changes_that_follow_each_other_stay_as_they_are() {
        check(
            &[
                (1, "r", "", A),
                (2, "s", A, B),
                (3, "r", A, B),
                (4, "r", B, ""),
            ],
            &[
                (1, "r", "", A),
                (2, "s", A, B),
                (3, "r", A, B),
                (4, "r", B, ""),
            ],
        );
    }

    #[test]
    fn a_row_edited_again_by_a_trigger_is_told_as_its_net_change() {
        check(&[(1, "r", B, C), (2, "r", A, B)], &[(2, "r", A, C)]);
        check(
            &[(1, "r", C, D), (2, "r", B, C), (3, "r", A, B)],
            &[(3, "r", A, D)],
        );
        check(&[(1, "r", A, B), (2, "r", "", A)], &[(2, "r", "", B)]);
        check(
            &[
                (1, "s", A, B),
                (2, "r", B, C),
                (3, "s", B, C),
                (4, "r", A, B),
            ],
            &[(1, "s", A, B), (3, "s", B, C), (4, "r", A, C)],
        );
    }

    #[test]
    fn a_row_edited_back_by_a_trigger_ends_where_it_began() {
        // A → B by the statement, B → A by a trigger that journaled first
        let mut written: Vec<_> = [(1, "r", B, A), (2, "r", A, B)]
            .iter()
            .map(change)
            .collect();
        written[0].depth = 2;
        let linked = relink(written).unwrap();
        assert_eq!(linked.len(), 1);
        assert_eq!(linked[0].old_image, linked[0].new_image);
        // two statements, one after the other
        check(
            &[(1, "r", B, A), (2, "r", A, B)],
            &[(1, "r", B, A), (2, "r", A, B)],
        );
    }

    #[test]
    fn a_row_that_moves_between_partitions_is_an_update() {
        check(&[(1, "r", A, ""), (2, "r", "", B)], &[(2, "r", A, B)]);
        check(
            &[(1, "r", A, B), (2, "r", B, ""), (3, "r", "", C)],
            &[(1, "r", A, B), (3, "r", B, C)],
        );
    }

    #[test]
    fn columns_left_out_as_large_do_not_break_a_chain() {
        let (both, small) = (r#"{"x":1,"big":"…"}"#, r#"{"x":1}"#);
        check(
            &[(1, "r", r#"{"x":0,"big":""}"#, both), (2, "r", small, B)],
            &[(1, "r", r#"{"x":0,"big":""}"#, both), (2, "r", small, B)],
        );
        // edited again by a trigger that changes the large column
        check(
            &[
                (1, "r", r#"{"x":2,"big":1}"#, r#"{"x":2,"big":2}"#),
                (2, "r", A, B),
            ],
            &[(2, "r", r#"{"x":1,"big":1}"#, r#"{"x":2,"big":2}"#)],
        );
    }

    #[test]
    fn changes_whose_images_do_not_meet_are_told_from_first_to_last() {
        check(&[(1, "r", A, B), (2, "r", C, D)], &[(2, "r", A, D)]);
    }
}
