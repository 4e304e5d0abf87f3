//! How the API server keeps objects in etcd: which object a key is of, and in what form its value is.
//!
//! Custom resources are at `/<prefix>/<group>/<resource>[/<namespace>]/<name>`, as JSON (apiextensions-apiserver), and so are
//! `CustomResourceDefinition` and `APIService`. Built-in kinds are at `/<prefix>/<resource>/…`, as protobuf behind `k8s\0`
//! (kube-apiserver 1.31, `pkg/kubeapiserver/default_storage_factory_builder.go`; apimachinery, `runtime/serializer/protobuf`). A group has a dot in its
//! name, which the validation of `CustomResourceDefinition` asks for, and no resource has one.

use serde::Deserialize;

use super::{Rules, Target};

/// The groups of the built-in kinds, for the keys that do not say their group.
const BUILT_IN_GROUPS: [&str; 19] = [
    "admissionregistration.k8s.io",
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "extensions",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "storage.k8s.io",
];
/// What the API server keeps for itself beside the objects.
const NO_OBJECTS: [&str; 3] = ["masterleases", "peerserverleases", "ranges"];
/// Resources whose key has another name (`SpecialDefaultResourcePrefixes`).
const OTHER_NAMES: [(&str, &str); 6] = [
    ("controllers", "replicationcontrollers"),
    ("ingress", "ingresses"),
    ("minions", "nodes"),
    ("podsecuritypolicy", "podsecuritypolicies"),
    ("services/endpoints", "endpoints"),
    ("services/specs", "services"),
];

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// JSON, which is read.
    Json,
    /// Protobuf: a built-in kind.
    Protobuf,
    /// Encrypted by the API server.
    Encrypted,
    /// CBOR.
    Cbor,
    /// None of these.
    Unknown,
}

impl Form {
    /// The form of a value, by its first bytes.
    #[must_use]
    pub fn of(value: &[u8]) -> Self {
        match value {
            [b'{', ..] => Self::Json,
            [b'k', b'8', b's', 0, ..] => Self::Protobuf,
            [0xD9, 0xD9, 0xF7, ..] => Self::Cbor,
            _ if value.starts_with(b"k8s:enc:") => Self::Encrypted,
            _ => Self::Unknown,
        }
    }

    /// What it is, in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Json => "JSON, of a built-in kind",
            Self::Protobuf => "protobuf, of a built-in kind",
            Self::Encrypted => "encrypted by the API server",
            Self::Cbor => "CBOR",
            Self::Unknown => "in a form that is not known",
        }
    }
}

/// What a key says of its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key<'a> {
    kind: &'a str,
    group: Option<&'a str>,
    resource: &'a str,
    namespace: Option<&'a str>,
    name: &'a str,
}

impl<'a> Key<'a> {
    /// Reads a key; `prefix` begins with a slash and does not end with one. `None` when it is no object's.
    #[must_use]
    pub fn parse(prefix: &str, key: &'a [u8]) -> Option<Self> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?.strip_prefix('/')?;
        let (first, behind) = rest.split_once('/')?;
        if NO_OBJECTS.contains(&first) {
            return None;
        }
        let (group, resource, behind) = if first.contains('.') {
            let (resource, behind) = behind.split_once('/')?;
            (Some(first), resource, behind)
        } else {
            let other = OTHER_NAMES.iter().find_map(|(key, resource)| Some((*resource, rest.strip_prefix(key)?.strip_prefix('/')?)));
            let (resource, behind) = other.unwrap_or((first, behind));
            (None, resource, behind)
        };
        let (namespace, name) = behind.split_once('/').map_or((None, behind), |(namespace, name)| (Some(namespace), name));
        let kind = &rest[..rest.len() - behind.len() - 1];
        (!name.is_empty() && !name.contains('/')).then_some(Self { kind, group, resource, namespace, name })
    }

    /// What the object can be: one, unless the key is of a built-in kind, whose group is not in it. `value` says the group, where it can be read.
    fn targets(&self, value: Option<&[u8]>) -> Vec<Target> {
        let target = |group: &str| Target {
            resource: if group.is_empty() { self.resource.to_owned() } else { format!("{}.{group}", self.resource) },
            namespace: self.namespace.map(str::to_owned),
            name: self.name.to_owned(),
        };
        match self.group.or_else(|| group_of(value?)) {
            Some(group) => vec![target(group)],
            None => [""].iter().chain(&BUILT_IN_GROUPS).map(|group| target(group)).collect(),
        }
    }

    /// The object, when its group is known.
    #[must_use]
    pub fn target(&self) -> Option<Target> {
        self.group.and_then(|_| self.targets(None).pop())
    }

    /// The part of the key that says the kind of its object: keys that have it in common are of one kind.
    #[must_use]
    pub fn kind(&self) -> &'a str {
        self.kind
    }

    /// True when a rule may be about objects of this kind.
    #[must_use]
    pub fn may_be_meant(&self, rules: &Rules) -> bool {
        self.targets(None).iter().any(|target| rules.may_be_about(&target.resource))
    }

    /// The object of a built-in kind, and the version of its API that `value` says it is stored in. `None` for a custom resource, and where the value does
    /// not say what it is.
    #[must_use]
    pub fn built_in<'v>(&self, value: &'v [u8]) -> Option<(Target, &'v str)> {
        let version = api_version(value).filter(|_| self.group.is_none())?;
        self.targets(Some(value)).pop().map(|target| (target, version))
    }

    /// The first rule that may be about this object, whose value is not read, and what the object then is.
    #[must_use]
    pub fn meant_unread(&self, rules: &Rules, value: &[u8]) -> Option<(usize, Target)> {
        let targets = self.targets(Some(value));
        // Where the group is not known, none is named.
        let named = targets.first()?.clone();
        targets.iter().filter_map(|target| rules.about_unread(target)).min().map(|rule| (rule, named))
    }
}

/// The group of a built-in object.
fn group_of(value: &[u8]) -> Option<&str> {
    api_version(value).map(|version| version.split_once('/').map_or("", |(group, _)| group))
}

/// The version of its API that a value says its object is stored in.
fn api_version(value: &[u8]) -> Option<&str> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versioned<'a> {
        api_version: &'a str,
    }
    match Form::of(value) {
        Form::Protobuf => api_version_of_protobuf(value),
        Form::Json => serde_json::from_slice::<Versioned<'_>>(value).ok().map(|found| found.api_version),
        _ => None,
    }
}

/// In the envelope of a protobuf value: `runtime.Unknown` has a `TypeMeta` as its first field, and that the `apiVersion` as its own.
fn api_version_of_protobuf(value: &[u8]) -> Option<&str> {
    let type_meta = first_field(value.strip_prefix(b"k8s\0")?)?;
    std::str::from_utf8(first_field(type_meta)?).ok()
}

/// The first field of a protobuf message, when that is its field 1 and bytes, fewer than 128 of them: both of the envelope's are.
fn first_field(message: &[u8]) -> Option<&[u8]> {
    let (head, rest) = message.split_first_chunk::<2>()?;
    (head[0] == 0x0A && head[1] < 128).then(|| rest.get(..usize::from(head[1]))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_the_api_server_writes_them() {
        let read = |key: &'static str| Key::parse("/registry", key.as_bytes());
        let cluster = read("/registry/k0rdent.mirantis.com/managements/kcm").unwrap();
        assert_eq!(cluster.kind(), "k0rdent.mirantis.com/managements");
        assert_eq!(cluster.target().unwrap().to_string(), "managements.k0rdent.mirantis.com kcm");
        let namespaced = read("/registry/a.b/things/ns/one.two").unwrap();
        assert_eq!(namespaced.target().unwrap().to_string(), "things.a.b ns/one.two");
        for (key, kind) in [
            ("/registry/configmaps/ns/web", "configmaps ns/web"),
            ("/registry/services/specs/ns/web", "services ns/web"),
            ("/registry/minions/node", "nodes node"),
        ] {
            assert_eq!(read(key).unwrap().targets(None)[0].to_string(), kind);
            assert_eq!(read(key).unwrap().target(), None, "its group is not in the key");
        }
        for key in ["/registry/ranges/serviceips", "/registry/a.b/things", "/registry/a.b/things/a/b/c", "/other/a.b/things/x", "/registry"]
        {
            assert_eq!(read(key), None, "{key}");
        }
        assert_eq!(Key::parse("/registry", b"/registry/a.b/things/\xff"), None);
    }

    #[test]
    fn a_built_in_kind_says_its_group_and_an_encrypted_one_does_not() {
        let deployment = b"k8s\0\x0a\x15\x0a\x07apps/v1\x12\x0aDeployment\x12\x00";
        let config_map = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x00";
        assert_eq!(group_of(deployment), Some("apps"));
        assert_eq!(group_of(config_map), Some(""));
        assert_eq!(
            [&deployment[..], config_map, b"k8s:enc:aescbc:v1:", b"\xd9\xd9\xf7", b"{}", b""].map(Form::of).map(Form::words)[2..4],
            ["encrypted by the API server", "CBOR"]
        );
        let rules = Rules::parse(
            "version: v1\nresourceModifierRules:\n- conditions: {groupResource: deployments.apps}\n  mergePatches: [{patchData: '{spec: {}}'}]\n",
        )
        .unwrap();
        let key = Key::parse("/registry", b"/registry/deployments/ns/web").unwrap();
        assert!(key.may_be_meant(&rules));
        assert_eq!(key.meant_unread(&rules, deployment).unwrap().1.to_string(), "deployments.apps ns/web");
        assert_eq!(key.meant_unread(&rules, b"k8s:enc:x").unwrap().1.to_string(), "deployments ns/web");
        assert_eq!(
            key.meant_unread(&rules, br#"{"kind":"Deployment","apiVersion":"apps/v1"}"#).unwrap().1.to_string(),
            "deployments.apps ns/web"
        );
        assert_eq!(key.meant_unread(&rules, br#"{"apiVersion":"v1"}"#), None);
        assert_eq!(key.meant_unread(&rules, b"k8s\0\x0a\x15\x0a\x07core/v1\x12\x0aDeployment"), None);
        assert!(!Key::parse("/registry", b"/registry/configmaps/ns/web").unwrap().may_be_meant(&rules));
    }
}
