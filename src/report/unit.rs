//! What systemd is told when it started the agent: that it is at work, and at what. `systemctl status` shows it as `Status:`, also after a
//! failure.

use sd_notify::{NotifyState, notify};

use super::words;

/// The agent is at work: for a unit of type `notify`, it has started.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// What it is doing, or why it stopped, in one line (a newline would begin another assignment).
pub fn status(text: &str) {
    tell(NotifyState::Status(&words::line(text)));
}

/// Without systemd, nobody wants to know; with it, a message that is lost is no reason to stop.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = notify(&[state]) {
        tracing::debug!("telling systemd: {error}");
    }
}
