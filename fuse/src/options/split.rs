//! Where does one option end and the next begin?
//!
//! Works on bytes, borrows where it can, and accepts every input: what cannot be understood comes out as
//! typed. Nothing here knows the name of an option.
//!
//! # Source
//!
//! The forms that mount(8), libfuse and kernel overlayfs share: items between commas, `\` before a byte that
//! is meant as it is, and one pair of double quotes around a whole value, as in
//! `context="system_u:object_r:container_file_t:s0:c1,c2"`.

/// One item of an option string, borrowed from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionItem<'a> {
    /// The whole item as it was typed, never empty.
    pub typed: &'a [u8],
    /// What stands before the first `=`; all of it if there is none.
    pub name: &'a [u8],
    /// What stands behind the first `=`, without the quotes around it, escapes still in place.
    pub value: Option<&'a [u8]>,
}

impl<'a> OptionItem<'a> {
    fn new(typed: &'a [u8]) -> Self {
        match split_at_equals(typed) {
            Some((name, value)) => Self { typed, name, value: Some(unquote(value)) },
            None => Self { typed, name: typed, value: None },
        }
    }
}

/// Cuts an option string at its commas; empty items are skipped.
///
/// A comma does not cut behind a backslash, nor between double quotes. Quotes count only around a whole
/// value, directly behind the first `=` and directly before a comma or the end, so that a path with
/// a single `"` in it stays a path.
pub fn split_options(text: &[u8]) -> Vec<OptionItem<'_>> {
    let mut items = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (typed, comma_on) = rest.split_at_checked(item_len(rest)).unwrap_or((rest, &[]));
        if !typed.is_empty() {
            items.push(OptionItem::new(typed));
        }
        rest = comma_on.split_first().map_or(&[], |(_comma, after)| after);
    }
    items
}

/// How many bytes stand before the comma that ends the first item.
fn item_len(text: &[u8]) -> usize {
    let quoted = split_at_equals(text).and_then(|(name, tail)| Some(name.len() + 1 + quoted_len(tail)?));
    quoted.or_else(|| find_unescaped(text, |byte| byte == b',')).unwrap_or(text.len())
}

/// Name and tail around the first `=`, if that stands before any comma.
fn split_at_equals(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = find_unescaped(text, |byte| matches!(byte, b'=' | b','))?;
    match text.split_at_checked(at)? {
        (name, [b'=', tail @ ..]) => Some((name, tail)),
        _ => None,
    }
}

/// The length of the quoted value at the start of `tail`, both quotes counted.
fn quoted_len(tail: &[u8]) -> Option<usize> {
    let inner = tail.strip_prefix(b"\"")?;
    let close = find_unescaped(inner, |byte| byte == b'"')?;
    // Only the first closing quote is tried: one pass, however many quotes a string has.
    matches!(inner.get(close + 1), None | Some(b',')).then_some(close + 2)
}

/// The value without the quotes around it, if it has them.
fn unquote(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] if quoted_len(value) == Some(value.len()) => inner,
        plain => plain,
    }
}

/// The place of the first wanted byte that no backslash stands before.
fn find_unescaped(text: &[u8], wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let mut bytes = text.iter().enumerate();
    while let Some((at, &byte)) = bytes.next() {
        if byte == b'\\' {
            bytes.next();
        } else if wanted(byte) {
            return Some(at);
        }
    }
    None
}

/// Cuts the value of `lowerdir=` at its colons, top first, and resolves its escapes; empty parts are skipped.
///
/// Resolved are `\:`, `\\`, `\,` and `\"`, what a careful caller has to escape. Any other backslash stays,
/// since most callers escape nothing and a path may hold one.
pub fn split_lowers(value: &[u8]) -> Vec<Vec<u8>> {
    let mut lowers = Vec::new();
    let mut rest = value;
    while !rest.is_empty() {
        let len = find_unescaped(rest, |byte| byte == b':').unwrap_or(rest.len());
        let (lower, colon_on) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        if !lower.is_empty() {
            lowers.push(unescape_lower(lower));
        }
        rest = colon_on.split_first().map_or(&[], |(_colon, after)| after);
    }
    lowers
}

/// One path of the lower layers with the escapes resolved that [`split_lowers`] names; colons do not cut.
pub fn unescape_lower(value: &[u8]) -> Vec<u8> {
    unescape(value, |byte| matches!(byte, b':' | b'\\' | b',' | b'"'))
}

/// A path with every `\x` resolved to `x`, as in `upperdir=` and `workdir=`; a lone `\` at the end stays.
pub fn unescape_path(value: &[u8]) -> Vec<u8> {
    unescape(value, |_| true)
}

fn unescape(value: &[u8], special: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    loop {
        match rest {
            [b'\\', next, tail @ ..] => {
                if !special(*next) {
                    out.push(b'\\');
                }
                out.push(*next);
                rest = tail;
            }
            [byte, tail @ ..] => {
                out.push(*byte);
                rest = tail;
            }
            [] => return out,
        }
    }
}

/// Bytes as text for a message: one line, whatever they hold.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Items as text: `name`, or `name=value` with the value that comes out.
    fn items(text: &str) -> Vec<String> {
        let words = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("the cases are UTF-8");
        let item = |i: OptionItem<'_>| match i.value {
            Some(value) => format!("{}=>{}", words(i.name), words(value)),
            None => words(i.name),
        };
        split_options(text.as_bytes()).into_iter().map(item).collect()
    }

    #[test]
    fn options_are_cut_at_commas_outside_of_quotes_and_escapes() {
        let cases: [(&str, &[&str]); 20] = [
            ("", &[]),
            (",", &[]),
            (",,ro,,rw,", &["ro", "rw"]),
            ("a=b", &["a=>b"]),
            ("a=", &["a=>"]),
            ("=b", &["=>b"]),
            ("a=b=c", &["a=>b=c"]),
            (r#"context="s0:c1,c2",ro"#, &["context=>s0:c1,c2", "ro"]),
            (r#"context="s0:c1,c2""#, &["context=>s0:c1,c2"]),
            (r#"c="",ro"#, &["c=>", "ro"]),
            (r#"c="a\",b",ro"#, &[r#"c=>a\",b"#, "ro"]),
            (r#"c="a,b"#, &[r#"c=>"a"#, "b"]),
            (r#"c="a"b,d"#, &[r#"c=>"a"b"#, "d"]),
            (r#"c=","#, &[r#"c=>""#]),
            (r#"upperdir=/a"b,workdir=/c"d"#, &[r#"upperdir=>/a"b"#, r#"workdir=>/c"d"#]),
            (r#""a,b""#, &[r#""a"#, r#"b""#]),
            (r"upperdir=/a\,b,ro", &[r"upperdir=>/a\,b", "ro"]),
            (r"upperdir=/a\\,ro", &[r"upperdir=>/a\\", "ro"]),
            (r"ro,\", &["ro", r"\"]),
            (r#"a\=b="x,y""#, &[r"a\=b=>x,y"]),
        ];
        for (text, expected) in cases {
            assert_eq!(items(text), expected, "{text}");
        }
    }

    #[test]
    fn an_item_keeps_what_was_typed() {
        let text = br#"a="x,y",b"#;
        let typed: Vec<&[u8]> = split_options(text).into_iter().map(|item| item.typed).collect();
        assert_eq!(typed, [br#"a="x,y""#.as_slice(), b"b"]);
    }

    #[test]
    fn lower_paths_are_cut_at_bare_colons_and_unescaped_sparingly() {
        let cases: [(&str, &[&str]); 10] = [
            ("", &[]),
            (":", &[]),
            ("/a:/b", &["/a", "/b"]),
            (":/a::/b:", &["/a", "/b"]),
            (r"/a\:b:/c", &["/a:b", "/c"]),
            (r"/a\\:/c", &[r"/a\", "/c"]),
            (r"/a\,b", &["/a,b"]),
            (r#"/a\"b"#, &[r#"/a"b"#]),
            (r"/a\040b:\x", &[r"/a\040b", r"\x"]),
            (r"/a\", &[r"/a\"]),
        ];
        for (text, expected) in cases {
            let lowers = split_lowers(text.as_bytes());
            let expected: Vec<Vec<u8>> = expected.iter().map(|path| path.as_bytes().to_vec()).collect();
            assert_eq!(lowers, expected, "{text}");
        }
        assert_eq!(unescape_lower(br"/a:b\:c\,d"), b"/a:b:c,d");
    }

    #[test]
    fn upper_and_work_paths_lose_every_backslash_that_escapes() {
        for (text, expected) in [(r"/a\:b\,\\\x", r"/a:b,\x"), (r"/a\", r"/a\"), ("", "")] {
            assert_eq!(unescape_path(text.as_bytes()), expected.as_bytes(), "{text}");
        }
    }

    #[test]
    fn messages_stay_on_one_line() {
        assert_eq!(printable(b"a\nb\x1b[1m\xff \xc3\xa9"), "a\\nb\\u{1b}[1m\u{fffd} \u{e9}");
    }

    #[test]
    fn any_bytes_are_cut_without_loss_and_items_cut_again_stay_whole() {
        const ALPHABET: &[u8] = b"a/:,,=\"\"\\\\\xff\0";
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for round in 0..20_000 {
            let len = random() % 24;
            let any_byte = round % 4 == 0;
            let byte = |n: usize| if any_byte { n as u8 } else { ALPHABET[n % ALPHABET.len()] };
            let text: Vec<u8> = (0..len).map(|_| byte(random())).collect();
            let items = split_options(&text);
            for item in &items {
                assert_eq!(split_options(item.typed), [*item], "{}", text.escape_ascii());
                assert!(unescape_path(item.typed).len() <= item.typed.len());
                split_lowers(item.value.unwrap_or_default());
                printable(item.typed);
            }
            // Only commas are lost.
            let kept: usize = items.iter().map(|item| item.typed.len()).sum();
            let joined = items.iter().map(|item| item.typed).collect::<Vec<_>>().join(&b',');
            assert_eq!(split_options(&joined), items, "{}", text.escape_ascii());
            let commas = text.iter().filter(|&&byte| byte == b',').count();
            assert!(kept <= text.len() && kept + commas >= text.len(), "{}", text.escape_ascii());
        }
    }
}
