//! Addresses by prefix, as `10.0.0.0/8`.

use std::{fmt, net::IpAddr, str::FromStr};

/// All addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Not `ADDRESS/BITS`, or bits behind the prefix are set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network such as 10.0.0.0/8, 2001:db8::/32 or 10.1.2.3")]
pub struct NotANetwork(String);

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let wrong = || NotANetwork(text.chars().take(60).collect());
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.trim().parse().map_err(|_| wrong())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(width), str::parse).map_err(|_| wrong())?;
        let network = Self { address, bits };
        if bits > width || network.prefix(address) != Some(number(address)) { Err(wrong()) } else { Ok(network) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// The bits, from the highest of 128 on.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => address.into(),
    }
}

impl Network {
    /// The address without what is behind the prefix; `None` for one of the other family.
    fn prefix(&self, address: IpAddr) -> Option<u128> {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
        (address.is_ipv4() == self.address.is_ipv4()).then_some(number(address) & mask)
    }

    /// Whether the address is in it. IPv4 in IPv6 (`::ffff:10.0.0.1`) counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.prefix(address.to_canonical()) == Some(number(self.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contains_what_begins_alike() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3", "::ffff:10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "255.1.1.1", "::1"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
            ("::/0", "ffff::", "127.0.0.1"),
        ] {
            let network: Network = network.parse().expect("a network");
            assert!(network.contains(inside.parse().expect("an address")), "{network}");
            assert!(!network.contains(outside.parse().expect("an address")), "{network}");
        }
        for wrong in ["", "10.0.0.0/33", "10.0.0.1/8", "x/8", "10.0.0.0/-1", "::/129", "10.0.0.0/8/8"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
