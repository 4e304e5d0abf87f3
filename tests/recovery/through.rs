//! The agent as people and units have it: its binary on an emulated node, with its exit code and what it said.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use recovery::node::profile::OPENSHIFT;

use testing::etcd::Version;
use testing::node::{Kind, Node, Options, Snapshot};

/// Deadline of every wait of the agent in these tests, seconds.
pub(crate) const WAIT: &str = "120";

/// For how long the cluster has to stay up at the end of a recovery in these tests, seconds.
const HOLD: &str = "1";

/// What the recovery itself writes into the cluster: operators redeploy, and everything that runs reports that it does.
const OF_THE_RECOVERY: [&str; 4] = ["/operator.openshift.io/", "/pods/", "/certificatesigningrequests/", "/minions/"];

/// What the operators' new revisions change, in files and keys.
const REDEPLOYED: [&str; 5] = ["/static-pod-resources", "/manifests", "/kubelet/pods", "/clusteroperators/", "-pod-"];

/// Directories that no archive holds, only files in them.
const TIMES_OF_OTHERS: [&str; 3] = ["/var/lib/kubelet/pods", "/var/lib/site", "/var/opt/site"];

/// The containers of a control plane of either kind.
pub(crate) const CONTROL_PLANE: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// All that runs on a node of a kind once it has come up: from then on kubelet makes nothing new by itself.
pub(crate) fn everything(kind: Kind) -> Vec<&'static str> {
    let operators = OPENSHIFT.operator_containers.iter().map(|container| container.container);
    CONTROL_PLANE.into_iter().chain(operators.filter(|_| kind == Kind::OpenShift)).collect()
}

/// How the agent ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        // Commands are shown as they have to be typed, with the agent's path; here they are the words of the manual.
        let agent = format!("`{} ", env!("CARGO_BIN_EXE_recovery"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&agent, "`recovery ");
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Ended {
    /// It ended with this code, and said all of this on standard error.
    pub(crate) fn expect(self, code: i32, says: &[&str]) -> Result<Self> {
        ensure!(self.code == Some(code), "exit code {:?}, not {code}: {self}", self.code);
        for words in says {
            ensure!(self.err.contains(words), "it does not say `{words}`: {self}");
        }
        Ok(self)
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.out, self.err)
    }
}

/// Runs the agent on the node.
pub(crate) fn run(node: &Node, args: &[&str]) -> Result<Ended> {
    Ok(command(node, args)?.output().context("running the agent")?.into())
}

/// Runs the agent, which must end with 0; what it printed.
pub(crate) fn ok(node: &Node, args: &[&str]) -> Result<String> {
    let ended = run(node, args)?;
    ensure!(ended.code == Some(0), "recovery {} ended with {:?}: {ended}", args.join(" "), ended.code);
    Ok(ended.out)
}

/// The report that the agent prints as JSON.
pub(crate) fn json(node: &Node, args: &[&str]) -> Result<serde_json::Value> {
    let said = ok(node, &[&["--json"], args].concat())?;
    serde_json::from_str(&said).with_context(|| format!("recovery --json {} printed {said}", args.join(" ")))
}

/// Starts the agent; what it says is collected.
pub(crate) fn start(node: &Node, args: &[&str]) -> Result<Child> {
    command(node, args)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("starting the agent")
}

/// Waits for an agent that was started.
pub(crate) fn ended(child: Child) -> Result<Ended> {
    Ok(child.wait_with_output().context("waiting for the agent")?.into())
}

/// The agent, ready to be started.
pub(crate) fn command(node: &Node, args: &[&str]) -> Result<Command> {
    let mut command = node.recovery()?;
    if !args.contains(&"--wait") {
        command.args(["--wait", WAIT]);
    }
    command.args(with_hold(args)).stdin(Stdio::null());
    Ok(command)
}

/// The arguments, and a short time for which the cluster has to stay up, where the verb takes one and none is said.
fn with_hold<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let ends = args.iter().any(|arg| ["recover", "restore-files", "resume", "restart"].contains(arg));
    let hold: &[&str] = if ends && !args.contains(&"--hold") { &["--hold", HOLD] } else { &[] };
    [args, hold].concat()
}

/// A node with its control plane up, and the directory that is removed after it: what is dropped last stands first.
pub(crate) fn node(kind: Kind, change: impl FnOnce(&mut Options)) -> Result<(tempfile::TempDir, Node)> {
    let temporary = tempfile::tempdir()?;
    let mut options = Options::new(kind, &Version::V34.program("etcd")?);
    change(&mut options);
    let node = Node::build(temporary.path(), &options)?;
    node.wait_containers(&everything(kind))?;
    Ok((temporary, node))
}

/// Runs the agent with `reboot` in its arguments, and waits until the node has rebooted.
pub(crate) fn over_the_reboot(node: &Node, args: &[&str]) -> Result<()> {
    let (_, boots) = node.power()?;
    ok(node, args)?;
    node.wait_boot(boots)
}

/// The node is what it was in every file and key, but for what runs again and reports of itself.
pub(crate) fn same(node: &Node, before: &Snapshot) -> Result<()> {
    let mut differences = before.differences(&node.snapshot()?);
    differences.retain(|line| !may_differ(line));
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// What runs again writes of itself, and the times of directories above managed files, which are nobody's.
pub(crate) fn may_differ(line: &str) -> bool {
    let of_the_cluster = line.starts_with("key ") && OF_THE_RECOVERY.iter().any(|part| line.contains(part));
    of_the_cluster || TIMES_OF_OTHERS.iter().any(|path| line.starts_with(&format!("{path}: was 04")))
}

/// A difference that the operators' new revisions make.
pub(crate) fn of_the_redeployment(line: &str) -> bool {
    REDEPLOYED.iter().any(|part| line.contains(part))
}

/// Nothing of a recovery is left on the node.
pub(crate) fn settled(node: &Node) -> Result<()> {
    let files = ["/var/recovery/progress", "/var/recovery/undo.json", "/var/lib/recovery/hold-kubelet", "/var/lib/recovery/keep-images"];
    for left in files {
        ensure!(!node.at(left).exists(), "{left} is still there");
    }
    ensure!(std::fs::read_dir(node.at("/var/lib/etcd"))?.count() == 1, "the etcd data from before is still there");
    Ok(())
}

/// The names in a directory of the node, sorted.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut names: Vec<String> = entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

/// Runs the agent under strace, which must end with 0, and shows that it asked no name service: with static glibc, that would load the
/// libraries of whatever host it runs on. The programs that it starts are not its business.
pub(crate) fn ok_without_name_service(node: &Node, args: &[&str]) -> Result<String> {
    let trace = node.place().dir().join(format!("strace.{}", args.join(".").replace('/', "")));
    let agent = node.recovery()?;
    let mut strace = Command::new("strace");
    strace.args(["-f", "-b", "execve", "--seccomp-bpf", "-e", "trace=open,openat,openat2,connect,socket", "-o"]).arg(&trace);
    strace.arg(agent.get_program()).args(agent.get_args()).args(["--wait", WAIT]).args(with_hold(args)).stdin(Stdio::null());
    strace.envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ended: Ended = strace.output().context("running strace (package strace)")?.into();
    ensure!(ended.code == Some(0), "recovery {} ended with {:?}: {ended}", args.join(" "), ended.code);
    let trace = std::fs::read_to_string(&trace)?;
    ensure!(trace.contains("/var/recovery/lock"), "the trace is not one of the agent's work:\n{trace}");
    ensure!(trace.contains("sa_family=AF_INET"), "the trace does not show how etcd and the API server are reached");
    // Paths of the live host: the node's own files are below its root.
    let root = node.root();
    let asks = |line: &&str| {
        let of_the_host =
            ["nsswitch", "libnss", "/etc/passwd", "/etc/group", "/etc/hosts", "resolv.conf", "nscd", "libc.so", "systemd/userdb"];
        of_the_host.iter().any(|name| line.contains(name)) && !line.contains(root.to_str().unwrap_or_default())
            // A lookup over the network.
            || line.contains("htons(53)")
    };
    let asking: Vec<&str> = trace.lines().filter(asks).collect();
    ensure!(asking.is_empty(), "the agent looks names up:\n{}", asking.join("\n"));
    Ok(ended.out)
}

/// Waits until the open run's journal says that a step is about to be done.
pub(crate) fn journal_says(node: &Node, phase: &str, step: &str) -> Result<()> {
    let journal = node.at("/var/recovery/progress");
    let is_intent = |line: &str| {
        let line: Option<serde_json::Value> = serde_json::from_str(line).ok();
        line.is_some_and(|line| line["event"] == "step-intent" && line["phase"] == phase && line["step"] == step)
    };
    testing::node::wait_for(&format!("step {step} of {phase}"), || {
        Ok(std::fs::read_to_string(&journal).unwrap_or_default().lines().any(is_intent))
    })
}

/// Writes a file that does not compress.
pub(crate) fn noise(path: &Path, megabytes: u64) -> Result<()> {
    let mut random = std::fs::File::open("/dev/urandom")?.take(megabytes << 20);
    std::io::copy(&mut random, &mut std::fs::File::create(path)?).with_context(|| format!("writing {}", path.display())).map(drop)
}
