//! `rm`, `cleanup`, `check`.

use super::{Outcome, Session};
use crate::cli::args;
use crate::cli::exit::Code;
use crate::cli::output::{Answer, bytes, printable};
use crate::cli::report;
use crate::snapshotter::{CheckReport, CleanupReport, Repair};
use crate::store::{Finding, Severity};
use serde::Serialize;

/// Snapshots that are gone.
#[derive(Serialize)]
struct Removed {
    removed: Vec<String>,
}

impl Answer for Removed {
    fn text(&self) -> String {
        String::new()
    }
}

pub(super) fn rm(session: &Session, args: args::Keys) -> Outcome {
    let snapshotter = session.open()?;
    let mut code = Code::DONE;
    let mut removed = Vec::new();
    for key in args.keys {
        match snapshotter.remove(&key) {
            Ok(()) => removed.push(key),
            Err(error) => code = code.or(report(&error)),
        }
    }
    Session::close(&snapshotter);
    session.print(&Removed { removed })?;
    Ok(code)
}

/// What a cleanup did.
#[derive(Serialize)]
struct Cleaned {
    deleted: usize,
    dropped_rows: usize,
    deleted_blobs: usize,
    deleted_ingests: usize,
    freed_content_bytes: u64,
    failed: Vec<Left>,
}

/// Garbage that could not be deleted.
#[derive(Serialize)]
struct Left {
    path: String,
    reason: String,
}

impl Answer for Cleaned {
    fn text(&self) -> String {
        let mut text = format!("{} deleted", count(self.deleted, "directory", "directories"));
        if self.dropped_rows > 0 {
            text += &format!(", {} dropped", count(self.dropped_rows, "row", "rows"));
        }
        if self.deleted_blobs + self.deleted_ingests > 0 {
            let blobs = count(self.deleted_blobs, "blob", "blobs");
            text += &format!(", {blobs} and {} unfinished deleted", self.deleted_ingests);
            text += &format!(" ({})", bytes(self.freed_content_bytes));
        }
        text.push('\n');
        for left in &self.failed {
            text += &format!(
                "{}: left for the next cleanup: {}\n",
                printable(&left.path),
                printable(&left.reason)
            );
        }
        text
    }
}

pub(super) fn cleanup(session: &Session) -> Outcome {
    let snapshotter = session.open()?;
    let report = snapshotter.cleanup()?;
    Session::close(&snapshotter);
    let CleanupReport { deleted, failed, dropped_rows, deleted_blobs, deleted_ingests, freed_content_bytes } =
        report;
    let left = failed.into_iter().map(|(path, reason)| Left { path: path.display().to_string(), reason });
    let failed = left.collect();
    session.print(&Cleaned {
        deleted,
        dropped_rows,
        deleted_blobs,
        deleted_ingests,
        freed_content_bytes,
        failed,
    })
}

/// What a check found.
#[derive(Serialize)]
struct Checked {
    findings: Vec<Found>,
    repaired: usize,
}

/// One contradiction.
#[derive(Serialize)]
struct Found {
    what: String,
    severity: &'static str,
    repairable: bool,
}

impl Answer for Checked {
    fn text(&self) -> String {
        let mut text = String::new();
        for found in &self.findings {
            text += &format!("{}: {}\n", found.severity, printable(&found.what));
        }
        let repairable = self.findings.iter().filter(|found| found.repairable).count();
        match (self.findings.len(), self.repaired) {
            (0, _) => text += "nothing is wrong\n",
            (found, 0) if repairable > 0 => {
                let found = count(found, "finding", "findings");
                text += &format!("{found}, of which `plywood check --repair` can mend {repairable}\n");
            }
            (found, repaired) => {
                text += &format!("{}, {repaired} repaired\n", count(found, "finding", "findings"));
            }
        }
        if self.findings.iter().any(|found| found.severity == "garbage" && !found.repairable) {
            text += "`plywood cleanup` deletes what nobody owns\n";
        }
        text
    }
}

fn severity(finding: &Finding) -> &'static str {
    match finding.severity() {
        Severity::Garbage => "garbage",
        Severity::Damage => "damage",
        Severity::Loss => "loss",
    }
}

pub(super) fn check(session: &Session, args: &args::Check) -> Outcome {
    let snapshotter = session.open()?;
    let repair = if args.repair { Repair::Yes } else { Repair::No };
    let CheckReport { findings, repaired, .. } = snapshotter.check(repair)?;
    Session::close(&snapshotter);
    let code = code_of(&findings, repair);
    let findings = findings.iter().map(|finding| Found {
        what: finding.to_string(),
        severity: severity(finding),
        repairable: finding.is_repairable(),
    });
    session.print(&Checked { findings: findings.collect(), repaired })?;
    Ok(code)
}

/// Garbage is no contradiction: the next cleanup takes it.
fn code_of(findings: &[Finding], repair: Repair) -> Code {
    let stays = |finding: &&Finding| repair == Repair::No || !finding.is_repairable();
    let wrong = findings.iter().filter(stays).any(|finding| finding.severity() > Severity::Garbage);
    if wrong { Code::CORRUPT } else { Code::DONE }
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
