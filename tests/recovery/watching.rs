//! What operators look at: metrics, as Prometheus' own tool reads them, with the alerts made of them; the report of a recovery, as text and in a real browser.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
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
    // The disk of the backups did not come up.
    place.put("/etc/systemd/system/var-recovery.mount", "[Mount]\nWhat=/dev/disk/by-label/recovery\n");
    place.put("/etc/systemd/system/local-fs.target.wants/var-recovery.mount", "");
    let told = metrics(&place)?;
    has(&told, &[("recovery_metrics_errors{part=\"room\"}", "1")])?;
    ensure!(
        told.contains("\n# room: /var/recovery is not mounted, although ") && !told.contains("recovery_directory_free_bytes"),
        "{told}"
    );
    // Another recovery directory's are not this one's.
    place.put("/var/lib/recovery/last-backup.json", LAST_RUN);
    let other = place.agent(&["--dir", "/var/other", "metrics"]).expect(0, &[])?.out;
    ensure!(!other.contains("recovery_schedule_") && !other.contains("last_run") && other.contains("recovery_hold 0"), "{other}");
    Ok(())
}

#[test]
fn a_backup_that_could_not_even_begin_is_told_too() -> Result<()> {
    let place = good();
    place.put("/var/lib/recovery/last-backup.json", LAST_RUN);
    let lock = place.dir.lock("verify")?;
    place.agent(&["backup"]).expect(75, &[])?;
    has(&metrics(&place)?, &[("recovery_backup_last_run_exit_code", "73")])?;
    drop(lock);
    std::os::unix::fs::chown(place.dir.path(), Some(65534), None)?;
    place.agent(&["backup"]).expect(77, &[])?;
    let told = metrics(&place)?;
    has(&told, &[("recovery_backup_last_run_success", "0"), ("recovery_backup_last_run_exit_code", "77")])?;
    ensure!(told.contains("recovery_backup_last_run_info{result=\"not-permitted\"} 1"), "{told}");
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
    // Another recovery directory's would take its place each time.
    let other = ["--dir", "/var/other", "metrics", "--textfile", to];
    place
        .agent(&other)
        .expect(78, &["recovery.prom is about the recovery directory /var/recovery, and not about /var/other", "next: leave that to"])?;
    ensure!(std::fs::read_to_string(&file)?.contains("directory=\"/var/recovery\""));
    std::fs::remove_file(&file)?;
    place.agent(&other).expect(0, &[])?;
    place.agent(&other).expect(0, &[])?;
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
    ensure!(alerts.len() == 12, "{alerts:?}");
    for alert in alerts {
        ensure!(CASES.contains(&format!("alertname=\"{alert}\"")), "nothing raises {alert}");
    }
    Ok(())
}

#[test]
fn a_report_is_of_the_run_in_progress_then_of_the_one_that_ended() -> Result<()> {
    let place = Place::new();
    place.agent(&["report"]).expect(78, &["no recovery of this node is known"])?;
    place.agent(&["--yes", "recover"]).expect(0, &[])?;
    let run = place.journal().run;
    let told = place.agent(&["report"]).expect(0, &[])?.out;
    for words in [
        format!("recovery {run}\n  backup      b1\n  node        n\n  agent       recovery 0.1.0\n"),
        "outcome     in progress (".to_owned(),
        "\nrestore-files ".to_owned(),
        "  reboot asked for at ".to_owned(),
        "not back yet".to_owned(),
        "\nnext: `systemctl reboot`\n".to_owned(),
    ] {
        ensure!(told.contains(&words), "it does not say {words}:\n{told}");
    }
    ensure!(told.lines().all(|line| line.len() <= 200), "{told}");
    place.agent(&["--yes", "abandon"]).expect(0, &[])?;
    let told: Value = serde_json::from_str(&place.agent(&["--json", "report", &run]).expect(0, &[])?.out)?;
    ensure!(
        told["end"] == "abandoned" && told["id"] == run.as_str() && !told["changed"].as_array().context("no list")?.is_empty(),
        "{told}"
    );
    ensure!(told["phases"][0]["steps"][0]["attempts"][0]["end"] == "done", "{told}");
    place.agent(&["report", "another"]).expect(78, &["there is no recovery `another`", &run])?;
    Ok(())
}

#[test]
fn a_page_is_written_whole_and_over_nothing() -> Result<()> {
    let place = Place::new();
    place.agent(&["--yes", "recover"]).expect(0, &[])?;
    let file = place.temporary.path().join("report.html");
    let to = file.to_str().context("odd name")?;
    std::fs::write(&file, "mine")?;
    place.agent(&["report", "--html", to]).expect(2, &["is there already", "--force"])?;
    ensure!(std::fs::read_to_string(&file)? == "mine");
    let ended = place.agent(&["report", "--html", to, "--force"]).expect(0, &[])?;
    ensure!(ended.out.contains(to), "{ended}");
    let page = std::fs::read_to_string(&file)?;
    ensure!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n") && page.contains(&place.journal().run), "{page}");
    ensure!(file.metadata()?.mode() & 0o777 == 0o600);
    // A device would be gone, and a link what it was.
    let link = place.temporary.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link)?;
    for other in [&link, place.temporary.path()] {
        place.agent(&["report", "--force", "--html", other.to_str().context("odd name")?]).expect(2, &["no regular file"])?;
    }
    ensure!(link.is_symlink());
    place
        .agent(&["report", "--html", place.temporary.path().join("no/such/report.html").to_str().context("odd name")?])
        .expect(2, &["there is no folder", "/no/such", "next: make it, or name a file elsewhere"])?;
    let printed = place.agent(&["report", "--html", "-"]).expect(0, &[])?;
    ensure!(printed.out == page && !Path::new("-").exists(), "{printed}");
    place.agent(&["--json", "report", "--html", "-"]).expect(2, &["--json"])?;
    place.agent(&["report", "--force"]).expect(2, &["--html"])?;
    Ok(())
}

/// What a browser makes of a page.
#[derive(Debug)]
struct Seen {
    /// Width of the window and of what is in it, pixels.
    width: (f64, f64),
    /// How many elements reach out of the window.
    outside: f64,
    /// How many bars there are that can be seen.
    bars: f64,
    /// The height of a line of text that stands in the page, pixels.
    line: f64,
    /// Its background.
    background: String,
    /// A picture of it.
    picture: PathBuf,
}

/// Opens a page in a browser with a window of this width.
fn seen(page: &Path, width: u32, dark: bool) -> Result<Seen> {
    let folder = page.parent().context("no folder")?;
    let browser = |more: &[&str], file: &Path| -> Result<String> {
        let mut browser = Command::new("timeout");
        browser.args(["120", "chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]);
        browser.arg(format!("--user-data-dir={}", folder.join("profile").display())).arg(format!("--window-size={width},900"));
        browser
            .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)))
            .args(more)
            .arg(format!("file://{}", file.display()));
        let output = browser.current_dir(folder).env("HOME", folder).stdin(Stdio::null()).output()?;
        ensure!(
            output.status.success(),
            "the browser (`tests/setup.sh browser` installs it) ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // The page has no script and lets none run; this one measures a copy that does.
    let script = "<script>
        const all = [...document.querySelectorAll('body *')].map(one => one.getBoundingClientRect());
        const bars = [...document.querySelectorAll('.track i')].filter(one => { const r = one.getBoundingClientRect(); return r.width >= 1 && r.height >= 1; });
        const told = [innerWidth, document.documentElement.scrollWidth, all.filter(r => r.right > innerWidth + 0.5 || r.left < -0.5).length, bars.length,
            document.querySelector('dd').getBoundingClientRect().height, getComputedStyle(document.body).backgroundColor];
        document.body.dataset.told = told.join('|');
        </script></body>";
    let text = std::fs::read_to_string(page)?;
    let (policy, rest) = text.split_once("<meta http-equiv=\"Content-Security-Policy\"").context("the page has no policy")?;
    let rest = rest.split_once('\n').context("the page ends with its policy")?.1;
    let copy = page.with_extension("measured.html");
    std::fs::write(&copy, format!("{policy}{}", rest.replace("</body>", script)))?;
    let dom = browser(&["--dump-dom"], &copy)?;
    let told =
        dom.split_once("data-told=\"").and_then(|(_, rest)| rest.split_once('"')).with_context(|| format!("it measured nothing: {dom}"))?.0;
    let told: Vec<&str> = told.split('|').collect();
    let number = |index: usize| told[index].parse::<f64>().with_context(|| format!("{told:?}"));
    let picture = page.with_extension(format!("{width}.{}.png", if dark { "dark" } else { "light" }));
    browser(&[&format!("--screenshot={}", picture.display())], page)?;
    Ok(Seen {
        width: (number(0)?, number(1)?),
        outside: number(2)?,
        bars: number(3)?,
        line: number(4)?,
        background: told[5].to_owned(),
        picture,
    })
}

#[test]
fn a_page_is_read_on_a_phone_and_on_a_desk() -> Result<()> {
    let place = Place::new();
    // Somebody has called a file as long as a name can be, and the failure names it.
    place.agent(&["--yes", "recover"]).expect(0, &[])?;
    let journal = place.journal();
    let tried =
        journal.records.iter().filter(|record| matches!(record.event, recovery::recovery::procedure::Event::StepIntent(..))).count();
    place.agent(&["--yes", "abandon"]).expect(0, &[])?;
    let report = place.dir.history().join(format!("{}.json", journal.run));
    let mut long: Value = serde_json::from_slice(&std::fs::read(&report)?)?;
    long["run"]["warnings"] = json!([format!("/etc/{}", "long-name".repeat(28)), "<script>document.title = 'run'</script><b>bold</b>"]);
    std::fs::write(&report, serde_json::to_vec(&long)?)?;
    let file = place.temporary.path().join("report.html");
    place.agent(&["report", "--html", file.to_str().context("odd name")?]).expect(0, &[])?;
    for (width, dark) in [(360, false), (360, true), (1280, false), (1280, true)] {
        let seen = seen(&file, width, dark)?;
        ensure!(seen.width.0 <= f64::from(width) && seen.width.1 <= seen.width.0 && seen.outside == 0.0, "it overflows: {seen:?}");
        #[expect(clippy::cast_precision_loss, reason = "these are a few")]
        let all = tried as f64;
        // The reboot that was asked for is one, too.
        ensure!(seen.bars > all && all > 3.0, "{tried} attempts: {seen:?}");
        ensure!(seen.line >= 16.0, "that cannot be read: {seen:?}");
        let background = if dark { "rgb(13, 17, 23)" } else { "rgb(255, 255, 255)" };
        ensure!(seen.background == background, "{seen:?}");
        let picture = std::fs::read(&seen.picture)?;
        ensure!(picture.starts_with(b"\x89PNG") && picture.len() > 10_000, "there is nothing in the picture: {seen:?}");
    }
    Ok(())
}
