//! Where settings come from, and what is wrong with them.

use super::*;

fn around(variables: &[(&str, &str)]) -> Surroundings {
    Surroundings {
        variables: variables.iter().map(|(n, v)| (n.into(), v.into())).collect(),
        is_root: false,
        current_dir: "/now".into(),
    }
}

fn load(
    flags: &[(&str, &str)],
    variables: &[(&str, &str)],
    file: Option<&str>,
) -> std::result::Result<Settings, String> {
    let flags: Vec<(&str, OsString)> = flags.iter().map(|(n, v)| (*n, v.into())).collect();
    let file = file.map(|text| (Path::new("/etc/x.toml"), text));
    let variables: Vec<_> = [("HOME", "/home/u")].iter().chain(variables).copied().collect();
    Settings::resolve(&flags, &around(&variables), file).map_err(|e| {
        assert_eq!(e.kind(), ErrorKind::InvalidArgument);
        e.to_string()
    })
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let (flag, variable) = ([("log", "trace")], [("PLYWOOD_LOG", "debug")]);
    let file = Some("log = 'info'");
    let log = |flags: &[_], variables: &[_], file| load(flags, variables, file).map(|s| s.log);
    assert_eq!(log(&flag, &variable, file), Ok("trace".into()));
    assert_eq!(log(&[], &variable, file), Ok("debug".into()));
    assert_eq!(log(&[], &[], file), Ok("info".into()));
    assert_eq!(log(&[], &[], None), Ok("warn".into()));
    assert_eq!(log(&[("log", "a"), ("log", "b")], &[], None), Ok("b".into()), "the last flag counts");
    assert_eq!(log(&[], &[("PLYWOOD_LOG", "")], file), Ok("info".into()), "an empty variable is none");
}

#[test]
fn every_key_is_read_from_the_file_and_from_its_variable() {
    let file = r#"
        root = "store"
        backend = "native"
        sync_remove = true
        sync_on_commit = false
        durability = "relaxed"
        map_bytes = 0x200_0000
        max_map_bytes = "1 GiB"
        allow_remote_fs = true
        views_require_parent = true
        overlay_options = ["index=on", "volatile"]
        fuse_program = "/opt/fuse"
        fuse_options = ["noacl"]
        log = "info"
    "#;
    let expected = Settings {
        root: "/etc/store".into(),
        backend: Some(BackendName::Native),
        sync_remove: true,
        sync_on_commit: false,
        durability: Durability::Relaxed,
        map_bytes: 32 << 20,
        max_map_bytes: 1 << 30,
        allow_remote_fs: true,
        views_require_parent: true,
        overlay_options: vec!["index=on".into(), "volatile".into()],
        fuse_program: "/opt/fuse".into(),
        fuse_options: vec!["noacl".into()],
        log: "info".into(),
    };
    assert_eq!(load(&[], &[], Some(file)), Ok(expected.clone()));
    let values = [
        ("root", "store"),
        ("backend", "native"),
        ("sync_remove", "1"),
        ("sync_on_commit", "no"),
        ("durability", "relaxed"),
        ("map_bytes", "32M"),
        ("max_map_bytes", "1073741824"),
        ("allow_remote_fs", "yes"),
        ("views_require_parent", "on"),
        ("overlay_options", "index=on,volatile"),
        ("fuse_program", "/opt/fuse"),
        ("fuse_options", "noacl,"),
        ("log", "info"),
    ];
    assert_eq!(values.map(|(name, _)| name).to_vec(), KEYS.iter().map(|k| k.name).collect::<Vec<_>>());
    let expected = Settings { root: "/now/store".into(), ..expected };
    let names = values.map(|(name, _)| Key::named(name).expect("a key").variable());
    let variables: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(values.map(|(_, v)| v)).collect();
    assert_eq!(load(&[], &variables, None), Ok(expected.clone()));
    assert_eq!(load(&values, &[], None), Ok(expected));
}

#[test]
fn what_is_wrong_in_the_file_is_named_with_its_line() {
    let cases = [
        (
            "log = 'info'\n\nbakend = 'fuse'\n",
            "/etc/x.toml: line 3: \"bakend\" is no setting; the settings are",
        ),
        ("[store]\nroot = 'a'\n", "/etc/x.toml: line 1: \"store\" is no setting"),
        ("\nlog = 'a\n", "/etc/x.toml: line 2: "),
        ("log = 'a'\nlog = 'b'\n", "/etc/x.toml: line 2: "),
        ("\nbackend = 'zfs'\n", "/etc/x.toml: line 2: backend: must be auto, fuse"),
        ("backend = 1\n", "/etc/x.toml: line 1: backend: must be a text"),
        ("sync_remove = 'true'\n", "/etc/x.toml: line 1: sync_remove: must be true or false"),
        ("durability = 'none'", "durability: must be full or relaxed"),
        ("map_bytes = -1", "map_bytes: must be a number of bytes"),
        ("map_bytes = 1.5", "map_bytes: must be a number of bytes"),
        ("map_bytes = 4096", "map_bytes: must be at least 1048576"),
        ("map_bytes = '2GiB'\nmax_map_bytes = '1GiB'", "max_map_bytes not below it"),
        ("overlay_options = 'a,b'", "must be a list of texts"),
        ("overlay_options = [1]", "must be a list of texts"),
        ("overlay_options = ['a,b']", "\"a,b\" is not one option"),
        ("fuse_program = ''", "fuse_program: must not be empty"),
        ("root = ''", "root: must not be empty"),
    ];
    for (file, expected) in cases {
        let error = load(&[], &[], Some(file)).expect_err(file);
        assert!(error.contains(expected), "{file:?}: {error}");
    }
    let error = load(&[], &[("PLYWOOD_SYNC_REMOVE", "maybe")], None).expect_err("no truth");
    assert!(error.starts_with("configuration: PLYWOOD_SYNC_REMOVE: must be true or false"), "{error}");
    let error = load(&[("bakend", "fuse")], &[], None).expect_err("no key");
    assert!(error.starts_with("configuration: setting \"bakend\": the settings are root, "), "{error}");
}

#[test]
fn numbers_of_bytes_have_units_of_1024() {
    let cases = [
        ("0", Some(0)),
        ("4096", Some(4096)),
        ("1K", Some(1024)),
        ("3 MiB", Some(3 << 20)),
        ("2T", Some(2 << 40)),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("16777216T", None),
        ("", None),
        ("K", None),
        ("1kb", None),
        ("1.5G", None),
        ("-1", None),
    ];
    for (text, bytes) in cases {
        assert_eq!(bytes_of(text), bytes, "{text:?}");
    }
}

type Case<'a> = (&'a [(&'a str, &'a str)], bool, Option<&'a str>, Option<&'a str>);

#[test]
fn the_store_is_where_its_user_keeps_data() {
    // Variables, root of the machine, store, file.
    let cases: &[Case<'_>] = &[
        (&[("HOME", "/h")], false, Some("/h/.local/share/plywood"), Some("/h/.config/plywood/config.toml")),
        (
            &[("HOME", "/h"), ("XDG_DATA_HOME", "/d"), ("XDG_CONFIG_HOME", "/c")],
            false,
            Some("/d/plywood"),
            Some("/c/plywood/config.toml"),
        ),
        (
            &[("HOME", "/h"), ("XDG_DATA_HOME", "d"), ("XDG_CONFIG_HOME", "")],
            false,
            Some("/h/.local/share/plywood"),
            Some("/h/.config/plywood/config.toml"),
        ),
        (&[("PLYWOOD_CONFIG", "my.toml")], false, None, Some("/now/my.toml")),
        (&[], false, None, None),
        (&[("HOME", "h")], false, None, None),
        (&[("HOME", "/root")], true, Some("/var/lib/plywood"), Some("/etc/plywood/config.toml")),
    ];
    for (variables, is_root, root, file) in cases {
        let around = Surroundings { is_root: *is_root, ..around(variables) };
        assert_eq!(around.default_root().as_deref(), root.map(Path::new), "{variables:?}");
        assert_eq!(around.file().map(|(path, _)| path).as_deref(), file.map(Path::new), "{variables:?}");
    }
    let error = Settings::resolve(&[], &around(&[]), None).expect_err("nowhere").to_string();
    assert!(error.contains("--root"), "{error}");
    assert!(Settings::resolve(&[("root", "x".into())], &around(&[]), None).is_ok());
}

#[test]
fn only_a_file_that_was_named_must_be_there() {
    let missing = around(&[("HOME", "/nonexistent"), ("PLYWOOD_CONFIG", "/nonexistent/x.toml")]);
    let error = Settings::load(&[], &missing).expect_err("it was named");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("/nonexistent/x.toml"), "{error}");
    assert!(Settings::load(&[], &around(&[("HOME", "/nonexistent")])).is_ok());
}
