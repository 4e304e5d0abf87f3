//! A group of many clusters: how many backups run at a time, when the last has ended, what the hub takes and asks for that.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::fleet::{Hub, path, verified};
use crate::thousand::{Life, Thousand};

/// Unless `RECOVERY_HUB_CLUSTERS` says how many: a thousand take two and a half minutes, the hub built for release.
const CLUSTERS: usize = 200;
const SLOTS: usize = 25;
/// How long a backup runs, seconds; of a thousand, as long as a real one at the least.
const TAKES: [u64; 2] = [4, 15];

#[test]
fn a_group_of_many_fills_its_slots_and_no_more() -> Result<()> {
    let clusters = std::env::var("RECOVERY_HUB_CLUSTERS").ok().and_then(|count| count.parse().ok()).unwrap_or(CLUSTERS);
    let slots = SLOTS * clusters / CLUSTERS;
    let takes = Duration::from_secs(TAKES[usize::from(clusters >= 1000)]);
    let names: Vec<String> = (0..clusters).map(|number| format!("site-{number:04}")).collect();
    let spokes = Thousand::start(names.clone(), move |_, _| Life {
        starts: Duration::from_millis(100),
        takes,
        code: 0,
        message: verified(),
        log: String::new(),
    })?;
    let hub = Hub::start()?;
    for name in &names {
        hub.knows(name, &spokes.kubeconfig(name))?;
    }
    let running = hub.run(&hub.kubeconfig()?)?;
    let before: u64 = hub.cluster.requests()?.values().sum();
    let begun = Instant::now();
    hub.group("all", &json!({"clusters": names, "maxConcurrency": slots}))?;
    let allowed = (takes * u32::try_from(clusters.div_ceil(slots))?).as_secs_f64();
    let end = begun + Duration::from_secs_f64(allowed * 4.0 + 60.0);
    let group = loop {
        let group = hub.cluster.api.get(&path("clustergroupbackups", "all"))?.context("the group is gone")?;
        if group["status"]["counts"]["succeeded"] == clusters {
            break group;
        }
        ensure!(Instant::now() < end, "{}\n{}", group["status"], hub.said());
        std::thread::sleep(Duration::from_millis(200));
    };
    let took = begun.elapsed().as_secs_f64();
    let asked = hub.cluster.requests()?.values().sum::<u64>() - before;
    let memory = running.peak()?;
    println!(
        "{clusters} clusters, {slots} at a time: {took:.1} s, the slots allow {allowed:.1} s ({:.2} times); most at work {}; peak {} MiB; \
         {:.1} s of a processor; {} requests to the hub's API and {} to its own for each cluster",
        took / allowed,
        spokes.most_at_work(),
        memory >> 20,
        running.busy()?.as_secs_f64(),
        asked / clusters as u64,
        spokes.all_requests() / clusters as u64,
    );
    ensure!(spokes.most_at_work() <= slots, "{} at work, {slots} may be", spokes.most_at_work());
    ensure!(group["status"]["counts"]["failed"] == 0, "{}", group["status"]);
    for name in &names {
        ensure!(spokes.jobs(name)? == 1, "{name}: {} Jobs", spokes.jobs(name)?);
    }
    ensure!(memory < 150 << 20, "the hub took {} MiB", memory >> 20);
    // A busy machine is no fault of the hub's; the limit of 1.2 is for one that is not.
    ensure!(took < allowed * 3.0 + 10.0, "it took {took:.1} s, and the slots allow {allowed:.1} s");
    Ok(())
}
