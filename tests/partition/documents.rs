//! Ignition configurations, `MachineConfig`s and `SiteConfig`s: compared in meaning with the two examples of the original guide, and read by Ignition's and
//! systemd's own code.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use testing::cargo::in_checkout;

use crate::{printed, recovery, said};

const GUIDES_SITECONFIG: &str = include_str!("../fixtures/partition/siteconfig-override.yaml");
const GUIDES_MACHINECONFIG: &str = include_str!("../fixtures/partition/machineconfig.yaml");
const BY_ID: &str = "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4";
const BY_PATH: &str = "/dev/disk/by-path/pci-0000:18:00.0-scsi-0:2:1:0";

fn yaml(text: &str) -> Value {
    recovery::node::yaml::first(text).unwrap()
}

fn done(args: &[&str]) -> String {
    let output = recovery(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", said(&output));
    printed(&output)
}

/// The override: what is printed can be pasted behind the key, and `--json` has the same text.
fn ignition() -> String {
    let args = ["partition", "ignition", "--device", BY_ID, "--start-mib", "350020", "--size-mib", "40960"];
    let pasted = yaml(&format!("ignitionConfigOverride: {}", done(&args)));
    let json: Value = serde_json::from_str(&done(&[&args[..], &["--json"]].concat())).unwrap();
    assert_eq!(pasted["ignitionConfigOverride"], json["ignitionConfigOverride"]);
    pasted["ignitionConfigOverride"].as_str().unwrap().to_owned()
}

fn machine_config(more: &[&str]) -> String {
    done(&[&["partition", "machineconfig", "--device", BY_PATH, "--size-mib", "51200"], more].concat())
}

/// Each setting of a unit with its section.
fn settings(unit: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut settings = BTreeSet::new();
    for line in unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with('[') {
            line.clone_into(&mut section);
        } else {
            settings.insert(format!("{section} {line}"));
        }
    }
    settings
}

/// The only differences of a unit from the guide's: what is only ours, and what is only the guide's.
fn differences(ours: &Value, guides: &Value) -> (Vec<String>, Vec<String>) {
    let settings = |config: &Value| settings(config["systemd"]["units"][0]["contents"].as_str().unwrap());
    let (ours, guides) = (settings(ours), settings(guides));
    (ours.difference(&guides).cloned().collect(), guides.difference(&ours).cloned().collect())
}

/// Everything but the text of the unit is the guide's, with the label of the file system added, so that both names lead to it.
fn same_but_for_the_unit(ours: &Value, guides: &Value) {
    let mut expected = guides.clone();
    expected["storage"]["filesystems"][0]["label"] = json!("recovery");
    expected["systemd"]["units"][0]["contents"] = ours["systemd"]["units"][0]["contents"].clone();
    assert_eq!(*ours, expected);
}

#[test]
fn the_override_means_what_the_guides_means() {
    let ours: Value = serde_json::from_str(&ignition()).unwrap();
    let guides = yaml(GUIDES_SITECONFIG)["nodes"][0]["ignitionConfigOverride"].as_str().unwrap().to_owned();
    let guides: Value = serde_json::from_str(&guides).unwrap();
    same_but_for_the_unit(&ours, &guides);
    let (only_ours, only_guides) = differences(&ours, &guides);
    // A broken recovery partition must not keep the node from booting.
    assert_eq!(only_guides, ["[Install] RequiredBy=local-fs.target"]);
    assert_eq!(
        only_ours,
        [
            "[Install] WantedBy=local-fs.target",
            "[Mount] Options=nodev,nosuid",
            "[Unit] Before=local-fs.target",
            "[Unit] Description=Recovery partition"
        ]
    );
}

#[test]
fn the_machine_config_means_what_the_guides_means() {
    let (ours, guides) = (yaml(&machine_config(&["--start-mib", "1"])), yaml(GUIDES_MACHINECONFIG));
    for key in ["apiVersion", "kind", "metadata"] {
        assert_eq!(ours[key], guides[key]);
    }
    same_but_for_the_unit(&ours["spec"]["config"], &guides["spec"]["config"]);
    let (only_ours, only_guides) = differences(&ours["spec"]["config"], &guides["spec"]["config"]);
    assert_eq!(only_guides, ["[Mount] Options=defaults"]);
    assert_eq!(only_ours, ["[Mount] Options=nodev,nosuid", "[Mount] Type=xfs", "[Unit] Description=Recovery partition"]);
    // Another pool, and no start; the same as JSON.
    let other = machine_config(&["--role", "edge"]);
    assert_eq!(yaml(&other)["metadata"]["labels"]["machineconfiguration.openshift.io/role"], "edge");
    assert!(yaml(&other)["spec"]["config"]["storage"]["disks"][0]["partitions"][0].get("startMiB").is_none());
    assert_eq!(serde_json::from_str::<Value>(&machine_config(&["--role", "edge", "--json"])).unwrap(), yaml(&other));
}

/// What Ignition's own readers, of all versions that can meet it, say.
fn validated(config: &Value) -> Result<(), String> {
    let built = Command::new("timeout").arg("900").arg(in_checkout("tests/ignition/build.sh")).output().unwrap();
    assert!(built.status.success(), "{}", said(&built));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.ign");
    std::fs::write(&file, config.to_string()).unwrap();
    let output = Command::new(in_checkout("target/ignition/validate")).arg(&file).output().unwrap();
    match output.status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(printed(&output)),
        _ => panic!("{output:?}"),
    }
}

#[test]
fn ignition_itself_has_nothing_to_say() {
    let config: Value = serde_json::from_str(&ignition()).unwrap();
    validated(&config).unwrap();
    for more in [&["--start-mib", "1"][..], &[]] {
        validated(&yaml(&machine_config(more))["spec"]["config"]).unwrap();
    }
    // It would have: two partitions over each other, and a key that is none.
    let mut bad = config.clone();
    let partition = json!({ "label": "other", "startMiB": 350_021, "sizeMiB": 10 });
    bad["storage"]["disks"][0]["partitions"].as_array_mut().unwrap().push(partition);
    assert!(validated(&bad).unwrap_err().contains("overlap"));
    let mut bad = config;
    bad["storage"]["disks"][0]["wipeTabel"] = json!(false);
    assert!(validated(&bad).unwrap_err().contains("3.2"));
}

/// What systemd's own checker says of the unit, with a drop-in perhaps.
fn verified(unit: &str, drop_in: Option<&str>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("var-recovery.mount");
    std::fs::write(&file, unit).unwrap();
    if let Some(drop_in) = drop_in {
        std::fs::create_dir(dir.path().join("var-recovery.mount.d")).unwrap();
        std::fs::write(dir.path().join("var-recovery.mount.d/10.conf"), drop_in).unwrap();
    }
    let output = Command::new("timeout").args(["60", "systemd-analyze", "verify", "--man=no"]).arg(&file).output().unwrap();
    assert!(output.status.code().is_some_and(|code| code < 124), "{output:?}");
    said(&output).lines().filter(|line| line.contains("recovery")).collect::<Vec<_>>().join("\n")
}

#[test]
fn systemds_checker_has_nothing_to_say() {
    let unit = |config: &Value| config["systemd"]["units"][0]["contents"].as_str().unwrap().to_owned();
    let (packaged, drop_in) = (include_str!("../../systemd/var-recovery.mount"), include_str!("../../systemd/10-partlabel.conf"));
    for (unit, drop_in) in [
        (unit(&serde_json::from_str(&ignition()).unwrap()), None),
        (unit(&yaml(&machine_config(&[]))["spec"]["config"]), None),
        (packaged.to_owned(), None),
        (packaged.to_owned(), Some(drop_in)),
    ] {
        assert_eq!(verified(&unit, drop_in), "", "{unit}");
    }
    // It would have.
    assert!(verified(&packaged.replace("Where=/var/recovery", "Where=/elsewhere"), None).contains("Where="));
    assert!(verified(&packaged.replace("Options=", "Optoins="), None).contains("Optoins"));
}

#[test]
fn the_guides_siteconfig_is_edited_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("site.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, GUIDES_SITECONFIG).unwrap();
    let put = |size: &str| {
        done(&[
            "partition",
            "ignition",
            "--device",
            BY_ID,
            "--start-mib",
            "350020",
            "--size-mib",
            size,
            "--siteconfig",
            path,
            "--node",
            "sno1.example.com",
        ])
    };
    assert!(put("30000").contains("sno1.example.com"));
    let new = std::fs::read_to_string(&file).unwrap();
    let others = |text: &str| text.lines().filter(|line| !line.contains("ignitionConfigOverride")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(others(&new), others(GUIDES_SITECONFIG));
    let config: Value = serde_json::from_str(yaml(&new)["nodes"][0]["ignitionConfigOverride"].as_str().unwrap()).unwrap();
    assert_eq!(config["storage"]["disks"][0]["partitions"], json!([{ "label": "recovery", "sizeMiB": 30000, "startMiB": 350_020 }]));
    validated(&config).unwrap();
    assert!(put("30000").contains("nothing to do"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), new);
}

#[test]
fn what_cannot_be_meant_is_refused_and_no_file_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("site.yaml");
    std::fs::write(&file, GUIDES_SITECONFIG).unwrap();
    let path = file.to_str().unwrap();
    let ignition = |device: &str, start: &str, size: &str, more: &[&str]| {
        let args =
            [&["partition", "ignition", "--device", device, "--start-mib", start, "--size-mib", size, "--siteconfig", path], more].concat();
        recovery(&args).status.code().unwrap()
    };
    assert_eq!(ignition("/dev/sda", "1", "40960", &[]), 2);
    assert_eq!(ignition(BY_ID, "0", "40960", &[]), 2);
    assert_eq!(ignition(BY_ID, "1", "10", &[]), 2);
    assert_eq!(ignition(BY_ID, "1", "40960", &["--node", "other"]), 2);
    // The guide's has the partition on another disk.
    assert_eq!(ignition(BY_PATH, "1", "40960", &[]), 64);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), GUIDES_SITECONFIG);
    assert_eq!(recovery(&["partition", "machineconfig", "--device", BY_ID, "--size-mib", "4096", "--role", "A"]).status.code(), Some(2));
    let gone = ["partition", "ignition", "--device", BY_ID, "--start-mib", "1", "--size-mib", "40960", "--siteconfig", "/no/such/file"];
    assert_eq!(recovery(&gone).status.code(), Some(78));
}

/// Ignition knows a disk by the name that it is given: where the machine has it, another name is known too.
#[test]
fn the_same_disk_by_another_name_is_refused_on_the_node_and_warned_of_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let nodes = "cd $1; mkdir -p dev/disk/by-id dev/disk/by-path sys/devices/loop0 sys/devices/loop1 sys/dev/block
                 mknod dev$2 b 7 0; mknod dev$3 b 7 0; mknod dev/disk/by-id/other b 7 1
                 for at in 0 1; do ln -s ../../devices/loop$at sys/dev/block/7:$at; done";
    let (id, path) = (BY_ID.trim_start_matches("/dev"), BY_PATH.trim_start_matches("/dev"));
    assert!(Command::new("sh").args(["-euc", nodes, "sh"]).arg(root.path()).args([id, path]).status().unwrap().success());
    let file = root.path().join("site.yaml");
    let put = |disk: &str, on_the_node: bool| {
        let old = format!(r#"{{"ignition":{{"version":"3.2.0"}},"storage":{{"disks":[{{"device":"{disk}"}}]}}}}"#);
        let text = format!("nodes:\n- hostName: a\n  ignitionConfigOverride: '{old}'\n");
        std::fs::write(&file, &text).unwrap();
        let root = ["--root", root.path().to_str().unwrap()];
        let args =
            ["partition", "ignition", "--device", BY_ID, "--start-mib", "1", "--size-mib", "4096", "--siteconfig", file.to_str().unwrap()];
        let output = recovery(&[if on_the_node { &root[..] } else { &[] }, &args].concat());
        (output.status.code(), said(&output), std::fs::read_to_string(&file).unwrap() == text)
    };
    let (code, words, same) = put(BY_PATH, true);
    assert!(code == Some(2) && words.contains(&format!("next: name it so: --device {BY_PATH}")) && same, "{words}");
    let (code, words, same) = put("/dev/disk/by-id/other", true);
    assert!(code == Some(0) && !words.contains("warning") && !same, "{words}");
    let (code, words, same) = put(BY_PATH, false);
    assert!(code == Some(0) && words.contains(&format!("warning: the override names {BY_PATH} too")) && !same, "{words}");
}

/// Where it runs on the node itself, it knows the disk that the node runs from.
#[test]
fn the_disk_of_the_running_node_is_known_and_needs_a_start() {
    let root = recovery::node::block::root_disks(&recovery::node::Node::live());
    let Some(disk) = root.iter().find(|disk| Path::new("/dev").join(disk).exists()) else {
        panic!("the kernel does not say which disk this machine runs from: {root:?}");
    };
    let device = format!("/dev/{disk}");
    let args = ["partition", "machineconfig", "--device", &device, "--force", "--size-mib", "4096"];
    let output = recovery(&args);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("--start-mib"), "{}", said(&output));
    let manifest = done(&[&args[..], &["--start-mib", "120000"]].concat());
    assert!(manifest.contains(&format!("# {device} is the disk that this node runs from")), "{manifest}");
    assert_eq!(yaml(&manifest)["spec"]["config"]["storage"]["disks"][0]["wipeTable"], false);
}
