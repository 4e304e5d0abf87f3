//! One request to an API server, on the way to a cluster: its limits, and what its failure means for a try.

use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::Request;
use http_body_util::{BodyExt, BodyStream, Limited};
use hyper::body::Bytes;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Trouble, unreachable};
use crate::hub::chain;

/// The time limit of one request to a cluster.
pub(super) const LIMIT: Duration = Duration::from_secs(15);
/// How long a watch lasts until it is begun anew, seconds: below what load balancers allow a silent connection.
pub(super) const WATCH: u32 = 290;
/// The most bytes of an answer, and the most objects in it, nested ones too: those become many times as large when they are read. What the hub asks for
/// has fewer by far, whatever a cluster has: it asks for so many objects at most.
const LARGEST: usize = 2 << 20;
const OBJECTS: usize = 50_000;

/// A request as kube builds it.
pub(super) type Asked = Result<Request<Vec<u8>>, kube::core::request::Error>;

/// What the API server answers that refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    kind: String,
    message: String,
    reason: String,
}

/// Asks a cluster: the bytes of its answer; `None` when what is asked for is not there.
pub(super) async fn ask(client: &Client, request: Asked) -> Result<Option<Bytes>, Trouble> {
    let request = request.map_err(|error| Trouble::Refused(error.to_string()))?.map(Body::from);
    let answered = async {
        let answer = client.send(request).await.map_err(|error| trouble(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        let bytes = body.map_err(|error| unreachable("Unreachable", format!("its answer cannot be read: {error}")))?.to_bytes();
        if status.is_success() {
            return Ok(Some(bytes));
        }
        match (status.as_u16(), serde_json::from_slice(&bytes)) {
            (404, Ok(Status { kind, .. })) if kind == "Status" => Ok(None),
            (code, Ok(Status { kind, message, reason })) if kind == "Status" => Err(refusal(code, &reason, &message)),
            // A load balancer, or an API server that does not know the path: neither knows of the object.
            (code, _) => Err(unreachable("Unreachable", format!("something answered {code} that is not the API server's word"))),
        }
    };
    tokio::time::timeout(LIMIT, answered).await.unwrap_or_else(|_| Err(silence()))
}

/// The same, of an answer that is JSON.
pub(super) async fn ask_for<T: DeserializeOwned>(client: &Client, request: Asked) -> Result<Option<T>, Trouble> {
    let Some(bytes) = ask(client, request).await? else { return Ok(None) };
    if bytes.split(|byte| *byte == b'{').nth(OBJECTS).is_some() {
        return Err(unreachable("Unreachable", format!("its answer has more than {OBJECTS} objects")));
    }
    let read = serde_json::from_slice(&bytes);
    read.map(Some).map_err(|error| unreachable("Unreachable", format!("its answer is not what was asked for: {error}")))
}

/// Watches: an item for each piece of the answer, whatever is in it. It ends with the answer.
pub(super) async fn watch(client: &Client, request: Asked) -> Result<BoxStream<'static, ()>, Trouble> {
    let request = request.map_err(|error| Trouble::Refused(error.to_string()))?.map(Body::from);
    let answer = tokio::time::timeout(LIMIT, client.send(request)).await.map_err(|_| silence())?.map_err(|error| trouble(&error))?;
    if !answer.status().is_success() {
        return Err(unreachable("Unreachable", format!("it cannot be watched ({})", answer.status())));
    }
    let pieces = BodyStream::new(answer.into_body()).map_ok(drop);
    Ok(pieces.take_while(|piece| std::future::ready(piece.is_ok())).map(drop).boxed())
}

/// One request to the hub's own API, in its time.
pub(super) async fn within_raw<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Box<kube::Error>> {
    match tokio::time::timeout(LIMIT, request).await {
        Ok(answer) => answer.map_err(Box::new),
        Err(_) => Err(Box::new(kube::Error::Service(format!("no answer within {} s", LIMIT.as_secs()).into()))),
    }
}

/// As [`within_raw`], with what an error means for the try.
pub(super) async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Trouble> {
    within_raw(request).await.map_err(|error| trouble(&error))
}

/// What is not there is no trouble.
pub(super) fn absent<T>(answer: Result<T, Box<kube::Error>>) -> Result<Option<T>, Trouble> {
    match answer {
        Err(error) if matches!(&*error, kube::Error::Api(status) if status.code == 404) => Ok(None),
        answer => answer.map(Some).map_err(|error| trouble(&error)),
    }
}

fn silence() -> Trouble {
    unreachable("Unreachable", format!("no answer within {} s", LIMIT.as_secs()))
}

fn trouble(error: &kube::Error) -> Trouble {
    match error {
        kube::Error::Api(status) => refusal(status.code, &status.reason, &status.message),
        error => unreachable("Unreachable", chain(error)),
    }
}

/// What a refusal means for the try: an API server that is starting, busy, or has other credentials by now may take it later; one that calls the request
/// itself wrong will not.
fn refusal(code: u16, reason: &str, message: &str) -> Trouble {
    let said = format!("the API server refused ({code} {reason}): {message}");
    match code {
        401 | 403 if message.contains("is being terminated") => unreachable("Terminating", said),
        // A policy's refusal, or a quota's: the account itself may do it.
        403 if !message.is_empty() && !message.contains("cannot ") => Trouble::Refused(said),
        401 | 403 => unreachable("Unauthorized", said),
        400 | 405 | 413 | 415 | 422 => Trouble::Refused(said),
        _ => unreachable("Unreachable", said),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_final_when_the_same_request_will_be_refused_again() {
        let is_final = |code, message| matches!(refusal(code, "", message), Trouble::Refused(_));
        for (code, message) in [
            (422, "Job.batch is invalid: privileged: Forbidden"),
            (400, "admission webhook denied the request"),
            (403, "pods \"x\" is forbidden: violates PodSecurity"),
            (403, "exceeded quota: jobs"),
        ] {
            assert!(is_final(code, message), "{code} {message}");
        }
        for (code, message) in [
            (401, "Unauthorized"),
            (403, "jobs.batch is forbidden: User \"u\" cannot list resource"),
            (403, "unable to create new content in namespace x because it is being terminated"),
            (403, ""),
            (409, "the object has been modified"),
            (429, "too many requests"),
            (500, "etcdserver: leader changed"),
            (503, "apiserver not ready"),
        ] {
            assert!(!is_final(code, message), "{code} {message}");
        }
    }
}
