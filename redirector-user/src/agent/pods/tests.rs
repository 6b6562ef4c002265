use std::collections::HashSet;

use serde_json::json;

use super::cache::Source;
use super::model::{MIRROR, NodePod, STATIC_UID, ambiguous, is_uid};
use crate::pod::name::PodName;

fn object(annotations: serde_json::Value) -> serde_json::Value {
    json!({ "metadata": { "namespace": "shop", "name": "web", "uid": "0a-1", "annotations": annotations } })
}

#[test]
fn a_pod_is_known_by_the_uid_that_the_node_uses() {
    let known = NodePod::parse(&object(json!({}))).unwrap();
    assert_eq!((known.uid.as_str(), known.api_uid.as_str()), ("0a-1", "0a-1"));
    assert_eq!(known.instance(), "pod-0a-1");
    assert_eq!(known.name.to_string(), "shop/web");
    // A static pod, whose API object is a copy.
    let known = NodePod::parse(&object(json!({ STATIC_UID: "ffff", MIRROR: "ffff" }))).unwrap();
    assert_eq!((known.uid.as_str(), known.api_uid.as_str()), ("ffff", "0a-1"));
    assert_eq!(known.name.uid.as_deref(), Some("ffff"));
}

/// Anybody who may create a pod may write annotations.
#[test]
fn a_pod_cannot_pass_for_another() {
    for pretended in [
        json!({ STATIC_UID: "0a-2" }),
        json!({ STATIC_UID: "0a-2", MIRROR: "0a-2" }),
        json!({ STATIC_UID: "ffff" }),
        json!({ STATIC_UID: "ffff", MIRROR: "fff" }),
    ] {
        assert_eq!(NodePod::parse(&object(pretended.clone())).unwrap().uid, "0a-1", "{pretended}");
    }
    // Copies of static pods have no dashes: of two that say the same neither is believed.
    let known = |uid: &str| NodePod::parse(&object(json!({ STATIC_UID: uid, MIRROR: uid }))).unwrap();
    assert_eq!(ambiguous(&[known("ffff"), known("eeee"), known("ffff")]), HashSet::from(["ffff"]));
    assert!(ambiguous(&[known("ffff"), known("eeee")]).is_empty());
}

#[test]
fn what_is_no_pod_is_refused() {
    for wrong in
        [json!({}), json!([]), json!({ "metadata": {} }), object(json!({ STATIC_UID: "..", MIRROR: ".." }))]
    {
        assert!(NodePod::parse(&wrong).is_err(), "{wrong}");
    }
    for (text, good) in [("", false), ("a/b", false), ("A", false), ("0a-f", true), (&*"a".repeat(60), false)]
    {
        assert_eq!(is_uid(text), good, "{text}");
    }
}

#[test]
fn files_are_found_by_name_and_uid() {
    let dir = std::env::temp_dir().join(format!("redirector-pod-files-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("web.json"), object(json!({})).to_string()).unwrap();
    std::fs::write(dir.join("notes.txt"), "?").unwrap();
    let source = Source::Files(dir.clone());
    let found = |name: &str, uid: Option<&str>| {
        let wanted = PodName { namespace: "shop".into(), name: name.into(), uid: uid.map(str::to_owned) };
        source.find(&wanted).is_ok()
    };
    assert!(found("web", None) && found("web", Some("0a-1")));
    assert!(!found("web", Some("0a-2")) && !found("other", None));
    std::fs::write(dir.join("wrong.json"), "{").unwrap();
    assert!(found("web", None), "a wrong file concerns no other");
    let all = source.all().unwrap();
    assert_eq!((all.pods.len(), all.wrong.len()), (1, 1));
    let other = PodName { namespace: "shop".into(), name: "other".into(), uid: None };
    assert!(source.find(&other).unwrap_err().contains("wrong.json"));
    std::fs::remove_dir_all(&dir).unwrap();
}
