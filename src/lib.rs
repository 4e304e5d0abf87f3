//! `recovery`: backup and recovery of a machine that is a cluster by itself: single-node OpenShift on an ostree operating system, or kubeadm's.
//!
//! One way leads through it, and nothing points back: command line → what is asked ([`backup`], [`gate`], [`recovery`], carried out by the [`engine`]) → how it
//! is done ([`archive`], [`etcd`], [`kube`], [`tools`]) → the [`node`].
//!
//! Read in this order:
//!
//! 1. [`error`]: how a failure ends, and its exit code.
//! 2. [`node`]: the machine, as one value: root directory, programs, clock; the recovery directory and its lock; profile; identity.
//! 3. [`backup`]: what a backup is on disk, and how one is taken, checked, listed, pruned, exported, and imported from the old script.
//!    [`schedule`]: backups on time.
//! 4. [`engine`]: the pure transition function, the journal, the driver. [`recovery`]: what it carries out, one file per phase with its steps in order.
//! 5. [`archive`], [`etcd`], [`kube`], [`tools`]: the four ways in which things are done. [`modifiers`]: rules by which objects are patched.
//! 6. [`gate`]: no upgrade without a good backup. [`up`]: whether everything is up again.
//! 7. [`partition`]: the disk space of the recovery directory's own. [`collect`]: what support needs to see, in one archive.
//! 8. [`metrics`]: what a monitoring system asks of a node.
//! 9. [`hub`]: backups of a fleet, from a cluster of its own.
//! 10. [`formats`]: what is written to disk and read again by another version.
//! 11. [`agent`]: which of two agents on a node leads, and how one gets into the recovery directory.
//! 12. [`session`]: what a command works on, and the proof that it may. [`report`]: progress and log. [`compression`]: what a file is packed with. [`cli`]: one file per command.
//!
//! `ARCHITECTURE.md` says why it is so, `CONTRIBUTING.md` where to put what.

#![warn(clippy::unwrap_used)]

pub mod agent;
pub mod archive;
pub mod backup;
pub mod cli;
pub mod collect;
pub mod compression;
pub mod engine;
pub mod error;
pub mod etcd;
pub mod formats;
pub mod gate;
pub mod hub;
pub mod kube;
pub mod metrics;
pub mod modifiers;
pub mod node;
pub mod partition;
pub mod recovery;
pub mod report;
pub mod schedule;
pub mod session;
pub mod tools;
pub mod up;
