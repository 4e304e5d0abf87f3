//! The way from this machine to a node's API server. The node's network has no way out: each connection is made in it, wherever it is after a boot.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use real_node::{Node, Place, Power};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);
/// How soon a connection sees that the cable was pulled, and how long its making may take.
const GLANCE: Duration = Duration::from_millis(50);
const DIAL: Duration = Duration::from_secs(5);

/// An address of this machine at which the node's API server is.
pub(crate) struct Relay {
    address: SocketAddr,
    /// How often the cable was pulled and put back: it is out at odd numbers.
    cable: Arc<AtomicUsize>,
}

impl Relay {
    /// One for this node, for as long as this process: nobody connects any more when the test is over.
    pub(crate) fn start(node: &Node) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let relay = Self { address: listener.local_addr()?, cable: Arc::default() };
        let (place, cable) = (node.place().clone(), relay.cable.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let (place, cable) = (place.clone(), cable.clone());
                // In a thread of its own, as the namespace is a thread's. Whoever connects sees that it came to nothing.
                std::thread::spawn(move || connection(&near, &place, &cable));
            }
        });
        Ok(relay)
    }

    /// The kubeconfig of the node's administrator, for this address.
    pub(crate) fn kubeconfig(&self, node: &Node) -> Result<String> {
        let text = node.read(node.kind().kubeconfig())?;
        let here = text.replace("https://localhost:6443", &format!("https://{}", self.address));
        ensure!(here != text, "the node's kubeconfig names another server");
        Ok(here)
    }

    /// From now on nothing comes through, and nobody is told: as with a machine that has no power. A node that is to be off is asked nothing either.
    pub(crate) fn pull(&self) {
        self.cable.fetch_add(1, Ordering::SeqCst);
    }

    /// And from now on it does. Of a connection from before, nobody knows any more.
    pub(crate) fn put_back(&self) {
        self.cable.fetch_add(1, Ordering::SeqCst);
    }
}

fn connection(near: &TcpStream, place: &Place, cable: &AtomicUsize) -> Result<()> {
    let since = cable.load(Ordering::SeqCst);
    if since % 2 == 1 {
        while cable.load(Ordering::SeqCst) == since {
            std::thread::sleep(GLANCE);
        }
        return Ok(());
    }
    let leader = Power::of(place)?.leader.context("the node is off")?;
    let network = File::open(format!("/proc/{leader}/ns/net"))?;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    let far = TcpStream::connect_timeout(&API, DIAL)?;
    for stream in [near, &far] {
        stream.set_read_timeout(Some(GLANCE))?;
        stream.set_nodelay(true)?;
    }
    std::thread::scope(|scope| {
        scope.spawn(|| pump(near, &far, cable, since));
        pump(&far, near, cable, since);
    });
    Ok(())
}

/// Brings over what comes, until one of the two ends, or the cable was out.
fn pump(mut from: &TcpStream, mut to: &TcpStream, cable: &AtomicUsize, since: usize) {
    let mut bytes = [0; 16 << 10];
    loop {
        let read = from.read(&mut bytes);
        match cable.load(Ordering::SeqCst) {
            now if now == since => {}
            now if now == since + 1 => {
                std::thread::sleep(GLANCE);
                continue;
            }
            _ => break,
        }
        match read {
            Ok(0) => break,
            Ok(read) if to.write_all(&bytes[..read]).is_ok() => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => break,
        }
    }
    for stream in [from, to] {
        // One that is at its end already is ended.
        let _ = stream.shutdown(Shutdown::Both);
    }
}
