//! Places: how many of something one address, or one user, may have at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
