//! Certificate requests for tests. Included beside `subject.rs`.

use anyhow::Result;
use rcgen::KeyPair;

use super::subject;

/// A request for a certificate (PKCS#10), PEM.
pub(crate) fn request(name: &str, organisation: Option<&str>, alternative: &[&str]) -> Result<String> {
    Ok(subject::params(name, organisation, alternative)?.serialize_request(&KeyPair::generate()?)?.pem()?)
}
