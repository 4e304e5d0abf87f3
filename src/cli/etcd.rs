//! `recovery etcd`: snapshots, for administrators and tests: the same code as the phases use.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use super::args::{EtcdArgs, EtcdRestoreArgs, EtcdSaveArgs, EtcdVerb};
use super::context::{Context, print_json};
use crate::compression::word;
use crate::error::{unsupported, usage};
use crate::etcd::{self, Endpoint, Options};
use crate::node::profile::Profile;
use crate::report::{mib, paths, words::line};

pub(super) fn run(context: &Context, args: &EtcdArgs) -> Result<ExitCode> {
    match &args.verb {
        EtcdVerb::Save(args) => save(context, args)?,
        EtcdVerb::Status(args) => {
            let task = context.progress.task("checking", None);
            let look = if args.trailer.skip_hash_check { etcd::status_without_hash } else { etcd::status };
            let status = look(&args.file, &|n| task.add(n))?;
            drop(task);
            context.print(&status, |s| {
                let mut text = format!("revision {}\ntotal keys {}\ndatabase {}\n", s.revision, s.total_keys, mib(s.db_size));
                for member in &s.members {
                    text += &format!("member {:x} {} {}\n", member.id, line(&member.name), line(&member.peer_urls.join(",")));
                }
                text
            })?;
        }
        EtcdVerb::Restore(args) => restore(context, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn save(context: &Context, args: &EtcdSaveArgs) -> Result<()> {
    let endpoint = match (&args.endpoint, &args.cacert, &args.cert, &args.key) {
        (Some(url), Some(ca), Some(cert), Some(key)) => {
            let (url, server_name) = by_number(url)?;
            Endpoint { url, server_name, ca: ca.clone(), cert: cert.clone(), key: key.clone() }
        }
        (None, None, None, None) => Endpoint::of(&context.node, Profile::of(&context.node)?)?,
        _ => return Err(usage("--endpoint, --cacert, --cert and --key go together")),
    };
    let task = context.progress.task("saving etcd", None);
    let saved = etcd::save(&endpoint, &args.file, context.deadline(), &|n| task.add(n))?;
    drop(task);
    context
        .print(&saved, |s| format!("{} from etcd, {} in {}\nsha256 {}\n", mib(s.bytes), mib(s.stored), paths::shown(&args.file), s.sha256))
}

fn restore(context: &Context, args: &EtcdRestoreArgs) -> Result<()> {
    if let Some(format) = args.write_out.as_deref().filter(|format| !["simple", "json"].contains(format)) {
        return Err(unsupported(format!("--write-out={format}: what was restored is told as text or as JSON: say simple or json")));
    }
    let data_dir = args.data_dir.clone().unwrap_or_else(|| format!("{}.etcd", args.name).into());
    let log = data_dir.join("member/wal");
    if let Some(elsewhere) = args.wal_dir.as_ref().filter(|dir| !dir.as_os_str().is_empty() && !is_same_place(dir, &log)) {
        return Err(unsupported(format!(
            "--wal-dir {elsewhere}: the write-ahead log is made inside the data directory: restore without --wal-dir, then `mv {log} \
             {elsewhere}` before etcd is started with its own --wal-dir",
            elsewhere = word(elsewhere),
            log = word(&log),
        )));
    }
    if let Some(cluster) = &args.initial_cluster {
        check_cluster(cluster, &args.name, &args.initial_advertise_peer_urls)?;
    }
    let options = Options {
        name: Some(args.name.clone()),
        peer_urls: args.initial_advertise_peer_urls.clone(),
        token: Some(args.initial_cluster_token.clone()),
        bump_revision: args.bump_revision,
        mark_compacted: args.mark_compacted,
        skip_hash_check: args.trailer.skip_hash_check,
    };
    let task = context.progress.task("restoring etcd", None);
    let restored = etcd::restore(&args.file, &data_dir, &options, &|n| task.add(n))?;
    drop(task);
    if args.write_out.as_deref() == Some("json") {
        print_json(&serde_json::to_value(&restored)?)?;
        return Ok(());
    }
    context.print(&restored, |r| {
        format!(
            "member {:x} ({}) of cluster {:x} at revision {} in {}\n",
            r.member_id,
            line(&r.name),
            r.cluster_id,
            r.revision,
            paths::shown(&data_dir)
        )
    })
}

/// True for two spellings of one path: `./o/member/wal/` is `o/member/wal`. Nothing need be there yet.
fn is_same_place(one: &Path, other: &Path) -> bool {
    match (std::path::absolute(one), std::path::absolute(other)) {
        (Ok(one), Ok(other)) => one.components().eq(other.components()),
        _ => one == other,
    }
}

/// Checks `--initial-cluster` as etcdutl does: the member is in it, with the peer URLs that it advertises. A cluster of several members is
/// what this agent does not make.
fn check_cluster(cluster: &str, name: &str, peer_urls: &[String]) -> Result<()> {
    let bad = |why: String| Err(usage(format!("--initial-cluster {cluster}: {why}")));
    let mut urls = Vec::new();
    let mut others = 0;
    for part in cluster.split(',').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            None | Some((_, "")) => return bad(format!("`{part}` is not NAME=URL")),
            Some((member, url)) if member == name => urls.push(url),
            Some(_) => others += 1,
        }
    }
    if urls.is_empty() {
        return bad(format!("the member `{name}` is not in it: --name must be one of its names"));
    }
    if others > 0 {
        return Err(unsupported(format!(
            "--initial-cluster {cluster}: this agent makes the data directory of a cluster of one member: restore with \
             `--initial-cluster {name}={}` and add the other members with `etcdctl member add`, or use `etcdutl snapshot restore`",
            urls.join(&format!(",{name}="))
        )));
    }
    urls.sort_unstable();
    let mut advertised: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    advertised.sort_unstable();
    if urls != advertised {
        return bad(format!(
            "it gives `{name}` the peer URLs {}, and --initial-advertise-peer-urls gives it {}: they must be the same (names are not \
             looked up)",
            urls.join(","),
            advertised.join(",")
        ));
    }
    Ok(())
}

/// The URL with an address instead of a name, and the name its certificate is checked for. Only `localhost` is known: the agent looks no
/// name up, because a static binary would load the host's own resolver for it.
fn by_number(url: &str) -> Result<(String, String)> {
    let rest = url.strip_prefix("https://").ok_or_else(|| usage(format!("--endpoint {url}: etcd is reached over https:// only")))?;
    let authority = rest.split('/').next().unwrap_or(rest);
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "2379"));
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let port: u16 = port.parse().map_err(|_| usage(format!("--endpoint {url}: `{port}` is not a port")))?;
    if name == "localhost" {
        return Ok((format!("https://127.0.0.1:{port}"), name.to_owned()));
    }
    name.parse::<std::net::IpAddr>().map_err(|_| usage(format!("--endpoint {url}: give an address; names are not looked up")))?;
    Ok((format!("https://{host}:{port}"), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_checked_as_etcdutl_checks_it() {
        let code = |cluster: &str, name, urls: &[&str]| {
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            check_cluster(cluster, name, &urls).map_err(|error| crate::error::exit_code(&error)).err()
        };
        assert_eq!(code("a=http://x:1", "a", &["http://x:1"]), None);
        assert_eq!(code("a=http://y:1,a=http://x:1,", "a", &["http://x:1", "http://y:1"]), None);
        assert_eq!(code("a=http://x:1,b=http://y:1", "a", &["http://x:1"]), Some(64));
        for (cluster, name) in [("a=http://x:1", "b"), ("a=http://x:2", "a"), ("", "a"), ("a", "a"), ("a=", "a")] {
            assert_eq!(code(cluster, name, &["http://x:1"]), Some(2), "{cluster}");
        }
    }

    #[test]
    fn endpoints_are_reached_by_number() {
        let by = |url| by_number(url).ok();
        assert_eq!(by("https://localhost:2379"), Some(("https://127.0.0.1:2379".to_owned(), "localhost".to_owned())));
        assert_eq!(by("https://[::1]:2379"), Some(("https://[::1]:2379".to_owned(), "::1".to_owned())));
        assert_eq!(by("https://10.0.0.1"), Some(("https://10.0.0.1:2379".to_owned(), "10.0.0.1".to_owned())));
        assert_eq!(by("https://etcd.example:2379"), None);
        assert_eq!(by("http://127.0.0.1:2379"), None);
    }
}
