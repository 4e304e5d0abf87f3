//! What can be said to `hub`.

use std::net::SocketAddr;

use clap::{Args, Subcommand};

/// `hub`
#[derive(Debug, Clone, Args)]
pub struct HubArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: HubVerb,
}

/// The verbs of `hub`.
#[derive(Debug, Clone, Subcommand)]
pub enum HubVerb {
    /// Run the controller, until it is stopped: in a pod, see packaging/hub
    Run(HubRunArgs),
    /// Show which clusters may be upgraded, which are blocked, and why
    Status(HubStatusArgs),
}

/// `hub run`
#[derive(Debug, Clone, Args)]
pub struct HubRunArgs {
    /// The namespace whose objects it looks at
    #[arg(long, value_name = "NAMESPACE", required_unless_present = "all_namespaces")]
    pub namespace: Option<String>,
    /// Look at the objects of every namespace
    #[arg(long, conflicts_with = "namespace", requires = "lease_namespace")]
    pub all_namespaces: bool,
    /// The namespace of the Lease by which one replica is the active one [default: that of --namespace]
    #[arg(long, value_name = "NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// The agent's image on the clusters, where a group names none [default: that of the pod --identity]
    #[arg(long, value_name = "IMAGE", required_unless_present = "identity")]
    pub image: Option<String>,
    /// Where health and metrics are served
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// What this replica is called: the name of its pod
    #[arg(long, value_name = "NAME")]
    pub identity: Option<String>,
}

/// `hub status`
#[derive(Debug, Clone, Args)]
pub struct HubStatusArgs {
    /// This cluster alone
    #[arg(value_name = "CLUSTER")]
    pub cluster: Option<String>,
    /// The clusters of this group alone
    #[arg(long, value_name = "GROUP", conflicts_with = "cluster")]
    pub group: Option<String>,
    /// The namespace; all unless given
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Exit with 1 unless all of them may be upgraded, as far as their own group's backups go
    #[arg(long)]
    pub check: bool,
}
