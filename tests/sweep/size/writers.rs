//! Backups of a node on which etcd and files are written to as fast as it goes.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use etcd_client::{GetOptions, Txn, TxnOp};
use recovery::archive::{Archive, Extra, Selection};
use testing::etcd::{Etcd, Options, Version, noise};
use testing::node::checked;

use super::{agent, measured};
use crate::disk::Disk;
use crate::place::Sno;

/// One transaction puts the same number into all of these.
const KEYS: u64 = 8;
/// Beside them, so many bytes in each transaction.
const BALLAST: usize = 64 << 10;
/// Files of each kind.
const FILES: u64 = 20;
/// Lines of a file that is replaced, each with the number of its version.
const LINES: usize = 2000;

/// What all writers have written so far.
#[derive(Default)]
struct Written {
    is_over: AtomicBool,
    transactions: AtomicU64,
    versions: AtomicU64,
    appended: AtomicU64,
}

/// Puts one number after the other.
fn count_in_etcd(etcd: &Etcd, written: &Written) -> Result<()> {
    let ballast = noise(1, BALLAST);
    etcd.with_client(async |client| {
        for n in 1.. {
            if written.is_over.load(Ordering::Relaxed) {
                break;
            }
            let mut puts: Vec<TxnOp> = (0..KEYS).map(|key| TxnOp::put(format!("/load/{key}"), n.to_string(), None)).collect();
            puts.push(TxnOp::put(format!("/ballast/{}", n % 100), ballast.clone(), None));
            client.txn(Txn::new().and_then(puts)).await?;
            written.transactions.store(n, Ordering::Relaxed);
        }
        Ok(())
    })
}

fn version(n: u64) -> String {
    format!("version {n}\n").repeat(LINES)
}

/// Replaces files as programs should, writes over others as they should not, renames some, and appends to some.
fn write_files(dir: &Path, written: &Written) -> Result<()> {
    for n in 1.. {
        if written.is_over.load(Ordering::Relaxed) {
            break;
        }
        let file = |kind: &str| dir.join(format!("{kind}-{}", n % FILES));
        fs::write(dir.join(".new"), version(n))?;
        fs::rename(dir.join(".new"), file("replaced"))?;
        fs::write(file("overwritten"), version(n))?;
        let (from, to) = (dir.join(format!("renamed-{}", (n - 1) % FILES)), file("renamed"));
        if n == 1 { fs::write(&to, "of all names\n") } else { fs::rename(from, to) }?;
        written.versions.store(n, Ordering::Relaxed);
    }
    Ok(())
}

/// One line after the other, in one file.
fn append(file: &Path, written: &Written) -> Result<()> {
    let mut file = File::options().create(true).append(true).open(file)?;
    for n in 1.. {
        if written.is_over.load(Ordering::Relaxed) {
            break;
        }
        file.write_all(format!("line {n:012}\n").as_bytes())?;
        written.appended.store(n, Ordering::Relaxed);
        // Without a pause it grows faster than a busy machine packs it.
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    Ok(())
}

/// The snapshot is one that etcd takes, and has each transaction whole: the number in it.
fn number_in(snapshot: &Path, scratch: &Path) -> Result<u64> {
    let (plain, data) = (scratch.join("plain.db"), scratch.join("data"));
    checked(Command::new("zstd").args(["-qdf"]).arg(snapshot).arg("-o").arg(&plain))?;
    // etcd's own program compares the hash that etcd has put at the end.
    checked(Version::V34.restorer()?.arg(&plain).arg("--data-dir").arg(&data))?;
    let etcd = Etcd::start(Version::V34, &data, &Options::default())?;
    let numbers = etcd.with_client(async |client| {
        let answer = client.get("/load/", Some(GetOptions::new().with_prefix())).await?;
        answer.kvs().iter().map(|kv| Ok(kv.value_str()?.parse()?)).collect::<Result<Vec<u64>>>()
    })?;
    etcd.kill()?;
    fs::remove_dir_all(&data)?;
    let first = *numbers.first().context("nothing was counted")?;
    ensure!(numbers == vec![first; usize::try_from(KEYS)?], "a transaction is not whole: {numbers:?}");
    Ok(first)
}

/// Each file is one of those that were written, or the backup says that it is none.
fn check_files(dir: &Path, said: &str, written: &Written) -> Result<()> {
    let newest = written.versions.load(Ordering::Relaxed);
    let is_version = |text: &str| {
        let n: Option<u64> = text.lines().next().and_then(|line| line.strip_prefix("version ")?.parse().ok());
        n.is_some_and(|n| n <= newest && text == version(n))
    };
    let mut renamed = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path)?;
        let is_named = said.contains(&format!("load/{name} is written to all the time"))
            || said.contains(&format!("load/{name}: is written to all the time"));
        match name.split('-').next() {
            Some("replaced") => ensure!(is_version(&text), "{name} is none that was written"),
            // Empty for a moment in between, which is as good a state as any.
            Some("overwritten" | ".new") => {
                let begins = text.is_empty() || version(newest + 1).len() >= text.len() && text.starts_with("version ");
                ensure!(
                    is_version(&text) || is_named || begins && is_begun(&text),
                    "{name} is none that was written, and not named: {said}"
                );
            }
            Some("renamed") => {
                renamed += 1;
                ensure!(text == "of all names\n", "{name}: {text}");
            }
            Some("log") => {
                let lines = written.appended.load(Ordering::Relaxed);
                let read = text.lines().enumerate().all(|(at, line)| line == format!("line {:012}", at + 1));
                ensure!(read && u64::try_from(text.lines().count())? <= lines, "the log is no beginning of what was written");
            }
            _ => ensure!(false, "{name} was not written"),
        }
    }
    // It has one name at each moment; while its directory is read it may get a name that was looked for already, or one that is still to come.
    ensure!(renamed <= 2, "it has {renamed} names");
    Ok(())
}

/// A version up to where its writer has come.
fn is_begun(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    text.is_empty() || text == format!("{first}\n").repeat(LINES).get(..text.len()).unwrap_or_default()
}

fn backups_under_load(backups: usize) -> Result<()> {
    let sno = Sno::new();
    let dir = sno.root().join("etc/load");
    fs::create_dir(&dir)?;
    let scratch = tempfile::tempdir()?;
    let written = Written::default();
    let mut numbers = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let writers = [
            scope.spawn(|| count_in_etcd(&sno.etcd, &written)),
            scope.spawn(|| write_files(&dir, &written)),
            scope.spawn(|| append(&dir.join("log"), &written)),
        ];
        let mut back_up = || -> Result<()> {
            for _ in 0..backups {
                let begun = written.transactions.load(Ordering::Relaxed);
                let mut command = agent(["--root"]);
                command.arg(sno.root()).arg("--tools").arg(sno.root().join("tools")).args(["backup", "--force", "--keep", "1"]);
                let took = measured(&mut command)?;
                took.expect(0, &[])?;
                let newest = recovery::backup::survey::survey(&sno.place.dir)?.backups.into_iter().next().context("no backup")?;
                let number = number_in(&newest.file("etcd-snapshot.db.zst"), scratch.path())?;
                ensure!(number >= begun && number <= written.transactions.load(Ordering::Relaxed) + 1, "{number} is none of its time");
                numbers.push(number);
                let to = scratch.path().join("etc");
                Archive::open(&newest.file("etc.tar.zst"))?.restore(&to, &Selection::all(), Extra::Delete, &|_| ())?;
                check_files(&to.join("load"), &took.said, &written)?;
            }
            Ok(())
        };
        let backed_up = back_up();
        written.is_over.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        backed_up
    })?;
    ensure!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
    let (transactions, versions, appended) = (count(&written.transactions), count(&written.versions), count(&written.appended));
    println!(
        "{backups} backups, each consistent, while etcd took {transactions} transactions, and {versions} files and {appended} lines were written"
    );
    Ok(())
}

#[test]
fn backups_are_consistent_while_etcd_and_files_are_written_to() -> Result<()> {
    let _disk = Disk::make()?;
    backups_under_load(4)
}

#[test]
#[ignore = "minutes: `tests/run.sh sweep size`"]
fn many_backups_are_consistent_while_etcd_and_files_are_written_to() -> Result<()> {
    backups_under_load(40)
}
