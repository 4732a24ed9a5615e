//! Answers of the policy, for as long as they count.
//!
//! Time goes in turns, of which two make [`REMEMBERED`]. An answer of this turn is as good as new; one of the
//! turn before still counts, and is to be asked for again beside whatever needs it; an older one is gone. So
//! what is asked about often never has to be waited for twice, and nothing counts for longer than
//! [`REMEMBERED`].

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use tokio::time::Instant;

/// After so long nothing counts any more that was not asked again.
pub const REMEMBERED: Duration = Duration::from_secs(240);

/// How long a turn is.
pub const TURN: Duration = Duration::from_secs(REMEMBERED.as_secs() / 2);

/// Answers, by what was asked.
#[derive(Debug)]
pub struct Answers<K, V, S> {
    recent: HashMap<K, V, S>,
    aged: HashMap<K, V, S>,
    most: usize,
    /// When this turn began.
    began: Instant,
}

impl<K: Eq + Hash, V, S: BuildHasher + Default> Answers<K, V, S> {
    /// None yet. Where there would be more than so many, older ones are gone before their time.
    pub fn new(most: usize) -> Answers<K, V, S> {
        Answers {
            recent: HashMap::default(),
            aged: HashMap::default(),
            most,
            began: Instant::now(),
        }
    }

    /// Lets time pass: to be called before answers are needed. Tells whether any is not as good as it was.
    pub fn pass(&mut self) -> bool {
        let turns = self.began.elapsed().as_secs() / TURN.as_secs();
        for _ in 0..turns.min(2) {
            self.turn();
        }
        self.began += Duration::from_secs(TURN.as_secs() * turns);
        turns > 0
    }

    fn turn(&mut self) {
        self.aged = std::mem::take(&mut self.recent);
    }

    /// An answer, if there is one that counts.
    pub fn get(&self, asked: &K) -> Option<&V> {
        self.recent.get(asked).or_else(|| self.aged.get(asked))
    }

    /// An answer that is as good as new.
    pub fn recent(&self, asked: &K) -> Option<&V> {
        self.recent.get(asked)
    }

    /// Makes room for so many more.
    pub fn expect(&mut self, more: usize) {
        if self.recent.len() + self.aged.len() + more > self.most {
            self.aged = HashMap::default();
        }
        if self.recent.len() + more > self.most {
            self.recent = HashMap::default();
        }
    }

    /// What was answered now.
    pub fn insert(&mut self, asked: K, answer: V) {
        self.recent.insert(asked, answer);
    }

    /// Answers nothing any more.
    pub fn clear(&mut self) {
        self.recent.clear();
        self.aged.clear();
    }

    /// Keeps those only of which this is so.
    pub fn retain(&mut self, mut counts: impl FnMut(&K) -> bool) {
        self.recent.retain(|asked, _| counts(asked));
        self.aged.retain(|asked, _| counts(asked));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::hash_map::RandomState;

    use super::*;

    type Known = Answers<u32, char, RandomState>;

    #[tokio::test(start_paused = true)]
    async fn an_answer_ages_and_is_gone_before_it_was_remembered_too_long() {
        for asked_at in [0, 1, TURN.as_secs() - 1] {
            let mut known = Known::new(10);
            tokio::time::advance(Duration::from_secs(asked_at)).await;
            known.pass();
            known.insert(1, 'a');
            assert!(known.recent(&1).is_some());
            let mut counted = 0;
            for second in 1..=REMEMBERED.as_secs() {
                tokio::time::advance(Duration::from_secs(1)).await;
                known.pass();
                if known.get(&1).is_some() {
                    counted = second;
                }
                assert!(second < TURN.as_secs() || known.recent(&1).is_none());
            }
            assert!(counted >= TURN.as_secs() - 1 && counted < REMEMBERED.as_secs());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_asked_for_long_nothing_counts() {
        let mut known = Known::new(10);
        known.insert(1, 'a');
        tokio::time::advance(TURN * 7).await;
        known.pass();
        assert_eq!(known.get(&1), None);
        // and turns are as long as ever
        known.insert(2, 'b');
        tokio::time::advance(TURN - Duration::from_secs(1)).await;
        known.pass();
        assert!(known.recent(&2).is_some());
    }

    #[test]
    fn of_too_many_the_oldest_are_gone() {
        let mut known = Known::new(4);
        let mut there = |numbers: std::ops::Range<u32>| {
            known.expect(numbers.len());
            numbers.for_each(|number| known.insert(number, 'a'));
            (0..9)
                .filter(|number| known.get(number).is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(there(0..2), [0, 1]);
        assert_eq!(there(2..4), [0, 1, 2, 3]);
        assert_eq!(there(4..5), [4]);
        // what is told at once is known at once, however much it is
        assert_eq!(there(0..9).len(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_needed_now_is_not_gone_for_what_was_needed_before() {
        let mut known = Known::new(4);
        known.insert(1, 'a');
        tokio::time::advance(TURN).await;
        known.pass();
        known.expect(3);
        (2..5).for_each(|number| known.insert(number, 'a'));
        assert!(known.get(&1).is_some(), "there is room for it");
        known.expect(1);
        known.insert(5, 'a');
        assert!(known.get(&1).is_none() && known.get(&2).is_some());
    }
}
