//! Whether a host named in `HOST1,HOST2:/VOLUME` is this machine. `brickd` listens on its Unix socket alone, so a volume
//! of another machine must not be taken for one of this machine that happens to have its name.

use std::net::{ToSocketAddrs as _, UdpSocket};

/// Whether a host is this machine.
pub fn is_this_machine(host: &str) -> bool {
    let is_own_name = |own: &str| own.eq_ignore_ascii_case(host);
    is_own_name("localhost")
        || rustix::system::uname().nodename().to_str().is_ok_and(is_own_name)
        || has_own_address(host)
}

/// Whether a name or number leads to an address of this machine: only to such a one can a socket be bound.
fn has_own_address(host: &str) -> bool {
    let number = host.trim_start_matches('[').trim_end_matches(']');
    let Ok(addresses) = (number, 0).to_socket_addrs() else { return false };
    addresses.into_iter().any(|address| !address.ip().is_unspecified() && UdpSocket::bind(address).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_its_names_and_addresses() {
        let own = rustix::system::uname().nodename().to_str().unwrap().to_owned();
        for host in ["localhost", "127.0.0.1", "127.9.9.9", own.as_str()] {
            assert!(is_this_machine(host), "{host}");
        }
        // 192.0.2.0/24 and .invalid belong to nobody (RFC 5737, RFC 2606).
        for host in ["192.0.2.1", "nobody.invalid", "", "0.0.0.0", "a b"] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
