//! What journald gets of a recovery: fields of its own, by which people find it, and what `journalctl -x` makes of it. The agent takes
//! itself to be on the live node here: that is in a root of its own, with a socket where journald listens, or with a journald.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use recovery::report::event;

use crate::place::{Place, TOOL};

type Entry = BTreeMap<String, String>;

/// One entry, in journald's own protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
fn parse(mut bytes: &[u8]) -> Entry {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut entry = Entry::new();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        if let Some(equals) = line.iter().position(|byte| *byte == b'=') {
            entry.insert(text(&line[..equals]), text(&line[equals + 1..]));
            bytes = rest;
        } else {
            let (length, value) = rest.split_first_chunk().unwrap();
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
            entry.insert(text(line), text(&value[..length]));
            bytes = &value[length + 1..];
        }
    }
    entry
}

/// What the agent's programs need besides, and the agent.
const LAY_OUT: &str =
    "cd $1; mkdir -p tools run/systemd/journal usr/bin usr/lib usr/lib64 dev proc sys tmp var/log; ln -s usr/bin usr/lib usr/lib64 .
    cp -a ../state .; install -m 755 $2 tools/systemctl; install -m 755 $2 tools/crictl; install -m 755 $3 recovery";
/// Runs a script in the root, whose process 1 is in it, too: or the agent would take itself to be in a container, and go to its host.
const ENTER: &str = "cd $1; for dir in usr/bin usr/lib usr/lib64 sys; do mount --rbind /$dir $dir; done; shift
    for file in null zero random urandom; do touch dev/$file; mount --bind /dev/$file dev/$file; done
    exec env -i PATH=/tools:/usr/bin /usr/bin/unshare --pid --fork --kill-child /usr/sbin/chroot . /usr/bin/bash -euc \"$@\"";
const AGENT: &str = "mount -t proc proc /proc; /recovery \"$@\"";

/// A node in a root of its own.
fn place() -> Place {
    let place = Place::new();
    // journald takes no other form.
    place.put("/etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    std::os::unix::fs::symlink("../usr/lib/os-release", place.at("/etc/os-release")).unwrap();
    place.back_up("b2", 2);
    let laid_out =
        Command::new("bash").args(["-euc", LAY_OUT, "bash"]).arg(place.at("/")).args([TOOL, env!("CARGO_BIN_EXE_recovery")]).status();
    assert!(laid_out.unwrap().success());
    place
}

/// A script in that root.
fn inside(place: &Place, script: &str, args: &[&str]) -> Command {
    let mut bash = Command::new("unshare");
    bash.args(["--mount", "bash", "-euc", ENTER, "bash"]).arg(place.at("/")).args([script, "bash"]).args(args);
    bash
}

/// Runs the agent as on the live node; what it sent to journald.
fn live(place: &Place, journald: &UnixDatagram, args: &[&str]) -> (Output, Vec<Entry>) {
    let mut agent = inside(place, AGENT, args);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Beside it: the socket holds only a few entries.
        let received = scope.spawn(|| {
            let (mut entries, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                match journald.recv(&mut buffer) {
                    Ok(length) => entries.push(parse(&buffer[..length])),
                    Err(_) if ended.load(Ordering::Relaxed) => return entries,
                    Err(_) => {}
                }
            }
        });
        let output = agent.output();
        ended.store(true, Ordering::Relaxed);
        (output.unwrap(), received.join().unwrap())
    })
}

#[test]
fn a_recovery_can_be_found_in_the_journal() {
    let place = place();
    let journald = UnixDatagram::bind(place.at("/run/systemd/journal/socket")).unwrap();
    journald.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let has = |entry: &Entry, field: &str, value: &str| entry.get(field).is_some_and(|is| is == value);

    std::fs::write(place.at("/state/fault"), "systemctl stop containerd.service").unwrap();
    let (output, entries) = live(&place, &journald, &["restore-files", "--yes"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(place.dir.in_recovery(), "{output:?}");
    let run = place.journal().run;
    let begins = entries.iter().find(|entry| has(entry, "MESSAGE", "phase restore-files begins")).unwrap_or_else(|| panic!("{entries:#?}"));
    let of_the_step: Vec<&Entry> = entries.iter().filter(|entry| has(entry, "RECOVERY_STEP", "stop-runtime")).collect();
    let failed = *of_the_step.last().unwrap_or_else(|| panic!("{entries:#?}"));
    for (entry, priority) in [(begins, "5"), (failed, "3")] {
        let fields = [
            ("RECOVERY_RUN", run.as_str()),
            ("RECOVERY_PHASE", "restore-files"),
            ("PRIORITY", priority),
            ("SYSLOG_IDENTIFIER", "recovery"),
        ];
        assert!(fields.iter().all(|(field, value)| has(entry, field, value)), "{entry:#?}");
        assert!(entry["MESSAGE_ID"].len() == 32 && entry["MESSAGE_ID"].bytes().all(|byte| byte.is_ascii_hexdigit()), "{entry:#?}");
    }
    assert!(
        failed["MESSAGE"].contains("phase restore-files, step stop-runtime failed") && failed["MESSAGE"].contains("as told"),
        "{failed:#?}"
    );
    assert_eq!((begins["MESSAGE_ID"].as_str(), failed["MESSAGE_ID"].as_str()), (event::PHASE.id, event::STEP_FAILED.id));
    assert_eq!((failed["RECOVERY_BACKUP"].as_str(), failed["RECOVERY_EXIT"].as_str()), ("b2", "1"));
    // As it is typed on this node.
    assert!(failed["RECOVERY_NEXT"].contains("`/recovery resume`"), "{failed:#?}");
    let kinds = |entries: &[Entry]| {
        entries.iter().filter_map(|entry| event::of(entry.get("MESSAGE_ID")?)).map(|kind| kind.subject).collect::<Vec<_>>()
    };
    let subjects = |kinds: &[&event::Kind]| kinds.iter().map(|kind| kind.subject).collect::<Vec<_>>();
    let begun = subjects(&[&event::RECOVERY_BEGUN, &event::PHASE, &event::HOLD_SET, &event::STEP_FAILED, &event::COMMAND_FAILED]);
    assert_eq!(kinds(&entries), begun, "{entries:#?}");

    // Another process, and the same run: it goes on where the other failed.
    let (output, entries) = live(&place, &journald, &["resume"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let of_the_run = entries.iter().filter(|entry| has(entry, "RECOVERY_RUN", &run));
    let steps: Vec<&str> = of_the_run.filter_map(|entry| entry.get("RECOVERY_STEP")).map(String::as_str).collect();
    assert_eq!(steps, ["stop-runtime", "newer-files", "usr-local", "etc", "extras", "unit-files", "next-boot"], "{entries:#?}");
    assert_eq!(kinds(&entries), subjects(&[&event::RECOVERY_RESUMED, &event::REBOOT_NEEDED]), "{entries:#?}");
    let needed = entries.iter().find(|entry| has(entry, "MESSAGE_ID", event::REBOOT_NEEDED.id)).unwrap();
    assert!(needed["RECOVERY_NEXT"].starts_with("`systemctl reboot`, then `/recovery resume`"), "{needed:#?}");

    let (output, entries) = live(&place, &journald, &["--yes", "abandon"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(kinds(&entries), subjects(&[&event::HOLD_LIFTED, &event::RECOVERY_ABANDONED]), "{entries:#?}");

    // This node has no etcd to back up, and no API server.
    let failed = |args: &[&str], before: &[&event::Kind]| {
        let (output, entries) = live(&place, &journald, args);
        assert_ne!(output.status.code(), Some(0), "{output:?}");
        let before = subjects(before).into_iter().chain([event::COMMAND_FAILED.subject]).collect::<Vec<_>>();
        assert_eq!(kinds(&entries), before, "{output:?}");
        let code = output.status.code().unwrap().to_string();
        let all = entries.iter().filter(|entry| entry.contains_key("MESSAGE_ID"));
        all.for_each(|entry| assert!(entry["RECOVERY_EXIT"] == code && !entry["RECOVERY_NEXT"].is_empty(), "{entry:#?}"));
        entries
    };
    failed(&["backup"], &[&event::BACKUP_FAILED]);
    failed(&["gate"], &[&event::GATE_CLOSED]);
    let (output, _) = live(&place, &journald, &["schedule", "set", "nightly", "--cron", "0 3 * * *"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let entries = failed(&["schedule", "run", "nightly"], &[&event::BACKUP_FAILED, &event::SCHEDULE_FAILED]);
    assert!(entries.iter().any(|entry| has(entry, "RECOVERY_SCHEDULE", "nightly")), "{entries:#?}");
}

/// The catalog installed as the README says, a real journald, and a recovery that fails.
const REAL: &str = "mount -t proc proc /proc
    /usr/lib/systemd/systemd-journald 2>/dev/null &
    for attempt in $(seq 300); do [ -S /run/systemd/journal/socket ] && break; sleep 0.1; done
    /recovery generate catalog /usr/local/lib/systemd/catalog && journalctl --update-catalog
    if /recovery restore-files --yes >&2; then exit 3; fi
    journalctl --sync
    /recovery collect --to /collected.tar.zst >&2
    journalctl -x --no-pager MESSAGE_ID=$1";

#[test]
fn journalctl_explains_a_failure_and_has_the_next_command() {
    let place = place();
    std::fs::write(place.at("/state/fault"), "systemctl stop containerd.service").unwrap();
    let output = inside(&place, REAL, &[event::STEP_FAILED.id]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8_lossy(&output.stdout);
    for says in [
        "phase restore-files, step stop-runtime failed: ",
        " Subject: A step of the recovery failed\n",
        " Step stop-runtime of phase restore-files failed, with exit code\n",
        " Next: put the cause right and `/recovery resume`, or `/recovery abandon`\n",
    ] {
        assert!(shown.contains(says), "{says}: {shown}");
    }
    // What support gets has it, too: by the real journalctl.
    let unpacked = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    tar.arg("--zstd").arg("-xf").arg(place.at("/collected.tar.zst")).arg("--strip-components=1").arg("-C").arg(unpacked.path());
    assert!(tar.status().unwrap().success());
    let log = std::fs::read_to_string(unpacked.path().join("logs/recovery.txt")).unwrap();
    assert!(log.contains("phase restore-files begins") && log.contains("step stop-runtime failed"), "{log}");
    for log in ["logs/kubelet.service.txt", "logs/kernel-warnings.txt", "node/etc/os-release", "disk/df.txt", "disk/findmnt.txt"] {
        assert!(unpacked.path().join(log).exists(), "{}", std::fs::read_to_string(unpacked.path().join("errors.txt")).unwrap());
    }
}
