//! From certificate files to a TLS client, with errors that name the file and the cure.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error as RustlsError, RootCertStore};

use super::config::{Config, TlsFiles};
use super::tls_verify::{Refusal, Verifier};
use super::{StoreError, certificate};

/// Why the configured files cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TlsError {
    #[error("cannot read {path} ({option}): {reason}")]
    Unreadable { path: PathBuf, option: &'static str, reason: String },
    #[error(
        "{path} is given ({given}) but {missing} is not: a client certificate and its key only work together"
    )]
    Half { path: PathBuf, given: &'static str, missing: &'static str },
    #[error("{path} ({option}) holds no PEM certificate (expected -----BEGIN CERTIFICATE-----)")]
    NoCertificate { path: PathBuf, option: &'static str },
    #[error("{path} ({option}) holds a damaged certificate: {reason}")]
    BadCertificate { path: PathBuf, option: &'static str, reason: String },
    #[error("{path} ({KEY}) holds no private key (expected PEM of PKCS#8, PKCS#1 or SEC1){hint}")]
    NoKey { path: PathBuf, hint: &'static str },
    #[error("the key in {path} ({KEY}) cannot be used: {reason}")]
    BadKey { path: PathBuf, reason: String },
    #[error(
        "the key in {key} ({KEY}) does not belong to the certificate in {certificate} ({CERTIFICATE}; {subject})"
    )]
    Mismatch { key: PathBuf, certificate: PathBuf, subject: String },
    #[error("the system trusts no certificate authority: install ca-certificates or set {CA}")]
    NoRoots,
    #[error("TLS cannot be set up: {0}")]
    Library(String),
}

const CA: &str = "etcd-cafile";
const CERTIFICATE: &str = "etcd-certfile";
const KEY: &str = "etcd-keyfile";

/// Reads the files and makes a client of them that speaks `protocol`.
pub(super) fn client_config(files: &TlsFiles, protocol: &str) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier::new(webpki(roots(files)?, &provider)?, files.ca.clone());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Library(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match pair(files)? {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let subject = pair.chain.first().map_or_else(String::new, |own| certificate::name(own));
            builder
                .with_client_auth_cert(pair.chain, pair.key)
                .map_err(|error| unusable(&error, pair.certificate_path, pair.key_path, subject))?
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Ok(config)
}

fn webpki(
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|_| TlsError::NoRoots)
}

fn bad_certificate(path: &Path, option: &'static str, error: &RustlsError) -> TlsError {
    let reason = match error {
        RustlsError::InvalidCertificate(CertificateError::BadEncoding) => "it is not X.509".to_owned(),
        other => other.to_string(),
    };
    TlsError::BadCertificate { path: path.to_owned(), option, reason }
}

/// The certificates that may sign a server's.
fn roots(files: &TlsFiles) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    match &files.ca {
        Some(path) => {
            for certificate in certificates(path, CA)? {
                roots.add(certificate).map_err(|error| bad_certificate(path, CA, &error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() { Err(TlsError::NoRoots) } else { Ok(roots) }
}

/// Our certificate and its key.
struct Pair<'a> {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    certificate_path: &'a Path,
    key_path: &'a Path,
}

fn pair(files: &TlsFiles) -> Result<Option<Pair<'_>>, TlsError> {
    let half = |path: &Path, given, missing| TlsError::Half { path: path.to_owned(), given, missing };
    match (files.certificate.as_deref(), files.key.as_deref()) {
        (None, None) => Ok(None),
        (Some(path), None) => Err(half(path, CERTIFICATE, KEY)),
        (None, Some(path)) => Err(half(path, KEY, CERTIFICATE)),
        (Some(certificate_path), Some(key_path)) => Ok(Some(Pair {
            chain: certificates(certificate_path, CERTIFICATE)?,
            key: private_key(key_path)?,
            certificate_path,
            key_path,
        })),
    }
}

fn certificates(path: &Path, option: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path, option)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| TlsError::BadCertificate {
        path: path.to_owned(),
        option,
        reason: pem_in_words(&error),
    })?;
    if found.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned(), option });
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read(path, KEY)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        PemError::NoItemsFound => TlsError::NoKey { path: path.to_owned(), hint: key_hint(&text) },
        error => TlsError::BadKey { path: path.to_owned(), reason: pem_in_words(&error) },
    })
}

fn pem_in_words(error: &PemError) -> String {
    match error {
        PemError::Base64Decode(_) => "its PEM is not base64".to_owned(),
        PemError::MissingSectionEnd { .. } => {
            "its PEM has no end (-----END …-----): is the file cut off?".to_owned()
        }
        other => other.to_string(),
    }
}

fn key_hint(text: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(text);
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        "; it is encrypted: decrypt it with `openssl pkey`"
    } else if text.contains("BEGIN CERTIFICATE") {
        "; it holds a certificate: are certificate and key swapped?"
    } else {
        ""
    }
}

fn read(path: &Path, option: &'static str) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| {
        let reason = match error.kind() {
            io::ErrorKind::NotFound => "there is no such file".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            io::ErrorKind::IsADirectory => "is a directory".to_owned(),
            _ => error.to_string(),
        };
        TlsError::Unreadable { path: path.to_owned(), option, reason }
    })
}

fn unusable(error: &RustlsError, certificate: &Path, key: &Path, subject: String) -> TlsError {
    match error {
        RustlsError::InconsistentKeys(_) => {
            TlsError::Mismatch { key: key.to_owned(), certificate: certificate.to_owned(), subject }
        }
        RustlsError::InvalidCertificate(_) => bad_certificate(certificate, CERTIFICATE, error),
        RustlsError::General(_) => {
            TlsError::BadKey { path: key.to_owned(), reason: "it is no RSA, EC or Ed25519 key".to_owned() }
        }
        other => TlsError::BadKey { path: key.to_owned(), reason: other.to_string() },
    }
}

/// What an I/O error of a TLS stream means.
pub(super) fn in_words(error: &io::Error) -> String {
    let Some(inner) = error.get_ref() else { return error.to_string() };
    match inner.downcast_ref::<RustlsError>() {
        Some(RustlsError::Other(other)) => match other.0.downcast_ref::<Refusal>() {
            Some(refusal) => refusal.to_string(),
            None => other.to_string(),
        },
        Some(RustlsError::InvalidMessage(_)) => {
            "the server does not speak TLS (is this port plain HTTP?)".to_owned()
        }
        Some(other) => other.to_string(),
        None => inner.to_string(),
    }
}

/// What the server said, if it broke off the connection with an alert.
pub(super) fn alert(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<RustlsError>()? {
        RustlsError::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// What an alert of the server means to somebody who connects with `files`.
pub(super) fn alert_in_words(alert: AlertDescription, files: &TlsFiles) -> String {
    match alert {
        AlertDescription::CertificateRequired
        | AlertDescription::BadCertificate
        | AlertDescription::UnknownCA
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => match &files.certificate {
            None => {
                format!("the server asks for a client certificate ({alert:?}): set {CERTIFICATE} and {KEY}")
            }
            Some(path) => format!(
                "the server refuses our certificate ({alert:?}) in {} ({CERTIFICATE}; {}): it has to be valid, for client \
                 authentication and signed by a CA the server trusts",
                path.display(),
                own_certificate(path)
            ),
        },
        other => format!("the server broke off the handshake ({other:?})"),
    }
}

/// What our certificate says about itself, as the file is now.
fn own_certificate(path: &Path) -> String {
    match certificates(path, CERTIFICATE) {
        Ok(chain) => {
            chain.first().and_then(certificate::summary).map_or_else(String::new, |own| own.to_string())
        }
        Err(error) => error.to_string(),
    }
}

/// Reads the files once to find what is wrong with them before anything depends on it. Plain HTTP needs none.
pub(super) fn check(config: &Config) -> Result<(), StoreError> {
    let encrypted = config.urls()?.iter().any(|url| url.scheme_str() == Some("https"));
    if encrypted {
        client_config(&config.tls, "h2").map_err(|error| StoreError::Config(error.to_string()))?;
    }
    Ok(())
}
