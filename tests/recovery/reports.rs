//! Reports for programs: every verb's own, after it has done its work, is one JSON document with what it did.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::place::Place;
use crate::through::{json as report, node};
use testing::node::{Kind, checked};

/// What the agent prints on the small node when it has done it, and nothing else.
fn of(place: &Place, args: &[&str]) -> Value {
    let ended = place.agent(&[&["--json", "--yes"], args].concat()).expect(0, &[]).unwrap();
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{args:?}: {error}: {ended}"))
}

#[test]
fn of_backups_that_are_shown_deleted_and_pruned() {
    let place = Place::new();
    for (id, sequence) in [("b2", 2), ("b3", 3), ("b4", 4), ("b5", 5)] {
        place.back_up(id, sequence);
    }
    let there = || of(&place, &["list"]).as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let shown = of(&place, &["show", "b2"]);
    assert_eq!(
        (&shown["id"], &shown["manifest"]["sequence"], &shown["path"]),
        (&json!("b2"), &json!(2), &json!("/var/recovery/backups/b2"))
    );
    assert!(shown["files"]["etc.tar.zst"].as_u64().is_some_and(|bytes| bytes > 0), "{shown}");
    let deleted = of(&place, &["delete", "b3"]);
    assert_eq!((&deleted["removed"], &deleted["kept"]), (&json!(["b3"]), &json!(["b5", "b4", "b2", "b1"])));
    assert_eq!(there(), ["b5", "b4", "b2", "b1"]);
    let pruned = of(&place, &["prune", "--keep", "2"]);
    assert_eq!((&pruned["removed"], &pruned["kept"]), (&json!(["b2", "b1"]), &json!(["b5", "b4"])), "{pruned}");
    assert_eq!(there(), ["b5", "b4"]);
    // For people, by the default of three and then with nothing left to do.
    place.back_up("b6", 6);
    place.back_up("b7", 7);
    let said = |args: &[&str]| place.agent(args).expect(0, &[]).unwrap().out;
    assert_eq!(said(&["prune", "--yes"]), "deleted b4\nkept: b7, b6, b5\n");
    assert_eq!(said(&["prune", "--yes"]), "nothing to delete\nkept: b7, b6, b5\n");
    assert_eq!(said(&["delete", "b6", "--yes"]), "deleted b6\nkept: b7, b5\n");
    assert_eq!(there(), ["b7", "b5"]);
}

#[test]
fn of_a_recovery_that_is_begun_begun_again_and_given_up() {
    let place = Place::new();
    let begun = of(&place, &["recover"]);
    assert_eq!((&begun["outcome"], &begun["run"]["backup"]), (&json!("rebooting"), &json!("b1")), "{begun}");
    assert!(place.calls().iter().any(|call| call.starts_with("systemctl reboot")), "{:?}", place.calls());
    // What was agreed to once holds for the next attempt.
    let again = of(&place, &["restart"]);
    assert_eq!((&again["outcome"], &again["run"]["backup"]), (&json!("rebooting"), &json!("b1")), "{again}");
    assert!(again["run"]["id"].is_string() && again["run"]["id"] != begun["run"]["id"], "{again}");
    let ended = of(&place, &["abandon"]);
    assert_eq!(ended["run"]["id"], again["run"]["id"], "{ended}");
    assert!(ended["changed"].as_array().is_some_and(|steps| !steps.is_empty()) && ended["state"].is_string(), "{ended}");
    assert!(!place.dir.in_recovery());
    assert_eq!(of(&place, &["abandon"]), Value::Null);
}

#[test]
fn of_the_plumbing() -> Result<()> {
    let (temporary, node) = node(Kind::Kubeadm, |_| ())?;
    let at = |name: &str| temporary.path().join(name).to_string_lossy().into_owned();
    let saved = report(&node, &["etcd", "save", &at("snapshot.db.zst")])?;
    ensure!(
        checked(std::process::Command::new("sha256sum").arg(at("snapshot.db.zst")))?
            .starts_with(saved["sha256"].as_str().context("no sum")?)
    );
    let status = report(&node, &["etcd", "status", &at("snapshot.db.zst")])?;
    ensure!(status["total_keys"] == node.keys()?.len() && status["members"][0]["name"] == "sno-node-0", "{status}");
    let restored = report(&node, &["etcd", "restore", &at("snapshot.db.zst"), "--data-dir", &at("data"), "--name", "it"])?;
    ensure!(restored["name"] == "it" && restored["revision"] == status["revision"], "{restored}");
    ensure!(temporary.path().join("data/member/snap/db").exists());

    std::fs::create_dir(at("tree"))?;
    std::fs::write(at("tree/file"), "content")?;
    report(&node, &["archive", "pack", &at("tree"), &at("a.tar.zst")])?;
    std::fs::write(at("tree/file"), "other")?;
    std::fs::write(at("tree/more"), "more")?;
    let counts = report(&node, &["--yes", "archive", "restore", &at("a.tar.zst"), &at("tree")])?;
    ensure!(counts["replaced"] == 1 && counts["deleted"] == 1 && counts["created"] == 0 && counts["bytes"] == 7, "{counts}");
    Ok(())
}
