//! The connection to the node's etcd: client certificates, a time limit for every answer, errors that give the cause.

use std::future::Future;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use etcd_client::{
    AlarmAction, AlarmType, Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, Identity, TlsOptions, Txn, TxnOp,
};
use tokio::runtime::Runtime;
use x509_parser::pem::Pem;
use x509_parser::x509::X509Version;

use super::{Endpoint, Health};
use crate::error::{misfit, unanswered, unsupported, usage};
use crate::node::{clock::interrupted, durable};

/// How often a wait checks whether it was interrupted.
const LOOK: Duration = Duration::from_millis(200);

/// A connection, with the async runtime that drives it. No other file of the room has asynchronous code.
pub(super) struct Connection {
    runtime: Runtime,
    url: String,
    limit: Duration,
    pub(super) client: Client,
}

impl Connection {
    /// Connects to `endpoint`; `limit` applies to the connection and to each answer.
    pub(super) fn open(endpoint: &Endpoint, limit: Duration) -> Result<Self> {
        let address = address(&endpoint.url)?;
        // The client library would say "transport error" and try again; a plain connect gives the cause.
        TcpStream::connect_timeout(&address, limit).map_err(|cause| {
            unanswered(format!("etcd at {} does not answer: {cause}; is its container running (`crictl ps -a --name etcd`)?", endpoint.url))
        })?;
        let mut options = ConnectOptions::new();
        let mut url = format!("http://{address}");
        if endpoint.url.starts_with("https://") {
            url = format!("https://{address}");
            options = options.with_tls(tls(endpoint)?);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime for etcd")?;
        // This sends nothing: the first request makes the connection and the handshake.
        let connecting = Client::connect([&url], Some(options));
        let client = runtime.block_on(connecting).map_err(|error| own_files(endpoint, refused(&endpoint.url, "connecting", &error)))?;
        Ok(Self { runtime, url: endpoint.url.clone(), limit, client })
    }

    /// Waits for one answer. `what` says what the request is, such as "asking etcd for its status".
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the limit passes or the answer is an error;
    /// [`FailureKind::Interrupted`](crate::error::FailureKind::Interrupted) when interrupted.
    pub(super) fn answer<T>(&mut self, what: &str, ask: impl AsyncFnOnce(&mut Client) -> Result<T, etcd_client::Error>) -> Result<T> {
        let asked = ask(&mut self.client);
        within(&self.runtime, &self.url, self.limit, what, asked).map_err(|error| {
            // With TLS 1.3 the client learns only after its first request, if at all, that its certificate is refused.
            let text = error.to_string();
            let refused =
                ["alert", "connection closed", "connection reset", "broken pipe"].iter().any(|sign| text.to_lowercase().contains(sign));
            if refused { unanswered(format!("{text}; does etcd accept the client certificate? etcd's own log says")) } else { error }
        })
    }

    /// As [`Connection::answer`], for a future that is not a call of the client: the next piece of a stream.
    pub(super) fn next<T>(&self, what: &str, next: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T> {
        within(&self.runtime, &self.url, self.limit, what, next)
    }
}

fn within<T>(
    runtime: &Runtime,
    url: &str,
    limit: Duration,
    what: &str,
    asked: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T> {
    runtime.block_on(async {
        let asked = tokio::time::timeout(limit, asked);
        tokio::pin!(asked);
        loop {
            tokio::select! {
                answer = &mut asked => return match answer {
                    Ok(answer) => answer.map_err(|error| refused(url, what, &error)),
                    Err(_) => Err(unanswered(format!("{what}: etcd at {url} did not answer within {} s", limit.as_secs_f32()))),
                },
                () = tokio::time::sleep(LOOK) => interrupted()?,
            }
        }
    })
}

/// The error for an answer that is an error, or for no answer, with every cause: that of the handshake is the last.
fn refused(url: &str, what: &str, error: &etcd_client::Error) -> anyhow::Error {
    let mut causes = vec![match error {
        etcd_client::Error::GRpcStatus(status) => format!("{} ({:?})", status.message(), status.code()),
        other => other.to_string(),
    }];
    let mut source: Option<&dyn std::error::Error> = match error {
        etcd_client::Error::GRpcStatus(status) => std::error::Error::source(status),
        etcd_client::Error::TransportError(error) => std::error::Error::source(error),
        _ => None,
    };
    while let Some(cause) = source {
        let text = cause.to_string();
        if text != "transport error" && !causes.iter().any(|told| told.contains(&text)) {
            causes.push(text);
        }
        source = cause.source();
    }
    unanswered(format!("{what}: etcd at {url}: {}", causes.join(": ")))
}

fn tls(endpoint: &Endpoint) -> Result<TlsOptions> {
    let read = |path: &std::path::Path| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = durable::open_regular(path).and_then(|mut file| Ok(file.read_to_end(&mut bytes)?));
        read.with_context(|| format!("reading {}", path.display()))?;
        Ok(bytes)
    };
    let cert = read(&endpoint.cert)?;
    if is_version_1(&cert) {
        return Err(unsupported(format!(
            "the client certificate {cert} is of X.509 version 1, which etcd accepts but this agent's TLS library does not: have it issued \
             again as version 3 (`openssl x509 -req` makes one when its `-extfile` says `extendedKeyUsage=clientAuth`), or save with \
             `etcdctl snapshot save`",
            cert = endpoint.cert.display()
        )));
    }
    Ok(TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read(&endpoint.ca)?))
        .identity(Identity::from_pem(cert, read(&endpoint.key)?))
        .domain_name(endpoint.server_name.clone()))
}

/// True when the first certificate in a PEM file, which is the client's own, is of X.509 version 1.
fn is_version_1(pem: &[u8]) -> bool {
    let block = Pem::iter_from_buffer(pem).filter_map(Result::ok).find(|block| block.label == "CERTIFICATE");
    block.is_some_and(|block| block.parse_x509().is_ok_and(|certificate| certificate.version() == X509Version::V1))
}

/// Explains an error about the given files, before anything is sent to etcd. The TLS library calls every certificate the peer's.
fn own_files(endpoint: &Endpoint, error: anyhow::Error) -> anyhow::Error {
    let Endpoint { url, ca, cert, key, .. } = endpoint;
    if !url.starts_with("https://") {
        return error;
    }
    misfit(format!(
        "the CA bundle {}, the client certificate {} and its key {} cannot be used together: {}; `openssl x509 -noout -text -in` and \
         `openssl pkey -check -in` show what is in them",
        ca.display(),
        cert.display(),
        key.display(),
        error.to_string().replace("invalid peer certificate", "invalid certificate")
    ))
}

/// The address in a URL, which must be an IP address (`localhost` stands for 127.0.0.1): a name would have to be looked up, and static
/// glibc loads the host's libraries for that.
fn address(url: &str) -> Result<SocketAddr> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let rest = rest.ok_or_else(|| usage(format!("the endpoint `{url}` must begin with https:// or http://")))?.trim_end_matches('/');
    let number = rest.strip_prefix("localhost:").map_or_else(|| rest.to_owned(), |port| format!("127.0.0.1:{port}"));
    number.parse().map_err(|_| {
        usage(format!("the endpoint `{url}` must be an address and a port, like https://127.0.0.1:2379: names are not looked up"))
    })
}

/// Asks etcd for its state; see [`super::health`].
pub(super) fn health(endpoint: &Endpoint, limit: Duration) -> Result<Health> {
    let mut etcd = Connection::open(endpoint, limit)?;
    let status = etcd.answer("asking etcd for its status", async |client| client.status().await)?;
    if status.leader() == 0 {
        return Err(unanswered(format!(
            "etcd at {} has no leader: {}; `etcdctl endpoint status` shows more",
            endpoint.url,
            status.errors().join(", ")
        )));
    }
    let alarms = etcd.answer("asking etcd for alarms", async |client| client.alarm(AlarmAction::Get, AlarmType::None, None).await)?;
    if let Some(alarm) = alarms.alarms().first() {
        bail!(alarmed(alarm.alarm(), alarm.member_id()));
    }
    // All keys, only counted; a read is linearizable by default.
    let all = GetOptions::new().with_all_keys().with_count_only();
    let keys = etcd.answer("reading from etcd", async |client| client.get("", Some(all)).await)?;
    let members = etcd.answer("asking etcd for its members", async |client| client.member_list().await)?;
    let header = keys.header().ok_or_else(|| anyhow!("an answer of etcd has no header"))?;
    Ok(Health {
        version: status.version().to_owned(),
        revision: header.revision(),
        keys: keys.count(),
        db_size: status.db_size(),
        members: members.members().len(),
    })
}

/// The keys of the node's etcd, one at a time.
pub struct Store(Connection);

impl Store {
    /// Connects to `endpoint`; `limit` is for this and for each answer.
    ///
    /// # Errors
    /// As [`super::health`].
    pub fn open(endpoint: &Endpoint, limit: Duration) -> Result<Self> {
        Connection::open(endpoint, limit).map(Self)
    }

    /// The value of a key, with the revision at which it was last written; `None` when it is not there.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when etcd does not answer.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<(Vec<u8>, i64)>> {
        let answer = self.0.answer("reading from etcd", async |client| client.get(key, None).await)?;
        Ok(answer.kvs().first().map(|found| (found.value().to_vec(), found.mod_revision())))
    }

    /// Gives a key another value, if it was not written since `revision`; false when it was.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when etcd does not answer, and nobody knows whether it has the new value.
    pub fn replace(&mut self, key: &[u8], value: &[u8], revision: i64) -> Result<bool> {
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, revision);
        let transaction = Txn::new().when([unchanged]).and_then([TxnOp::put(key, value, None)]);
        Ok(self.0.answer("writing to etcd", async |client| client.txn(transaction).await)?.succeeded())
    }
}

fn alarmed(alarm: AlarmType, member: u64) -> String {
    let way_out = match alarm {
        AlarmType::Corrupt => "its data is damaged: recover it from a backup, and do not back it up",
        _ => "its database has reached its quota: compact it (`etcdctl compact`), `etcdctl defrag`, then `etcdctl alarm disarm`",
    };
    format!("etcd has the alarm {} (member {member:x}): {way_out}", format!("{alarm:?}").to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn only_numbers_are_connected_to() -> Result<()> {
        assert_eq!(address("https://127.0.0.1:2379")?.to_string(), "127.0.0.1:2379");
        assert_eq!(address("https://localhost:2379/")?.to_string(), "127.0.0.1:2379");
        assert_eq!(address("https://[::1]:2379")?.to_string(), "[::1]:2379");
        for bad in ["https://etcd.example:2379", "https://127.0.0.1", "127.0.0.1:2379"] {
            assert_eq!(exit_code(&address(bad).unwrap_err()), 2, "{bad}");
        }
        Ok(())
    }

    #[test]
    fn an_alarm_names_the_way_out() {
        assert!(alarmed(AlarmType::Nospace, 10).contains("alarm NOSPACE (member a)"));
        assert!(alarmed(AlarmType::Nospace, 10).contains("`etcdctl alarm disarm`"));
        assert!(alarmed(AlarmType::Corrupt, 10).contains("CORRUPT"));
    }
}
