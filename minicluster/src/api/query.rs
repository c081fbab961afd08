//! The query of a URL.

use crate::status::ApiError;

/// Decoded parameters, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decode(name)?, decode(value)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The first value of a parameter; empty if it isn't there.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
    }

    /// A boolean as Kubernetes reads it: `false`, `0` and absence are false.
    pub fn flag(&self, name: &str) -> bool {
        match self.0.iter().find(|(known, _)| known == name) {
            Some((_, value)) => !["false", "False", "0", "f"].contains(&value.as_str()),
            None => false,
        }
    }

    pub fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.get(name) {
            "" => Ok(None),
            value => value
                .parse()
                .map(Some)
                .map_err(|_| ApiError::bad_request(format!("invalid value {value:?} for parameter {name}"))),
        }
    }
}

fn decode(text: &str) -> Result<String, ApiError> {
    let wrong = || ApiError::bad_request(format!("invalid URL escape in {text:?}"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().ok_or_else(wrong)?, rest.next().ok_or_else(wrong)?];
                // `from_str_radix` would take a sign too.
                let hex = digits.iter().all(u8::is_ascii_hexdigit);
                let digits = std::str::from_utf8(&digits).ok().filter(|_| hex).ok_or_else(wrong)?;
                u8::from_str_radix(digits, 16).map_err(|_| wrong())?
            }
            other => other,
        });
    }
    // A real runtime can't take anything else either: its API is protobuf.
    String::from_utf8(bytes).map_err(|_| ApiError::bad_request("a parameter is not valid UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_and_keeps_order() {
        let query = Query::parse("command=sh&command=-c&command=a%20b+c%2Bd&tty=false&stdin=true&n=7").expect("parses");
        assert_eq!(query.all("command"), ["sh", "-c", "a b c+d"]);
        assert!(query.flag("stdin") && !query.flag("tty") && !query.flag("absent"));
        assert_eq!(query.number("n").expect("a number"), Some(7));
        assert!(query.number("stdin").is_err());
        for bad in ["a=%", "a=%2", "a=%zz", "a=%ff", "a=%+1"] {
            assert!(Query::parse(bad).is_err(), "{bad}");
        }
    }
}
