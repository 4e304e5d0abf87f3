//! Certificates for tests: an authority, what it signs, and kubeconfigs.

use anyhow::Result;
use rcgen::{BasicConstraints, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use crate::subject;

/// A certificate authority.
pub struct Authority {
    /// The certificate and its key.
    pub issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// A new one, self-signed.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = subject::params(name, None, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Signs a certificate for a server and a client: common name, organisation, names and addresses.
    pub fn issue(&self, name: &str, organisation: Option<&str>, alternative: &[&str]) -> Result<Pair> {
        let key = KeyPair::generate()?;
        let mut params = subject::params(name, organisation, alternative)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Pair { cert, key: key.serialize_pem() })
    }
}

/// A kubeconfig with everything in it; `cluster` is added to its cluster entry.
pub fn kubeconfig(server: &str, authority: &Authority, user: &Pair, cluster: &str) -> String {
    let data = |pem: &str| data_encoding::BASE64.encode(pem.as_bytes());
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\n{cluster}\
         users:\n- name: u\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
         contexts:\n- name: x\n  context:\n    cluster: c\n    user: u\ncurrent-context: x\n",
        data(&authority.pem()),
        data(&user.cert),
        data(&user.key)
    )
}
