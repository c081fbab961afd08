//! Which new connection is refused while many have not logged in yet.

/// As OpenSSH's MaxStartups `begin:rate:full`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Startups {
    /// From this many connections that have not logged in, some are refused …
    pub begin: usize,
    /// … at first this share of them, in percent, …
    pub rate: u8,
    /// … and all from this many on.
    pub full: usize,
}

impl Default for Startups {
    /// 50:30:200. sshd's 10:30:100 is for one machine; this is a door for many.
    fn default() -> Self {
        Self { begin: 50, rate: 30, full: 200 }
    }
}

impl Startups {
    /// Whether to refuse one more while `unauthenticated` are there. `dice` is a random number below 100.
    pub fn refuses(&self, unauthenticated: usize, dice: u8) -> bool {
        if unauthenticated < self.begin {
            return false;
        }
        if unauthenticated >= self.full {
            return true;
        }
        let (over, span) = (unauthenticated - self.begin, self.full - self.begin);
        let rate = usize::from(self.rate.min(100));
        usize::from(dice) < rate + (100 - rate) * over / span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_more_the_more_there_are() {
        let startups = Startups { begin: 10, rate: 30, full: 100 };
        let refused = |there| (0..100).filter(|dice| startups.refuses(there, *dice)).count();
        assert_eq!((refused(9), refused(10), refused(55), refused(99), refused(100)), (0, 30, 65, 99, 100));
        assert!((0..120).is_sorted_by_key(refused));
    }

    #[test]
    fn odd_settings_do_no_harm() {
        let none = Startups { begin: 0, rate: 255, full: 0 };
        assert!(none.refuses(0, 99));
        let backwards = Startups { begin: 5, rate: 0, full: 1 };
        assert!(!backwards.refuses(4, 0) && backwards.refuses(5, 99));
    }
}
