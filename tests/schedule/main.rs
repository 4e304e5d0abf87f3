//! Schedules from outside: the binary on an emulated node, with its units and the state it writes.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testing::etcd::Version;
use testing::node::{Kind, Node, Options, checked};

const GUIDE: &str = include_str!("../fixtures/k0rdent/management-backup.yaml");
const FILE: &str = "/var/lib/recovery/schedules/example-backup.json";
const UNITS: [&str; 3] = [
    "/etc/systemd/system/recovery-schedule.service",
    "/etc/systemd/system/recovery-schedule.timer",
    "/etc/systemd/system/timers.target.wants/recovery-schedule.timer",
];
const WAKE: &str = "/run/systemd/system/recovery-schedule.timer.d/10-next.conf";
const LABEL: &str = "k0rdent.mirantis.com/management-backup";

/// A node with its control plane up, and the directory that is removed after it: what is dropped last stands first.
fn node(kind: Kind) -> Result<(tempfile::TempDir, Node)> {
    node_with(&Options::new(kind, &Version::V34.program("etcd")?))
}

fn node_with(options: &Options) -> Result<(tempfile::TempDir, Node)> {
    let temporary = tempfile::tempdir()?;
    let node = Node::build(temporary.path(), options)?;
    node.wait_containers(&["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"])?;
    Ok((temporary, node))
}

/// What the agent ended with, and all that it said.
fn run(node: &Node, args: &[&str]) -> Result<(i32, String)> {
    let output = node.recovery()?.args(args).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // Commands are shown as they have to be typed, with the agent's path; here they are the words of the manual.
    let said = said.replace(&format!("`{} ", env!("CARGO_BIN_EXE_recovery")), "`recovery ");
    Ok((output.status.code().context("the agent was killed")?, said))
}

fn ended(node: &Node, args: &[&str], code: i32, says: &[&str]) -> Result<String> {
    let (got, said) = run(node, args)?;
    ensure!(got == code, "{args:?} ended with {got}, not {code}: {said}");
    for words in says {
        ensure!(said.contains(words), "{args:?} does not say `{words}`: {said}");
    }
    Ok(said)
}

fn report(node: &Node, args: &[&str]) -> Result<Value> {
    let output = node.recovery()?.arg("--json").args(args).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).with_context(|| format!("{args:?} printed {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Applies a file with this in it.
fn apply(node: &Node, text: &str, code: i32, says: &[&str]) -> Result<String> {
    let file = node.place().dir().join("file.yaml");
    std::fs::write(&file, text)?;
    ended(node, &["schedule", "apply", "-f", file.to_str().context("odd name")?], code, says)
}

/// Changes what is written of the schedule.
fn edit(node: &Node, change: impl FnOnce(&mut Value)) -> Result<()> {
    testing::sealed::edit(&node.at(FILE), change)
}

fn written(node: &Node) -> Result<Value> {
    testing::sealed::read(&node.at(FILE))
}

/// As if the node had been off for a day.
fn miss(node: &Node) -> Result<()> {
    let yesterday = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24);
    edit(node, |schedule| (schedule["base"], schedule["waiting"], schedule["ran"]) = (json!(yesterday), Value::Null, Value::Null))
}

/// The backups, newest first: name, label, who asked.
fn backups(node: &Node) -> Result<Vec<(String, String, String)>> {
    let list = report(node, &["list"])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let complete = list.as_array().context("no list")?.iter().filter(|one| one["state"] == "complete");
    Ok(complete.map(|one| (text(&one["name"]), text(&one["labels"][LABEL]), text(&one["asked_by"]))).collect())
}

fn nothing_is_left(node: &Node) -> Result<()> {
    for path in UNITS.iter().chain(&[WAKE, FILE, "/var/lib/recovery/schedules/directory"]) {
        ensure!(node.at(path).symlink_metadata().is_err(), "{path} is there");
    }
    Ok(())
}

/// When the timer elapses, by the drop-in, as systemd itself reads it.
fn woken(node: &Node) -> Result<String> {
    let text = std::fs::read_to_string(node.at(WAKE))?;
    let when = text.lines().find_map(|line| line.strip_prefix("OnCalendar=")).context("it says no time")?;
    checked(Command::new("systemd-analyze").args(["calendar", when]))?;
    Ok(when.to_owned())
}

#[test]
fn what_is_refused_leaves_nothing() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm)?;
    let with = |from: &str, to: &str| GUIDE.replacen(from, to, 1);
    for (text, code, says) in [
        (with("schedule:", "shedule:"), 2, "unknown field `shedule`"),
        (with("  performOn", "  timeZone: UTC\n  performOn"), 2, "unknown field `timeZone`"),
        (with("0 */6 * * *", "0 */6 * *"), 2, "4 fields, not 5"),
        (with("0 */6 * * *", "0 0 31 2 *"), 2, "never occurs"),
        (with("0 */6 * * *", "CRON_TZ=Nowhere/Bad @daily"), 2, "no time zone `Nowhere/Bad`"),
        (with("0 */6 * * *", "@every 30s"), 64, "every 30 s"),
        (with("  performOn", "  storageLocation: aws-s3\n  performOn"), 64, "storageLocation is `aws-s3`"),
        (with("  schedule: \"0 */6 * * *\"\n", ""), 64, "backup --name example-backup`"),
        (with("kind: ManagementBackup", "kind: Backup"), 64, "a Backup of"),
        ("text".to_owned(), 2, "no object of Kubernetes"),
        // All or nothing.
        (format!("{GUIDE}---\n{}", with("example-backup", "other").replace("*/6", "25")), 2, "the schedule other"),
    ] {
        apply(&node, &text, code, &[says])?;
        nothing_is_left(&node)?;
    }
    for (args, code, says) in [
        (&["schedule", "set", "a"][..], 2, "needs --cron"),
        (&["schedule", "set", "A", "--cron", "@daily"], 2, "cannot name a schedule"),
        (&["schedule", "set", "a", "--cron", "TZ=UTC @daily", "--time-zone", "Asia/Tokyo"], 2, "give one of them"),
        (&["schedule", "set", "a", "--cron", "@daily", "--keep", "0"], 2, "--keep"),
        (&["schedule", "apply", "-f", "/nowhere/file"], 1, "/nowhere/file"),
        (&["schedule", "show", "a"], 78, "no schedule `a`"),
        (&["schedule", "delete", "a"], 78, "no schedule `a`"),
        (&["schedule", "run", "a"], 78, "no schedule `a`"),
    ] {
        ended(&node, args, code, &[says])?;
        nothing_is_left(&node)?;
    }
    ensure!(report(&node, &["schedule", "list"])? == json!([]));
    ended(&node, &["schedule", "due"], 0, &["nothing is due"])?;
    // Without systemd nobody would be woken.
    node.fault("systemctl", "show", None, testing::node::Wrong::Fail("Failed to connect to bus".to_owned(), 1))?;
    apply(&node, GUIDE, 1, &["asking systemd for its timers"])?;
    nothing_is_left(&node)
}

#[test]
fn how_often_it_may_be_is_looked_at_as_soon_as_a_backup_tells_and_at_each_run() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm)?;
    let unknown = "it is every 1800 s at times, and no backup tells yet how long one takes";
    ended(&node, &["schedule", "set", "example-backup", "--cron", "*/30 * * * *"], 0, &[unknown])?;
    ensure!(ended(&node, &["schedule", "list"], 0, &[])?.contains(unknown));
    ended(&node, &["schedule", "run", "example-backup"], 0, &[])?;
    let listed = report(&node, &["schedule", "list"])?;
    ensure!(listed[0]["pace"].is_null(), "{listed}");

    // The node has more to save by now.
    let list = report(&node, &["list"])?;
    let file = node.at(&format!("/var/recovery/backups/{}/manifest.json", list[0]["id"].as_str().context("no id")?));
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    ensure!(manifest["seconds"].as_u64().is_some_and(|seconds| seconds < 600), "{manifest}");
    manifest["seconds"] = 2000.into();
    std::fs::write(&file, manifest.to_string())?;
    let often = "it is every 1800 s at times, and the last backup took 2000 s";
    for verb in ["list", "show"] {
        let args = ["schedule", verb, "example-backup"];
        ended(&node, if verb == "list" { &args[..2] } else { &args[..] }, 0, &[often])?;
    }
    ended(&node, &["schedule", "set", "other", "--cron", "*/30 * * * *"], 64, &["every 1800 s at times", "took 2000 s"])?;
    ended(&node, &["schedule", "set", "example-backup", "--keep", "2"], 0, &[often])?;
    miss(&node)?;
    ended(&node, &["schedule", "due"], 0, &["has the backup", often])?;
    // That run tells again.
    ensure!(!ended(&node, &["schedule", "list"], 0, &[])?.contains("at times"));
    Ok(())
}

#[test]
fn the_guides_file_word_for_word_from_its_first_run_to_its_end() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift)?;
    let said = apply(&node, GUIDE, 0, &["the schedule example-backup is set: 0 */6 * * *", "  next      20"])?;
    ensure!(said.matches(":00:00Z\n").count() == 3, "not three instants: {said}");
    let mode = |path: &str| -> Result<u32> { Ok(node.at(path).metadata()?.permissions().mode() & 0o7777) };
    ensure!((mode("/var/lib/recovery/schedules")?, mode(FILE)?) == (0o700, 0o600));
    ensure!(node.at("/var/recovery/recovery").exists(), "what the unit runs is not there");
    let calls: Vec<String> = node.calls()?.into_iter().filter(|call| call.tool == "systemctl").map(|call| call.args).collect();
    let after = |words: &str| calls.iter().rposition(|args| args.contains(words)).with_context(|| format!("no {words} in {calls:?}"));
    ensure!(after("daemon-reload")? < after("restart recovery-schedule.timer")?);
    // What systemd itself thinks of it; the agent is where the unit says it is.
    let units = node.place().dir().join("verify");
    std::fs::create_dir(&units)?;
    for (unit, path) in [("recovery-schedule.service", UNITS[0]), ("recovery-schedule.timer", UNITS[1])] {
        let text = std::fs::read_to_string(node.at(path))?.replace("/var/recovery/recovery", "/bin/true");
        std::fs::write(units.join(unit), text)?;
        let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(units.join(unit)).output()?;
        let complaints = String::from_utf8_lossy(&verify.stderr).lines().filter(|line| line.contains("recovery-schedule")).count();
        ensure!(complaints == 0, "{}", String::from_utf8_lossy(&verify.stderr));
    }
    let shown = report(&node, &["schedule", "show", "example-backup"])?;
    let next = shown["next"].as_str().context("no next")?.to_owned();
    ensure!(shown["instants"][0] == next.as_str() && shown["before_upgrade"] == true && shown["time_zone"] == "UTC", "{shown}");
    ensure!(woken(&node)? == next.replace('T', " ").replace('Z', " UTC"), "{} for {next}", woken(&node)?);
    ended(&node, &["schedule", "due"], 0, &["nothing is due"])?;

    // A run that was missed.
    ended(&node, &["backup", "--name", "by-hand"], 0, &[])?;
    miss(&node)?;
    ended(&node, &["schedule", "due"], 0, &["the schedule example-backup has the backup 20"])?;
    let all = backups(&node)?;
    let (name, label, asked_by) = &all[0];
    let digits = name.strip_prefix("example-backup-").context("not its name")?;
    ensure!(digits.len() == 14 && digits.chars().all(|c| c.is_ascii_digit()), "{name}");
    ensure!((label.as_str(), asked_by.as_str()) == ("example-backup", "schedule/example-backup"), "{all:?}");
    ended(&node, &["schedule", "due"], 0, &["nothing is due"])?;
    ensure!(backups(&node)?.len() == 2, "missed runs are one");
    let listed = report(&node, &["schedule", "list"])?;
    ensure!(
        listed[0]["last"]["name"] == name.as_str() && listed[0]["waiting"].is_null() && listed[0]["good"] == listed[0]["last"],
        "{listed}"
    );

    // Applying it again keeps what became of it, and what only `set` says.
    ended(&node, &["schedule", "set", "example-backup", "--keep", "1", "--time-zone", "Europe/Berlin"], 0, &["Europe/Berlin (20"])?;
    apply(&node, GUIDE, 0, &[])?;
    let again = report(&node, &["schedule", "show", "example-backup"])?;
    ensure!(again["keep"] == 1 && again["time_zone"] == "Europe/Berlin" && again["last"] == listed[0]["last"], "{again}");

    // Its backups count by themselves.
    miss(&node)?;
    ended(&node, &["schedule", "due"], 0, &[])?;
    let all = backups(&node)?;
    ensure!(all.len() == 2 && all[0].0 != *name && all[1].0 == "by-hand", "{all:?}");
    ended(&node, &["backup", "--keep", "1", "--name", "newer"], 0, &[])?;
    let names: Vec<String> = backups(&node)?.into_iter().map(|(name, ..)| name).collect();
    ensure!(names[0] == "newer" && names.len() == 2 && names[1].starts_with("example-backup-"), "{names:?}");
    // When it is asked for, and due or not.
    ended(&node, &["schedule", "run", "example-backup"], 0, &["has the backup"])?;
    ensure!(backups(&node)?.len() == 2);

    // A restored /etc has the units again with the next backup, whatever it had.
    UNITS.iter().try_for_each(|unit| std::fs::remove_file(node.at(unit)))?;
    ended(&node, &["backup", "--keep", "1"], 0, &[])?;
    ensure!(UNITS.iter().all(|unit| node.at(unit).symlink_metadata().is_ok()));

    ended(&node, &["schedule", "set", "example-backup", "--paused"], 0, &["it is paused"])?;
    ensure!(!node.at(WAKE).exists());
    let last_stop = node.calls()?.into_iter().rev().find(|call| call.tool == "systemctl" && call.args.contains("recovery-schedule.timer"));
    ensure!(last_stop.is_some_and(|call| call.args.starts_with("show")), "the timer is not stopped and looked at");
    miss(&node)?;
    ended(&node, &["schedule", "due"], 0, &["nothing is due"])?;
    ended(&node, &["schedule", "set", "example-backup", "--paused=false"], 0, &[])?;
    ended(&node, &["schedule", "due"], 0, &["nothing is due"])?;
    ensure!(node.at(WAKE).exists());

    ended(&node, &["schedule", "delete", "example-backup"], 0, &["its backups stay"])?;
    nothing_is_left(&node)?;
    let left = backups(&node)?;
    ensure!(left.len() == 2, "{left:?}");
    // Nor does another backup remove them.
    ended(&node, &["schedule", "due", "--arm"], 0, &[])?;
    nothing_is_left(&node)
}

#[test]
fn what_is_in_the_way_is_said_and_it_is_tried_again() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift)?;
    apply(&node, GUIDE, 0, &[])?;
    miss(&node)?;
    // An upgrade, or whatever else an operator is at.
    let key = "/kubernetes.io/config.openshift.io/clusteroperators/machine-config";
    let (_, calm) = node.keys()?.into_iter().find(|(one, _)| one == key.as_bytes()).context("no such operator")?;
    let mut busy: Value = serde_json::from_slice(&calm)?;
    for condition in busy["status"]["conditions"].as_array_mut().context("no conditions")? {
        if condition["type"] == "Progressing" {
            condition["status"] = json!("True");
        }
    }
    node.put_key(key, &busy.to_string())?;
    ended(&node, &["schedule", "due"], 75, &["waits:", "not at rest: the operator machine-config"])?;
    ended(&node, &["schedule", "list"], 0, &["failed (busy)", "waits since", "the operator machine-config"])?;
    let one = report(&node, &["schedule", "show", "example-backup"])?;
    ensure!(one["waiting"]["attempts"] == 1 && one["waits"].as_str().is_some_and(|why| why.contains("machine-config")), "{one}");
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(6);
    ensure!(one["next"].as_str().context("no next")?.parse::<jiff::Timestamp>()? < soon, "{one}");
    // It is not tried again before that, and the timer knows.
    ended(&node, &["schedule", "due"], 75, &["machine-config"])?;
    ensure!(written(&node)?["waiting"]["attempts"] == 1);
    ended(&node, &["schedule", "due", "--arm"], 0, &[])?;
    ensure!(woken(&node)?.trim_end_matches(" UTC").replace(' ', "T") + "Z" < soon.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    ended(&node, &["schedule", "run", "example-backup"], 75, &["not at rest"])?;
    ended(&node, &["schedule", "run", "example-backup", "--force"], 0, &["taken although the cluster was not at rest"])?;
    node.put_key(key, &String::from_utf8(calm)?)?;

    // A recovery, or somebody who has the lock.
    let dir = recovery::node::dir::RecoveryDir::new(&node.agent(), Path::new("/var/recovery"));
    let before = backups(&node)?.len();
    miss(&node)?;
    std::fs::write(node.at("/var/recovery/progress"), "{}")?;
    ended(&node, &["schedule", "due"], 75, &["waits: a recovery is in progress"])?;
    ended(&node, &["schedule", "list"], 0, &["a recovery is in progress"])?;
    ended(&node, &["schedule", "run", "example-backup", "--force"], 75, &["a recovery is in progress"])?;
    std::fs::remove_file(node.at("/var/recovery/progress"))?;
    let lock = dir.lock("backup")?;
    ended(&node, &["schedule", "due"], 75, &["waits: /var/recovery is locked by `recovery backup`"])?;
    ended(&node, &["schedule", "list"], 0, &["locked by `recovery backup`"])?;
    ended(&node, &["schedule", "set", "example-backup", "--keep", "2"], 75, &["locked"])?;
    drop(lock);
    ensure!(backups(&node)?.len() == before, "a backup was taken all the same");

    // Two at once: one takes it, the other waits.
    let mut two = Vec::new();
    for _ in 0..2 {
        two.push(node.recovery()?.args(["schedule", "due"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    }
    let mut codes = two.iter_mut().map(|child| child.wait()?.code().context("killed")).collect::<Result<Vec<i32>>>()?;
    codes.sort_unstable();
    ensure!(codes == [0, 75] || codes == [0, 0], "{codes:?}");
    ensure!(backups(&node)?.len() == before + 1, "{:?}", backups(&node)?);

    // Whose schedules they are, and who could have written them.
    ended(&node, &["--dir", "/var/other", "schedule", "list"], 78, &["into /var/recovery, not /var/other"])?;
    ended(&node, &["--dir", "/var/other", "schedule", "set", "b", "--cron", "@daily"], 78, &["not /var/other"])?;
    let schedules = node.at("/var/lib/recovery/schedules");
    std::fs::set_permissions(&schedules, Permissions::from_mode(0o777))?;
    ended(&node, &["schedule", "due"], 77, &["others could have written"])?;
    std::fs::set_permissions(&schedules, Permissions::from_mode(0o700))?;
    // One that is damaged keeps no other from running.
    miss(&node)?;
    std::fs::write(schedules.join("bad.json"), "{\"version\": 1}")?;
    ended(&node, &["schedule", "due"], 65, &["the schedule example-backup has the backup", "schedules/bad.json"])?;
    ended(&node, &["schedule", "list"], 0, &["cannot be read"])?;
    ended(&node, &["schedule", "delete", "bad"], 0, &[])?;
    ended(&node, &["schedule", "due"], 0, &["nothing is due"]).map(drop)
}

/// `due` is killed where it writes its state, its journal, and the backup's name; then it is woken again.
#[test]
fn a_run_that_is_killed_anywhere_is_one_backup_in_the_end() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm)?;
    apply(&node, GUIDE, 0, &[])?;
    let agent = node.recovery()?;
    let program: PathBuf = agent.get_program().into();
    let (mut killed, mut adopted) = (0, 0);
    for number in 1.. {
        miss(&node)?;
        ended(&node, &["schedule", "set", "example-backup", "--keep", "100"], 0, &[])?;
        let before = backups(&node)?.len();
        let inject = format!("inject=/^rename:signal=KILL:when={number}");
        let mut strace = Command::new("strace");
        strace.args(["-qq", "-f", "-o", "/dev/null", "-e", "trace=/^rename", "-e", &inject]).arg(&program).args(agent.get_args());
        strace.args(["schedule", "due"]).stdin(Stdio::null());
        strace.envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = strace.output().context("running strace (package strace)")?;
        if output.status.success() {
            break;
        }
        ensure!(output.status.code().is_none(), "{}", String::from_utf8_lossy(&output.stderr));
        killed += 1;
        // The timer is armed by what systemd runs afterwards; a boot makes another moment of it.
        ended(&node, &["schedule", "due", "--arm"], 0, &[])?;
        ensure!(node.at(WAKE).exists());
        let half_a_day_ago = json!(jiff::Timestamp::now() - jiff::SignedDuration::from_hours(12));
        edit(&node, |schedule| {
            if !schedule["waiting"].is_null() {
                schedule["waiting"]["tried"]["boot"] = json!("another");
                schedule["waiting"]["tried"]["wall"] = half_a_day_ago.clone();
                schedule["last"]["begun"] = half_a_day_ago.clone();
            }
        })?;
        let said = ended(&node, &["schedule", "due"], 0, &[])?;
        let is_adopted = said.contains("it was taken before");
        adopted += usize::from(is_adopted);
        let all = backups(&node)?;
        ensure!(all.len() == before + 1, "{number}: {said}{all:?}");
        let state = written(&node)?;
        ensure!(state["waiting"].is_null() && state["last"]["name"] == all[0].0.as_str(), "{number}: {state}");
        ensure!(!is_adopted || state["base"] == half_a_day_ago, "what was missed since it began is not due: {state}");
    }
    ensure!(killed > 8 && adopted > 0, "killed {killed} times, {adopted} of them after the backup was complete");
    Ok(())
}

#[test]
fn a_full_disk_is_said_with_what_lies_there_and_costs_no_backup() -> Result<()> {
    let options = Options { recovery_disk: Some(300), ..Options::new(Kind::Kubeadm, &Version::V34.program("etcd")?) };
    let (_temporary, node) = node_with(&options)?;
    apply(&node, GUIDE, 0, &[])?;
    ended(&node, &["backup"], 0, &[])?;
    ended(&node, &["schedule", "run", "example-backup"], 0, &[])?;
    miss(&node)?;
    let filler = node.at("/var/recovery/filler");
    checked(
        Command::new("bash").args(["-euc", "fallocate -l $(($(stat -f -c '%a * %S' \"${1%/*}\") - 9000000)) $1", "bash"]).arg(&filler),
    )?;
    let said = ended(
        &node,
        &["schedule", "due"],
        73,
        &["waits:", "of the backups there, 1 are of this schedule, which keeps 3", "and 1 are not"],
    )?;
    ensure!(said.contains("`recovery schedule set example-backup --keep N`"), "{said}");
    ended(&node, &["schedule", "list"], 0, &["failed (no-space)", "waits since"])?;
    ensure!(backups(&node)?.len() == 2);
    std::fs::remove_file(filler)?;
    edit(&node, |schedule| schedule["waiting"]["tried"]["boot"] = json!("another"))?;
    ended(&node, &["schedule", "due"], 0, &["has the backup"]).map(drop)
}
