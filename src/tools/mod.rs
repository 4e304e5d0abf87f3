//! A file or folder for each external program: its arguments, and a typed parser of its output, tested on captures of the real one. [`runtime`] finds
//! the unit of the container runtime with them, [`needs`] what a recovery needs and the node has not.
//!
//! What is common to all: a time limit on every call, the state after a change is read back instead of believing an exit status, and
//! the exit status is what decides, never a word in a message.

pub mod crictl;
pub mod needs;
pub mod ostree;
pub mod rpm_ostree;
pub mod runtime;
pub mod systemctl;
