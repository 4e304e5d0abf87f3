//! The edit of a `SiteConfig`: the file that people keep, with the recovery partition put into a node's entry.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use recovery::partition::Wanted;
use recovery::partition::siteconfig::{put, quoted};
use recovery_fuzz::refused;

fuzz_target!(|text: &str| {
    let wanted = Wanted::new(Path::new("/dev/disk/by-id/x"), Some(200), 2000, Path::new("/var/recovery"), false).expect("a sound request");
    for node in [None, Some("b")] {
        let edited = match put(text, node, &wanted) {
            Ok(edited) => edited,
            Err(error) => {
                refused(&error);
                continue;
            }
        };
        let Some(new) = edited.text else { continue };
        let again = put(&new, node, &wanted).expect("what was edited is read");
        assert_eq!((again.text, &again.value), (None, &edited.value), "the same again changes nothing");
        // What stands before the line of the value, and from the line below it on, is the old file's.
        let value = quoted(&edited.value);
        let (before, behind) = new.split_once(&value).expect("the value is in the file");
        let (above, below) = (before.rfind('\n').map_or(0, |at| at + 1), behind.find('\n').map_or(behind.len(), |at| at + 1));
        let (above, below) = (before[..above].trim_end_matches(['\r', '\n']), &behind[below..]);
        assert!(text.starts_with(above), "it begins otherwise");
        assert!(text.ends_with(below), "it ends otherwise");
        assert!(above.len() + below.len() <= text.len(), "something is there twice");
    }
});
