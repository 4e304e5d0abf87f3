//! Certificate requests for tests.

#[path = "subject.rs"]
mod subject;

use anyhow::Result;
use rcgen::KeyPair;

/// A request for a certificate (PKCS#10), PEM.
pub(crate) fn request(name: &str, organisation: Option<&str>, alternative: &[&str]) -> Result<String> {
    Ok(subject::params(name, organisation, alternative)?.serialize_request(&KeyPair::generate()?)?.pem()?)
}
