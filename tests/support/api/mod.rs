//! An emulated Kubernetes API server: the parts of it that the agent uses, answering as the real one does.
//!
//! There are two ways to use it:
//! - in a test's own process: `std::thread::spawn(|| api::serve(config))` with a [`Store::memory`];
//! - as the kube-apiserver "container" of an emulated node: `api::serve(ApiConfig::from_args(root, &args)?)`, where `args` is the command
//!   line of the static pod, with kube-apiserver's own flags, and the objects are in the node's real etcd, so that restoring
//!   etcd rolls the API back.
//!
//! Everything that steers it while it runs is a file, so that it works the same in both: see [`Faults`] and [`ApiConfig::log`].
//! What a cluster starts with is in [`seed`].
//!
//! Emulated, because a real kube-apiserver of OpenShift needs the operators too: the subset of REST (no watch, JSON only), operators as in
//! [`operators`], authorization (group `system:masters` may do everything, nodes and bootstrappers only ask for certificates).

pub(crate) mod admission;
pub mod config;
mod mishaps;
pub mod objects;
pub mod operators;
pub(crate) mod resources;
pub(crate) mod rest;
pub mod roll_out;
pub mod seed;
pub mod store;
pub(crate) mod tls;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Collected, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub use config::ApiConfig;
use config::Fault;
pub use store::Store;

/// How often the listener looks whether it should be there at all.
const TICK: Duration = Duration::from_millis(20);

/// Serves until the process is killed.
///
/// # Errors
/// When its certificates cannot be read or its address cannot be taken.
pub fn serve(config: ApiConfig) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(config))
}

async fn run(mut config: ApiConfig) -> Result<()> {
    let listener = config.listener.take().context("no listener")?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let tls = Arc::new(tls::Tls::load(&config)?);
    if let Some(operators) = config.operators.clone() {
        tokio::spawn(operators::run(Arc::clone(&config.store), operators));
    }
    let mut listener = Some(TcpListener::from_std(listener)?);
    let config = Arc::new(config);
    loop {
        if config.faults().fault == Some(Fault::Refuse) {
            // Nobody listens: the kernel refuses connections, as on a node whose API server's container is gone.
            listener = None;
            tokio::time::sleep(TICK).await;
            continue;
        }
        let open = match listener.take() {
            Some(open) => open,
            None => TcpListener::bind(address).await.context("listening again")?,
        };
        if let Ok(accepted) = tokio::time::timeout(TICK, open.accept()).await {
            let (stream, _) = accepted.context("accepting a connection")?;
            tokio::spawn(connection(Arc::clone(&config), Arc::clone(&tls), stream));
        }
        listener = Some(open);
    }
}

async fn connection(config: Arc<ApiConfig>, tls: Arc<tls::Tls>, stream: TcpStream) {
    let Ok(stream) = TlsAcceptor::from(Arc::clone(&tls.server)).accept(stream).await else { return };
    let (_, session) = stream.get_ref();
    let sni = session.server_name().unwrap_or_default().to_owned();
    let user = tls.user(session.peer_certificates().unwrap_or_default());
    let service = service_fn(|request: Request<Incoming>| {
        let (config, user, sni) = (Arc::clone(&config), user.clone(), sni.clone());
        async move { answer(&config, user, &sni, request).await }
    });
    // A client that hangs up in the middle is its own business.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(config: &ApiConfig, user: Option<tls::User>, sni: &str, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
    let faults = config.faults();
    tokio::time::sleep(Duration::from_millis(faults.delay_ms)).await;
    while config.faults().fault == Some(Fault::Hang) {
        tokio::time::sleep(TICK).await;
    }
    let asked = rest::Asked {
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        content_type: parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned(),
        body,
    };
    let said = match faults.fault {
        Some(Fault::Unavailable) => rest::Said::text(StatusCode::SERVICE_UNAVAILABLE, "apiserver not ready\n"),
        Some(Fault::Busy) if asked.path.starts_with("/api") => {
            rest::Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "storage is (re)initializing").said()
        }
        _ => match mishaps::answer(config, &faults.mishaps, user.as_ref(), &asked).await {
            Some(said) => said,
            // An error here closes the connection.
            None => bail!("{} {} is not answered", asked.method, asked.path),
        },
    };
    note(config, &asked, user.as_ref(), sni, said.code);
    let answer = Response::builder().status(said.code).header(header::CONTENT_TYPE, said.content_type);
    answer.body(Full::new(said.body)).context("making an answer")
}

/// One line of the log: what was asked, by whom, for which TLS name, and the status code.
fn note(config: &ApiConfig, asked: &rest::Asked, user: Option<&tls::User>, sni: &str, code: StatusCode) {
    let Some(path) = &config.log else { return };
    let line = serde_json::json!({
        "method": asked.method.as_str(), "path": asked.path, "query": asked.query, "user": user.map(|u| &u.name), "sni": sni, "code": code.as_u16(),
    });
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
        eprintln!("api: writing {}: {error}", path.display());
    }
}
