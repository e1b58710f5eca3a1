//! PEM, strictly: exactly the sections that are expected, in their order, in the one form that is written here.
//! Anything else is refused, so that no text has a second meaning.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Label of a certificate.
pub const CERTIFICATE: &str = "CERTIFICATE";
/// Label of a private key (PKCS #8).
pub const PRIVATE_KEY: &str = "PRIVATE KEY";
/// Label of a request for a certificate.
pub const REQUEST: &str = "CERTIFICATE REQUEST";

const LINE_CHARS: usize = 64;

/// A text that is not the PEM sections that were expected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("section {number} of the text is not one PEM '{label}' alone")]
pub struct BadPem {
    label: &'static str,
    number: usize,
}

/// One section, with the newline behind it.
pub fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(body.len() + body.len() / LINE_CHARS + 2 * label.len() + 40));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(LINE_CHARS));
        text.push_str(line);
        text.push('\n');
        rest = next;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// The contents of a text that has exactly these sections; its lines may end as on Windows.
pub fn decode<const N: usize>(text: &str, labels: [&'static str; N]) -> Result<[Zeroizing<Vec<u8>>; N], BadPem> {
    let text = Zeroizing::new(text.replace("\r\n", "\n"));
    let mut rest = text.trim_end();
    let mut sections = std::array::from_fn(|_| Zeroizing::new(Vec::new()));
    for (index, (section, label)) in sections.iter_mut().zip(labels).enumerate() {
        let bad = || BadPem { label, number: index + 1 };
        let end_line = format!("-----END {label}-----");
        let end = rest.find(&end_line).ok_or_else(bad)? + end_line.len();
        let (given, next) = rest.split_at(end);
        let body = given.strip_prefix(&format!("-----BEGIN {label}-----\n")).ok_or_else(bad)?;
        let body = body.strip_suffix(&end_line).ok_or_else(bad)?;
        let body = Zeroizing::new(body.replace('\n', ""));
        *section = Zeroizing::new(STANDARD.decode(body.as_bytes()).map_err(|_| bad())?);
        if encode(label, section).trim_end() != given {
            return Err(bad());
        }
        rest = next.strip_prefix('\n').unwrap_or(next);
    }
    if rest.is_empty() { Ok(sections) } else { Err(BadPem { label: "nothing", number: N + 1 }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_sections_and_other_forms_are_refused() {
        let (key, certificate) = (encode(PRIVATE_KEY, &[7; 100]), encode(CERTIFICATE, &[8; 48]));
        let both = format!("{}{}", *key, *certificate);
        let [one, two] = decode(&both, [PRIVATE_KEY, CERTIFICATE]).unwrap();
        assert_eq!((one.as_slice(), two.as_slice()), (&[7u8; 100][..], &[8u8; 48][..]));
        assert!(decode(&both.replace('\n', "\r\n"), [PRIVATE_KEY, CERTIFICATE]).is_ok());
        assert!(decode(&both, [CERTIFICATE, PRIVATE_KEY]).is_err());
        assert!(decode(&both, [PRIVATE_KEY]).is_err());
        assert!(decode(&key, [PRIVATE_KEY, CERTIFICATE]).is_err());
        assert!(decode(&format!("note\n{}", *key), [PRIVATE_KEY]).is_err());
        assert!(decode(&key.replacen('\n', "\n ", 1), [PRIVATE_KEY]).is_err());
        assert!(decode("", [PRIVATE_KEY]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(der in prop::collection::vec(any::<u8>(), 0..300)) {
            let [read] = decode(&encode(CERTIFICATE, &der), [CERTIFICATE]).unwrap();
            prop_assert_eq!(read.as_slice(), der.as_slice());
        }

        #[test]
        fn no_text_makes_it_panic(text in "(-----(BEGIN|END) CERTIFICATE-----\n?|[A-Za-z0-9+/=\n-]{0,20}|\\PC{0,5}){0,8}") {
            let _ = decode(&text, [CERTIFICATE]);
        }
    }
}
