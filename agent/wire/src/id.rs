//! Identifiers on the link, parsed once where they arrive.

use bytes::Bytes;
use std::fmt;

/// A session of the contract: 128 bits that its client chose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

/// One run of a supervisor: 128 random bits. What another instance knew is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance(pub [u8; 16]);

/// The field has not 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id of {0} bytes; it has 16")]
pub struct BadId(pub usize);

macro_rules! id {
    ($name:ident) => {
        impl TryFrom<&[u8]> for $name {
            type Error = BadId;

            fn try_from(bytes: &[u8]) -> Result<Self, BadId> {
                bytes.try_into().map(Self).map_err(|_| BadId(bytes.len()))
            }
        }

        impl From<$name> for Bytes {
            fn from(id: $name) -> Self {
                Self::copy_from_slice(&id.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(SessionId);
id!(Instance);

/// Which link may have a program: the supervisor takes only a higher one than it knows.
///
/// The contract's attempt (the session's client counts its streams) stands in the upper 44 bits, this replica's count of its own links in
/// the lower 20. So a replica whose link was cut fences that link by its next one, and a replica with a higher attempt fences both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Attempt(pub u64);

const RELINK_BITS: u32 = 20;

impl Attempt {
    /// The first link for this attempt of the contract (0 means 1 there).
    pub const fn new(attempt: u32) -> Self {
        Self((if attempt == 0 { 1 } else { attempt as u64 }) << RELINK_BITS)
    }

    /// The same attempt of the contract over this replica's next link.
    #[must_use]
    pub const fn relink(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// What `take_over` gives: the next attempt of the contract.
    #[must_use]
    pub const fn take_over(self) -> Self {
        let next = (self.0 >> RELINK_BITS) + 1;
        Self(if next > u64::MAX >> RELINK_BITS { u64::MAX } else { next << RELINK_BITS })
    }

    /// The contract's attempt.
    pub const fn contract(self) -> u64 {
        self.0 >> RELINK_BITS
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.contract(), self.0 & ((1 << RELINK_BITS) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_ordered_by_the_contract_first() {
        let first = Attempt::new(1);
        assert_eq!(Attempt::new(0), first);
        assert!(first.relink() > first);
        assert!(Attempt::new(2) > first.relink().relink());
        assert_eq!(first.relink().take_over(), Attempt::new(2));
        assert_eq!(Attempt(u64::MAX).take_over(), Attempt(u64::MAX).relink());
        assert_eq!(format!("{:?}", Attempt::new(7).relink()), "7.1");
    }

    #[test]
    fn ids_have_sixteen_bytes() {
        assert_eq!(SessionId::try_from(&[1; 15][..]), Err(BadId(15)));
        assert_eq!(SessionId::try_from(&[0xab; 16][..]).map(|id| id.to_string()), Ok("ab".repeat(16)));
    }
}
