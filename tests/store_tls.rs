//! TLS against a real etcd, with certificates made here: what works, and the words for what does not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod store_support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use flanneld::store::{Api, Candidates, Config, LeaseStore, StoreError, TlsFiles, Update};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use store_support::{PATIENCE, PREFIX, Server, Watching, attrs, etcd_on, subnet, v2, v3};
use tempfile::TempDir;

const RSA: &str = include_str!("store_support/rsa.pem");

/// A certificate authority.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key: String,
}

/// A certificate with its key.
struct Cert {
    pem: String,
    key: KeyPair,
}

fn named(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn ca(name: &str) -> Ca {
    let mut params = named(name, &["127.0.0.1"]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Ca { key: key.serialize_pem(), issuer: Issuer::new(params, key), pem }
}

impl Ca {
    fn sign(&self, params: &CertificateParams) -> Cert {
        self.sign_key(params, KeyPair::generate().unwrap())
    }

    fn sign_key(&self, params: &CertificateParams, key: KeyPair) -> Cert {
        Cert { pem: params.signed_by(&key, &self.issuer).unwrap().pem(), key }
    }

    fn server(&self) -> Cert {
        self.sign(&named("etcd", &["127.0.0.1", "localhost"]))
    }

    /// A certificate of ours that is no client's.
    fn server_only(&self) -> Cert {
        let mut params = named("flanneld", &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    fn client(&self, key: KeyPair) -> Cert {
        let mut params = named("flanneld", &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign_key(&params, key)
    }
}

/// A folder of PEM files.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Our certificate and key beside the authority that signed the server's.
    fn client(&self, ca: &Ca, client: &Cert) -> TlsFiles {
        TlsFiles {
            ca: Some(self.write("ca.pem", &ca.pem)),
            certificate: Some(self.write("client.pem", &client.pem)),
            key: Some(self.write("client-key.pem", &client.key.serialize_pem())),
        }
    }

    /// Words without the folder, which differs each time.
    fn words(&self, error: impl std::fmt::Display) -> String {
        error.to_string().replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// etcd with `cert`; clients have to show a certificate of `clients`, if given.
async fn server(files: &Files, cert: &str, key: &str, clients: Option<&Ca>) -> Server {
    let (cert, key) = (files.write("server.pem", cert), files.write("server-key.pem", key));
    let mut args = vec!["--enable-v2", "--cert-file", text(&cert), "--key-file", text(&key)];
    let trusted = clients.map(|ca| files.write("clients.pem", &ca.pem));
    if let Some(trusted) = &trusted {
        args.extend(["--client-cert-auth", "--trusted-ca-file", text(trusted)]);
    }
    etcd_on("https", &args).await
}

fn with(server: &Server, tls: TlsFiles) -> Config {
    Config { tls, ..server.config() }
}

fn only_ca(path: &Path) -> TlsFiles {
    TlsFiles { ca: Some(path.to_owned()), ..TlsFiles::default() }
}

/// Lists over both APIs; they have to agree on what is wrong.
async fn list(config: &Config) -> Result<(), StoreError> {
    let (three, two) = (v3(config).list().await, v2(config).list().await);
    assert_eq!(three.as_ref().err(), two.as_ref().err());
    three.map(|_| ())
}

/// The reason in words, without the endpoint.
async fn refusal(files: &Files, server: &Server, tls: TlsFiles) -> String {
    let error = list(&with(server, tls)).await.unwrap_err();
    let start = format!("no etcd endpoint answers: {}: ", server.url);
    files.words(&error).strip_prefix(&start).unwrap_or_else(|| panic!("{error}")).to_owned()
}

#[tokio::test]
async fn a_ca_alone_is_enough_for_ip_and_dns_names() {
    let (files, ca) = (Files::new(), ca("ca"));
    let cert = ca.server();
    let server = server(&files, &cert.pem, &cert.key.serialize_pem(), None).await;
    let mut config = with(&server, only_ca(&files.write("ca.pem", &ca.pem)));
    list(&config).await.unwrap();
    config.endpoints = vec![server.url.replace("127.0.0.1", "localhost")];
    list(&config).await.unwrap();
    // Without a scheme the files say that TLS is meant.
    config.endpoints = vec![server.address().to_owned()];
    list(&config).await.unwrap();
    let (three, two) = (v3(&config), v2(&config));
    let mut watching = Watching::from(&three, three.list().await.unwrap().next);
    creates_and_sees(&three, &mut watching).await;
    let mut watching = Watching::from(&two, two.list().await.unwrap().next);
    creates_and_sees(&two, &mut watching).await;
}

#[tokio::test]
async fn a_ca_file_may_hold_several_certificates() {
    let (files, other, ca) = (Files::new(), ca("other"), ca("ca"));
    let cert = ca.server();
    let server = server(&files, &cert.pem, &cert.key.serialize_pem(), None).await;
    let bundle = format!("# two of them\n{}\n{}", other.pem, ca.pem);
    list(&with(&server, only_ca(&files.write("ca.pem", &bundle)))).await.unwrap();
}

/// PEM of the key that is wrapped in a PKCS#8 key.
fn unwrapped(key: &KeyPair, label: &str) -> String {
    let der = key.serialize_der();
    // The wrapped key is the octet string at the end: a tag 4, a length of one or three bytes, and a sequence.
    let start = (0..der.len()).find(|&at| {
        let rest = &der[at..];
        rest[0] == 4
            && rest.len() > 5
            && ((rest[1] < 0x80 && usize::from(rest[1]) + 2 == rest.len() && rest[2] == 0x30)
                || (rest[1] == 0x82 && rest[4] == 0x30))
    });
    let at = start.unwrap();
    let body = if der[at + 1] < 0x80 { &der[at + 2..] } else { &der[at + 4..] };
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, body);
    let lines: Vec<String> =
        base64.as_bytes().chunks(64).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[tokio::test]
async fn client_keys_may_be_ec_or_rsa_in_every_wrapping() {
    let (files, ca) = (Files::new(), ca("ca"));
    let cert = ca.server();
    let server = server(&files, &cert.pem, &cert.key.serialize_pem(), Some(&ca)).await;
    let ec = || KeyPair::generate().unwrap();
    let rsa = || KeyPair::from_pkcs8_pem_and_sign_algo(RSA, &rcgen::PKCS_RSA_SHA256).unwrap();
    let sec1 = |key: &KeyPair| {
        // As `openssl ecparam -genkey` writes it.
        let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        format!("{parameters}{}", unwrapped(key, "EC PRIVATE KEY"))
    };
    let (ec_pkcs8, ec_sec1, rsa_pkcs8, rsa_pkcs1) = (ec(), ec(), rsa(), rsa());
    let pems = [ec_pkcs8.serialize_pem(), sec1(&ec_sec1), rsa_pkcs8.serialize_pem()];
    let [ec_pkcs8_pem, sec1_pem, rsa_pkcs8_pem] = pems;
    let pkcs1_pem = unwrapped(&rsa_pkcs1, "RSA PRIVATE KEY");
    for (kind, key, pem) in [
        ("EC in PKCS#8", ec_pkcs8, ec_pkcs8_pem),
        ("EC in SEC1", ec_sec1, sec1_pem),
        ("RSA in PKCS#8", rsa_pkcs8, rsa_pkcs8_pem),
        ("RSA in PKCS#1", rsa_pkcs1, pkcs1_pem),
    ] {
        let client = ca.client(key);
        let tls = TlsFiles {
            ca: Some(files.write("ca.pem", &ca.pem)),
            certificate: Some(files.write("client.pem", &client.pem)),
            key: Some(files.write("client-key.pem", &pem)),
        };
        list(&with(&server, tls)).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
}

#[tokio::test]
async fn an_rsa_server_certificate_is_verified() {
    let (files, ca) = (Files::new(), ca("ca"));
    let key = KeyPair::from_pkcs8_pem_and_sign_algo(RSA, &rcgen::PKCS_RSA_SHA256).unwrap();
    let cert = ca.sign_key(&named("etcd", &["127.0.0.1"]), key);
    let server = server(&files, &cert.pem, &cert.key.serialize_pem(), None).await;
    list(&with(&server, only_ca(&files.write("ca.pem", &ca.pem)))).await.unwrap();
}

/// The system's certificates come from a file that a variable names; a variable needs a process of its own.
#[tokio::test]
async fn without_a_ca_the_systems_certificates_are_used() {
    const URL: &str = "STORE_TLS_URL";
    const NAME: &str = "without_a_ca_the_systems_certificates_are_used";
    if let Ok(url) = std::env::var(URL) {
        let config = Config { endpoints: vec![url], prefix: PREFIX.to_owned(), ..Config::default() };
        list(&config).await.unwrap();
        return;
    }
    let (files, ca) = (Files::new(), ca("ca"));
    let cert = ca.server();
    let server = server(&files, &cert.pem, &cert.key.serialize_pem(), None).await;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", NAME]).env(URL, &server.url);
    let output = command.env("SSL_CERT_FILE", files.write("system.pem", &ca.pem)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(
        refusal(&files, &server, TlsFiles::default()).await,
        "TLS: the server's certificate (subject CN=etcd, issuer CN=ca, valid from 1975-01-01 to 4096-01-01) is not signed by \
         any of the certificates this system trusts (set etcd-cafile)"
    );
}

#[tokio::test]
async fn a_renewed_client_certificate_is_used_by_the_next_connection() {
    let (files, ca, other) = (Files::new(), ca("ca"), ca("other"));
    let cert = ca.server();
    let server = server(&files, &cert.pem, &cert.key.serialize_pem(), Some(&ca)).await;
    let mut expired = named("flanneld", &[]);
    expired.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (expired.not_before, expired.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 2, 2));
    let refused = [
        (other.client(KeyPair::generate().unwrap()), "issuer CN=other, valid from 1975-01-01 to 4096-01-01"),
        (ca.sign(&expired), "issuer CN=ca, valid from 2001-01-01 to 2002-02-02"),
        (ca.server_only(), "issuer CN=ca, valid from 1975-01-01 to 4096-01-01"),
    ];
    let config = with(&server, files.client(&ca, &ca.client(KeyPair::generate().unwrap())));
    let (three, two) = (v3(&config), v2(&config));
    for (client, words) in refused {
        files.client(&ca, &client);
        let expected = format!(
            "no etcd endpoint answers: {}: TLS: the server refuses our certificate (BadCertificate) in client.pem \
             (etcd-certfile; subject CN=flanneld, {words}): it has to be valid, for client authentication and signed by a CA \
             the server trusts",
            server.url
        );
        assert_eq!(files.words(three.list().await.unwrap_err()), expected);
        assert_eq!(files.words(two.list().await.unwrap_err()), expected);
    }
    files.client(&ca, &ca.client(KeyPair::generate().unwrap()));
    three.list().await.unwrap();
    two.list().await.unwrap();
}

/// Everything signed anew by another authority: what is on disk counts, for the watch as well.
#[tokio::test]
async fn a_whole_new_set_of_certificates_needs_no_restart() {
    let (files, old, new) = (Files::new(), ca("old"), ca("new"));
    let cert = old.server();
    let mut server = server(&files, &cert.pem, &cert.key.serialize_pem(), Some(&old)).await;
    let config = with(&server, files.client(&old, &old.client(KeyPair::generate().unwrap())));
    let (three, two) = (v3(&config), v2(&config));
    let mut watching3 = Watching::from(&three, three.list().await.unwrap().next);
    let mut watching2 = Watching::from(&two, two.list().await.unwrap().next);
    server.kill();
    let cert = new.server();
    files.write("server.pem", &cert.pem);
    files.write("server-key.pem", &cert.key.serialize_pem());
    files.write("clients.pem", &new.pem);
    server.restart(false).await;
    let expected = format!(
        "no etcd endpoint answers: {}: TLS: the server's certificate (subject CN=etcd, issuer CN=new, valid from 1975-01-01 to \
         4096-01-01) is not signed by any of the certificates in ca.pem (etcd-cafile)",
        server.url
    );
    assert_eq!(files.words(three.list().await.unwrap_err()), expected);
    assert_eq!(files.words(two.list().await.unwrap_err()), expected);
    files.client(&new, &new.client(KeyPair::generate().unwrap()));
    creates_and_sees(&three, &mut watching3).await;
    creates_and_sees(&two, &mut watching2).await;
}

async fn creates_and_sees<S: LeaseStore>(store: &S, watching: &mut Watching) {
    store_support::held(store.create(subnet(1), &attrs(1), PATIENCE).await.unwrap());
    while !matches!(watching.next().await, Update::Events(_)) {}
}

#[tokio::test]
async fn each_endpoint_has_a_scheme_of_its_own() {
    let (files, ca) = (Files::new(), ca("ca"));
    let cert = ca.server();
    let mut encrypted = server(&files, &cert.pem, &cert.key.serialize_pem(), None).await;
    let mut plain = store_support::etcd(&["--enable-v2"]).await;
    let mut config = with(&encrypted, only_ca(&files.write("ca.pem", &ca.pem)));
    config.endpoints.push(plain.url.clone());
    plain.kill();
    list(&config).await.unwrap();
    plain.restart(false).await;
    encrypted.kill();
    list(&config).await.unwrap();
}

#[tokio::test]
async fn a_missing_client_certificate_is_asked_for() {
    let (files, ca) = (Files::new(), ca("ca"));
    let cert = ca.server();
    let server = server(&files, &cert.pem, &cert.key.serialize_pem(), Some(&ca)).await;
    assert_eq!(
        refusal(&files, &server, only_ca(&files.write("ca.pem", &ca.pem))).await,
        "TLS: the server asks for a client certificate (BadCertificate): set etcd-certfile and etcd-keyfile"
    );
}

#[tokio::test]
async fn refused_server_certificates_are_explained() {
    let (ca, other) = (ca("ca"), ca("other"));
    let mut expired = named("etcd", &["127.0.0.1"]);
    (expired.not_before, expired.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 2, 2));
    let mut future = named("etcd", &["127.0.0.1"]);
    (future.not_before, future.not_after) = (date_time_ymd(2901, 1, 1), date_time_ymd(2902, 2, 2));
    let mut client = named("etcd", &["127.0.0.1"]);
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let self_signed = named("etcd", &["127.0.0.1"]);
    let own_key = KeyPair::generate().unwrap();
    let self_signed = Cert { pem: self_signed.self_signed(&own_key).unwrap().pem(), key: own_key };
    let as_server = Cert { pem: ca.pem.clone(), key: KeyPair::from_pem(&ca.key).unwrap() };
    for (cert, words) in [
        (
            ca.sign(&expired),
            "(subject CN=etcd, issuer CN=ca, valid from 2001-01-01 to 2002-02-02) expired on 2002-02-02: renew it, or \
             correct this node's clock",
        ),
        (
            ca.sign(&future),
            "(subject CN=etcd, issuer CN=ca, valid from 2901-01-01 to 2902-02-02) is not valid before 2901-01-01: is this \
             node's clock right?",
        ),
        (
            other.server(),
            "(subject CN=etcd, issuer CN=other, valid from 1975-01-01 to 4096-01-01) is not signed by any of the \
             certificates in ca.pem (etcd-cafile)",
        ),
        (
            self_signed,
            "(subject CN=etcd, issuer CN=etcd, valid from 1975-01-01 to 4096-01-01) is self-signed and not among the \
             certificates in ca.pem (etcd-cafile)",
        ),
        (
            ca.sign(&named("etcd", &["etcd.example", "10.0.0.9"])),
            "(subject CN=etcd, issuer CN=ca, valid from 1975-01-01 to 4096-01-01) is for DNS:etcd.example, IP:10.0.0.9, not \
             for IP:127.0.0.1: use one of these names in etcd-endpoints, or issue it again",
        ),
        (
            ca.sign(&named("127.0.0.1", &[])),
            "(subject CN=127.0.0.1, issuer CN=ca, valid from 1975-01-01 to 4096-01-01) has no subject alternative name, and \
             a common name alone is not accepted: issue it again with IP:127.0.0.1",
        ),
        (
            as_server,
            "(subject CN=ca, issuer CN=ca, valid from 1975-01-01 to 4096-01-01) is that of a certificate authority \
             (CA:TRUE), which must not serve itself: issue a server certificate with it",
        ),
        (
            ca.sign(&client),
            "(subject CN=etcd, issuer CN=ca, valid from 1975-01-01 to 4096-01-01) is not meant for servers: its extended key \
             usage lacks serverAuth",
        ),
    ] {
        let files = Files::new();
        let server = server(&files, &cert.pem, &cert.key.serialize_pem(), None).await;
        let tls = only_ca(&files.write("ca.pem", &ca.pem));
        assert_eq!(refusal(&files, &server, tls).await, format!("TLS: the server's certificate {words}"));
    }
}

#[tokio::test]
async fn tls_to_a_plain_port_and_plain_http_to_a_tls_port_are_told_apart() {
    let (files, ca) = (Files::new(), ca("ca"));
    let tls = only_ca(&files.write("ca.pem", &ca.pem));
    let plain = store_support::etcd(&["--enable-v2"]).await;
    let config = Config { endpoints: vec![plain.url.replace("http:", "https:")], tls, ..plain.config() };
    let error = list(&config).await.unwrap_err().to_string();
    assert!(error.ends_with("TLS: the server broke off the handshake (is this port plain HTTP?)"), "{error}");
    let cert = ca.server();
    let encrypted = server(&files, &cert.pem, &cert.key.serialize_pem(), None).await;
    let config = Config { endpoints: vec![encrypted.url.replace("https:", "http:")], ..encrypted.config() };
    for error in
        [v2(&config).list().await.unwrap_err().to_string(), v3(&config).list().await.unwrap_err().to_string()]
    {
        assert!(error.ends_with(" (is this port TLS? then use https://)"), "{error}");
    }
}

fn unusable(tls: TlsFiles, files: &Files) -> String {
    let config = Config { endpoints: vec!["https://127.0.0.1:1".to_owned()], tls, ..Config::default() };
    match Candidates::new(&config, Api::Auto) {
        Err(error @ StoreError::Config(_)) => files.words(error),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("the files are good"),
    }
}

#[test]
fn unusable_files_are_named() {
    let (files, ca) = (Files::new(), ca("ca"));
    let client = ca.client(KeyPair::generate().unwrap());
    let good_ca = files.write("ca.pem", &ca.pem);
    let cert = files.write("client.pem", &client.pem);
    let key = files.write("client-key.pem", &client.key.serialize_pem());
    let other_key = files.write("other-key.pem", &KeyPair::generate().unwrap().serialize_pem());
    let empty = files.write("empty.pem", "");
    let damaged = files.write("damaged.pem", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n");
    let no_x509 =
        files.write("no-x509.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let locked = files.write("locked.pem", locked);
    let secret = "hunter2SECRETkey";
    let pem = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
    let no_base64 = files.write("no-base64.pem", &pem("PRIVATE KEY", &format!("!{secret}!")));
    let no_key = files.write("no-key.pem", &pem("PRIVATE KEY", secret));
    let cut_off = files.write("cut-off.pem", &format!("-----BEGIN PRIVATE KEY-----\n{secret}\n"));
    let missing = files.0.path().join("missing.pem");
    let folder = files.0.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let only = |ca: &Path| only_ca(ca);
    let pair = |certificate: Option<&PathBuf>, key: Option<&PathBuf>| TlsFiles {
        ca: Some(good_ca.clone()),
        certificate: certificate.cloned(),
        key: key.cloned(),
    };
    for (tls, words) in [
        (only(&missing), "cannot read missing.pem (etcd-cafile): there is no such file"),
        (only(&folder), "cannot read folder (etcd-cafile): is a directory"),
        (
            only(&empty),
            "empty.pem (etcd-cafile) holds no PEM certificate (expected -----BEGIN CERTIFICATE-----)",
        ),
        (only(&damaged), "damaged.pem (etcd-cafile) holds a damaged certificate: its PEM is not base64"),
        (only(&no_x509), "no-x509.pem (etcd-cafile) holds a damaged certificate: it is not X.509"),
        (
            pair(Some(&cert), None),
            "client.pem is given (etcd-certfile) but etcd-keyfile is not: a client certificate and its key only work together",
        ),
        (
            pair(None, Some(&key)),
            "client-key.pem is given (etcd-keyfile) but etcd-certfile is not: a client certificate and its key only work \
             together",
        ),
        (
            pair(Some(&cert), Some(&other_key)),
            "the key in other-key.pem (etcd-keyfile) does not belong to the certificate in client.pem (etcd-certfile; \
             subject CN=flanneld)",
        ),
        (
            pair(Some(&cert), Some(&cert)),
            "client.pem (etcd-keyfile) holds no private key (expected PEM of PKCS#8, PKCS#1 or SEC1); it holds a \
             certificate: are certificate and key swapped?",
        ),
        (
            pair(Some(&cert), Some(&locked)),
            "locked.pem (etcd-keyfile) holds no private key (expected PEM of PKCS#8, PKCS#1 or SEC1); it is encrypted: \
             decrypt it with `openssl pkey`",
        ),
        (
            pair(Some(&no_x509), Some(&key)),
            "no-x509.pem (etcd-certfile) holds a damaged certificate: it is not X.509",
        ),
        (pair(Some(&cert), Some(&missing)), "cannot read missing.pem (etcd-keyfile): there is no such file"),
        (pair(Some(&missing), Some(&key)), "cannot read missing.pem (etcd-certfile): there is no such file"),
        // No part of a key is ever shown.
        (
            pair(Some(&cert), Some(&no_base64)),
            "the key in no-base64.pem (etcd-keyfile) cannot be used: its PEM is not base64",
        ),
        (
            pair(Some(&cert), Some(&no_key)),
            "the key in no-key.pem (etcd-keyfile) cannot be used: it is no RSA, EC or Ed25519 key",
        ),
        (
            pair(Some(&cert), Some(&cut_off)),
            "the key in cut-off.pem (etcd-keyfile) cannot be used: its PEM has no end (-----END …-----): is the file cut off?",
        ),
    ] {
        assert_eq!(unusable(tls, &files), words);
    }
}

/// As somebody who may read nothing: root may read everything.
#[test]
fn a_file_without_permission_is_named() {
    let (files, ca) = (Files::new(), ca("ca"));
    let path = files.write("ca.pem", &ca.pem);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    let (thread, files) = (only_ca(&path), &files);
    let words = std::thread::scope(|scope| {
        let unprivileged = scope.spawn(|| {
            // Of this thread only.
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
            unusable(thread, files)
        });
        unprivileged.join().unwrap()
    });
    assert_eq!(words, "cannot read ca.pem (etcd-cafile): permission denied");
}
