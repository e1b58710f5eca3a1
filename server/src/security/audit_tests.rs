//! The audit log over real files, and with writers that hang or fail.

use super::*;
use serde_json::Value;
use std::sync::mpsc::channel;
use std::time::Duration;

fn entry(what: &str) -> Entry {
    let text = str::to_owned;
    Entry { who: text("an id"), role: "peer", from: text("[::1]:5"), what: text(what), result: text("ok") }
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_is_recorded_is_on_disk_when_the_log_is_closed() {
    let state = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let audit = Audit::open(state.path()).unwrap();
        (0..100).for_each(|n| audit.record(entry(&format!("{round} {n}"))));
        assert_eq!(audit.lost_count(), 0);
    }
    let path = state.path().join(FILE);
    let lines = lines(&path);
    assert_eq!(lines.len(), 200);
    assert_eq!(lines[101]["what"], "1 1");
    let text = fs::read_to_string(&path).unwrap();
    let keys = ["time", "who", "role", "from", "what", "result"].map(|key| text.find(&format!("\"{key}\":")).unwrap());
    assert!(keys.is_sorted(), "{text}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn no_text_breaks_a_line_or_makes_it_long() {
    let state = tempfile::tempdir().unwrap();
    let long = "ä".repeat(10_000);
    {
        let audit = Audit::open(state.path()).unwrap();
        audit.record(entry("a\n{\"who\":\"root\"}\r\0\"\\"));
        audit.record(Entry { who: long.clone(), ..entry(&long) });
    }
    let lines = lines(&state.path().join(FILE));
    assert_eq!((lines.len(), lines[0]["what"].as_str()), (2, Some("a\n{\"who\":\"root\"}\r\0\"\\")));
    assert_eq!(lines[1]["who"].as_str().unwrap().chars().count(), FIELD_MAX_CHARS + 3);
}

#[test]
fn files_are_rotated_and_the_oldest_goes() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join(FILE);
    let mut files = Files::open(&path, 100).unwrap();
    for n in 0..40u8 {
        files.write(format!("{n:029}\n").as_bytes()).unwrap();
    }
    let mut names: Vec<_> = fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3", "audit.log.4"]);
    let first = |name: &str| fs::read_to_string(state.path().join(name)).unwrap()[..29].parse::<u8>().unwrap();
    assert_eq!(names.iter().map(|name| first(name.to_str().unwrap())).collect::<Vec<_>>(), [39, 36, 33, 30, 27]);
    // A line that is longer than a file has one of its own.
    files.write(&[b'x'; 200]).unwrap();
    files.write(b"after\n").unwrap();
    assert_eq!(fs::metadata(files.numbered(1)).unwrap().len(), 200);
}

#[test]
fn a_line_that_a_crash_has_cut_is_ended_and_links_are_not_followed() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join(FILE);
    fs::write(&path, "{\"time\":").unwrap();
    Files::open(&path, 100).unwrap().write(b"next\n").unwrap();
    Files::open(&path, 100).unwrap().write(b"more\n").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"time\":\nnext\nmore\n");
    let link = state.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(Files::open(&link, 100).is_err() && Files::open(state.path(), 100).is_err());
}

#[test]
fn a_writer_that_hangs_stops_nobody_and_the_log_says_what_it_misses() {
    let (begun, has_begun) = channel();
    let (go_on, may_go_on) = channel::<()>();
    let (written, lines) = channel();
    let audit = Audit::start(2, move |line| {
        begun.send(()).unwrap();
        let _ = may_go_on.recv();
        line.map_or(Ok(()), |line| written.send(String::from_utf8(line.to_vec()).unwrap()).map_err(io::Error::other))
    });
    let audit = audit.unwrap();
    audit.record(entry("first"));
    has_begun.recv_timeout(Duration::from_secs(30)).unwrap();
    (0..10).for_each(|n| audit.record(entry(&format!("more {n}"))));
    assert_eq!(audit.lost_count(), 8);
    drop(go_on);
    drop(audit);
    let lines: Vec<String> = lines.try_iter().collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[2].contains("more 1") && lines[3].contains("8 lines are missing before this one"), "{lines:?}");
}

#[test]
fn lines_that_the_disk_refuses_are_counted_and_told_of_later() {
    let (written, lines) = channel();
    let mut calls = 0;
    let audit = Audit::start(100, move |line| {
        calls += 1;
        if calls <= 2 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        line.map_or(Ok(()), |line| written.send(String::from_utf8(line.to_vec()).unwrap()).map_err(io::Error::other))
    });
    let audit = audit.unwrap();
    audit.record(entry("refused"));
    // Its line and the one of the loss were refused: both calls are over once a later line is written.
    let mut all = Vec::new();
    while !all.iter().any(|line: &String| line.contains("missing")) {
        audit.record(entry("later"));
        all.extend(lines.recv_timeout(Duration::from_secs(30)));
        all.extend(lines.try_iter());
    }
    assert!((1..=2).contains(&audit.lost_count()));
    audit.record(entry("last"));
    drop(audit);
    assert!(lines.try_iter().any(|line| line.contains("last")));
}

#[test]
fn a_line_that_does_not_fit_on_the_disk_leaves_no_half_behind() {
    // Writing to it always fails: there is never room.
    let full = Path::new("/dev/full");
    assert!(Files::open(full, 100).is_err(), "a device is no log");
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join(FILE);
    let mut files = Files::open(&path, 1_000).unwrap();
    files.write(b"one\n").unwrap();
    files.file = Some(File::open(&path).unwrap());
    assert!(files.write(b"two\n").is_err(), "the descriptor is for reading");
    files.write(b"three\n").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\nthree\n");
}

#[test]
fn times_are_in_utc() {
    let at = |ms| timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
    assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
    assert_eq!(at(1_709_210_096_007), "2024-02-29T12:34:56.007Z");
}

#[test]
fn strangers_do_not_fill_the_log() {
    let state = tempfile::tempdir().unwrap();
    let audit = Audit::open(state.path()).unwrap();
    (0..10_000).for_each(|_| audit.record_stranger(entry("knock")));
    assert_eq!(audit.lost_count(), 0);
    let unsaid_count = audit.strangers.lock().unwrap().1;
    assert!(unsaid_count > 9_000);
    *audit.strangers.lock().unwrap() = (Allowance::new(1, 1, Instant::now()), 7);
    audit.record_stranger(entry("knock"));
    drop(audit);
    let lines = lines(&state.path().join(FILE));
    assert!(lines.len() < 1_000);
    assert_eq!(lines.last().unwrap()["result"], "ok (and 7 like it were not noted)");
}
