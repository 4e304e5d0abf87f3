//! A small HTTPS server: kubelets and cheap API servers are made with it.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use testing::pki::Pair;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What a server shows, and no client certificates: who asks says so in a header, or it does not matter.
pub(crate) fn tls(pair: &Pair) -> Result<TlsAcceptor> {
    let certificate = CertificateDer::from_pem_slice(pair.cert.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Answers until the runtime ends. When `handler` has no answer, the connection is closed.
pub(crate) async fn serve<H, F>(listener: std::net::TcpListener, tls: TlsAcceptor, handler: H) -> Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Option<Response<Body>>> + Send + 'static,
{
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await.context("accepting a connection")?;
        stream.set_nodelay(true)?;
        tokio::spawn(connection(stream, tls.clone(), handler.clone()));
    }
}

async fn connection<H, F>(stream: TcpStream, tls: TlsAcceptor, handler: H)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Option<Response<Body>>>,
{
    let Ok(stream) = tls.accept(stream).await else { return };
    let service = service_fn(|request| {
        let answer = handler(request);
        async move { answer.await.ok_or_else(|| std::io::Error::other("no answer")) }
    });
    // A client that hangs up in the middle is its own business.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// An answer that is whole.
pub(crate) fn answer(status: StatusCode, form: &str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed_unsync());
    *response.status_mut() = status;
    if let Ok(form) = form.parse() {
        response.headers_mut().insert("content-type", form);
    }
    response
}

/// An answer that comes in pieces.
pub(crate) fn pieces(form: &str, pieces: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let mut response = answer(StatusCode::OK, form, Bytes::new());
    *response.body_mut() = StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))).boxed_unsync();
    response
}
