//! Whether etcd's ports are free: its pod waits, for ever and without a word, while one of them is taken.

use anyhow::Result;

use crate::node::Node;
use crate::node::profile::{Kind, Profile};

/// Sockets as the kernel lists them (`proc_net(5)`): `sl local_address rem_address st …`, addresses as hex `ADDRESS:PORT`.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// `TCP_LISTEN` of the kernel's `include/net/tcp_states.h`.
const LISTEN: &str = "0A";

/// The ports etcd's pod listens on: clients, peers, metrics; on OpenShift also its proxy's.
fn ports(profile: &Profile) -> &'static [u16] {
    match profile.kind {
        Kind::OpenShift => &[2379, 2380, 2381, 9978],
        Kind::Kubeadm => &[2379, 2380, 2381],
    }
}

/// Checks that no process listens on etcd's ports.
///
/// # Errors
/// When a process does: the message names the ports.
pub(super) fn check_free(node: &Node, profile: &Profile) -> Result<()> {
    let mut taken: Vec<u16> = Vec::new();
    for table in TABLES.into_iter().filter(|table| node.exists(table)) {
        let listening = listening(&node.read_text(table)?);
        taken.extend(ports(profile).iter().filter(|port| listening.contains(port)));
    }
    taken.sort_unstable();
    taken.dedup();
    let shown: Vec<String> = taken.iter().map(ToString::to_string).collect();
    anyhow::ensure!(
        taken.is_empty(),
        "a process still listens on port {} (`ss -ltnp` names it): if that is an etcd that runs, its data cannot be replaced",
        shown.join(", ")
    );
    Ok(())
}

fn listening(table: &str) -> Vec<u16> {
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        (state == LISTEN).then(|| u16::from_str_radix(local.rsplit(':').next()?, 16).ok()).flatten()
    };
    table.lines().skip(1).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::profile::OPENSHIFT;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:094B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11111 1 0000000000000000 100 0 0 10 0
   1: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22222 1 0000000000000000 100 0 0 10 0
   2: 0100007F:C350 0100007F:094C 01 00000000:00000000 00:00000000 00000000     0        0 33333 1 0000000000000000 20 4 30 10 -1
";

    #[test]
    fn only_listeners_on_etcds_ports_count() {
        assert_eq!(listening(TCP), [2379, 22]);
        let root = tempfile::tempdir().unwrap();
        let node = Node::at(root.path(), None);
        assert!(check_free(&node, &OPENSHIFT).is_ok());
        std::fs::create_dir_all(root.path().join("proc/net")).unwrap();
        std::fs::write(root.path().join("proc/net/tcp"), TCP).unwrap();
        assert!(check_free(&node, &OPENSHIFT).unwrap_err().to_string().contains("port 2379 ("));
        std::fs::write(root.path().join("proc/net/tcp"), TCP.replace("094B", "1F90")).unwrap();
        assert!(check_free(&node, &OPENSHIFT).is_ok(), "a connection to another's port 2380 is none of ours");
    }

    #[test]
    fn the_kernels_own_table_is_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listening(&std::fs::read_to_string("/proc/net/tcp").unwrap()).contains(&port));
    }
}
