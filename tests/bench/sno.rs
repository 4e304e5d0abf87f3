//! A tree of the shape of what is backed up of a single-node machine (`/etc`, `/usr/local`, `/var/lib/kubelet`, an etcd snapshot): 14,000
//! files and 650 MB. The same every time.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::fs::XattrFlags;

/// The file that stands for the etcd snapshot.
pub(crate) const ETCD: &str = "backup/snapshot.db";

/// Random numbers that are the same every time (xorshift64*).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Less than `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 32).map_or(0, |n| n % end)
    }
}

const WORDS: [&str; 32] = [
    "apiVersion: ",
    "kind: ",
    "metadata:\n  ",
    "name: ",
    "namespace: openshift-",
    "labels:\n    ",
    "app: ",
    "spec:\n  ",
    "containers:\n  - ",
    "image: ",
    "quay.io/openshift-release-dev/ocp-v4.0-art-dev@sha256:",
    "command:\n",
    "args:\n",
    "volumeMounts:\n",
    "mountPath: /etc/kubernetes/",
    "readOnly: true\n",
    "hostPath:\n",
    "terminationMessagePolicy: ",
    "kube-apiserver",
    "etcd",
    "resources:\n",
    "requests:\n",
    "cpu: ",
    "memory: ",
    "securityContext:\n",
    "privileged: true\n",
    "{\"metadata\":{\"uid\":\"",
    "\"managedFields\":[{",
    "\"f:spec\":{",
    "\"resourceVersion\":\"",
    "# a comment that explains it\n",
    "= yes\n",
];

fn text(random: &mut Random, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        bytes.extend_from_slice(WORDS[random.below(WORDS.len())].as_bytes());
        if random.below(4) == 0 {
            bytes.extend_from_slice(format!("{:016x}\n", random.next()).as_bytes());
        }
    }
    bytes.truncate(len);
    bytes
}

fn certificate(random: &mut Random, len: usize) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = b"-----BEGIN CERTIFICATE-----\n".to_vec();
    while bytes.len() < len {
        bytes.extend((0..64).map(|_| DIGITS[random.below(64)]));
        bytes.push(b'\n');
    }
    bytes.extend_from_slice(b"-----END CERTIFICATE-----\n");
    bytes
}

/// Machine code: short sequences that come again, with numbers between them.
fn binary(random: &mut Random, len: usize) -> Vec<u8> {
    let phrases: Vec<[u64; 3]> = (0..512).map(|_| [random.next(), random.next(), random.next()]).collect();
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        let words = 1 + random.below(3);
        for word in &phrases[random.below(phrases.len())][..words] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&random.next().to_le_bytes()[..4]);
    }
    bytes.truncate(len);
    bytes
}

/// Makes it in the new directory `dir`, or a part of it: one of `share` files.
pub(crate) fn make(dir: &Path, share: usize) -> Result<()> {
    let mut random = Random::new(1);
    for n in 0..13_000 / share {
        let len = 300 + random.below(10_700);
        let directory = match n % 10 {
            0..=4 => format!("etc/kubernetes/static-pod-resources/kube-apiserver-pod-{}/secrets/secret-{}", n % 7, n / 10 % 40),
            5..=7 => format!("var/lib/kubelet/pods/{:08x}/volumes/{}", n / 30, n % 3),
            _ => format!("etc/conf-{}", n % 90),
        };
        let content = if n % 10 < 3 { certificate(&mut random, len) } else { text(&mut random, len) };
        put(&dir.join(directory).join(format!("file-{n:05}")), &content, 0o600)?;
    }
    for n in 0..940 / share {
        let len = 20_000 + random.below(140_000);
        put(&dir.join(format!("etc/large-{}/manifest-{n}.json", n % 20)), &text(&mut random, len), 0o644)?;
    }
    for n in 0..60 / share {
        let len = (2 << 20) + random.below(4 << 20);
        put(&dir.join(format!("usr/local/bin/tool-{n}")), &binary(&mut random, len), 0o755)?;
    }
    put(&dir.join(ETCD), b"", 0o600)?;
    let mut etcd = fs::OpenOptions::new().append(true).open(dir.join(ETCD))?;
    for _ in 0..(250 << 20) / share / 4096 {
        let keys = 2000 + random.below(2000);
        etcd.write_all(&text(&mut random, keys))?;
        etcd.write_all(&binary(&mut random, 4096 - keys))?;
    }
    Ok(())
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    // Every file of such a node has a label.
    let label = format!("system_u:object_r:{}_t:s0\0", if mode == 0o755 { "bin" } else { "etc" });
    Ok(rustix::fs::lsetxattr(path, "security.selinux", label.as_bytes(), XattrFlags::empty())?)
}

/// Changes two files of a hundred, never the one that stands for etcd, and others for every `seed`.
pub(crate) fn change(dir: &Path, seed: u64) -> Result<()> {
    let mut files = Vec::new();
    list(dir, &mut files)?;
    files.sort();
    let mut random = Random::new(seed);
    for file in files.iter().filter(|file| !file.ends_with(ETCD)) {
        if random.below(50) == 0 {
            let mut bytes = fs::read(file)?;
            let at = random.below(bytes.len());
            bytes[at] ^= 0x55;
            fs::write(file, bytes)?;
        }
    }
    Ok(())
}

fn list(path: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { list(&entry.path(), into)? } else { into.push(entry.path()) }
    }
    Ok(())
}
