//! From nodes to the types that configurations are made of.

use super::{
    describe::{Kind, MASK, Shown},
    duration::{format_duration, parse_duration},
    node::{Node, Value},
};
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    rc::Rc,
    str::FromStr,
    time::Duration,
};
use zeroize::Zeroizing;

/// A problem at a place below a node: where, the path from the node, and what.
pub type Problem = ((u64, u64), String, String);

/// A type that a node of a configuration can be read as.
pub trait FromNode: Sized {
    /// What may stand there, for the schema and the table of keys.
    fn kind() -> Kind {
        Kind::Any
    }

    /// The value as a configuration would give it; secrets masked, `Null` where it can't be shown.
    fn shown(&self) -> Shown {
        Shown::Null
    }

    /// What about a sound value is most likely not meant.
    fn doubt(&self, _node: &Node) -> Option<String> {
        None
    }

    /// Reads the node, or says everything that is wrong with it.
    fn from_node(node: &Node) -> Result<Self, Vec<Problem>>;
}

pub(super) fn problem<T>(node: &Node, message: impl Into<String>) -> Result<T, Vec<Problem>> {
    Err(vec![(node.at, String::new(), message.into())])
}

fn expected<T>(node: &Node, what: &str) -> Result<T, Vec<Problem>> {
    problem(node, format!("expected {what}, found {}", node.value.kind()))
}

impl FromNode for String {
    fn kind() -> Kind {
        Kind::Text
    }

    fn shown(&self) -> Shown {
        Shown::from(self.as_str())
    }

    fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
        // As Go's readers of YAML: `tlsVersion: 1.2` needs no quotes.
        node.scalar().map_or_else(|| expected(node, "text"), |text| Ok(text.into_owned()))
    }
}

/// Text, or a whole number in its decimal form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextOrNumber(pub String);

impl FromNode for TextOrNumber {
    fn kind() -> Kind {
        Kind::TextOrNumber
    }

    fn shown(&self) -> Shown {
        Shown::from(self.0.as_str())
    }

    fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
        match &node.value {
            Value::Text(text) => Ok(Self(text.clone())),
            Value::Int(number) => Ok(Self(number.to_string())),
            _ => expected(node, "text or a whole number"),
        }
    }
}

impl FromNode for bool {
    fn kind() -> Kind {
        Kind::Flag
    }

    fn shown(&self) -> Shown {
        Shown::from(*self)
    }

    fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
        node.truth().map_or_else(|| expected(node, "true or false"), Ok)
    }
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl FromNode for $type {
            fn kind() -> Kind {
                Kind::Whole { least: i64::try_from(Self::MIN).unwrap_or_default(), most: u64::try_from(Self::MAX).unwrap_or_default() }
            }

            fn shown(&self) -> Shown {
                Shown::from(*self)
            }

            fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
                match &node.value {
                    Value::Int(value) => Self::try_from(*value).or_else(|_| {
                        problem(node, format!("{value} is out of range: expected {} to {}", Self::MIN, Self::MAX))
                    }),
                    _ => expected(node, "a whole number"),
                }
            }
        }
    )*};
}
integers!(u16, u32, u64, usize, i32, i64);

impl FromNode for f64 {
    fn kind() -> Kind {
        Kind::Number
    }

    fn shown(&self) -> Shown {
        Shown::from(*self)
    }

    fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
        match &node.value {
            Value::Int(value) => Ok(*value as Self),
            Value::Float(value) if value.is_finite() => Ok(*value),
            _ => expected(node, "a number"),
        }
    }
}

/// Go's syntax, or a bare integer of nanoseconds as in ContainerSSH's JSON.
impl FromNode for Duration {
    fn kind() -> Kind {
        Kind::Duration
    }

    fn shown(&self) -> Shown {
        Shown::from(format_duration(*self))
    }

    fn doubt(&self, node: &Node) -> Option<String> {
        match node.value {
            // Nothing here can be done within a millisecond.
            Value::Int(number) if number > 0 && *self < Self::from_millis(1) => Some(format!(
                "a number without unit counts nanoseconds, so this is {}: write {number}s if seconds are meant",
                format_duration(*self)
            )),
            _ => None,
        }
    }

    fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
        match &node.value {
            Value::Text(text) => parse_duration(text).or_else(|error| problem(node, error.to_string())),
            Value::Int(nanos) => u64::try_from(*nanos)
                .map(Self::from_nanos)
                .or_else(|_| problem(node, "a duration can't be negative or longer than 584 years")),
            _ => expected(node, "a duration such as 60s or 1m30s"),
        }
    }
}

impl FromNode for PathBuf {
    fn kind() -> Kind {
        Kind::Path
    }

    fn shown(&self) -> Shown {
        Shown::from(self.display().to_string())
    }

    fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
        String::from_node(node).map(Self::from)
    }
}

fn parsed<T: FromStr>(node: &Node, what: &str) -> Result<T, Vec<Problem>> {
    let text = String::from_node(node)?;
    text.parse().or_else(|_| problem(node, format!("{text:?} is not {what}")))
}

impl FromNode for IpAddr {
    fn kind() -> Kind {
        Kind::Text
    }

    fn shown(&self) -> Shown {
        Shown::from(self.to_string())
    }

    fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
        parsed(node, "an IP address")
    }
}

impl FromNode for SocketAddr {
    fn kind() -> Kind {
        Kind::Address
    }

    fn shown(&self) -> Shown {
        Shown::from(self.to_string())
    }

    fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
        // As Go listens: without a host everywhere, IPv4 and IPv6.
        let text = String::from_node(node)?;
        let at = |ip: IpAddr, port: &str| Some(Self::new(ip, port.parse().ok()?));
        let short = match text.rsplit_once(':') {
            Some(("", port)) => at(Ipv6Addr::UNSPECIFIED.into(), port),
            Some(("localhost", port)) => at(Ipv4Addr::LOCALHOST.into(), port),
            _ => None,
        };
        short.map_or_else(|| parsed(node, "an address with port, such as 0.0.0.0:2222 or [::]:2222"), Ok)
    }
}

impl<T: FromNode> FromNode for Vec<T> {
    fn kind() -> Kind {
        Kind::List(Box::new(T::kind()))
    }

    fn shown(&self) -> Shown {
        Shown::Array(self.iter().map(T::shown).collect())
    }

    fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
        let Value::List(items) = &node.value else { return expected(node, "a list") };
        let parts = items.iter().enumerate().map(|(i, item)| (format!("[{i}]"), item));
        collect(parts, |item| T::from_node(item)).map(|items| items.into_iter().map(|(_, item)| item).collect())
    }
}

impl<T: FromNode> FromNode for BTreeMap<String, T> {
    fn kind() -> Kind {
        Kind::Map(Box::new(T::kind()))
    }

    fn shown(&self) -> Shown {
        Shown::Object(self.iter().map(|(key, value)| (key.clone(), value.shown())).collect())
    }

    fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
        let Value::Map(entries) = &node.value else { return expected(node, "a map") };
        let parts = entries.iter().map(|(key, _, value)| (format!(".{key}"), value));
        let values = collect(parts, |item| T::from_node(item))?;
        Ok(entries.iter().map(|(key, ..)| key.clone()).zip(values.into_iter().map(|(_, value)| value)).collect())
    }
}

fn collect<'a, T>(
    parts: impl Iterator<Item = (String, &'a Rc<Node>)>,
    read: impl Fn(&Node) -> Result<T, Vec<Problem>>,
) -> Result<Vec<(String, T)>, Vec<Problem>> {
    let (mut values, mut problems) = (Vec::new(), Vec::new());
    for (step, node) in parts {
        match read(node) {
            Ok(value) => values.push((step, value)),
            Err(found) => {
                problems.extend(found.into_iter().map(|(at, path, text)| (at, format!("{step}{path}"), text)));
            }
        }
    }
    if problems.is_empty() { Ok(values) } else { Err(problems) }
}

/// Text that must not be shown: a password hash, a token, a private key.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text. Don't log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl FromNode for Secret {
    fn kind() -> Kind {
        Kind::Secret
    }

    fn shown(&self) -> Shown {
        Shown::from(MASK)
    }

    fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
        String::from_node(node).map(Self::new)
    }
}
