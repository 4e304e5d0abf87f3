//! What Velero 1.18.1 did with rules and objects, captured: `tests/fixtures/velero`.

use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::error::exit_code;

#[derive(Deserialize)]
struct Captured {
    name: String,
    #[serde(rename = "groupResource")]
    group_resource: String,
    rules: String,
    object: Value,
    outcome: String,
    detail: String,
    result: Option<Value>,
}

/// What Velero takes and finds fault with, or takes and does, and this agent refuses before the start: with its exit code, and why.
const REFUSED: &[(&str, u8, &str)] = &[
    ("value hexfloat", 65, "the value makes no JSON: Velero finds out at the first object"),
    ("value nan", 65, "the same"),
    ("value underscore", 65, "the same"),
    ("value plus", 65, "the same"),
    ("value lead0", 65, "the same"),
    ("value 5dot", 65, "the same"),
    ("value TRUE", 65, "the same"),
    ("value inner-quote", 65, "the same"),
    ("value newline", 65, "the same"),
    ("value broken-obj", 65, "the same"),
    ("value lead-space-obj", 65, "the same"),
    ("value tab", 65, "the same"),
    ("value Infinity", 65, "the same"),
    ("op REPLACE upper", 65, "operations are in lower case: Velero finds out at the first object"),
    ("path no slash", 65, "the path is no pointer: Velero finds out at the first object"),
    ("copy no from", 65, "it copies the whole object, and here that is with its status and uid"),
    ("replace name", 65, "the object would be another, and it is patched in its place"),
    ("replace root /metadata", 65, "the same"),
    ("add status", 65, "Velero strips a status, so that the rule has no effect there"),
    ("cond regex bad", 65, "no expression: Velero finds out at the first object"),
    ("cond matches no path", 65, "no path: Velero finds out at the first object"),
    ("cond matches bad value", 65, "the value makes no JSON: Velero finds out at the first object"),
    ("gr bad glob \"[a\"", 65, "no glob: Velero finds out at every object"),
    ("file no patches", 65, "a rule without patches: Velero finds out at the first object that it is about"),
    ("file no patches, not matching", 65, "the same"),
    ("merge empty", 65, "no map: Velero finds out at the first object"),
    ("merge scalar", 65, "the same"),
    ("merge invalid yaml", 65, "the same"),
    ("strategic deploy image", 64, "built-in kinds are protobuf in etcd"),
    ("strategic $patch delete", 64, "the same"),
    ("strategic unknown field", 64, "the same"),
    ("strategic missing merge key", 64, "the same"),
    ("strategic dup key", 64, "the same"),
];

fn captured() -> Vec<Captured> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/velero/modifiers-velero-1.18.1.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// The object afterwards, or why not; with what each rule that is about it did.
fn ours(case: &Captured) -> anyhow::Result<Applied> {
    Ok(Rules::parse(&case.rules)?.apply(&target(case), &case.object))
}

fn target(case: &Captured) -> Target {
    let text = |path: &str| case.object.pointer(path).and_then(Value::as_str).map(str::to_owned);
    Target { resource: case.group_resource.clone(), namespace: text("/metadata/namespace"), name: text("/metadata/name").unwrap() }
}

#[test]
fn everything_captured_comes_to_the_same_end_or_is_refused_before_the_start() {
    let cases = captured();
    assert_eq!(cases.len(), 151);
    let mut refused = Vec::new();
    for case in &cases {
        let name = case.name.as_str();
        let ours = ours(case);
        if matches!(case.outcome.as_str(), "INVALID" | "PARSE-ERR") {
            assert_eq!(exit_code(&ours.unwrap_err()), 65, "{name}: Velero refuses it too");
            continue;
        }
        if let Some((_, code, _)) = REFUSED.iter().find(|(refused, ..)| *refused == name) {
            let error = ours.map(|applied| applied.object).expect_err(name);
            assert_eq!(exit_code(&error), *code, "{name}: {error:#}");
            refused.push(name);
            continue;
        }
        let applied = ours.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(Some(&applied.object), case.result.as_ref(), "{name}");
        judged_alike(case, &applied);
        assert_eq!(applied.object != case.object, case.outcome == "changed", "{name}");
        let errors = applied.outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Error { .. }));
        assert_eq!(errors, case.detail != "errs=[]", "{name}: {:?}, Velero: {}", applied.outcomes, case.detail);
    }
    let listed: Vec<&str> = REFUSED.iter().map(|(name, ..)| *name).collect();
    refused.sort_unstable();
    let mut sorted = listed.clone();
    sorted.sort_unstable();
    assert_eq!(refused, sorted, "each of the list is captured");
}

/// What an object is only judged to become, by the part of it that rules look at, is what it does become.
fn judged_alike(case: &Captured, applied: &Applied) {
    let target = target(case);
    let rules = Rules::parse(&case.rules).unwrap();
    let about: Vec<usize> = rules.all_about_unread(&target).collect();
    let part = rules.part(&about, case.object.to_string().as_bytes()).unwrap();
    assert_eq!(rules.judge(about, part), applied.outcomes.iter().map(without_where).collect::<Vec<_>>(), "{}", case.name);
}

fn without_where((place, outcome): &(usize, Outcome)) -> (usize, Outcome) {
    match outcome {
        Outcome::Changed { .. } => (*place, Outcome::Changed { changes: Vec::new() }),
        other => (*place, other.clone()),
    }
}

#[test]
fn a_part_leaves_out_what_no_rule_looks_at() {
    let rules =
        "version: v1\nresourceModifierRules:\n- conditions: {groupResource: a.b.c}\n  mergePatches: [{patchData: '{spec: {x: 1}}'}]\n";
    let rules = Rules::parse(rules).unwrap();
    let part = |json: &str| rules.part(&[0], json.as_bytes()).unwrap().to_string();
    let skipped = r#"{"\u0073pec":{"x":2,"y":[{}]},"status":[0.5,{"a\"b":null,"c":[true,-1,18446744073709551615,"\ud83d\ude00"]}],"metadata":{"name":"one"}}"#;
    assert_eq!(part(skipped), r#"{"spec":{"x":2},"metadata":{"name":"one"}}"#);
    assert_eq!(part(r#"{"spec":["no object",1.0],"metadata":null}"#), r#"{"spec":["no object",1.0],"metadata":null}"#);
    for bad in ["{\"spec\":{}", "{\"other\":tru}", "{} {}", "[]", "{\"other\":\"\u{1}\"}"] {
        assert!(rules.part(&[0], bad.as_bytes()).is_err(), "{bad}");
    }
}

fn applied(rules: &str, object: &Value) -> Applied {
    let target = Target { resource: "managements.k0rdent.mirantis.com".to_owned(), namespace: None, name: "kcm".to_owned() };
    let head = "version: v1\nresourceModifierRules:\n- conditions: {groupResource: managements.k0rdent.mirantis.com}\n";
    Rules::parse(&format!("{head}{rules}")).unwrap().apply(&target, object)
}

#[test]
fn what_velero_strips_stays_as_it_is_whatever_a_patch_does() {
    let object: Value = serde_json::json!({
        "apiVersion": "k0rdent.mirantis.com/v1beta1", "kind": "Management",
        "metadata": {"name": "kcm", "uid": "u", "generation": 3, "ownerReferences": [{"uid": "o"}], "annotations": {"a": "1"}},
        "spec": {"release": "new"}, "status": {"release": "new"},
    });
    let kept = applied("  mergePatches: [{patchData: '{spec: {release: old}, metadata: {annotations: null}}'}]\n", &object);
    let expected = serde_json::json!({
        "apiVersion": "k0rdent.mirantis.com/v1beta1", "kind": "Management",
        "metadata": {"name": "kcm", "uid": "u", "generation": 3, "ownerReferences": [{"uid": "o"}]},
        "spec": {"release": "old"}, "status": {"release": "new"},
    });
    assert_eq!(kept.object, expected);
    assert!(raises_generation(&object, &kept.object));
    for patch in ["{metadata: null}", "{kind: Other}", "{metadata: {name: other}}"] {
        let applied = applied(&format!("  mergePatches: [{{patchData: '{patch}'}}]\n"), &object);
        assert!(matches!(&applied.outcomes[..], [(0, Outcome::Error { why })] if why.contains("it would change")), "{applied:?}");
        assert_eq!(applied.object, object);
    }
    let labelled = applied("  patches: [{operation: add, path: /metadata/labels, value: '{\"a\":\"b\"}'}]\n", &object);
    assert!(!raises_generation(&object, &labelled.object) && labelled.object != object);
}

/// The API server writes such numbers as Go does; whoever has put one there otherwise gets it back.
#[test]
fn a_number_that_go_writes_in_another_way_stays_where_no_patch_changes_it() {
    let json = r#"{"metadata":{"name":"kcm","generation":3.0,"labels":{}},"spec":{"x":1.0,"y":[2.0,{"z":3.0}],"release":"new"},"status":{"share":1.0},"data":4.0}"#;
    let object: Value = serde_json::from_str(json).unwrap();
    for (rules, becomes) in [
        ("  patches: [{operation: replace, path: /spec/release, value: old}]\n", json.replace("new", "old")),
        (
            "  mergePatches: [{patchData: '{spec: {release: old}, metadata: {labels: {a: b}}}'}]\n",
            json.replace("new", "old").replace("{}", r#"{"a":"b"}"#),
        ),
        ("  patches: [{operation: add, path: /spec/y/-, value: '5.0'}]\n", json.replace("3.0}]", "3.0},5]")),
        ("  patches: [{operation: replace, path: /spec/x, value: '1.0'}]\n", json.to_owned()),
    ] {
        let applied = applied(rules, &object);
        assert!(matches!(applied.outcomes[0].1, Outcome::Changed { .. } | Outcome::Unchanged), "{rules}: {:?}", applied.outcomes);
        assert_eq!(applied.object.to_string(), becomes, "{rules}");
    }
}

#[test]
fn a_rule_that_changes_nothing_and_a_test_that_fails_are_told_apart() {
    let object = serde_json::json!({"metadata": {"name": "kcm"}, "spec": {"release": "old"}});
    let outcome = |rules: &str| applied(rules, &object).outcomes[0].1.clone();
    assert_eq!(outcome("  patches: [{operation: replace, path: /spec/release, value: old}]\n"), Outcome::Unchanged);
    let failed = outcome("  patches: [{operation: test, path: /spec/release, value: x}, {operation: remove, path: /spec}]\n");
    assert_eq!(failed, Outcome::TestFailed { why: "test: /spec/release is not \"x\": something else is there".to_owned() });
}

#[test]
fn an_object_that_is_not_read_is_judged_by_what_stands_in_its_key() {
    let rules = Rules::parse(
        "version: v1\nresourceModifierRules:\n- conditions: {groupResource: secrets, namespaces: [a], resourceNameRegex: x, labelSelector: {matchLabels: {a: b}}}\n  \
         mergePatches: [{patchData: '{data: {}}'}]\n",
    )
    .unwrap();
    let about = |resource: &str, namespace: &str, name: &str| {
        rules.about_unread(&Target { resource: resource.to_owned(), namespace: Some(namespace.to_owned()), name: name.to_owned() })
    };
    assert_eq!(about("secrets", "a", "xy"), Some(0));
    assert_eq!(about("secrets", "b", "xy"), None);
    assert_eq!(about("secrets", "a", "y"), None);
    assert_eq!(about("configmaps", "a", "x"), None);
}

/// Numbers that look random, and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % sides as u64).unwrap()
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }

    /// A value as a text, with numbers as nobody writes them and keys that are there twice.
    fn json(&mut self, deep: usize) -> String {
        match self.roll(if deep == 0 { 4 } else { 9 }) {
            0 if self.roll(12) == 0 => {
                self.one(&["1.0", "-0.0", "1e3", "9007199254740993.0", "18446744073709551616", "-9223372036854775809"]).to_owned()
            }
            0 => self.one(&["0", "0.5", "18446744073709551615"]).to_owned(),
            1 => self.one(&["\"x\"", "\"\"", "\"\\ud83d\\ude00\"", "\"5\""]).to_owned(),
            2 => self.one(&["true", "null"]).to_owned(),
            3 => self.one(&["1", "2", "3"]).to_owned(),
            4 | 5 => format!("[{}]", (0..self.roll(4)).map(|_| self.json(deep - 1)).collect::<Vec<_>>().join(",")),
            _ => format!(
                "{{{}}}",
                (0..self.roll(5)).map(|_| format!("{}:{}", self.key(), self.json(deep - 1))).collect::<Vec<_>>().join(",")
            ),
        }
    }

    fn key(&mut self) -> &'static str {
        self.one(&["\"a\"", "\"b\"", "\"\\u0063\"", "\"x/y\"", "\"~z\"", "\"0\"", "\"\""])
    }

    fn object(&mut self) -> String {
        let mut fields: Vec<String> = Vec::new();
        for field in ["apiVersion", "kind", "spec", "data", "status"] {
            for _ in 0..[0, 1, 1, 1, 2][self.roll(5)] {
                fields.push(format!("\"{field}\":{}", self.json(3)));
            }
        }
        let mut metadata = vec!["\"name\":\"one\"".to_owned()];
        for field in ["labels", "annotations", "namespace", "uid", "a"] {
            if self.roll(3) > 0 {
                metadata.push(format!("\"{field}\":{}", self.json(2)));
            }
        }
        let at = self.roll(fields.len() + 1);
        fields.insert(at, format!("\"metadata\":{{{}}}", metadata.join(",")));
        format!("{{{}}}", fields.join(","))
    }

    fn path(&mut self) -> String {
        let mut path = self
            .one(&["/spec", "/spec", "/data", "/metadata/labels", "/metadata/annotations", "/metadata", "/a", "/metadata/a"])
            .to_owned();
        for _ in 0..self.roll(4) {
            path += self.one(&["/a", "/b", "/c", "/x~1y", "/~0z", "/0", "/1", "/-", "/-1", "/", "/00"]);
        }
        path
    }

    fn rule(&mut self) -> Value {
        let mut rule = serde_json::json!({"conditions": {"groupResource": "a.b.c"}});
        if self.roll(6) == 0 {
            rule["conditions"]["matches"] = serde_json::json!([{"path": self.path(), "value": "1"}]);
        }
        if self.roll(2) == 0 {
            let fields = |dice: &mut Self| {
                let name = dice.one(&["spec", "data", "metadata", "a", "kind"]).to_owned();
                format!("\"{name}\":{}", dice.json(3))
            };
            let patches: Vec<Value> =
                (0..=self.roll(2)).map(|_| serde_json::json!({"patchData": format!("{{{}}}", fields(self))})).collect();
            rule["mergePatches"] = patches.into();
        } else {
            let patches: Vec<Value> = (0..=self.roll(3))
                .map(|_| {
                    let operation = self.one(&["add", "remove", "replace", "move", "copy", "test", "add"]);
                    serde_json::json!({"operation": operation, "path": self.path(), "from": self.path(), "value": self.json(1)})
                })
                .collect();
            rule["patches"] = patches.into();
        }
        rule
    }
}

/// What is said of a part, without where, is what is done to the whole; and a rule does to the fields that it touches what it would do to the whole object.
#[test]
fn whatever_the_rules_and_the_object_the_part_is_judged_as_the_whole_is_changed() {
    let (mut dice, mut ends) = (Dice(7), [0; 4]);
    let target = Target { resource: "a.b.c".to_owned(), namespace: None, name: "one".to_owned() };
    for _ in 0..1_500 {
        let rules: Vec<Value> = (0..=dice.roll(3)).map(|_| dice.rule()).collect();
        let file = serde_json::json!({"version": "v1", "resourceModifierRules": rules}).to_string();
        let Ok(rules) = Rules::parse(&file) else { continue };
        for _ in 0..4 {
            let json = dice.object();
            let about: Vec<usize> = rules.all_about_unread(&target).collect();
            let (whole, part): (Value, _) = (serde_json::from_str(&json).unwrap(), rules.part(&about, json.as_bytes()).unwrap());
            let applied = rules.apply(&target, &whole);
            let judged = rules.judge(about, part);
            assert_eq!(judged, applied.outcomes.iter().map(without_where).collect::<Vec<_>>(), "{file} on {json}");
            let mut object = whole;
            for (place, outcome) in &applied.outcomes {
                let mut after = object.clone();
                let done = patch_with(&rules.rules[*place].patches, &object, &mut after).and_then(|()| kept(&object, &after));
                let (end, differ) = match outcome {
                    Outcome::Changed { .. } => (0, true),
                    Outcome::Unchanged => (1, false),
                    Outcome::TestFailed { .. } => (2, false),
                    Outcome::Error { .. } | Outcome::ThroughApi { .. } => (3, false),
                };
                ends[end] += 1;
                assert_eq!((done.is_ok(), done.is_ok() && after != object), (end < 2, differ), "{file} on {json}");
                if differ {
                    object = after;
                }
            }
            assert_eq!(object, applied.object, "{file} on {json}");
        }
    }
    assert!(ends.iter().all(|count| *count > 20), "{ends:?}");
}
