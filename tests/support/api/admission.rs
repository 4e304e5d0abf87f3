//! What can refuse a write: webhooks that fail closed, certificate requests that are none, and the CEL rules of OpenShift's CRDs.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::resources::Resource;
use super::rest::Refusal;
use super::store::Store;
use super::tls::User;

/// A `ValidatingWebhookConfiguration` in the store whose service has no endpoints refuses what its rules match, when its policy is Fail
/// (the default). Its own resource is exempt, as in the real one.
pub(crate) async fn webhooks(store: &Store, resource: &Resource, method: &Method) -> Result<(), Refusal> {
    if resource.group == "admissionregistration.k8s.io" {
        return Ok(());
    }
    let operation = match *method {
        Method::POST => "CREATE",
        Method::DELETE => "DELETE",
        _ => "UPDATE",
    };
    for configuration in store.list("validatingwebhookconfigurations/").await?.0 {
        for webhook in configuration.value["webhooks"].as_array().into_iter().flatten() {
            if webhook["failurePolicy"] == "Ignore" || !matches(webhook, resource, operation) {
                continue;
            }
            let service = &webhook["clientConfig"]["service"];
            let (namespace, name) = (text(&service["namespace"]), text(&service["name"]));
            let endpoints = store.get(&format!("services/endpoints/{namespace}/{name}")).await?;
            if endpoints.is_some_and(|e| e.value["subsets"].as_array().is_some_and(|subsets| !subsets.is_empty())) {
                continue;
            }
            let message = format!(
                "Internal error occurred: failed calling webhook \"{}\": failed to call webhook: Post \
                 \"https://{name}.{namespace}.svc:443{}?timeout=10s\": no endpoints available for service \"{name}\"",
                text(&webhook["name"]),
                text(&service["path"])
            );
            return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message));
        }
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn matches(webhook: &Value, resource: &Resource, operation: &str) -> bool {
    let has = |rule: &Value, field: &str, wanted: &str| rule[field].as_array().into_iter().flatten().any(|v| v == wanted || v == "*");
    webhook["rules"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|rule| has(rule, "operations", operation) && has(rule, "apiGroups", resource.group) && has(rule, "resources", resource.plural))
}

/// A new certificate request must hold one, and says who asks whatever the client wrote.
pub(crate) fn request(resource: &Resource, user: &User, object: &mut Value) -> Result<(), Refusal> {
    if resource.plural != "certificatesigningrequests" {
        return Ok(());
    }
    let pem = data_encoding::BASE64.decode(text(&object["spec"]["request"]).as_bytes()).unwrap_or_default();
    let is_request = x509_parser::pem::parse_x509_pem(&pem).is_ok_and(|(_, pem)| pem.label == "CERTIFICATE REQUEST");
    if !is_request || object["spec"]["signerName"].is_null() {
        let message = "spec.request: Invalid value: PEM block type must be CERTIFICATE REQUEST";
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message));
    }
    object["spec"]["username"] = json!(user.name);
    object["spec"]["groups"] = json!(user.groups);
    Ok(())
}

/// The CEL rules on the status of a static-pod operator, with the messages of OpenShift's CRDs.
pub(crate) fn validate(resource: &Resource, old: &Value, new: &Value) -> Result<(), Refusal> {
    if resource.group != "operator.openshift.io" {
        return Ok(());
    }
    let mut wrong = Vec::new();
    let (was, is) = (&old["status"], &new["status"]);
    if is["latestAvailableRevision"].as_i64() < was["latestAvailableRevision"].as_i64() && !is["latestAvailableRevision"].is_null() {
        wrong.push("status.latestAvailableRevision: Invalid value: \"integer\": must only increase".to_owned());
    }
    let nodes = |status: &Value| status["nodeStatuses"].as_array().cloned().unwrap_or_default();
    let before = nodes(was);
    for (at, node) in nodes(is).iter().enumerate() {
        let same = before.iter().find(|other| other["nodeName"] == node["nodeName"]);
        wrong.extend(node_rules(same, node).map(|rule| format!("status.nodeStatuses[{at}]{rule}")));
    }
    if nodes(is).iter().filter(|node| node["targetRevision"].as_i64().unwrap_or(0) != 0).count() > 1 {
        wrong
            .push("status.nodeStatuses: Invalid value: \"array\": no more than 1 node status may have a nonzero targetRevision".to_owned());
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let what = format!("{}.{} \"{}\"", resource.kind, resource.group, text(&new["metadata"]["name"]));
    Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", format!("{what} is invalid: {}", wrong.join(", "))))
}

fn node_rules(old: Option<&Value>, new: &Value) -> impl Iterator<Item = &'static str> {
    let (current, target) = (new["currentRevision"].as_i64(), new["targetRevision"].as_i64());
    let broken = match old {
        None => [
            current.map(|_| ": Invalid value: \"object\": currentRevision can not be set on creation of a nodeStatus"),
            target.map(|_| ": Invalid value: \"object\": targetRevision can not be set on creation of a nodeStatus"),
        ],
        Some(old) => match (old["currentRevision"].as_i64(), current) {
            (Some(_), None) => [Some(": Invalid value: \"object\": cannot be unset once set"), None],
            (Some(old), Some(new)) if new < old => [Some(".currentRevision: Invalid value: \"integer\": must only increase"), None],
            _ => [None, None],
        },
    };
    broken.into_iter().flatten()
}
