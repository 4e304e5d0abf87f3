//! Text of other programs, from which secrets are taken.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recovery::collect::redact::redact;

const BODY: &str = "MHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5CB04fSeQ6tF1aY1PuoAoGCCqGSM49";

fuzz_target!(|around: &[u8]| {
    let text = String::from_utf8_lossy(around);
    // Alone, without what says that it is a key, it is any text.
    if text.contains(BODY) {
        return;
    }
    let middle = (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (before, after) = text.split_at(middle);
    // Whatever stands around it, a key goes.
    let with_key = format!("{before}\n-----BEGIN EC PRIVATE KEY-----\n{BODY}\n-----END EC PRIVATE KEY-----\n{after}");
    assert!(!redact(&with_key).contains(BODY));
    // What is JSON stays JSON.
    if serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|document| document.is_object()) {
        assert!(serde_json::from_str::<serde_json::Value>(&redact(&text)).is_ok());
    }
});
