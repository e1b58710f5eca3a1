//! Where a node is reached: `host:port` or `[v6]:port`, checked before it is stored, so that nobody who
//! dials one has to guess what it means.

use crate::volume_spec::shorten;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest address: a host name of 253 bytes, a colon and a port.
pub const ADDRESS_MAX_BYTES: usize = 259;

/// A text that is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an address: give HOST:PORT or [IPV6]:PORT with a port from 1 to 65535")]
pub struct BadAddress(String);

/// Splits `host:port` or `[v6]:port` into host (without brackets) and port. A host is an address of
/// version 4, or a name of dot-separated labels of letters, digits, '-' and '_'.
pub fn parse_address(text: &str) -> Result<(&str, u16), BadAddress> {
    let bad = || BadAddress(shorten(text));
    if text.len() > ADDRESS_MAX_BYTES {
        return Err(bad());
    }
    let (host, port, is_host) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once("]:").ok_or_else(bad)?;
            (host, port, host.parse::<Ipv6Addr>().is_ok())
        }
        None => {
            let (host, port) = text.split_once(':').ok_or_else(bad)?;
            (host, port, is_host_name(host))
        }
    };
    match parse_port(port) {
        Some(port) if is_host => Ok((host, port)),
        _ => Err(bad()),
    }
}

/// A port in the one form that it has: digits without sign and leading zeros, from 1.
fn parse_port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| is_plain)
}

fn is_host_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // What looks like numbers only is an address of version 4 or nothing: '1.2.3' would be read by the
    // system's resolver as 1.2.0.3.
    let is_numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match is_numeric {
        true => host.parse::<Ipv4Addr>().is_ok(),
        false => host.len() <= 253 && host.split('.').all(is_label),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_both_kinds_of_ip_addresses_are_read() {
        assert_eq!(parse_address("node-1:24180").unwrap(), ("node-1", 24180));
        assert_eq!(parse_address("a.example_x:1").unwrap(), ("a.example_x", 1));
        assert_eq!(parse_address("10.0.0.7:65535").unwrap(), ("10.0.0.7", 65535));
        assert_eq!(parse_address("[::1]:24180").unwrap(), ("::1", 24180));
        assert_eq!(parse_address("[fd00::a:1]:9").unwrap(), ("fd00::a:1", 9));
        assert!(parse_address(&format!("{}.{}:24180", "a".repeat(63), "b".repeat(63))).is_ok());
    }

    #[test]
    fn what_could_be_misread_is_no_address() {
        let long = format!("{}:1", "a".repeat(64));
        let longer = format!("{}x:24180", "abc.".repeat(70));
        for bad in [
            "",
            ":",
            "a",
            "a:",
            ":1",
            "a:0",
            "a:65536",
            "a:+1",
            "a:01",
            "a:1 ",
            " a:1",
            "a b:1",
            "a\n:1",
            "::1:24180",
            "[::1]",
            "[::1]:",
            "[a]:1",
            "[1.2.3.4]:1",
            "[::1]x:1",
            "1.2.3:1",
            "1.2.3.4.5:1",
            "256.0.0.1:1",
            "-a:1",
            "a-:1",
            "a..b:1",
            "a.:1",
            "ä:1",
            "a/b:1",
            "[fe80::1%eth0]:1",
            &long,
            &longer,
        ] {
            let error = parse_address(bad).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
