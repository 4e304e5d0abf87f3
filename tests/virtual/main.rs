//! Power cuts, in a virtual machine.

#[allow(dead_code, reason = "the sweep uses all of it")]
#[path = "../sweep/injector.rs"]
mod injector;
mod log;
mod machine;
mod selinux;
#[allow(dead_code, reason = "the tests of recoveries use all of it")]
#[path = "../recovery/place.rs"]
mod small_node;
#[allow(dead_code, reason = "the small node needs how the agent ended")]
#[path = "../recovery/through.rs"]
mod through;
