//! Waiting until everything is up.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::look::{Before, Checked, look};
use crate::node::Node;

/// For how long everything has to stay up, unless said otherwise: what starts and dies does so within a minute.
pub const HOLD: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// How it ended.
#[derive(Debug, Clone, Serialize)]
pub struct Up {
    /// Everything is up, and has been for as long as it has to.
    pub up: bool,
    /// For how long it has been up, seconds.
    pub held: f64,
    /// How long it was waited for, seconds.
    pub waited: f64,
    /// Every part, as it was last.
    pub parts: Vec<Checked>,
}

/// Looks until everything has been up for `hold`, or nothing has come of it for `patience`. `show` gets each look, and for how long all has been up.
///
/// # Errors
/// When interrupted.
pub fn wait(node: &Node, before: Before<'_>, hold: Duration, patience: Duration, show: &mut dyn FnMut(&[Checked], Duration)) -> Result<Up> {
    let clock = node.clock();
    let (began, deadline) = (clock.since_boot(), clock.deadline(patience));
    let mut since = None;
    loop {
        let parts = look(node, before)?;
        let now = clock.since_boot();
        let all_up = parts.iter().all(Checked::is_up);
        since = all_up.then(|| since.unwrap_or(now));
        let so_far = since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        show(&parts, so_far);
        // What is up at the deadline may stay up.
        let up = all_up && so_far >= hold;
        if up || (deadline.passed() && !all_up) {
            return Ok(Up { up, held: so_far.as_secs_f64(), waited: now.saturating_sub(began).as_secs_f64(), parts });
        }
        clock.sleep(PAUSE)?;
    }
}
