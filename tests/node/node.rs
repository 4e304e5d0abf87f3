//! `node`: a real node to work on, from the command line. See `lib.rs`, and the node's section of `tests/README.md`.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use real_node::{Broken, Node, Place, Power, Stay, Variant, machine};

/// A single-node control plane in a container, with real reboots. As root on Debian 12.
#[derive(Debug, Parser)]
#[command(name = "node", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a node in DIR, turn it on, and wait until it is Ready; it stays on until it is turned off
    Up {
        /// An empty or a new directory
        dir: PathBuf,
        /// What differs from a standard node: kubeadm, debian13, composefs, etcd-mount, extra-manifest, spare-disk, staged,
        /// pending, standbys[=NUMBER]; comma-separated
        #[arg(long, default_value = "")]
        variant: Variant,
    },
    /// Turn it on, and wait until systemd takes commands
    Boot {
        /// The node
        dir: PathBuf,
    },
    /// Run a command in it, as root; kubectl knows its cluster
    In {
        /// The node
        dir: PathBuf,
        /// The command
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Wait until it is Ready, with its operators
    Wait {
        /// The node
        dir: PathBuf,
    },
    /// Stop it dead, as a power cut does
    Kill {
        /// The node
        dir: PathBuf,
    },
    /// Say whether it is on, and what is or was booted (JSON)
    Power {
        /// The node
        dir: PathBuf,
    },
    /// Upgrade it to the next release, and break that
    Upgrade {
        /// The node
        dir: PathBuf,
        /// What is broken afterwards
        #[arg(long, value_enum, default_value = "api-server")]
        broken: Broken,
    },
    /// Turn it off and remove it
    Down {
        /// The node
        dir: PathBuf,
    },
    /// Play machine for it, in the foreground: what `up` and `boot` start
    #[command(hide = true)]
    Machine {
        /// The node
        dir: PathBuf,
        /// Go on when standard input is closed
        #[arg(long)]
        stay: bool,
    },
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().verb {
        Verb::Up { dir, variant } => Node::up_to_stay(&dir, &variant).map(drop)?,
        Verb::Boot { dir } => Node::at(&dir, Stay::Forever)?.boot()?,
        Verb::In { dir, command } => {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            return Err(Node::at(&dir, Stay::Forever)?.command(&words)?.exec().into());
        }
        Verb::Wait { dir } => Node::at(&dir, Stay::Forever)?.wait_well()?,
        Verb::Kill { dir } => Node::at(&dir, Stay::Forever)?.kill()?,
        Verb::Power { dir } => println!("{}", serde_json::to_string(&Power::of(&Place::existing(&dir)?)?)?),
        Verb::Upgrade { dir, broken } => Node::at(&dir, Stay::Forever)?.upgrade(broken)?,
        Verb::Down { dir } => Node::at(&dir, Stay::Forever)?.down()?,
        Verb::Machine { dir, stay } => machine::play(&Place::existing(&dir)?, stay)?,
    }
    Ok(ExitCode::SUCCESS)
}
