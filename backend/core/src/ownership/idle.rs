//! Pods that outlive connections: which claims are dead, and which pods nobody has used for long. Pure.
//!
//! Time is this observer's own, from its first look that saw the pod idle, or the pod's own annotation of its last use, by the wall
//! clock, whichever is longer ago: so a restart of the backends does not begin it anew. Unlike an owner's lease, a pod
//! needs no unbroken watching: a claim between two looks leaves its stamp, and the deletion asks for the pod as it was read.
//! Before that its agent is asked for programs that run ([`super::reaper`]).

use crate::{identity::kept_until, persistent};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use podbay::{ConnectionId, OwnerId};
use std::{collections::BTreeMap, time::Duration};

/// A pod whose agent did not answer so often in a row is deleted all the same.
const MOST_UNANSWERED: u32 = 3;

/// A pod is deleted only where this observer has itself seen it idle for this part of the time, at most [`LONGEST_LOOK`]: after an
/// outage of all backends whoever comes back finds it.
const LOOK: u32 = 10;

/// See [`LOOK`].
const LONGEST_LOOK: Duration = Duration::from_mins(5);

/// What one observer has seen of pods that stay; keys are uids.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// Since when a pod has had no live claim, and its version then.
    since: BTreeMap<String, (String, Duration)>,
    /// Since when the owner of a claim has had no lease.
    dead: BTreeMap<(String, ConnectionId), Duration>,
    /// How often the agent of an idle pod was asked without an answer.
    unanswered: BTreeMap<String, u32>,
}

/// What is to be done about one pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Claims that nobody keeps.
    pub release: Vec<ConnectionId>,
    /// Nobody has used it for the whole time.
    pub delete: bool,
    /// Its agent was asked often enough: without an answer it goes too. Never while a session may be kept in it.
    pub patience_is_over: bool,
}

impl Idle {
    /// The agent of a pod gave no answer.
    pub fn unanswered(&mut self, uid: String) {
        *self.unanswered.entry(uid).or_default() += 1;
    }

    /// A look at `now` (of one monotonic clock, and the wall clock) found these pods; `is_live` tells the owners with a lease. A claim is dead when its
    /// owner was seen without one for `lease`; a pod is to be deleted when it was seen without a live claim for `idle`.
    pub fn look<'a>(
        &mut self,
        pods: &'a [Pod],
        is_live: impl Fn(&OwnerId) -> bool,
        (lease, idle): (Duration, Option<Duration>),
        (now, wall): (Duration, Timestamp),
    ) -> Vec<(&'a Pod, Verdict)> {
        let (since, dead) = (std::mem::take(&mut self.since), std::mem::take(&mut self.dead));
        let unanswered = std::mem::take(&mut self.unanswered);
        let mut verdicts = Vec::new();
        for pod in pods {
            let Some(uid) = pod.metadata.uid.clone() else { continue };
            if pod.metadata.deletion_timestamp.is_some() || !persistent::is_ours(&pod.metadata) {
                continue;
            }
            let mut release = Vec::new();
            let mut is_idle = true;
            for claim in persistent::claims(&pod.metadata) {
                if is_live(&claim.owner) {
                    is_idle = false;
                    continue;
                }
                let key = (uid.clone(), claim.connection);
                let first = dead.get(&key).copied().unwrap_or(now);
                // A new owner's lease may have come between the two reads of a look.
                if now.saturating_sub(first) >= lease {
                    release.push(claim.connection);
                }
                self.dead.insert(key, first);
            }
            let mut delete = false;
            if is_idle {
                let version = persistent::version(&pod.metadata);
                let first = match since.get(&uid) {
                    Some((seen, first)) if *seen == version => *first,
                    _ => now,
                };
                let seen = now.saturating_sub(first);
                let by_note = persistent::last_used(&pod.metadata)
                    .and_then(|used| Duration::try_from(wall.duration_since(used)).ok())
                    .unwrap_or_default();
                let looked = |idle: Duration| seen >= (idle / LOOK).min(LONGEST_LOOK);
                delete = idle.is_some_and(|idle| now > first && looked(idle) && seen.max(by_note) >= idle);
                if let Some(times) = unanswered.get(&uid) {
                    self.unanswered.insert(uid.clone(), *times);
                }
                self.since.insert(uid.clone(), (version, first));
            }
            if delete || !release.is_empty() {
                let is_kept = kept_until(&pod.metadata).is_some_and(|until| until > wall);
                let times = self.unanswered.get(&uid).copied().unwrap_or_default();
                let patience_is_over = !is_kept && times >= MOST_UNANSWERED;
                verdicts.push((pod, Verdict { release, delete, patience_is_over }));
            }
        }
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::NameTemplate,
        identity::{Identity, KEPT_UNTIL, LAST_USED, MANAGED_BY, PODBAY, User},
    };
    use std::collections::BTreeSet;

    const LEASE: Duration = Duration::from_secs(90);
    const IDLE: Option<Duration> = Some(Duration::from_mins(10));

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// The wall clock runs with ours; in the past, so that what is stamped now counts for nothing.
    fn at_wall(at: u64) -> Timestamp {
        Timestamp::from_second(1_000_000 + i64::try_from(at).expect("fits")).expect("a time")
    }

    /// A pod of ours with one claim, and how it looks released.
    fn pods(owner: u8) -> (Pod, Pod) {
        let who = Identity {
            connection: ConnectionId::from_bytes([1; 16]),
            owner: OwnerId::from_bytes([owner; 16]),
            caller: "a".into(),
            user: User::named("alice"),
            remote: None,
        };
        let mut pod = Pod::default();
        pod.metadata.uid = Some("uid".into());
        pod.metadata.labels = Some([(MANAGED_BY.to_owned(), PODBAY.to_owned())].into());
        persistent::mark(&mut pod.metadata, &NameTemplate::parse("shell-{username}").expect("good"), &who);
        let mut released = pod.clone();
        for map in [&mut released.metadata.labels, &mut released.metadata.annotations] {
            map.as_mut().expect("there").retain(|key, _| !key.starts_with(crate::identity::CLAIM));
        }
        (pod, released)
    }

    #[test]
    fn a_pod_goes_when_nobody_used_it_for_the_whole_time() {
        let (claimed, released) = pods(2);
        let mut idle = Idle::default();
        let live = BTreeSet::from([OwnerId::from_bytes([2; 16])]);
        let mut look = |pod: &Pod, at| {
            let pods = [pod.clone()];
            let verdicts = idle.look(&pods, |owner| live.contains(owner), (LEASE, IDLE), (seconds(at), at_wall(at)));
            verdicts.into_iter().map(|(_, verdict)| (verdict.release.len(), verdict.delete)).collect::<Vec<_>>()
        };
        assert_eq!(look(&claimed, 0), []);
        assert_eq!(look(&released, 10_000), [], "idle since now");
        assert_eq!(look(&released, 10_599), []);
        // Used between two looks.
        let (_, later) = pods(2);
        assert_eq!(look(&later, 10_600), []);
        assert_eq!(look(&later, 11_199), []);
        assert_eq!(look(&claimed, 11_200), [], "in use");
        assert_eq!(look(&later, 11_300), []);
        assert_eq!(look(&later, 11_900), [(0, true)]);
    }

    #[test]
    fn a_dead_owners_claim_keeps_nothing_and_is_taken_off() {
        let (claimed, _) = pods(2);
        let mut idle = Idle::default();
        let mut look = |bound, at| {
            let pods = [claimed.clone()];
            let verdicts = idle.look(&pods, |_| false, (LEASE, bound), (seconds(at), at_wall(at)));
            verdicts.into_iter().map(|(_, verdict)| (verdict.release.len(), verdict.delete)).collect::<Vec<_>>()
        };
        assert_eq!(look(IDLE, 0), []);
        assert_eq!(look(IDLE, 89), []);
        assert_eq!(look(IDLE, 90), [(1, false)]);
        assert_eq!(look(IDLE, 600), [(1, true)]);
        assert_eq!(look(None, 100_000), [(1, false)], "without an idle timeout it stays");
    }

    #[test]
    fn nobody_elses_pods_are_looked_at_and_one_look_never_deletes() {
        let mut idle = Idle::default();
        let (_, ours) = pods(2);
        let mut going = ours.clone();
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        let mut foreign = ours.clone();
        foreign.metadata.labels = None;
        let bound = (LEASE, Some(Duration::ZERO));
        for at in [0, 100_000] {
            assert_eq!(idle.look(&[going.clone(), foreign.clone()], |_| false, bound, (seconds(at), at_wall(at))), []);
        }
        assert_eq!(idle.look(&[ours], |_| false, bound, (seconds(100_000), at_wall(100_000))), []);
    }

    #[test]
    fn a_restart_does_not_begin_the_time_anew() {
        let (_, mut pod) = pods(2);
        let bound = (LEASE, IDLE);
        let used = |pod: &mut Pod, key: &str, at: u64| {
            pod.metadata.annotations.as_mut().expect("notes").insert(key.to_owned(), at_wall(at).to_string());
        };
        used(&mut pod, LAST_USED, 0);
        let look = |idle: &mut Idle, pod: &Pod, at| {
            let pods = [pod.clone()];
            !idle.look(&pods, |_| false, bound, (seconds(at), at_wall(at))).is_empty()
        };
        // An observer that has just begun gives whoever comes back a while.
        let mut idle = Idle::default();
        assert!(!look(&mut idle, &pod, 10_000) && !look(&mut idle, &pod, 10_059));
        assert!(look(&mut idle, &pod, 10_060));
        // One whose clock is behind goes by its own time.
        let mut idle = Idle::default();
        used(&mut pod, LAST_USED, 20_000);
        assert!(!look(&mut idle, &pod, 10_000) && !look(&mut idle, &pod, 10_599));
        assert!(look(&mut idle, &pod, 10_600));
    }

    #[test]
    fn an_agent_that_gives_no_answer_does_not_keep_a_pod_for_ever() {
        let (_, mut pod) = pods(2);
        let mut idle = Idle::default();
        let mut patience = Vec::new();
        for at in [0, 600, 610, 620, 630] {
            let pods = [pod.clone()];
            let verdicts = idle.look(&pods, |_| false, (LEASE, IDLE), (seconds(at), at_wall(at)));
            patience.extend(verdicts.iter().map(|(_, verdict)| verdict.patience_is_over));
            idle.unanswered("uid".into());
        }
        assert_eq!(patience, [false, false, true, true], "the first look counts for none");
        // What was promised holds.
        let notes = pod.metadata.annotations.get_or_insert_default();
        notes.insert(KEPT_UNTIL.to_owned(), at_wall(641).to_string());
        for (at, expected) in [(640, false), (641, true)] {
            let pods = [pod.clone()];
            let verdicts = idle.look(&pods, |_| false, (LEASE, IDLE), (seconds(at), at_wall(at)));
            assert_eq!(verdicts.first().map(|(_, verdict)| verdict.patience_is_over), Some(expected));
        }
    }
}
