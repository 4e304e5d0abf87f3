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

impl Place<'_> {
    fn path(self) -> String {
        let encoded = |part: &str| utf8_percent_encode(part, RESERVED).to_string();
        let version: Vec<String> = self.api_version.split('/').map(encoded).collect();
        let namespace = self.namespace.map_or_else(String::new, |namespace| format!("/namespaces/{}", encoded(namespace)));
        format!("/apis/{}{namespace}/{}/{}", version.join("/"), encoded(self.resource), encoded(self.name))
    }
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

    /// Asks whether the API server would take `object`, and changes nothing: the reason when it finds it invalid, else `None`.
    ///
    /// # Errors
    /// When that cannot be told: a webhook that has to be asked has no pod yet, for example.
    pub fn invalid(&self, place: Place<'_>, object: &Value) -> Result<Option<String>> {
        match self.put(&format!("{}?dryRun=All", place.path()), object) {
            Ok(()) => Ok(None),
            Err(error) => match error.downcast_ref::<Refused>() {
                // Invalid, and bad request, which a field of the wrong type is.
                Some(refused) if [400, 422].contains(&refused.code) => Ok(Some(refused.message.clone())),
                _ => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_its_place_in_the_api() {
        let place = Place { api_version: "a.b/v1", resource: "things", namespace: None, name: "x" };
        assert_eq!(place.path(), "/apis/a.b/v1/things/x");
        assert_eq!(Place { namespace: Some("n"), name: "a/b", ..place }.path(), "/apis/a.b/v1/namespaces/n/things/a%2Fb");
    }
}
