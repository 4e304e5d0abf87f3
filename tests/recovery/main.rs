//! A recovery from the outside of its room: what each verb does to a node, and what it refuses.

// First: it takes longest.
mod all_the_way;
mod before_a_backup;
mod by_hand;
mod cluster_restore;
mod collect;
mod full_disk;
mod gate;
mod hostile;
mod images;
mod in_the_way;
mod journald;
mod let_pass;
mod modifier;
mod old_script;
mod one_command;
mod own_job;
mod patch;
mod place;
mod real_api;
mod refusals;
mod reports;
mod runtimes;
mod served;
mod signals;
mod soft_reboot;
mod through;
mod unit;
mod up;
mod walk;
mod watch;
mod watching;
