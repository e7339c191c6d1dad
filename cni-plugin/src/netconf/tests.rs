//! Every row of the contract's section 4, and the order of the first checks.

use super::*;
use crate::version::negotiate;
use proptest::prelude::*;
use serde_json::json;

fn decode(text: &str) -> Result<NetConf, Error> {
    let document = Document::parse(text.as_bytes())?;
    let version = negotiate(crate::env::Verb::Add, document.stated_version()?)?;
    document.into_netconf(version)
}

fn with(key: &str, value: Value) -> Result<NetConf, Error> {
    let mut object = Object::new();
    object.insert("name".into(), "net".into());
    object.insert(key.into(), value);
    decode(&Value::Object(object).to_string())
}

#[test]
fn defaults() {
    let conf = decode(r#"{"name":"net","type":"flannel"}"#).unwrap();
    assert_eq!(conf.name, "net");
    assert_eq!(conf.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
    assert_eq!(conf.data_dir, PathBuf::from("/var/lib/cni/flannel"));
    assert_eq!(conf.version, CniVersion::V0_1_0);
    assert!(!conf.states_version && !conf.repair_bridge_address);
    assert_eq!(conf.subnet_file_wait, Duration::ZERO);
    assert!(conf.delegate.is_empty() && conf.ipam.is_empty());
    assert!(conf.runtime_config.is_none() && conf.prev_result.is_none());
    assert_eq!(conf.attachments, Attachments::NotSent);
}

#[test]
fn given_paths_win() {
    let conf = decode(r#"{"name":"n","subnetFile":"/a","dataDir":"/b","cniVersion":"0.3.1"}"#).unwrap();
    assert_eq!((conf.subnet_file, conf.data_dir), ("/a".into(), "/b".into()));
    assert!(conf.states_version);
}

#[test]
fn null_is_absent_everywhere() {
    for key in [
        "cniVersion",
        "type",
        "subnetFile",
        "dataDir",
        "delegate",
        "ipam",
        "runtimeConfig",
        "capabilities",
        "prevResult",
        "dns",
        "args",
        "subnetFileWaitSeconds",
        "repairBridgeAddress",
    ] {
        with(key, Value::Null).unwrap_or_else(|error| panic!("{key}: {error}"));
    }
}

#[test]
fn a_wrong_type_is_code_7_and_names_the_field_even_when_it_is_ignored() {
    for (key, value) in [
        ("type", json!(1)),
        ("subnetFile", json!(1)),
        ("dataDir", json!([])),
        ("delegate", json!("x")),
        ("delegate", json!([])),
        ("ipam", json!(true)),
        ("runtimeConfig", json!(1)),
        ("capabilities", json!([])),
        ("capabilities", json!({"portMappings": "yes"})),
        ("prevResult", json!("x")),
        ("dns", json!([])),
        ("dns", json!({"nameservers": "1.1.1.1"})),
        ("dns", json!({"search": [1]})),
        ("dns", json!({"options": {}})),
        ("dns", json!({"domain": 1})),
        ("cni.dev/valid-attachments", json!({})),
        ("cni.dev/valid-attachments", json!(["x"])),
        ("cni.dev/valid-attachments", json!([{"containerID": 1}])),
        ("cni.dev/valid-attachments", json!([{"ifname": false}])),
        ("subnetFileWaitSeconds", json!("5")),
        ("subnetFileWaitSeconds", json!(-1)),
        ("subnetFileWaitSeconds", json!(1.5)),
        ("subnetFileWaitSeconds", json!(121)),
        ("repairBridgeAddress", json!("yes")),
    ] {
        let error = with(key, value.clone()).unwrap_err();
        assert_eq!(error.code(), 7, "{key} {value}");
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
}

#[test]
fn right_types_pass() {
    with("dns", json!({"nameservers": ["a"], "search": null, "options": [], "domain": "d", "else": 1}))
        .unwrap();
    with("capabilities", json!({"portMappings": true, "x": null})).unwrap();
    with("args", json!([1, "x"])).unwrap();
    with("anything", json!({"else": 1})).unwrap();
    assert_eq!(with("subnetFileWaitSeconds", json!(120)).unwrap().subnet_file_wait, Duration::from_secs(120));
    assert!(with("repairBridgeAddress", json!(true)).unwrap().repair_bridge_address);
}

#[test]
fn the_data_dir_must_be_absolute() {
    for bad in ["", "relative", "./x", "../x"] {
        assert_eq!(with("dataDir", json!(bad)).unwrap_err().code(), 7, "{bad:?}");
    }
}

#[test]
fn names() {
    for (text, code) in [
        ("", 6),
        ("nonsense", 6),
        ("[]", 6),
        ("null", 6),
        ("7", 6),
        ("{", 6),
        (r#"{"name":"a"} x"#, 6),
        (r#"{"name":7}"#, 6),
        (r#"{"name":["a"]}"#, 6),
        ("{}", 7),
        (r#"{"name":""}"#, 7),
        (r#"{"name":null}"#, 7),
        (r#"{"name":"a/b"}"#, 7),
        (r#"{"name":".a"}"#, 7),
        (r#"{"name":"a\n"}"#, 7),
        (r#"{"name":"a","cniVersion":7}"#, 6),
        (r#"{"name":"a","cniVersion":"7"}"#, 1),
    ] {
        assert_eq!(decode(text).unwrap_err().code(), code, "{text}");
    }
    assert_eq!(decode(r#"{"name":"a/b"}"#).unwrap_err().details().unwrap(), "a/b");
}

#[test]
fn spelling_is_exact_and_the_last_duplicate_wins() {
    let conf = decode(r#"{"name":"n","subnetfile":"/x","subnetFile":"/a","subnetFile":"/b"}"#).unwrap();
    assert_eq!(conf.subnet_file, PathBuf::from("/b"));
}

#[test]
fn gc_lists() {
    let list = |value| with(VALID_ATTACHMENTS, value).unwrap();
    assert_eq!(list(Value::Null).attachments, Attachments::Complete(vec![]));
    assert_eq!(list(json!([])).attachments, Attachments::Complete(vec![]));
    let conf = list(json!([{"containerID": "a", "ifname": "eth0"}]));
    let one = ValidAttachment { container: "a".into(), ifname: "eth0".into() };
    assert_eq!(conf.attachments, Attachments::Complete(vec![one]));
    assert_eq!(conf.attachment_keys.keys().collect::<Vec<_>>(), [VALID_ATTACHMENTS]);
    let old = with(OLD_ATTACHMENTS, json!([])).unwrap();
    assert_eq!((old.attachments, old.attachment_keys.len()), (Attachments::NotSent, 1));
}

#[test]
fn hostile_json_is_an_error_not_a_crash() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(decode(&format!(r#"{{"name":"a","x":{deep}}}"#)).unwrap_err().code(), 6);
    assert_eq!(decode(r#"{"name":"a","x":{"$serde_json::private::Number":"zz"}}"#).unwrap_err().code(), 6);
    assert_eq!(decode(r#"{"name":"a","x":"\ud800"}"#).unwrap_err().code(), 6);
    assert_eq!(Document::parse(b"{\"name\":\"a\xff\"}").unwrap_err().code(), 6);
}

proptest! {
    #[test]
    fn never_panics_on_bytes(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Document::parse(&text);
    }

    #[test]
    fn never_panics_on_objects(
        fields in proptest::collection::vec(
            ("(name|cniVersion|type|subnetFile|dataDir|delegate|ipam|dns|prevResult|cni.dev/valid-attachments|subnetFileWaitSeconds)",
             "(null|true|1e999|-5|\"[a-z/]{0,5}\"|\\[\\{\\}\\]|\\[1\\]|\\{\"type\":[0-9]\\}|\\{\"routes\":\\[\\{\"dst\":\"x\"\\}\\]\\})"), 0..6)
    ) {
        let body: Vec<String> = fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        let _ = decode(&format!("{{\"name\":\"n\",{}}}", body.join(",")));
        let _ = decode(&format!("{{{}}}", body.join(",")));
    }
}
