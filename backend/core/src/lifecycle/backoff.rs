//! How long to wait before a retry.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(5);

/// Doubling waits from 100 ms to 5 s with jitter, so that many starters don't come back at one moment.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The next wait: half to the whole of the step, and at least what the server asked for (of which at most a minute is
    /// believed).
    pub fn next(&mut self, retry_after: Option<Duration>) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(MOST);
        let jittered = step.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        jittered.max(retry_after.unwrap_or_default().min(Duration::from_mins(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_is_bounded_and_honours_the_server() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..10).map(|_| backoff.next(None)).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST, "{waits:?}");
        assert!(waits[9] >= MOST / 2 && waits[9] <= MOST, "{waits:?}");
        assert_eq!(backoff.next(Some(Duration::from_secs(9))), Duration::from_secs(9));
        assert_eq!(backoff.next(Some(Duration::MAX)), Duration::from_mins(1));
    }
}
