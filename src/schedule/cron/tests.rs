use std::collections::BTreeSet;

use super::*;
use crate::error::exit_code;

/// What robfig/cron 3.0.1 made of these: two instants each after [`BASE`], or its error; then instants around changes of the clock.
const CAPTURED: &str = include_str!("../../../tests/fixtures/cron/robfig-3.0.1.txt");
const BASE: &str = "2026-03-28T01:30:15Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn zone_of(cron: &Cron) -> TimeZone {
    zone(cron.zone().unwrap_or_default()).unwrap()
}

#[test]
fn every_captured_expression_means_the_same() {
    let (mut instants, mut errors) = (0, 0);
    let (cases, _) = CAPTURED.split_once("---").unwrap();
    for line in cases.lines() {
        let (text, captured) = line[1..].split_once('"').unwrap();
        let captured = captured.trim();
        let cron = Cron::parse(text);
        if captured.starts_with("ERR ") {
            assert_eq!(cron.map_err(|error| exit_code(&error)), Err(2), "{text}: {captured}");
            errors += 1;
            continue;
        }
        let cron = cron.unwrap_or_else(|error| panic!("{text}: {error:#}"));
        let zone = zone_of(&cron);
        let ours: Vec<Timestamp> = cron.instants(at(BASE), &zone).take(2).collect();
        // Never: a time that is none.
        let theirs: Vec<Timestamp> = captured.split(" | ").filter(|time| !time.starts_with("0001-")).map(at).collect();
        assert_eq!(ours, theirs, "{text}");
        instants += 1;
    }
    assert_eq!((instants, errors), (26, 14));
}

#[test]
fn the_clock_changes_as_captured_but_for_the_one_difference() {
    let mut compared = 0;
    for line in CAPTURED.lines().filter(|line| line.starts_with("CRON_TZ=") && line.contains(" from ")) {
        let (text, rest) = line.split_once(" from ").unwrap();
        let (from, captured) = rest.split_once(": ").unwrap();
        let cron = Cron::parse(text).unwrap();
        let zone = zone_of(&cron);
        let shown = |time: Timestamp| time.to_zoned(zone.clone()).strftime("%m-%dT%H:%M%:::z").to_string();
        let ours: Vec<String> = cron.instants(at(&format!("2026-{from}T12:00:00Z")), &zone).take(5).map(shown).collect();
        let theirs: Vec<&str> = captured.split_whitespace().collect();
        match (text.contains("30 2"), from) {
            (true, "03-28") => assert_eq!([&["03-29T03:00+02"], &theirs[..4]].concat(), ours),
            (true, _) => assert_eq!([&theirs[..1], &theirs[2..], &["10-29T02:30+01"]].concat(), ours),
            (false, _) => assert_eq!(theirs, ours),
        }
        compared += 1;
    }
    assert_eq!(compared, 6);
}

#[test]
fn without_a_zone_of_its_own_it_is_that_of_whoever_asks() {
    let cron = Cron::parse("0 6 * * *").unwrap();
    for (name, line) in [("UTC", "no tz, t in UTC  : "), ("Asia/Tokyo", "no tz, t in Tokyo: ")] {
        let captured = CAPTURED.lines().find_map(|one| one.strip_prefix(line)).unwrap();
        assert_eq!(cron.next(at(BASE), &zone(name).unwrap()), Some(at(captured)), "{name}");
    }
}

#[test]
fn corners_of_the_language_that_are_read_in_its_source() {
    let same = |one: &str, other: &str| assert_eq!(Cron::parse(one).unwrap(), Cron::parse(other).unwrap(), "{one}");
    // Behind a star, a hyphen says nothing; empty parts neither; Go's numbers have signs and zeros.
    same("*-5 * * * *", "* * * * *");
    same("?-x/1 * * * *", "* * * * *");
    same(",5,,06,+7 * * * *", "5,6,7 * * * *");
    same("0-59/99999999999 0 * * *", "0 0 * * *");
    same("0 0 * jAn-Mar MON", "0 0 * 1-3 1");
    same("0 0 * * */1", "0 0 * * *");
    same("0\t0\u{a0}* * *", "@daily");
    same("TZ=UTC   @daily ", "TZ=UTC @daily");
    same("@every 1h30m", "@every 5400s");
    same("@every +1.5h", "@every 90m0.4s");
    same("@every -1h", "@every 0");
    same("@every .5h", "@every 1800000ms");
    for wrong in [
        "",
        " ",
        "@",
        "@every",
        "@every ",
        "@every 1",
        "@every 1h0",
        "@every 1x",
        "@every h",
        "@every .s",
        "@every 1e3s",
        "@every 9999999999h",
        "@daily ",
        " @daily",
        "@every 1h ",
        "TZ=UTC",
        "TZ=UTC ",
        " TZ=UTC 0 0 * * *",
        "CRON_TZ=utc @daily",
        "tz=UTC @daily",
        "1-2-3 * * * *",
        "1/2/3 * * * *",
        "5-1 * * * *",
        "*/0 * * * *",
        "1/-2 * * * *",
        "-5 * * * *",
        "5- * * * *",
        "1_0 * * * *",
        "0x5 * * * *",
        "0 0 * 13 *",
        "0 0 * jan,foo *",
        "0 0 mon * *",
        "** * * * *",
        "*5 * * * *",
        "99999999999999999999 * * * *",
        "0 0 1#2 * *",
    ] {
        assert_eq!(Cron::parse(wrong).map_err(|error| exit_code(&error)), Err(2), "{wrong:?}");
    }
    assert_eq!(Cron::parse("TZ=Local 0 0 * * *").map_err(|error| exit_code(&error)), Err(64));
    assert_eq!(Cron::parse(&" *".repeat(10_000)).map_err(|error| exit_code(&error)), Err(2));
    // Nothing matches a field of empty parts.
    assert_eq!(Cron::parse(", * * * *").unwrap().next(at(BASE), &TimeZone::UTC), None);
    let error = format!("{:#}", Cron::parse("0 24 * * *").unwrap_err());
    assert_eq!(error, "the expression `0 24 * * *` cannot be read: in the field for the hour: `24` goes beyond 0 to 23");
}

#[test]
fn five_years_are_looked_through_and_no_more() {
    let leap = Cron::parse("0 0 29 2 *").unwrap();
    // 2100 has no such day.
    assert_eq!(leap.next(at("2096-03-01T00:00:00Z"), &TimeZone::UTC), None);
    assert_eq!(leap.next(at("2099-03-01T00:00:00Z"), &TimeZone::UTC), Some(at("2104-02-29T00:00:00Z")));
    assert_eq!(leap.next(at("2098-12-31T23:59:58.9Z"), &TimeZone::UTC), None);
    assert_eq!(leap.next(at("2098-12-31T23:59:59Z"), &TimeZone::UTC), Some(at("2104-02-29T00:00:00Z")));
}

/// What chooses: the same for the same seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// A field at random: as it is written, what it means, and whether it leaves the other day to decide.
fn field(dice: &mut Dice, least: u64, most: u64, names: &[&str]) -> (String, BTreeSet<u64>, bool) {
    let (mut parts, mut values, mut star) = (Vec::new(), BTreeSet::new(), false);
    for _ in 0..=dice.roll(6) / 4 {
        let one = |dice: &mut Dice| least + dice.roll(most - least + 1);
        let (a, b) = (one(dice), one(dice));
        let (begin, end) = (a.min(b), a.max(b));
        let step = 1 + dice.roll(most / 2);
        let name = |value: u64| match names.get(usize::try_from(value - least).unwrap()) {
            Some(name) if value.is_multiple_of(2) => name.to_uppercase(),
            _ => value.to_string(),
        };
        let (text, from, to, step) = match dice.roll(8) {
            0..3 => ("*".to_owned(), least, most, 1),
            3 => ("?".to_owned(), least, most, 1),
            4 => (format!("*/{step}"), least, most, step),
            5 => (format!("{}-{}/{step}", name(begin), name(end)), begin, end, step),
            6 => (format!("{}/{step}", name(begin)), begin, most, step),
            _ => (name(begin), begin, begin, 1),
        };
        star |= step == 1 && text.starts_with(['*', '?']);
        values.extend((from..=to).filter(|value| (value - from) % step == 0));
        parts.push(text);
    }
    (parts.join(","), values, star)
}

/// Minute by minute, on the wall: of the minutes that the clock shows for the first time, or skips, those that match. One that it shows again has been.
#[test]
fn instants_are_those_that_a_look_at_the_clock_each_minute_finds() {
    const ZONES: [&str; 9] = [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Africa/Cairo",
        "Africa/Casablanca",
        "Pacific/Chatham",
        "America/Santiago",
        "Asia/Kolkata",
    ];
    let mut dice = Dice(20_260_328);
    let (mut expressions, mut found, mut at_a_change) = (0, 0, 0);
    for round in 0..180 {
        let fields: Vec<_> = FIELDS.iter().map(|field| self::field(&mut dice, field.least, field.most, field.names)).collect();
        let text = fields.iter().map(|(text, ..)| text.as_str()).collect::<Vec<_>>().join(" ");
        let zone = zone(ZONES[round % ZONES.len()]).unwrap();
        let cron = Cron::parse(&text).unwrap();
        // Two days before a change of the clock, where there are any.
        let some_day = at("2026-01-01T00:00:00Z") + SignedDuration::from_hours(24 * i64::try_from(dice.roll(700)).unwrap());
        let change = zone.following(some_day).next().map_or(some_day, |change| change.timestamp());
        let begin = change - SignedDuration::from_hours(48) + SignedDuration::from_secs(i64::try_from(dice.roll(3600)).unwrap());
        let end = begin + SignedDuration::from_hours(96);

        let matches = |wall: DateTime| {
            let has = |field: usize, value: i8| fields[field].1.contains(&u64::from(value.unsigned_abs()));
            let (day, weekday) = (has(2, wall.day()), has(4, wall.date().weekday().to_sunday_zero_offset()));
            let day = if fields[2].2 || fields[4].2 { day && weekday } else { day || weekday };
            has(0, wall.minute()) && has(1, wall.hour()) && has(3, wall.month()) && day
        };
        let mut shown = zone.to_datetime(begin);
        let mut expected = Vec::new();
        let mut minute = Timestamp::from_second(begin.as_second() - begin.as_second() % 60).unwrap();
        while minute <= end {
            minute += SignedDuration::from_mins(1);
            let wall = zone.to_datetime(minute);
            let mut new = Vec::new();
            while let Some(next) = minute_after(shown).filter(|next| *next <= wall) {
                new.push(next);
                shown = next;
            }
            if new.iter().any(|wall| matches(*wall)) {
                at_a_change += usize::from(minute == change);
                expected.push(minute);
            }
        }
        expected.retain(|minute| *minute <= end);
        let ours: Vec<Timestamp> = cron.instants(begin, &zone).take_while(|instant| *instant <= end).collect();
        assert_eq!(ours, expected, "{text} in {zone:?} from {begin}");
        expressions += 1;
        found += ours.len();
    }
    assert!(expressions == 180 && found > 10_000 && at_a_change > 5, "{found} instants, {at_a_change} of them at a change");
}
