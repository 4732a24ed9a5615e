//! How often something may be done: so often a second, and for a while more often.

use std::time::Duration;

use tokio::time::Instant;

/// For so long what was not used may be made up for.
const SAVED_FOR: Duration = Duration::from_secs(10);

/// What is left of what one client may do.
#[derive(Debug)]
pub struct Rate {
    a_second: u32,
    left: f64,
    at: Instant,
}

impl Rate {
    /// So often a second; ten times that at once, after a rest.
    pub fn new(a_second: u32) -> Rate {
        Rate {
            a_second,
            left: f64::from(a_second) * SAVED_FOR.as_secs_f64(),
            at: Instant::now(),
        }
    }

    /// Whether it may be done once more now.
    pub fn allows(&mut self) -> bool {
        let now = Instant::now();
        let most = f64::from(self.a_second) * SAVED_FOR.as_secs_f64();
        let more = now.duration_since(self.at).as_secs_f64() * f64::from(self.a_second);
        self.left = (self.left + more).min(most);
        self.at = now;
        let is_allowed = self.left >= 1.0;
        self.left -= f64::from(u8::from(is_allowed));
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_a_rest_ten_seconds_worth_and_then_so_often_a_second() {
        let mut rate = Rate::new(5);
        let mut many = |_: &str| (0..1000).filter(|_| rate.allows()).count();
        assert_eq!(many("at first"), 50);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(many("two seconds later"), 10);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(many("an hour later"), 50);
    }
}
