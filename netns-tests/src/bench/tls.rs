//! The floor of a start over TLS: one connection of a client that does nothing else.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::certificates::CLIENT_FILES;
use crate::node::Node;

/// How long it takes from `node` until etcd has answered one small request over a new connection, both sides' certificates verified.
/// The files are read beforehand.
pub(super) fn time_first_answer(node: &Node, etcd: Ipv4Addr) -> Result<Duration> {
    let config = Arc::new(config(node)?);
    node.in_network(|| {
        let start = Instant::now();
        let tcp = TcpStream::connect((etcd, 2379)).context("connect to etcd")?;
        tcp.set_nodelay(true)?;
        let mut stream = StreamOwned::new(ClientConnection::new(config, etcd.into())?, tcp);
        stream
            .write_all(b"GET /version HTTP/1.1\r\nHost: etcd\r\n\r\n")
            .context("TLS handshake with etcd")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).context("etcd's answer")?;
        let took = start.elapsed();
        ensure!(answer == *b"HTTP/1.1 200", "etcd answers {:?}", String::from_utf8_lossy(&answer));
        Ok(took)
    })
}

fn config(node: &Node) -> Result<ClientConfig> {
    let [ca, certificate, key] = CLIENT_FILES.map(|file| node.read(file));
    let (ca, certificate, key) = (ca?, certificate?, key?);
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(authority?)?;
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain?, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?)
}
