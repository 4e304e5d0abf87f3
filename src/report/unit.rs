//! Messages to systemd when it started the agent: that the agent works, and on what. `systemctl status` shows it as `Status:`, also after a
//! failure.

use sd_notify::{NotifyState, notify};

use super::words;

/// Says that the agent works: a unit of type `notify` has then started.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// What the agent is doing, or why it stopped, on one line (a newline would begin another assignment).
pub fn status(text: &str) {
    tell(NotifyState::Status(&words::line(text)));
}

/// Without systemd there is nobody to tell; with it, a lost message is no reason to stop.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = notify(&[state]) {
        tracing::debug!("telling systemd: {error}");
    }
}
