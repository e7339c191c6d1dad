//! The certificates of a lab whose etcd wants TLS: an authority of its own, and what it signs for etcd and for the daemons.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};

use crate::node::Node;

/// Where etcd finds the authority, its certificate and its key.
pub const SERVER_FILES: [&str; 3] = ["/etc/etcd/ca.pem", "/etc/etcd/server.pem", "/etc/etcd/server-key.pem"];
/// Where a daemon finds the authority, its certificate and its key: where the role puts them.
pub const CLIENT_FILES: [&str; 3] = [
    "/var/lib/kubernetes/ca-etcd.pem",
    "/var/lib/kubernetes/cert-etcd.pem",
    "/var/lib/kubernetes/cert-etcd-key.pem",
];

/// Signs the certificates of one lab.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new one, which nobody else trusts.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> Result<Self> {
        let mut params = named("etcd-ca", &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Gives a node of etcd what it needs to be reached under its address and from its own node ([`SERVER_FILES`]).
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn equip_server(&self, node: &Node, address: Ipv4Addr) -> Result<()> {
        let mut params = named("etcd", &[address, Ipv4Addr::LOCALHOST])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(node, SERVER_FILES, &params)
    }

    /// Gives a node what a daemon needs to reach etcd ([`CLIENT_FILES`]).
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn equip_client(&self, node: &Node) -> Result<()> {
        self.sign(node, CLIENT_FILES, &client()?)
    }

    /// The same with a certificate that expires at `end`, to the second.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn equip_client_until(&self, node: &Node, end: SystemTime) -> Result<()> {
        let seconds = end.duration_since(UNIX_EPOCH).context("a time before 1970")?.as_secs();
        let mut params = client()?;
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        self.sign(node, CLIENT_FILES, &params)
    }

    fn sign(&self, node: &Node, files: [&str; 3], params: &CertificateParams) -> Result<()> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        let [ca_file, certificate_file, key_file] = files;
        node.write(ca_file, &self.0.pem())?;
        node.write(certificate_file, &certificate.pem())?;
        node.write(key_file, &key.serialize_pem())
    }
}

fn client() -> Result<CertificateParams> {
    let mut params = named("k8s-etcd", &[])?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn named(name: &str, addresses: &[Ipv4Addr]) -> Result<CertificateParams> {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(addresses)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
