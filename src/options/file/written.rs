//! What the role installs from its variables, byte for byte: the unit, the CNI configuration, the network config.

use super::error::FileError;
use super::layer::Layer;
use super::yaml::{self, Content, Node};

impl Layer {
    /// The unit that the role installs, which gives the daemon `options`, sorted by name.
    pub(in crate::options) fn unit(&self, options: &[(&str, String)]) -> Result<String, FileError> {
        let variable = |name| Ok::<_, FileError>(self.variable(name)?.unwrap_or_default());
        let command = |name: &str, directive: &str| -> Result<String, FileError> {
            Ok(self.variable(name)?.map_or_else(String::new, |command| format!("{directive}={command}")))
        };
        let words: Vec<String> = options.iter().map(|(name, value)| format!("  -{name}={value} ")).collect();
        Ok(format!(
            "[Unit]\n\
             Description=Network fabric for containers\n\
             After=network.target\n\
             After=network-online.target\n\
             Wants=network-online.target\n\
             Before=docker.service\n\
             \n\
             [Service]\n\
             Type=notify\n\
             Restart=always\n\
             RestartSec={}\n\
             LimitNOFILE={}\n\
             LimitNPROC={}\n\
             {}\n\
             {}\n\
             ExecStart={}/flanneld \\\n\
             {}\n\
             \n\
             [Install]\n\
             WantedBy=multi-user.target\n\
             RequiredBy=docker.service\n",
            variable("flannel_systemd_restartsec")?,
            variable("flannel_systemd_limitnofile")?,
            variable("flannel_systemd_limitnproc")?,
            command("flannel_systemd_execstartpre", "ExecStartPre")?,
            command("flannel_systemd_execstartpost", "ExecStartPost")?,
            variable("flannel_bin_dir")?,
            words.join("\\\n"),
        ))
    }

    /// The CNI configuration. Ansible reads a text that is JSON and writes it anew; any other text stays as it is.
    pub(in crate::options) fn conflist(&self) -> Result<String, FileError> {
        let text = self.variable("flannel_cni_conf")?.unwrap_or_default();
        // JSON is YAML, and that tree keeps the order of keys.
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        match yaml::document(&text) {
            Ok(node) if is_json && matches!(node.content, Content::Map(_) | Content::List(_)) => {
                Ok(json(&node))
            }
            _ => Ok(text),
        }
    }
}

/// JSON on one line, spaced as Python does.
fn json(node: &Node) -> String {
    match &node.content {
        Content::Null => "null".to_owned(),
        Content::Bool(on, _) => on.to_string(),
        Content::Int(number) => number.to_string(),
        Content::Float(text) => text.clone(),
        Content::Text(text) => string(text),
        Content::List(items) => format!("[{}]", items.iter().map(json).collect::<Vec<_>>().join(", ")),
        Content::Map(entries) => {
            let member = |entry: &yaml::Entry| format!("{}: {}", string(&entry.key), json(&entry.value));
            format!("{{{}}}", entries.iter().map(member).collect::<Vec<_>>().join(", "))
        }
    }
}

/// A JSON string in ASCII.
fn string(text: &str) -> String {
    let mut quoted = String::new();
    for part in serde_json::Value::from(text).to_string().chars() {
        if part.is_ascii() {
            quoted.push(part);
        } else {
            let mut units = [0; 2];
            for unit in part.encode_utf16(&mut units) {
                quoted.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_written_as_python_writes_it() {
        let text = r#"{"b":[1,2.5,null,true],"a":{"é😀":"x\"\n"},"c":[],"d":{}}"#;
        let expected =
            r#"{"b": [1, 2.5, null, true], "a": {"\u00e9\ud83d\ude00": "x\"\n"}, "c": [], "d": {}}"#;
        assert_eq!(json(&yaml::document(text).unwrap()), expected);
    }
}
