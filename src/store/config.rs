//! How to reach the store, as the operator configured it, and what follows from it. No I/O.

use std::fmt;
use std::path::PathBuf;

use http::Uri;

use super::StoreError;

/// Where the store is and how to log in.
#[derive(Clone, Default)]
pub struct Config {
    /// URLs of the members (`https://10.8.0.101:2379`). Without a scheme: https if a TLS file is given, else http.
    pub endpoints: Vec<String>,
    /// The folder in etcd that holds `config` and `subnets/` (`/kubernetes-cluster/network`).
    pub prefix: String,
    /// Files for TLS.
    pub tls: TlsFiles,
    /// User name; empty: no login.
    pub username: String,
    /// Password of the user.
    pub password: String,
}

/// The files TLS needs. All are optional, but certificate and key come together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates that may sign the servers' (PEM, one or more). `None`: those the system trusts.
    pub ca: Option<PathBuf>,
    /// Our certificate, followed by intermediate ones (PEM).
    pub certificate: Option<PathBuf>,
    /// The key of our certificate (PEM; PKCS#1, PKCS#8 or SEC1).
    pub key: Option<PathBuf>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("tls", &self.tls)
            .field("username", &self.username)
            .field("password", &"(hidden)")
            .finish()
    }
}

impl TlsFiles {
    /// Whether any file was given.
    #[must_use]
    pub fn any(&self) -> bool {
        self.ca.is_some() || self.certificate.is_some() || self.key.is_some()
    }
}

impl Config {
    /// The endpoints as URLs of scheme and authority, in the given order.
    pub(super) fn urls(&self) -> Result<Vec<Uri>, StoreError> {
        let urls: Vec<Uri> = self
            .endpoints
            .iter()
            .map(|endpoint| endpoint.trim())
            .filter(|endpoint| !endpoint.is_empty())
            .map(|endpoint| url(endpoint, self.tls.any()))
            .collect::<Result<_, _>>()?;
        match urls.is_empty() {
            true => {
                Err(StoreError::Config("no etcd endpoint is configured (etcd-endpoints is empty)".to_owned()))
            }
            false => Ok(urls),
        }
    }

    /// User and password, if there is somebody to log in.
    pub(super) fn login(&self) -> Option<(&str, &str)> {
        (!self.username.is_empty()).then_some((&self.username, &self.password))
    }
}

/// A URL with scheme and authority; a path is dropped, since neither API is mounted below one.
fn url(endpoint: &str, tls: bool) -> Result<Uri, StoreError> {
    // A password in a URL would end in every message that names the endpoint.
    if endpoint.contains('@') {
        let text = "an etcd endpoint holds a user name: use etcd-username and etcd-password instead";
        return Err(StoreError::Config(text.to_owned()));
    }
    let wrong = |reason: &str| {
        StoreError::Config(format!(
            "etcd endpoint {endpoint:?}: {reason} (expected http://HOST:PORT or https://HOST:PORT)"
        ))
    };
    let scheme = if tls { "https" } else { "http" };
    let whole = if endpoint.contains("://") { endpoint.to_owned() } else { format!("{scheme}://{endpoint}") };
    let parsed: Uri = whole.parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
    let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
        return Err(wrong("no host"));
    };
    if !matches!(scheme, "http" | "https") {
        return Err(wrong("unknown scheme"));
    }
    if authority.host().is_empty() {
        return Err(wrong("no host"));
    }
    format!("{scheme}://{authority}/").parse().map_err(|_| wrong("not a URL"))
}

/// The keys of one flannel network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    /// `PREFIX/config`.
    pub(super) config: String,
    /// `PREFIX/subnets/`, with the slash: `PREFIX/subnets2` is none of ours.
    pub(super) subnets: String,
}

impl Keys {
    /// Joined like a path: doubled and trailing slashes vanish, a missing leading one stays missing.
    pub(super) fn below(prefix: &str) -> Self {
        let mut folder = String::new();
        if prefix.starts_with('/') {
            folder.push('/');
        }
        for part in prefix.split('/').filter(|part| !part.is_empty()) {
            folder.push_str(part);
            folder.push('/');
        }
        Self { config: format!("{folder}config"), subnets: format!("{folder}subnets/") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(endpoints: &[&str], tls: bool) -> Result<Vec<String>, String> {
        let ca = tls.then(|| PathBuf::from("/ca.pem"));
        let endpoints = endpoints.iter().map(|&text| text.to_owned()).collect();
        let config = Config { endpoints, tls: TlsFiles { ca, ..TlsFiles::default() }, ..Config::default() };
        let urls = config.urls().map_err(|error| error.to_string())?;
        Ok(urls.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn endpoints_are_urls_of_scheme_and_authority() {
        let given = ["http://127.0.0.1:4001", " https://etcd:2379/path ", "https://[fd00::1]:2379/", ""];
        let expected = ["http://127.0.0.1:4001/", "https://etcd:2379/", "https://[fd00::1]:2379/"];
        assert_eq!(urls(&given, true).unwrap(), expected);
    }

    #[test]
    fn an_endpoint_without_a_scheme_uses_tls_if_files_are_given() {
        assert_eq!(urls(&["etcd:2379"], false).unwrap(), ["http://etcd:2379/"]);
        assert_eq!(urls(&["etcd:2379"], true).unwrap(), ["https://etcd:2379/"]);
    }

    #[test]
    fn wrong_endpoints_are_named() {
        assert_eq!(
            urls(&["ftp://x:1"], false).unwrap_err(),
            "etcd endpoint \"ftp://x:1\": unknown scheme (expected http://HOST:PORT or https://HOST:PORT)"
        );
        for endpoints in [&["http://"][..], &["http://a b"], &[], &[" "]] {
            assert!(urls(endpoints, false).is_err(), "{endpoints:?}");
        }
    }

    #[test]
    fn a_password_never_appears() {
        let error = urls(&["http://root:hunter2@etcd:2379"], false).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        let config = Config { password: "hunter2".to_owned(), ..Config::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn keys_are_joined_like_paths() {
        for (prefix, config, subnets) in [
            ("/coreos.com/network", "/coreos.com/network/config", "/coreos.com/network/subnets/"),
            ("//a///b/", "/a/b/config", "/a/b/subnets/"),
            ("a/b", "a/b/config", "a/b/subnets/"),
            ("/", "/config", "/subnets/"),
            ("", "config", "subnets/"),
        ] {
            let keys = Keys::below(prefix);
            assert_eq!((keys.config.as_str(), keys.subnets.as_str()), (config, subnets), "{prefix}");
        }
    }
}
