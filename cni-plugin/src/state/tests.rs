//! The contract's section 7: names, whose file it is, modes, and files written by the Go plugin.

use super::*;
use std::os::unix::fs::PermissionsExt;

const GO: &[u8] = br#"{"cniVersion":"0.3.1","name":"cni0","type":"bridge"}"#;

fn at(container: &str, ifname: &str) -> Attachment {
    Attachment {
        container: ContainerId::new(OsStr::new(container)).unwrap(),
        ifname: IfName::new(OsStr::new(ifname)).unwrap(),
        netns: "/run/netns/x".into(),
        netns_override: false,
    }
}

fn config(marker: &str) -> DelegateConfig {
    DelegateConfig::from_object(Object::new()).with("type", "bridge".into()).with("marker", marker.into())
}

fn scratch() -> (tempfile::TempDir, StateDir) {
    let scratch = tempfile::tempdir().unwrap();
    let state = StateDir::new(&scratch.path().join("a/b"));
    (scratch, state)
}

fn save(state: &StateDir, at: &Attachment, marker: &str) -> Slot {
    let slot = state.slot(at).unwrap();
    let (Slot::Fresh(file) | Slot::Taken(file)) = &slot;
    state.save(file, &config(marker), at).unwrap();
    slot
}

fn marker(state: &StateDir, at: &Attachment) -> Option<String> {
    match state.find(at).unwrap().1 {
        Entry::Saved(config, _) => Some(config.text("marker").to_owned()),
        _ => None,
    }
}

#[test]
fn the_first_attachment_has_the_go_plugin_s_name_and_further_ones_their_own() {
    let (_scratch, state) = scratch();
    assert_eq!(save(&state, &at("pod", "eth0"), "0"), Slot::Fresh(StateFile("pod".into())));
    assert_eq!(save(&state, &at("pod", "net1"), "1"), Slot::Fresh(StateFile("pod:net1".into())));
    assert_eq!(save(&state, &at("pod", "net1"), "1"), Slot::Taken(StateFile("pod:net1".into())));
    assert_eq!(save(&state, &at("pod", "eth0"), "0"), Slot::Taken(StateFile("pod".into())));
    assert_eq!(marker(&state, &at("pod", "eth0")).unwrap(), "0");
    assert_eq!(marker(&state, &at("pod", "net1")).unwrap(), "1");
    assert_eq!(marker(&state, &at("pod", "net2")), None, "the first attachment's state is not net2's");
    assert_eq!(marker(&state, &at("po", "eth0")), None);
}

#[test]
fn a_file_of_the_go_plugin_fits_any_interface_and_is_not_overwritten() {
    let (_scratch, state) = scratch();
    std::fs::create_dir_all(&state.0).unwrap();
    std::fs::write(state.0.join("pod"), GO).unwrap();
    for ifname in ["eth0", "net1"] {
        assert!(matches!(state.find(&at("pod", ifname)).unwrap().1, Entry::Saved(_, None)));
    }
    assert_eq!(save(&state, &at("pod", "net1"), "1"), Slot::Fresh(StateFile("pod:net1".into())));
    assert_eq!(std::fs::read(state.0.join("pod")).unwrap(), GO);
}

#[test]
fn the_delegate_never_sees_our_key() {
    let (_scratch, state) = scratch();
    save(&state, &at("pod", "eth0"), "x");
    let raw = std::fs::read_to_string(state.0.join("pod")).unwrap();
    assert_eq!(
        raw,
        r#"{"type":"bridge","marker":"x","flannelAttachment":{"ifname":"eth0","netns":"/run/netns/x"}}"#
    );
    let Entry::Saved(read, owner) = parse(raw.as_bytes()) else { panic!("{raw}") };
    assert_eq!(read, config("x"));
    assert_eq!(owner.unwrap(), Owner { ifname: "eth0".into(), netns: "/run/netns/x".into() });
}

#[test]
fn what_no_delegate_can_be_run_with_is_bad() {
    for text in
        ["", "{", "[]", "null", "7", "{}", r#"{"type":""}"#, r#"{"type":7}"#, r#"{"type":null}"#, "\u{0}"]
    {
        assert_eq!(parse(text.as_bytes()), Entry::Bad, "{text:?}");
    }
    assert_eq!(parse(b"{\"type\":\"a\xff\"}"), Entry::Bad);
    assert!(matches!(parse(br#"{"type":"a","flannelAttachment":7}"#), Entry::Saved(_, None)));
}

#[test]
fn add_replaces_bad_state() {
    let (_scratch, state) = scratch();
    std::fs::create_dir_all(&state.0).unwrap();
    std::fs::write(state.0.join("pod"), "").unwrap();
    std::fs::write(state.0.join("pod2:net1"), "").unwrap();
    assert_eq!(state.slot(&at("pod", "eth0")).unwrap(), Slot::Fresh(StateFile("pod".into())));
    assert_eq!(state.slot(&at("pod2", "net1")).unwrap(), Slot::Fresh(StateFile("pod2:net1".into())));
}

#[test]
fn modes_are_private_and_an_existing_directory_keeps_its_own() {
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let (scratch, state) = scratch();
    save(&state, &at("pod", "eth0"), "x");
    assert_eq!(mode(&scratch.path().join("a")), 0o700);
    assert_eq!(mode(&state.0), 0o700);
    assert_eq!(mode(&state.0.join("pod")), 0o600);
    std::fs::set_permissions(&state.0, PermissionsExt::from_mode(0o755)).unwrap();
    save(&state, &at("pod2", "eth0"), "x");
    assert_eq!(mode(&state.0), 0o755);
}

#[test]
fn a_reader_sees_the_old_text_or_the_new_one_while_a_writer_is_at_it() {
    let (_scratch, state) = scratch();
    let attachment = at("pod", "eth0");
    save(&state, &attachment, &"a".repeat(100_000));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for letter in ["b", "c"].into_iter().cycle().take(40) {
                save(&state, &attachment, &letter.repeat(100_000));
            }
        });
        while !writer.is_finished() {
            let seen = marker(&state, &attachment).expect("never absent or cut off");
            assert_eq!(seen.len(), 100_000);
        }
    });
    assert_eq!(std::fs::read_dir(&state.0).unwrap().count(), 1, "no temporary file stays");
}

#[test]
fn what_a_kill_left_is_overwritten_by_the_next_add_and_removed_by_del() {
    let (_scratch, state) = scratch();
    let attachment = at("pod", "eth0");
    std::fs::create_dir_all(&state.0).unwrap();
    let left = state.0.join(StateFile("pod".into()).temporary());
    std::fs::write(&left, "half").unwrap();
    save(&state, &attachment, "x");
    assert!(!left.exists());
    std::fs::write(&left, "half").unwrap();
    state.remove(&StateFile("pod".into()));
    assert!(!left.exists());
    std::fs::write(&left, "half").unwrap();
    state.remove_temporaries(&attachment);
    assert!(!left.exists());
}

#[test]
fn ids_up_to_the_file_system_s_limit_work_and_longer_ones_fail_when_saved() {
    let (_scratch, state) = scratch();
    save(&state, &at(&"x".repeat(255), "eth0"), "x");
    assert!(marker(&state, &at(&"x".repeat(255), "eth0")).is_some());
    let long = at(&"x".repeat(256), "eth0");
    assert_eq!(marker(&state, &long), None);
    let Slot::Fresh(file) = state.slot(&long).unwrap() else { panic!() };
    assert!(state.save(&file, &config("x"), &long).unwrap_err().to_string().contains("cannot write"));
    assert_eq!(std::fs::read_dir(&state.0).unwrap().count(), 1);
}

#[test]
fn the_list_holds_only_what_can_be_ours() {
    let (_scratch, state) = scratch();
    assert!(state.list().unwrap().is_empty(), "no directory yet");
    save(&state, &at("b", "eth0"), "x");
    save(&state, &at("b", "net1"), "x");
    std::fs::write(state.0.join("a"), GO).unwrap();
    std::fs::write(state.0.join("bad"), "").unwrap();
    for foreign in [".hidden", "a b", "x:", ":eth0", "x:a:b"] {
        std::fs::write(state.0.join(foreign), GO).unwrap();
    }
    let listed = state.list().unwrap();
    let names: Vec<_> =
        listed.iter().map(|l| (l.container.as_str(), l.ifname.as_ref().map(IfName::to_text))).collect();
    assert_eq!(names, [("a", None), ("b", Some("eth0".into())), ("b", Some("net1".into())), ("bad", None)]);
}

#[test]
fn a_directory_in_the_place_of_a_file_is_an_error() {
    let (_scratch, state) = scratch();
    std::fs::create_dir_all(state.0.join("pod")).unwrap();
    assert!(state.find(&at("pod", "eth0")).unwrap_err().to_string().contains("cannot read"));
    assert!(state.slot(&at("pod", "eth0")).is_err());
}
