//! Members: their ids, their JSON in the database, their URLs (etcd, `server/etcdserver/api/membership`).

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use super::Member;
use crate::error::usage;

/// A member as etcd writes it in the bucket `members` and in the write-ahead log. Fields that etcd omits when empty are omitted here too.
#[derive(Serialize, Deserialize)]
struct Stored {
    id: u64,
    #[serde(rename = "peerURLs", default)]
    peer_urls: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(rename = "clientURLs", default, skip_serializing_if = "Option::is_none")]
    client_urls: Option<Vec<String>>,
}

impl Member {
    /// The member that a restore makes: it has no client URLs until etcd has started.
    pub(super) fn new(name: &str, peer_urls: &[String], token: &str) -> Self {
        let mut peer_urls = peer_urls.to_vec();
        peer_urls.sort();
        let id = first_eight(&[peer_urls.concat().as_bytes(), token.as_bytes()]);
        Self { id, name: name.to_owned(), peer_urls, client_urls: Vec::new() }
    }

    /// Reads a value of the bucket `members`.
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        let stored: Stored = serde_json::from_slice(json).context("reading a member")?;
        Ok(Self {
            id: stored.id,
            name: stored.name,
            peer_urls: stored.peer_urls.unwrap_or_default(),
            client_urls: stored.client_urls.unwrap_or_default(),
        })
    }

    /// The value for the bucket `members`.
    pub(super) fn json(&self) -> Result<Vec<u8>> {
        let stored = Stored { id: self.id, peer_urls: Some(self.peer_urls.clone()), name: self.name.clone(), client_urls: None };
        Ok(serde_json::to_vec(&stored)?)
    }
}

/// The id of a cluster of one member.
pub(super) fn cluster_id(member: u64) -> u64 {
    first_eight(&[&member.to_be_bytes()])
}

/// Checks a peer URL as etcd does (`client/pkg/types.NewURLs`).
pub(super) fn check_peer_url(url: &str) -> Result<()> {
    let bad = |why: &str| Err(usage(format!("the peer URL `{url}` {why}")));
    let Some((scheme, rest)) = url.split_once("://") else { return bad("has no scheme: it must be like https://HOST:PORT") };
    match scheme {
        "unix" | "unixs" => Ok(()),
        "http" | "https" => match rest.rsplit_once(':') {
            _ if rest.contains('/') => bad("must not have a path"),
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
            _ => bad("must be HOST:PORT after its scheme"),
        },
        _ => bad("must begin with http://, https://, unix:// or unixs://"),
    }
}

fn first_eight(parts: &[&[u8]]) -> u64 {
    let hash = parts.iter().fold(Sha1::new(), Digest::chain_update).finalize();
    hash.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn ids_are_those_of_etcdutl() {
        // `etcdutl snapshot restore` 3.5.21 with its defaults logs "added member … added-peer-id":"8e9e05c52164694d", "cluster-id":"cdf818194e3a8c32".
        let member = Member::new("default", &["http://localhost:2380".to_owned()], "etcd-cluster");
        assert_eq!(format!("{:x}", member.id), "8e9e05c52164694d");
        assert_eq!(format!("{:x}", cluster_id(member.id)), "cdf818194e3a8c32");
    }

    #[test]
    fn a_member_is_read_as_etcd_writes_it() -> Result<()> {
        let member = Member::parse(
            br#"{"id":7,"peerURLs":["https://192.0.2.1:2380"],"isLearner":true,"name":"sno","clientURLs":["https://192.0.2.1:2379"]}"#,
        )?;
        assert_eq!((member.id, member.name.as_str()), (7, "sno"));
        assert_eq!(member.json()?, br#"{"id":7,"peerURLs":["https://192.0.2.1:2380"],"name":"sno"}"#);
        assert_eq!(Member::parse(br#"{"id":7,"peerURLs":null}"#)?.peer_urls, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn peer_urls_are_checked() {
        for good in ["http://localhost:2380", "https://[::1]:2380", "unix://m1"] {
            assert!(check_peer_url(good).is_ok(), "{good}");
        }
        for bad in ["localhost:2380", "https://x", "https://x:y", "https://x:1/path", "ftp://x:1"] {
            assert_eq!(exit_code(&check_peer_url(bad).unwrap_err()), 2, "{bad}");
        }
    }
}
