//! A program's environment.

use std::{
    env,
    ffi::{CString, NulError, OsStr, OsString},
    fmt,
    os::unix::ffi::OsStrExt as _,
};

/// An environment: each name once, in the order in which the names came.
///
/// `Debug` shows names only: values may be secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(Vec<(OsString, OsString)>);

impl Environment {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of ours. Of a name that is there twice, the last value, as shells see it.
    pub fn inherited() -> Self {
        let mut environment = Self::new();
        for (name, value) in env::vars_os() {
            environment.put(name, value);
        }
        environment
    }

    /// Sets a variable, in place of an older one of that name.
    ///
    /// # Errors
    /// The name is empty or has a `=`, or there is a NUL in it or in the value.
    pub fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Result<(), InvalidVariable> {
        let (name, value) = (name.into(), value.into());
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.contains(&b'=') || bytes.contains(&0) || value.as_bytes().contains(&0) {
            return Err(InvalidVariable);
        }
        self.put(name, value);
        Ok(())
    }

    fn put(&mut self, name: OsString, value: OsString) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// The value of a variable.
    pub fn get(&self, name: impl AsRef<OsStr>) -> Option<&OsStr> {
        self.iter().find_map(|(known, value)| (known == name.as_ref()).then_some(value))
    }

    /// All variables.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// As `execve` takes it.
    ///
    /// # Errors
    /// Never for what [`Environment::set`] took.
    pub fn to_c(&self) -> Result<Vec<CString>, NulError> {
        self.iter().map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())).collect()
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

/// A variable that no environment can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an environment variable's name is not empty and has no `=`, and there is no NUL in name or value")]
pub struct InvalidVariable;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_there_once_with_its_last_value() {
        let mut environment = Environment::new();
        environment.set("A", "1").expect("set");
        environment.set("B", "").expect("set");
        environment.set("A", "2=3").expect("set");
        let all: Vec<_> = environment.iter().map(|(name, value)| (name.to_str(), value.to_str())).collect();
        assert_eq!(all, [(Some("A"), Some("2=3")), (Some("B"), Some(""))]);
        assert_eq!(environment.get("B"), Some(OsStr::new("")));
        assert_eq!(environment.get("C"), None);
    }

    #[test]
    fn what_no_environment_can_hold_is_refused() {
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0y")] {
            assert_eq!(Environment::new().set(name, value), Err(InvalidVariable), "{name:?}={value:?}");
        }
    }

    #[test]
    fn debug_shows_no_values() {
        let mut environment = Environment::new();
        environment.set("TOKEN", "hunter2").expect("set");
        assert_eq!(format!("{environment:?}"), r#"{"TOKEN"}"#);
    }
}
