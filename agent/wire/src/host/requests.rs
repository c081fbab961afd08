//! Signals and resizes, each acted on once.

use super::Refusal;
use std::collections::VecDeque;

/// Answers that are remembered: more than a backend has under way at once ([`crate::client::MAX_REQUESTS`]).
const REMEMBERED: usize = 64;

/// The high mark of a session's requests, and the last answers.
#[derive(Debug, Default)]
pub struct Requests {
    high: u64,
    answers: VecDeque<(u64, Answer)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Pending,
    Done,
    Refused(Refusal),
}

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is new: act, then answer.
    Act,
    /// It was seen: send its answer, if there is one.
    Repeat,
    /// Ids begin with 1.
    Invalid,
}

impl Requests {
    pub(super) fn judge(&mut self, id: u64) -> Verdict {
        if id == 0 {
            return Verdict::Invalid;
        }
        if id <= self.high {
            return Verdict::Repeat;
        }
        self.high = id;
        if self.answers.len() >= REMEMBERED {
            self.answers.pop_front();
        }
        self.answers.push_back((id, Answer::Pending));
        Verdict::Act
    }

    pub(super) fn answered(&mut self, id: u64, refusal: Option<Refusal>) {
        if let Some((_, answer)) = self.answers.iter_mut().find(|(known, _)| *known == id) {
            *answer = refusal.map_or(Answer::Done, Answer::Refused);
        }
    }

    /// The answer to a request; `None` where it is no longer known.
    pub(super) fn answer(&self, id: u64) -> Option<&Answer> {
        self.answers.iter().find(|(known, _)| *known == id).map(|(_, answer)| answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_acted_on_once() {
        let mut requests = Requests::default();
        assert_eq!(requests.judge(0), Verdict::Invalid);
        assert_eq!(requests.judge(3), Verdict::Act);
        assert_eq!(requests.judge(3), Verdict::Repeat);
        assert_eq!(requests.judge(2), Verdict::Repeat);
        assert_eq!(requests.answer(3), Some(&Answer::Pending));
        assert_eq!(requests.answer(2), None);
        requests.answered(3, None);
        assert_eq!(requests.answer(3), Some(&Answer::Done));
        for id in 4..200 {
            assert_eq!(requests.judge(id), Verdict::Act);
        }
        assert_eq!(requests.answers.len(), REMEMBERED);
    }
}
