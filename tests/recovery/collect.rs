//! `collect`: what is in the archive, and that no secret of the node is, wherever it may have leaked to.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use data_encoding::BASE64;
use recovery::collect::redact::REDACTED;
use serde_json::Value;
use walkdir::WalkDir;

use crate::place::Place;
use crate::through::{json, node, ok, run};
use testing::node::{Kind, Node, checked};
use testing::place::Wrong;

const TOOL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recovery/collect-tool.sh");
/// What is planted besides the node's own keys.
const PASSWORD: &str = "correct-horse-battery-staple";
const BEARER: &str = "sha256~v3ryLongAndVerySecretTokenOfAnAdmin0123";
const JWT: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImFiYyJ9.eyJpc3MiOiJrdWJlcm5ldGVzL3NlcnZpY2VhY2NvdW50In0.c2lnbmVkLWJ5LXRoZS1zZXJ2ZXI";

/// The archive's files, unpacked by tar(1), below its one directory.
fn unpacked(archive: &Path) -> Result<BTreeMap<String, String>> {
    let dir = tempfile::tempdir()?;
    checked(Command::new("tar").arg("--zstd").arg("-xf").arg(archive).arg("-C").arg(dir.path()))?;
    let tops: Vec<_> = std::fs::read_dir(dir.path())?.collect::<Result<_, _>>()?;
    ensure!(tops.len() == 1, "{tops:?}");
    let top = tops[0].path();
    let files = WalkDir::new(&top).into_iter().filter_map(Result::ok).filter(|entry| entry.file_type().is_file());
    files
        .map(|entry| Ok((entry.path().strip_prefix(&top)?.display().to_string(), String::from_utf8(std::fs::read(entry.path())?)?)))
        .collect()
}

/// The private keys of the node: the file and its text.
fn keys(node: &Node) -> Result<Vec<(String, String)>> {
    let trees = ["/etc/kubernetes", "/var/lib/kubelet"].map(|tree| node.at(tree));
    let mut keys = Vec::new();
    for entry in trees
        .iter()
        .flat_map(|tree| WalkDir::new(tree).follow_links(true))
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file())
    {
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        if text.contains("PRIVATE KEY") {
            keys.push((entry.path().display().to_string(), text));
        }
    }
    ensure!(!keys.is_empty(), "the node has no private key");
    Ok(keys)
}

/// The lines of a key between its begin and its end: its secret.
fn body(key: &str) -> Vec<&str> {
    let inside = key.lines().skip_while(|line| !line.contains("PRIVATE KEY")).skip(1).take_while(|line| !line.contains("-----"));
    inside.filter(|line| line.len() > 20).collect()
}

/// A log of what goes wrong in programs: keys and tokens in all forms, each with a word before it that is to stay.
fn leaks(key: &str) -> String {
    let stamp = |text: &str| text.lines().map(|line| format!("2026-11-30T00:00:00.000000+0000 n kubelet[7]: {line}\n")).collect::<String>();
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\nusers:\n- name: admin\n  user:\n    client-key-data: {}\n    token: {BEARER}\n",
        BASE64.encode(key.as_bytes())
    );
    [
        format!("planted-1 the key is\n{key}"),
        format!("planted-2 {}", serde_json::json!({"tls.key": key, "password": PASSWORD, "x": "stays-2"})),
        format!("planted-3 a kubeconfig:\n{kubeconfig}"),
        format!("planted-4 and in base64 {} stays-4", BASE64.encode(kubeconfig.as_bytes())),
        format!("planted-5 curl -H 'Authorization: Bearer {JWT}' https://api:6443/ stays-5"),
        format!("planted-6 started with --token {BEARER} --password={PASSWORD} stays-6"),
        format!("planted-7 env HTTP_PROXY=http://site:{PASSWORD}@proxy:3128/ DB_PASSWORD={PASSWORD} stays-7"),
        format!("planted-8 the answer was {JWT}, stays-8"),
        format!(r#"planted-9 {{"env":[{{"name":"API_TOKEN","value":"{PASSWORD}"}}]}} stays-9"#),
    ]
    .map(|leak| stamp(&leak))
    .concat()
}

#[test]
fn everything_that_support_needs_is_in_it_and_no_secret() -> Result<()> {
    let (temporary, node) = node(Kind::OpenShift, |_| ())?;
    for tool in ["journalctl", "df", "findmnt", "crio"] {
        symlink(TOOL, node.place().tools().join(tool))?;
    }
    ok(&node, &["backup", "--name", "before", "--label", "site-password=hunter2", "--label", "site=north"])?;
    let keys = keys(&node)?;
    let key = &keys[0].1;
    std::fs::write(node.place().state("log"), leaks(key))?;
    // In what the agent itself keeps: warnings quote what programs say, and rules of a resource modifier may have anything in them.
    let history = node.at("/var/recovery/history");
    std::fs::create_dir_all(&history)?;
    std::fs::write(
        history.join("r1.json"),
        serde_json::json!({"run": {"warnings": [format!("planted-10 it said password={PASSWORD} stays-10")]}}).to_string(),
    )?;
    std::fs::write(
        history.join("r1.progress"),
        format!("{}\n", serde_json::json!({"detail": {"rules": format!("planted-11\npassword: {PASSWORD}\nsite: stays-11")}})),
    )?;
    let status = format!("[{{\"x\":\"planted-12 token={BEARER}\"}}]");
    node.fault("rpm-ostree", "status --json", None, Wrong::Print(status))?;
    node.fault("crictl", "pods", None, Wrong::Fail(format!("planted-13 rpc error: password: {PASSWORD}"), 1))?;

    // In the middle of a recovery, with an agent at work.
    let held = node.agent();
    let held = recovery::node::dir::RecoveryDir::new(&held, Path::new("/var/recovery")).lock("resume")?;
    let file = temporary.path().join("collected.tar.zst");
    let to = file.to_str().context("a name")?;
    let report = json(&node, &["collect", "--to", to])?;
    drop(held);

    ensure!(file.metadata()?.mode() & 0o7777 == 0o600, "others may read it");
    ensure!(std::fs::read_dir(temporary.path())?.filter_map(Result::ok).all(|entry| !entry.file_name().to_string_lossy().starts_with('.')));
    let files = unpacked(&file)?;
    let mut secrets: Vec<&str> = vec![PASSWORD, BEARER, JWT, "hunter2", JWT.split('.').nth(1).context("a part")?];
    secrets.extend(keys.iter().flat_map(|(_, key)| body(key)));
    let encoded = BASE64.encode(key.as_bytes());
    secrets.extend([&encoded[40..100], &encoded[encoded.len() - 60..]]);
    for (name, text) in &files {
        for secret in &secrets {
            ensure!(!text.contains(secret), "{name} has {secret}");
        }
        ensure!(!text.contains("PRIVATE KEY"), "{name} has a key");
    }

    // What was around each of them is there.
    let log = &files["logs/kubelet.service.txt"];
    let stay = (1..10).map(|number| format!("planted-{number}")).chain([2, 4, 5, 6, 7, 8, 9].map(|number| format!("stays-{number}")));
    for word in stay {
        ensure!(log.contains(&word), "{word} is gone: {log}");
    }
    ensure!(
        log.lines().find(|line| line.contains("planted-6")).is_some_and(|line| line.contains(&format!("--password={REDACTED}"))),
        "{log}"
    );
    let all = |parts: &[&str]| files.iter().any(|(_, text)| parts.iter().all(|part| text.contains(part)));
    ensure!(all(&["planted-10 ", "stays-10", REDACTED]) && all(&["planted-11", "stays-11", REDACTED]));
    ensure!(
        files["deployments/rpm-ostree.json"].contains("planted-12") && files["errors.txt"].contains("planted-13 rpc error"),
        "{}",
        files["errors.txt"]
    );
    let id = json(&node, &["list"])?[0]["id"].as_str().context("no id")?.to_owned();
    let manifest: Value = serde_json::from_str(&files[&format!("recovery/backups/{id}/manifest.json")])?;
    ensure!(manifest["labels"] == serde_json::json!({"site": "north", "site-password": REDACTED}), "{manifest}");

    // All that was asked for.
    for name in [
        "recovery/files.txt",
        "recovery/history/r1.json",
        "versions/kubelet.txt",
        "versions/crio.txt",
        "deployments/ostree.txt",
        "disk/df.txt",
    ] {
        ensure!(files.get(name).is_some_and(|text| !text.is_empty()), "{name} is missing: {:?}", files.keys());
    }
    for name in [
        "containers/ps.txt",
        "units/units.txt",
        "logs/recovery.txt",
        "logs/crio.service.txt",
        "logs/recovery-resume.service.txt",
        "node/etc/os-release",
    ] {
        ensure!(files.contains_key(name), "{name} is missing: {:?}", files.keys());
    }
    ensure!(files["control-plane/etcd-data.txt"].contains("member/snap/db"), "{}", files["control-plane/etcd-data.txt"]);
    ensure!(
        !files.keys().any(|name| [".tar", ".db", "kubeconfig"].iter().any(|part| name.contains(part))),
        "the content of a backup is in it"
    );
    let listed: Value = serde_json::from_str(&files["reports/list.json"])?;
    ensure!(listed[0]["id"] == id.as_str() && serde_json::from_str::<Value>(&files["reports/status.json"])?["at_work"].is_string());
    // What could not be had is no end of it, and is said.
    let missing = report["missing"].as_array().context("no list")?;
    let why =
        |name: &str| missing.iter().find(|one| one["name"] == name).and_then(|one| one["why"].as_str()).unwrap_or_default().to_owned();
    ensure!(why("disk/findmnt.txt").contains("as told") && why("disk/lsblk.txt").contains("`lsblk` is missing"), "{report}");
    ensure!(files["contents.txt"].contains("logs/kubelet.service.txt") && files["contents.txt"].contains(REDACTED));
    ensure!(report["entries"].as_array().is_some_and(|entries| entries.len() + 2 == files.len()), "{report}");
    let looked = std::fs::read_to_string(node.place().state("looked"))?;
    ensure!(looked.contains("--lines=20000 --since=-72h --unit crio.service"), "{looked}");

    // A file that is there stays as it is.
    let before = std::fs::read(&file)?;
    run(&node, &["collect", "--to", to])?.expect(2, &["exists already: name a new file"])?;
    ensure!(std::fs::read(&file)? == before);
    Ok(())
}

#[test]
fn a_program_that_hangs_and_a_disk_that_is_full_do_no_harm() {
    let place = Place::new();
    for tool in ["journalctl", "df", "lsblk"] {
        symlink(TOOL, place.temporary.path().join("tools").join(tool)).unwrap();
    }
    place.state("log", &"a line of a log that is far too long, with more in it than anybody reads\n".repeat(200_000));
    for number in 0..3 {
        place.put(&format!("/var/recovery/history/r{number}.progress"), "a line\n".repeat(2 << 20));
    }
    let before = place.files();
    let file = place.temporary.path().join("collected.tar.zst");
    let said = place.agent(&["collect", "--to", file.to_str().unwrap(), "--hours", "5"]).expect(0, &[]).unwrap().out;
    assert!(said.contains("could not be had: disk/lsblk.txt: `") && said.contains("did not end within 20 s"), "{said}");
    assert!(said.contains("logs/kubelet.service.txt, its end") && said.contains(&format!("files are in {}", file.display())), "{said}");
    assert!(said.contains("could not be had: logs/") && said.contains("the archive would have more than 64 MiB"), "{said}");
    assert!(file.metadata().unwrap().len() < 8 << 20, "{said}");
    assert!(before == place.files(), "the node was changed");

    let full = place.agent(&["collect", "--to", "/dev/full/collected.tar.zst"]);
    assert!(full.code == Some(1), "{full}");
    let small = "mount -t tmpfs -o size=64k tmpfs $1; shift; exec \"$@\"";
    let agent = place.agent_command(&["collect", "--to", place.at("/mnt/collected.tar.zst").to_str().unwrap()]);
    std::fs::create_dir(place.at("/mnt")).unwrap();
    std::fs::remove_file(place.temporary.path().join("tools/lsblk")).unwrap();
    place.state("log", &(0..60_000).map(|line| format!("{:x}\n", blake(line))).collect::<String>());
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "bash", "-euc", small, "bash"]).arg(place.at("/mnt")).arg(agent.get_program()).args(agent.get_args());
    let full = crate::through::Ended::from(unshare.output().unwrap());
    assert!(full.code == Some(73) && full.err.contains("--to and a file on a disk that has room"), "{full}");
}

/// Numbers that do not compress.
fn blake(line: u64) -> u128 {
    let hash = |seed: u64| line.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    u128::from(hash(1)) << 64 | u128::from(hash(2) ^ hash(3) >> 7)
}
