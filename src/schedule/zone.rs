//! Time zones by their names: from the host's database, else from the one that is built in.

use anyhow::Result;
use jiff::tz::{TimeZone, TimeZoneDatabase};

use crate::error::{unsupported, usage};

/// What is meant where nothing is said.
pub const UTC: &str = "UTC";

/// The time zone of this name, as the tz database writes it: `Europe/Berlin`. The host's database comes first, because it is the one that is kept up
/// to date; a container, or a host without one, has what this agent was built with.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage) when there is none of this name;
/// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) for `Local`, which is another one from one host to the next.
pub fn zone(name: &str) -> Result<TimeZone> {
    if name.is_empty() || name == UTC {
        return Ok(TimeZone::UTC);
    }
    if name == "Local" {
        return Err(unsupported("the time zone `Local` is whatever the host has at the time: name the zone, as in Europe/Berlin"));
    }
    // The databases take a name in any case, the tz database and Go do not.
    let exact = |zone: TimeZone| (zone.iana_name() == Some(name)).then_some(zone);
    let found = [jiff::tz::db().clone(), TimeZoneDatabase::bundled()].iter().find_map(|db| exact(db.get(name).ok()?));
    found.ok_or_else(|| usage(format!("there is no time zone `{name}`: names are as in Europe/Berlin, America/New_York, UTC")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn a_zone_is_found_by_its_exact_name_with_or_without_the_hosts_database() {
        for good in ["", "UTC", "Europe/Berlin", "Asia/Tokyo", "Etc/GMT+5", "America/Argentina/Buenos_Aires"] {
            assert!(zone(good).is_ok(), "{good}");
        }
        for bad in ["europe/berlin", "Nowhere/Bad", "../etc/passwd", "CET-1CEST", "Europe"] {
            assert_eq!(zone(bad).map(drop).map_err(|error| exit_code(&error)), Err(2), "{bad}");
        }
        assert_eq!(zone("Local").map(drop).map_err(|error| exit_code(&error)), Err(64));
        assert!(TimeZoneDatabase::bundled().get("Europe/Berlin").is_ok());
    }
}
