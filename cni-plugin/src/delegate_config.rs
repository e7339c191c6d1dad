//! The configuration the delegate gets: the user's part, what `subnet.env` says, and the few keys
//! flannel decides. Pure: values in, values out.
//!
//! Built in two steps, so that mistakes in the user's part are reported before `subnet.env` is
//! looked for: [`Template::new`] checks, [`Template::fill`] cannot fail.

use crate::cidr::Cidr;
use crate::error::Error;
use crate::netconf::{Document, NetConf, Object, kind};
use crate::subnet_env::{self, SubnetEnv, SubnetEnvError};
use serde_json::{Value, json};

/// The user's part, checked, waiting for the values of `subnet.env`.
#[derive(Clone, Debug)]
pub struct Template {
    delegate: Object,
    ipam: Object,
    routes: Vec<Value>,
}

/// A complete configuration for another plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct DelegateConfig(Object);

impl Template {
    /// Takes over the user's part and sets what does not depend on `subnet.env`.
    ///
    /// # Errors
    /// Code 7: `delegate.type` is no string or is flannel itself, `delegate.name` or
    /// `delegate.ipam` is there, or a route of `ipam.routes` is no route.
    pub fn new(conf: &NetConf) -> Result<Self, Error> {
        check_delegate(&conf.delegate)?;
        let routes = user_routes(conf.ipam.get("routes"))?;
        let mut delegate = conf.delegate.clone();
        if let Some(runtime_config) = &conf.runtime_config {
            delegate.insert("runtimeConfig".into(), Value::Object(runtime_config.clone()));
        }
        delegate.insert("name".into(), conf.name.clone().into());
        default(&mut delegate, "type", "bridge");
        if conf.states_version {
            delegate.insert("cniVersion".into(), conf.version.as_str().into());
        }
        Ok(Self { delegate, ipam: conf.ipam.clone(), routes })
    }

    /// Adds this node's subnets, the cluster's networks, the MTU and who masquerades.
    pub fn fill(self, env: &SubnetEnv) -> DelegateConfig {
        let Self { mut delegate, mut ipam, mut routes } = self;
        // Exactly one of the two masquerades: what flanneld does, the delegate must not.
        default(&mut delegate, "ipMasq", !env.flanneld_masquerades);
        default(&mut delegate, "mtu", env.mtu);
        if delegate.get("type").is_some_and(|name| name == "bridge") {
            default(&mut delegate, "isGateway", true);
        }
        default(&mut ipam, "type", "host-local");
        ipam.insert(
            "ranges".into(),
            env.subnets.iter().map(|subnet| json!([{"subnet": text(*subnet)}])).collect(),
        );
        routes.extend(env.networks.iter().map(|network| json!({"dst": text(*network)})));
        ipam.insert("routes".into(), Value::Array(routes));
        delegate.insert("ipam".into(), Value::Object(ipam));
        DelegateConfig(delegate)
    }
}

impl DelegateConfig {
    /// Takes an object that was a delegate's configuration before, such as saved state.
    pub fn from_object(object: Object) -> Self {
        Self(object)
    }

    /// The configuration as an object.
    pub fn object(&self) -> &Object {
        &self.0
    }

    /// A string field; empty when it is absent or something else.
    pub fn text(&self, key: &str) -> &str {
        self.0.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// The same configuration with `key` set to `value`.
    #[must_use]
    pub fn with(&self, key: &str, value: Value) -> Self {
        let mut object = self.0.clone();
        object.insert(key.to_owned(), value);
        Self(object)
    }

    /// The bytes for the delegate's stdin: compact JSON without a newline.
    pub fn to_bytes(&self) -> Vec<u8> {
        Value::Object(self.0.clone()).to_string().into_bytes()
    }
}

/// From the bytes of stdin and of `subnet.env` to the delegate's configuration: everything the
/// plugin decides on ADD, in one total function. It is what fuzzing calls.
///
/// # Errors
/// Those of each step, in the order ADD would report them.
pub fn from_bytes(stdin: &[u8], subnet_env: &[u8]) -> Result<DelegateConfig, Error> {
    let document = Document::parse(stdin)?;
    let version = crate::version::negotiate(crate::env::Verb::Add, document.stated_version()?)?;
    let conf = document.into_netconf(version)?;
    let template = Template::new(&conf)?;
    let bad = |fault| SubnetEnvError::Bad { path: conf.subnet_file.clone(), fault };
    Ok(template.fill(&subnet_env::parse(subnet_env).map_err(bad)?))
}

/// What an operator should know about a configuration that is accepted all the same.
pub fn warnings(conf: &NetConf) -> Vec<String> {
    let host_local = conf.ipam.get("type").is_none_or(|name| name == "host-local");
    let overruled = |key: &str| match key {
        "ranges" => Some("ipam.ranges is replaced by the node's subnets".to_owned()),
        "subnet" | "rangeStart" | "rangeEnd" | "gateway" => Some(format!(
            "ipam.{key} does not belong here: host-local adds it to the node's own range, pods get a second address"
        )),
        _ => None,
    };
    conf.ipam.keys().filter(|_| host_local).filter_map(|key| overruled(key)).collect()
}

fn check_delegate(delegate: &Object) -> Result<(), Error> {
    let refuse = |text: String| Err(Error::Config(text));
    match delegate.get("type") {
        None => {}
        Some(Value::String(name)) if name == "flannel" => {
            return refuse("delegate.type: flannel cannot delegate to itself".into());
        }
        Some(Value::String(_)) => {}
        Some(other) => return refuse(format!("delegate.type: {} instead of a string", kind(other))),
    }
    if delegate.contains_key("name") {
        return refuse("delegate.name must not be set: flannel sets it to the network's name".into());
    }
    if delegate.contains_key("ipam") {
        return refuse("delegate.ipam must not be set: write the top-level key ipam instead".into());
    }
    Ok(())
}

fn user_routes(routes: Option<&Value>) -> Result<Vec<Value>, Error> {
    match routes {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => items.iter().map(user_route).collect(),
        Some(other) => Err(Error::Config(format!("ipam.routes: {} instead of a list", kind(other)))),
    }
}

/// Keeps the route as written, except for host bits in `dst`, which the kernel would refuse.
fn user_route(route: &Value) -> Result<Value, Error> {
    let refuse = |what: String| Error::Config(format!("ipam.routes: {what}"));
    let Value::Object(fields) = route else {
        return Err(refuse(format!("{} instead of an object", kind(route))));
    };
    for key in ["mtu", "advmss", "priority", "table", "scope"] {
        if let Some(found) = fields.get(key).filter(|value| !value.is_number() && !value.is_null()) {
            return Err(refuse(format!("{key}: {} instead of a number", kind(found))));
        }
    }
    match fields.get("gw") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if text.is_empty() || text.parse::<std::net::IpAddr>().is_ok() => {}
        Some(other) => return Err(refuse(format!("gw: {other} is not an IP address"))),
    }
    let written = fields.get("dst").ok_or_else(|| refuse("a route without dst".into()))?;
    let dst: Option<Cidr> = written.as_str().and_then(|dst| dst.parse().ok());
    let dst = dst.ok_or_else(|| refuse(format!("dst: {written} is not a CIDR such as 10.96.0.0/12")))?;
    let mut kept = fields.clone();
    if dst != dst.network() {
        kept.insert("dst".into(), text(dst.network()));
    }
    Ok(Value::Object(kept))
}

/// Sets a key the user has not set; the user's own value wins whatever it is, even `null`.
fn default(object: &mut Object, key: &str, value: impl Into<Value>) {
    object.entry(key).or_insert_with(|| value.into());
}

fn text(cidr: Cidr) -> Value {
    cidr.to_string().into()
}

#[cfg(test)]
mod tests;
