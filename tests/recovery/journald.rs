//! What journald gets of a recovery: fields of its own, by which people find it. The agent takes itself to be on the live node here: that is in
//! a root of its own, with a socket where journald listens.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
const LAY_OUT: &str = "cd $1; mkdir -p tools run/systemd/journal usr/bin usr/lib usr/lib64 dev proc; ln -s usr/bin usr/lib usr/lib64 .
    cp -a ../state .; install -m 755 $2 tools/systemctl; install -m 755 $2 tools/crictl; install -m 755 $3 recovery";
const ENTER: &str = "cd $1; for dir in usr/bin usr/lib usr/lib64 dev proc; do mount --rbind /$dir $dir; done; shift
    exec env -i PATH=/tools:/usr/bin /usr/sbin/chroot . /recovery \"$@\"";

/// Runs the agent as on the live node; what it sent to journald.
fn live(place: &Place, journald: &UnixDatagram, args: &[&str]) -> (Output, Vec<Entry>) {
    let mut agent = Command::new("unshare");
    agent.args(["--mount", "bash", "-euc", ENTER, "bash"]).arg(place.at("/")).args(args);
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
    let place = Place::new();
    let laid_out =
        Command::new("bash").args(["-euc", LAY_OUT, "bash"]).arg(place.at("/")).args([TOOL, env!("CARGO_BIN_EXE_recovery")]).status();
    assert!(laid_out.unwrap().success());
    let journald = UnixDatagram::bind(place.at("/run/systemd/journal/socket")).unwrap();
    journald.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let has = |entry: &Entry, field: &str, value: &str| entry.get(field).is_some_and(|is| is == value);

    std::fs::write(place.at("/state/fault"), "systemctl stop containerd.service").unwrap();
    let (output, entries) = live(&place, &journald, &["restore-files", "--yes"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
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
    assert_ne!(begins["MESSAGE_ID"], failed["MESSAGE_ID"]);

    // Another process, and the same run: it goes on where the other failed.
    let (output, entries) = live(&place, &journald, &["resume"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let of_the_run = entries.iter().filter(|entry| has(entry, "RECOVERY_RUN", &run));
    let steps: Vec<&str> = of_the_run.filter_map(|entry| entry.get("RECOVERY_STEP")).map(String::as_str).collect();
    assert_eq!(steps, ["stop-runtime", "newer-files", "usr-local", "etc", "extras", "unit-files", "next-boot"], "{entries:#?}");
}
