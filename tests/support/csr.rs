//! Certificate requests for tests, and what a request and a certificate have in common.

use anyhow::Result;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

/// A request for a certificate (PKCS#10), PEM.
pub(crate) fn request(name: &str, organisation: Option<&str>, alternative: &[&str]) -> Result<String> {
    Ok(params(name, organisation, alternative)?.serialize_request(&KeyPair::generate()?)?.pem()?)
}

/// What is asked for, and signed: common name, organisation, names and addresses.
pub(crate) fn params(name: &str, organisation: Option<&str>, alternative: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(alternative.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
