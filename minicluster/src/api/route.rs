//! What a URL names.

use super::query::Query;
use crate::{kinds::Kind, status::ApiError};
use http::Method;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// Answers that don't depend on objects: discovery, version, health. The path, without slashes at the ends.
    Fixed(String),
    Objects(Objects),
    /// The minicluster's own.
    Admin(Admin),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admin {
    Faults,
    Counts,
    Processes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Objects {
    pub kind: Kind,
    /// `None`: all of them, or a kind without.
    pub namespace: Option<String>,
    pub target: Target,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    All,
    One(String),
    Exec(String),
    Attach(String),
    Log(String),
}

impl Objects {
    /// The object's name; empty for a collection.
    pub fn name(&self) -> &str {
        match &self.target {
            Target::All => "",
            Target::One(name) | Target::Exec(name) | Target::Attach(name) | Target::Log(name) => name,
        }
    }

    /// `pods`, `pods/exec`: as RBAC names a resource.
    pub fn resource(&self) -> String {
        let sub = match &self.target {
            Target::All | Target::One(_) => "",
            Target::Exec(_) => "/exec",
            Target::Attach(_) => "/attach",
            Target::Log(_) => "/log",
        };
        format!("{}{sub}", self.kind.plural())
    }

    /// The verb, as RBAC names it.
    pub fn verb(&self, method: &Method, query: &Query) -> Result<&'static str, ApiError> {
        let all = self.target == Target::All;
        Ok(match *method {
            Method::GET if all && query.flag("watch") => "watch",
            Method::GET if all => "list",
            Method::GET => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if all => "deletecollection",
            Method::DELETE => "delete",
            _ => return Err(ApiError::method_not_allowed()),
        })
    }
}

impl Route {
    pub fn parse(path: &str) -> Result<Self, ApiError> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let objects = match parts.as_slice() {
            ["minicluster", "faults"] => return Ok(Self::Admin(Admin::Faults)),
            ["minicluster", "counts"] => return Ok(Self::Admin(Admin::Counts)),
            ["minicluster", "processes"] => return Ok(Self::Admin(Admin::Processes)),
            ["api", "v1", rest @ ..] if !rest.is_empty() => objects("", rest),
            ["apis", group, "v1", rest @ ..] if !rest.is_empty() => objects(group, rest),
            fixed => return Ok(Self::Fixed(fixed.join("/"))),
        };
        objects.map(Self::Objects).ok_or_else(ApiError::no_such_path)
    }
}

fn objects(group: &str, parts: &[&str]) -> Option<Objects> {
    let kind = |plural: &str| Kind::ALL.into_iter().find(|kind| kind.group() == group && kind.plural() == plural);
    let (kind, namespace, rest) = match parts {
        ["namespaces", namespace, plural, rest @ ..] => {
            (kind(plural).filter(|kind| kind.namespaced())?, Some((*namespace).to_owned()), rest)
        }
        [plural, rest @ ..] => {
            let kind = kind(plural)?;
            // All namespaces at once can only be listed and watched.
            if kind.namespaced() && !rest.is_empty() {
                return None;
            }
            (kind, None, rest)
        }
        [] => return None,
    };
    let target = match rest {
        [] => Target::All,
        [name] => Target::One((*name).to_owned()),
        [name, "exec"] if kind == Kind::Pod => Target::Exec((*name).to_owned()),
        [name, "attach"] if kind == Kind::Pod => Target::Attach((*name).to_owned()),
        [name, "log"] if kind == Kind::Pod => Target::Log((*name).to_owned()),
        _ => return None,
    };
    Some(Objects { kind, namespace, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(path: &str) -> Objects {
        match Route::parse(path).expect("a route") {
            Route::Objects(objects) => objects,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn paths() {
        let exec = objects("/api/v1/namespaces/a/pods/b/exec");
        assert_eq!((exec.kind, exec.namespace.as_deref(), exec.name()), (Kind::Pod, Some("a"), "b"));
        assert_eq!(exec.resource(), "pods/exec");
        assert_eq!(objects("/api/v1/pods").namespace, None);
        assert_eq!(objects("/api/v1/namespaces/a").target, Target::One("a".into()));
        assert_eq!(objects("/apis/coordination.k8s.io/v1/namespaces/a/leases").kind, Kind::Lease);
        assert_eq!(
            Route::parse("/apis/coordination.k8s.io/v1").expect("fixed"),
            Route::Fixed("apis/coordination.k8s.io/v1".into())
        );
        for missing in [
            "/api/v1/services",
            "/api/v1/pods/x",
            "/apis/coordination.k8s.io/v1/namespaces/a/pods",
            "/api/v1/namespaces/a/pods/b/c",
            "/api/v1/namespaces/a/leases",
        ] {
            assert_eq!(Route::parse(missing).expect_err(missing).code, 404);
        }
    }
}
