//! When a change is read: once it has settled. Pure; looks are passed in.

use crate::files::Seen;

/// What to do after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing has changed: look again after the usual time.
    Wait,
    /// Something has, and may still be: look again in a moment.
    Soon,
    /// It has, and stayed so for a moment: read.
    Read,
}

/// What was read, and what has changed since.
#[derive(Debug)]
pub(super) struct Settling {
    read: Seen,
    changing: Option<Seen>,
}

impl Settling {
    pub(super) fn new(read: Seen) -> Self {
        Self { read, changing: None }
    }

    /// What was read last, good or not.
    pub(super) fn seen(&self) -> &Seen {
        &self.read
    }

    /// A look has found this.
    pub(super) fn look(&mut self, found: Seen) -> Next {
        if found == self.read {
            self.changing = None;
            Next::Wait
        } else if self.changing.as_ref() == Some(&found) {
            Next::Read
        } else {
            self.changing = Some(found);
            Next::Soon
        }
    }

    /// It was read, and held this.
    pub(super) fn was_read(&mut self, seen: Seen) {
        *self = Self::new(seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn holds(text: &str) -> Seen {
        let mut seen = Seen::default();
        seen.note(Path::new("f"), Some(text.as_bytes()));
        seen
    }

    #[test]
    fn a_file_that_is_being_written_is_left_until_it_stays() {
        let mut settling = Settling::new(holds("old"));
        let found = ["old", "", "half", "whole", "whole"].map(|text| settling.look(holds(text)));
        assert_eq!(found, [Next::Wait, Next::Soon, Next::Soon, Next::Soon, Next::Read]);
        settling.was_read(holds("whole"));
        assert_eq!(settling.look(holds("whole")), Next::Wait);
    }

    #[test]
    fn what_was_read_in_vain_is_not_read_again_until_it_changes() {
        let mut settling = Settling::new(holds("good"));
        assert_eq!([settling.look(holds("bad")), settling.look(holds("bad"))], [Next::Soon, Next::Read]);
        settling.was_read(holds("bad"));
        assert_eq!([settling.look(holds("bad")), settling.look(holds("bad"))], [Next::Wait, Next::Wait]);
        // Back to what it was is a change too.
        assert_eq!([settling.look(holds("good")), settling.look(holds("good"))], [Next::Soon, Next::Read]);
    }

    #[test]
    fn a_change_that_is_taken_back_meanwhile_is_none() {
        let mut settling = Settling::new(holds("old"));
        let found = ["new", "old", "new", "old"].map(|text| settling.look(holds(text)));
        assert_eq!(found, [Next::Soon, Next::Wait, Next::Soon, Next::Wait]);
    }
}
