//! Which labels an update leaves: field masks, as a function of values.

use crate::error::{Error, ErrorKind, Result};
use crate::types::{Labels, check_labels};

/// The labels after an update of `current` with those `given`, of the fields in `paths`.
///
/// Without paths, and with the path `labels`, the given ones replace all. A path `labels.KEY` sets that one, or
/// deletes it if it was not given or is empty; KEY is all that follows, dots included.
///
/// # Errors
/// `InvalidArgument` for any other path, and for labels that are too large; then nothing is to be changed.
pub fn apply_mask(current: &Labels, given: &Labels, paths: &[String]) -> Result<Labels> {
    if paths.is_empty() {
        return check_labels("update", given.clone());
    }
    let mut labels = current.clone();
    for path in paths {
        match path.strip_prefix("labels") {
            Some("") => labels = given.clone(),
            Some(rest) if rest.len() > 1 && rest.starts_with('.') => {
                let key = &rest[1..];
                match given.get(key).filter(|value| !value.is_empty()) {
                    Some(value) => labels.insert(key.to_owned(), value.clone()),
                    None => labels.remove(key),
                };
            }
            _ => {
                let cause = "only labels can be changed: the path is \"labels\" or \"labels.KEY\"";
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "update",
                    format!("field {:?}", path),
                    cause,
                ));
            }
        }
    }
    check_labels("update", labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MAX_LABEL_BYTES;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_mask_says_which_labels_change() {
        let current = [("l1", "a"), ("l2", "b"), ("l3", "c")];
        // What is given, the paths, what comes out.
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [(&'a str, &'a str)]);
        let cases: &[Case<'_>] = &[
            (&[("x", "1")], &[], &[("x", "1")]),
            (&[], &[], &[]),
            (&[("x", "1"), ("y", "")], &[], &[("x", "1")]),
            (&[("x", "1")], &["labels"], &[("x", "1")]),
            // containerd's suite: one is set, one deleted, one left, one ignored.
            (&[("l1", "foo"), ("l4", "d")], &["labels.l1", "labels.l2"], &[("l1", "foo"), ("l3", "c")]),
            (&[("l1", "")], &["labels.l1"], &[("l2", "b"), ("l3", "c")]),
            (
                &[("a/b.c.labels.d", "1")],
                &["labels.a/b.c.labels.d"],
                &[("a/b.c.labels.d", "1"), ("l1", "a"), ("l2", "b"), ("l3", "c")],
            ),
            (&[("x", "1")], &["labels", "labels.l1"], &[("x", "1")]),
            (&[("x", "1")], &["labels.x", "labels"], &[("x", "1")]),
        ];
        for (given, paths, expected) in cases {
            let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
            let result = apply_mask(&labels(&current), &labels(given), &paths);
            assert_eq!(result.ok(), Some(labels(expected)), "{given:?} {paths:?}");
        }
    }

    #[test]
    fn any_other_path_is_refused() {
        let none = Labels::new();
        for path in
            ["", "parent", "name", "kind", "label", "labels.", "labelsx", "labels.x,parent.", "Labels"]
        {
            let result = apply_mask(&none, &none, &["labels".to_owned(), path.to_owned()]);
            let expected = if path == "labels.x,parent." { None } else { Some(ErrorKind::InvalidArgument) };
            assert_eq!(result.err().map(|e| e.kind()), expected, "{path:?}");
        }
    }

    #[test]
    fn a_label_that_is_too_large_counts_only_if_it_would_be_stored() {
        let large = labels(&[("k", &"x".repeat(MAX_LABEL_BYTES))]);
        let refused = apply_mask(&Labels::new(), &large, &["labels.k".to_owned()]);
        assert_eq!(refused.err().map(|e| e.kind()), Some(ErrorKind::InvalidArgument));
        let ignored = apply_mask(&Labels::new(), &large, &["labels.other".to_owned()]);
        assert_eq!(ignored.ok(), Some(Labels::new()));
    }
}
