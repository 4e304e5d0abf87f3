//! What `schedule apply` reads, and the cron expressions in it.
#![no_main]

use jiff::Timestamp;
use jiff::tz::TimeZone;
use libfuzzer_sys::fuzz_target;
use recovery::schedule::cron::Cron;
use recovery::schedule::manifest;
use recovery_fuzz::refused;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut expressions = vec![text.to_owned()];
    match manifest::read(text) {
        Ok(changes) => expressions.extend(changes.into_iter().filter_map(|change| change.cron)),
        Err(error) => refused(&error),
    }
    let base = Timestamp::from_second(1_774_661_415).expect("a time of 2026");
    for expression in expressions {
        let cron = match Cron::parse(&expression) {
            Ok(cron) => cron,
            Err(error) => {
                refused(&error);
                continue;
            }
        };
        let zone = cron.zone().map_or(Ok(TimeZone::UTC), recovery::schedule::zone::zone).expect("a zone that was found before");
        let instants: Vec<Timestamp> = cron.instants(base, &zone).take(5).collect();
        assert!(instants.first().is_none_or(|first| *first > base) && instants.is_sorted_by(|a, b| a < b), "{expression}: {instants:?}");
    }
});
