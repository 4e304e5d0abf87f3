//! The hub's own pages: `/healthz` (it lives), `/readyz` (its API answers), `/metrics`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// How long a connection may take to ask, and how many there may be at a time.
const PATIENCE: Duration = Duration::from_secs(10);
const CONNECTIONS: usize = 32;

/// A page: its status and its text.
pub type Page = (StatusCode, String);

/// Serves pages for ever. `page` has that of a path; nothing where there is none.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, page: impl Fn(&str) -> Option<Page> + Send + Sync + 'static) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    tracing::info!("health and metrics on {}", listener.local_addr().unwrap_or(address));
    let (page, room) = (Arc::new(page), Arc::new(Semaphore::new(CONNECTIONS)));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return Ok(()) };
        let Ok((stream, _)) = listener.accept().await else {
            // Of too many open files: there will be fewer.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let page = page.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&request, &*page);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            tokio::time::timeout(PATIENCE, connection).await.ok();
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, page: &impl Fn(&str) -> Option<Page>) -> Response<Full<Bytes>> {
    let (status, text) = if matches!(*request.method(), Method::GET | Method::HEAD) {
        page(request.uri().path()).unwrap_or_else(|| (StatusCode::NOT_FOUND, "there is /healthz, /readyz and /metrics\n".to_owned()))
    } else {
        (StatusCode::METHOD_NOT_ALLOWED, "GET\n".to_owned())
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}
