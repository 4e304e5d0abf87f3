//! What befalls single requests, as [`Mishap`]s say.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde_json::json;

use super::config::{ApiConfig, Befalls, Mishap};
use super::rest::{self, Asked, Refusal, Said};
use super::tls::User;

/// How often each has befallen a request, as long as the server runs.
static BEFALLEN: Mutex<BTreeMap<Mishap, u32>> = Mutex::new(BTreeMap::new());
/// What is carried out later, by its path.
static LATE: Mutex<BTreeMap<String, Asked>> = Mutex::new(BTreeMap::new());

/// Until when the server is away.
static AWAY: Mutex<Option<Instant>> = Mutex::new(None);

/// The answer to a request; `None` when there is none.
pub(super) async fn answer(config: &ApiConfig, mishaps: &[Mishap], user: Option<&User>, asked: &Asked) -> Option<Said> {
    if lock(&AWAY).is_some_and(|until| Instant::now() < until) {
        return None;
    }
    let what = befalls(mishaps, asked);
    if what == Some(Befalls::Late) {
        lock(&LATE).insert(asked.path.clone(), asked.clone());
        return None;
    }
    let late = if is_dry(asked) || asked.method == Method::GET { None } else { lock(&LATE).remove(&asked.path) };
    if let Some(late) = late {
        rest::answer(config, user, &late).await;
    }
    let Some(what) = what else { return Some(rest::answer(config, user, asked).await) };
    match what {
        Befalls::Code(code) => {
            let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Some(Refusal::new(code, "Mishap", format!("a mishap of code {}", code.as_u16())).said());
        }
        Befalls::Delay(time) => tokio::time::sleep(Duration::from_millis(time)).await,
        Befalls::Lost => return None,
        Befalls::Away(time) => {
            *lock(&AWAY) = Some(Instant::now() + Duration::from_millis(time));
            return None;
        }
        Befalls::Overtaken => change(config, user, &asked.path).await,
        Befalls::Cut | Befalls::CutAndChanged | Befalls::Late => {}
    }
    let said = rest::answer(config, user, asked).await;
    if what == Befalls::CutAndChanged {
        change(config, user, &asked.path).await;
    }
    (![Befalls::Cut, Befalls::CutAndChanged].contains(&what)).then_some(said)
}

fn befalls(mishaps: &[Mishap], asked: &Asked) -> Option<Befalls> {
    let mut befallen = lock(&BEFALLEN);
    let fits = |mishap: &&Mishap| mishap.method == asked.method.as_str() && mishap.path == asked.path && mishap.dry == is_dry(asked);
    let mishap = mishaps.iter().filter(fits).find(|mishap| befallen.get(mishap).is_none_or(|times| *times < mishap.times))?;
    *befallen.entry(mishap.clone()).or_default() += 1;
    Some(mishap.what)
}

fn is_dry(asked: &Asked) -> bool {
    asked.query == "dryRun=All"
}

/// Somebody else writes to an object.
async fn change(config: &ApiConfig, user: Option<&User>, path: &str) {
    let label = json!({"metadata": {"labels": {"somebody": uuid::Uuid::new_v4().to_string()}}});
    let request = Asked {
        method: Method::PATCH,
        path: path.to_owned(),
        query: String::new(),
        content_type: "application/merge-patch+json".to_owned(),
        body: Bytes::from(label.to_string()),
    };
    rest::answer(config, user, &request).await;
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
