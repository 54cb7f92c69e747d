//! How shall plywood work, and who said so?
//!
//! A setting comes from a flag, else from the variable `PLYWOOD_<KEY>`, else from the file, else it has a default.
//! Each setting is one row of [`KEYS`]: its name, what it means, and how its value is read; file, variables, flags
//! and the help text are made from the rows.
//!
//! The file is TOML, flat: `$PLYWOOD_CONFIG`, else `/etc/plywood/config.toml` for root, else
//! `$XDG_CONFIG_HOME/plywood/config.toml` (`~/.config`). It may be missing, unless it was named. A key that does not
//! exist is an error, in the file and in a flag; other `PLYWOOD_*` variables belong to somebody else.
//!
//! Reading the settings is a pure function of [`Surroundings`]; only [`Surroundings::here`] looks around.

use crate::backend::BackendName;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Durability;
use crate::sys::userns;
use crate::types::quoted;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The directory of the store; absolute.
    pub root: PathBuf,
    /// The backend; `None` takes that of the store, or for a new one the best that works.
    pub backend: Option<BackendName>,
    /// Directories of removed snapshots go before the answer, not in the background.
    pub sync_remove: bool,
    /// The content of a snapshot is written to the disk before it counts as committed.
    pub sync_on_commit: bool,
    /// What a power cut may take of the rows.
    pub durability: Durability,
    /// Address space of the database at first, in bytes; it grows.
    pub map_bytes: usize,
    /// How far it may grow, in bytes.
    pub max_map_bytes: usize,
    /// The store may be on a network file system, at the risk of its owner.
    pub allow_remote_fs: bool,
    /// A view without a parent is refused.
    pub views_require_parent: bool,
    /// More options for mounts of the kernel's overlayfs.
    pub overlay_options: Vec<String>,
    /// The program that mounts the layer stack: a name on the path, or a path.
    pub fuse_program: String,
    /// More options for it.
    pub fuse_options: Vec<String>,
    /// What is logged: `off`, `error`, `warn`, `info`, `debug`, `trace`, or more exactly as
    /// `tracing_subscriber::EnvFilter` takes it.
    pub log: String,
}

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file and for `--set`; in capitals after `PLYWOOD_` its variable.
    pub name: &'static str,
    /// What its values look like.
    pub values: &'static str,
    /// What it means, with the unit and the default.
    pub help: &'static str,
    read: fn(&mut Settings, &Given<'_>) -> std::result::Result<(), String>,
}

/// All keys, in the order of the help text.
pub const KEYS: &[Key] = &[
    Key {
        name: "root",
        values: "DIR",
        help: "directory of the store; default: $XDG_DATA_HOME/plywood (~/.local/share/plywood), for root \
               /var/lib/plywood",
        read: |s, v| v.path().map(|v| s.root = v),
    },
    Key {
        name: "backend",
        values: "auto|fuse|btrfs|overlay|native",
        help: "how snapshots are kept and mounted; default: auto, which keeps to what the store has, or takes the \
               first that works",
        read: |s, v| {
            s.backend = match v.text()? {
                "auto" => None,
                name => Some(BackendName::named(name).ok_or("must be auto, fuse, btrfs, overlay or native")?),
            };
            Ok(())
        },
    },
    Key {
        name: "sync_remove",
        values: "true|false",
        help: "free removed snapshots before the answer, not in the background; default: false",
        read: |s, v| v.truth().map(|v| s.sync_remove = v),
    },
    Key {
        name: "sync_on_commit",
        values: "true|false",
        help: "write content to the disk before a commit is answered; default: true",
        read: |s, v| v.truth().map(|v| s.sync_on_commit = v),
    },
    Key {
        name: "durability",
        values: "full|relaxed",
        help: "relaxed: a power cut may take the last changes of metadata, without damage; default: full",
        read: |s, v| {
            s.durability = match v.text()? {
                "full" => Durability::Full,
                "relaxed" => Durability::Relaxed,
                _ => return Err("must be full or relaxed".to_owned()),
            };
            Ok(())
        },
    },
    Key {
        name: "map_bytes",
        values: "BYTES",
        help: "address space of the database at first, like 67108864 or \"64MiB\"; it grows; default: 1GiB",
        read: |s, v| v.bytes().map(|v| s.map_bytes = v),
    },
    Key {
        name: "max_map_bytes",
        values: "BYTES",
        help: "how far the database may grow; default: 64GiB",
        read: |s, v| v.bytes().map(|v| s.max_map_bytes = v),
    },
    Key {
        name: "allow_remote_fs",
        values: "true|false",
        help: "let the store be on a network file system, where its locks may not hold; default: false",
        read: |s, v| v.truth().map(|v| s.allow_remote_fs = v),
    },
    Key {
        name: "views_require_parent",
        values: "true|false",
        help: "refuse views without a parent, which show nothing; default: false",
        read: |s, v| v.truth().map(|v| s.views_require_parent = v),
    },
    Key {
        name: "overlay_options",
        values: "OPTION,...",
        help: "more options for mounts of the overlay backend, a list in the file; default: none",
        read: |s, v| v.list().map(|v| s.overlay_options = v),
    },
    Key {
        name: "fuse_program",
        values: "PROGRAM",
        help: "what mounts for the fuse backend, a name on the path or a path; default: plywood-fuse",
        read: |s, v| {
            let program = v.text()?;
            if program.is_empty() {
                return Err("must not be empty".to_owned());
            }
            s.fuse_program = program.to_owned();
            Ok(())
        },
    },
    Key {
        name: "fuse_options",
        values: "OPTION,...",
        help: "more options for mounts of the fuse backend, a list in the file; default: none",
        read: |s, v| v.list().map(|v| s.fuse_options = v),
    },
    Key {
        name: "log",
        values: "off|error|warn|info|debug|trace",
        help: "what is logged to standard error; default: warn",
        read: |s, v| v.text().map(|v| s.log = v.to_owned()),
    },
];

/// What the settings depend on beside the file.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The variables of the process.
    pub variables: Vec<(OsString, OsString)>,
    /// Root, and of the machine, not of some user namespace.
    pub is_root: bool,
    /// The current directory, against which relative paths are read.
    pub current_dir: PathBuf,
}

impl Surroundings {
    /// Those of this process.
    pub fn here() -> Surroundings {
        let is_root = plywood_fuse::sys::process::effective_uid() == 0 && userns::in_initial_userns();
        Surroundings {
            variables: std::env::vars_os().collect(),
            is_root,
            // Without one a relative path fails later, by its name.
            current_dir: std::env::current_dir().unwrap_or_default(),
        }
    }

    /// A variable that is set and not empty.
    fn variable(&self, name: &str) -> Option<&OsString> {
        self.variables.iter().find(|(n, _)| n == name).map(|(_, value)| value).filter(|v| !v.is_empty())
    }

    /// A base directory of the user: `variable` if it is absolute, else `below` in the home directory.
    fn base(&self, variable: &str, below: &str) -> Option<PathBuf> {
        let absolute = |name| self.variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(below)))
    }

    /// Where the store is if nobody says so; `None` if nothing tells where this user keeps data.
    fn default_root(&self) -> Option<PathBuf> {
        if self.is_root {
            return Some(PathBuf::from("/var/lib/plywood"));
        }
        self.base("XDG_DATA_HOME", ".local/share").map(|base| base.join("plywood"))
    }

    /// The file, and whether it was named, so that it must be there.
    fn file(&self) -> Option<(PathBuf, Named)> {
        if let Some(path) = self.variable("PLYWOOD_CONFIG") {
            return Some((self.current_dir.join(path), Named::ByUser));
        }
        let base =
            if self.is_root { Some(PathBuf::from("/etc")) } else { self.base("XDG_CONFIG_HOME", ".config") };
        base.map(|base| (base.join("plywood/config.toml"), Named::ByDefault))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    ByUser,
    ByDefault,
}

/// The address space of the database at first: no memory, and no change of the map for a long time.
const MAP_BYTES: usize = 1 << 30;

/// How far it may grow: far above what any number of snapshots needs, and it fits a 47 bit address space.
const MAX_MAP_BYTES: usize = 64 << 30;

/// A database smaller than this cannot hold its own tables.
const MIN_MAP_BYTES: usize = 1 << 20;

impl Settings {
    /// The settings without any file, variable or flag, for a store in `root`.
    pub fn for_root(root: impl Into<PathBuf>) -> Settings {
        Settings {
            root: root.into(),
            backend: None,
            sync_remove: false,
            sync_on_commit: true,
            durability: Durability::Full,
            map_bytes: MAP_BYTES,
            max_map_bytes: MAX_MAP_BYTES,
            allow_remote_fs: false,
            views_require_parent: false,
            overlay_options: Vec::new(),
            fuse_program: "plywood-fuse".to_owned(),
            fuse_options: Vec::new(),
            log: "warn".to_owned(),
        }
    }

    /// The settings that count: `flags` are keys with their values, the last of a key wins.
    ///
    /// # Errors
    /// `InvalidArgument` naming the flag, the variable, or the file and the line, for a key that does not exist, a
    /// value that cannot be read, or if nothing says where the store is; those of reading the file.
    pub fn load(flags: &[(&str, OsString)], around: &Surroundings) -> Result<Settings> {
        let text = match around.file() {
            None => None,
            Some((path, named)) => match std::fs::read_to_string(&path) {
                Ok(text) => Some((path, text)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && named == Named::ByDefault => None,
                Err(e) => return Err(Error::io("read configuration", path.display().to_string(), e)),
            },
        };
        Self::resolve(flags, around, text.as_ref().map(|(path, text)| (path.as_path(), text.as_str())))
    }

    /// The same without reading: `file` is its path and content.
    fn resolve(
        flags: &[(&str, OsString)],
        around: &Surroundings,
        file: Option<(&Path, &str)>,
    ) -> Result<Settings> {
        let mut settings = Settings::for_root(around.default_root().unwrap_or_default());
        if let Some((path, text)) = file {
            settings.read_file(path, text, around)?;
        }
        for key in KEYS {
            let name = key.variable();
            if let Some(value) = around.variable(&name) {
                settings.read_one(
                    key,
                    &Given { value: Value::Os(value), base: &around.current_dir },
                    || name,
                )?;
            }
        }
        for (name, value) in flags {
            let origin = || format!("setting {}", quoted(name));
            let key = Key::named(name).ok_or_else(|| invalid(origin(), unknown_key()))?;
            settings.read_one(key, &Given { value: Value::Os(value), base: &around.current_dir }, origin)?;
        }
        settings.check()?;
        Ok(settings)
    }

    fn read_file(&mut self, path: &Path, text: &str, around: &Surroundings) -> Result<()> {
        let at = |span: std::ops::Range<usize>| {
            let line = 1 + text.bytes().take(span.start).filter(|b| *b == b'\n').count();
            format!("{}: line {line}", path.display())
        };
        let table = DeTable::parse(text)
            .map_err(|e| invalid(at(e.span().unwrap_or_default()), e.message().to_owned()))?
            .into_inner();
        let base = path.parent().unwrap_or(&around.current_dir);
        for (name, value) in &table {
            let key = Key::named(name.get_ref()).ok_or_else(|| {
                invalid(
                    at(name.span()),
                    format!("{} is no setting; {}", quoted(name.get_ref()), unknown_key()),
                )
            })?;
            let given = Given { value: Value::Toml(value.get_ref()), base };
            self.read_one(key, &given, || format!("{}: {}", at(value.span()), key.name))?;
        }
        Ok(())
    }

    fn read_one(&mut self, key: &Key, value: &Given<'_>, origin: impl FnOnce() -> String) -> Result<()> {
        (key.read)(self, value).map_err(|cause| invalid(origin(), cause))
    }

    /// What no single setting can tell.
    fn check(&self) -> Result<()> {
        if self.root.as_os_str().is_empty() {
            let cause =
                "neither HOME nor XDG_DATA_HOME says where your data is: choose a directory with --root";
            return Err(invalid("root".to_owned(), cause.to_owned()));
        }
        if self.map_bytes < MIN_MAP_BYTES || self.max_map_bytes < self.map_bytes {
            let cause = format!("must be at least {MIN_MAP_BYTES}, and max_map_bytes not below it");
            return Err(invalid("map_bytes".to_owned(), cause));
        }
        Ok(())
    }
}

impl Key {
    /// The key of that name.
    pub fn named(name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// The variable that sets it.
    pub fn variable(&self) -> String {
        format!("PLYWOOD_{}", self.name.to_uppercase())
    }
}

/// A value as it was given.
struct Given<'a> {
    value: Value<'a>,
    /// The directory against which a relative path is read.
    base: &'a Path,
}

enum Value<'a> {
    Os(&'a OsString),
    Toml(&'a DeValue<'a>),
}

impl<'a> Given<'a> {
    fn text(&self) -> std::result::Result<&'a str, String> {
        match self.value {
            Value::Os(text) => text.to_str().ok_or_else(|| "must be UTF-8".to_owned()),
            Value::Toml(value) => value.as_str().ok_or_else(|| "must be a text in quotes".to_owned()),
        }
    }

    fn truth(&self) -> std::result::Result<bool, String> {
        match self.value {
            Value::Toml(DeValue::Boolean(truth)) => Ok(*truth),
            Value::Toml(_) => Err("must be true or false, without quotes".to_owned()),
            Value::Os(_) => match self.text()? {
                "true" | "1" | "yes" | "on" => Ok(true),
                "false" | "0" | "no" | "off" => Ok(false),
                _ => Err("must be true or false".to_owned()),
            },
        }
    }

    fn path(&self) -> std::result::Result<PathBuf, String> {
        let path = match self.value {
            Value::Os(path) => Path::new(path),
            Value::Toml(_) => Path::new(self.text()?),
        };
        if path.as_os_str().is_empty() {
            return Err("must not be empty".to_owned());
        }
        Ok(self.base.join(path))
    }

    fn bytes(&self) -> std::result::Result<usize, String> {
        let read = match self.value {
            Value::Toml(DeValue::Integer(number)) => {
                u64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
            }
            Value::Toml(DeValue::String(text)) => bytes_of(text),
            Value::Toml(_) => None,
            Value::Os(_) => bytes_of(self.text()?),
        };
        let read = read.and_then(|bytes| usize::try_from(bytes).ok());
        read.ok_or_else(|| "must be a number of bytes, like 67108864, 64MiB or 1GiB".to_owned())
    }

    fn list(&self) -> std::result::Result<Vec<String>, String> {
        let list: Vec<String> = match self.value {
            Value::Toml(DeValue::Array(list)) => {
                let texts = list.iter().map(|item| item.get_ref().as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or("must be a list of texts, like [\"noatime\"]")?
            }
            Value::Toml(_) => return Err("must be a list of texts, like [\"noatime\"]".to_owned()),
            Value::Os(_) => self.text()?.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect(),
        };
        match list.iter().find(|option| option.is_empty() || option.contains([',', '\0'])) {
            Some(bad) => Err(format!("{} is not one option", quoted(bad))),
            None => Ok(list),
        }
    }
}

/// A number with a unit of 1024, or none.
fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[digits..].trim_start() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn invalid(subject: String, cause: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, "configuration", subject, cause)
}

fn unknown_key() -> String {
    let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    format!("the settings are {}", names.join(", "))
}

#[cfg(test)]
mod tests;
