//! What a certificate says about itself, in words for an operator. Judges nothing.

use std::fmt;

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// The parts of a certificate that explain why it was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) subject: String,
    pub(super) issuer: String,
    /// `2024-01-31`, the first and the last day (UTC).
    pub(super) not_before: String,
    pub(super) not_after: String,
    /// `DNS:etcd`, `IP:10.8.0.101`.
    pub(super) names: Vec<String>,
    pub(super) is_ca: bool,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, issuer, not_before, not_after, .. } = self;
        write!(f, "subject {subject}, issuer {issuer}, valid from {not_before} to {not_after}")
    }
}

/// Reads a certificate; `None` when it is none.
pub(super) fn summary(der: &CertificateDer<'_>) -> Option<Summary> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    Some(Summary {
        subject: named(certificate.subject().to_string()),
        issuer: named(certificate.issuer().to_string()),
        not_before: day(certificate.validity().not_before),
        not_after: day(certificate.validity().not_after),
        names: names
            .map_or_else(Vec::new, |names| names.value.general_names.iter().map(general_name).collect()),
        is_ca: certificate.is_ca(),
    })
}

/// The subject, for messages that only have to say which certificate is meant.
pub(super) fn name(der: &CertificateDer<'_>) -> String {
    summary(der).map_or_else(|| "not X.509".to_owned(), |summary| format!("subject {}", summary.subject))
}

fn named(name: String) -> String {
    if name.is_empty() { "(empty)".to_owned() } else { name }
}

fn day(time: ASN1Time) -> String {
    let day = time.to_datetime();
    format!("{:04}-{:02}-{:02}", day.year(), u8::from(day.month()), day.day())
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => format!("DNS:{name}"),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => format!("IP:{}", std::net::Ipv4Addr::from(v4)),
            (_, Ok(v6)) => format!("IP:{}", std::net::Ipv6Addr::from(v6)),
            _ => "IP:(damaged)".to_owned(),
        },
        other => other.to_string(),
    }
}
