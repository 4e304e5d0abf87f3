//! Certificate requests for tests.

use anyhow::Result;
use rcgen::KeyPair;

use crate::subject;

/// A request for a certificate (PKCS#10), PEM.
pub fn request(name: &str, organisation: Option<&str>, alternative: &[&str]) -> Result<String> {
    Ok(subject::params(name, organisation, alternative)?.serialize_request(&KeyPair::generate()?)?.pem()?)
}
