//! What a certificate and a request for one have in common.

use anyhow::Result;
use rcgen::{CertificateParams, DistinguishedName, DnType};

/// Common name, organisation, names and addresses.
pub fn params(name: &str, organisation: Option<&str>, alternative: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(alternative.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
