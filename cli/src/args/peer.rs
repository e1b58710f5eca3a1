//! `brickctl peer` as typed.

use clap::Subcommand;
use std::time::Duration;

/// `brickctl peer ...`
#[derive(Subcommand, Debug)]
pub enum PeerCommand {
    /// Make a token that lets one node join; it is a secret
    Token {
        /// How long it is good: 90s, 15m, 1h, 2d
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = parse_duration)]
        valid: Duration,
    },
    /// Let this node join the cluster of a token
    Join {
        /// A node of that cluster, HOST or HOST:PORT [default: the addresses in the token]
        host: Option<String>,
        /// The token; '-' reads it from standard input, where other users cannot see it
        #[arg(long, value_name = "TOKEN")]
        token: String,
    },
    /// List the nodes
    List,
    /// Take a node without bricks out of the cluster; it comes back as a new node alone, with its state directory emptied and a new token
    Remove {
        /// The node's name
        node: String,
    },
}

/// `90s`, `15m`, `1h`, `2d`; a number alone is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time: give a number with s, m, h or d, such as 15m");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_s: u64 = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(wrong()),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let count: u64 = digits.parse().ok().filter(|_| is_number).ok_or_else(wrong)?;
    match count.checked_mul(unit_s) {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_number_and_a_unit() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172_800), ("7", 7)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "h", "0s", "1w", "-1s", "1.5h", "1 h", "+1h", "99999999999999999999d", "300000000000000000d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
