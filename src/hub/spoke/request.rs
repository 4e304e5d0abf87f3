//! One request to an API server, on the way to a cluster: its limit, and what its failure means for a try.

use std::time::Duration;

use super::{Trouble, unreachable};

/// The time limit of one request to a cluster.
pub(super) const LIMIT: Duration = Duration::from_secs(15);
/// How long a watch lasts until it is begun anew, seconds: below what load balancers allow a silent connection.
pub(super) const WATCH: u32 = 290;

/// One request in its time.
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

/// What an error means for the try: an API server that is starting, busy, or has other credentials by now may take it later; one that calls the request
/// itself wrong will not.
fn trouble(error: &kube::Error) -> Trouble {
    let kube::Error::Api(status) = error else {
        return unreachable("Unreachable", crate::hub::chain(error));
    };
    let message = format!("the API server refused ({} {}): {}", status.code, status.reason, status.message);
    match status.code {
        401 | 403 if status.message.contains("is being terminated") => unreachable("Terminating", message),
        // A policy's refusal, or a quota's: the account itself may do it.
        403 if !status.message.contains("cannot ") => Trouble::Refused(message),
        401 | 403 => unreachable("Unauthorized", message),
        400 | 405 | 413 | 415 | 422 => Trouble::Refused(message),
        _ => unreachable("Unreachable", message),
    }
}
