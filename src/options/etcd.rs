//! Where the leases are: values of the `etcd-…` options that can only be made from valid input.

use std::fmt;
use std::path::PathBuf;

use http::Uri;

use super::secret::Secret;
use crate::store::Api;

/// How to reach etcd, and where in it everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// Which of etcd's two stores holds the leases.
    pub api: Api,
    /// The members; at least one.
    pub endpoints: Vec<Endpoint>,
    /// The key below which everything is.
    pub prefix: Prefix,
    /// Certificates for `https` endpoints.
    pub tls: Tls,
    /// Who we are; `None`: nobody in particular.
    pub credentials: Option<Credentials>,
}

/// Certificate files. They are not read here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// What may have signed the server's certificate; `None`: what the system trusts.
    pub ca: Option<PathBuf>,
    /// What we show the server.
    pub identity: Option<Identity>,
}

/// A client certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// PEM file with the certificate.
    pub cert: PathBuf,
    /// PEM file with the key.
    pub key: PathBuf,
}

/// User name and password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// The URL of one etcd member: `http` or `https`, host and optional port, nothing else.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    https: bool,
    authority: String,
}

impl Endpoint {
    /// Reads a URL, or says what was expected (completing "expected …", without repeating the URL).
    ///
    /// # Errors
    /// When the scheme is another, there is no host, or there is a password, path or query.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        const FORM: &str = "URLs such as https://10.8.0.101:2379, separated by commas without blanks";
        const USER: &str = "URLs without user and password (give etcd-username and etcd-password)";
        const PATH: &str = "URLs that end after host and port (keys are chosen with etcd-prefix)";
        let uri: Uri = url.parse().map_err(|_| if url.contains('@') { USER } else { FORM })?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(FORM),
        };
        let authority = uri.authority().ok_or(FORM)?;
        if authority.as_str().contains('@') {
            return Err(USER);
        }
        let port = authority.as_str().strip_prefix(authority.host()).ok_or(FORM)?;
        if authority.host().is_empty() || !(port.is_empty() || is_port(port)) {
            return Err(FORM);
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || url.contains('#') {
            return Err(PATH);
        }
        Ok(Self { https, authority: authority.as_str().to_owned() })
    }

    /// Whether TLS is to be used.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Host and port: `10.8.0.101:2379`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The host alone: a name, an IPv4 address, or an IPv6 address in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        match self.authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => host,
            _ => &self.authority,
        }
    }
}

/// Whether a text is a colon and a port.
fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.authority)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key prefix, cleaned like a path: no empty, `.` or `..` parts, no slash at the end. A slash in front stays absent if it
/// was absent: to etcd v3 these are different keys.
#[derive(Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// Cleans a path. `None` when nothing is left that could stand before a key (empty, `.`, `a/..`, `../a`).
    #[must_use]
    pub fn clean(path: &str) -> Option<Self> {
        let rooted = path.starts_with('/');
        let mut parts: Vec<&str> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.pop().is_none() && !rooted => return None,
                ".." => {}
                part => parts.push(part),
            }
        }
        let joined = parts.join("/");
        match (rooted, joined.is_empty()) {
            (false, true) => None,
            (true, true) => Some(Self(String::new())),
            (true, false) => Some(Self(format!("/{joined}"))),
            (false, false) => Some(Self(joined)),
        }
    }

    /// The prefix without a slash at the end; empty for `/`. A key is this, a slash and a name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_keep_scheme_host_and_port() {
        for (url, shown) in [
            ("http://127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("https://etcd-1.example.org:2379/", "https://etcd-1.example.org:2379"),
            ("https://[fd00::1]:2379", "https://[fd00::1]:2379"),
            ("https://etcd", "https://etcd"),
            ("HTTPS://etcd", "https://etcd"),
        ] {
            assert_eq!(Endpoint::parse(url).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for url in [
            "",
            " http://a:1",
            "http://a:1 ",
            "10.0.0.1:2379",
            "etcd",
            "unix:///run/etcd",
            "ftp://a:1",
            "http://",
            "http://:2379",
            "http://a:",
            "http://a:99999",
            "http://a:port",
            "http://u:p@a:1",
            "http://u@a:1",
            "http://u:p w@a:1",
            "http://a:1/v2",
            "http://a:1?x=y",
            "http://a:1/#x",
            "http:///x",
        ] {
            assert!(Endpoint::parse(url).is_err(), "{url:?}");
        }
    }

    #[test]
    fn prefixes_are_cleaned_like_paths() {
        for (path, clean) in [
            ("/coreos.com/network", Some("/coreos.com/network")),
            ("/coreos.com/network/", Some("/coreos.com/network")),
            ("//a///b//", Some("/a/b")),
            ("/a/./b/../c", Some("/a/c")),
            ("/..", Some("")),
            ("/", Some("")),
            ("a/b/", Some("a/b")),
            ("a/(b[", Some("a/(b[")),
            ("", None),
            (".", None),
            ("a/..", None),
            ("../a", None),
        ] {
            assert_eq!(Prefix::clean(path).as_ref().map(Prefix::as_str), clean, "{path:?}");
        }
    }
}
