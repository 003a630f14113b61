//! Names that are two on Linux and one on file systems that ignore case or normalise Unicode.

use std::borrow::Cow;
use std::collections::HashMap;

use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};

use super::names;

/// What such a file system compares instead of the name (HFS+, APFS and NTFS taken together): decomposed, without
/// case, composed again, without what HFS+ ignores. Names that are not UTF-8 stand for themselves.
fn folded(name: &[u8]) -> Cow<'_, [u8]> {
    if name.is_ascii() {
        return match name.iter().any(u8::is_ascii_uppercase) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => Cow::Borrowed(name),
        };
    }
    let Ok(text) = std::str::from_utf8(name) else { return Cow::Borrowed(name) };
    let apart = DecomposingNormalizerBorrowed::new_nfd().normalize(text);
    // Upper case first: it unites what lower case alone keeps apart, such as the two small sigmas.
    let caseless: String = apart
        .chars()
        .filter(|c| !names::hfs_ignores(*c))
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .collect();
    let whole = ComposingNormalizerBorrowed::new_nfc().normalize(&caseless).into_owned();
    Cow::Owned(whole.into_bytes())
}

/// What a name meets in its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    /// Nothing.
    Nothing,
    /// Another name that some file systems take for this one; at least one of the two is new.
    Twin,
    /// Itself.
    Itself,
}

/// The names of one directory, added in git's order: a name and itself have none between them that folds to the same.
#[derive(Default)]
pub(super) struct Directory(HashMap<Vec<u8>, (Vec<u8>, bool)>);

impl Directory {
    /// Adds a name and says what it meets.
    pub(super) fn add(&mut self, name: &[u8], new: bool) -> Met {
        let folded = folded(name);
        let Some((last, other_new)) = self.0.get_mut(&*folded) else {
            self.0.insert(folded.into_owned(), (name.to_vec(), new));
            return Met::Nothing;
        };
        let met = match (last == name, new || *other_new) {
            (true, _) => Met::Itself,
            (false, true) => Met::Twin,
            (false, false) => Met::Nothing,
        };
        *last = name.to_vec();
        *other_new |= new;
        met
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twins(names: &[(&str, bool)]) -> bool {
        let mut directory = Directory::default();
        names.iter().fold(false, |met, (name, new)| (directory.add(name.as_bytes(), *new) != Met::Nothing) | met)
    }

    #[test]
    fn twins_are_met_when_one_is_new() {
        for pair in [
            ["A", "a"],
            ["Makefile", "makefile"],
            ["\u{e9}", "e\u{301}"],
            ["\u{c9}", "e\u{301}"],
            ["\u{3c3}x", "\u{3c2}X"],
            ["a\u{200d}b", "aB"],
            ["\u{212a}", "k"],
        ] {
            assert!(twins(&[(pair[0], false), (pair[1], true)]), "{pair:?}");
            assert!(twins(&[(pair[0], true), (pair[1], false)]), "{pair:?}");
            assert!(!twins(&[(pair[0], false), (pair[1], false)]), "{pair:?}: as the base has it");
        }
        assert!(!twins(&[("a", true), ("b", true), ("\u{e9}", true), ("e", true), ("", true)]));
    }

    #[test]
    fn names_that_are_not_utf8_are_only_their_own_twins() {
        let mut directory = Directory::default();
        assert_eq!([directory.add(b"\xff", true), directory.add(b"\xfe", true)], [Met::Nothing; 2]);
        assert_eq!(directory.add(b"\xff", false), Met::Itself);
    }
}
