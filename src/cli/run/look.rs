//! `stat`, `ls`, `tree`, `usage`, `label`, `backends`.

use super::{Outcome, Session, labels};
use crate::backend::BackendName;
use crate::backend::open::{Trial, try_all};
use crate::cli::args;
use crate::cli::exit::Code;
use crate::cli::output::{Align, Answer, Table, ago, bytes, fields, printable};
use crate::cli::report;
use crate::cli::tree::{Line, draw};
use crate::error::ErrorKind;
use crate::filter::Filters;
use crate::layout::Layout;
use crate::store::Store;
use crate::types::{Info, Timestamp, Usage};
use serde::Serialize;

/// What is known of a snapshot.
#[derive(Serialize)]
#[serde(transparent)]
struct Known(Info);

impl Answer for Known {
    fn text(&self) -> String {
        let Info { name, parent, kind, created, updated, labels } = &self.0;
        let mut text = fields(&[
            ("name", name.clone()),
            ("parent", parent.clone()),
            ("kind", kind.as_str().to_owned()),
            ("created", created.to_string()),
            ("updated", updated.to_string()),
        ]);
        if !labels.is_empty() {
            text += "labels:\n";
            for (key, value) in labels {
                text += &format!("  {}={}\n", printable(key), printable(value));
            }
        }
        text
    }
}

pub(super) fn stat(session: &Session, args: &args::Key) -> Outcome {
    let snapshotter = session.open()?;
    let info = snapshotter.stat(&args.key)?;
    Session::close(&snapshotter);
    session.print(&Known(info))
}

/// Snapshots, one a line.
#[derive(Serialize)]
#[serde(transparent)]
struct Listed {
    infos: Vec<Info>,
    #[serde(skip)]
    now: Timestamp,
    #[serde(skip)]
    names_only: bool,
}

impl Answer for Listed {
    fn text(&self) -> String {
        if self.names_only {
            return self.infos.iter().map(|info| printable(&info.name) + "\n").collect();
        }
        let columns = ["KEY", "PARENT", "KIND", "CREATED"].map(|name| (name, Align::Left));
        let mut table = Table::new(&columns);
        for Info { name, parent, kind, created, .. } in &self.infos {
            table.row([name.clone(), parent.clone(), kind.as_str().to_owned(), ago(*created, self.now)]);
        }
        table.text()
    }
}

pub(super) fn ls(session: &Session, args: &args::Ls) -> Outcome {
    let filters = Filters::parse_all(&args.filters)?;
    let snapshotter = session.open()?;
    let infos = snapshotter.list(&filters)?;
    Session::close(&snapshotter);
    session.print(&Listed { infos, now: Timestamp::now(), names_only: args.quiet })
}

/// The drawing.
#[derive(Serialize)]
#[serde(transparent)]
struct Drawn<'a> {
    lines: Vec<Line<'a>>,
}

impl Answer for Drawn<'_> {
    fn text(&self) -> String {
        let line =
            |line: &Line<'_>| format!("{}{} ({})\n", line.branch, printable(line.name), line.kind.as_str());
        self.lines.iter().map(line).collect()
    }
}

pub(super) fn tree(session: &Session) -> Outcome {
    let snapshotter = session.open()?;
    let infos = snapshotter.list(&Filters::everything())?;
    Session::close(&snapshotter);
    session.print(&Drawn { lines: draw(&infos) })
}

/// What snapshots occupy.
#[derive(Serialize)]
#[serde(transparent)]
struct Used {
    rows: Vec<UsedRow>,
    #[serde(skip)]
    exactly: bool,
}

#[derive(Serialize)]
struct UsedRow {
    key: String,
    #[serde(flatten)]
    usage: Usage,
}

impl Answer for Used {
    fn text(&self) -> String {
        let mut table = Table::new(&[("KEY", Align::Left), ("SIZE", Align::Right), ("INODES", Align::Right)]);
        for UsedRow { key, usage } in &self.rows {
            let size = if self.exactly { usage.size_bytes.to_string() } else { bytes(usage.size_bytes) };
            table.row([key.clone(), size, usage.inodes.to_string()]);
        }
        table.text()
    }
}

pub(super) fn usage(session: &Session, args: args::Usage) -> Outcome {
    let snapshotter = session.open()?;
    let (mut rows, mut code) = (Vec::new(), Code::DONE);
    let all = args.keys.is_empty();
    let keys = match all {
        true => snapshotter.list(&Filters::everything())?.into_iter().map(|info| info.name).collect(),
        false => args.keys,
    };
    for key in keys {
        match snapshotter.usage(&key, &()) {
            Ok(usage) => rows.push(UsedRow { key, usage }),
            // Removed since it was listed.
            Err(error) if all && error.kind() == ErrorKind::NotFound => {}
            Err(error) => code = code.or(report(&error)),
        }
    }
    Session::close(&snapshotter);
    session.print(&Used { rows, exactly: args.bytes })?;
    Ok(code)
}

pub(super) fn label(session: &Session, args: args::Label) -> Outcome {
    let labels = labels(args.labels);
    let paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
    let snapshotter = session.open()?;
    let info = snapshotter.update(&args.key, &labels, &paths)?;
    Session::close(&snapshotter);
    session.print(&Known(info))
}

/// The backends.
#[derive(Serialize)]
#[serde(transparent)]
struct Backends(Vec<BackendRow>);

#[derive(Serialize)]
struct BackendRow {
    backend: &'static str,
    works: bool,
    why: String,
    used: bool,
}

impl Answer for Backends {
    fn text(&self) -> String {
        let columns = ["BACKEND", "WORKS", "USED", "WHY"].map(|name| (name, Align::Left));
        let mut table = Table::new(&columns);
        let word = |truth| if truth { "yes" } else { "no" }.to_owned();
        for BackendRow { backend, works, why, used } in &self.0 {
            table.row([(*backend).to_owned(), word(*works), word(*used), why.clone()]);
        }
        table.text()
    }
}

pub(super) fn backends(session: &Session) -> Outcome {
    let settings = session.snapshotter_settings();
    let layout = Layout::create(&settings.root)?;
    // No snapshotter, which could not be opened where no backend works.
    let store = Store::open(&layout.db(), &settings.store)?;
    let recorded = store.read("backends", |rows| rows.backend())?;
    store.close()?;
    let trials = try_all(&layout, &settings.backends);
    session.print(&Backends(rows_of(trials, recorded.as_deref().and_then(BackendName::named))))
}

fn rows_of(trials: Vec<Trial>, used: Option<BackendName>) -> Vec<BackendRow> {
    let row = |trial: Trial| BackendRow {
        backend: trial.backend.as_str(),
        works: trial.works,
        why: trial.why,
        used: used == Some(trial.backend),
    };
    trials.into_iter().map(row).collect()
}
