//! The order of a transaction's changes.
//!
//! Pure: no I/O. Between transactions the journal reader orders by each one's greatest `seq`: whoever
//! waited for a row lock wrote its journal row after the other's commit. Inside a transaction `seq`
//! is the order, except where a trigger of the CRM edits the same row again: then the rows of the
//! journal stand in the order in which the triggers ended, and the images tell which came first.

use crate::change::{Action, Change};
use crate::diff::{BadImage, Columns, object};

/// Most changes of one record in one transaction that are brought in order by their images.
const MOST_TANGLED: usize = 1000;

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
    let row = |&place: &usize| {
        let change: &Change = &changes[place];
        (&change.record_id, &change.module, &change.part)
    };
    let mut places: Vec<usize> = (0..changes.len())
        .filter(|&place| changes[place].action != Action::Truncated)
        .collect();
    // each row's stay in their order
    places.sort_by(|one, other| row(one).cmp(&row(other)));
    let histories: Vec<Vec<usize>> = (places.chunk_by(|one, other| row(one) == row(other)))
        .filter(|history| history.len() > 1)
        .map(<[usize]>::to_vec)
        .collect();
    if histories.is_empty() {
        return Ok(changes);
    }
    let mut changes: Vec<Option<Change>> = changes.into_iter().map(Some).collect();
    let mut linked = Vec::with_capacity(changes.len());
    for history in histories {
        let history = history.iter().filter_map(|&place| changes[place].take());
        linked.extend(relink_history(history.collect())?);
    }
    linked.extend(changes.into_iter().flatten());
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
        (Some(left), Some(found)) => Ok(meets(&Columns::of(left)?, &Columns::of(found)?)),
        (None, None) => Ok(true),
        _ => Ok(false),
    }
}

/// Whether a row that was left like this may be the one that was found like that.
fn meets(left: &Columns<'_>, found: &Columns<'_>) -> bool {
    let mut columns = left.iter();
    columns.all(|(name, value)| found.get(name).is_none_or(|other| other == value))
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
    // each is compared with each
    if history.len() > MOST_TANGLED {
        return Err(BadImage::Tangled(history.len()));
    }
    let mut images = Vec::with_capacity(history.len());
    for change in history {
        let [old, new] = [&change.old_image, &change.new_image].map(Option::as_deref);
        let old = old.map(Columns::of).transpose()?;
        images.push((old, new.map(Columns::of).transpose()?));
    }
    let follows = |first: usize, second: usize| match (&images[first].1, &images[second].0) {
        (Some(left), Some(found)) => meets(left, found),
        (None, None) => true,
        _ => false,
    };
    let places = 0..history.len();
    let begins = |start: &usize| {
        let mut others = places.clone();
        others.all(|other| other == *start || !follows(other, *start))
    };
    let mut chain = Vec::with_capacity(history.len());
    let mut is_free = vec![true; history.len()];
    let mut next = places.clone().find(begins);
    while let Some(place) = next {
        chain.push(place);
        is_free[place] = false;
        let mut rest = places.clone().filter(|&other| is_free[other]);
        next = rest.find(|&other| follows(place, other));
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
    fn each_row_has_a_history_of_its_own() {
        let row = |seq, old, new| change(&(seq, "r", old, new));
        let of_part = |part: &str| Some((part.to_owned(), "p".to_owned()));
        let written = vec![
            row(1, A, B),
            Change {
                module: "leads".into(),
                ..row(2, C, D)
            },
            Change {
                part: of_part("contacts"),
                ..row(3, C, D)
            },
            Change {
                part: of_part("notes"),
                ..row(4, B, A)
            },
            Change {
                action: Action::Truncated,
                ..row(5, C, D)
            },
            row(6, B, C),
        ];
        assert_eq!(relink(written.clone()).unwrap(), written);
    }

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
    fn very_many_that_a_trigger_edited_again_are_no_guess() {
        let written = |count: u64| -> Vec<Change> {
            let pair = |n: u64| {
                let image = |x: u64| format!(r#"{{"x":{x}}}"#);
                let (a, b, c) = (image(2 * n), image(2 * n + 1), image(2 * n + 2));
                [
                    change(&(2 * n, "r", &b, &c)),
                    change(&(2 * n + 1, "r", &a, &b)),
                ]
            };
            (0..count / 2).flat_map(pair).collect()
        };
        let most = MOST_TANGLED as u64;
        let linked = relink(written(most)).unwrap();
        assert_eq!(linked.len(), 1);
        let (old, new) = (r#"{"x":0}"#, format!(r#"{{"x":{most}}}"#));
        assert_eq!(linked[0].old_image.as_deref(), Some(old));
        assert_eq!(linked[0].new_image, Some(new));
        assert!(matches!(
            relink(written(most + 2)),
            Err(BadImage::Tangled(_))
        ));
    }

    #[test]
    fn changes_whose_images_do_not_meet_are_told_from_first_to_last() {
        check(&[(1, "r", A, B), (2, "r", C, D)], &[(2, "r", A, D)]);
    }
}
