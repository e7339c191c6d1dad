//! `flannel check-config < conflist`: what a runtime and this plugin would make of a file in
//! `/etc/cni/net.d`, and the configuration the delegate would get. [`inspect`] decides from values;
//! [`run`] reads them.

use crate::delegate::Delegate;
use crate::delegate_config::{self, DelegateConfig, Template};
use crate::env::{PluginPath, Verb};
use crate::error::Error;
use crate::netconf::{Document, NetConf, Object, kind};
use crate::subnet_env::{self, SubnetEnv, SubnetEnvError};
use crate::version::{self, CniVersion};
use serde_json::Value;
use std::ffi::OsString;
use std::io::Read;
use std::path::Path;

/// Stands in for a `subnet.env` that is not there, so that the shape can be shown all the same.
const SAMPLE: &[u8] =
    b"FLANNEL_NETWORK=10.200.0.0/16\nFLANNEL_SUBNET=10.200.17.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    errors: Vec<String>,
    warnings: Vec<String>,
    delegate: Option<DelegateConfig>,
}

impl Report {
    /// Whether containers could be attached with this configuration.
    pub fn usable(&self) -> bool {
        self.errors.is_empty()
    }

    /// One line for each finding, for stderr.
    pub fn findings(&self) -> String {
        let errors = self.errors.iter().map(|text| format!("error: {text}\n"));
        let warnings = self.warnings.iter().map(|text| format!("warning: {text}\n"));
        let verdict = if self.usable() { "the configuration is usable\n" } else { "" };
        errors.chain(warnings).chain([verdict.to_owned()]).collect()
    }

    /// The delegate's configuration, for stdout; empty when there is none.
    pub fn shown(&self) -> String {
        self.delegate
            .as_ref()
            .map_or_else(String::new, |config| format!("{:#}\n", Value::Object(config.object().clone())))
    }

    fn failed(error: impl Into<String>) -> Self {
        Self { errors: vec![error.into()], ..Self::default() }
    }
}

/// Reads a conflist and inspects it with this machine's `subnet.env`. Plugins are looked for only
/// when `CNI_PATH` is set.
pub fn run(mut input: impl Read, cni_path: Option<OsString>) -> Report {
    let mut text = Vec::new();
    match input.read_to_end(&mut text) {
        Ok(_) => inspect(&text, subnet_env::read, cni_path.map(|path| PluginPath::new(&path)).as_ref()),
        Err(error) => Report::failed(format!("cannot read stdin: {error}")),
    }
}

/// Judges the text of a conflist, or of a single plugin's configuration.
pub fn inspect(
    text: &[u8],
    subnet_env: impl Fn(&Path) -> Result<SubnetEnv, SubnetEnvError>,
    path: Option<&PluginPath>,
) -> Report {
    let list: Object = match serde_json::from_slice(text) {
        Ok(list) => list,
        Err(error) => return Report::failed(format!("no JSON object: {error}")),
    };
    let plugins = match plugins(&list) {
        Ok(plugins) => plugins,
        Err(error) => return Report::failed(error),
    };
    let mut report = Report { warnings: list_warnings(&list, &plugins), ..Report::default() };
    let Some(entry) = plugins.iter().find(|plugin| is_flannel(plugin)) else {
        return Report::failed("no plugin of type flannel in the list");
    };
    match decode(&list, entry) {
        Ok((conf, template)) => report.fill(&conf, template, subnet_env(&conf.subnet_file)),
        Err(error) => report.errors.push(error.whole()),
    }
    if let Some(path) = path {
        report.look_for_plugins(&plugins, path);
    }
    report
}

impl Report {
    fn fill(&mut self, conf: &NetConf, template: Template, env: Result<SubnetEnv, SubnetEnvError>) {
        self.warnings.extend(delegate_config::warnings(conf));
        let env = env.or_else(|error| {
            let text = Error::from(error).whole();
            self.warnings.push(format!("{text}; shown below with sample values"));
            subnet_env::parse(SAMPLE)
        });
        self.delegate = env.ok().map(|env| template.fill(&env));
        let bridge = self.delegate.as_ref().is_some_and(|config| config.text("type") == "bridge");
        if bridge && conf.version >= CniVersion::V0_4_0 {
            self.warnings.push(
                "bridge plugins before 1.3.0 (Debian 12 has 1.1.1) fail every CHECK of flannel's routes: \
                 set \"disableCheck\": true in the list, or use cniVersion 0.3.1, unless yours is newer"
                    .to_owned(),
            );
        }
    }

    fn look_for_plugins(&mut self, plugins: &[Object], path: &PluginPath) {
        let chained =
            plugins.iter().filter(|plugin| !is_flannel(plugin)).filter_map(|plugin| plugin.get("type"));
        let delegated = self.delegate.as_ref().map(DelegateConfig::object).into_iter();
        let delegated = delegated
            .flat_map(|config| [config.get("type"), config.get("ipam").and_then(|ipam| ipam.get("type"))]);
        for name in chained.chain(delegated.flatten()) {
            let named = DelegateConfig::from_object(Object::new()).with("type", name.clone());
            self.errors.extend(Delegate::find(&named, path).err().map(|error| error.to_string()));
        }
    }
}

fn plugins(list: &Object) -> Result<Vec<Object>, String> {
    let Some(found) = list.get("plugins") else {
        let alone = list.contains_key("type");
        return if alone { Ok(vec![list.clone()]) } else { Err("neither 'plugins' nor 'type'".to_owned()) };
    };
    let entry = |item: &Value| match item {
        Value::Object(entry) if entry.get("type").is_some_and(Value::is_string) => Ok(entry.clone()),
        Value::Object(_) => Err("an entry of 'plugins' has no type".to_owned()),
        other => Err(format!("an entry of 'plugins' is {}", kind(other))),
    };
    match found {
        Value::Array(items) => items.iter().map(entry).collect(),
        other => Err(format!("'plugins' is {} instead of a list", kind(other))),
    }
}

fn list_warnings(list: &Object, plugins: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    let mut warn = |applies: bool, text: &str| found.extend(applies.then(|| text.to_owned()));
    warn(!list.contains_key("plugins"), "a single plugin's configuration: CNI 1.0.0 and newer want a list");
    let (one, several) = (list.contains_key("cniVersion"), list.contains_key("cniVersions"));
    warn(!one && !several, "no cniVersion: it means 0.1.0, and kubelets reject the file");
    warn(
        !one && several,
        "cniVersions without cniVersion: runtimes that are older than CNI 1.1.0 read it as 0.1.0",
    );
    warn(
        !plugins.first().is_some_and(is_flannel),
        "flannel is not the first plugin of its list: it ignores what the ones before it did",
    );
    let without_ports = |plugin: &Object| {
        plugin.get("type").is_some_and(|name| name == "portmap")
            && plugin.get("capabilities").and_then(|c| c.get("portMappings")) != Some(&Value::Bool(true))
    };
    warn(
        plugins.iter().any(without_ports),
        "portmap without \"capabilities\": {\"portMappings\": true} never hears of a port",
    );
    found
}

fn is_flannel(plugin: &Object) -> bool {
    plugin.get("type").is_some_and(|name| name == "flannel")
}

/// What a runtime sends for this entry, decoded as ADD would.
fn decode(list: &Object, entry: &Object) -> Result<(NetConf, Template), Error> {
    let mut sent = entry.clone();
    for (key, value) in [("name", list.get("name").cloned()), ("cniVersion", chosen_version(list)?)] {
        if let Some(value) = value {
            sent.insert(key.to_owned(), value);
        }
    }
    let document = Document::parse(Value::Object(sent).to_string().as_bytes())?;
    let version = version::negotiate(Verb::Add, document.stated_version()?)?;
    let conf = document.into_netconf(version)?;
    let template = Template::new(&conf)?;
    Ok((conf, template))
}

/// The version a runtime of CNI 1.1.0 sends: the highest that the list names and the plugin speaks. When it speaks none of
/// them, one of them, so that the error names it.
fn chosen_version(list: &Object) -> Result<Option<Value>, Error> {
    let named = match list.get("cniVersions") {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(versions)) => versions,
        Some(other) => {
            return Err(Error::Config(format!("cniVersions: {} instead of a list", kind(other))));
        }
    };
    let all = || list.get("cniVersion").into_iter().chain(named);
    if let Some(other) = named.iter().find(|version| !version.is_string()) {
        return Err(Error::Config(format!("cniVersions: {} instead of a string", kind(other))));
    }
    let highest = all().filter_map(|version| CniVersion::find(version.as_str()?)).max();
    Ok(highest.map(|version| version.as_str().into()).or_else(|| all().next().cloned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ROLE: &str = r#"{"name": "cni0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}}, {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

    fn here(_: &Path) -> Result<SubnetEnv, SubnetEnvError> {
        Ok(subnet_env::parse(SAMPLE).unwrap())
    }

    fn judged(value: &Value) -> Report {
        inspect(value.to_string().as_bytes(), here, None)
    }

    fn one(entry: &Value) -> Report {
        judged(&json!({"name": "n", "cniVersion": "0.3.1", "plugins": [entry]}))
    }

    #[test]
    fn the_users_conflist_is_fine_and_shown_as_the_delegate_gets_it() {
        let report = inspect(ROLE.as_bytes(), here, None);
        assert_eq!(report.findings(), "the configuration is usable\n");
        let shown: Value = serde_json::from_str(&report.shown()).unwrap();
        assert_eq!(shown["cniVersion"], "0.3.1");
        assert_eq!(shown["ipam"]["ranges"], json!([[{"subnet": "10.200.17.0/24"}]]));
    }

    #[test]
    fn errors() {
        for (report, expected) in [
            (inspect(b"x", here, None), "no JSON object"),
            (judged(&json!({})), "neither"),
            (judged(&json!({"plugins": {}})), "'plugins' is an object"),
            (judged(&json!({"plugins": [7]})), "is a number"),
            (judged(&json!({"plugins": [{}]})), "no type"),
            (judged(&json!({"plugins": [{"type": "bridge"}]})), "no plugin of type flannel"),
            (judged(&json!({"plugins": [{"type": "flannel"}]})), "missing network name"),
            (
                judged(&json!({"name": "n", "cniVersion": "7", "plugins": [{"type": "flannel"}]})),
                "incompatible",
            ),
            (judged(&json!({"name": "n", "cniVersions": ["7"], "plugins": [{"type": "flannel"}]})), "\"7\""),
            (
                judged(&json!({"name": "n", "cniVersions": {}, "plugins": [{"type": "flannel"}]})),
                "instead of a list",
            ),
            (
                judged(&json!({"name": "n", "cniVersions": [1], "plugins": [{"type": "flannel"}]})),
                "instead of a string",
            ),
            (one(&json!({"type": "flannel", "delegate": {"ipam": {}}})), "delegate.ipam"),
            (one(&json!({"type": "flannel", "dataDir": "x"})), "dataDir"),
        ] {
            assert!(!report.usable());
            assert!(report.findings().contains(expected), "{expected}: {}", report.findings());
            assert_eq!(report.shown(), "");
        }
    }

    #[test]
    fn warnings_do_not_make_it_unusable() {
        for (report, expected) in [
            (judged(&json!({"name": "n", "type": "flannel", "cniVersion": "0.3.1"})), "want a list"),
            (judged(&json!({"name": "n", "plugins": [{"type": "flannel"}]})), "no cniVersion"),
            (
                judged(&json!({"name": "n", "cniVersions": ["0.3.1"], "plugins": [{"type": "flannel"}]})),
                "cniVersions without cniVersion",
            ),
            (
                judged(&json!({"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "flannel"}]})),
                "disableCheck",
            ),
            (one(&json!({"type": "flannel", "ipam": {"subnet": "10.0.0.0/8"}})), "ipam.subnet"),
            (
                judged(
                    &json!({"name": "n", "cniVersion": "0.3.1", "plugins": [{"type": "tuning"}, {"type": "flannel"}]}),
                ),
                "not the first",
            ),
            (
                judged(
                    &json!({"name": "n", "cniVersion": "0.3.1", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}),
                ),
                "never hears of a port",
            ),
        ] {
            assert!(report.usable(), "{}", report.findings());
            assert!(report.findings().contains(expected), "{expected}: {}", report.findings());
        }
    }

    #[test]
    fn of_several_versions_the_highest_known_one_is_shown() {
        let version = |list: Value| {
            let mut list = list;
            list["name"] = json!("n");
            list["plugins"] = json!([{"type": "flannel"}]);
            serde_json::from_str::<Value>(&judged(&list).shown()).map(|shown| shown["cniVersion"].clone())
        };
        for (list, expected) in [
            (json!({"cniVersion": "0.3.1", "cniVersions": ["1.0.0", "0.4.0", "9.9.9"]}), "1.0.0"),
            (json!({"cniVersion": "1.1.0", "cniVersions": ["0.3.1"]}), "1.1.0"),
            (json!({"cniVersion": "9.9.9", "cniVersions": ["0.3.1"]}), "0.3.1"),
            (json!({"cniVersions": ["0.3.1"]}), "0.3.1"),
            (json!({"cniVersion": "0.3.1", "cniVersions": null}), "0.3.1"),
        ] {
            assert_eq!(version(list.clone()).unwrap(), expected, "{list}");
        }
    }

    #[test]
    fn without_subnet_env_sample_values_show_the_shape() {
        let report = inspect(ROLE.as_bytes(), |_| subnet_env::read(Path::new("/nonexistent")), None);
        assert!(report.usable() && report.findings().contains("sample values"), "{}", report.findings());
        assert!(report.shown().contains("10.200.17.0/24"));
    }

    #[test]
    fn plugins_are_looked_for_when_the_path_is_known() {
        let path = PluginPath::new("/nonexistent".as_ref());
        let report = inspect(ROLE.as_bytes(), here, Some(&path));
        assert!(!report.usable());
        for name in ["bridge", "host-local", "portmap"] {
            assert!(report.findings().contains(&format!("\"{name}\" not found")), "{}", report.findings());
        }
    }

    #[test]
    fn the_sample_is_one() {
        assert!(subnet_env::parse(SAMPLE).is_ok());
    }
}
