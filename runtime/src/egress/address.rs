//! Which addresses a name may lead to: those of the open internet, and the networks that the operator names.
//!
//! The lists are those of the special-purpose registries for IPv4 and IPv6 (RFC 6890 and what came after it), and the
//! addresses at which clouds hand out credentials.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::reason::Reason;

/// The shortest prefix of an operator's network: the whole internet is not a network.
const MIN_PREFIX_V4: u8 = 8;
/// The same for IPv6.
const MIN_PREFIX_V6: u8 = 16;

/// A network that an operator names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

/// A network that does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network such as \"10.1.0.0/16\" or \"fd00:1::/32\" (IPv4 from /8, IPv6 from /16)")]
pub struct NetworkError(String);

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError(text.chars().filter(|c| !c.is_control()).take(100).collect());
        let (base, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let base: IpAddr = base.parse().map_err(|_| wrong())?;
        let plain = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u8 = prefix.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
        let (least, most) = match base {
            IpAddr::V4(_) => (MIN_PREFIX_V4, 32),
            IpAddr::V6(_) => (MIN_PREFIX_V6, 128),
        };
        if !(least..=most).contains(&prefix) {
            return Err(wrong());
        }
        Ok(Self { base, prefix })
    }
}

impl Network {
    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => in_v4(address, base, self.prefix),
            (IpAddr::V6(base), IpAddr::V6(address)) => in_v6(address, base, self.prefix),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// It names this one address.
    fn is(&self, address: IpAddr) -> bool {
        self.base == address && self.prefix == if address.is_ipv4() { 32 } else { 128 }
    }
}

fn in_v4(address: Ipv4Addr, base: Ipv4Addr, prefix: u8) -> bool {
    let shift = 32 - u32::from(prefix);
    address.to_bits().checked_shr(shift) == base.to_bits().checked_shr(shift)
}

fn in_v6(address: Ipv6Addr, base: Ipv6Addr, prefix: u8) -> bool {
    let shift = 128 - u32::from(prefix);
    address.to_bits().checked_shr(shift) == base.to_bits().checked_shr(shift)
}

/// Whether a name may lead here.
///
/// # Errors
/// The kind of address that it is otherwise.
pub fn check(address: IpAddr, networks: &[Network]) -> Result<(), Reason> {
    let reason = match special(address) {
        None => return Ok(()),
        Some(reason) => reason,
    };
    let named = match reason {
        // An address within another is a trick whoever names the network around it.
        Reason::EmbeddedAddress => false,
        // Where credentials are handed out, only the very address will do.
        Reason::MetadataAddress => networks.iter().any(|network| network.is(address)),
        _ => networks.iter().any(|network| network.contains(address)),
    };
    if named { Ok(()) } else { Err(reason) }
}

fn special(address: IpAddr) -> Option<Reason> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

/// Metadata services that are not told by their network alone: Azure's wire server, Oracle's, Alibaba's, and everybody
/// else's.
const METADATA_V4: [Ipv4Addr; 5] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(100, 100, 100, 200),
];

/// Those of Amazon and Google over IPv6.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

const SPECIAL_V4: [(Ipv4Addr, u8, Reason); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, Reason::LoopbackAddress),
    (Ipv4Addr::new(10, 0, 0, 0), 8, Reason::PrivateAddress),
    (Ipv4Addr::new(100, 64, 0, 0), 10, Reason::PrivateAddress),
    (Ipv4Addr::new(127, 0, 0, 0), 8, Reason::LoopbackAddress),
    (Ipv4Addr::new(169, 254, 0, 0), 16, Reason::LinkLocalAddress),
    (Ipv4Addr::new(172, 16, 0, 0), 12, Reason::PrivateAddress),
    (Ipv4Addr::new(192, 0, 0, 0), 24, Reason::ReservedAddress),
    (Ipv4Addr::new(192, 0, 2, 0), 24, Reason::ReservedAddress),
    (Ipv4Addr::new(192, 88, 99, 0), 24, Reason::ReservedAddress),
    (Ipv4Addr::new(192, 168, 0, 0), 16, Reason::PrivateAddress),
    (Ipv4Addr::new(198, 18, 0, 0), 15, Reason::ReservedAddress),
    (Ipv4Addr::new(198, 51, 100, 0), 24, Reason::ReservedAddress),
    (Ipv4Addr::new(203, 0, 113, 0), 24, Reason::ReservedAddress),
    (Ipv4Addr::new(233, 252, 0, 0), 24, Reason::MulticastAddress),
    (Ipv4Addr::new(224, 0, 0, 0), 4, Reason::MulticastAddress),
    (Ipv4Addr::new(240, 0, 0, 0), 4, Reason::ReservedAddress),
];

fn special_v4(address: Ipv4Addr) -> Option<Reason> {
    if METADATA_V4.contains(&address) {
        return Some(Reason::MetadataAddress);
    }
    SPECIAL_V4.iter().find(|(base, prefix, _)| in_v4(address, *base, *prefix)).map(|(_, _, reason)| *reason)
}

const SPECIAL_V6: [(Ipv6Addr, u8, Reason); 14] = [
    (Ipv6Addr::LOCALHOST, 128, Reason::LoopbackAddress),
    (Ipv6Addr::UNSPECIFIED, 128, Reason::LoopbackAddress),
    // IPv4-compatible, IPv4-mapped, IPv4-translated, NAT64 (known and local), 6to4, Teredo.
    (Ipv6Addr::UNSPECIFIED, 96, Reason::EmbeddedAddress),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, Reason::EmbeddedAddress),
    (Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96, Reason::EmbeddedAddress),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96, Reason::EmbeddedAddress),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, Reason::EmbeddedAddress),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, Reason::EmbeddedAddress),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32, Reason::EmbeddedAddress),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, Reason::PrivateAddress),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, Reason::LinkLocalAddress),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, Reason::PrivateAddress),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, Reason::MulticastAddress),
    // Protocol assignments: benchmarking, ORCHID, and what else is there.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, Reason::ReservedAddress),
];

/// Documentation, old and new (RFC 3849, RFC 9637).
const DOCUMENTATION_V6: [(Ipv6Addr, u8); 2] =
    [(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20)];

/// All that was ever given out for use between networks (RFC 4291, 2.4).
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

fn special_v6(address: Ipv6Addr) -> Option<Reason> {
    if METADATA_V6.contains(&address) {
        return Some(Reason::MetadataAddress);
    }
    if let Some((_, _, reason)) = SPECIAL_V6.iter().find(|(base, prefix, _)| in_v6(address, *base, *prefix)) {
        return Some(*reason);
    }
    let documentation = DOCUMENTATION_V6.iter().any(|(base, prefix)| in_v6(address, *base, *prefix));
    // The last two groups of an ISATAP address are 5efe and an IPv4 address (RFC 5214, 6.1).
    let groups = address.segments();
    let isatap = groups[4] & 0xfcff == 0 && groups[5] == 0x5efe;
    match (isatap, documentation || !in_v6(address, GLOBAL_V6.0, GLOBAL_V6.1)) {
        (true, _) => Some(Reason::EmbeddedAddress),
        (false, true) => Some(Reason::ReservedAddress),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_open_internet_is_open() {
        for (address, reason) in [
            ("0.0.0.0", Some(Reason::LoopbackAddress)),
            ("0.1.2.3", Some(Reason::LoopbackAddress)),
            ("10.255.255.255", Some(Reason::PrivateAddress)),
            ("11.0.0.0", None),
            ("100.64.0.1", Some(Reason::PrivateAddress)),
            ("100.100.100.200", Some(Reason::MetadataAddress)),
            ("100.128.0.0", None),
            ("127.0.0.1", Some(Reason::LoopbackAddress)),
            ("127.255.255.254", Some(Reason::LoopbackAddress)),
            ("168.63.129.16", Some(Reason::MetadataAddress)),
            ("169.254.0.1", Some(Reason::LinkLocalAddress)),
            ("169.254.169.254", Some(Reason::MetadataAddress)),
            ("172.15.255.255", None),
            ("172.31.255.255", Some(Reason::PrivateAddress)),
            ("192.0.0.8", Some(Reason::ReservedAddress)),
            ("192.0.2.1", Some(Reason::ReservedAddress)),
            ("192.88.99.1", Some(Reason::ReservedAddress)),
            ("192.168.0.1", Some(Reason::PrivateAddress)),
            ("198.19.255.255", Some(Reason::ReservedAddress)),
            ("198.51.100.7", Some(Reason::ReservedAddress)),
            ("203.0.113.9", Some(Reason::ReservedAddress)),
            ("224.0.0.1", Some(Reason::MulticastAddress)),
            ("240.0.0.1", Some(Reason::ReservedAddress)),
            ("255.255.255.255", Some(Reason::ReservedAddress)),
            ("8.8.8.8", None),
            ("::", Some(Reason::LoopbackAddress)),
            ("::1", Some(Reason::LoopbackAddress)),
            ("::7f00:1", Some(Reason::EmbeddedAddress)),
            ("::ffff:8.8.8.8", Some(Reason::EmbeddedAddress)),
            ("::ffff:0:127.0.0.1", Some(Reason::EmbeddedAddress)),
            ("64:ff9b::7f00:1", Some(Reason::EmbeddedAddress)),
            ("64:ff9b:1::1", Some(Reason::EmbeddedAddress)),
            ("100::1", Some(Reason::ReservedAddress)),
            ("2001::1", Some(Reason::EmbeddedAddress)),
            ("2001:2::1", Some(Reason::ReservedAddress)),
            ("2001:db8::1", Some(Reason::ReservedAddress)),
            ("2002:7f00:1::", Some(Reason::EmbeddedAddress)),
            ("2606:4700::5efe:7f00:1", Some(Reason::EmbeddedAddress)),
            ("2606:4700::1111", None),
            ("3fff::1", Some(Reason::ReservedAddress)),
            ("4000::1", Some(Reason::ReservedAddress)),
            ("fc00::1", Some(Reason::PrivateAddress)),
            ("fd00:ec2::254", Some(Reason::MetadataAddress)),
            ("fe80::1", Some(Reason::LinkLocalAddress)),
            ("fec0::1", Some(Reason::PrivateAddress)),
            ("ff02::1", Some(Reason::MulticastAddress)),
        ] {
            assert_eq!(check(address.parse().unwrap(), &[]).err(), reason, "{address}");
        }
    }

    #[test]
    fn an_operators_network_is_open_and_its_neighbour_is_not() {
        let networks: Vec<Network> =
            ["10.1.0.0/16", "fd00::/16", "169.254.0.0/16", "203.0.113.7/32"].map(|text| text.parse().unwrap()).to_vec();
        for (address, open) in [
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("fd00:1::1", true),
            ("fd01::1", false),
            ("169.254.1.1", true),
            ("169.254.169.254", false),
            ("fd00:ec2::254", false),
            ("203.0.113.7", true),
            ("203.0.113.8", false),
            ("::ffff:10.1.0.1", false),
        ] {
            assert_eq!(check(address.parse().unwrap(), &networks).is_ok(), open, "{address}");
        }
        let exact: Network = "169.254.169.254/32".parse().unwrap();
        assert!(check("169.254.169.254".parse().unwrap(), &[exact]).is_ok());
        for wrong in ["", "10.0.0.0", "0.0.0.0/0", "10.0.0.0/33", "10.0.0.0/+8", "::/0", "::ffff:0:0/8", "a/8"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong:?}");
        }
    }
}
