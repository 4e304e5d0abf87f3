//! Real etcd for tests: builds or finds the programs, makes certificates, starts etcd with TLS and client certificates as a child of
//! the test on free loopback ports, fills it, and ends it when dropped.
//!
//! Everything here fails with what etcd or the system said; a test that meets that fails too.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions, Txn, TxnOp};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::cargo::in_checkout;

/// Which release of etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 3.4 of Debian's packages `etcd-server` and `etcd-client`.
    V34,
    /// 3.5, built from Go modules.
    V35,
    /// 3.6, likewise.
    V36,
    /// 3.7, likewise.
    V37,
}

impl Version {
    /// The folder below `tests/etcd-tools` that pins it; `None` for Debian's.
    #[must_use]
    pub fn pinned(self) -> Option<&'static str> {
        match self {
            Self::V34 => None,
            Self::V35 => Some("3.5.21"),
            Self::V36 => Some("3.6.8"),
            Self::V37 => Some("3.7.3"),
        }
    }

    /// Where `program` (`etcd`, `etcdctl`, `etcdutl`) of this version is; builds it when it is missing. 3.4 has no `etcdutl`.
    pub fn program(self, program: &str) -> Result<PathBuf> {
        let path = match self.pinned() {
            None => Path::new("/usr/bin").join(program),
            Some(version) => build(version)?.join(program),
        };
        ensure!(
            path.is_file(),
            "{} is missing: `apt-get install etcd-server etcd-client` brings 3.4, tests/etcd-tools the others",
            path.display()
        );
        Ok(path)
    }

    /// `etcdutl snapshot restore` of this version (3.4: `etcdctl snapshot restore`), ready for arguments.
    pub fn restorer(self) -> Result<Command> {
        let tool = if self == Self::V34 { "etcdctl" } else { "etcdutl" };
        let mut command = Command::new(self.program(tool)?);
        command.env("ETCDCTL_API", "3").args(["snapshot", "restore"]);
        Ok(command)
    }
}

/// Builds one pinned version with `tests/etcd-tools/build.sh`, which does nothing when it is there; returns its folder.
fn build(version: &str) -> Result<PathBuf> {
    let dir = in_checkout("target/etcd-tools");
    let script = in_checkout("tests/etcd-tools/build.sh");
    let built = Command::new(&script).arg(&dir).arg(version).status().with_context(|| format!("running {}", script.display()))?;
    ensure!(built.success(), "{} {version} failed ({built}): see its output above", script.display());
    Ok(dir.join(version))
}

/// A CA, a server certificate for 127.0.0.1 and localhost, and a client certificate, as PEM files in a folder of their own.
#[derive(Debug)]
pub struct Certs {
    dir: tempfile::TempDir,
}

impl Certs {
    /// Makes them.
    pub fn make() -> Result<Arc<Self>> {
        let dir = tempfile::tempdir()?;
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca_cert = ca.self_signed(&ca_key)?;
        std::fs::write(dir.path().join("ca.pem"), ca_cert.pem())?;
        let issuer = Issuer::new(ca, ca_key);
        for (name, alternatives) in [("server", vec!["localhost".to_owned(), "127.0.0.1".to_owned()]), ("client", Vec::new())] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(alternatives)?;
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            // etcd calls itself with its server certificate (the gRPC gateway), so that one is for both.
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
            std::fs::write(dir.path().join(format!("{name}.pem")), params.signed_by(&key, &issuer)?.pem())?;
            std::fs::write(dir.path().join(format!("{name}.key")), key.serialize_pem())?;
        }
        Ok(Arc::new(Self { dir }))
    }

    /// The folder: `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// How etcd is started. The defaults: member `default`, new certificates, no more arguments.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--name`; `default` unless given. A data directory that is already there keeps the name of its member.
    pub name: Option<String>,
    /// Certificates to share with another etcd.
    pub certs: Option<Arc<Certs>>,
    /// The client port; a free one unless given.
    pub client_port: Option<u16>,
    /// More arguments.
    pub args: Vec<String>,
    /// Do not wait until it serves: it will not.
    pub do_not_wait: bool,
    /// The kernel kills it when the thread that starts it ends, also when the whole process is killed.
    pub ends_with_its_thread: bool,
}

/// A running etcd.
#[derive(Debug)]
pub struct Etcd {
    /// As the library takes it.
    pub endpoint: recovery::etcd::Endpoint,
    /// `https://127.0.0.1:<port>`.
    pub client_url: String,
    /// The URL it gives to other members.
    pub peer_url: String,
    /// The certificates in use.
    pub certs: Arc<Certs>,
    version: Version,
    child: Child,
    log: tempfile::NamedTempFile,
    runtime: tokio::runtime::Runtime,
}

/// Every key, with its value and the revision of its last change.
pub type Contents = BTreeMap<Vec<u8>, (Vec<u8>, i64)>;

/// What `hashkv` answers: equal for equal contents of equal history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32 of every revision from the compacted one on.
    pub hash: u32,
    /// The compacted revision, -1 if none.
    pub compact_revision: i64,
    /// The current revision.
    pub revision: i64,
}

impl Etcd {
    /// Starts etcd on `data_dir` (a new one, or one that is there) and waits until it serves.
    pub fn start(version: Version, data_dir: &Path, options: &Options) -> Result<Self> {
        // Between finding a free port and etcd's taking it, another test can be faster.
        for _ in 0..5 {
            if let Some(etcd) = Self::try_start(version, data_dir, options)? {
                return Ok(etcd);
            }
        }
        bail!("etcd found its ports taken five times")
    }

    fn try_start(version: Version, data_dir: &Path, options: &Options) -> Result<Option<Self>> {
        let certs = options.certs.clone().map_or_else(Certs::make, Ok)?;
        let client_url = format!("https://127.0.0.1:{}", options.client_port.map_or_else(free_port, Ok)?);
        let peer_url = format!("http://127.0.0.1:{}", free_port()?);
        let name = options.name.as_deref().unwrap_or("default");
        let log = tempfile::NamedTempFile::new()?;
        let mut command = Command::new(version.program("etcd")?);
        if options.ends_with_its_thread {
            command = ends_with_this_thread(command.get_program());
        }
        command
            // etcd then checks its data directory at every start and stop, and its invariants in between.
            .env("ETCD_VERIFY", "all")
            .args(["--name", name, "--logger=zap", "--client-cert-auth"])
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .arg(format!("--initial-cluster={name}={peer_url}"));
        for (flag, file) in [("--trusted-ca-file", "ca.pem"), ("--cert-file", "server.pem"), ("--key-file", "server.key")] {
            command.arg(flag).arg(certs.dir().join(file));
        }
        command.args(&options.args).stdin(Stdio::null()).stdout(log.reopen()?).stderr(log.reopen()?);
        let child = command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?;
        let file = |name: &str| certs.dir().join(name);
        let endpoint = recovery::etcd::Endpoint {
            url: client_url.clone(),
            server_name: "localhost".to_owned(),
            ca: file("ca.pem"),
            cert: file("client.pem"),
            key: file("client.key"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut etcd = Self { endpoint, client_url, peer_url, certs, version, child, log, runtime };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = etcd.child.try_wait()? {
                let log = etcd.log();
                if log.contains("address already in use") && options.client_port.is_none() {
                    return Ok(None);
                }
                bail!("etcd ended ({status}) instead of serving:\n{log}");
            }
            if options.do_not_wait {
                return Ok(Some(etcd));
            }
            let look = etcd.with_client(async |client| client.get("ready?", None).await.map(drop).map_err(anyhow::Error::from));
            if look.is_ok() {
                return Ok(Some(etcd));
            }
            ensure!(Instant::now() < deadline, "etcd does not serve ({look:?}):\n{}", etcd.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs `work` with a new client.
    pub fn with_client<T>(&self, work: impl AsyncFnOnce(&mut Client) -> Result<T>) -> Result<T> {
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(std::fs::read(&self.endpoint.ca)?))
            .identity(Identity::from_pem(std::fs::read(&self.endpoint.cert)?, std::fs::read(&self.endpoint.key)?))
            .domain_name("localhost");
        let options = ConnectOptions::new().with_tls(tls).with_timeout(Duration::from_secs(120));
        self.run(async {
            let mut client = Client::connect([&self.client_url], Some(options)).await?;
            work(&mut client).await
        })
    }

    /// Runs a future, with ten minutes for it.
    pub fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(600), work).await.context("waiting for etcd")? })
    }

    /// Puts `n` keys, `/registry/things/0000000` on, 100 to a transaction (a transaction is one revision). Their values differ and
    /// are 100 to 400 bytes long.
    pub fn put_many(&self, n: usize) -> Result<()> {
        self.with_client(async |client| {
            let keys: Vec<usize> = (0..n).collect();
            for chunk in keys.chunks(100) {
                let puts: Vec<TxnOp> =
                    chunk.iter().map(|i| TxnOp::put(format!("/registry/things/{i:07}"), noise(*i as u64, 100 + i % 300), None)).collect();
                client.txn(Txn::new().and_then(puts)).await?;
            }
            Ok(())
        })
    }

    /// Puts `bytes` bytes of values that do not compress, in values of 1 MB: for the benchmark's large snapshot. Start etcd with
    /// `--quota-backend-bytes=8589934592 --unsafe-no-fsync`.
    pub fn put_bytes(&self, bytes: u64) -> Result<()> {
        const VALUE: usize = 1_000_000;
        for i in 0..bytes / VALUE as u64 {
            self.with_client(async |client| Ok(client.put(format!("/large/{i:07}"), noise(i, VALUE), None).await.map(drop)?))?;
        }
        Ok(())
    }

    /// Everything in it.
    pub fn contents(&self) -> Result<Contents> {
        const AT_ONCE: i64 = 2000;
        self.with_client(async |client| {
            let (mut all, mut from) = (BTreeMap::new(), vec![0]);
            loop {
                let page = client.get(from.clone(), Some(GetOptions::new().with_from_key().with_limit(AT_ONCE))).await?;
                for kv in page.kvs() {
                    all.insert(kv.key().to_vec(), (kv.value().to_vec(), kv.mod_revision()));
                }
                let Some(last) = page.kvs().last().filter(|_| page.more()) else { return Ok(all) };
                from = [last.key(), &[0]].concat();
            }
        })
    }

    /// The hash over all keys and revisions that are kept, once compaction has settled.
    pub fn hashkv(&self) -> Result<HashKv> {
        self.with_client(async |client| {
            let answer = client.hash_kv(0).await?;
            let revision = answer.header().context("an answer without a header")?.revision();
            Ok(HashKv { hash: answer.hash(), compact_revision: answer.compact_version(), revision })
        })
    }

    /// Output of `etcdctl` of the same version.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(self.version.program("etcdctl")?)
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.client_url))
            .arg(format!("--cacert={}", self.endpoint.ca.display()))
            .arg(format!("--cert={}", self.endpoint.cert.display()))
            .arg(format!("--key={}", self.endpoint.key.display()))
            .args(args)
            .output()?;
        ensure!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Its process, to stop or freeze it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = self.log.reopen() {
            file.read_to_string(&mut text).ok();
        }
        text
    }

    /// Ends it as `systemctl stop` would, and waits.
    pub fn stop(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id())?).ok_or_else(|| anyhow!("no pid"))?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it as a crash would.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // After `stop` and `kill` there is nothing left to end, and both fail harmlessly.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// `len` printable bytes that do not compress well, the same for the same `seed`.
#[must_use]
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend(state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes().map(|byte| 33 + byte % 94));
    }
    bytes.truncate(len);
    bytes
}

/// `program`, ready for arguments, which the kernel kills when the thread that starts it ends. It has the process id that it is started with.
#[must_use]
pub fn ends_with_this_thread(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
