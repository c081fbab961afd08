//! How many requests this process may have under way and how fast it may make them.

use std::{sync::Mutex, time::Duration};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, sleep_until},
};

/// Unary requests under way at once, whatever `qps` says.
const CONCURRENT: usize = 64;

/// `kubernetes.connection.qps` and `.burst`, for the whole process.
#[derive(Debug)]
pub(super) struct Limit {
    concurrent: Semaphore,
    rate: Option<Mutex<Bucket>>,
}

/// A token bucket as a schedule: when the next request would be due if all came evenly. Pure.
#[derive(Debug)]
struct Bucket {
    due: Instant,
    gap: Duration,
    slack: Duration,
}

impl Bucket {
    fn new(qps: f64, burst: u32, now: Instant) -> Self {
        let gap = Duration::from_secs_f64((1.0 / qps).min(3600.0));
        Self { due: now, gap, slack: gap.saturating_mul(burst.saturating_sub(1)) }
    }

    /// When a request that comes now may go.
    fn next(&mut self, now: Instant) -> Instant {
        let due = self.due.max(now);
        self.due = due + self.gap;
        due.checked_sub(self.slack).unwrap_or(now).max(now)
    }
}

impl Limit {
    /// With a rate where one is configured and positive.
    pub(super) fn new(rate: Option<(f64, u32)>) -> Self {
        let rate = rate.filter(|(qps, _)| *qps > 0.0);
        let bucket = rate.map(|(qps, burst)| Mutex::new(Bucket::new(qps, burst, Instant::now())));
        Self { concurrent: Semaphore::new(CONCURRENT), rate: bucket }
    }

    /// Waits for a turn. A caller that gives up has used its turn.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        if let Some(rate) = &self.rate {
            let at = rate.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next(Instant::now());
            sleep_until(at).await;
        }
        // Never closed.
        self.concurrent.acquire().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_the_rest_evenly() {
        let start = Instant::now();
        let mut bucket = Bucket::new(5.0, 3, start);
        let waits: Vec<u128> = (0..6).map(|_| (bucket.next(start) - start).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 200, 400, 600]);
        // After a pause the burst is there again, and no more than the burst.
        let later = start + Duration::from_mins(1);
        let waits: Vec<u128> = (0..4).map(|_| (bucket.next(later) - later).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 200]);
    }
}
