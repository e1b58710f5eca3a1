//! Printing: tables for people, JSON for scripts, questions before what cannot be taken back.

use crate::UsageError;
use crate::args::{Format, Global};
use serde::Serialize;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

/// Prints a value as JSON.
pub fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    write_out(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
pub fn write_out(text: &str) -> anyhow::Result<()> {
    write_to_reader(text).map(drop)
}

/// The same, for what goes on until nobody reads it: whether somebody does.
pub fn write_to_reader(text: &str) -> anyhow::Result<bool> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        result => Ok(result.map(|()| true)?),
    }
}

/// Prints that a change was made.
pub fn print_done(global: &Global, text: &str) -> anyhow::Result<()> {
    match global.output {
        Format::Json => print_json(&serde_json::json!({ "ok": true })),
        Format::Text => write_out(&format!("{text}\n")),
    }
}

/// Lines up the columns of a table; the first row is the heading.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width + 2 - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A size for people: `931.5 GiB`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} EiB")
}

/// Asks on the terminal. Without one, and without `-y`, it refuses.
pub fn confirm(global: &Global, question: &str) -> anyhow::Result<()> {
    if global.yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(UsageError(format!("{question} Standard input is no terminal to ask on: give -y")).into());
    }
    eprint!("{question} (y/N) ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        anyhow::bail!("nothing was done");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_tables_are_readable() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
        let rows = [vec!["A".to_owned(), "B".to_owned()], vec!["long".to_owned(), "x".to_owned()]];
        assert_eq!(table(&rows), "A     B\nlong  x\n");
    }

    #[test]
    fn nothing_is_asked_where_nobody_can_answer() {
        let yes = Global { yes: true, ..Global::default() };
        confirm(&yes, "Really?").unwrap();
    }
}
