//! `recovery etcd`: snapshots, for administrators and tests: the same code as the phases use.

use std::process::ExitCode;

use anyhow::Result;

use super::args::{EtcdArgs, EtcdRestoreArgs, EtcdSaveArgs, EtcdVerb};
use super::context::Context;
use crate::error::usage;
use crate::etcd::{self, Endpoint, Options};
use crate::node::profile::Profile;
use crate::report::{mib, paths, words::line};

pub(super) fn run(context: &Context, args: &EtcdArgs) -> Result<ExitCode> {
    match &args.verb {
        EtcdVerb::Save(args) => save(context, args)?,
        EtcdVerb::Status { file } => {
            let task = context.progress.task("checking", None);
            let status = etcd::status(file, &|n| task.add(n))?;
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
    let options = Options {
        name: Some(args.name.clone()),
        peer_urls: args.initial_advertise_peer_urls.clone(),
        token: Some(args.initial_cluster_token.clone()),
        bump_revision: args.bump_revision,
        mark_compacted: args.mark_compacted,
        skip_hash_check: args.skip_hash_check,
    };
    let task = context.progress.task("restoring etcd", None);
    let restored = etcd::restore(&args.file, &args.data_dir, &options, &|n| task.add(n))?;
    drop(task);
    context.print(&restored, |r| {
        format!(
            "member {:x} ({}) of cluster {:x} at revision {} in {}\n",
            r.member_id,
            line(&r.name),
            r.cluster_id,
            r.revision,
            paths::shown(&args.data_dir)
        )
    })
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
    fn endpoints_are_reached_by_number() {
        let by = |url| by_number(url).ok();
        assert_eq!(by("https://localhost:2379"), Some(("https://127.0.0.1:2379".to_owned(), "localhost".to_owned())));
        assert_eq!(by("https://[::1]:2379"), Some(("https://[::1]:2379".to_owned(), "::1".to_owned())));
        assert_eq!(by("https://10.0.0.1"), Some(("https://10.0.0.1:2379".to_owned(), "10.0.0.1".to_owned())));
        assert_eq!(by("https://etcd.example:2379"), None);
        assert_eq!(by("http://127.0.0.1:2379"), None);
    }
}
