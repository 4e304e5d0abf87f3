//! Objects that were patched in etcd, before the API server ran: what it makes of them.

use anyhow::Result;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::Client;
use super::client::{Refused, is_missing};

/// What stands in a path as something else: all but the unreserved characters (RFC 3986, 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where an object of a group is, as the API has it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Group and version, `k0rdent.mirantis.com/v1beta1`.
    pub api_version: &'a str,
    /// The plural resource.
    pub resource: &'a str,
    /// The namespace, if it is in one.
    pub namespace: Option<&'a str>,
    /// The name.
    pub name: &'a str,
}

/// The longest name of an object, and what the agent puts behind one for an object that is judged and never made.
const LONGEST_NAME: usize = 253;
const JUDGED: &str = "-judged";

impl Place<'_> {
    fn path(self) -> String {
        format!("{}/{}", self.list(), encoded(self.name))
    }

    /// The list that it is in.
    fn list(self) -> String {
        let version: Vec<String> = self.api_version.split('/').map(encoded).collect();
        // The core group has a root of its own.
        let root = if version.len() == 1 { "api" } else { "apis" };
        let namespace = self.namespace.map_or_else(String::new, |namespace| format!("/namespaces/{}", encoded(namespace)));
        format!("/{root}/{}{namespace}/{}", version.join("/"), encoded(self.resource))
    }
}

fn encoded(part: &str) -> String {
    utf8_percent_encode(part, RESERVED).to_string()
}

/// The object as a new one, under another name: without what the server itself gives to an object.
fn as_new(object: &Value) -> Value {
    let mut new = object.clone();
    if let Some(metadata) = new.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        for given in ["resourceVersion", "uid", "generation", "creationTimestamp", "deletionTimestamp", "managedFields", "selfLink"] {
            metadata.shift_remove(given);
        }
        let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
        let kept: String = name.chars().take(LONGEST_NAME - JUDGED.len()).collect();
        metadata.insert("name".to_owned(), format!("{kept}{JUDGED}").into());
    }
    new
}

impl Client {
    /// The object, as the API server reads it from etcd; `None` when it has none there, or does not serve that version.
    ///
    /// # Errors
    /// When the API server does not answer, or refuses.
    pub fn object(&self, place: Place<'_>) -> Result<Option<Value>> {
        match self.get(&place.path()) {
            Err(error) if is_missing(&error) => Ok(None),
            object => object.map(Some),
        }
    }

    /// Puts `object` in its place, if it is still in the version that `object` was read in; with `is_dry` nothing is changed. What it becomes.
    ///
    /// # Errors
    /// [`Refused`] by the API server: with 409 when somebody else has changed it; when it does not answer, and nobody knows what it has.
    pub fn replace(&self, place: Place<'_>, object: &Value, is_dry: bool) -> Result<Value> {
        let query = if is_dry { "?dryRun=All" } else { "" };
        self.put(&format!("{}{query}", place.path()), object)
    }

    /// Asks whether the API server would take `object`, which it has already, and changes nothing: the reason when it finds it invalid, else `None`.
    /// `before` is what it was made of, which the server took.
    ///
    /// From an object that is there, the server lets everything pass that was so before (ratcheting, Kubernetes 1.30 and later), and here all of it was. So
    /// it is judged as a new object under another name. Where `before` is refused as that too, the other name is in the way, or a rule that came after
    /// it, and `object` is judged in its own place.
    ///
    /// # Errors
    /// When that cannot be told: a webhook that has to be asked has no pod yet, for example.
    pub fn invalid(&self, place: Place<'_>, object: &Value, before: &Value) -> Result<Option<String>> {
        let new = |object: &Value| judged(self.post(&format!("{}?dryRun=All", place.list()), &as_new(object)));
        match new(object) {
            Ok(None) => return Ok(None),
            Ok(Some(why)) if matches!(new(before), Ok(None)) => return Ok(Some(why)),
            // A webhook may refuse it in a way of its own.
            Err(error) if error.downcast_ref::<Refused>().is_none() => return Err(error),
            _ => {}
        }
        judged(self.replace(place, object, true).map(drop))
    }
}

/// Why an object is invalid, of the answer to a dry run.
fn judged(answer: Result<()>) -> Result<Option<String>> {
    match answer {
        Ok(()) => Ok(None),
        Err(error) => match error.downcast_ref::<Refused>() {
            // Invalid, and bad request, which a field of the wrong type is.
            Some(refused) if [400, 422].contains(&refused.code) => Ok(Some(refused.message.clone())),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_has_its_place_in_the_api() {
        let place = Place { api_version: "a.b/v1", resource: "things", namespace: None, name: "x" };
        assert_eq!(place.path(), "/apis/a.b/v1/things/x");
        assert_eq!(Place { namespace: Some("n"), name: "a/b", ..place }.path(), "/apis/a.b/v1/namespaces/n/things/a%2Fb");
        assert_eq!(Place { api_version: "v1", resource: "nodes", ..place }.path(), "/api/v1/nodes/x");
    }

    #[test]
    fn a_new_object_has_a_name_of_its_own_and_nothing_that_the_server_gives() {
        let object =
            json!({"metadata": {"name": "x".repeat(253), "uid": "u", "resourceVersion": "1", "labels": {"a": "b"}}, "spec": {"c": 1}});
        let new = as_new(&object);
        assert_eq!(new, json!({"metadata": {"name": format!("{}-judged", "x".repeat(246)), "labels": {"a": "b"}}, "spec": {"c": 1}}));
    }
}
