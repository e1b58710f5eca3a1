//! What a volume can be: its name, its type and its options. The one table of options holds key, kind,
//! default and help; whoever needs an option's value asks here, so a default exists once.

use std::collections::BTreeMap;

/// Longest volume name.
pub const VOLUME_NAME_MAX_CHARS: usize = 64;
/// Most bricks in a volume.
pub const VOLUME_BRICKS_MAX: usize = 64;
/// Longest `comment`.
pub const COMMENT_MAX_BYTES: usize = 256;
/// Largest `reserve`.
pub const RESERVE_MAX_PERCENT: u8 = 50;

/// What the values of an option look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionKind {
    /// Free text of at most this many bytes, without control characters.
    Text(usize),
    /// `on` or `off`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole percentage from 0 to this, written with or without `%`.
    Percent(u8),
}

/// One volume option.
#[derive(Debug)]
pub struct OptionSpec {
    /// Its name.
    pub key: &'static str,
    /// The values it takes.
    pub kind: OptionKind,
    /// The value where none was set.
    pub default: &'static str,
    /// One line for people.
    pub help: &'static str,
}

/// Every option, in alphabetical order.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        key: "atime",
        kind: OptionKind::Choice(&["relatime", "noatime", "strict"]),
        default: "relatime",
        help: "when a read changes a file's access time",
    },
    OptionSpec {
        key: "comment",
        kind: OptionKind::Text(COMMENT_MAX_BYTES),
        default: "",
        help: "free text shown by 'volume info'",
    },
    OptionSpec {
        key: "read-only",
        kind: OptionKind::Switch,
        default: "off",
        help: "refuse every change of the volume's contents (EROFS)",
    },
    OptionSpec {
        key: "reserve",
        kind: OptionKind::Percent(RESERVE_MAX_PERCENT),
        default: "1%",
        help: "share of each brick's file system that new data must leave free",
    },
];

/// When reading a file changes its access time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Atime {
    /// When it is older than the last change, or than a day.
    Relatime,
    /// Never.
    Noatime,
    /// At every read.
    Strict,
}

/// An option or a value that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOption {
    /// No option has this name.
    #[error("there is no volume option '{0}'; the options are {known}", known = known_keys())]
    UnknownKey(String),
    /// The option does not take this value.
    #[error("option '{key}' does not take '{value}': give {wanted}")]
    BadValue {
        /// The option.
        key: &'static str,
        /// What was given, shortened.
        value: String,
        /// What it takes.
        wanted: String,
    },
}

fn known_keys() -> String {
    OPTIONS.iter().map(|option| option.key).collect::<Vec<_>>().join(", ")
}

impl OptionKind {
    /// What a value must look like, for people.
    pub fn describe(&self) -> String {
        match self {
            OptionKind::Text(max) => format!("text of at most {max} bytes without control characters"),
            OptionKind::Switch => "on or off".to_owned(),
            OptionKind::Choice(words) => format!("one of {}", words.join(", ")),
            OptionKind::Percent(max) => format!("a whole percentage from 0% to {max}%"),
        }
    }

    /// The value in its stored form, or `None` if it is not one.
    fn normalise(&self, value: &str) -> Option<String> {
        match self {
            OptionKind::Text(max) => {
                (value.len() <= *max && !value.chars().any(char::is_control)).then(|| value.to_owned())
            }
            OptionKind::Switch => match value {
                "on" | "yes" | "true" | "1" => Some("on".to_owned()),
                "off" | "no" | "false" | "0" => Some("off".to_owned()),
                _ => None,
            },
            OptionKind::Choice(words) => words.contains(&value).then(|| value.to_owned()),
            OptionKind::Percent(max) => parse_percent(value, *max).map(|percent| format!("{percent}%")),
        }
    }
}

fn parse_percent(value: &str, max: u8) -> Option<u8> {
    let digits = value.strip_suffix('%').unwrap_or(value);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|percent| *percent <= max)
}

/// The option of this name.
pub fn find_option(key: &str) -> Result<&'static OptionSpec, BadOption> {
    OPTIONS.iter().find(|option| option.key == key).ok_or_else(|| BadOption::UnknownKey(shorten(key)))
}

/// Checks a value for an option and gives the form to store.
pub fn check_option(key: &str, value: &str) -> Result<String, BadOption> {
    let option = find_option(key)?;
    option.kind.normalise(value).ok_or_else(|| BadOption::BadValue {
        key: option.key,
        value: shorten(value),
        wanted: option.kind.describe(),
    })
}

/// The value in force: the one that was set, else the default.
pub fn option_value<'a>(options: &'a BTreeMap<String, String>, key: &str) -> Result<&'a str, BadOption> {
    let option = find_option(key)?;
    Ok(options.get(key).map_or(option.default, String::as_str))
}

/// Whether the volume refuses changes.
pub fn is_read_only(options: &BTreeMap<String, String>) -> bool {
    options.get("read-only").is_some_and(|value| value == "on")
}

/// When reads change access times.
pub fn atime_of(options: &BTreeMap<String, String>) -> Atime {
    match options.get("atime").map(String::as_str) {
        Some("noatime") => Atime::Noatime,
        Some("strict") => Atime::Strict,
        _ => Atime::Relatime,
    }
}

/// The share of a brick's file system, in percent, that new data must leave free.
pub fn reserve_percent(options: &BTreeMap<String, String>) -> u8 {
    options.get("reserve").and_then(|value| parse_percent(value, RESERVE_MAX_PERCENT)).unwrap_or(1)
}

/// Whether a text can name a volume: 1 to 64 of `A-Z a-z 0-9 _ -`, not starting with a dash.
pub fn is_volume_name(name: &str) -> bool {
    (1..=VOLUME_NAME_MAX_CHARS).contains(&name.len())
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Whether a text can name a node: 1 to 253 of `A-Z a-z 0-9 . _ -`, not starting with a dash or dot.
pub fn is_node_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && !name.starts_with(['-', '.'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// The type that `volume info` prints for `bricks` = D x `stripe` x `replica`.
pub fn type_name(bricks: usize, replica: u16, stripe: u16) -> &'static str {
    let groups = bricks / usize::from(replica.max(1)) / usize::from(stripe.max(1));
    match (groups > 1, stripe > 1, replica > 1) {
        (_, false, false) => "Distribute",
        (false, true, false) => "Stripe",
        (false, false, true) => "Replicate",
        (false, true, true) => "Striped-Replicate",
        (true, true, false) => "Distributed-Stripe",
        (true, false, true) => "Distributed-Replicate",
        (true, true, true) => "Distributed-Striped-Replicate",
    }
}

/// At most 40 characters of a text that somebody typed, safe to print on one line.
pub fn shorten(text: &str) -> String {
    let safe = |c: char| if c.is_control() { '?' } else { c };
    let mut short: String = text.chars().take(40).map(safe).collect();
    if text.chars().count() > 40 {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_of_its_option_in_stored_form() {
        for option in OPTIONS {
            assert_eq!(check_option(option.key, option.default).unwrap(), option.default, "{}", option.key);
        }
        assert!(OPTIONS.is_sorted_by_key(|option| option.key));
        let none = BTreeMap::new();
        assert_eq!(format!("{}%", reserve_percent(&none)), option_value(&none, "reserve").unwrap());
        assert_eq!(atime_of(&none), Atime::Relatime);
        assert!(!is_read_only(&none));
    }

    #[test]
    fn values_are_checked_and_written_in_one_form() {
        assert_eq!(check_option("reserve", "50").unwrap(), "50%");
        for bad in ["51", "-1", "", "%", "+3", "1.5%", "300%"] {
            assert!(check_option("reserve", bad).is_err(), "{bad}");
        }
        assert_eq!(check_option("read-only", "yes").unwrap(), "on");
        assert!(check_option("read-only", "ON").is_err());
        assert!(check_option("atime", "sometimes").is_err());
        assert!(check_option("comment", &"x".repeat(257)).is_err());
        assert!(check_option("comment", "two\nlines").is_err());
        let unknown = check_option("colour", "red").unwrap_err().to_string();
        assert!(unknown.contains("'colour'") && unknown.contains("read-only"), "{unknown}");
    }

    #[test]
    fn names_are_short_and_plain() {
        assert!(is_volume_name("a") && is_volume_name(&"v".repeat(64)) && is_volume_name("Data_1-x"));
        for bad in ["", "a b", "a/b", "-a", "..", "ä", "a\n", &"v".repeat(65)] {
            assert!(!is_volume_name(bad), "{bad:?}");
        }
        assert!(is_node_name("node-1") && is_node_name("a.example") && !is_node_name("a:b") && !is_node_name(""));
    }

    #[test]
    fn types_are_named_by_the_one_formula() {
        let expected = [
            (4, 1, 1, "Distribute"),
            (1, 1, 1, "Distribute"),
            (3, 1, 3, "Stripe"),
            (2, 2, 1, "Replicate"),
            (4, 2, 2, "Striped-Replicate"),
            (4, 1, 2, "Distributed-Stripe"),
            (4, 2, 1, "Distributed-Replicate"),
            (8, 2, 2, "Distributed-Striped-Replicate"),
        ];
        for (bricks, replica, stripe, name) in expected {
            assert_eq!(type_name(bricks, replica, stripe), name);
        }
    }
}
