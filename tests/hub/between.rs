//! What stands between a client and an API server: a test is told of each request, before it is passed on and before its answer is, and may
//! cut the connection there. To kill a client at each of its requests, and to lose requests or answers.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use testing::pki::Authority;
use tokio::sync::Notify;

use crate::api::client;
use crate::cluster::with_token;
use crate::https::{self, Body};

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The server has not seen it.
    Asked,
    /// The server has answered (a watch: has begun), the client has not seen it.
    Answered,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes on.
    Pass,
    /// The connection is closed.
    Cut,
    /// Whoever stands there answers itself: a status, and what is no JSON or is.
    Answer(u16, String),
}

/// The number of a request, from 0; its method, path and query; where it is.
type Tell = dyn Fn(usize, &str, Moment) -> Verdict + Send + Sync;

/// Stands there until it is dropped.
pub(crate) struct Between {
    /// What a client is started with.
    pub(crate) kubeconfig: String,
    asked: Arc<AtomicUsize>,
    end: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Between {
    /// Passes requests on as who is in `kubeconfig`, whoever asks.
    pub(crate) fn start(kubeconfig: &str, tell: impl Fn(usize, &str, Moment) -> Verdict + Send + Sync + 'static) -> Result<Self> {
        let authority = Authority::new("between-ca")?;
        let tls = https::tls(&authority.issue("between", None, &["127.0.0.1"])?)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let server = format!("https://127.0.0.1:{}", listener.local_addr()?.port());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(client(kubeconfig))?;
        let (asked, end, tell) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()), Arc::new(tell) as Arc<Tell>);
        let (number, ends) = (Arc::clone(&asked), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let pass = move |request| pass(client.clone(), number.fetch_add(1, Ordering::SeqCst), Arc::clone(&tell), request);
                tokio::select! {
                    ended = https::serve(listener, tls, pass) => eprintln!("nobody stands between any more: {ended:?}"),
                    () = ends.notified() => {}
                }
            });
        });
        Ok(Self { kubeconfig: with_token(&server, &authority, "any"), asked, end, thread: Some(thread) })
    }

    /// How many requests there have been.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.end.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn pass(client: kube::Client, number: usize, tell: Arc<Tell>, request: Request<Incoming>) -> Option<Response<Body>> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let what = format!("{} {}", parts.method, parts.uri);
    match tell(number, &what, Moment::Asked) {
        Verdict::Pass => {}
        Verdict::Cut => return None,
        Verdict::Answer(status, text) => return Some(https::answer(StatusCode::from_u16(status).ok()?, "application/json", text)),
    }
    for own in ["host", "authorization", "connection", "content-length", "transfer-encoding"] {
        parts.headers.remove(own);
    }
    let answer = client.send(Request::from_parts(parts, kube::client::Body::from(body))).await.ok()?;
    if tell(number, &what, Moment::Answered) != Verdict::Pass {
        return None;
    }
    let (parts, body) = answer.into_parts();
    // One that breaks off ends here; what is open for long is passed on as it comes.
    let data =
        body.into_data_stream().take_while(|piece| std::future::ready(piece.is_ok())).filter_map(|piece| std::future::ready(piece.ok()));
    let mut response = https::pieces("", data);
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    for own in ["connection", "content-length", "transfer-encoding"] {
        response.headers_mut().remove(own);
    }
    Some(response)
}
