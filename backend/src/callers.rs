//! Who calls, by the certificate, and what they may do. Pure.

use podbay::v1::{Reason, Refusal};
use podbay_backend_core::identity::User;
use std::sync::Arc;

/// What a name in a certificate may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `dns:…`, `uri:…` or `cn:…`.
    pub name: String,
    /// The service that it is part of: all replicas of a frontend share one, and so each other's handles.
    pub service: String,
    /// Whom it may open connections for; `*` = everybody.
    pub users: Vec<String>,
    /// Whether it may see and end everybody's connections.
    pub operator: bool,
}

/// A known caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller(Arc<Rule>);

impl Caller {
    /// Its service.
    pub fn service(&self) -> &str {
        &self.0.service
    }

    /// Whether it is an operator.
    pub fn is_operator(&self) -> bool {
        self.0.operator
    }

    /// Whom it may act for; empty = everybody.
    pub fn users(&self) -> &[String] {
        if self.0.users.iter().any(|user| user == "*") { &[] } else { &self.0.users }
    }

    /// # Errors
    /// `CALLER_NOT_ALLOWED` where it may not act for this user.
    pub fn may_act_for(&self, user: &User) -> Result<(), Refusal> {
        if self.0.users.iter().any(|allowed| allowed == "*" || *allowed == user.authenticated) {
            return Ok(());
        }
        let text = format!("{} may not open connections for {:?}", self.0.service, user.authenticated);
        Err(Refusal::new(Reason::CallerNotAllowed, text))
    }

    /// # Errors
    /// `CALLER_NOT_ALLOWED` where it is no operator.
    pub fn must_be_operator(&self) -> Result<(), Refusal> {
        if self.0.operator {
            return Ok(());
        }
        let text = format!("{} has no operator rights", self.0.service);
        Err(Refusal::new(Reason::CallerNotAllowed, text))
    }
}

/// All rules; the first that fits counts.
#[derive(Debug, Clone)]
pub struct Callers(Vec<Arc<Rule>>);

impl Callers {
    /// In order.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules.into_iter().map(Arc::new).collect())
    }

    /// Who has these names.
    ///
    /// # Errors
    /// `CALLER_UNKNOWN` where no rule fits; without names, always.
    pub fn identify(&self, names: &[String]) -> Result<Caller, Refusal> {
        let found = self.0.iter().find(|rule| names.contains(&rule.name));
        found.cloned().map(Caller).ok_or_else(|| {
            let text = "the caller's certificate is not known here (grpc.callers)";
            Refusal::new(Reason::CallerUnknown, text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_fits_counts() {
        let rule = |name: &str, service: &str, users: &[&str], operator| Rule {
            name: name.into(),
            service: service.into(),
            users: users.iter().map(ToString::to_string).collect(),
            operator,
        };
        let callers = Callers::new(vec![
            rule("dns:a", "one", &["alice"], false),
            rule("cn:a", "two", &["*"], true),
            rule("dns:a", "three", &["*"], true),
        ]);
        let named = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            callers.identify(&names)
        };
        let one = named(&["cn:x", "dns:a"]).expect("known");
        assert_eq!(one.service(), "one");
        assert!(one.may_act_for(&User::named("alice")).is_ok());
        let denied = one.may_act_for(&User::named("bob")).expect_err("not bob");
        assert_eq!(denied.reason(), Reason::CallerNotAllowed);
        assert!(one.may_act_for(&User::named("*")).is_err());
        assert_eq!(one.users(), ["alice"]);
        // It is the authenticated name that counts.
        let user = User { name: "alice".into(), authenticated: "bob".into() };
        assert!(one.may_act_for(&user).is_err());
        assert!(one.must_be_operator().is_err());
        let two = named(&["cn:a"]).expect("known");
        assert!(two.must_be_operator().is_ok() && two.may_act_for(&User::named("bob")).is_ok());
        for unknown in [&[][..], &["dns:b"], &["a"]] {
            assert_eq!(named(unknown).expect_err("unknown").reason(), Reason::CallerUnknown);
        }
    }
}
