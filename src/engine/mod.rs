//! The engine: carries a plan of phases and steps out, writes down each step before and after it acts, and goes on where it was after any crash.
//!
//! It knows neither steps nor node. A room that has something to carry out brings a [`Procedure`] (its phases, and what a run of it is asked to do)
//! and does the [`Work`](driver::Work): recoveries do, and backups.
//!
//! Reading order: [`machine`] (which events may follow which, and what is next; pure), [`journal`] (what a procedure is, and its events on disk), [`driver`] (asks
//! the machine, writes down, acts, writes down).

pub mod driver;
pub mod journal;
pub mod machine;
#[cfg(test)]
mod trial;

pub use journal::Procedure;
