//! A file or folder for each external program: its arguments, and a typed parser of its output, tested on captures of the real one.
//! [`runtime`] uses them to find the unit of the container runtime, [`needs`] to find what a recovery needs and the node lacks.
//!
//! Common to all: every call has a time limit; after a change the state is read back; and no decision depends on a word in a message.

pub mod crictl;
pub mod disk;
pub mod needs;
pub mod ostree;
pub mod rpm_ostree;
pub mod runtime;
pub mod sfdisk;
pub mod systemctl;
