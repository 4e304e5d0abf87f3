use super::*;
use crate::error::exit_code;
use std::path::Path;

fn wanted(start: Option<u64>, size: u64) -> Wanted {
    Wanted::new(Path::new("/dev/disk/by-id/x"), start, size, Path::new("/var/recovery"), false).unwrap()
}

/// A file as people keep it: comments, quotes of all kinds, two nodes, another document.
const FILE: &str = r#"# Keep me.
apiVersion: v1
kind: Namespace   # not this one
metadata: {name: sno1}
---
apiVersion: ran.openshift.io/v1
kind: SiteConfig
spec:
  clusters:
  # The first.
  - clusterName: "sno1"
    nodes:
      - hostName: "a.example.com"   # with a comment
        role: master
        bootMode: 'UEFI'
      - role: master
        hostName: b
        ignitionConfigOverride: OVERRIDE
        # After it.
        nodeNetwork: {interfaces: [{name: eno1}]}
"#;

fn with(scalar: &str) -> String {
    FILE.replace("OVERRIDE", scalar)
}

/// All lines but the ones with the value.
fn others(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.contains("ignitionConfigOverride") && !line.trim_start().starts_with(['{', '"', '}'])).collect()
}

#[test]
fn a_node_without_one_gets_a_line_and_nothing_else_changes() {
    let text = with("''");
    let edited = put(&text, Some("a.example.com"), &wanted(Some(350_020), 40960)).unwrap();
    let new = edited.text.unwrap();
    let added: Vec<&str> = new.lines().filter(|line| !text.lines().any(|old| old == *line)).collect();
    assert_eq!(added, [format!("        ignitionConfigOverride: {}", quoted(&edited.value))]);
    assert_eq!(new.lines().count(), text.lines().count() + 1);
    let again = put(&new, Some("a.example.com"), &wanted(Some(350_020), 40960)).unwrap();
    assert_eq!((again.text, again.value), (None, edited.value));
}

#[test]
fn an_override_that_is_there_is_merged_with_in_every_way_of_writing_it() {
    let old = r#"{"ignition":{"version":"3.1.0"},"passwd":{"users":[{"name":"it's \"core\""}]},"storage":{"disks":[{"device":"/dev/disk/by-id/x","partitions":[{"label":"data","startMiB":1,"sizeMiB":100}]}]}}"#;
    let double = format!("\"{}\"", old.replace('\\', "\\\\").replace('"', "\\\""));
    let block = format!("|-\n          {old}");
    let folded = format!(">-\n          {}\n", old.replace(",\"storage\"", ",\n          \"storage\""));
    for scalar in [quoted(old), format!("{} # why", quoted(old)), double, block, folded, "null".to_owned(), "\"\"".to_owned()] {
        let text = with(&scalar);
        let edited = put(&text, Some("b"), &wanted(Some(200), 2000)).unwrap_or_else(|error| panic!("{scalar}: {error:#}"));
        let new = edited.text.unwrap();
        assert_eq!(others(&new), others(&text), "{scalar}");
        assert!(!scalar.ends_with("# why") || new.contains("' # why\n"), "{new}");
        let value: Value = serde_json::from_str(&edited.value).unwrap();
        assert_eq!(value["ignition"]["version"], "3.2.0");
        if scalar.contains("core") {
            assert_eq!(value["passwd"]["users"][0]["name"], "it's \"core\"");
            let labels: Vec<_> = value["storage"]["disks"][0]["partitions"].as_array().unwrap().iter().map(|part| &part["label"]).collect();
            assert_eq!(labels, ["data", "recovery"]);
        }
    }
}

/// A comment behind a block is not the block's, however far to the right it is, and a file with carriage returns keeps them.
#[test]
fn comments_behind_a_block_and_the_ends_of_lines_stay() {
    let old = r#"{"ignition":{"version":"3.2.0"}}"#;
    for (head, indent, comment) in [("|-", 12, 9), ("|", 12, 11), (">2-", 10, 9), ("|- # why", 12, 10), ("|\n", 12, 9)] {
        let block = format!("{head}\n{:indent$}{old}\n{:comment$}# Behind it.\n\n{:comment$}# And this.", "", "", "");
        for text in [with(&block), with(&block).replace('\n', "\r\n")] {
            let new = put(&text, Some("b"), &wanted(Some(200), 2000)).unwrap_or_else(|error| panic!("{text}: {error:#}"));
            let edited = only_the_value(&text, &new);
            assert_eq!(edited.contains("}' # why"), head.contains("# why"), "{edited}");
            assert!(edited.contains("# Behind it.") && edited.contains("# And this.") && edited.contains("# After it."), "{edited}");
            assert!(edited.matches('\n').count() == text.matches('\n').count() - 1 - head.matches('\n').count(), "{edited:?}");
            assert_eq!(edited.matches('\r').count(), if text.contains('\r') { edited.matches('\n').count() } else { 0 }, "{edited:?}");
        }
    }
    // Behind no value at all.
    let text = with("# none yet");
    let edited = only_the_value(&text, &put(&text, Some("b"), &wanted(Some(200), 2000)).unwrap());
    assert!(edited.contains("' # none yet\n"), "{edited}");
    // The last line ends nowhere.
    let new = put("nodes:\r\n- hostName: a", None, &wanted(None, 2000)).unwrap();
    let text = new.text.unwrap();
    assert_eq!(text, format!("nodes:\r\n- hostName: a\r\n  ignitionConfigOverride: {}\r\n", quoted(&new.value)));
}

/// Every byte but those of the value is as it was: what stands before the value and behind it is the old file's, and what was between was no more than the
/// value that is there no more. Returns the new file.
fn only_the_value(old: &str, new: &Edited) -> String {
    let text = new.text.clone().unwrap();
    let value = quoted(&new.value);
    let (before, behind) = text.split_once(&value).unwrap_or_else(|| panic!("the value is not there: {text}"));
    // What was put before it: a key's blanks, or a line with the key.
    let added = before.rfind('\n').map_or(before, |at| &before[at..]);
    let (head, rest) = if let Some(rest) = old.strip_prefix(before.trim_end_matches(' ')) {
        (before, rest)
    } else {
        assert_eq!(added.trim_matches(['\r', '\n', ' ']), "ignitionConfigOverride:", "{text}");
        let head = before[..before.len() - added.len()].trim_end_matches('\r');
        (head, old.strip_prefix(head).unwrap_or_else(|| panic!("it begins otherwise: {text}")))
    };
    // A comment in the head of a block stands behind the value now, and a blank before one that had the key alone before it.
    let line = behind.lines().next().unwrap_or_default();
    let bare = behind.trim_start_matches(line).trim_start_matches(['\r', '\n']);
    let candidates =
        [behind, behind.trim_start_matches(['\r', '\n']), behind.trim_start_matches(' '), if rest.contains(line) { bare } else { behind }];
    let between = candidates.into_iter().find_map(|behind| rest.strip_suffix(behind));
    let between = between.unwrap_or_else(|| panic!("it ends otherwise: {text:?} of {old:?}"));
    assert!(!between.lines().any(|line| line.trim_start().starts_with('#')), "a comment is gone: {between:?}");
    if head != before || between.trim().is_empty() {
        assert_eq!(between.trim(), "", "{text}");
    } else {
        // No more than one value, which is not this one.
        let gone: Vec<Option<String>> =
            read(&format!("x: {between}\n").replace("x: ", "")).unwrap_or_else(|error| panic!("{between:?}: {error:#}"));
        assert_eq!(gone.len(), 1, "{between:?}");
    }
    text
}

#[test]
fn disks_that_the_override_names_otherwise_are_told() {
    let old = json!({ "ignition": { "version": "3.2.0" }, "storage": {
        "disks": [{ "device": "/dev/disk/by-id/x" }, { "device": "/dev/disk/by-path/pci-1" }, { "device": "/dev/sdb", "partitions": [] }],
        "raid": [{ "name": "md", "level": "raid1", "devices": ["/dev/disk/by-id/y", "/dev/disk/by-partlabel/z"] }],
        "luks": [{ "name": "l", "device": "/dev/disk/by-path/pci-1" }],
        "filesystems": [{ "device": "/dev/md/md", "path": "/srv" }, { "device": "/dev/disk/by-label/data", "path": "/data" }],
    } });
    let edited = put(&with(&quoted(&old.to_string())), Some("b"), &wanted(Some(200), 2000)).unwrap();
    assert_eq!(edited.others, ["/dev/disk/by-id/y", "/dev/disk/by-path/pci-1", "/dev/sdb"]);
    assert!(put(&with("''"), Some("b"), &wanted(Some(200), 2000)).unwrap().others.is_empty());
}

#[test]
fn what_would_change_another_partition_or_cannot_be_merged_is_refused() {
    let disk = |disk: &str| format!(r#"{{"ignition":{{"version":"3.2.0"}},"storage":{{"disks":[{disk}]}}}}"#);
    let storage = |storage: &str| format!(r#"{{"ignition":{{"version":"3.2.0"}},"storage":{{{storage}}}}}"#);
    let unit =
        |unit: &str| format!(r#"{{"ignition":{{"version":"3.2.0"}},"systemd":{{"units":[{{"name":"var-recovery.mount",{unit}}}]}}}}"#);
    let part = |part: &str| disk(&format!(r#"{{"device":"/dev/disk/by-id/x","partitions":[{part}]}}"#));
    for (old, code, word) in [
        (part(r#"{"label":"a","startMiB":2100,"sizeMiB":100}"#), 2, "lie over"),
        (part(r#"{"label":"a","startMiB":50,"sizeMiB":0}"#), 2, "all the room"),
        (part(r#"{"label":"a","startMiB":50}"#), 2, "all the room"),
        (part(r#"{"label":"recovery","shouldExist":false}"#), 64, "no partition"),
        (disk(r#"{"device":"/dev/disk/by-id/x","wipeTable":true}"#), 64, "wipeTable"),
        (disk(r#"{"device":"/dev/sdb","partitions":[{"label":"recovery"}]}"#), 64, "/dev/sdb"),
        (r#"{"ignition":{"version":"2.2.0"}}"#.to_owned(), 64, "2.2.0"),
        (r#"{"ignition":{}}"#.to_owned(), 65, "version"),
        (r#"{"ignition":{"version":"3.2.0"},"storage":[]}"#.to_owned(), 65, "storage"),
        ("[".to_owned(), 65, "JSON"),
        (storage(r#""filesystems":[{"device":"/dev/disk/by-id/x","path":"/srv","format":"xfs"}]"#), 64, "as a whole, for a file system"),
        (storage(r#""raid":[{"name":"md","level":"raid1","devices":["/dev/sdb","/dev/disk/by-id/x"]}]"#), 64, "as a whole, for a RAID"),
        (storage(r#""luks":[{"name":"x","device":"/dev/disk/by-id/x"}]"#), 64, "as a whole, for encryption"),
        (storage(r#""filesystems":[{"device":"/dev/disk/by-partlabel/recovery","format":"ext4"}]"#), 64, "ext4"),
        (unit(r#""enabled":false"#), 64, "not to be started"),
        (unit(r#""mask":true"#), 64, "not to be started"),
        (unit(r#""contents":"[Mount]\nWhat=/dev/sdb1\n""#), 64, "does not mount"),
        (
            r#"{"ignition":{"version":"3.2.0"},"storage":{"filesystems":[{"device":"/dev/sdb","path":"/var/recovery"}]}}"#.to_owned(),
            64,
            "/dev/sdb",
        ),
    ] {
        let error = put(&with(&quoted(&old)), Some("b"), &wanted(Some(200), 2000)).unwrap_err();
        assert_eq!(exit_code(&error), code, "{old}: {error:#}");
        assert!(format!("{error:#}").contains(word), "{old}: {error:#}");
    }
    // Right behind it there is room, and a partition that it only resizes says nothing of its place.
    for old in
        [part(r#"{"label":"a","startMiB":2200,"sizeMiB":100}"#), part(r#"{"number":4,"label":"root","sizeMiB":120000,"resize":true}"#)]
    {
        put(&with(&quoted(&old)), Some("b"), &wanted(Some(200), 2000)).unwrap();
    }
}

#[test]
fn what_the_override_says_of_the_file_system_and_the_unit_stays() {
    let old = json!({
        "ignition": { "version": "3.2.0" },
        "storage": { "filesystems": [{
            "device": "/dev/disk/by-partlabel/recovery", "path": null, "wipeFilesystem": false, "mountOptions": ["noatime"], "options": ["-K"], "uuid": "u",
        }] },
        "systemd": { "units": [{
            "name": "var-recovery.mount", "contents": "[Mount]\nWhat=/dev/disk/by-partlabel/recovery\n", "dropins": [{ "name": "a.conf", "contents": "#" }],
        }] },
    });
    let edited = put(&with(&quoted(&old.to_string())), Some("b"), &wanted(Some(200), 2000)).unwrap();
    assert_eq!(edited.kept, ["wipeFilesystem of the file system stays false", "contents of the unit stay as they are"]);
    let mut new: Value = serde_json::from_str(&edited.value).unwrap();
    let disks = new["storage"].as_object_mut().unwrap().shift_remove("disks").unwrap();
    assert_eq!(disks[0]["partitions"][0]["label"], "recovery");
    let mut meant = old;
    let system = &mut meant["storage"]["filesystems"][0];
    (system["path"], system["format"], system["label"]) = ("/var/recovery".into(), "xfs".into(), "recovery".into());
    meant["systemd"]["units"][0]["enabled"] = true.into();
    assert_eq!(new, meant);
}

#[test]
fn the_node_has_to_be_told_where_there_are_several() {
    let text = with("''");
    for (text, node, code) in [
        (text.as_str(), None, 2),
        (text.as_str(), Some("c"), 2),
        ("a: 1\n", None, 64),
        ("nodes: [\n", None, 65),
        ("nodes:\n- {hostName: a}\n", None, 64),
        ("nodes:\n- hostName: a\n  ignitionConfigOverride: &x '{\"ignition\":{\"version\":\"3.2.0\"}}'\n", None, 64),
    ] {
        let error = put(text, node, &wanted(Some(200), 2000)).unwrap_err();
        assert_eq!(exit_code(&error), code, "{text}: {error:#}");
    }
    assert!(format!("{:#}", put(&text, None, &wanted(None, 2000)).unwrap_err()).contains("a.example.com, b"));
}

#[test]
fn the_other_kinds_of_file_are_edited_too() {
    let instance = "kind: ClusterInstance\nspec:\n  nodes:\n    - hostName: a\n      role: master\n";
    for text in
        [instance.to_owned(), instance.replace('\n', "\r\n"), "nodes:\n- hostName: a".to_owned(), "nodes:\n- \"hostName\": a\n".to_owned()]
    {
        let edited = put(&text, None, &wanted(None, 2000)).unwrap();
        let new = edited.text.unwrap();
        assert!(new.contains("ignitionConfigOverride: '{\"ignition\""), "{new}");
        assert_eq!(new.contains('\r'), text.contains('\r'), "{new:?}");
    }
}

/// Whatever is done to a file, it is refused with a documented code, or edited so that it says what it was to say, and nothing panics.
#[test]
fn no_file_is_edited_wrongly() {
    let old = r#"'{"ignition":{"version":"3.2.0"},"storage":{"disks":[{"device":"/dev/disk/by-id/x"}]}}' # why"#;
    let whole = with(old);
    let mut edited = 0;
    // Every place would take too long for a test that is often run.
    for at in (0..whole.len()).step_by(5) {
        for change in ["", "'", "\"", "\n", "#", ": ", "|", "- ", "\u{e9}"] {
            let text = format!("{}{change}{}", &whole[..at], &whole[(at + usize::from(change.is_empty())).min(whole.len())..]);
            match put(&text, Some("b"), &wanted(Some(200), 2000)) {
                Err(error) => assert!([2, 64, 65].contains(&exit_code(&error)), "{text}: {error:#}"),
                Ok(Edited { text: None, .. }) => panic!("it has no partition: {text}"),
                Ok(new) => {
                    edited += 1;
                    let again = put(&only_the_value(&text, &new), Some("b"), &wanted(Some(200), 2000)).unwrap();
                    assert_eq!((again.text, again.value), (None, new.value), "{text}");
                }
            }
        }
    }
    assert!(edited > 100, "{edited}");
}
