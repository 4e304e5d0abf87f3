//! A cluster without a node: a real kube-apiserver on a real etcd, and on request the real controllers that Jobs need. It stops, starts
//! again, and hangs, as a test says. Who plays its kubelet is [`Kubelet`](crate::kubelet::Kubelet).

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use real_node::command::{Done, run, tail};
use real_node::{Limit, base};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testing::etcd::{Etcd, Options, Version, ends_with_this_thread};
use testing::pki::{Authority, Pair, kubeconfig};

use crate::api::Api;

/// What a cluster has room for: far from the ports that the kernel gives to who asks for any, so that one that is stopped keeps its own.
const PORTS: std::ops::Range<u16> = 28000..29000;
/// For a server on two busy cores.
const READY: Limit = Limit::of(120);
const CONTROLLERS: &str = "job,namespace,serviceaccount,serviceaccount-token,garbagecollector,ttl-after-finished";

/// A process, killed when dropped, and by the kernel when the test's process is.
pub(crate) struct Process(Child);

impl Process {
    /// Starts a program; what it says goes into `log`.
    pub(crate) fn start(program: &Path, log: File, arguments: Vec<String>) -> Result<Self> {
        let mut command = ends_with_this_thread(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = as_long_as_the_process(move || command.spawn()).with_context(|| format!("starting {}", program.display()))?;
        Ok(Self(child))
    }

    /// One of Kubernetes' own.
    fn of_kubernetes(name: &str, log: File, arguments: Vec<String>) -> Result<Self> {
        Self::start(&base::node_tools()?.join("kubernetes").join(name), log, arguments)
    }

    /// The most memory that it has had, bytes.
    pub(crate) fn peak(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).context("reading what it takes")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }

    /// How long it has had a processor.
    pub(crate) fn busy(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).context("reading what it takes")?;
        // The name, in parentheses, may hold anything; in clock ticks, of which a second has a hundred, the 12th and 13th after it.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect::<Vec<_>>()).context("no name")?;
        let ticks: u64 = fields.get(11..13).context("too short")?.iter().map(|ticks| ticks.parse::<u64>()).sum::<Result<_, _>>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Has it stand still.
    pub(crate) fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Has it go on.
    pub(crate) fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Whether it ends by itself in that time.
    pub(crate) fn ends(mut self, within: std::time::Duration) -> Result<bool> {
        let end = Instant::now() + within;
        while Instant::now() < end {
            if self.0.try_wait()?.is_some() {
                return Ok(true);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Ok(false)
    }

    /// By what it is killed from elsewhere; not to be used once it was dropped.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid(), signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Does it on a thread that is there for as long as the process: a test's own ends with the test, and what it has started then.
fn as_long_as_the_process<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    type Work = Box<dyn FnOnce() + Send>;
    static THREAD: LazyLock<Sender<Work>> = LazyLock::new(|| {
        let (sender, receiver) = channel::<Work>();
        std::thread::spawn(move || receiver.into_iter().for_each(|work| work()));
        sender
    });
    let (sender, receiver) = channel();
    let work = Box::new(move || {
        let _ = sender.send(work());
    });
    THREAD.send(work).expect("its thread never ends");
    receiver.recv().expect("what it does does not panic")
}

/// A real API server, with what it is made of.
pub(crate) struct Cluster {
    /// What it is called in errors and kubeconfigs.
    pub(crate) name: String,
    /// Its client, as administrator.
    pub(crate) api: Api,
    /// A kubeconfig of an administrator, as text, with all in it.
    pub(crate) kubeconfig: String,
    /// Signs what clients and kubelets show.
    pub(crate) authority: Authority,
    server: Option<Process>,
    controllers: Option<Process>,
    with_controllers: bool,
    etcd: Etcd,
    port: u16,
    dir: tempfile::TempDir,
    _port: File,
}

impl Cluster {
    /// Starts one and waits until it serves; `with_controllers`, until Jobs are worked on too.
    pub(crate) fn start(name: &str, with_controllers: bool) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("cluster-{name}-")).tempdir()?;
        let data = dir.path().join("etcd");
        let args = ["--unsafe-no-fsync", "--heartbeat-interval=10", "--election-timeout=100"].map(str::to_owned).to_vec();
        let options = Options { args, ends_with_its_thread: true, ..Options::default() };
        // Built here, if it has to be: what is started on the other thread waits for all others.
        Version::V36.program("etcd")?;
        let etcd = as_long_as_the_process(move || Etcd::start(Version::V36, &data, &options))?;
        let (port, lock) = free_port()?;
        let authority = Authority::new(&format!("{name}-ca"))?;
        let Pair { cert, key } = authority.issue("kube-apiserver", None, &["localhost", "127.0.0.1", "10.96.0.1"])?;
        for (file, text) in [("ca.crt", authority.pem()), ("server.crt", cert), ("server.key", key)] {
            std::fs::write(dir.path().join(file), text)?;
        }
        let server = format!("https://127.0.0.1:{port}");
        let admin = kubeconfig(&server, &authority, &authority.issue("admin", Some("system:masters"), &[])?, "");
        std::fs::write(dir.path().join("admin"), &admin)?;
        let api = Api::of(&admin)?;
        let mut cluster = Self {
            name: name.to_owned(),
            api,
            kubeconfig: admin,
            authority,
            server: None,
            controllers: None,
            with_controllers,
            etcd,
            port,
            dir,
            _port: lock,
        };
        cluster.start_again()?;
        if with_controllers {
            cluster.api.until("/api/v1/namespaces/default/serviceaccounts/default", READY, |_| Some(()))?;
        }
        Ok(cluster)
    }

    /// Kills the API server, and the controllers: connections are refused. What is in etcd stays.
    pub(crate) fn stop(&mut self) {
        self.controllers = None;
        self.server = None;
    }

    /// Starts it again at the same address, and waits until it serves.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.stop();
        self.server = Some(Process::of_kubernetes("kube-apiserver", self.log("kube-apiserver")?, self.server_arguments())?);
        self.wait().with_context(|| format!("starting the API server of {}", self.name))?;
        if self.with_controllers {
            self.controllers =
                Some(Process::of_kubernetes("kube-controller-manager", self.log("kube-controller-manager")?, self.controller_arguments())?);
        }
        Ok(())
    }

    /// From now on connections are taken and nothing is answered.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.server.as_ref().context("it is stopped")?.signal(Signal::STOP)
    }

    /// And from now on it is.
    pub(crate) fn thaw(&self) -> Result<()> {
        self.server.as_ref().context("it is stopped")?.signal(Signal::CONT)
    }

    /// A kubeconfig for a certificate of this name and group.
    pub(crate) fn kubeconfig_of(&self, name: &str, group: Option<&str>) -> Result<String> {
        Ok(kubeconfig(&self.address(), &self.authority, &self.authority.issue(name, group, &[])?, ""))
    }

    /// A kubeconfig with a token of a service account, which has what rights it was given.
    pub(crate) fn kubeconfig_of_account(&self, namespace: &str, name: &str) -> Result<String> {
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
        let answer = self.api.create(&format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"), &request)?;
        let token = answer["status"]["token"].as_str().context("an answer without a token")?;
        Ok(with_token(&self.address(), &self.authority, token))
    }

    /// `https://127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Runs kubectl as administrator, with this on its standard input.
    pub(crate) fn kubectl(&self, words: &[&str], stdin: &str) -> Result<Done> {
        let mut command = Command::new(base::node_tools()?.join("kubernetes/kubectl"));
        command.env("KUBECONFIG", self.file("admin")).env("HOME", self.dir.path()).args(words);
        run(&mut command, stdin.as_bytes(), Limit::of(60))
    }

    /// How many requests the server has had since it was started, by `VERB RESOURCE`. Its own are among them.
    pub(crate) fn requests(&self) -> Result<BTreeMap<String, u64>> {
        let mut requests = BTreeMap::new();
        for line in self.api.text("/metrics")?.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let (labels, count) = line.rsplit_once("} ").with_context(|| format!("a metric without a value: {line}"))?;
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                rest.split_once('"').map(|(value, _)| value)
            };
            let what = format!("{} {}", label("verb").unwrap_or_default(), label("resource").unwrap_or_default());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of requests")]
            let count = count.parse::<f64>()? as u64;
            *requests.entry(what).or_default() += count;
        }
        ensure!(!requests.is_empty(), "the server counts no requests");
        Ok(requests)
    }

    /// The last lines of what its servers have said.
    pub(crate) fn said(&self) -> String {
        let of =
            |name: &str| format!("{name}: {}\n", tail(&std::fs::read_to_string(self.file(&format!("{name}.log"))).unwrap_or_default()));
        of("kube-apiserver") + &of("kube-controller-manager")
    }

    fn wait(&mut self) -> Result<()> {
        let end = Instant::now() + READY.0;
        loop {
            match self.api.text("/readyz") {
                Ok(ready) if ready == "ok" => return Ok(()),
                _ if Instant::now() > end => bail!("it is not ready after {} s: {}", READY.0.as_secs(), self.said()),
                _ => std::thread::sleep(std::time::Duration::from_millis(50)),
            }
            let ended = self.server.as_mut().map(|server| server.0.try_wait()).transpose()?.flatten();
            if let Some(status) = ended {
                bail!("it ended ({status}) instead of serving: {}", self.said());
            }
        }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn log(&self, name: &str) -> Result<File> {
        Ok(File::options().create(true).append(true).open(self.file(&format!("{name}.log")))?)
    }

    fn server_arguments(&self) -> Vec<String> {
        let etcd = |path: &PathBuf| path.display().to_string();
        let endpoint = &self.etcd.endpoint;
        [
            ("etcd-servers", self.etcd.client_url.clone()),
            ("etcd-cafile", etcd(&endpoint.ca)),
            ("etcd-certfile", etcd(&endpoint.cert)),
            ("etcd-keyfile", etcd(&endpoint.key)),
            ("bind-address", "127.0.0.1".to_owned()),
            ("secure-port", self.port.to_string()),
            ("service-cluster-ip-range", "10.96.0.0/16".to_owned()),
            ("authorization-mode", "RBAC".to_owned()),
            ("allow-privileged", "true".to_owned()),
            ("tls-cert-file", self.file("server.crt")),
            ("tls-private-key-file", self.file("server.key")),
            ("client-ca-file", self.file("ca.crt")),
            ("service-account-issuer", "https://localhost".to_owned()),
            ("service-account-key-file", self.file("server.crt")),
            ("service-account-signing-key-file", self.file("server.key")),
            // A pod's log is its kubelet's.
            ("kubelet-certificate-authority", self.file("ca.crt")),
            ("kubelet-client-certificate", self.file("server.crt")),
            ("kubelet-client-key", self.file("server.key")),
            ("kubelet-preferred-address-types", "InternalIP".to_owned()),
            ("cert-dir", self.file("certs")),
        ]
        .map(|(flag, value)| format!("--{flag}={value}"))
        .to_vec()
    }

    fn controller_arguments(&self) -> Vec<String> {
        [
            ("kubeconfig", self.file("admin")),
            ("controllers", CONTROLLERS.to_owned()),
            ("leader-elect", "false".to_owned()),
            ("service-account-private-key-file", self.file("server.key")),
            ("root-ca-file", self.file("ca.crt")),
            ("secure-port", "0".to_owned()),
            ("kube-api-qps", "200".to_owned()),
            ("kube-api-burst", "400".to_owned()),
        ]
        .map(|(flag, value)| format!("--{flag}={value}"))
        .to_vec()
    }
}

/// A kubeconfig with a token.
pub(crate) fn with_token(server: &str, authority: &Authority, token: &str) -> String {
    let authority = data_encoding::BASE64.encode(authority.pem().as_bytes());
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster:\n    server: {server}\n    certificate-authority-data: {authority}\n\
         users:\n- name: u\n  user:\n    token: {token}\n\
         contexts:\n- name: x\n  context:\n    cluster: c\n    user: u\ncurrent-context: x\n"
    )
}

/// A Secret as Cluster API makes it: `NAME-kubeconfig`, key `value`.
pub(crate) fn secret(namespace: &str, cluster: &str, kubeconfig: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "cluster.x-k8s.io/secret",
        "metadata": {
            "name": format!("{cluster}-kubeconfig"), "namespace": namespace, "labels": {"cluster.x-k8s.io/cluster-name": cluster},
        },
        "stringData": {"value": kubeconfig},
    })
}

/// A cluster that takes connections and answers nothing, not even a handshake: its kubeconfig, and what has to be kept for as long.
pub(crate) fn silent() -> Result<(String, TcpListener)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let server = format!("https://127.0.0.1:{}", listener.local_addr()?.port());
    Ok((with_token(&server, &Authority::new("silent-ca")?, "token"), listener))
}

/// A port that nobody has, for as long as the file is open.
pub(crate) fn free_port() -> Result<(u16, File)> {
    let dir = std::env::temp_dir().join("hub-cluster-ports");
    std::fs::create_dir_all(&dir)?;
    for port in PORTS {
        let file = File::create(dir.join(port.to_string()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok((port, file));
        }
    }
    Err(anyhow!("no port of {PORTS:?} is free"))
}
