//! Which images are known to have no shell.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

/// More are not remembered; forgetting costs one failed exec per image.
const MOST: usize = 1024;

/// What was learnt of images: shared by all sessions of the process.
#[derive(Debug, Clone, Default)]
pub(super) struct Shells(Arc<Mutex<HashSet<String>>>);

impl Shells {
    /// Whether this image was seen to have no shell. An empty name is nobody's.
    pub fn is_bare(&self, image: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(image)
    }

    /// It has none.
    pub fn mark_bare(&self, image: &str) {
        let mut bare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bare.len() >= MOST {
            bare.clear();
        }
        if !image.is_empty() {
            bare.insert(image.to_owned());
        }
    }
}
