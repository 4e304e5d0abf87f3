//! Runs a command under ptrace(2), counts the places where it changes files or starts a program, and does something to it at one of them.
//!
//! There is one count over all of its threads, in the order in which they come to the kernel. The programs that it starts are not followed: that
//! they are started is a place of its own. Registers are changed, so this is for x86-64.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// For how long a command may run.
const LIMIT: Duration = Duration::from_secs(120);

/// What happens at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is killed before the call.
    Kill,
    /// It is killed after the call.
    KillAfter,
    /// The call does nothing and fails with this, once.
    Fail(Errno),
    /// This one and all later ones for which that can happen fail.
    FailOn(Errno),
    /// The call does half of its work.
    Short,
    /// The process gets this signal here, and once more at each of the next places until it has got so many.
    Signal(Signal, usize),
    /// Somebody else does something before the call, while the process waits.
    Act,
}

impl Fault {
    /// True where it can happen.
    pub(crate) fn can_happen(self, Point { call, amount, .. }: &Point) -> bool {
        match self {
            Self::Kill | Self::Signal(..) | Self::Act => true,
            Self::KillAfter => call.shown == Shown::Start,
            Self::Short => *amount > 1,
            Self::Fail(error) | Self::FailOn(error) => match error {
                Errno::ENOSPC | Errno::EDQUOT => call.takes_room,
                Errno::EINTR => call.can_be_interrupted,
                _ => call.shown != Shown::Start,
            },
        }
    }
}

/// Where the arguments of a call say what it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// The file that is open by this argument.
    Open(usize),
    /// The path in this argument.
    Path(usize),
    /// The path in the second argument, from the directory that is open by the first.
    At(usize, usize),
    /// Nothing: another process begins.
    Start,
    /// Nothing.
    None,
}

/// A system call that changes files, or starts a process.
#[derive(Debug)]
pub(crate) struct Call {
    number: i64,
    /// As its manual page is called.
    pub(crate) name: &'static str,
    shown: Shown,
    /// It can find the disk full.
    takes_room: bool,
    /// A signal can end it, by its manual page.
    can_be_interrupted: bool,
    /// The argument that says how much it is to do.
    length: Option<usize>,
}

const fn call(number: i64, name: &'static str, shown: Shown) -> Call {
    Call { number, name, shown, takes_room: false, can_be_interrupted: false, length: None }
}

impl Call {
    const fn room(self) -> Self {
        Self { takes_room: true, ..self }
    }

    const fn waits(self) -> Self {
        Self { can_be_interrupted: true, ..self }
    }

    const fn of(self, length: usize) -> Self {
        Self { length: Some(length), ..self }
    }
}

const CALLS: [Call; 55] = {
    use Shown::{At, None, Open, Path, Start};
    [
        call(libc::SYS_open, "open", Path(0)).room().waits(),
        call(libc::SYS_openat, "openat", At(0, 1)).room().waits(),
        call(libc::SYS_openat2, "openat2", At(0, 1)).room().waits(),
        call(libc::SYS_creat, "creat", Path(0)).room().waits(),
        call(libc::SYS_write, "write", Open(0)).room().waits().of(2),
        call(libc::SYS_pwrite64, "pwrite64", Open(0)).room().waits().of(2),
        call(libc::SYS_writev, "writev", Open(0)).room().waits().of(2),
        call(libc::SYS_pwritev, "pwritev", Open(0)).room().waits().of(2),
        call(libc::SYS_pwritev2, "pwritev2", Open(0)).room().waits().of(2),
        call(libc::SYS_copy_file_range, "copy_file_range", Open(2)).room().waits().of(4),
        call(libc::SYS_sendfile, "sendfile", Open(0)).room().waits().of(3),
        call(libc::SYS_splice, "splice", Open(2)).room().waits().of(4),
        call(libc::SYS_fallocate, "fallocate", Open(0)).room().waits(),
        call(libc::SYS_ftruncate, "ftruncate", Open(0)).room().waits(),
        call(libc::SYS_truncate, "truncate", Path(0)).room().waits(),
        call(libc::SYS_rename, "rename", Path(1)).room(),
        call(libc::SYS_renameat, "renameat", At(2, 3)).room(),
        call(libc::SYS_renameat2, "renameat2", At(2, 3)).room(),
        call(libc::SYS_link, "link", Path(1)).room(),
        call(libc::SYS_linkat, "linkat", At(2, 3)).room(),
        call(libc::SYS_symlink, "symlink", Path(1)).room(),
        call(libc::SYS_symlinkat, "symlinkat", At(1, 2)).room(),
        call(libc::SYS_mkdir, "mkdir", Path(0)).room(),
        call(libc::SYS_mkdirat, "mkdirat", At(0, 1)).room(),
        call(libc::SYS_mknod, "mknod", Path(0)).room(),
        call(libc::SYS_mknodat, "mknodat", At(0, 1)).room(),
        call(libc::SYS_unlink, "unlink", Path(0)),
        call(libc::SYS_unlinkat, "unlinkat", At(0, 1)),
        call(libc::SYS_rmdir, "rmdir", Path(0)),
        call(libc::SYS_chmod, "chmod", Path(0)),
        call(libc::SYS_fchmod, "fchmod", Open(0)),
        call(libc::SYS_fchmodat, "fchmodat", At(0, 1)),
        call(libc::SYS_fchmodat2, "fchmodat2", At(0, 1)),
        call(libc::SYS_chown, "chown", Path(0)),
        call(libc::SYS_lchown, "lchown", Path(0)),
        call(libc::SYS_fchown, "fchown", Open(0)),
        call(libc::SYS_fchownat, "fchownat", At(0, 1)),
        call(libc::SYS_utimensat, "utimensat", At(0, 1)),
        call(libc::SYS_setxattr, "setxattr", Path(0)).room(),
        call(libc::SYS_lsetxattr, "lsetxattr", Path(0)).room(),
        call(libc::SYS_fsetxattr, "fsetxattr", Open(0)).room(),
        call(libc::SYS_removexattr, "removexattr", Path(0)),
        call(libc::SYS_lremovexattr, "lremovexattr", Path(0)),
        call(libc::SYS_fremovexattr, "fremovexattr", Open(0)),
        call(libc::SYS_ioctl, "ioctl", Open(0)),
        call(libc::SYS_fsync, "fsync", Open(0)).room().waits(),
        call(libc::SYS_fdatasync, "fdatasync", Open(0)).room().waits(),
        call(libc::SYS_syncfs, "syncfs", Open(0)).room(),
        call(libc::SYS_mount, "mount", Path(1)),
        call(libc::SYS_umount2, "umount2", Path(0)),
        call(libc::SYS_sync, "sync", None),
        call(libc::SYS_fork, "fork", Start),
        call(libc::SYS_vfork, "vfork", Start),
        call(libc::SYS_clone, "clone", Start),
        call(libc::SYS_clone3, "clone3", Start),
    ]
};

/// Those of `ioctl` that change a file: its flags (`FS_IOC_SETFLAGS`, as libc has it for 64 and for 32 bits), its attributes, its content.
const CHANGING: [u64; 4] = [0x4008_6602, 0x4004_6602, 0x401c_5820, 0x4004_9409];

/// A place that a command has come to.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) call: &'static Call,
    /// What it is about; empty for a process.
    pub(crate) path: String,
    /// How much the call is to do, where it may do less: bytes, or pieces.
    amount: u64,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.call.name, self.path)
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// All the places it came to; after a fault, those that were still counted.
    pub(crate) points: Vec<Point>,
    /// Where the fault was.
    pub(crate) hit: Option<Point>,
    /// Its exit code, or the signal that ended it.
    pub(crate) how: Result<i32, Signal>,
    /// From the fault to the end.
    pub(crate) after: Option<Duration>,
    /// Its standard error.
    pub(crate) said: String,
}

/// Runs a command to its end, with the fault at the place of this number, from 1 on.
pub(crate) fn run(command: &mut Command, fault: Option<(usize, Fault)>) -> Result<Ended> {
    run_counting(command, fault, false, &mut || Ok(()))
}

/// As [`run`], and `act` is what somebody else does where the fault is [`Fault::Act`]. With `looks`, places are also those where a file is opened
/// that is there.
pub(crate) fn run_counting(
    command: &mut Command,
    fault: Option<(usize, Fault)>,
    looks: bool,
    act: &mut (dyn FnMut() -> Result<()> + Send),
) -> Result<Ended> {
    // A thread of its own waits for no other process than the command, and is told of no other.
    std::thread::scope(|scope| scope.spawn(|| Trace::start(command, fault, looks, act)?.run()).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

struct Trace<'a> {
    process: Pid,
    said: File,
    fault: Option<(usize, Fault)>,
    /// Threads that have stopped once, as each does when it begins.
    known: BTreeSet<Pid>,
    /// Threads whose call is changed, with their registers from before and what it is to return.
    changed: BTreeMap<Pid, (libc::user_regs_struct, Option<Errno>)>,
    points: Vec<Point>,
    hit: Option<(Point, Instant)>,
    signals: usize,
    is_over: bool,
    looks: bool,
    act: &'a mut (dyn FnMut() -> Result<()> + Send),
}

impl<'a> Trace<'a> {
    fn start(
        command: &mut Command,
        fault: Option<(usize, Fault)>,
        looks: bool,
        act: &'a mut (dyn FnMut() -> Result<()> + Send),
    ) -> Result<Self> {
        // No file that is counted, and no pipe that would have to be read meanwhile.
        let said = File::from(rustix::fs::memfd_create("said", rustix::fs::MemfdFlags::CLOEXEC)?);
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said.try_clone()?);
        // SAFETY: one system call, which allocates nothing.
        unsafe { command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from)) };
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let process = Pid::from_raw(i32::try_from(child.id())?);
        // It stops as soon as it is the new program.
        ensure!(matches!(waitpid(process, None)?, WaitStatus::Stopped(_, Signal::SIGTRAP)), "{command:?} does not begin");
        let options =
            Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(process, options)?;
        ptrace::syscall(process, None)?;
        Ok(Self {
            process,
            said,
            fault,
            known: BTreeSet::from([process]),
            changed: BTreeMap::new(),
            points: Vec::new(),
            hit: None,
            signals: 0,
            is_over: false,
            looks,
            act,
        })
    }

    fn run(mut self) -> Result<Ended> {
        let (ended, end) = channel::<()>();
        let process = self.process;
        std::thread::spawn(move || {
            if end.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                kill(process, Signal::SIGKILL).ok();
            }
        });
        let begun = Instant::now();
        let how = loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD))? {
                WaitStatus::Exited(thread, code) if thread == process => break Ok(code),
                WaitStatus::Signaled(thread, signal, _) if thread == process => break Err(signal),
                WaitStatus::PtraceSyscall(thread) => {
                    // It may be killed at any moment.
                    ignore_gone(self.at_call(thread))?;
                    self.go_on(thread, None)?;
                }
                WaitStatus::Stopped(thread, signal) => {
                    let begins = self.known.insert(thread) && signal == Signal::SIGSTOP;
                    self.go_on(thread, Some(signal).filter(|signal| !begins && *signal != Signal::SIGTRAP))?;
                }
                WaitStatus::PtraceEvent(thread, ..) => self.go_on(thread, None)?,
                _ => {}
            }
        };
        drop(ended);
        if begun.elapsed() >= LIMIT {
            bail!("it went on for {} s", LIMIT.as_secs());
        }
        let mut said = Vec::new();
        self.said.rewind()?;
        self.said.read_to_end(&mut said)?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let (hit, at) = self.hit.unzip();
        Ok(Ended { points: self.points, hit, how, after: at.map(|at| at.elapsed()), said })
    }

    /// Lets a thread go on: to its next call, or for good when nothing is left to be counted or done.
    fn go_on(&self, thread: Pid, signal: Option<Signal>) -> Result<()> {
        let changes = self.changed.contains_key(&thread);
        ignore_gone(
            if self.is_over && !changes { ptrace::cont(thread, signal) } else { ptrace::syscall(thread, signal) }.map_err(Into::into),
        )
    }

    fn at_call(&mut self, thread: Pid) -> Result<()> {
        if ptrace::syscall_info(thread)?.op == libc::PTRACE_SYSCALL_INFO_EXIT {
            return self.after_call(thread);
        }
        if self.is_over {
            return Ok(());
        }
        let registers = ptrace::getregs(thread)?;
        let Some(point) = point(thread, &registers, self.looks)? else { return Ok(()) };
        let Some((number, fault)) = self.fault else {
            self.points.push(point);
            return Ok(());
        };
        self.points.push(point.clone());
        let lasts = matches!(fault, Fault::FailOn(_)) && self.hit.is_some() && fault.can_happen(&point);
        let again = matches!(fault, Fault::Signal(_, times) if (1..times).contains(&self.signals));
        // Where this place is another one than the last time, the next at which it can happen.
        let first = self.hit.is_none() && self.points.len() >= number && fault.can_happen(&point);
        if first || lasts || again {
            self.hit.get_or_insert_with(|| (point, Instant::now()));
            self.strike(thread, registers, fault)?;
        }
        Ok(())
    }

    fn strike(&mut self, thread: Pid, registers: libc::user_regs_struct, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill => {
                self.is_over = true;
                kill(self.process, Signal::SIGKILL)?;
            }
            Fault::Act => {
                self.is_over = true;
                (self.act)()?;
            }
            Fault::KillAfter => {
                self.changed.insert(thread, (registers, None));
            }
            Fault::Fail(error) | Fault::FailOn(error) => {
                ptrace::setregs(thread, libc::user_regs_struct { orig_rax: u64::MAX, ..registers })?;
                self.changed.insert(thread, (registers, Some(error)));
            }
            Fault::Short => {
                let mut shorter = registers;
                let length = self.points.last().and_then(|point| point.call.length).context("a call without a length")?;
                *argument(&mut shorter, length) /= 2;
                ptrace::setregs(thread, shorter)?;
                self.changed.insert(thread, (registers, None));
            }
            Fault::Signal(signal, times) => {
                self.signals += 1;
                self.is_over = self.signals == times;
                kill(self.process, signal)?;
            }
        }
        Ok(())
    }

    /// What was changed for one call is put back after it: programs rely on it that their registers are kept.
    fn after_call(&mut self, thread: Pid) -> Result<()> {
        let Some((before, error)) = self.changed.remove(&thread) else { return Ok(()) };
        let now = ptrace::getregs(thread)?;
        let rax = error.map_or(now.rax, |error| i64::from(error as i32).wrapping_neg().cast_unsigned());
        ptrace::setregs(
            thread,
            libc::user_regs_struct { rax, rcx: now.rcx, r11: now.r11, rip: now.rip, orig_rax: now.orig_rax, ..before },
        )?;
        let fault = self.fault.map(|(_, fault)| fault);
        self.is_over = !matches!(fault, Some(Fault::FailOn(_)));
        if fault == Some(Fault::KillAfter) {
            kill(self.process, Signal::SIGKILL)?;
        }
        Ok(())
    }
}

/// A thread that is gone meanwhile needs nothing more.
fn ignore_gone(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.downcast_ref() == Some(&Errno::ESRCH) => Ok(()),
        result => result,
    }
}

/// An argument of the call that a thread is about to make.
fn argument(registers: &mut libc::user_regs_struct, number: usize) -> &mut u64 {
    match number {
        0 => &mut registers.rdi,
        1 => &mut registers.rsi,
        2 => &mut registers.rdx,
        3 => &mut registers.r10,
        4 => &mut registers.r8,
        _ => &mut registers.r9,
    }
}

/// The place that a thread is at; none where the call changes no file, nor opens one where that counts too.
fn point(thread: Pid, registers: &libc::user_regs_struct, looks: bool) -> Result<Option<Point>> {
    let Some(call) = CALLS.iter().find(|call| call.number.cast_unsigned() == registers.orig_rax) else { return Ok(None) };
    let mut registers = *registers;
    let mut word = |number| *argument(&mut registers, number);
    let changes = match call.name {
        "open" => makes(word(1)),
        "openat" => makes(word(2)),
        "openat2" => makes(u64::from_ne_bytes(memory(thread, word(2), 8)?.try_into().unwrap_or_default())),
        "ioctl" => CHANGING.contains(&word(1)),
        "clone" => word(0) & CLONE_THREAD == 0,
        "clone3" => u64::from_ne_bytes(memory(thread, word(0), 8)?.try_into().unwrap_or_default()) & CLONE_THREAD == 0,
        _ => true,
    };
    let is_a_look = looks && matches!(call.name, "open" | "openat" | "openat2");
    if !changes && !is_a_look {
        return Ok(None);
    }
    let path = match call.shown {
        Shown::Open(file) => open(thread, word(file)),
        Shown::Path(path) => text(thread, word(path))?,
        Shown::At(directory, path) => {
            let (path, from) = (text(thread, word(path))?, open(thread, word(directory)));
            if path.starts_with('/') { path } else { format!("{from}/{path}") }
        }
        Shown::Start | Shown::None => String::new(),
    };
    // To open a file that is there changes nothing, though it may have been made if it were not.
    let opens = match call.name {
        "open" => Some(word(1)),
        "openat" => Some(word(2)),
        _ => None,
    };
    if !looks && opens.is_some_and(|flags| flags & MAKES_NEW == 0) && Path::new(&path).exists() {
        return Ok(None);
    }
    let is_on_no_disk = ["/dev/", "/proc/", "/memfd:"].iter().any(|other| path.starts_with(other));
    // Pipes and sockets have no path.
    let has_none = !path.starts_with('/') && matches!(call.shown, Shown::Open(_));
    let amount = call.length.map_or(0, word);
    Ok((!is_on_no_disk && !has_none).then_some(Point { call, path, amount }))
}

/// Flags of open(2) by which a file that is there is emptied or in the way, or another one is made.
const MAKES_NEW: u64 = (libc::O_TRUNC | libc::O_EXCL | libc::O_TMPFILE & !libc::O_DIRECTORY).cast_unsigned() as u64;
const CLONE_THREAD: u64 = 0x0001_0000;

/// True for flags by which open(2) can make or empty a file.
fn makes(flags: u64) -> bool {
    let changing = [libc::O_CREAT, libc::O_TRUNC, libc::O_TMPFILE & !libc::O_DIRECTORY];
    changing.iter().any(|flag| flags & u64::from(flag.cast_unsigned()) != 0)
}

fn memory(thread: Pid, at: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let count = File::open(format!("/proc/{thread}/mem"))?.read_at(&mut bytes, at)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// A text that ends with a zero.
fn text(thread: Pid, at: u64) -> Result<String> {
    if at == 0 {
        return Ok(String::new());
    }
    let mut all = Vec::new();
    loop {
        // A page may be the last that there is.
        let from = at + all.len() as u64;
        let part = memory(thread, from, usize::try_from(4096 - from % 4096)?)?;
        if let Some(end) = part.iter().position(|byte| *byte == 0) {
            all.extend_from_slice(&part[..end]);
            return Ok(String::from_utf8_lossy(&all).into_owned());
        }
        ensure!(!part.is_empty(), "a text without an end");
        all.extend(part);
    }
}

/// What is open by a number.
fn open(thread: Pid, number: u64) -> String {
    let link = match u32::try_from(number & 0xffff_ffff).unwrap_or_default().cast_signed() {
        libc::AT_FDCWD => format!("/proc/{thread}/cwd"),
        number => format!("/proc/{thread}/fd/{number}"),
    };
    std::fs::read_link(link).unwrap_or_default().to_string_lossy().into_owned()
}

#[test]
fn what_changes_files_is_counted_and_struck() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("file");
    let script = r#"open F, ">", $ARGV[0]; print STDERR syswrite(F, "abcd") // $!; system "true"; unlink $ARGV[0]; print STDERR " end""#;
    let perl = |fault| -> Result<(Ended, Option<Vec<u8>>)> {
        let ended = run(Command::new("perl").args(["-e", script]).arg(&file), fault)?;
        Ok((ended, std::fs::read(&file).ok()))
    };
    let (untroubled, left) = perl(None)?;
    let calls: Vec<&str> = untroubled.points.iter().map(|point| point.call.name).collect();
    assert_eq!((&*untroubled.said, left), ("4 end", None));
    assert!(matches!(calls[..], ["openat", "write", "clone" | "clone3" | "vfork", "unlink"]), "{calls:?}");
    let (killed, left) = perl(Some((2, Fault::Kill)))?;
    assert_eq!((killed.how, left.as_deref(), &*killed.said), (Err(Signal::SIGKILL), Some(&b""[..]), ""));
    let (killed, left) = perl(Some((3, Fault::KillAfter)))?;
    assert_eq!((killed.how, left.as_deref(), &*killed.said), (Err(Signal::SIGKILL), Some(&b"abcd"[..]), "4"));
    let (failed, _) = perl(Some((2, Fault::Fail(Errno::EIO))))?;
    assert_eq!((failed.how, &*failed.said), (Ok(0), "Input/output error end"));
    let (full, left) = perl(Some((1, Fault::FailOn(Errno::ENOSPC))))?;
    assert_eq!((full.how, left, full.hit.map(|point| point.call.name)), (Ok(0), None, Some("openat")));
    let (short, _) = perl(Some((2, Fault::Short)))?;
    assert_eq!((short.how, &*short.said), (Ok(0), "2 end"));
    let (ended, left) = perl(Some((4, Fault::Signal(Signal::SIGTERM, 1))))?;
    assert_eq!((ended.how, &*ended.said), (Err(Signal::SIGTERM), "4"));
    // The call was made.
    assert_eq!(left, None);
    let (never, _) = perl(Some((5, Fault::Kill)))?;
    assert!(never.hit.is_none() && never.how == Ok(0));
    Ok(())
}
