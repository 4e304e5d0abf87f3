//! Upgrades that the backup's cluster is asked for, and would begin again as soon as it is up.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Objects;
use crate::kube::{management_ahead, update_ahead};
use crate::modifiers::{Form, Rules, Target};

/// The rule that takes away what a cluster is asked to go to.
pub const DROP_DESIRED_UPDATE: &str = "version: v1
resourceModifierRules:
- conditions:
    groupResource: clusterversions.config.openshift.io
    resourceNameRegex: ^version$
  patches:
  - operation: remove
    path: /spec/desiredUpdate
";

/// An object that asks for an upgrade.
pub(super) struct Asking {
    /// Its group, resource and name, as in its key.
    path: (&'static str, &'static str, &'static str),
    /// What to know of what it asks for, of the object as it will be.
    ahead: fn(&Value) -> Option<String>,
}

/// All of them. Of each there is one in a cluster.
pub(super) const ASKING: [Asking; 2] = [
    Asking { path: ("config.openshift.io", "clusterversions", "version"), ahead: cluster_version },
    Asking { path: ("k0rdent.mirantis.com", "managements", "kcm"), ahead: management },
];

impl Asking {
    pub(super) fn key(&self, objects: &Objects) -> Vec<u8> {
        let (group, resource, name) = self.path;
        objects.key(&format!("{group}/{resource}/{name}"))
    }

    /// What to know of the upgrade that it asks for when the rules were applied to `value`, which is its value in etcd.
    pub(super) fn look(&self, rules: Option<&Rules>, value: &[u8]) -> Result<Option<String>> {
        let (group, resource, name) = self.path;
        let target = Target { resource: format!("{resource}.{group}"), namespace: None, name: name.to_owned() };
        let object: Value = serde_json::from_slice(value).with_context(|| format!("{target} is {} in etcd", Form::of(value).words()))?;
        Ok(match rules {
            Some(rules) => (self.ahead)(&rules.apply(&target, &object).object),
            None => (self.ahead)(&object),
        })
    }
}

fn cluster_version(object: &Value) -> Option<String> {
    update_ahead(object).map(|release| {
        format!(
            "the backup's cluster is asked to go to {release} (spec.desiredUpdate of the ClusterVersion), and will begin to as soon as it is up: \
             --drop-desired-update takes that away before it can (a policy of a hub may set it again: remove that first)"
        )
    })
}

fn management(object: &Value) -> Option<String> {
    management_ahead(object).map(|(release, asked)| {
        format!(
            "the backup's k0rdent is at {release} and asked to go to {asked} (spec.release of the Management), and will begin to as soon as it is up: \
             --resource-modifier with this file takes that back before it can: {}",
            release_rule(&release)
        )
    })
}

/// The rules file that puts `release` back into k0rdent's Management, on one line.
fn release_rule(release: &str) -> String {
    let value = Value::from(release).to_string().replace('\'', "''");
    format!(
        "{{version: v1, resourceModifierRules: [{{conditions: {{groupResource: managements.k0rdent.mirantis.com, resourceNameRegex: ^kcm$}}, \
         patches: [{{operation: replace, path: /spec/release, value: '{value}'}}]}}]}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(spec: &str, status: &Value) -> Value {
        json!({"apiVersion": "k0rdent.mirantis.com/v1beta1", "kind": "Management", "metadata": {"name": "kcm"}, "spec": {"release": spec}, "status": status})
    }

    #[test]
    fn the_rule_that_is_proposed_takes_back_what_it_is_proposed_for() {
        let look = |object: &Value, rules: Option<&Rules>| ASKING[1].look(rules, object.to_string().as_bytes()).unwrap();
        for release in ["kcm-0-2-0", "1.30", "it's \"odd\""] {
            let object = asked("kcm-0-3-0", &json!({"release": release}));
            let said = look(&object, None).unwrap();
            let (_, file) = said.split_once("before it can: ").unwrap();
            let rules = Rules::parse(file).unwrap();
            assert_eq!(look(&object, Some(&rules)), None, "{said}");
            let target = Target { resource: "managements.k0rdent.mirantis.com".to_owned(), namespace: None, name: "kcm".to_owned() };
            assert_eq!(rules.apply(&target, &object).object["spec"]["release"], release);
        }
        for none in [asked("a", &json!({"release": "a"})), asked("a", &json!({})), asked("a", &Value::Null)] {
            assert_eq!(look(&none, None), None, "{none}");
        }
        assert!(ASKING[1].look(None, b"k8s:enc:x").unwrap_err().to_string().contains("is encrypted by the API server in etcd"));
    }
}
