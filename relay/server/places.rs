//! Places: how many of something one address, or one user, may have at once; and turns, for which whoever
//! has enough waits.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many there are, by whose they are.
#[derive(Debug)]
pub struct Places<K> {
    most: usize,
    taken: Mutex<HashMap<K, usize>>,
}

/// One that is taken, until it is dropped.
#[derive(Debug)]
pub struct Place<K: Hash + Eq> {
    places: Arc<Places<K>>,
    whose: K,
}

impl<K: Hash + Eq + Clone> Places<K> {
    /// At most so many for each.
    pub fn new(most: usize) -> Arc<Places<K>> {
        Arc::new(Places {
            most,
            taken: Mutex::default(),
        })
    }

    /// One more, if there may be.
    pub fn take(self: &Arc<Self>, whose: &K) -> Option<Place<K>> {
        let mut taken = lock(&self.taken);
        let count = taken.entry(whose.clone()).or_default();
        if *count >= self.most {
            if *count == 0 {
                taken.remove(whose);
            }
            return None;
        }
        *count += 1;
        Some(Place {
            places: self.clone(),
            whose: whose.clone(),
        })
    }
}

/// Whose turn it is, each of them a few times at once: who wants much waits for themselves, and not the
/// others for them.
#[derive(Debug)]
pub struct Turns<K> {
    at_once: usize,
    queues: Mutex<HashMap<K, Weak<Semaphore>>>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl<K: Hash + Eq + Clone> Turns<K> {
    /// So many at once for each.
    pub fn new(at_once: usize) -> Arc<Turns<K>> {
        Arc::new(Turns {
            at_once,
            queues: Mutex::default(),
        })
    }

    /// Waits for a turn, behind those who came before.
    pub async fn take(&self, whose: &K) -> Turn {
        let queue = self.queue(whose);
        // never closed
        let permit = queue.acquire_owned().await.ok();
        Turn { _permit: permit }
    }

    fn queue(&self, whose: &K) -> Arc<Semaphore> {
        let mut queues = lock(&self.queues);
        if let Some(queue) = queues.get(whose).and_then(Weak::upgrade) {
            return queue;
        }
        if queues.len() >= 64 && queues.len().is_power_of_two() {
            queues.retain(|_, queue| queue.strong_count() > 0);
        }
        let queue = Arc::new(Semaphore::new(self.at_once));
        queues.insert(whose.clone(), Arc::downgrade(&queue));
        queue
    }
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.taken);
        if let Some(count) = taken.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.whose);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As whom an address counts: what one customer of a provider has of IPv6 is a network of 64 bits.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_wants_much_waits_for_themselves_and_nobody_else_does() {
        let turns = Turns::new(2);
        let first = turns.take(&"ann").await;
        let second = turns.take(&"ann").await;
        let mut third = std::pin::pin!(turns.take(&"ann"));
        assert!(futures::poll!(third.as_mut()).is_pending(), "three at once");
        let _other = turns.take(&"bea").await;
        drop(first);
        let third = third.await;
        drop((second, third));
        assert_eq!(turns.queue(&"ann").available_permits(), 2);
    }

    #[test]
    fn each_has_so_many_and_gets_back_what_it_gave_up() {
        let places = Places::new(2);
        let one = places.take(&"ann").unwrap();
        let _two = places.take(&"ann").unwrap();
        assert!(places.take(&"ann").is_none());
        assert!(places.take(&"bea").is_some());
        drop(one);
        assert!(places.take(&"ann").is_some());
        assert_eq!(lock(&places.taken).len(), 1, "nothing stays of who is gone");
    }

    #[test]
    fn addresses_of_one_network_are_one() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
