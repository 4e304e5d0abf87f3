//! Power cuts, in a virtual machine.

mod log;
mod machine;
