//! The agent as one of another version.

use recovery::agent::Agent;

/// Notes are among the first things in a program.
const BEGIN: usize = 1 << 20;

/// Makes a program of the agent tell another version, of the same length as its own.
///
/// # Panics
/// When it does not tell its own.
pub fn pass_for(program: &mut [u8], version: &str) {
    let own = Agent::own().map_or_else(|error| panic!("{error:#}"), |own| own.version.to_string());
    assert_eq!(own.len(), version.len());
    let told = format!("{{\"type\":\"binary\",\"name\":\"recovery\",\"version\":\"{own}\"");
    let at = program[..BEGIN].windows(told.len()).position(|window| window == told.as_bytes());
    let end = at.unwrap_or_else(|| panic!("no note with {told}")) + told.len() - 1;
    program[end - own.len()..end].copy_from_slice(version.as_bytes());
}

/// Makes a program one for another kind of machine, as its header tells (`e_machine`).
pub fn pass_for_another_machine(program: &mut [u8]) {
    let other: u16 = if cfg!(target_arch = "aarch64") { 62 } else { 183 };
    program[18..20].copy_from_slice(&other.to_le_bytes());
}
