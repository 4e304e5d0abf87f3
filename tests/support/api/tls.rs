//! TLS as kube-apiserver does it: a certificate for each name, client certificates asked for but not required.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::ApiConfig;

/// Who asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct User {
    /// The certificate's common name; `system:anonymous` without one.
    pub(crate) name: String,
    /// Its organisations.
    pub(crate) groups: Vec<String>,
}

/// The server's side of TLS, and what it makes of a client's certificate.
pub(super) struct Tls {
    pub(super) server: Arc<ServerConfig>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Tls {
    pub(super) fn load(config: &ApiConfig) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for ca in pem_certificates(&config.client_ca)? {
            roots.add(ca).with_context(|| format!("reading {}", config.client_ca.display()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).allow_unauthenticated().build()?;
        let mut certificates = Vec::new();
        for (cert, key) in &config.serving {
            let chain = pem_certificates(cert)?;
            let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("reading {}", key.display()))?;
            let names = names_of(&chain)?;
            certificates.push((names, Arc::new(CertifiedKey::from_der(chain, key, &provider)?)));
        }
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(Lenient(Arc::clone(&clients))))
            .with_cert_resolver(Arc::new(ByName(certificates)));
        Ok(Self { server: Arc::new(server), clients })
    }

    /// Who a client is; `None` when its certificate is not good (a real server then answers 401).
    pub(super) fn user(&self, certificates: &[CertificateDer<'_>]) -> Option<User> {
        let Some(certificate) = certificates.first() else {
            return Some(User { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()] });
        };
        self.clients.verify_client_cert(certificate, &certificates[1..], UnixTime::now()).ok()?;
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> = parsed.subject().iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        groups.push("system:authenticated".into());
        Some(User { name, groups })
    }
}

fn pem_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .with_context(|| format!("reading {}", path.display()))
}

fn names_of(chain: &[CertificateDer<'_>]) -> Result<Vec<String>> {
    let leaf = chain.first().context("no certificate")?;
    let (_, parsed) = X509Certificate::from_der(leaf)?;
    let names = parsed.subject_alternative_name()?.map(|names| names.value.general_names.clone()).unwrap_or_default();
    Ok(names.iter().filter_map(|name| if let GeneralName::DNSName(dns) = name { Some((*dns).to_owned()) } else { None }).collect())
}

#[derive(Debug)]
struct ByName(Vec<(Vec<String>, Arc<CertifiedKey>)>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().unwrap_or_default().to_owned();
        let fits = self.0.iter().find(|(names, _)| names.contains(&asked));
        fits.or(self.0.first()).map(|(_, key)| Arc::clone(key))
    }
}

/// Lets every certificate through the handshake: one that is not good is answered with 401, not with a TLS alert.
#[derive(Debug)]
struct Lenient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Lenient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
