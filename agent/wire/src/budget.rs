//! The memory that all windows of a pod share.

/// A number of bytes, taken and given back. What is promised to a peer as credit counts as taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    total: usize,
    used: usize,
}

/// The most that a pod's windows may use by default, 16 MiB: ten programs with all their windows at their widest, and at least 170 more.
pub const MAX_BUDGET: usize = 16 << 20;
/// The least: below it not even a handful of programs can run.
pub const MIN_BUDGET: usize = 1 << 20;

impl Budget {
    /// `total` bytes to share.
    pub const fn new(total: usize) -> Self {
        Self { total, used: 0 }
    }

    /// The default for a container that may use `limit` bytes (its cgroup's limit): an eighth, within [`MIN_BUDGET`] and [`MAX_BUDGET`].
    pub fn of_limit(limit: Option<u64>) -> usize {
        let eighth = limit.map_or(MAX_BUDGET, |limit| usize::try_from(limit / 8).unwrap_or(MAX_BUDGET));
        eighth.clamp(MIN_BUDGET, MAX_BUDGET)
    }

    /// Takes `bytes`, or nothing where there are fewer.
    #[must_use]
    pub const fn take(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.total - self.used;
        if fits {
            self.used += bytes;
        }
        fits
    }

    /// Takes `bytes` for what could also do with less: only while half of all is free, so that there is room for who comes later.
    #[must_use]
    pub const fn take_spare(&mut self, bytes: usize) -> bool {
        bytes <= (self.total / 2).saturating_sub(self.used) && self.take(bytes)
    }

    /// Gives `bytes` back.
    pub const fn give(&mut self, bytes: usize) {
        self.used = self.used.saturating_sub(bytes);
    }

    /// Bytes taken.
    pub const fn used(&self) -> usize {
        self.used
    }

    /// Bytes in all.
    pub const fn total(&self) -> usize {
        self.total
    }

    /// Whether so much is taken that who can do with less gives back: half of what [`take_spare`](Self::take_spare) has.
    pub const fn is_short(&self) -> bool {
        self.used > self.total / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eighth_within_bounds() {
        assert_eq!(Budget::of_limit(None), 16 << 20);
        assert_eq!(Budget::of_limit(Some(64 << 20)), 8 << 20);
        assert_eq!(Budget::of_limit(Some(1 << 40)), 16 << 20);
        assert_eq!(Budget::of_limit(Some(0)), 1 << 20);
    }

    #[test]
    fn no_more_than_there_is() {
        let mut budget = Budget::new(10);
        assert!(!budget.take_spare(6));
        assert!(budget.take(6));
        assert!(!budget.take(5));
        assert!(!budget.take_spare(1));
        assert!(budget.is_short());
        budget.give(2);
        assert!(budget.take(6));
    }
}
