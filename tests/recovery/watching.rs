//! What operators look at: metrics, as Prometheus' own tool reads them, with the alerts made of them.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use recovery::backup::manifest::Manifest;
use serde_json::{Value, json};
use testing::cargo::in_checkout;

use crate::place::Place;

const RULES: &str = include_str!("../../packaging/prometheus/recovery.rules.yaml");
const CASES: &str = include_str!("alerts.yaml");
const SCHEDULE: &[u8] = include_bytes!("../fixtures/formats/schedule.1.json");
const LAST_RUN: &[u8] = include_bytes!("../fixtures/formats/last-run.1.json");

/// Prometheus' tool for checks, which `tests/setup.sh promtool` takes out of Debian's package.
fn promtool() -> Command {
    let program = in_checkout("target/promtool/promtool");
    assert!(program.is_file(), "there is no {}: `tests/setup.sh promtool` gets it", program.display());
    let mut limited = Command::new("timeout");
    limited.arg("120").arg(program);
    limited
}

/// A node whose backup `b2` is good for long.
fn good() -> Place {
    let place = Place::new();
    let path = place.back_up("b2", 2);
    let far = Some("2099-02-01T00:00:00Z".parse().unwrap());
    let manifest = Manifest { certificates_expire: far, seconds: Some(73), ..place.manifest("b2", 2) };
    Place::publish(&path, &manifest);
    place
}

/// Gives a node a schedule that has been due for long; its name.
fn scheduled(place: &Place) -> Result<String> {
    let mut schedule: Value = serde_json::from_slice(SCHEDULE)?;
    (schedule["paused"], schedule["base"]) = (json!(false), json!("2020-01-01T00:00:00Z"));
    for what in ["instead", "ran", "waiting"] {
        schedule[what] = Value::Null;
    }
    let name = schedule["name"].as_str().context("no name")?.to_owned();
    place.put("/var/lib/recovery/schedules/directory", "/var/recovery\n");
    place.put(&format!("/var/lib/recovery/schedules/{name}.json"), serde_json::to_vec(&schedule)?);
    Ok(name)
}

/// The metrics of a node, which Prometheus takes.
fn metrics(place: &Place) -> Result<String> {
    let text = place.agent(&["metrics"]).expect(0, &[])?.out;
    let mut check = promtool().args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    std::io::Write::write_all(&mut check.stdin.take().context("no pipe")?, text.as_bytes())?;
    let said = check.wait_with_output()?;
    let said_all = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    ensure!(said.status.success() && said_all.is_empty(), "promtool says of\n{text}{said_all}");
    Ok(text)
}

/// The value of a sample.
fn value(metrics: &str, sample: &str) -> Option<String> {
    metrics.lines().find_map(|line| Some(line.strip_prefix(sample)?.strip_prefix(' ')?.to_owned()))
}

fn has(metrics: &str, samples: &[(&str, &str)]) -> Result<()> {
    for (sample, wanted) in samples {
        ensure!(value(metrics, sample).as_deref() == Some(wanted), "{sample} is not {wanted}:\n{metrics}");
    }
    Ok(())
}

#[test]
fn a_backup_is_told_whatever_else_lies_there() -> Result<()> {
    let place = good();
    let before = metrics(&place)?;
    has(
        &before,
        &[
            ("recovery_info{version=\"0.1.0\",directory=\"/var/recovery\"}", "1"),
            ("recovery_backup_last_good_duration_seconds", "73"),
            ("recovery_backup_last_good_certificates_expire_timestamp_seconds", "4073587200"),
            ("recovery_open", "0"),
            ("recovery_hold", "0"),
            ("recovery_agent_at_work", "0"),
            ("recovery_metrics_errors{part=\"backups\"}", "0"),
        ],
    )?;
    let taken = place.manifest("b2", 2).taken.as_second().to_string();
    has(&before, &[("recovery_backup_last_good_timestamp_seconds", &taken)])?;
    ensure!(value(&before, "recovery_backup_last_good_size_bytes").is_some_and(|bytes| bytes != "0"), "{before}");
    let room = |what: &str| value(&before, &format!("recovery_directory_{what}_bytes")).and_then(|bytes| bytes.parse::<u64>().ok());
    ensure!(room("free") <= room("size") && room("size") > Some(0), "{before}");
    // Nothing is known of a run, and nothing is told.
    ensure!(!before.contains("last_run_") && !before.contains("recovery_schedule_"), "{before}");

    // Newer ones that are damaged, of a newer agent, unfinished, or hostile.
    let at = |name: &str| place.dir.backups().join(name);
    std::fs::create_dir(at("b3"))?;
    std::fs::write(at("b3/manifest.json"), "{")?;
    std::fs::create_dir(at("b4"))?;
    ensure!(Command::new("mkfifo").arg(at("b4/manifest.json")).status()?.success());
    std::fs::write(at("b5"), "no directory")?;
    std::fs::create_dir(at("b6"))?;
    std::fs::write(at("b6/manifest.json"), r#"{"version": 99, "agent": "9.0.0", "sequence": 9}"#)?;
    std::fs::create_dir(at("b7.partial"))?;
    let after = metrics(&place)?;
    has(
        &after,
        &[
            ("recovery_backups{state=\"damaged\"}", "3"),
            ("recovery_backups{state=\"unsupported\"}", "1"),
            ("recovery_backups{state=\"partial\"}", "1"),
            ("recovery_backup_last_good_timestamp_seconds", &taken),
            ("recovery_metrics_errors{part=\"backups\"}", "0"),
        ],
    )?;
    // The same for programs.
    let report: Value = serde_json::from_str(&place.agent(&["--json", "metrics"]).expect(0, &[])?.out)?;
    ensure!(report["backups"]["good"]["id"] == "b2" && report["backups"]["states"]["damaged"] == 3, "{report}");
    Ok(())
}

#[test]
fn runs_and_schedules_are_told_and_what_is_wrong_with_them() -> Result<()> {
    let place = good();
    place.put("/var/lib/recovery/last-backup.json", LAST_RUN);
    let name = scheduled(&place)?;
    let told = metrics(&place)?;
    let of = |what: &str| format!("recovery_schedule_{what}{{schedule=\"{name}\"}}");
    has(
        &told,
        &[
            ("recovery_backup_last_run_success", "0"),
            ("recovery_backup_last_run_exit_code", "73"),
            ("recovery_backup_last_run_info{result=\"no-space\"}", "1"),
            ("recovery_backup_last_run_duration_seconds", "122"),
            ("recovery_metrics_errors{part=\"schedules\"}", "0"),
            (&of("paused"), "0"),
        ],
    )?;
    let now = jiff::Timestamp::now().as_second();
    let time = |what: &str| value(&told, &of(what)).and_then(|time| time.parse::<i64>().ok());
    ensure!(time("next_timestamp_seconds").is_some_and(|next| next > now), "{told}");
    ensure!(time("due_timestamp_seconds").is_some_and(|due| due <= now), "{told}");

    // What cannot be read is a metric itself, says why, and hides nothing else.
    place.put("/var/lib/recovery/schedules/other.json", "{");
    place.put("/var/lib/recovery/last-backup.json", "no JSON\n# HELP recovery_x");
    let told = metrics(&place)?;
    has(
        &told,
        &[("recovery_metrics_errors{part=\"schedules\"}", "1"), ("recovery_metrics_errors{part=\"last-run\"}", "1"), (&of("paused"), "0")],
    )?;
    ensure!(told.contains("\n# last-run: reading /var/lib/recovery/last-backup.json: "), "{told}");
    ensure!(!told.contains("recovery_backup_last_run") && value(&told, "recovery_backup_last_good_duration_seconds").is_some(), "{told}");
    // Another recovery directory's are not this one's.
    place.put("/var/lib/recovery/last-backup.json", LAST_RUN);
    let other = place.agent(&["--dir", "/var/other", "metrics"]).expect(0, &[])?.out;
    ensure!(!other.contains("recovery_schedule_") && !other.contains("last_run") && other.contains("recovery_hold 0"), "{other}");
    Ok(())
}

#[test]
fn a_recovery_is_told_while_it_is_at_work_and_when_it_cannot_be_read() -> Result<()> {
    let place = good();
    place.agent(&["--yes", "recover"]).expect(0, &[])?;
    // Whoever has the lock is not waited for.
    let lock = place.dir.lock("resume")?;
    let told = metrics(&place)?;
    drop(lock);
    let journal = place.journal();
    let info = format!("recovery_open_info{{run=\"{}\",backup=\"b2\",phase=\"restore-files\",step=\"\"}}", journal.run);
    let begun = journal.records[0].time.as_second().to_string();
    has(
        &told,
        &[
            ("recovery_open", "1"),
            (&info, "1"),
            ("recovery_open_begun_timestamp_seconds", &begun),
            ("recovery_open_failed", "0"),
            ("recovery_open_reboot_needed", "1"),
            ("recovery_agent_at_work", "1"),
            ("recovery_hold", "1"),
        ],
    )?;
    let journal = std::fs::read(place.dir.journal())?;
    std::fs::write(place.dir.journal(), [b"{}\n".as_slice(), &journal].concat())?;
    let told = metrics(&place)?;
    has(&told, &[("recovery_open", "1"), ("recovery_metrics_errors{part=\"recovery\"}", "1"), ("recovery_agent_at_work", "0")])?;
    ensure!(!told.contains("recovery_open_info") && value(&told, "recovery_backup_last_good_duration_seconds").is_some(), "{told}");

    // Nor is a directory that others can write to believed, or a reason to say nothing.
    std::fs::set_permissions(place.dir.path(), std::fs::Permissions::from_mode(0o777))?;
    let told = metrics(&place)?;
    has(
        &told,
        &[("recovery_metrics_errors{part=\"recovery\"}", "1"), ("recovery_metrics_errors{part=\"backups\"}", "1"), ("recovery_hold", "1")],
    )?;
    ensure!(!told.contains("last_good"), "{told}");
    Ok(())
}

#[test]
fn the_textfile_takes_the_place_of_the_old_one_and_nothing_else() -> Result<()> {
    let place = good();
    let out = place.temporary.path().join("textfile");
    let to = out.to_str().context("odd name")?;
    place.agent(&["metrics", "--textfile", to]).expect(78, &["is no directory", "--collector.textfile.directory"])?;
    std::fs::create_dir(&out)?;
    let ended = place.agent(&["metrics", "--textfile", to]).expect(0, &[])?;
    ensure!(ended.out.is_empty() && ended.err.is_empty(), "a timer would write that into the journal each minute: {ended}");
    let file = out.join("recovery.prom");
    let first = file.metadata()?;
    ensure!(first.mode() & 0o777 == 0o644, "node_exporter is not root: {:o}", first.mode());
    // Its directory can be another user's.
    let others = place.temporary.path().join("others");
    std::fs::write(&others, "another's")?;
    symlink(&others, out.join(".recovery.prom.new"))?;
    let held = std::fs::File::open(&file)?;
    place.agent(&["metrics", "--textfile", to]).expect(0, &[])?;
    ensure!(held.metadata()?.len() == first.len() && file.metadata()?.ino() != first.ino(), "it was not replaced in one step");
    ensure!(std::fs::read_to_string(&others)? == "another's");
    let names: Vec<_> = std::fs::read_dir(&out)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(names == ["recovery.prom"], "{names:?}");
    ensure!(std::fs::read_to_string(&file)?.contains("\nrecovery_backup_last_good_duration_seconds 73\n"));
    Ok(())
}

/// The words in a text that are names of metrics.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("recovery_")).map(str::to_owned).collect()
}

#[test]
fn alerts_are_of_metrics_that_are_told() -> Result<()> {
    let place = good();
    place.put("/var/lib/recovery/last-backup.json", LAST_RUN);
    scheduled(&place)?;
    place.agent(&["--yes", "recover"]).expect(0, &[])?;
    let metrics = metrics(&place)?;
    let told: BTreeSet<String> = metrics.lines().filter_map(|line| Some(line.split(['{', ' ']).next()?.to_owned())).collect();
    let asked = named(&RULES.lines().filter_map(|line| line.trim().strip_prefix("expr:")).collect::<Vec<_>>().join(" "));
    ensure!(asked.len() > 12, "{asked:?}");
    let unknown: Vec<_> = asked.difference(&told).collect();
    ensure!(unknown.is_empty(), "nobody tells {unknown:?}:\n{metrics}");
    // And what the cases are made of.
    let unknown: Vec<_> = named(CASES).difference(&told).cloned().collect();
    ensure!(unknown.is_empty(), "nobody tells {unknown:?}:\n{metrics}");
    Ok(())
}

#[test]
fn alerts_are_raised_by_what_they_are_for_and_by_nothing_else() -> Result<()> {
    for args in [["check", "rules", "packaging/prometheus/recovery.rules.yaml"], ["test", "rules", "tests/recovery/alerts.yaml"]] {
        let output = promtool().args(args).current_dir(in_checkout("")).output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.success() && said.contains("SUCCESS"), "{args:?}: {said}");
    }
    let alerts: Vec<&str> = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    ensure!(alerts.len() == 11, "{alerts:?}");
    for alert in alerts {
        ensure!(CASES.contains(&format!("alertname=\"{alert}\"")), "nothing raises {alert}");
    }
    Ok(())
}
