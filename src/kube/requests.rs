//! Certificate requests of the node's kubelet: finding those that are its own and fresh, and approving them.
//!
//! After a recovery, kubelet's certificates can be older than what the restored cluster knows, and kubelet requests new ones: first a
//! client certificate as the bootstrapper, then a serving certificate as the node. On a single node nobody else approves them until the
//! cluster's own approver runs. An approval hands out credentials, so everything in a request must be as expected.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use data_encoding::BASE64;
use jiff::{Timestamp, Unit};
use serde::Deserialize;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use super::client::{Client, is_missing};
use super::objects::{Condition, Object, Unread, or_default};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
const NODES: &str = "system:nodes";
/// The account that requests a kubelet's first certificate on OpenShift.
const BOOTSTRAPPER: &str = "system:serviceaccount:openshift-machine-config-operator:node-bootstrapper";
/// The group of everybody who may request a kubelet's first certificate upstream: mainly the users of bootstrap tokens.
const BOOTSTRAPPERS: &str = "system:bootstrappers";

pub(super) type Request = Object<RequestSpec, RequestStatus>;

/// Spec of a certificate request. The API server itself fills in who made the request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RequestSpec {
    request: String,
    signer_name: String,
    pub(super) username: String,
    #[serde(deserialize_with = "or_default")]
    groups: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    usages: Vec<String>,
}

/// Status of a certificate request; empty while it is pending.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RequestStatus {
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
    #[serde(deserialize_with = "or_default")]
    certificate: String,
}

impl Request {
    /// True when nobody has approved or denied it.
    pub(super) fn is_pending(&self) -> bool {
        let decided = |c: &Condition| ["Approved", "Denied", "Failed"].contains(&c.kind.as_str());
        self.status.certificate.is_empty() && !self.status.conditions.iter().any(decided)
    }
}

/// The node whose requests are approved.
#[derive(Debug)]
struct Requester<'a> {
    name: &'a str,
    /// The node's other names: host names and addresses under which the cluster knows it.
    also: BTreeSet<String>,
    since: Timestamp,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Addresses {
    #[serde(deserialize_with = "or_default")]
    addresses: Vec<Address>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Address {
    address: String,
}

impl Client {
    /// Approves the pending certificate requests of this node that are newer than `since`, the start of its kubelet; returns the names of
    /// those approved.
    ///
    /// A request is approved only when it is for one of kubelet's two signers, was made by this node or its bootstrapper, and asks for
    /// nothing but this node's name, group, and (for serving) names and addresses.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer; when it refuses.
    pub fn approve_requests(&self, node_name: &str, since: Timestamp) -> Result<Vec<String>> {
        let requests: Vec<Request> = self.pending_requests()?;
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let requester = Requester::new(node_name, self.addresses(node_name)?, since)?;
        let mut approved = Vec::new();
        for request in requests {
            let name = request.metadata.name.clone();
            match requester.judge(&request) {
                Ok(()) => {
                    self.approve(&name).with_context(|| format!("approving the certificate request {name}"))?;
                    tracing::info!(request = %name, signer = %request.spec.signer_name, "approved a certificate request of this node");
                    approved.push(name);
                }
                Err(why) => tracing::debug!(request = %name, "left a certificate request alone: {why:#}"),
            }
        }
        Ok(approved)
    }

    /// The requests that nobody has approved or denied.
    pub(super) fn pending_requests(&self) -> Result<Vec<Request>> {
        let mut requests: Vec<Request> = self.list(REQUESTS).context("asking for certificate requests")?;
        requests.retain(Request::is_pending);
        Ok(requests)
    }

    /// The node's names and addresses in the cluster; none before it is registered.
    fn addresses(&self, node: &str) -> Result<Vec<String>> {
        match self.get::<Object<Unread, Addresses>>(&format!("/api/v1/nodes/{node}")) {
            Err(error) if is_missing(&error) => Ok(Vec::new()),
            node => Ok(node?.status.addresses.into_iter().map(|a| a.address).collect()),
        }
    }

    /// The same as `kubectl certificate approve`: writes the object with one more condition to the subresource `approval`.
    fn approve(&self, name: &str) -> Result<()> {
        let path = format!("{REQUESTS}/{name}");
        let mut object: Value = self.get(&path)?;
        let condition = json!({
            "type": "Approved", "status": "True", "reason": "RecoveryApprove", "message": "This node's own request, approved by its recovery agent",
            "lastUpdateTime": self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        match object.pointer_mut("/status/conditions").and_then(Value::as_array_mut) {
            Some(conditions) => conditions.push(condition),
            None => object["status"]["conditions"] = json!([condition]),
        }
        self.put(&format!("{path}/approval"), &object).map(drop)
    }
}

impl<'a> Requester<'a> {
    fn new(name: &'a str, also: impl IntoIterator<Item = String>, since: Timestamp) -> Result<Self> {
        // Objects have whole seconds, rounded down: a request made just after the start can have a time just before it.
        let since =
            since.round((Unit::Second, 1)).map(|round| if round > since { round - jiff::SignedDuration::from_secs(1) } else { round });
        Ok(Self {
            name,
            also: also.into_iter().map(|name| canonical(&name)).collect(),
            since: since.context("rounding the start of kubelet")?,
        })
    }

    /// `Ok` when the request should be approved, else why not.
    fn judge(&self, request: &Request) -> Result<()> {
        let spec = &request.spec;
        ensure!(request.is_pending(), "it is decided already");
        let made = request.metadata.creation_timestamp.context("it does not say when it was made")?;
        ensure!(made >= self.since, "it is older than kubelet's start");
        let group = |name: &str| spec.groups.iter().any(|group| group == name);
        let by_node = spec.username == format!("system:node:{}", self.name) && group(NODES);
        let by_bootstrapper = spec.username == BOOTSTRAPPER || group(BOOTSTRAPPERS);
        let asked = Asked::read(&spec.request)?;
        match spec.signer_name.as_str() {
            CLIENT_SIGNER => {
                ensure!(by_node || by_bootstrapper, "{} is neither this node nor its bootstrapper", spec.username);
                ensure!(asked.names.is_empty(), "a client certificate has no names of servers");
                usages(&spec.usages, "client auth")?;
            }
            SERVING_SIGNER => {
                ensure!(by_node, "{} is not this node", spec.username);
                ensure!(!asked.names.is_empty(), "it names no server");
                if let Some(foreign) = asked.names.iter().find(|name| **name != canonical(self.name) && !self.also.contains(*name)) {
                    bail!("{foreign} is not a name or address of this node");
                }
                usages(&spec.usages, "server auth")?;
            }
            other => bail!("the signer {other} is not one of kubelet's"),
        }
        ensure!(asked.common_name == format!("system:node:{}", self.name), "it asks for the name {}", asked.common_name);
        ensure!(asked.organization == NODES, "it asks for the group {}", asked.organization);
        Ok(())
    }
}

/// The usage that the signer is for must be requested, and no others but those that go with it.
fn usages(asked: &[String], needed: &str) -> Result<()> {
    ensure!(asked.iter().any(|usage| usage == needed), "it does not ask for the usage {needed}");
    let other = asked.iter().find(|usage| ![needed, "digital signature", "key encipherment"].contains(&usage.as_str()));
    other.map_or(Ok(()), |usage| Err(anyhow!("it asks for the usage {usage}")))
}

/// A name or an address in the form in which it is compared.
fn canonical(name: &str) -> String {
    name.parse::<IpAddr>().map_or_else(|_| name.to_ascii_lowercase(), |address| address.to_string())
}

/// What a PKCS#10 request contains.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    common_name: String,
    organization: String,
    names: Vec<String>,
}

impl Asked {
    /// Reads a request, in base64 of its PEM. Anything in it that is not understood is an error: it would be signed unseen.
    fn read(request: &str) -> Result<Self> {
        let pem = BASE64.decode(request.as_bytes()).context("decoding its base64")?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).map_err(|error| anyhow!("its PEM cannot be read: {error}"))?;
        let (rest, request) = X509CertificationRequest::from_der(&pem.contents).map_err(|error| anyhow!("it cannot be read: {error}"))?;
        ensure!(rest.is_empty(), "something follows it");
        let info = &request.certification_request_info;
        let (common_name, organization) = subject(&info.subject)?;
        let mut names = Vec::new();
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else {
                bail!("it has an attribute {}", attribute.oid)
            };
            for extension in &asked.extensions {
                match extension.parsed_extension() {
                    ParsedExtension::SubjectAlternativeName(alternative) => {
                        names.extend(alternative.general_names.iter().map(server_name).collect::<Result<Vec<_>>>()?);
                    }
                    ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_) => {}
                    _ => bail!("it asks for the extension {}", extension.oid),
                }
            }
        }
        Ok(Self { common_name, organization, names })
    }
}

/// The only common name and the only organisation; a subject with anything else is an error.
fn subject(name: &X509Name<'_>) -> Result<(String, String)> {
    let text = |attribute: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>, what: &str| -> Result<String> {
        Ok(attribute.with_context(|| format!("its subject has no {what}"))?.as_str()?.to_owned())
    };
    ensure!(name.iter_attributes().count() == 2, "its subject is {name}");
    Ok((text(name.iter_common_name().next(), "common name")?, text(name.iter_organization().next(), "organisation")?))
}

fn server_name(name: &GeneralName<'_>) -> Result<String> {
    match name {
        GeneralName::DNSName(dns) => Ok(canonical(dns)),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            Ok(address.map_err(|_| anyhow!("it has an address of {} bytes", bytes.len()))?.to_string())
        }
        other => bail!("it asks for {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::objects::{List, capture};

    fn requester(since: &str) -> Requester<'static> {
        Requester::new("sno-node-0", ["10.0.130.93".to_owned()], since.parse().unwrap()).unwrap()
    }

    fn pending() -> Vec<Request> {
        capture::<List<Request>>("assembled-csr-list-pending.json").items
    }

    #[test]
    fn what_a_request_asks_for_is_read() {
        let asked = Asked::read(&pending()[1].spec.request).unwrap();
        assert_eq!(asked.common_name, "system:node:sno-node-0");
        assert_eq!(asked.organization, "system:nodes");
        assert_eq!(asked.names, ["sno-node-0", "10.0.130.93"]);
        assert!(Asked::read(&pending()[0].spec.request).unwrap().names.is_empty());
    }

    #[test]
    fn the_nodes_own_fresh_requests_are_approved_and_no_others() {
        let all = pending();
        let now = requester("2024-05-31T13:00:00Z");
        assert!(now.judge(&all[0]).is_ok() && now.judge(&all[1]).is_ok());
        assert!(now.judge(&all[2]).unwrap_err().to_string().contains("decided"));
        // Whole seconds: the request was made a fraction of a second after 13:10:01.
        assert!(requester("2024-05-31T13:10:01.9Z").judge(&all[0]).is_ok());
        assert!(requester("2024-05-31T13:10:02Z").judge(&all[0]).unwrap_err().to_string().contains("older"));
        let other = Requester::new("sno-node-1", [], now.since).unwrap();
        assert!(other.judge(&all[0]).is_err() && other.judge(&all[1]).is_err());
        let unregistered = Requester::new("sno-node-0", [], now.since).unwrap();
        assert!(unregistered.judge(&all[0]).is_ok());
        assert!(unregistered.judge(&all[1]).unwrap_err().to_string().contains("10.0.130.93 is not"));
    }

    #[test]
    fn who_asks_for_what_with_which_usage_all_has_to_fit() {
        type Change = fn(&mut RequestSpec);
        let changes: [(&str, Change); 7] = [
            ("signer", |spec| spec.signer_name = "kubernetes.io/kube-apiserver-client".into()),
            ("other user", |spec| spec.username = "system:node:sno-node-1".into()),
            ("group missing", |spec| spec.groups = vec!["system:authenticated".into()]),
            ("bootstrapper for serving", |spec| spec.username = BOOTSTRAPPER.into()),
            ("usage", |spec| spec.usages.push("cert sign".into())),
            ("usage missing", |spec| spec.usages.clear()),
            ("garbage", |spec| spec.request = "bm90IGEgcmVxdWVzdA==".into()),
        ];
        let now = requester("2024-05-31T13:00:00Z");
        assert!(now.judge(&pending()[1]).is_ok());
        for (what, change) in changes {
            let mut serving = pending().remove(1);
            change(&mut serving.spec);
            assert!(now.judge(&serving).is_err(), "{what}");
        }
    }

    #[test]
    fn old_forms_are_understood() {
        // v1beta1: no kind, conditions without status, and the base64 of a truncated request.
        assert!(!capture::<Request>("csr-approved-v1beta1.json").is_pending());
        let cut = capture::<Request>("csr-pending-v1beta1-noncompliant.json");
        assert!(cut.is_pending());
        assert!(requester("2019-01-01T00:00:00Z").judge(&cut).is_err());
    }
}
