//! libcni's cache of what was set up (`/var/lib/cni/results`).
//!
//! CRI-O takes a pod's network down with the list of its set-up, which it finds there. Without the binary that this list
//! names, DEL fails and the pod stays Terminating.

use std::path::Path;

use serde::Deserialize;

use super::list::List;
use crate::cni::protocol::PLUGIN_TYPE;

/// How many pods were set up with a list that has our entry.
pub fn pods_set_up(cache_dir: &Path) -> usize {
    let entries = std::fs::read_dir(cache_dir.join("results")).into_iter().flatten().flatten();
    entries.filter(|entry| has_ours(&entry.path())).count()
}

fn has_ours(path: &Path) -> bool {
    /// Of `cachedInfo` in libcni/api.go; Go writes bytes as base64.
    #[derive(Deserialize)]
    struct Cached {
        config: String,
    }
    let Ok(text) = crate::base::input::file(path) else { return false };
    let cached: Option<Cached> = serde_json::from_str(&text).ok();
    let list = cached.and_then(|cached| String::from_utf8(base64(&cached.config)?).ok());
    list.is_some_and(|list| match List::parse(&list, true) {
        Ok(list) => list.has_ours(),
        Err(_) => list.contains(&format!("\"{PLUGIN_TYPE}\"")),
    })
}

/// RFC 4648, section 4.
fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_counted_by_the_list_of_their_set_up() {
        let dir = std::env::temp_dir().join(format!("redirector-cni-cache-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("results")).unwrap();
        // {"name":"n","plugins":[{"type":"ptp"},{"type":"redirector"}]} and the same without ours
        let ours = "eyJuYW1lIjoibiIsInBsdWdpbnMiOlt7InR5cGUiOiJwdHAifSx7InR5cGUiOiJyZWRpcmVjdG9yIn1dfQ==";
        let other = "eyJuYW1lIjoibiIsInBsdWdpbnMiOlt7InR5cGUiOiJwdHAifV19";
        for (name, config) in [("n-1-eth0", ours), ("n-2-eth0", other), ("n-3-eth0", "?")] {
            let text = format!("{{\"kind\":\"cniCacheV1\",\"config\":\"{config}\"}}");
            std::fs::write(dir.join("results").join(name), text).unwrap();
        }
        assert_eq!(pods_set_up(&dir), 1);
        assert_eq!(pods_set_up(Path::new("/none")), 0);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
