//! Rules of a resource modifier, alone and beside a Restore, and what they do to an object. The input is a rules file and, behind a line of dashes, an
//! object; without one, a Management.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recovery::modifiers::{IDENTITY, Key, Outcome, Rules, STRIPPED, differences, restore_file, rules_file};
use recovery_fuzz::refused;
use serde_json::{Value, json};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (file, object) = text.split_once("\n-----\n").unwrap_or((text, ""));
    let found = [rules_file(file), restore_file(file).map(|restore| restore.rules.unwrap_or_default())];
    for rules in found {
        match rules {
            // A Restore need not have rules.
            Ok(rules) if rules.is_empty() => {}
            Ok(rules) => apply(&Rules::parse(&rules).expect("what is taken from a file is rules"), object),
            Err(error) => refused(&error),
        }
    }
});

fn apply(rules: &Rules, object: &str) {
    let key = Key::parse("/registry", b"/registry/k0rdent.mirantis.com/managements/kcm").expect("a key");
    let target = key.target().expect("a custom resource");
    let object = serde_json::from_str(object).ok().filter(Value::is_object).unwrap_or_else(|| {
        json!({
            "apiVersion": "k0rdent.mirantis.com/v1beta1", "kind": "Management", "metadata": {"name": "kcm", "labels": {"a": "b"}, "uid": "u"},
            "spec": {"release": "kcm-0-3-0", "providers": [{"name": "one"}, {"name": "two"}], "share": 0.5}, "status": {"release": "kcm-0-2-0"},
        })
    });
    let applied = rules.apply(&target, &object);
    assert_eq!(applied, rules.apply(&target, &object), "the same rules make the same of an object");
    for path in STRIPPED.iter().chain(&IDENTITY) {
        assert_eq!(object.pointer(path), applied.object.pointer(path), "{path} is nobody's to change");
    }
    let about: Vec<usize> = rules.all_about_unread(&target).collect();
    for (place, outcome) in &applied.outcomes {
        assert!(about.contains(place), "rule {place} is about what it cannot be about");
        if let Outcome::Changed { changes } = outcome {
            assert!(!changes.is_empty());
        }
    }
    let is_changed = applied.outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Changed { .. }));
    assert!(is_changed || applied.object == object, "it changes without a rule that does");
    assert!(differences(&object, &applied.object).iter().all(|difference| difference.before != difference.after));
    let written = serde_json::to_vec(&applied.object).expect("an object is written");
    assert_eq!(serde_json::from_slice::<Value>(&written).expect("what is written is read"), applied.object);
}
