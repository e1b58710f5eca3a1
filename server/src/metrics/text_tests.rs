//! A small reader of the format, and what the text says by it.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

/// Samples by name and labels, as a strict reader takes them: each family has its head, once, before its samples.
pub fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n') && text.is_ascii());
    let (mut samples, mut heads, mut family) = (BTreeMap::new(), BTreeSet::new(), "");
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(heads.insert(name) && !help.is_empty(), "{line}");
            let kind = lines.next().unwrap().strip_prefix("# TYPE ").unwrap().strip_prefix(name).unwrap();
            assert!([" gauge", " counter"].contains(&kind), "{kind}");
            assert_eq!(name.ends_with("_total"), kind == " counter", "{name}");
            family = name;
            continue;
        }
        let (key, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = key.split_once('{').unwrap_or((key, "}"));
        assert!(name == family && name.starts_with("brickfs_"), "{line}");
        assert!(name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase()), "{line}");
        check_labels(labels.strip_suffix('}').unwrap());
        assert!(samples.insert(key.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
    }
    samples
}

fn check_labels(labels: &str) {
    let mut rest = labels;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").unwrap();
        assert!(["volume", "set", "brick", "version"].contains(&name), "{labels}");
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().unwrap() {
                (_, '\\') => assert!(matches!(chars.next(), Some((_, '\\' | '"' | 'n'))), "{labels}"),
                (at, '"') => break at,
                _ => (),
            }
        };
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[test]
fn every_figure_is_in_a_text_that_parses() {
    let brick = |set: u16| BrickFigures {
        set,
        brick: format!("0000000{set}-0000-0000-0000-000000000000"),
        is_online: set == 0,
        total_bytes: u64::MAX,
        free_bytes: 7,
        damaged: 2,
        is_mending: true,
    };
    let bricks = vec![brick(0), brick(1)];
    let figures = Figures {
        process: ProcessFigures {
            version: "0.1.0".to_owned(),
            uptime_s: 1.25,
            resident_bytes: Some(1 << 20),
            descriptors: Some(12),
        },
        cluster: ClusterFigures {
            term: 3,
            is_leader: true,
            last_log: Some(9),
            certificate_left_s: -5,
            ..ClusterFigures::default()
        },
        volumes: vec![
            VolumeFigures { name: "demo".to_owned(), is_started: true, clients: 4, bricks },
            VolumeFigures { name: "a\"b\\c\nd".to_owned(), ..VolumeFigures::default() },
        ],
    };
    let samples = parse(&write_text(&figures));
    let of = |key: &str| samples.get(key).copied();
    assert_eq!(of("brickfs_build_info{version=\"0.1.0\"}"), Some(1.0));
    assert_eq!((of("brickfs_uptime_seconds"), of("brickfs_raft_is_leader")), (Some(1.25), Some(1.0)));
    assert_eq!((of("brickfs_raft_last_log_index"), of("brickfs_raft_applied_index")), (Some(9.0), None));
    assert_eq!(of("brickfs_certificate_left_seconds"), Some(-5.0));
    assert_eq!(of("brickfs_volume_clients{volume=\"demo\"}"), Some(4.0));
    assert_eq!(of("brickfs_volume_started{volume=\"a\\\"b\\\\c\\nd\"}"), Some(0.0));
    let id = "00000001-0000-0000-0000-000000000000";
    assert_eq!(of(&format!("brickfs_brick_online{{volume=\"demo\",set=\"1\",brick=\"{id}\"}}")), Some(0.0));
    assert_eq!(of(&format!("brickfs_brick_damaged{{volume=\"demo\",set=\"1\",brick=\"{id}\"}}")), Some(2.0));
    parse(&write_text(&Figures::default()));
}
