//! Gene sets to train on: those that a table to measure on does not hold.
//!
//! ```sh
//! cargo run --release --example gene_sets -- go_bp_genesets_direct.jsonl GO_terms.csv data/gene_sets.jsonl
//! ```
//!
//! The first file has a JSON object a line with `id` and `genes`; the second is a table whose first column holds ids. Sets of
//! fewer than three genes are left out too: they name no process. Rows are copied as they are.
#![expect(clippy::print_stderr, reason = "a program that speaks to people")]

use std::collections::HashSet;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

const FEWEST_GENES: usize = 3;

fn convert(sets: &str, table: &str, out: &str) -> Result<(), Box<dyn Error>> {
    let table = std::fs::read_to_string(table)?;
    let held_out: HashSet<&str> = table.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
    let (mut kept, mut rows, mut measured, mut small) = (Vec::new(), 0, 0, 0);
    for (number, line) in std::fs::read_to_string(sets)?.lines().enumerate() {
        let row: serde_json::Value =
            serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))?;
        let genes = row["genes"].as_array().map_or(0, Vec::len);
        if row["id"].as_str().is_some_and(|id| held_out.contains(id)) {
            measured += 1;
        } else if genes < FEWEST_GENES {
            small += 1;
        } else {
            writeln!(kept, "{line}")?;
            rows += 1;
        }
    }
    std::fs::write(out, &kept)?;
    eprintln!("{out}: {rows} sets; left out: {measured} to measure on, {small} of fewer than {FEWEST_GENES} genes");
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [sets, table, out] = &arguments[..] else {
        eprintln!("usage: gene_sets SETS.jsonl TABLE.csv OUT.jsonl");
        return ExitCode::from(2);
    };
    match convert(sets, table, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
