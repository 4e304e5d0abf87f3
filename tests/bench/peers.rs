//! `cargo bench --bench peers`: the agent beside the tools that people use for the same work, on the same tree, in one run.
//!
//! Both sides are commands, started as a person would. Needs tar, zstd, rsync, and for etcd what `tests/etcd-tools` builds. `-- --quick`
//! takes a tenth of everything; `-- --dir DIR` chooses the disk (default: the system's temporary directory); `-- --runs N`; `-- --only WORD`
//! one of `backup`, `restore`, `second`, `etcd`, `rules`. Each run measures all sides one after the other, and medians are compared. Everything is
//! synced: the agent syncs what it writes itself, the peers are followed by a sync of theirs.

mod measure;
mod sno;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use etcd_client::{Txn, TxnOp};
use measure::{Side, Table, machine, run};
use testing::etcd::{self, Etcd, Version};
use testing::node::{Kind, Node, Options};

/// Resident memory that the agent may take, MiB.
const MEMORY: i64 = 64;
/// The release whose `etcdutl` is the peer: that of the OpenShift releases in the field.
const ETCD: Version = Version::V35;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|arg| arg == "make") {
        return make(&args[1..]);
    }
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).cloned();
    let quick = args.iter().any(|arg| arg == "--quick");
    let dir = value("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
    let runs = value("--runs").map_or(Ok(if quick { 3 } else { 7 }), |runs| runs.parse()).context("reading --runs")?;
    let only = value("--only");
    let wanted = |word: &str| only.as_deref().is_none_or(|only| only == word);
    let scratch = tempfile::tempdir_in(&dir)?;
    let bench = Bench { dir: scratch.path().to_owned(), runs, share: if quick { "10" } else { "1" } };
    println!("{}\nMedians of {runs} runs of each; everything is synced.", machine(&dir)?);
    println!(
        "The etcd snapshot is a file of the tree for every side: `recovery backup` compresses the same bytes as they come from etcd.\n"
    );
    let mut table = Table::begin();
    if wanted("backup") || wanted("restore") || wanted("second") {
        run(bench.make("tree", "live")?)?;
        run(bench.shell("cp -a live copy"))?;
    }
    if wanted("backup") {
        bench.backups(&mut table)?;
    }
    if wanted("restore") {
        bench.restores(&mut table)?;
    }
    if wanted("second") {
        bench.second_backup(&mut table)?;
    }
    if wanted("etcd") {
        run(bench.shell("rm -rf live copy"))?;
        bench.etcd(&mut table)?;
    }
    if wanted("rules") {
        bench.rules(&mut table)?;
    }
    table.end(MEMORY);
    Ok(())
}

/// Makes what is measured, in a process of its own: what a process has in memory when it starts another counts as the other's.
fn make(args: &[String]) -> Result<()> {
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["tree", tree, share] => sno::make(Path::new(tree), share.parse()?),
        ["snapshot", file, share] => make_snapshot(Path::new(file), (1 << 30) / share.parse::<u64>()?),
        other => bail!("unknown work {other:?}"),
    }
}

/// Saves a snapshot of a real etcd that holds so many bytes.
fn make_snapshot(file: &Path, bytes: u64) -> Result<()> {
    let dir = tempfile::tempdir_in(file.parent().context("naming a directory")?)?;
    let args = ["--quota-backend-bytes=8589934592", "--unsafe-no-fsync"].map(str::to_owned).to_vec();
    let etcd = Etcd::start(ETCD, dir.path(), &etcd::Options { args, ..etcd::Options::default() })?;
    etcd.put_bytes(bytes)?;
    recovery::etcd::save(&etcd.endpoint, file, Duration::from_secs(60), &|_| ())?;
    etcd.kill()
}

struct Bench {
    dir: PathBuf,
    runs: u64,
    /// One of how many parts of the whole is taken.
    share: &'static str,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn make(&self, what: &str, name: &str) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["make", what]).arg(self.path(name)).arg(self.share);
        Ok(command)
    }

    /// The agent, as it is installed.
    fn recovery(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_recovery"));
        command.args(args.split(' ')).current_dir(&self.dir);
        command
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-ec", script]).current_dir(&self.dir);
        command
    }

    fn backups(&self, table: &mut Table) -> Result<()> {
        let (mut own, mut tar, mut cp) = (Side::new(), Side::new(), Side::new());
        for _ in 0..self.runs {
            run(self.shell("rm -rf own.tar.zst tar.tar.zst cp"))?;
            own.measure(self.recovery("archive pack live own.tar.zst"))?;
            tar.measure(self.shell("tar --xattrs --acls -C live -cf - . | zstd -q -1 -T0 > tar.tar.zst; sync tar.tar.zst"))?;
            cp.measure(self.shell("cp -Ra live cp; sync -f cp"))?;
        }
        table.times("backup, hashed and read back", "`tar \\| zstd -1 -T0`", &own, &tar, 1.0);
        table.times("the same", "`cp -Ra`", &own, &cp, 1.0);
        let own = fs::metadata(self.path("own.tar.zst"))?.len();
        table.bytes("`cp -Ra`", own, usage(&self.path("cp"))?, 0.6);
        Ok(())
    }

    /// `copy` is what rsync restores from, the archive what the agent does; both are of the tree as it was made.
    fn restores(&self, table: &mut Table) -> Result<()> {
        run(self.shell("rm -rf own.tar.zst cp"))?;
        run(self.recovery("archive pack copy own.tar.zst"))?;
        let rsync = "mkdir -p live; rsync -aAXc --delete copy/ live/; sync -f live";
        let nothing = |_| Ok(());
        let change = |seed| sno::change(&self.path("live"), seed);
        let empty = |_| Ok(fs::remove_dir_all(self.path("live"))?);
        let cases: [(&str, f64, Prepare<'_>); 3] = [
            ("restore onto an unchanged tree", 0.5, &nothing),
            ("restore, 2 % of files changed", 0.5, &change),
            ("restore into an empty tree", 0.7, &empty),
        ];
        for (work, goal, prepare) in cases {
            let (mut own, mut peer) = (Side::new(), Side::new());
            for seed in 1..=self.runs {
                prepare(seed)?;
                own.measure(self.recovery("archive restore --yes own.tar.zst live"))?;
                prepare(seed)?;
                peer.measure(self.shell(rsync))?;
            }
            table.times(work, "`rsync -aAXc --delete`", &own, &peer, goal);
        }
        Ok(())
    }

    fn second_backup(&self, table: &mut Table) -> Result<()> {
        run(self.shell("mkdir -p aside; mv live/backup aside"))?;
        let (mut first, mut second) = (Side::new(), Side::new());
        for seed in 1..=self.runs {
            run(self.shell("rm -f first.tar.zst second.tar.zst"))?;
            // Nothing is taken over that had changed less than two seconds before.
            std::thread::sleep(Duration::from_secs(3));
            first.measure(self.recovery("archive pack live first.tar.zst"))?;
            sno::change(&self.path("live"), seed + 100)?;
            second.measure(self.recovery("archive pack live second.tar.zst --previous first.tar.zst"))?;
        }
        table.times("second backup, 2 % changed, etcd aside", "the first", &second, &first, 0.4);
        Ok(())
    }

    fn etcd(&self, table: &mut Table) -> Result<()> {
        run(self.make("snapshot", "snapshot.db")?)?;
        run(self.shell("zstd -q -1 snapshot.db"))?;
        let etcdutl = ETCD.program("etcdutl")?;
        let restore = |file: &str| format!("{} snapshot restore {file} --data-dir etcd; sync -f etcd", etcdutl.display());
        let (of_plain, of_packed) = (restore("snapshot.db"), format!("zstd -q -d snapshot.db.zst -o plain.db; {}", restore("plain.db")));
        let [mut plain, mut packed, mut peer, mut packed_peer] = [const { Side::new() }; 4];
        for _ in 0..self.runs {
            for (side, command) in [
                (&mut plain, self.recovery("etcd restore snapshot.db --data-dir etcd")),
                (&mut peer, self.shell(&of_plain)),
                (&mut packed, self.recovery("etcd restore snapshot.db.zst --data-dir etcd")),
                (&mut packed_peer, self.shell(&of_packed)),
            ] {
                side.measure(command)?;
                run(self.shell("rm -rf etcd plain.db"))?;
            }
        }
        table.times("etcd restore of a 1 GiB snapshot", "`etcdutl snapshot restore`", &plain, &peer, 0.7);
        table.times("the same from `.db.zst`", "`zstd -d`, then the same", &packed, &packed_peer, 0.7);
        table.times("the same from `.db.zst`", "`etcdutl` from the plain file", &packed, &peer, 1.0);
        Ok(())
    }

    /// A resource modifier's rules over the backup of an emulated node with 50,000 custom resources, beside the agent's own reading of that snapshot.
    fn rules(&self, table: &mut Table) -> Result<()> {
        let node = Node::build(&self.path("node"), &Options::new(Kind::Kubeadm, &Version::V34.program("etcd")?))?;
        let objects = 50_000 / self.share.parse::<usize>()?;
        node.with_etcd(async |client| {
            for numbers in (0..objects).collect::<Vec<_>>().chunks(100) {
                let puts: Vec<TxnOp> = numbers.iter().map(|number| TxnOp::put(key(*number), management(*number), None)).collect();
                client.txn(Txn::new().and_then(puts)).await?;
            }
            Ok(())
        })?;
        let agent = |args: &[&str]| -> Result<Command> {
            let mut command = node.recovery()?;
            command.args(args).stdin(Stdio::null());
            Ok(command)
        };
        run(agent(&["backup"])?)?;
        let snapshot = fs::read_dir(node.at("/var/recovery/backups"))?.next().context("no backup")??.path().join("etcd-snapshot.db.zst");
        let status = |side: &mut Side| side.measure(agent(&["etcd", "status", snapshot.to_str().context("a path that is no text")?])?);
        for (about, names) in [("one of 50,000 custom resources", "^m00007$"), ("all of 50,000", "")] {
            let file = self.path("rules.yaml");
            let conditions = format!("{{groupResource: managements.k0rdent.mirantis.com, resourceNameRegex: '{names}'}}");
            let patches = "[{patchData: '{spec: {release: old}}'}]";
            fs::write(&file, format!("version: v1\nresourceModifierRules: [{{conditions: {conditions}, mergePatches: {patches}}}]\n"))?;
            let (mut own, mut peer) = (Side::new(), Side::new());
            for _ in 0..self.runs {
                own.measure(agent(&["recover", "--dry-run", "--resource-modifier", file.to_str().context("a path that is no text")?])?)?;
                status(&mut peer)?;
            }
            table.times(&format!("rules about {about}, dry-run"), "`recovery etcd status`", &own, &peer, 2.0);
        }
        Ok(())
    }
}

fn key(number: usize) -> String {
    format!("/registry/k0rdent.mirantis.com/managements/m{number:05}")
}

/// A custom resource of a kilobyte, as the API server keeps it.
fn management(number: usize) -> String {
    serde_json::json!({
        "apiVersion": "k0rdent.mirantis.com/v1beta1", "kind": "Management",
        "metadata": {"name": format!("m{number:05}"), "uid": format!("uid-of-m{number:05}"), "generation": 3, "labels": {"a/b": "c"}},
        "spec": {
            "release": "kcm-0-3-0", "providers": [{"name": "one"}, {"name": "two"}],
            "filler": "what an object of some size has in it ".repeat(20),
        },
        "status": {"release": "kcm-0-2-0", "observedGeneration": 3},
    })
    .to_string()
}

/// Makes the tree ready for the run of this number.
type Prepare<'a> = &'a dyn Fn(u64) -> Result<()>;

fn usage(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { usage(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
