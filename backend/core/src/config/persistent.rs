//! Mode `persistent`: which pod is whose.

use sha2::{Digest as _, Sha256};
use std::time::Duration;

/// Stands for the authenticated user in a pod's name.
const USER: &str = "{username}";

/// The longest fixed text; with a user's part it stays far below a pod name's 253 bytes.
const MAX_TEXT: usize = 150;
/// The longest part that stands for a user.
const MAX_USER: usize = 40;
/// Hexadecimal digits of the hash where a user's name is no name for Kubernetes: 80 bits.
const DIGEST: usize = 20;

/// Which pod programs run in, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Persistent {
    /// The pod's name.
    pub name: NameTemplate,
    /// Whether a pod that isn't there is made.
    pub create_missing: bool,
    /// A pod that we made is deleted when it had no connection for so long; `None` = never.
    pub idle_timeout: Option<Duration>,
}

/// `metadata.name` in mode persistent: one name for all, or with the user in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameTemplate {
    /// One pod for everybody who gets this configuration.
    Fixed(String),
    /// One pod for each user.
    PerUser {
        /// What stands before the user.
        before: String,
        /// What stands behind.
        after: String,
    },
}

impl NameTemplate {
    /// Reads `metadata.name`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((before, after)) = text.split_once(USER) else {
            return check(text, text).map(|()| Self::Fixed(text.to_owned()));
        };
        if before.is_empty() && after.is_empty() {
            return Err(format!("{USER} needs some text beside it: else a user's name could be that of any pod"));
        }
        if after.contains(USER) {
            return Err(format!("{USER} may stand there once"));
        }
        // Whatever stands for a user begins and ends with a letter or digit.
        check(text, &format!("{before}u{after}"))?;
        Ok(Self::PerUser { before: before.to_owned(), after: after.to_owned() })
    }

    /// The name of this user's pod. Users with different names never have the same one (but for a collision of 80 bits of
    /// SHA-256, against which the pod's annotation is the second line: [`crate::persistent::admit`]).
    pub fn of(&self, user: &str) -> String {
        match self {
            Self::Fixed(name) => name.clone(),
            Self::PerUser { before, after } => format!("{before}{}{after}", part(user)),
        }
    }
}

fn check(text: &str, name: &str) -> Result<(), String> {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = name.split('.').all(|label| {
        label.starts_with(letter) && label.ends_with(letter) && label.chars().all(|c| letter(c) || c == '-')
    });
    if !good {
        return Err(format!(
            "{text:?}: pod names hold a-z, 0-9, '-' and '.', with a letter or digit at each end ({USER} stands for the user)"
        ));
    }
    if name.len() > MAX_TEXT {
        return Err(format!("is longer than {MAX_TEXT} bytes"));
    }
    Ok(())
}

/// What stands for a user: the name itself where Kubernetes takes it and it doesn't look like the other form; else what is
/// readable of it, and a hash.
fn part(user: &str) -> String {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let plain = user.len() <= MAX_USER
        && user.starts_with(letter)
        && user.ends_with(letter)
        && user.chars().all(|c| letter(c) || c == '-')
        && !looks_hashed(user);
    if plain {
        return user.to_owned();
    }
    let readable = user.chars().map(|c| c.to_ascii_lowercase()).map(|c| if letter(c) { c } else { '-' });
    let readable: String = readable.take(MAX_USER - DIGEST - 1).collect();
    let readable = readable.trim_matches('-');
    let mut digest = hex::encode(Sha256::digest(user));
    digest.truncate(DIGEST);
    format!("{}-{digest}", if readable.is_empty() { "u" } else { readable })
}

fn looks_hashed(user: &str) -> bool {
    user.rsplit_once('-').is_some_and(|(_, end)| {
        end.len() == DIGEST && end.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn names_with_and_without_a_user() {
        assert_eq!(NameTemplate::parse("shared"), Ok(NameTemplate::Fixed("shared".into())));
        let name = NameTemplate::parse("shell-{username}.dev").expect("good");
        assert_eq!(name.of("alice"), "shell-alice.dev");
        assert_eq!(name.of("Alice"), "shell-alice-3bc51062973c458d5a6f.dev");
        assert_eq!(name.of("bob@example.org").len(), "shell-.dev".len() + "bob-example-org-".len() + DIGEST);
        assert!(name.of("@").starts_with("shell-u-") && name.of("").starts_with("shell-u-"));
        for bad in
            ["{username}", "x-{username}-{username}", "-{username}", "a_b", "A", "", "x.", "{user}-x", &"a".repeat(151)]
        {
            assert!(NameTemplate::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nobody_can_take_anothers_name() {
        // The hashed form of one user, chosen as a name by another.
        let name = NameTemplate::parse("shell-{username}").expect("good");
        let victims = name.of("Alice");
        let chosen = victims.strip_prefix("shell-").expect("a prefix");
        assert_ne!(name.of(chosen), victims);
    }

    proptest! {
        #[test]
        fn different_users_have_different_pods(users in prop::collection::vec("[aA@.\\-0é]{0,4}|[a-f0-9-]{18,44}|\\PC{0,60}", 2..20)) {
            let name = NameTemplate::parse("shell-{username}").expect("good");
            let mut seen = HashMap::new();
            for user in users {
                let pod = name.of(&user);
                prop_assert!(check(&pod, &pod).is_ok() && pod.len() <= "shell-".len() + MAX_USER, "{}", pod);
                if let Some(other) = seen.insert(pod.clone(), user.clone()) {
                    prop_assert_eq!(other, user, "{}", pod);
                }
            }
        }
    }
}
