//! The real node itself, before anything is done on it: what every drill stands on.

mod host;
mod smoke;
