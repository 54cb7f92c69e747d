//! How a snapshotter is opened, and which backend it gets.

use crate::backend::open::{BackendSettings, open, open_working, try_all};
use crate::backend::{Backend, BackendName};
use crate::content::ContentStore;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::mounting::MountSettings;
use crate::store::{Store, StoreSettings};
use crate::types::Realm;
use std::path::PathBuf;
use std::sync::Arc;

/// Which backend is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendChoice {
    /// That of the store; for a new store the best that works here.
    Auto,
    /// This one.
    Named(BackendName),
}

/// When the directory of a removed snapshot goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Before the call returns.
    Sync,
    /// In the background.
    Async,
}

/// How a snapshotter is opened.
#[derive(Debug, Clone)]
pub struct SnapshotterSettings {
    /// The root directory of the store.
    pub root: PathBuf,
    /// Whose snapshots are seen and removed.
    pub realm: Realm,
    /// Which backend is wanted.
    pub backend: BackendChoice,
    /// When the directories of removed snapshots go.
    pub removal: Removal,
    /// Refuse views of nothing.
    pub views_require_parent: bool,
    /// Settings of the database.
    pub store: StoreSettings,
    /// Settings of the backends.
    pub backends: BackendSettings,
    /// How snapshots are mounted for people.
    pub mounting: MountSettings,
    /// Where blobs are; without one in an OCI image layout of the store's own.
    pub content: Option<Arc<dyn ContentStore>>,
}

impl SnapshotterSettings {
    /// The usual settings for the store below `root`, in the realm of the command line.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            realm: Realm::cli(),
            backend: BackendChoice::Auto,
            removal: Removal::Async,
            views_require_parent: false,
            store: StoreSettings::default(),
            backends: BackendSettings::default(),
            mounting: MountSettings::new(&PathBuf::new()),
            content: None,
        }
    }
}

/// The backend of a store: what it recorded, if the wanted one can read that; else the wanted one, recorded now.
pub(super) fn choose_backend(
    store: &Store,
    layout: &Layout,
    settings: &SnapshotterSettings,
) -> Result<Arc<dyn Backend>> {
    let recorded = store.read("open store", |rows| rows.backend())?;
    let recorded = recorded.map(|name| known(layout, &name)).transpose()?;
    let wanted = match (settings.backend, recorded) {
        (BackendChoice::Auto, Some(recorded)) => recorded,
        (BackendChoice::Auto, None) => best(layout, settings)?,
        (BackendChoice::Named(wanted), _) => wanted,
    };
    if let Some(recorded) = recorded {
        check_readable(layout, recorded, wanted)?;
    }
    // Recorded for good. Directories of the others can be made anywhere, subvolumes cannot.
    let backend = match (wanted, recorded) {
        (BackendName::Btrfs, None) => open_working(wanted, layout, &settings.backends)?,
        _ => open(wanted, layout, &settings.backends)?,
    };
    if recorded.is_none() {
        // Somebody else may have been quicker.
        store.write("open store", |rows| match rows.backend()? {
            Some(name) => check_readable(layout, known(layout, &name)?, wanted),
            None => rows.record_backend(wanted.as_str()),
        })?;
    }
    Ok(backend)
}

fn known(layout: &Layout, name: &str) -> Result<BackendName> {
    BackendName::named(name).ok_or_else(|| {
        let cause = format!("it was made by the backend {name:?}, which this version does not know");
        Error::new(ErrorKind::FailedPrecondition, "open store", layout.root().display().to_string(), cause)
    })
}

fn check_readable(layout: &Layout, recorded: BackendName, wanted: BackendName) -> Result<()> {
    if recorded.shares_directories_with(wanted) {
        return Ok(());
    }
    let cause = format!(
        "its snapshots were made by the backend {recorded}, which {wanted} cannot read: \
         use --backend {recorded}, or another --root for {wanted}"
    );
    Err(Error::new(ErrorKind::FailedPrecondition, "open store", layout.root().display().to_string(), cause))
}

fn best(layout: &Layout, settings: &SnapshotterSettings) -> Result<BackendName> {
    let trials = try_all(layout, &settings.backends);
    for trial in &trials {
        if trial.works {
            tracing::info!(backend = %trial.backend, "chosen for the new store");
            return Ok(trial.backend);
        }
        tracing::info!(backend = %trial.backend, why = trial.why, "not taken");
    }
    let reasons: Vec<String> = trials.iter().map(|t| format!("{}: {}", t.backend, t.why)).collect();
    let subject = layout.root().display().to_string();
    Err(Error::new(ErrorKind::Unsupported, "choose backend", subject, reasons.join("; ")))
}
