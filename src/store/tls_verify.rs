//! Verifies servers as webpki does, and says in words why a certificate was refused.
//!
//! It never accepts what webpki refuses.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};

use super::certificate::{self, Summary};

/// A server certificate that was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server's certificate {certificate} {reason}")]
pub(super) struct Refusal {
    certificate: String,
    reason: String,
}

/// webpki with better words.
#[derive(Debug)]
pub(super) struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    ca: Option<PathBuf>,
}

impl Verifier {
    pub(super) fn new(inner: Arc<WebPkiServerVerifier>, ca: Option<PathBuf>) -> Self {
        Self { inner, ca }
    }

    fn explain(&self, error: Error, der: &CertificateDer<'_>, name: &ServerName<'_>) -> Error {
        let (Error::InvalidCertificate(reason), Some(summary)) = (&error, certificate::summary(der)) else {
            return error;
        };
        let trusted = match &self.ca {
            Some(path) => format!("the certificates in {} (etcd-cafile)", path.display()),
            None => "the certificates this system trusts (set etcd-cafile)".to_owned(),
        };
        let refusal = refusal(reason, &summary, &name.to_str(), &trusted);
        Error::Other(OtherError(Arc::new(refusal)))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(|error| self.explain(error, end_entity, server_name))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The words for one refusal. `host` is whom we meant to reach.
fn refusal(reason: &CertificateError, summary: &Summary, host: &str, trusted: &str) -> Refusal {
    let Summary { subject, issuer, not_before, not_after, .. } = summary;
    let certificate = format!("({summary})");
    let reason = match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("expired on {not_after}: renew it, or correct this node's clock")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("is not valid before {not_before}: is this node's clock right?")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            wrong_name(summary, host)
        }
        CertificateError::UnknownIssuer if subject == issuer => {
            format!("is self-signed and not among {trusted}")
        }
        CertificateError::UnknownIssuer => format!("is not signed by any of {trusted}"),
        CertificateError::BadSignature => {
            format!("has a signature that none of {trusted} made, though one has the issuer's name")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is not meant for servers: its extended key usage lacks serverAuth".to_owned()
        }
        CertificateError::Other(_) if summary.is_ca => {
            "is that of a certificate authority (CA:TRUE), which must not serve itself: issue a server certificate with it"
                .to_owned()
        }
        other => format!("is refused: {other}"),
    };
    Refusal { certificate, reason }
}

fn wrong_name(summary: &Summary, host: &str) -> String {
    let kind = if host.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
    if summary.names.is_empty() {
        return format!(
            "has no subject alternative name, and a common name alone is not accepted: issue it again with {kind}:{host}"
        );
    }
    format!(
        "is for {}, not for {kind}:{host}: use one of these names in etcd-endpoints, or issue it again",
        summary.names.join(", ")
    )
}
