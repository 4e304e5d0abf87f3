//! This program as a thing that is installed: its version, which a file of it tells without being run; which of two on a node leads; and
//! [`install`], which puts it into the recovery directory.
//!
//! A node can have two: a package's, and the one in the recovery directory, which recovers the node when the operating system is another. The newer
//! leads. An older one that is called becomes the one in the recovery directory ([`hand_over`]); a newer one puts itself there when it takes a backup
//! or begins or continues a recovery, and leaves alone one that is newer than itself.

pub mod install;

use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use object::elf::FileHeader64;
use object::read::elf::{ElfFile64, NoteIterator};
use object::{Architecture, Endianness, Object, ObjectSection, ReadCache};
use rustix::fs::{StatVfsMountFlags, statvfs};
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::error::{AndNext, by_hand, not_permitted};
use crate::node::dir::RecoveryDir;
use crate::node::{Node, durable, run};
use crate::report::to_stderr;

/// This process's own program, wherever it was started from.
const SELF: &str = "/proc/self/exe";
/// How long an agent may take to say its version.
const ANSWERS: Duration = Duration::from_secs(10);
/// Where a package puts it.
pub const PACKAGED: &str = "/usr/bin/recovery";
/// Its version, and the commit where that is known, as `--version` says it.
pub const VERSION: &str = env!("RECOVERY_VERSION");

/// The section in which a program says what it is, and the owner and type of its note: "Package Metadata for Executable Files" of systemd. `coredumpctl info`
/// shows it, too.
const SECTION: &str = ".note.package";
const OWNER: [u8; 4] = *b"FDO\0";
const TYPE: u32 = 0xcafe_1a7e;

/// What a program is made for that runs where this one does.
const MACHINE: Architecture = if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 };

const TEXT: &str = concat!(
    r#"{"type":"binary","name":"recovery","version":""#,
    env!("CARGO_PKG_VERSION"),
    r#"","commit":""#,
    env!("RECOVERY_COMMIT"),
    r#""}"#
);
/// The text, ended by a zero and filled up to whole words.
const SIZE: usize = (TEXT.len() + 1).next_multiple_of(4);

#[repr(C)]
struct Note {
    owner_size: u32,
    text_size: u32,
    kind: u32,
    owner: [u8; 4],
    text: [u8; SIZE],
}

#[expect(clippy::cast_possible_truncation, reason = "a line of text")]
#[used]
#[unsafe(link_section = ".note.package")]
static NOTE: Note = Note { owner_size: 4, text_size: SIZE as u32, kind: TYPE, owner: OWNER, text: text() };

const fn text() -> [u8; SIZE] {
    let mut text = [0; SIZE];
    let mut at = 0;
    while at < TEXT.len() {
        text[at] = TEXT.as_bytes()[at];
        at += 1;
    }
    text
}

/// An agent, as its file tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its version.
    pub version: Version,
    /// The commit that it was built from; empty where that was not known.
    #[serde(default)]
    pub commit: String,
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, commit } = self;
        write!(f, "{version}")?;
        if commit.is_empty() { Ok(()) } else { write!(f, " ({commit})") }
    }
}

impl Agent {
    /// This program.
    ///
    /// # Errors
    /// None: the manifest of the package has a version that can be read.
    pub fn own() -> Result<Self> {
        // As in the file, so that the linker does not leave it out.
        of_text(&NOTE.text).context("reading this program's own version")
    }

    /// The agent in a file; `None` when there is no file. Nothing of it is run.
    ///
    /// # Errors
    /// When the file cannot be read, is for another kind of machine, or is no agent that tells its version: the first ones of 0.1.0 did not. Which file, the
    /// caller knows, and how the node calls it.
    pub fn in_file(path: &Path) -> Result<Option<Self>> {
        if !path.try_exists()? {
            return Ok(None);
        }
        Self::of(durable::open_regular(path)?).map(Some)
    }

    fn of(file: File) -> Result<Self> {
        let content = ReadCache::new(file);
        let program: ElfFile64<'_, Endianness, _> = ElfFile64::parse(&content)?;
        let section = program.section_by_name(SECTION).context("it does not tell")?;
        let mut notes: NoteIterator<'_, FileHeader64<Endianness>> = NoteIterator::new(program.endian(), section.align(), section.data()?)?;
        while let Some(note) = notes.next()? {
            if note.name() == &OWNER[..3] && note.n_type(program.endian()) == TYPE {
                let agent = of_text(note.desc()).context("its note cannot be read")?;
                let made_for = program.architecture();
                // The C library would have a shell read what the kernel does not run.
                ensure!(made_for == MACHINE, "it is {agent}, a program for {made_for:?}, and this one is for {MACHINE:?}");
                return Ok(agent);
            }
        }
        Err(anyhow!("it does not tell"))
    }

    /// The one in the recovery directory, when it leads this one: it is newer. One that cannot be read, or does not tell its version, leads nobody.
    pub(crate) fn leading(&self, dir: &RecoveryDir) -> Option<Self> {
        let there = Self::in_file(&dir.agent()).unwrap_or_else(|error| {
            tracing::debug!("reading which version {} is: {error:#}", dir.shown_agent().display());
            None
        })?;
        there.version.cmp_precedence(&self.version).is_gt().then_some(there)
    }
}

/// True when only root can have made the file, or change it.
fn is_roots(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.uid() == 0 && meta.mode() & 0o022 == 0)
}

/// Why nobody can run the program in a file of a node; nothing of it is run. Which file systems are mounted so is known of the live machine alone.
fn cannot_be_run(node: &Node, path: &Path) -> Option<String> {
    let mode = path.metadata().ok()?.mode() & 0o7777;
    let noexec = || node.is_live() && statvfs(path).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::NOEXEC));
    if mode & 0o111 == 0 {
        Some(format!("its mode is {mode:04o}"))
    } else {
        noexec().then(|| "its file system is mounted noexec".to_owned())
    }
}

/// Whether the agent in a file runs on this machine: that of a copy that was cut short or went bad on the disk does not.
fn answers(path: &Path) -> Result<()> {
    let output = run::Command::of_file(path).arg("--version").limit(ANSWERS).run()?;
    ensure!(output.stdout.starts_with(b"recovery "), "`{} --version` does not answer as an agent does", path.display());
    Ok(())
}

/// Reads the text of a note. Programs of distributions have one, too.
fn of_text(text: &[u8]) -> Result<Agent> {
    #[derive(Deserialize)]
    struct Told {
        name: String,
        #[serde(flatten)]
        agent: Agent,
    }
    let told: Told = serde_json::from_slice(text.split(|byte| *byte == 0).next().unwrap_or_default())?;
    ensure!(told.name == "recovery", "it is of another program, {}", told.name);
    Ok(told.agent)
}

/// Becomes the agent in the recovery directory, with the same arguments, when that one is newer. When it cannot be run, this one goes on: what the newer has
/// written and this one does not know, it refuses by itself.
///
/// # Errors
/// [`FailureKind::NotPermitted`](crate::error::FailureKind::NotPermitted) when the newer one could be another user's.
pub fn hand_over(dir: &RecoveryDir) -> Result<()> {
    let Some(newer) = Agent::own()?.leading(dir) else { return Ok(()) };
    let path = dir.agent();
    dir.check_owner()?;
    let meta = path.metadata().with_context(|| format!("looking at {}", path.display()))?;
    if !is_roots(&path) {
        let (path, mode) = (path.display(), meta.mode() & 0o7777);
        return Err(not_permitted(format!("{path} says that it is {newer}, and belongs to user {} with mode {mode:04o}", meta.uid()))
            .and_next(by_hand(format!("find out whose it is; remove it, and the next backup puts this agent ({VERSION}) there"))));
    }
    // One that is other than its file tells would hand over to itself for ever.
    if Path::new(SELF).metadata().is_ok_and(|own| (own.dev(), own.ino()) == (meta.dev(), meta.ino())) {
        return Ok(());
    }
    let become_it = || anyhow!(Command::new(&path).args(std::env::args_os().skip(1)).exec());
    let why = answers(&path).map_or_else(|why| why, |()| become_it());
    to_stderr(&format!("warning: {} is {newer}, newer than this agent ({VERSION}), and cannot be run: {why:#}", path.display()));
    Ok(())
}

/// The agents of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Agents {
    /// The one that tells this.
    pub own: Agent,
    /// The one in the recovery directory, which the units start, if it can be run.
    pub in_recovery_directory: Option<Agent>,
    /// The one of a package, which people call, if it can be run.
    pub packaged: Option<Agent>,
    /// What cannot be told of them, and why one cannot be run.
    pub unknown: Vec<String>,
}

impl Agents {
    /// Those of a node.
    ///
    /// # Errors
    /// As [`Agent::own`].
    pub fn of(node: &Node, dir: &RecoveryDir) -> Result<Self> {
        let mut unknown = Vec::new();
        let mut look = |path: &Path| {
            let found = Agent::in_file(path).unwrap_or_else(|error| {
                unknown.push(format!("reading which version {} is: {error:#}", node.shown(path).display()));
                None
            })?;
            let Some(why) = cannot_be_run(node, path) else { return Some(found) };
            unknown.push(format!("{} is {found}, and cannot be run: {why}", node.shown(path).display()));
            None
        };
        let (in_recovery_directory, packaged) = (look(&dir.agent()), look(&node.path(PACKAGED)));
        Ok(Self { own: Agent::own()?, in_recovery_directory, packaged, unknown })
    }

    /// Which leads, in words; nothing when there is only one, and that is known.
    #[must_use]
    pub fn said(&self, dir: &RecoveryDir) -> Vec<String> {
        let there = dir.shown_agent();
        let there = there.display();
        let lead = match (&self.in_recovery_directory, &self.packaged) {
            (Some(own), Some(packaged)) if own.version.cmp_precedence(&packaged.version).is_gt() => {
                Some(format!("the agent is {own}, {there}: {PACKAGED} is {packaged}, and hands over to it"))
            }
            (Some(own), Some(packaged)) if own.version.cmp_precedence(&packaged.version).is_lt() => Some(format!(
                "the agent is {packaged}, {PACKAGED}; {there}, which the units start, is {own}: the next backup, or a recovery when it begins, puts the newer \
                 one there"
            )),
            (None, Some(packaged)) if self.unknown.is_empty() => {
                Some(format!("the agent is {packaged}, {PACKAGED}; {there} is not there yet: a backup puts it there"))
            }
            (Some(own), None) if own.version.cmp_precedence(&self.own.version).is_lt() => Some(format!(
                "this agent is {}; {there}, which the units start, is {own}: the next backup, or a recovery when it begins, puts this one there",
                self.own
            )),
            (Some(own), _) => Some(format!("the agent is {own}")),
            _ => None,
        };
        lead.into_iter().chain(self.unknown.iter().cloned()).collect()
    }
}
