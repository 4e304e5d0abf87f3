//! The command line as a user has it: exit codes, messages, output, and what the binary is made of.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_recovery");

fn recovery(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).stdin(Stdio::null()).output().unwrap()
}

/// The agent on an empty node below `root`.
fn on(root: &Path, args: &[&str]) -> Output {
    recovery(&[&["--root", root.to_str().unwrap()], args].concat())
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One table makes the help, the man pages and this one.
#[test]
fn the_readme_has_the_guides_files_word_for_word() {
    let readme = include_str!("../README.md");
    assert!(readme.contains(include_str!("fixtures/k0rdent/management-backup.yaml")));
    let rollback = include_str!("fixtures/k0rdent/rollback.yaml");
    assert!(readme.contains(&rollback.replace("example-backup-kcm-0-2-0", "late")), "but for the backup's name");
}

#[test]
fn the_readme_lists_every_exit_code() {
    let readme = include_str!("../README.md");
    for (code, meaning) in recovery::error::EXIT_CODES {
        assert!(readme.contains(&format!("| {code} | {meaning} |\n")), "{code} {meaning}");
    }
}

#[test]
fn the_binary_is_static() {
    let ldd = Command::new("ldd").arg(BINARY).output().unwrap();
    let text = printed(&ldd) + &said(&ldd);
    assert!(text.contains("statically linked") || text.contains("not a dynamic executable"), "{text}");
}

#[test]
fn the_bare_command_prints_the_status_and_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let output = on(root.path(), &[]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert!(printed(&output).contains("no recovery is in progress"), "{}", printed(&output));
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn a_prepared_soft_reboot_is_in_the_status() {
    let root = tempfile::tempdir().unwrap();
    assert!(!printed(&on(root.path(), &["status"])).contains("soft reboot"));
    std::fs::create_dir_all(root.path().join("run/nextroot/usr")).unwrap();
    let output = printed(&on(root.path(), &["status"]));
    assert!(output.contains("a soft reboot is prepared") && output.contains("`ostree admin prepare-soft-reboot --reset`"), "{output}");
    let report: serde_json::Value = serde_json::from_str(&printed(&on(root.path(), &["--json", "status"]))).unwrap();
    assert_eq!(report["soft_reboot"], true, "{report}");
}

/// On the machine itself, whose recovery directory is another: only there is one agent handed over to.
#[test]
fn the_newer_of_two_agents_does_what_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("recovery");
    let place = |version: &str| {
        let mut program = std::fs::read(BINARY).unwrap();
        testing::agent::pass_for(&mut program, version);
        // By another process: one that is forked here meanwhile would hold it open, and it could not be run.
        std::fs::write(dir.path().join("new"), program).unwrap();
        let (from, to) = (dir.path().join("new"), &other);
        assert!(Command::new("install").arg("--mode=755").arg(from).arg(to).status().unwrap().success());
    };
    let status = || recovery(&["--dir", dir.path().to_str().unwrap(), "--json", "status"]);
    let who =
        |output: &Output| serde_json::from_slice::<Value>(&output.stdout).unwrap()["agents"]["own"]["version"].as_str().unwrap().to_owned();
    let own = env!("CARGO_PKG_VERSION");
    assert_eq!(who(&status()), own);
    place("9.9.9");
    assert_eq!(who(&status()), "9.9.9");
    place("0.0.9");
    assert_eq!(who(&status()), own);
    let words = recovery(&["--dir", dir.path().to_str().unwrap(), "status"]);
    let shown = printed(&words);
    assert!(shown.contains(&format!("this agent is {own}; ")) && shown.contains("which the units start, is 0.0.9"), "{shown}");
    // A shell would read it.
    place("9.9.9");
    let mut program = std::fs::read(&other).unwrap();
    testing::agent::pass_for_another_machine(&mut program);
    std::fs::write(&other, program).unwrap();
    let alone = status();
    assert_eq!(who(&alone), own);
    assert!(String::from_utf8_lossy(&alone.stdout).contains("it is 9.9.9, a program for"), "{}", printed(&alone));

    place("9.9.9");
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let refused = status();
    assert_eq!(code(&refused), 77);
    assert!(said(&refused).contains("says that it is 9.9.9, and belongs to user 0 with mode 0777"), "{}", said(&refused));
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let alone = status();
    assert_eq!(who(&alone), own);
    assert!(said(&alone).contains("Permission denied (os error 13)"), "{}", said(&alone));

    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let noexec = "mount --bind $1 $1; mount -o remount,bind,noexec $1; exec $2 --dir $1 status";
    let output = Command::new("unshare").args(["--mount", "sh", "-euc", noexec, "sh"]).arg(dir.path()).arg(BINARY).output().unwrap();
    let shown = printed(&output);
    assert!(shown.contains("is 9.9.9") && shown.contains("cannot be run: its file system is mounted noexec"), "{shown}{}", said(&output));
    assert!(!shown.contains("the agent is 9.9.9"), "{shown}");
}

#[test]
fn the_status_says_which_of_two_agents_leads() {
    let root = tempfile::tempdir().unwrap();
    let place = |path: &str, version: &str| {
        let mut program = std::fs::read(BINARY).unwrap();
        testing::agent::pass_for(&mut program, version);
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, program).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let status = || printed(&on(root.path(), &["status"]));
    assert!(!status().contains("agent"), "{}", status());
    place("usr/bin/recovery", "0.2.0");
    assert!(status().contains("the agent is 0.2.0, /usr/bin/recovery; /var/recovery/recovery is not there yet"), "{}", status());
    place("var/recovery/recovery", "0.3.0");
    assert!(
        status().contains("the agent is 0.3.0, /var/recovery/recovery: /usr/bin/recovery is 0.2.0, and hands over to it"),
        "{}",
        status()
    );
    place("usr/bin/recovery", "0.4.0");
    let shown = status();
    assert!(shown.contains("the agent is 0.4.0, /usr/bin/recovery; /var/recovery/recovery, which the units start, is 0.3.0"), "{shown}");
    place("usr/bin/recovery", "0.3.0");
    assert!(status().contains("the agent is 0.3.0\n"), "{}", status());
    // Whoever cannot be run leads nobody.
    place("var/recovery/recovery", "0.5.0");
    std::fs::set_permissions(root.path().join("var/recovery/recovery"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let shown = status();
    assert!(shown.contains("/var/recovery/recovery is 0.5.0") && shown.contains("cannot be run: its mode is 0644"), "{shown}");
    assert!(!shown.contains("the agent is 0.5.0"), "{shown}");
    std::fs::write(root.path().join("var/recovery/recovery"), "a program of somebody else's").unwrap();
    assert!(status().contains("reading which version /var/recovery/recovery is: "), "as the node calls it: {}", status());
}

#[test]
fn usage_is_exit_2() {
    assert_eq!(code(&recovery(&["no-such-verb"])), 2);
    assert_eq!(code(&recovery(&["--resume", "list"])), 2);
    assert_eq!(code(&recovery(&["--take-backup", "--resume"])), 2);
    assert_eq!(code(&recovery(&["--dir", "relative", "list"])), 2);
    assert_eq!(code(&recovery(&["--tools", "/tmp", "list"])), 2, "--tools without --root");
    assert_eq!(code(&recovery(&["prune", "--keep", "0"])), 2);
    for verb in ["recover", "restore-files", "resume", "restart", "up"] {
        let too_long = recovery(&[verb, "--hold", "3601"]);
        assert!(code(&too_long) == 2 && said(&too_long).contains("--hold"), "{verb}: {}", said(&too_long));
    }
}

#[test]
fn help_and_version_are_exit_0() {
    let help = recovery(&["--help"]);
    assert_eq!(code(&help), 0);
    for word in ["backup", "restore-files", "resume", "--take-backup", "Exit codes", "75"] {
        assert!(printed(&help).contains(word), "{word} is not in the help");
    }
    assert!(!printed(&help).contains("generate"), "a hidden verb is in the help");
    assert!(printed(&recovery(&["--version"])).starts_with("recovery "));
}

#[test]
fn a_file_that_is_none_is_named_and_not_waited_for() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (fifo, tree, plain, out) = (at("fifo"), at("tree"), at("plain"), at("out"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(&plain, "no certificate").unwrap();
    let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listening.local_addr().unwrap());
    for (file, what) in [(fifo.as_str(), "FIFO"), ("/dev/zero", "device"), (&tree, "directory")] {
        let save = |ca: &str, cert: &str, key: &str| {
            ["etcd", "save", &out, "--endpoint", &url, "--cacert", ca, "--cert", cert, "--key", key].map(str::to_owned).to_vec()
        };
        let calls = [
            ["etcd", "status", file].map(str::to_owned).to_vec(),
            ["etcd", "restore", file, "--data-dir", &out].map(str::to_owned).to_vec(),
            ["archive", "diff", file, &tree].map(str::to_owned).to_vec(),
            ["archive", "restore", file, &out, "--yes"].map(str::to_owned).to_vec(),
            ["archive", "pack", &tree, &out, "--previous", file].map(str::to_owned).to_vec(),
            save(file, &plain, &plain),
            save(&plain, file, &plain),
            save(&plain, &plain, file),
        ];
        for call in calls {
            let output = Command::new("timeout").args(["-s", "KILL", "20", BINARY]).args(&call).stdin(Stdio::null()).output().unwrap();
            assert_eq!(output.status.code(), Some(64), "{call:?}: {}", said(&output));
            assert!(said(&output).contains(&format!("it is a {what}")), "{call:?}: {}", said(&output));
            assert!(!Path::new(&out).exists(), "{call:?} left something");
        }
    }
}

#[test]
fn every_report_is_json_when_asked_errors_included() {
    let root = tempfile::tempdir().unwrap();
    let json = |args: &[&str]| -> Value { serde_json::from_slice(&on(root.path(), &[&["--json"], args].concat()).stdout).unwrap() };
    assert_eq!(json(&["list"]), serde_json::json!([]));
    assert_eq!(json(&["status"])["run"], Value::Null);
    let error = json(&["show", "nothing"]);
    assert_eq!((&error["exit"], &error["kind"]), (&serde_json::json!(78), &serde_json::json!("misfit")));
    assert!(error["error"].as_str().unwrap().contains("nothing"), "{error}");
    for (args, says) in
        [(&["no-such-verb"][..], "'no-such-verb'"), (&["show"], "<ID>"), (&["prune", "--keep", "0"], "--keep"), (&["etcd"], "etcd")]
    {
        let error = json(args);
        assert!(error["exit"] == 2 && error["error"].as_str().unwrap().contains(says), "{args:?}: {error}");
    }
    assert!(recovery(&["show", "--", "--json", "more"]).stdout.is_empty());
}

#[test]
fn names_that_are_not_text_are_in_reports_too() {
    use std::os::unix::ffi::OsStrExt;
    let scratch = tempfile::tempdir().unwrap();
    let (tree, file) = (scratch.path().join("tree"), scratch.path().join("a.tar.zst"));
    let name = |bytes| tree.join(std::ffi::OsStr::from_bytes(bytes));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(name(b"file \xff\xfe.conf"), "1").unwrap();
    let socket = std::os::unix::net::UnixListener::bind(name(b"caf\xc3\xa9 \xe9")).unwrap();
    let json = |verb, paths: [&Path; 2]| -> (i32, Value) {
        let output = recovery(&["--json", "archive", verb, paths[0].to_str().unwrap(), paths[1].to_str().unwrap()]);
        (code(&output), serde_json::from_slice(&output.stdout).unwrap())
    };
    let (code, packed) = json("pack", [&tree, &file]);
    assert_eq!((code, &packed["skipped"]), (0, &serde_json::json!([["caf\u{e9} \\xe9", "is a socket"]])), "{packed}");
    drop(socket);
    std::fs::write(name(b"file \xff\xfe.conf"), "22").unwrap();
    let (code, diff) = json("diff", [&file, &tree]);
    assert_eq!(code, 1, "{diff}");
    let paths: Vec<_> = diff["changes"].as_array().unwrap().iter().map(|change| change["path"].as_str().unwrap()).collect();
    assert!(paths.contains(&"file \\xff\\xfe.conf"), "{diff}");
}

/// True of text that a terminal only shows: nothing in it moves the cursor, rings, or names the window.
fn only_shows(bytes: &[u8]) -> bool {
    String::from_utf8_lossy(bytes).chars().all(|c| !c.is_control() || c == '\n' || c == '\t')
}

#[test]
fn names_that_a_pod_can_choose_are_shown_and_never_obeyed() {
    use std::os::unix::ffi::OsStrExt;
    let hostile = "a\x1b]0;t\x07\r\u{9b}31m\n+ shadow  content\u{202e}";
    let scratch = tempfile::tempdir().unwrap();
    let (empty, tree, file) = (scratch.path().join("empty"), scratch.path().join("tree"), scratch.path().join("a.tar.zst"));
    std::fs::create_dir(&empty).unwrap();
    std::fs::create_dir(&tree).unwrap();
    let name = |prefix: &str| tree.join(std::ffi::OsStr::from_bytes(format!("{prefix}{hostile}").as_bytes()));
    std::fs::write(name("f"), "1").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(name("s")).unwrap();
    let run = |args: &[&str]| {
        let output = recovery(args);
        assert!(only_shows(&output.stdout) && only_shows(&output.stderr), "{args:?}: {output:?}");
        let shown = printed(&output) + &said(&output);
        assert!(!shown.lines().any(|line| line.starts_with("+ shadow")) && !shown.contains('\u{202e}'), "{args:?}: {shown}");
        (output, shown)
    };
    let (tree, file, empty) = (tree.to_str().unwrap(), file.to_str().unwrap(), empty.to_str().unwrap());
    run(&["archive", "pack", empty, file]);
    let escaped = "a\\x1b]0;t\\x07\\r\\u{9b}31m\\n+ shadow  content\\u{202e}";
    let (_, shown) = run(&["archive", "diff", file, tree]);
    assert!(shown.contains(&format!("- f{escaped}  ")), "{shown}");
    let (output, _) = run(&["--json", "archive", "diff", file, tree]);
    let diff: Value = serde_json::from_slice(&output.stdout).unwrap();
    let paths: Vec<_> = diff["changes"].as_array().unwrap().iter().filter_map(|change| change["path"].as_str()).collect();
    assert!(paths.contains(&format!("f{hostile}").as_str()), "not exact: {diff}");
    let (_, shown) = run(&["archive", "pack", tree, file]);
    assert!(shown.contains(&format!("skipped s{escaped}: is a socket")), "{shown}");
    // In errors and questions, of ours and of the parser.
    let missing = format!("{tree}/{hostile}");
    let (output, shown) = run(&["archive", "diff", &missing, tree]);
    assert!(code(&output) != 0 && shown.contains(escaped), "{shown}");
    let (output, shown) = run(&["archive", "restore", file, &missing]);
    assert!(code(&output) == 2 && shown.contains(&format!("/{escaped} will be made equal")), "{shown}");
    let output = recovery(&["archive", "diff", file, tree, hostile]);
    assert!(code(&output) == 2 && only_shows(&output.stderr) && said(&output).contains("\\r\\u{9b}31m"), "{output:?}");
}

#[test]
fn words_of_a_manifest_and_of_a_tool_are_shown_and_never_obeyed() {
    let root = tempfile::tempdir().unwrap();
    let backups = root.path().join("var/recovery/backups");
    std::fs::create_dir_all(backups.join("id\x1b[2J\ncomplete")).unwrap();
    std::fs::set_permissions(backups.parent().unwrap(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for verb in ["list", "status", "verify"] {
        let output = on(root.path(), &[verb]);
        assert!(only_shows(&output.stdout) && only_shows(&output.stderr), "{verb}: {output:?}");
        let shown = printed(&output);
        assert!(shown.contains("id\\x1b[2J\\ncomplete") && !shown.lines().any(|line| line.starts_with("complete")), "{verb}: {shown}");
    }
    let listed: Value = serde_json::from_slice(&on(root.path(), &["--json", "list"]).stdout).unwrap();
    assert_eq!(listed[0]["id"], "id\x1b[2J\ncomplete");
    let tools = tempfile::tempdir().unwrap();
    let script = "mkdir -p $1/run; touch $1/run/ostree-booted; cd $2
        printf '#!/bin/sh\\nprintf \"no\\\\033[31m\\\\rhead\\\\007\" >&2; exit 1\\n' >text; install -m 755 text ostree; install -m 755 text rpm-ostree";
    assert!(Command::new("bash").args(["-euc", script, "bash"]).args([root.path(), tools.path()]).status().unwrap().success());
    let output = on(root.path(), &["--tools", tools.path().to_str().unwrap(), "platform"]);
    assert!(code(&output) != 0 && only_shows(&output.stderr), "{output:?}");
    assert!(said(&output).contains("no\\x1b[31m\\rhead\\x07"), "{}", said(&output));
}

#[test]
fn a_node_without_a_control_plane_is_told_so() {
    let root = tempfile::tempdir().unwrap();
    let output = on(root.path(), &["backup"]);
    assert_eq!(code(&output), 78);
    assert!(said(&output).contains("neither an OpenShift node"), "{}", said(&output));
}

#[test]
fn resume_without_a_recovery_has_nothing_to_do() {
    let root = tempfile::tempdir().unwrap();
    let output = on(root.path(), &["resume"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert!(printed(&output).contains("nothing to do"));
    assert_eq!(code(&on(root.path(), &["--yes", "abandon"])), 0);
}

#[test]
fn a_destructive_verb_without_a_terminal_needs_yes() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, archive) = (dir.path().join("tree"), dir.path().join("a.tar.zst"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("f"), "one").unwrap();
    let (tree, archive) = (tree.to_str().unwrap(), archive.to_str().unwrap());
    assert_eq!(code(&recovery(&["archive", "pack", tree, archive])), 0);
    std::fs::write(format!("{tree}/f"), "two").unwrap();
    let refused = recovery(&["archive", "restore", archive, tree]);
    assert_eq!(code(&refused), 2, "{}", said(&refused));
    assert!(said(&refused).contains("--yes"));
    assert_eq!(std::fs::read(format!("{tree}/f")).unwrap(), b"two", "not confirmed, yet changed");
    assert_eq!(code(&recovery(&["archive", "diff", archive, tree])), 1);
    assert_eq!(code(&recovery(&["--yes", "archive", "restore", archive, tree])), 0);
    assert_eq!(code(&recovery(&["archive", "diff", archive, tree])), 0);
    assert_eq!(std::fs::read(format!("{tree}/f")).unwrap(), b"one");
    // A tree that is not there is made.
    let made = dir.path().join("to/made");
    assert_eq!(code(&recovery(&["--yes", "archive", "restore", archive, made.to_str().unwrap()])), 0);
    assert_eq!(std::fs::read(made.join("f")).unwrap(), b"one");
}

#[test]
fn what_failed_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, archive) = (dir.path().join("tree"), dir.path().join("a.tar.zst"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(&archive, "no archive").unwrap();
    let (tree, archive, full) = (tree.to_str().unwrap(), archive.to_str().unwrap(), "/dev/full/a.tar.zst");
    for (words, said_once) in [
        (vec!["archive", "diff", archive, tree], archive),
        (vec!["--yes", "archive", "restore", archive, tree], archive),
        (vec!["archive", "pack", tree, full], full),
    ] {
        let output = recovery(&words);
        assert_ne!(code(&output), 0, "{words:?}");
        assert_eq!(said(&output).matches(said_once).count(), 1, "{words:?}: {}", said(&output));
    }
}

#[test]
fn who_is_not_root_is_told_so() {
    // The binary lies below root's home or a checkout that others may not read: a copy of it is where they may.
    let dir = tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir_in("/tmp").unwrap();
    let copy = dir.path().join("recovery");
    // By a child: what this process wrote, a child that another thread forks at that moment holds open ("text file busy").
    assert!(Command::new("install").args(["-m", "755", BINARY]).arg(&copy).status().unwrap().success());
    for verb in ["backup", "restore-files", "resume", "abandon", "status", "list"] {
        let output =
            Command::new("setpriv").args(["--reuid", "65534", "--clear-groups"]).arg(&copy).args([verb, "--yes"]).output().unwrap();
        assert_eq!(code(&output), 77, "{verb}: {}", said(&output));
        assert!(said(&output).contains("run it with sudo, or as root"), "{verb}: {}", said(&output));
    }
}

#[test]
fn a_recovery_directory_that_others_can_write_to_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("var/recovery");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    for verb in ["backup", "list", "resume", "status", "restore-files"] {
        let output = on(root.path(), &[verb]);
        assert_eq!(code(&output), 77, "{verb}: {}", said(&output));
        assert!(said(&output).contains("chmod 0700"), "{verb}: {}", said(&output));
    }
}

#[test]
fn programs_of_the_live_host_are_never_run_on_another_root() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("run")).unwrap();
    std::fs::write(root.path().join("run/ostree-booted"), "").unwrap();
    let output = on(root.path(), &["platform"]);
    assert_eq!(code(&output), 2, "{}", said(&output));
    assert!(said(&output).contains("--tools"), "{}", said(&output));
}

#[test]
fn man_pages_and_completions_are_made_of_the_definitions() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().to_str().unwrap();
    assert_eq!(code(&recovery(&["generate", "man", to])), 0);
    let page = std::fs::read_to_string(dir.path().join("recovery.8")).unwrap();
    assert!(page.contains("Exit codes") && page.contains("75"), "the exit codes are not in the man page");
    assert!(dir.path().join("recovery-etcd-restore.8").exists());
    let help = printed(&recovery(&["--help"]));
    // A description goes on in lines that are further in.
    let of_a_verb = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty()).filter(of_a_verb);
    let verbs: Vec<&str> = listed.filter_map(|line| line.split_whitespace().next()).filter(|verb| *verb != "help").collect();
    assert!(verbs.contains(&"restore-files") && verbs.len() > 12, "{verbs:?}");
    for verb in &verbs {
        let page = std::fs::read_to_string(dir.path().join(format!("recovery-{verb}.8"))).unwrap_or_else(|error| panic!("{verb}: {error}"));
        assert!(page.contains(".TH recovery") && page.contains("OPTIONS"), "{verb}: {page}");
    }
    for (shell, file) in [("bash", "recovery.bash"), ("zsh", "_recovery"), ("fish", "recovery.fish")] {
        assert_eq!(code(&recovery(&["generate", shell, to])), 0, "{shell}");
        let completions = std::fs::read_to_string(dir.path().join(file)).unwrap();
        for word in verbs.iter().copied().chain(["etcd-restore"]) {
            assert!(completions.contains(word), "{shell} does not complete {word}");
        }
    }
    let bash = format!(
        "source {to}/recovery.bash; COMP_WORDS=(recovery rest); COMP_CWORD=1; _recovery recovery rest recovery; echo ${{COMPREPLY[*]}}"
    );
    let completed = Command::new("bash").args(["-c", &bash]).output().unwrap();
    assert_eq!(printed(&completed), "restore-files restart\n", "{}", said(&completed));
    assert_eq!(code(&recovery(&["generate", "tcsh", to])), 2);
    assert_eq!(code(&recovery(&["generate", "catalog", to])), 0);
    assert_eq!(std::fs::read_to_string(dir.path().join("recovery.catalog")).unwrap(), include_str!("../systemd/recovery.catalog"));
}

#[test]
fn a_reader_that_goes_away_is_not_an_error() {
    let status = Command::new("sh").arg("-c").arg(format!("{BINARY} --help | true; {BINARY} list --root / | head -c 0")).status().unwrap();
    assert!(status.success());
}

#[test]
fn an_endpoint_is_an_address_not_a_name() {
    let output =
        recovery(&["etcd", "save", "/tmp/x", "--endpoint", "https://etcd.example:2379", "--cacert", "a", "--cert", "b", "--key", "c"]);
    assert_eq!(code(&output), 2);
    assert!(said(&output).contains("not looked up"), "{}", said(&output));
}

#[test]
fn why_a_container_ends_is_in_its_termination_message() {
    let dir = tempfile::tempdir().unwrap();
    let ran = |script: &str| {
        let mut bash = Command::new("bash");
        bash.args(["-c", script, "bash", BINARY]).current_dir(dir.path()).stdin(Stdio::null());
        (bash.output().unwrap(), std::fs::read_to_string(dir.path().join("message")).unwrap())
    };
    // The agent on the host has it as an open file of the container that it left.
    let (output, message) = ran("exec 7>message; RECOVERY_TERMINATION_LOG=7 \"$1\" --root . show latest");
    assert_eq!(code(&output), 78, "{}", said(&output));
    assert!(said(&output).trim_end().ends_with(&message) && message.contains("backup"), "{message}: {}", said(&output));
    let (output, message) = ran("exec 7>message; RECOVERY_TERMINATION_LOG=7 \"$1\" --root . list");
    assert_eq!((code(&output), message.as_str()), (0, ""));
    // kubelet reads 4096 bytes, which are not to end in the middle of a character.
    let (_, message) = ran("exec 7>message; RECOVERY_TERMINATION_LOG=7 \"$1\" --root . show \"$(printf 'é%.0s' {1..3000})\"");
    assert_eq!(message.len(), 4095, "{message}");
    // That it cannot be written is no failure of its own.
    for lost in ["RECOVERY_TERMINATION_LOG=9", "RECOVERY_TERMINATION_LOG=-", "RECOVERY_TERMINATION_LOG=7 7</dev/null"] {
        let (output, _) = ran(&format!("{lost} \"$1\" --root . show latest"));
        assert_eq!(code(&output), 78, "{lost}: {}", said(&output));
    }
}

#[test]
fn a_container_does_not_stop_itself() {
    let mut resume = Command::new(BINARY);
    let output = resume.arg("resume").env("KUBERNETES_SERVICE_HOST", "10.0.0.1").stdin(Stdio::null()).output().unwrap();
    assert_eq!(code(&output), 78);
    assert!(said(&output).contains("next: log in to the node over SSH"), "{}", said(&output));
}

#[test]
fn a_tool_is_asked_to_end_before_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
        mkdir -p root/run tools; touch root/run/ostree-booted
        cat >tools/ostree <<-'END'
			#!/bin/sh
			trap 'echo asked >"$0.ended"; kill $!; exit 1' TERM
			sleep 60 & touch "$0.begun"; wait
		END
        chmod +x tools/ostree
        "$1" --root "$PWD/root" --tools "$PWD/tools" platform & agent=$!
        until [ -e tools/ostree.begun ]; do sleep 0.05; done
        kill -TERM $agent; wait $agent"#;
    let output = Command::new("timeout").args(["60", "bash", "-c", script, "bash", BINARY]).current_dir(dir.path()).output().unwrap();
    assert_eq!(code(&output), 75, "{}", said(&output));
    assert_eq!(std::fs::read_to_string(dir.path().join("tools/ostree.ended")).unwrap(), "asked\n");
}

/// A report that nobody gets is no success; a reader that has seen enough is no failure.
#[test]
fn a_report_that_is_lost_is_told() {
    let root = tempfile::tempdir().unwrap();
    let agent = |args: &[&str], to: std::process::Stdio| {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_recovery"));
        agent.arg("--root").arg(root.path()).args(args).stdout(to).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    for args in [&["list"][..], &["--json", "list"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = agent(args, full.into()).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(73), "{}", said(&output));
        assert!(said(&output).contains("standard output does not take the report"), "{}", said(&output));
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(agent(&["list"], writer.into()).wait_with_output().unwrap().status.code(), Some(0));
    let (reader, writer) = std::io::pipe().unwrap();
    let watch = agent(&["status", "--watch"], writer.into());
    drop(reader);
    assert_eq!(watch.wait_with_output().unwrap().status.code(), Some(0), "it ends with its reader");
    // Also where there is nothing new to write.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut watch = agent(&["status", "--watch"], writer.into());
    std::io::Read::read_exact(&mut reader, &mut [0]).unwrap();
    drop(reader);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let ended = loop {
        if let Some(status) = watch.try_wait().unwrap() {
            break status.code();
        }
        if std::time::Instant::now() > end {
            watch.kill().unwrap();
            panic!("it goes on although nobody reads");
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert_eq!(ended, Some(0));
}

#[test]
fn who_restores_an_archive_without_its_root_is_told_what_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    std::fs::create_dir_all(at("tree/d")).unwrap();
    std::fs::create_dir(at("to")).unwrap();
    for (file, members, stays) in [("parts.tar", "d", true), ("whole.tar", ".", false)] {
        let tar = Command::new("tar").arg("-C").arg(at("tree")).arg("-cf").arg(at(file)).arg(members).status().unwrap();
        assert!(tar.success());
        let output = recovery(&["archive", "restore", at(file).to_str().unwrap(), at("to").to_str().unwrap()]);
        assert_eq!((code(&output), said(&output).contains("what lies directly in it stays")), (2, stays), "{}", said(&output));
    }
}
