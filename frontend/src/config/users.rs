//! The `users` section: a list of `name`, `passwordHash`, `authorizedKeys`.

use crate::auth::{PasswordHash, User, Users, parse_authorized_key};
use podbay_runtime::config::{Secret, Section};
use std::collections::{HashMap, hash_map::Entry};

/// The longest name (the contract's).
const MAX_NAME: usize = 256;

/// `others`: people may log in who are not named here.
pub(super) fn from_root(root: &mut Section, others: bool) -> Users {
    let mut users = HashMap::new();
    let list = root.list("users");
    if list.is_empty() && !others {
        root.mistake("users", "names nobody, so nobody could log in: give at least one user, or configure auth");
    }
    for mut section in list {
        let name: Option<String> = section.required("name");
        let user = user(&mut section);
        let Some(name) = name else { continue };
        if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
            section.mistake("name", "must be 1 to 256 bytes without control characters");
        }
        match users.entry(name) {
            Entry::Vacant(entry) => drop(entry.insert(user)),
            Entry::Occupied(entry) => section.mistake("name", format!("{:?} is there twice", entry.key())),
        }
    }
    Users::new(users)
}

fn user(section: &mut Section) -> User {
    let password = section.get::<Secret>("passwordHash").and_then(|hash| {
        PasswordHash::parse(hash.expose()).map_err(|error| section.mistake("passwordHash", error.to_string())).ok()
    });
    let lines: Vec<String> = section.get("authorizedKeys").unwrap_or_default();
    let mut keys = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        match parse_authorized_key(line) {
            Ok(key) => keys.push(key),
            Err(error) => section.mistake("authorizedKeys", format!("line {i} {error}")),
        }
    }
    if !section.has("passwordHash") && lines.is_empty() {
        section.mistake("passwordHash", "the user has neither a passwordHash nor authorizedKeys, so can't log in");
    }
    User { password, keys }
}
