//! The packages of the agent under test: dpkg installs them in fresh Debian trees and rpm in an empty root, every file is looked at, and
//! they are removed again. And what the agent is made of, as its bill of materials has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use real_node::Limit;
use real_node::command::{checked, run, sha256};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use testing::cargo::in_checkout;

const AGENT: &str = env!("CARGO_BIN_EXE_recovery");
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// For one call of a tool.
const SOON: Limit = Limit::of(120);
/// For a build of the tools that make packages, and of a tree of Debian's, from nothing on two busy cores.
const LONG: Limit = Limit::of(1800);
/// Where rpm keeps what it has installed.
const RPMS: &str = "var/lib/rpm";

fn sh(script: &str, args: &[&Path]) -> Result<String> {
    checked(Command::new("sh").args(["-euc", script, "sh"]).args(args), LONG)
}

/// The packages, made once for all tests of this process. The binary goes in without what is for debuggers, as in a release.
static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = in_checkout("target/packages/built");
    let strip = || sh(r#"rm -rf "$2"; mkdir -p "$2"; strip -o "$2/recovery" "$1""#, &[Path::new(AGENT), &folder]);
    strip().and_then(|_| build(&folder.join("recovery"), &folder)).expect("the packages cannot be made");
    folder
});

/// Both packages of a binary, in a folder.
fn build(binary: &Path, to: &Path) -> Result<()> {
    checked(Command::new(in_checkout("packaging/packages/build.sh")).args([binary, to]).env("NATIVE", AGENT), LONG).map(drop)
}

fn deb() -> PathBuf {
    BUILT.join(format!("recovery_{VERSION}-1_amd64.deb"))
}

fn rpm() -> PathBuf {
    BUILT.join(format!("recovery-{VERSION}-1.x86_64.rpm"))
}

/// Everything in a tree: type with mode, owner, group, and what is in it.
type Tree = BTreeMap<PathBuf, (u32, u32, u32, String)>;

fn tree(root: &Path) -> Result<Tree> {
    let mut all = Tree::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry?;
        let meta = entry.metadata()?;
        let content = match meta.file_type() {
            kind if kind.is_file() => sha256(std::fs::read(entry.path())?),
            kind if kind.is_symlink() => std::fs::read_link(entry.path())?.display().to_string(),
            _ => String::new(),
        };
        all.insert(entry.path().strip_prefix(root)?.to_owned(), (meta.mode(), meta.uid(), meta.gid(), content));
    }
    Ok(all)
}

/// The paths at which two trees differ, but for what package managers remember.
fn differences(one: &Tree, other: &Tree) -> BTreeSet<PathBuf> {
    let paths: BTreeSet<&PathBuf> = one.keys().chain(other.keys()).collect();
    let memory = |path: &Path| ["var/lib/dpkg", RPMS, "var/log/dpkg.log"].iter().any(|known| path.starts_with(known));
    paths.into_iter().filter(|path| one.get(*path) != other.get(*path) && !memory(path)).cloned().collect()
}

/// What a package brings: path and mode of each file.
fn files(licence: &str, zsh: &str, man_pages: &BTreeSet<String>) -> BTreeMap<PathBuf, u32> {
    let mut all: BTreeMap<PathBuf, u32> = [
        "usr/lib/systemd/catalog/recovery.catalog",
        "usr/lib/systemd/system-preset/85-recovery.preset",
        "usr/lib/systemd/system/crio-wipe.service.d/10-recovery-images.conf",
        "usr/lib/systemd/system/kubelet.service.d/10-recovery-hold.conf",
        "usr/lib/systemd/system/recovery-metrics.service",
        "usr/lib/systemd/system/recovery-metrics.timer",
        "usr/lib/systemd/system/recovery-resume.service",
        "usr/lib/systemd/system/recovery-schedule.service",
        "usr/lib/systemd/system/recovery-schedule.timer",
        "usr/share/bash-completion/completions/recovery",
        "usr/share/doc/recovery/CHANGELOG.md",
        "usr/share/doc/recovery/README.md",
        "usr/share/fish/vendor_completions.d/recovery.fish",
        "usr/share/recovery/10-partlabel.conf",
        "usr/share/recovery/recovery.rules.yaml",
        "usr/share/recovery/var-recovery.mount",
        zsh,
        licence,
    ]
    .map(|path| (PathBuf::from(path), 0o644))
    .into();
    all.insert("usr/bin/recovery".into(), 0o755);
    all.extend(man_pages.iter().map(|page| (format!("usr/share/man/man8/{page}.gz").into(), 0o644)));
    all
}

/// The man pages that the agent makes.
fn man_pages() -> Result<BTreeSet<String>> {
    let folder = tempfile::tempdir()?;
    checked(Command::new(AGENT).args(["generate", "man"]).arg(folder.path()), SOON)?;
    let names: BTreeSet<String> =
        std::fs::read_dir(folder.path())?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
    ensure!(["recovery.8", "recovery-etcd-restore.8", "recovery-recover.8"].iter().all(|page| names.contains(*page)), "{names:?}");
    Ok(names)
}

/// What came into a tree is what a package is to bring, root's, with its folders and nothing else; nothing that was there has changed.
fn brings(before: &Tree, after: &Tree, expected: &BTreeMap<PathBuf, u32>) -> Result<()> {
    let new = differences(before, after);
    let folders: BTreeSet<&Path> = expected.keys().flat_map(|path| path.ancestors().skip(1)).collect();
    for path in &new {
        let (mode, uid, gid, _) = after.get(path).with_context(|| format!("{} is gone", path.display()))?;
        ensure!(!before.contains_key(path), "{} was there before, and has changed", path.display());
        ensure!((*uid, *gid) == (0, 0), "{} is of {uid}:{gid}", path.display());
        let want = match expected.get(path) {
            Some(mode) => 0o100_000 | mode,
            None if folders.contains(path.as_path()) => 0o040_755,
            None => anyhow::bail!("nobody knows {}", path.display()),
        };
        ensure!(*mode == want, "{} has the mode {mode:o}", path.display());
    }
    let missing: Vec<_> = expected.keys().filter(|path| !new.contains(*path)).collect();
    ensure!(missing.is_empty(), "the package does not bring {missing:?}");
    Ok(())
}

/// The agent of a tree runs there, as the one that was packaged.
fn runs(root: &Path) -> Result<()> {
    let there = checked(Command::new("chroot").arg(root).args(["/usr/bin/recovery", "--version"]), SOON)?;
    let here = checked(Command::new(AGENT).arg("--version"), SOON)?;
    ensure!(there == here && there.contains(VERSION), "{there} is not {here}");
    Ok(())
}

/// What systemd says of the packaged units, and of units that their drop-ins are for; `edit` changes one file before.
fn verified(root: &Path, edit: Option<(&str, &str, &str)>) -> Result<String> {
    let units = tempfile::tempdir()?;
    sh(r#"cp -r "$1"/usr/lib/systemd/system/* "$2""#, &[root, units.path()])?;
    for unit in ["kubelet.service", "crio-wipe.service"] {
        std::fs::write(units.path().join(unit), "[Service]\nType=oneshot\nExecStart=/bin/true\n")?;
    }
    let ours = ["recovery-metrics.service", "recovery-resume.service", "recovery-schedule.service"];
    for unit in ours {
        // The agent that a backup puts there; this machine has none.
        let text = std::fs::read_to_string(units.path().join(unit))?;
        ensure!(text.lines().any(|line| line.starts_with("ExecStart=") && line.contains("/var/recovery/recovery")), "{text}");
        std::fs::write(units.path().join(unit), text.replace("/var/recovery/recovery", "/bin/true"))?;
    }
    if let Some((file, old, new)) = edit {
        let text = std::fs::read_to_string(units.path().join(file))?;
        ensure!(text.contains(old), "{file} has no {old}");
        std::fs::write(units.path().join(file), text.replace(old, new))?;
    }
    let all = ours.into_iter().chain(["recovery-metrics.timer", "recovery-schedule.timer", "kubelet.service", "crio-wipe.service"]);
    let done = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).args(all.map(|unit| units.path().join(unit))), &[], SOON)?;
    ensure!(done.code() <= 1, "{done:?}");
    let about_ours = |line: &&str| ["recovery", "kubelet", "crio"].iter().any(|word| line.contains(word));
    Ok(done.stderr.lines().filter(about_ours).collect::<Vec<_>>().join("\n"))
}

/// The units are sound, and none is enabled.
fn units_are_well(root: &Path) -> Result<()> {
    let said = verified(root, None)?;
    ensure!(said.is_empty(), "systemd-analyze verify says: {said}");
    // It would have.
    let said = verified(root, Some(("kubelet.service.d/10-recovery-hold.conf", "ConditionPathExists=", "ConditionPathExist=")))?;
    ensure!(said.contains("ConditionPathExist"), "it does not see the drop-in: {said}");
    let systemctl = |words: &[&str]| run(Command::new("systemctl").arg("--root").arg(root).args(words), &[], SOON);
    systemctl(&["preset", "recovery-schedule.timer"])?.checked()?;
    let state = systemctl(&["is-enabled", "recovery-schedule.timer"])?;
    ensure!(state.stdout.trim() == "disabled", "{state:?}");
    Ok(())
}

/// Of a program for ARM: its header is enough of it to be packed, and the man pages come from the agent that runs here.
#[test]
fn the_same_binary_makes_the_same_packages_for_its_architecture() -> Result<()> {
    let place = tempfile::tempdir()?;
    let mut header = std::fs::read(AGENT)?[..64].to_vec();
    // e_machine: EM_AARCH64.
    header[18..20].copy_from_slice(&183_u16.to_le_bytes());
    let (program, first, second) = (place.path().join("program"), place.path().join("first"), place.path().join("second"));
    std::fs::write(&program, &header)?;
    build(&program, &first)?;
    // Other times on the files, and on the clock.
    std::thread::sleep(std::time::Duration::from_secs(2));
    std::fs::write(&program, &header)?;
    build(&program, &second)?;
    let names = [format!("recovery_{VERSION}-1_arm64.deb"), format!("recovery-{VERSION}-1.aarch64.rpm")];
    for name in &names {
        ensure!(std::fs::read(first.join(name))? == std::fs::read(second.join(name))?, "{name} came out otherwise the second time");
    }
    let field = checked(Command::new("dpkg-deb").arg("--field").arg(first.join(&names[0])).arg("Architecture"), SOON)?;
    let query = ["--query", "--queryformat=%{ARCH}", "--package"];
    let arch = checked(Command::new("rpm").args(query).arg(first.join(&names[1])), SOON)?;
    ensure!((field.trim(), arch.as_str()) == ("arm64", "aarch64"), "{field} {arch}");
    header[18] = 0;
    std::fs::write(&program, &header)?;
    let error = build(&program, &second).err().context("a program for no known machine is packed")?;
    ensure!(format!("{error:#}").contains("not a program for x86-64 or ARM64"), "{error:#}");
    Ok(())
}

/// A minimal Debian with a reader of man pages, made once, and copied for this test.
fn debian(release: &str, copy: &Path) -> Result<()> {
    let folder = in_checkout("target/packages");
    std::fs::create_dir_all(&folder)?;
    let alone = File::create(folder.join(format!("{release}.lock")))?;
    flock(&alone, FlockOperation::LockExclusive)?;
    let kept = folder.join(format!("{release}-mandoc"));
    if !kept.exists() {
        // The mirror that this machine takes its own packages from, as in `fresh.sh`.
        let script = r#"rm -rf --one-file-system "$2.new"
            mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | head -1)
            debootstrap --variant=minbase --include=mandoc "$1" "$2.new" ${mirror:+"$mirror"}
            rm -rf "$2.new"/var/cache/apt/archives/*.deb "$2.new"/var/lib/apt/lists/*
            mv "$2.new" "$2""#;
        sh(script, &[Path::new(release), &kept])?;
    }
    sh(r#"cp -a "$1" "$2""#, &[&kept, copy]).map(drop)
}

fn dpkg_installs_and_removes_it(release: &str) -> Result<()> {
    let place = tempfile::tempdir()?;
    let root = place.path().join("root");
    debian(release, &root)?;
    let before = tree(&root)?;
    let inside = |words: &[&str]| {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        checked(Command::new("chroot").arg(&root).args(words).env_clear().env("PATH", path).env("LC_ALL", "C.UTF-8"), SOON)
    };

    std::fs::copy(deb(), root.join("recovery.deb"))?;
    inside(&["dpkg", "--install", "/recovery.deb"])?;
    std::fs::remove_file(root.join("recovery.deb"))?;
    let pages = man_pages()?;
    brings(&before, &tree(&root)?, &files("usr/share/doc/recovery/copyright", "usr/share/zsh/vendor-completions/_recovery", &pages))?;
    ensure!(inside(&["dpkg", "--verify", "recovery"])?.is_empty(), "dpkg finds a file that is not as it is packaged");
    runs(&root)?;
    let page = inside(&["mman", "recovery-etcd-restore"])?;
    ensure!(page.contains("The new data directory"), "the man page says {page}");
    let completed = inside(&["bash", "-c", ". /usr/share/bash-completion/completions/recovery; complete -p recovery"])?;
    ensure!(completed.ends_with(" recovery\n"), "bash completes {completed}");
    units_are_well(&root)?;

    inside(&["dpkg", "--purge", "recovery"])?;
    let left = differences(&before, &tree(&root)?);
    ensure!(left.is_empty(), "removed again, it leaves or has changed {left:?}");
    Ok(())
}

#[test]
fn dpkg_installs_and_removes_it_on_debian_12() -> Result<()> {
    dpkg_installs_and_removes_it("bookworm")
}

#[test]
fn dpkg_installs_and_removes_it_on_debian_13() -> Result<()> {
    dpkg_installs_and_removes_it("trixie")
}

#[test]
fn rpm_installs_and_removes_it_in_an_empty_root() -> Result<()> {
    let place = tempfile::tempdir()?;
    let root = place.path().join("root");
    // Empty but for the folders that Fedora's `filesystem`, systemd and the shells bring.
    for folder in [
        RPMS,
        "usr/bin",
        "usr/lib/systemd/system",
        "usr/lib/systemd/catalog",
        "usr/lib/systemd/system-preset",
        "usr/share/bash-completion/completions",
        "usr/share/doc",
        "usr/share/fish/vendor_completions.d",
        "usr/share/licenses",
        "usr/share/man/man8",
        "usr/share/zsh/site-functions",
    ] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755))?;
    let before = tree(&root)?;
    let rpm_does = |words: &[&str]| {
        checked(Command::new("rpm").arg("--root").arg(&root).args(["--dbpath", "/var/lib/rpm"]).args(words).env("LC_ALL", "C"), SOON)
    };

    let package = rpm();
    rpm_does(&["--install", package.to_str().context("a path that is no text")?])?;
    let pages = man_pages()?;
    brings(&before, &tree(&root)?, &files("usr/share/licenses/recovery/LICENSE", "usr/share/zsh/site-functions/_recovery", &pages))?;
    ensure!(rpm_does(&["--verify", "recovery"])?.is_empty(), "rpm finds a file that is not as it is packaged");
    // Nothing that a node may not have: a requirement other than of rpm itself would keep it from being layered.
    let requires = rpm_does(&["--query", "--requires", "recovery"])?;
    ensure!(requires.lines().all(|line| line.starts_with("rpmlib(")), "it requires {requires}");
    let scripts = rpm_does(&["--query", "--scripts", "recovery"])?;
    ensure!(scripts.is_empty(), "it has scripts, which do not run on the node that it is layered for: {scripts}");
    runs(&root)?;
    units_are_well(&root)?;

    rpm_does(&["--erase", "recovery"])?;
    let left = differences(&before, &tree(&root)?);
    ensure!(left.is_empty(), "removed again, it leaves or has changed {left:?}");
    Ok(())
}

/// Name and version of every crate in Cargo.lock.
fn locked() -> Result<BTreeSet<(String, String)>> {
    let text = std::fs::read_to_string(in_checkout("Cargo.lock"))?;
    let value = |line: Option<&str>, key: &str| line?.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"').map(str::to_owned);
    let of = |package: &str| {
        let mut lines = package.lines();
        Some((value(lines.next(), "name")?, value(lines.next(), "version")?))
    };
    text.split("[[package]]\n").skip(1).map(|package| of(package).with_context(|| format!("Cargo.lock has {package}"))).collect()
}

/// Name and version of every crate that cargo builds for the agent, itself aside.
fn built_in() -> Result<BTreeSet<(String, String)>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let words = ["tree", "--locked", "--edges=normal,build", "--target=x86_64-unknown-linux-gnu", "--prefix=none", "--format={p}"];
    let text = checked(Command::new(cargo).args(words).current_dir(in_checkout("")), SOON)?;
    let crates = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
    });
    let crates: BTreeSet<_> = crates.filter(|(name, _)| name != "recovery").collect();
    ensure!(crates.len() > 100, "cargo tree prints {text}");
    Ok(crates)
}

#[test]
fn the_bill_of_materials_has_every_crate_and_is_the_same_each_time() -> Result<()> {
    let place = tempfile::tempdir()?;
    let build = |target: &str, name: &str| -> Result<Vec<u8>> {
        let to = place.path().join(name);
        checked(Command::new(in_checkout("packaging/packages/sbom.sh")).arg(target).arg(&to), LONG)?;
        Ok(std::fs::read(to)?)
    };
    let text = build("x86_64-unknown-linux-gnu", "first.json")?;
    ensure!(text == build("x86_64-unknown-linux-gnu", "second.json")?, "the same commit has two bills");
    let bill: Value = serde_json::from_slice(&text)?;
    ensure!(bill["bomFormat"] == "CycloneDX" && bill.get("serialNumber").is_none(), "{bill}");
    ensure!(bill["metadata"]["component"]["name"] == "recovery" && bill["metadata"]["component"]["version"] == VERSION);
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let components = bill["components"].as_array().context("no components")?;
    let named: BTreeSet<_> = components.iter().map(|one| (word(&one["name"]), word(&one["version"]))).collect();
    let unknown: Vec<_> = named.difference(&locked()?).cloned().collect();
    ensure!(unknown.is_empty(), "not in Cargo.lock: {unknown:?}");
    ensure!(
        components.iter().all(|one| one["licenses"].is_array() && one["hashes"].is_array()),
        "one without licence or sum: {components:?}"
    );
    let missing: Vec<_> = built_in()?.difference(&named).cloned().collect();
    ensure!(missing.is_empty(), "the bill lacks {missing:?}");
    let of_tests: Vec<_> = named.iter().filter(|(name, _)| ["rcgen", "vt100", "real-node", "testing"].contains(&name.as_str())).collect();
    ensure!(of_tests.is_empty(), "the bill has crates of the tests: {of_tests:?}");
    Ok(())
}
