//! Taking secrets out of text: private keys, tokens, passwords, by their form and by the name before them. What is in doubt goes.
//!
//! It is the second line: the first is that nothing is collected whose purpose is to hold secrets (keys, kubeconfigs, Secrets, the content
//! of backups).

use std::borrow::Cow;
use std::sync::LazyLock;

use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD, Encoding};
use regex::{Captures, Regex};
use serde_json::Value;

/// What stands in place of a secret.
pub const REDACTED: &str = "[REDACTED]";

/// The most bytes between the begin and the end of a key: one of 16,384 bits in lines that each have the journal's time and unit before
/// them.
const LONGEST_KEY: usize = 64 << 10;
/// How deep base64 in base64 is looked into.
const DEPTH: usize = 3;

/// Names whose value is a secret, or their ends.
const NAME: &str = r"(?:password|passwd|passphrase|\bpass|secret|token|(?:api|access|secret|private|encryption|account)[-_]?key|key[-_]?data|credentials?|auth|authorization|bearer|cookie|dockerconfigjson|dockercfg|pull[-_]?secret)";

/// How some of Go's printers say of what type a value is, and how long.
const TYPE: &str = r"(?:\([\w\[\]. =]*\)[ \t]*)*";

fn pattern(pattern: &str) -> Regex {
    #[expect(clippy::unwrap_used, reason = "the patterns stand in this file, and a test uses each")]
    Regex::new(&pattern.replace("NAME", NAME).replace("TYPE", TYPE)).unwrap()
}

/// `password: |`, with the indented lines that follow.
static BLOCK: LazyLock<Regex> = LazyLock::new(|| pattern(r#"(?im)(NAME["']?[ \t]*:[ \t]*[|>][-+0-9]*[ \t]*\n)((?:[ \t]+\S[^\n]*\n?)+)"#));
/// `password:`, with its value alone in the next line.
static NEXT_LINE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"(?im)(NAME["']?[ \t]*:[ \t]*\r?\n[ \t]+(?:-[ \t]+)?)([^\s:#-][^\s:]*)(?:[ \t\r]*)$"#));
/// `Authorization: …`, to the end of the line or of the quotes.
static AUTHORIZATION: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"(?i)((?:proxy-)?authorization\\*["']?[ \t]*[:=][ \t]*\\*["']?)([^"'\\\n\r]+)"#));
/// A name with its value, quoted.
static QUOTED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r#"(?i)(NAME\\*["']?[ \t]*(?::|=>?)[ \t]*TYPE)(?:(\\+")([^"]*?)(\\*")|(")((?:[^"\\]|\\.)*)(")|(')([^']*)('))"#)
});
/// A name with its value, up to a blank or a quote; or with the bytes of it, as Go prints them.
static PLAIN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"(?i)(NAME\\*["']?[ \t]*(?::|=>?)[ \t]*TYPE)(\[REDACTED\]|\[[0-9 ,]+\]|\[\]\w+\{[^}]*\}|[^\s"']+)"#));
/// `--token VALUE`, and the same as two words of a list.
static OPTION: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"(?i)(--?[\w-]*NAME)((?:\\*["'])?[ \t]*,[ \t]*(?:\\*["'])|[ \t]+["']?)([^\s"'\\,\]-][^\s"'\\]*)"#));
/// `name: PASSWORD` with `value: …` in the next line, as a container's environment has it.
static ENVIRONMENT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r#"(?i)(name["']?[ \t]*[:=][ \t]*["']?[\w.-]*NAME["']?[ \t]*[,\n][ \t]*["']?value["']?[ \t]*[:=][ \t]*["']?)([^"'\n]+)"#)
});
/// Credentials in a header.
static BEARER: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)\b((?:bearer|basic)[ \t]+)([A-Za-z0-9._~+/=-]{8,})"));
/// A JSON Web Token; a token of OpenShift's OAuth server; one of `kubeadm join`.
static TOKEN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"eyJ[\w-]{6,}\.[\w-]{6,}(?:\.[\w-]*)?|sha256~[\w-]{16,}|\b[a-z0-9]{6}\.[a-z0-9]{16}\b"));
/// User and password in a URL, or a token in their place.
static URL: LazyLock<Regex> = LazyLock::new(|| pattern(r#"(://)(?:[^/\s"'@]*:[^/\s"']+|[^/\s"'@:]{16,})@"#));
/// What may be base64 of something that has a secret, perhaps in several lines.
static BASE64: LazyLock<Regex> = LazyLock::new(|| pattern(r"[A-Za-z0-9+/_-]{40,}(?:\r?\n[ \t]*[A-Za-z0-9+/_-]{20,})*={0,2}"));
static KEY_BEGINS: LazyLock<Regex> = LazyLock::new(|| pattern(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----"));
static KEY_ENDS: LazyLock<Regex> = LazyLock::new(|| pattern(r"-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----"));
static NAMED: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)NAME$"));
static FLAG: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)^--?[\w-]*NAME$"));

/// `text` without secrets. A JSON document, or a line that is one, is one afterwards, too.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    redact_to(text, DEPTH)
}

fn redact_to(text: &str, depth: usize) -> Cow<'_, str> {
    if let Some(document) = document(text) {
        let without = value(&document, depth);
        return if without == document { Cow::Borrowed(text) } else { Cow::Owned(format!("{without:#}\n")) };
    }
    // Keys first: they span lines.
    let text = keys(text);
    if !text.lines().any(|line| document(line).is_some()) {
        return Cow::Owned(plain(&text, depth));
    }
    let (mut out, mut words) = (String::with_capacity(text.len()), String::new());
    for line in text.split_inclusive('\n') {
        match document(line) {
            None => words.push_str(line),
            Some(document) => {
                out.push_str(&plain(&std::mem::take(&mut words), depth));
                let without = value(&document, depth);
                if without == document { out.push_str(line) } else { out.push_str(&format!("{without}\n")) }
            }
        }
    }
    Cow::Owned(out + &plain(&words, depth))
}

/// The JSON document that a text is.
fn document(text: &str) -> Option<Value> {
    let begins = text.trim_start().starts_with(['{', '[']);
    begins.then(|| serde_json::from_str(text).ok()).flatten()
}

/// A JSON value without secrets: what is a secret by its name, and what has one in its text.
fn value(of: &Value, depth: usize) -> Value {
    match of {
        Value::String(text) => Value::String(redact_to(text, depth).into_owned()),
        Value::Array(values) => {
            let after_flag = |at: usize| {
                let is_word = values[at].as_str().is_some_and(|word| !word.starts_with('-'));
                at > 0 && is_word && values[at - 1].as_str().is_some_and(|flag| FLAG.is_match(flag))
            };
            let one = |(at, one): (usize, &Value)| if after_flag(at) { hidden(one) } else { value(one, depth) };
            Value::Array(values.iter().enumerate().map(one).collect())
        }
        Value::Object(fields) => {
            let is_variable = fields.get("name").and_then(Value::as_str).is_some_and(|name| NAMED.is_match(name));
            let one = |(name, of): (&String, &Value)| {
                let secret = NAMED.is_match(name) || (is_variable && name == "value");
                (redact_to(name, depth).into_owned(), if secret { hidden(of) } else { value(of, depth) })
            };
            Value::Object(fields.iter().map(one).collect())
        }
        other => other.clone(),
    }
}

/// All that is a secret by its name; that there is none can be seen.
fn hidden(of: &Value) -> Value {
    match of {
        Value::Null | Value::Bool(_) => of.clone(),
        Value::String(text) if text.is_empty() => of.clone(),
        Value::Array(values) => Value::Array(values.iter().map(hidden).collect()),
        Value::Object(fields) => Value::Object(fields.iter().map(|(name, of)| (name.clone(), hidden(of))).collect()),
        _ => Value::String(REDACTED.to_owned()),
    }
}

/// Private keys. Of one whose end is missing, or whose beginning is, what is near goes.
fn keys(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    loop {
        let (begin, end) = (KEY_BEGINS.find(rest), KEY_ENDS.find(rest));
        let (from, to) = match (begin, end) {
            (Some(begin), end) if end.is_none_or(|end| begin.start() < end.start()) => {
                let whole = end.filter(|end| end.start() - begin.start() <= LONGEST_KEY);
                (begin.start(), whole.map_or_else(|| within(rest, begin.end() + LONGEST_KEY), |end| end.end()))
            }
            (_, Some(end)) => (within(rest, end.start().saturating_sub(LONGEST_KEY)), end.end()),
            _ => break,
        };
        out.push_str(&rest[..from]);
        out.push_str(REDACTED);
        rest = &rest[to..];
    }
    out + rest
}

/// The nearest boundary of a character, further on.
fn within(text: &str, at: usize) -> usize {
    (at..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}

fn plain(text: &str, depth: usize) -> String {
    let named = |found: &Captures<'_>| format!("{}{REDACTED}", &found[1]);
    let text = BLOCK.replace_all(text, |found: &Captures<'_>| format!("{}    {REDACTED}\n", &found[1]));
    let text = NEXT_LINE.replace_all(&text, named);
    let text = AUTHORIZATION.replace_all(&text, named);
    let quoted = |found: &Captures<'_>| {
        let between = [(2, 3, 4), (5, 6, 7), (8, 9, 10)].into_iter().find_map(|(open, within, close)| {
            let part = |index| found.get(index).map(|part| part.as_str());
            Some((part(open)?, part(within)?, part(close)?))
        });
        let (open, within, close) = between.unwrap_or_default();
        format!("{}{open}{}{close}", &found[1], if within.is_empty() { "" } else { REDACTED })
    };
    let text = QUOTED.replace_all(&text, quoted);
    // The rest of an escaped quote, the mark of a block, and a switch are no secrets.
    let is_secret = |text: &str| {
        let word = text.trim_matches(['\\', ',', ';', ')', ']', '}']);
        let is_mark = word.trim_matches(['-', '+']).trim_start_matches(['|', '>']).is_empty();
        !is_mark && !matches!(word, "true" | "false" | "null" | "nil" | "<nil>" | "none")
    };
    let text = PLAIN.replace_all(&text, |found: &Captures<'_>| if is_secret(&found[2]) { named(found) } else { found[0].to_owned() });
    let text = ENVIRONMENT.replace_all(&text, named);
    let text = OPTION.replace_all(&text, |found: &Captures<'_>| format!("{}{}{REDACTED}", &found[1], &found[2]));
    let text = BEARER.replace_all(&text, named);
    let text = TOKEN.replace_all(&text, REDACTED);
    let text = URL.replace_all(&text, |found: &Captures<'_>| format!("{}{REDACTED}@", &found[1]));
    if depth == 0 {
        return text.into_owned();
    }
    BASE64
        .replace_all(
            &text,
            |found: &Captures<'_>| if hides_a_secret(&found[0], depth - 1) { REDACTED.to_owned() } else { found[0].to_owned() },
        )
        .into_owned()
}

/// True for base64 of text with a secret in it: a kubeconfig, a key.
fn hides_a_secret(base64: &str, depth: usize) -> bool {
    let digits: String = base64.chars().filter(|c| !c.is_whitespace() && *c != '=').collect();
    // Its last digits may be missing.
    let lengths = [digits.len(), digits.len() / 4 * 4];
    let encodings: [&Encoding; 2] = [&BASE64_NOPAD, &BASE64URL_NOPAD];
    let decoded = lengths.into_iter().flat_map(|length| encodings.map(|encoding| encoding.decode(&digits.as_bytes()[..length]).ok()));
    let Some(bytes) = decoded.flatten().next() else { return false };
    std::str::from_utf8(&bytes).is_ok_and(|text| redact_to(text, depth) != text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::BASE64;

    fn key() -> String {
        format!("-----BEGIN EC PRIVATE KEY-----\n{}\n{}==\n-----END EC PRIVATE KEY-----", "MHcCAQEEIB".repeat(6), "AwEHoUQDQg".repeat(5))
    }

    /// Nothing of the secret is left, and what is around it is.
    #[track_caller]
    fn goes(text: &str, secret: &str, stays: &str) {
        let without = redact(text);
        assert!(!without.contains(secret), "{secret} is left: {without}");
        assert!(without.contains(REDACTED), "{without}");
        for word in stays.split_whitespace() {
            assert!(without.contains(word), "{word} is gone: {without}");
        }
        assert_eq!(redact(&without), without, "twice is not as once");
    }

    #[test]
    fn secrets_go_by_their_names() {
        let secret = "s3cr3t,V@lue!";
        for text in [
            format!("user=admin password={secret} host=h1"),
            format!("user: admin\npassword: {secret}\nhost: h1"),
            format!("user: admin\nbindPassword: '{secret} more'\nhost: h1"),
            format!("user admin DB_PASSWORD=\"{secret} more\" host h1"),
            format!(r#"{{"user":"admin","password":"{secret} \" more","host":"h1"}}"#),
            format!(r#"said "{{\"user\":\"admin\",\"token\":\"{secret} more\",\"x\":1}}" on host h1"#),
            format!(r#"env: [{{"name":"DB_PASSWORD","value":"{secret}"}}] for user admin on host h1"#),
            format!("env for admin:\n- name: API_TOKEN\n  value: {secret}\n- name: HOST\n  value: host h1"),
            format!(r#"{{"user":"admin","env":[{{"name":"DB_PASSWORD","value":"{secret}"}}],"host":"h1"}}"#),
            format!("admin ran join --token {secret} host h1"),
            format!("admin ran join --bearer-token={secret} host h1"),
            format!(r#"admin ran ["join","--token","{secret}","host","h1"]"#),
            format!(r#"{{"command":["join","--token","{secret}","host","h1"],"user":"admin"}}"#),
            format!("admin host h1\npassword: |\n  {secret}\n  more\n"),
            format!("admin: GET https://h1/?access_token={secret} host"),
            format!("client-key-data: {secret}\nuser: admin\nhost: h1"),
            format!("{{User:admin Password:{secret} Host:host h1}}"),
            format!("admin@host h1: auth: {secret}"),
            format!("admin host h1\n  .dockerconfigjson: {secret}\n"),
            format!("user: admin\npassword:\n  {secret}\nhost: h1"),
            format!("user: admin\ntokens:\n- token:\n    - {secret}\nhost: h1"),
            format!("(Login) {{User: (string) admin, Password: (string) (len=13) \"{secret}\", Host: (string) h1}}"),
            format!("admin on https://admin:{secret}@h1/ host"),
        ] {
            goes(&text, "s3cr3t", "admin host h1".split(' ').filter(|word| text.contains(word)).collect::<Vec<_>>().join(" ").as_str());
            assert!(!redact(&text).contains("V@lue"), "{}", redact(&text));
        }
    }

    #[test]
    fn secrets_go_by_their_form() {
        let jwt = "eyJhbGciOiJSUzI1NiIsImtpZCI6Ik.eyJpc3MiOiJrdWJlcm5ldGVzL3N.c2lnbmF0dXJl-_x";
        goes(&format!("the server says {jwt} is too old"), "c2lnbmF0dXJl", "server old");
        goes(&format!("Authorization: Bearer {jwt}"), "eyJ", "Authorization");
        goes("curl -H 'Authorization: Basic dXNlcjpwYXNzd29yZA==' https://h1/", "dXNlc", "curl h1");
        goes("got Bearer abcdefgh12345678, and failed", "abcdefgh", "got failed");
        goes("logged in with sha256~0123456789abcdefghijKLMN on h1", "0123456789", "logged h1");
        goes("kubeadm join h1:6443 abcdef.0123456789abcdef", "0123456789abcdef", "kubeadm h1:6443");
        goes("proxy http://user:hid@den/@proxy.example:3128 set", "hid@den", "set");
        goes("cloned https://ghp_0123456789abcdefABCDEF@h1/x.git", "0123456789", "cloned");
        goes("map[string][]uint8{\"password\":[]uint8{0x68, 0x69}} on h1", "0x68", "h1");
        goes("Token:[104 105 100] on h1", "105", "h1");
        goes("proxy http://user:hidden@proxy.example:3128 set", "hidden", "proxy.example:3128 set");
    }

    #[test]
    fn private_keys_go_whole_or_not_and_certificates_stay() {
        let (key, body) = (key(), "MHcCAQEEIB");
        goes(&format!("before\n{key}\nafter"), body, "before after");
        goes(&format!("before\n{key}\nbetween\n{key}\nafter"), body, "before between after");
        // Each line of it is a line of the journal, with its time.
        let logged: String =
            format!("before\n{key}\nafter").lines().map(|line| format!("2026-11-30T00:00:00Z h1 unit[1]: {line}\n")).collect();
        goes(&logged, body, "before after");
        goes(&format!("before {} after", key.replace('\n', "\\n")), body, "before after");
        goes(&format!(r#"{{"message":"before {} after","x":1}}"#, key.replace('\n', "\\n")), body, "before after \"x\"");
        // What is cut off.
        goes(&format!("before\n{}", &key[..90]), body, "before");
        goes(&format!("{}\nafter", &key[45..]), "AwEHoUQDQg", "after");
        let base64 = BASE64.encode(key.as_bytes());
        goes(&format!("before data: {base64} after"), &base64[..60], "before data: after");
        goes(&format!("before data: {} after", BASE64.encode(base64.as_bytes())), &BASE64.encode(base64.as_bytes())[..60], "before after");
        let lines: Vec<&str> = (0..base64.len()).step_by(76).map(|at| &base64[at..base64.len().min(at + 76)]).collect();
        goes(&format!("before\n  {}\nafter", lines.join("\n  ")), &lines[1][..40], "before after");
        let kubeconfig = BASE64.encode(format!("apiVersion: v1\nusers:\n- user:\n    token: {}\n", "abc".repeat(9)).as_bytes());
        goes(&format!("before {kubeconfig} after"), &kubeconfig[..40], "before after");

        let certificate = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", "MIIBszCCAVmgAwIBAgIU".repeat(3));
        for stays in [
            certificate.as_str(),
            "pod kube-apiserver-n in namespace openshift-kube-apiserver, image sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "MountVolume.SetUp failed for volume \"certs\" : secret \"etcd-serving\" not found",
            "open /etc/kubernetes/static-pod-certs/etcd-serving.key: no such file or directory --tls-private-key-file=/etc/x.key",
            "https://10.0.0.1:6443/api/v1/namespaces/x/secrets?limit=500: connection refused",
            r#"{"id": "b1", "etcd": {"revision": 12, "keys": 3}, "secrets": 0, "token": ""}"#,
        ] {
            assert_eq!(redact(stays), stays);
        }
    }

    /// Nothing of what the agent writes, and of what the usual programs print, is taken for a secret.
    #[test]
    fn what_is_no_secret_stays() {
        let (mut count, mut changed) = (0, Vec::new());
        for folder in ["formats", "rpm-ostree", "ostree", "crictl", "tools", "static-pods", "oc"] {
            for entry in walkdir::WalkDir::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures").to_owned() + "/" + folder) {
                let path = entry.unwrap().into_path();
                let Ok(text) = std::fs::read_to_string(&path) else { continue };
                let without = redact(&text);
                let differs = text.lines().zip(without.lines()).find(|(a, b)| a != b);
                // The marker of a restore of etcd, which is not collected, has what it calls a token.
                if without != text && !path.display().to_string().contains("/formats/made.1.") {
                    changed.push(format!("{}: {differs:?}", path.display()));
                }
                count += 1;
            }
        }
        assert!(changed.is_empty() && count > 50, "{count} {}", changed.join("\n"));
    }

    #[test]
    fn whatever_is_around_a_secret_it_goes() {
        let (key, header) = (key(), "LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQo=");
        let marks = [
            "password", "token", "secret", "auth", "name", "value", ":", "=", " ", "\n", "  ", "\"", "'", "\\\"", "\\n", "{", "}", "[",
            "]", ",", "|", ">",
        ];
        let words = [
            "-",
            "--",
            "Bearer ",
            "Authorization",
            "true",
            "\u{e9}",
            "://",
            "@",
            "(string)",
            "[]byte{0x1}",
            REDACTED,
            header,
            &key,
            &key[..60],
            &key[50..],
        ];
        let pieces = [&marks[..], &words].concat();
        let forms = [
            "password=S3CR3T",
            "\"token\": \"S3CR3T\"",
            "{\"a\":1,\"token\":\"S3CR3T\"}",
            "--token S3CR3T",
            "Authorization: Basic S3CR3TxS3CR3Tx",
            "x://u:S3CR3T@h",
            "password:\n  S3CR3T",
            "password: |\n  S3CR3T\n  S3CR3T",
            "- name: X_TOKEN\n  value: S3CR3T",
        ];
        // Numbers at random, the same ones each time (xorshift).
        let mut seed = 88_172_645_463_325_252_u64;
        let mut below = |most: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % most as u64).unwrap()
        };
        for _ in 0..5000 {
            let [before, after] = [(); 2].map(|()| (0..below(14)).map(|_| pieces[below(pieces.len())]).collect::<String>());
            let text = format!("{before}\n{}\n{after}", forms[below(forms.len())]);
            let without = redact(&text);
            assert!(!without.contains("S3CR3T") && !without.contains("MHcCAQEEIBMHcCAQEEIB"), "{text:?}\n{without:?}");
        }
    }

    #[test]
    fn json_stays_json_and_other_lines_stay_in_their_places() {
        let text = "first password=hidden\n{\"a\":1}\n{\"token\":\"hidden\",\"b\":2}\nlast\n";
        assert_eq!(redact(text), format!("first password={REDACTED}\n{{\"a\":1}}\n{{\"token\":\"{REDACTED}\",\"b\":2}}\nlast\n"));
        let nested = r#"{"labels":{"site-token":"hidden","site":"north"},"auth":{"user":"hidden"},"list":[1.50,{"password":7}]}"#;
        let without: Value = serde_json::from_str(&redact(nested)).unwrap();
        assert_eq!(
            without,
            serde_json::json!({"labels": {"site-token": REDACTED, "site": "north"}, "auth": {"user": REDACTED}, "list": [1.50, {"password": REDACTED}]})
        );
    }
}
