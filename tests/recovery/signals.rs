//! Signals: the agent stops at the next safe point with 75, or at once when it is killed, and the next one goes on where it was.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::through::{Ended, command, ended, journal_says, json, names, node, noise, ok, run, same, settled, start};
use testing::node::{Kind, Node, wait_for};
use testing::place::Wrong;

fn pid(child: &Child) -> Result<Pid> {
    Pid::from_raw(i32::try_from(child.id())?).context("no process")
}

/// Starts a backup, and sends it a signal when it is in the middle of the largest tree.
fn backup_until(node: &Node, signal: Signal) -> Result<crate::through::Ended> {
    let begun = std::time::SystemTime::now();
    let backup = start(node, &["backup"])?;
    let backups = node.at("/var/recovery/backups");
    wait_for("the backup to archive /var/lib/kubelet", || {
        let unfinished = names(&backups).unwrap_or_default().into_iter().find(|name| name.ends_with(".partial"));
        // It is written beside its name, where the one before may have left one as well.
        let being_written = |meta: std::fs::Metadata| meta.len() > 0 && meta.modified().is_ok_and(|time| time > begun);
        Ok(unfinished.is_some_and(|id| backups.join(id).join(".kubelet.tar.zst.new").metadata().is_ok_and(being_written)))
    })?;
    kill_process(pid(&backup)?, signal)?;
    ended(backup)
}

/// Ctrl-C: the terminal sends SIGINT to everything in the foreground.
fn press_ctrl_c(agent: &Child) -> Result<()> {
    kill_process_group(pid(agent)?, Signal::INT).context("sending SIGINT")
}

/// The agent on a terminal of its own, with a person at it; strace's arguments go before it.
fn at_a_terminal(node: &Node, args: &[&str], strace: &str) -> Result<Command> {
    let agent = command(node, args)?;
    let words: Vec<_> = std::iter::once(agent.get_program()).chain(agent.get_args()).map(|word| format!("'{}'", word.display())).collect();
    let mut script = Command::new("script");
    // In place of the shell that runs it: one that stays would die of the same Ctrl-C, and its status would be told instead.
    script.args(["--quiet", "--return", "--command", &format!("exec {strace} {}", words.join(" ")), "/dev/null"]);
    script.envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(script)
}

#[test]
fn second_thoughts_leave_nothing_that_the_next_boot_goes_on_with() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm, |_| ())?;
    ok(&node, &["backup"])?;
    let nothing_is_open = || -> Result<()> {
        for left in ["/var/recovery/progress", "/var/recovery/undo.json", "/var/lib/recovery/hold-kubelet"] {
            ensure!(!node.at(left).exists(), "{left} is there");
        }
        Ok(())
    };
    // Ctrl-C instead of an answer.
    let mut asked = at_a_terminal(&node, &["restore-files"], "")?.spawn().context("running script (package bsdutils)")?;
    let mut screen = asked.stdout.take().context("no output")?;
    let mut said = Vec::new();
    while !said.ends_with(b"Do it? [y/N] ") {
        let mut byte = [0];
        ensure!(screen.read(&mut byte)? == 1, "it ended: {}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    asked.stdin.take().context("no input")?.write_all(b"\x03")?;
    let begun = Instant::now();
    let ended = asked.wait()?;
    ensure!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    let mut rest = String::new();
    screen.read_to_string(&mut rest)?;
    ensure!(ended.code() == Some(75), "{ended}: {rest}");
    nothing_is_open()?;

    // When it has just been agreed to: the signal comes as the journal is put in place, the second file that is.
    let strace = "strace -o /dev/null -e trace=rename,renameat,renameat2 -e inject=rename,renameat,renameat2:signal=SIGTERM:when=2";
    let ended: Ended = at_a_terminal(&node, &["restore-files", "--yes"], strace)?.output()?.into();
    ensure!(ended.code == Some(75) && ended.out.contains("before anything was changed"), "{ended}");
    nothing_is_open()?;
    // A new run is one of its own.
    let plan = json(&node, &["restore-files", "--dry-run"])?;
    ensure!(plan["continues"].is_null() && plan["replaces"].is_null(), "{plan}");
    Ok(())
}

#[test]
fn whatever_interrupts_it_the_next_one_goes_on() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm, |_| ())?;
    noise(&node.at("/var/lib/kubelet/big"), 400)?;
    backup_until(&node, Signal::TERM)?
        .expect(75, &["interrupted by a signal; the finished part of the backup is kept; next: `", " backup` again, which"])?;
    let ended = backup_until(&node, Signal::KILL)?;
    ensure!(ended.code.is_none(), "{ended}");
    ensure!(ended.err.contains("/etc is finished already"), "it began again after SIGTERM: {ended}");
    backup_until(&node, Signal::INT)?.expect(75, &["/usr/local is finished already", "interrupted"])?;
    let ended = run(&node, &["backup"])?.expect(0, &["/etc is finished already", "/usr/local is finished already"])?;
    ensure!(!ended.err.contains("/var/lib/kubelet is finished"), "what was cut short is not finished: {ended}");
    ensure!(names(&node.at("/var/recovery/backups"))?.len() == 1, "an unfinished backup is left");
    ok(&node, &["verify"])?;
    let before = node.snapshot()?;
    node.ruin()?;

    // While it waits for a program, in the middle of the first phase.
    node.fault("systemctl", "stop containerd", Some(1), Wrong::Hang)?;
    let agent = start(&node, &["restore-files", "--reboot", "--yes"])?;
    wait_for("the runtime to be stopped", || Ok(node.calls()?.iter().any(|call| call.args.contains("stop containerd"))))?;
    kill_process(pid(&agent)?, Signal::TERM)?;
    let begun = Instant::now();
    crate::through::ended(agent)?.expect(75, &["phase restore-files, step stop-runtime was interrupted", "next: `recovery resume`"])?;
    ensure!(begun.elapsed() < Duration::from_secs(30), "it took {:?} to end", begun.elapsed());
    let status = json(&node, &["status"])?;
    ensure!(status["run"]["failure"].is_null() && status["hold"] == true, "an interruption is no failure: {status}");
    let (_, boots) = node.power()?;
    ok(&node, &["resume"])?;
    node.wait_boot(boots)?;

    // While it waits for the control plane: with Ctrl-C, with SIGTERM, and killed.
    let agent = command(&node, &["resume"])?.process_group(0).stderr(std::process::Stdio::piped()).spawn()?;
    journal_says(&node, "resume", "etcd-answers")?;
    press_ctrl_c(&agent)?;
    // In that step, or by now between it and the next.
    crate::through::ended(agent)?.expect(75, &["interrupted", "next: `recovery resume`"])?;
    let agent = start(&node, &["resume"])?;
    journal_says(&node, "resume", "api-server-ready")?;
    kill_process(pid(&agent)?, Signal::TERM)?;
    crate::through::ended(agent)?.expect(75, &["interrupted", "next: `recovery resume`"])?;
    let agent = start(&node, &["resume"])?;
    journal_says(&node, "resume", "containers")?;
    kill_process(pid(&agent)?, Signal::KILL)?;
    crate::through::ended(agent)?;
    ok(&node, &["resume"])?;
    same(&node, &before)?;
    settled(&node)
}
