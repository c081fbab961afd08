//! What was learnt of images, by the id that a container's status tells, or by the name in a pod's spec.
//!
//! An id has a digest in it and stands for one image for ever. A name is a tag, which may stand for another image a minute later: what is
//! known of it is a hint that saves a try, and gets old.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// More are not remembered; forgetting costs one failed exec per image.
const MOST: usize = 1024;

/// What is known of a name is believed for so long.
const HINT: Duration = Duration::from_mins(10);

/// What was learnt of images; clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Images<T>(Arc<Mutex<HashMap<String, (T, Instant)>>>);

impl<T> Default for Images<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Whether it names one image for ever.
fn is_id(image: &str) -> bool {
    image.contains("sha256:")
}

impl<T: Copy> Images<T> {
    /// What is known of this image. An empty name is nobody's.
    pub fn get(&self, image: &str) -> Option<T> {
        let images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, learnt) = images.get(image)?;
        (is_id(image) || learnt.elapsed() < HINT).then_some(*known)
    }

    /// It is so, from now on. Gives what was known before.
    pub fn learn(&self, image: &str, what: T) -> Option<T> {
        if image.is_empty() {
            return None;
        }
        let before = self.get(image);
        let mut images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if images.len() >= MOST && !images.contains_key(image) {
            images.clear();
        }
        images.insert(image.to_owned(), (what, Instant::now()));
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tag_is_asked_again_and_a_digest_is_not() {
        let images = Images::default();
        let (id, tag) = ("docker.io/x@sha256:0123", "x:latest");
        assert_eq!((images.learn(id, 1), images.learn(tag, 1), images.learn("", 1)), (None, None, None));
        tokio::time::advance(HINT / 2).await;
        assert_eq!((images.get(id), images.get(tag), images.get("")), (Some(1), Some(1), None));
        tokio::time::advance(HINT / 2).await;
        assert_eq!((images.get(id), images.get(tag)), (Some(1), None));
        assert_eq!((images.learn(id, 2), images.learn(tag, 2)), (Some(1), None));
        assert_eq!(images.get(tag), Some(2));
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let images = Images::default();
        for n in 0..3 * MOST {
            images.learn(&n.to_string(), ());
        }
        assert!(images.0.lock().expect("a lock").len() <= MOST);
    }
}
