//! Cron expressions, as k0rdent and Velero read them: the language of `ParseStandard` of robfig/cron v3 (3.0.1), which is not that of other crons.
//!
//! * Five fields: minute, hour, day of the month, month, day of the week; lists, ranges, steps, `5/15` (from 5 on, every 15), `?` for `*`, names of
//!   months and days in any case. Sunday is 0, and 7 is an error. `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight`, `@hourly`, and
//!   `@every` with a duration of Go, all in small letters. `TZ=ZONE ` or `CRON_TZ=ZONE ` before it says the time zone.
//! * Where both days are restricted, either is enough. One that has `*` or `?` without a step in it is not restricted; `*/2` is.
//! * What does not occur within five years never does.
//!
//! One thing differs, and is meant to: an instant in the hour that spring skips comes right after it (there: not on that day), and one in the hour that
//! autumn repeats comes once (there: twice).

use anyhow::{Context, Result};
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use super::zone::zone;
use crate::error::usage;

/// Set in a field that has `*` or `?` without a step: of two days, it leaves the other to decide.
const STAR: u64 = 1 << 63;
/// The longest expression: none that means something comes near.
const LONGEST: usize = 1000;
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A field: what it is called, its least and greatest value, and the names of its values from the least on.
struct Field {
    called: &'static str,
    least: u64,
    most: u64,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { called: "minute", least: 0, most: 59, names: &[] },
    Field { called: "hour", least: 0, most: 23, names: &[] },
    Field { called: "day of the month", least: 1, most: 31, names: &[] },
    Field { called: "month", least: 1, most: 12, names: &MONTHS },
    Field { called: "day of the week", least: 0, most: 6, names: &DAYS },
];

/// An expression that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    /// The zone that stands before it.
    zone: Option<String>,
    when: When,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum When {
    /// So many seconds after the one before.
    Every(i64),
    /// By the five fields, in the order of [`FIELDS`]: bit by bit the values that match, and [`STAR`].
    Fields([u64; 5]),
}

impl Cron {
    /// Reads an expression.
    ///
    /// # Errors
    /// [`FailureKind::Usage`](crate::error::FailureKind::Usage), with what is wrong with it; as [`zone`] for the zone before it.
    pub fn parse(text: &str) -> Result<Self> {
        let read = || -> Result<Self> {
            if text.len() > LONGEST {
                return Err(usage("it is too long"));
            }
            let Some(named) = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) else {
                return Ok(Self { zone: None, when: when(text)? });
            };
            let (name, rest) = named.split_once(' ').ok_or_else(|| usage("after the time zone comes a blank, and then the expression"))?;
            zone(name)?;
            Ok(Self { zone: Some(name.to_owned()), when: when(rest.trim())? })
        };
        read().with_context(|| format!("the expression `{}` cannot be read", text.chars().take(80).collect::<String>()))
    }

    /// The zone that stands before it.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// The first instant after `after`, where the wall clock is that of `zone`; nothing when there is none within five years.
    #[must_use]
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self.when {
            When::Every(seconds) => Timestamp::from_second(after.as_second().checked_add(seconds)?).ok(),
            When::Fields(fields) => next(&fields, after, zone),
        }
    }

    /// The instants after `after`, in order, as [`Cron::next`] has them.
    pub fn instants<'a>(&'a self, after: Timestamp, zone: &'a TimeZone) -> impl Iterator<Item = Timestamp> + 'a {
        std::iter::successors(self.next(after, zone), move |last| self.next(*last, zone))
    }
}

fn when(text: &str) -> Result<When> {
    if let Some(name) = text.strip_prefix('@') {
        return descriptor(name);
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    let Ok(fields) = <[&str; 5]>::try_from(fields.as_slice()) else {
        return Err(usage(format!(
            "it has {} fields, not 5: minute, hour, day of the month, month, day of the week (or @hourly, @daily, …)",
            fields.len()
        )));
    };
    let mut bits = [0; 5];
    for (bits, (text, field)) in bits.iter_mut().zip(fields.iter().zip(&FIELDS)) {
        *bits = list(text, field).with_context(|| format!("in the field for the {}", field.called))?;
    }
    Ok(When::Fields(bits))
}

fn descriptor(name: &str) -> Result<When> {
    let fields = match name {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        _ => {
            let every = name.strip_prefix("every ");
            let every = every
                .ok_or_else(|| usage("after `@` comes yearly, annually, monthly, weekly, daily, midnight, hourly or `every DURATION`"))?;
            // Whole seconds, and at least one.
            let seconds = duration(every)?.as_secs().max(1);
            return Ok(When::Every(seconds));
        }
    };
    when(fields)
}

/// What a field means: parts between commas, of which each is a range. Parts may be empty; where all are, nothing matches.
fn list(text: &str, field: &Field) -> Result<u64> {
    text.split(',').filter(|part| !part.is_empty()).try_fold(0, |bits, part| Ok(bits | range(part, field)?))
}

/// `*`, `N`, `N-M`, each with `/STEP` or without.
fn range(part: &str, field: &Field) -> Result<u64> {
    let (bounds, step) = match part.split('/').collect::<Vec<_>>()[..] {
        [bounds] => (bounds, None),
        [bounds, step] => (bounds, Some(number(step)?)),
        _ => return Err(usage(format!("`{part}` has more than one slash"))),
    };
    let ends: Vec<&str> = bounds.split('-').collect();
    let (first, last, star) = match ends[..] {
        // What stands behind a hyphen is not looked at.
        ["*" | "?", ..] => (field.least, field.most, true),
        // With a step, a single value is where it begins.
        [only] => (value(only, field)?, if step.is_some() { field.most } else { value(only, field)? }, false),
        [first, last] => (value(first, field)?, value(last, field)?, false),
        _ => return Err(usage(format!("`{part}` has more than one hyphen"))),
    };
    let Field { least, most, .. } = *field;
    if first < least || last > most {
        return Err(usage(format!("`{part}` goes beyond {least} to {most}")));
    }
    if first > last {
        return Err(usage(format!("`{part}` begins after its end")));
    }
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(usage(format!("`{part}` has a step of 0")));
    }
    let bits = (first..=last).step_by(usize::try_from(step).unwrap_or(usize::MAX)).fold(0, |bits, value| bits | 1 << value);
    Ok(if star && step == 1 { bits | STAR } else { bits })
}

/// A value by its name or number.
fn value(text: &str, field: &Field) -> Result<u64> {
    let lower = text.to_lowercase();
    match (field.least..).zip(field.names).find(|(_, name)| **name == lower) {
        Some((value, _)) => Ok(value),
        None => number(text),
    }
}

/// A number as Go's `strconv.Atoi` reads it; below zero there is none.
fn number(text: &str) -> Result<u64> {
    let number: i64 = text.parse().map_err(|_| usage(format!("`{text}` is not a number, nor a name that stands for one here")))?;
    u64::try_from(number).map_err(|_| usage(format!("`{text}` is below zero")))
}

/// A duration as Go's `time.ParseDuration` reads it: a sign, and numbers with a unit each (`1h30m`, `1.5h`).
fn duration(text: &str) -> Result<SignedDuration> {
    const UNITS: [(&str, i128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let wrong =
        || usage(format!("`{text}` is no duration: numbers with a unit each, h, m or s, as in 90m or 1h30m; there is no unit for days"));
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut nanoseconds: i128 = 0;
    if rest != "0" && rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() && rest != "0" {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (whole, after) = rest.split_at(digits(rest));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(wrong());
        }
        let unit_ends = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_ends);
        let scale = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
        // More digits than any unit has nanoseconds say nothing more.
        let fraction = &fraction[..fraction.len().min(18)];
        let part = if fraction.is_empty() {
            0
        } else {
            fraction.parse::<i128>().map_err(|_| wrong())? * scale / 10_i128.pow(u32::try_from(fraction.len())?)
        };
        nanoseconds = whole
            .checked_mul(scale)
            .and_then(|all| all.checked_add(part))
            .and_then(|all| all.checked_add(nanoseconds))
            .ok_or_else(wrong)?;
        // As much as 64 bits hold: 292 years.
        i64::try_from(nanoseconds).map_err(|_| wrong())?;
        rest = after;
        if rest == "0" {
            return Err(wrong());
        }
    }
    let nanoseconds = i64::try_from(nanoseconds)?;
    Ok(SignedDuration::from_nanos(if negative { -nanoseconds } else { nanoseconds }))
}

/// The first instant after `after` whose wall clock in `zone` matches. A wall clock goes on by minutes, and is turned into an instant one by one: the
/// later one never gives the earlier instant, so that the first match after `after` is the next.
fn next(fields: &[u64; 5], after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let here = zone.to_datetime(after);
    let last_year = zone.to_datetime(after.checked_add(SignedDuration::from_secs(1)).ok()?).year().checked_add(5)?;
    let mut from = minute_after(here)?;
    loop {
        let wall = first_match(fields, from, last_year)?;
        let instant = instant(wall, zone)?;
        if instant > after {
            return Some(instant);
        }
        from = minute_after(wall)?;
    }
}

fn minute_after(wall: DateTime) -> Option<DateTime> {
    let minute = DateTime::from_parts(wall.date(), Time::new(wall.hour(), wall.minute(), 0, 0).ok()?);
    minute.checked_add(SignedDuration::from_mins(1)).ok()
}

/// The first wall clock from `from` on that matches, until the end of `last_year`.
fn first_match(fields: &[u64; 5], from: DateTime, last_year: i16) -> Option<DateTime> {
    let [minutes, hours, ..] = *fields;
    let mut date = from.date();
    let mut begin = from.time();
    while date.year() <= last_year {
        if is_day(fields, date) {
            for hour in (begin.hour()..24).filter(|hour| hours & 1 << hour != 0) {
                let least = if hour == begin.hour() { begin.minute() } else { 0 };
                if let Some(minute) = (least..60).find(|minute| minutes & 1 << minute != 0) {
                    return Some(DateTime::from_parts(date, Time::new(hour, minute, 0, 0).ok()?));
                }
            }
        }
        date = date.tomorrow().ok()?;
        begin = Time::midnight();
    }
    None
}

fn is_day([_, _, days, months, weekdays]: &[u64; 5], date: Date) -> bool {
    let day = days & 1 << date.day() != 0;
    let weekday = weekdays & 1 << date.weekday().to_sunday_zero_offset() != 0;
    let both = (days | weekdays) & STAR != 0;
    months & 1 << date.month() != 0 && if both { day && weekday } else { day || weekday }
}

/// When a wall clock in `zone` shows this: of two instants the first; of none, that at which the clock went on.
fn instant(wall: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let found = zone.to_ambiguous_timestamp(wall);
    match found.offset() {
        AmbiguousOffset::Gap { before, .. } => {
            // By the clock of before, it is past the change.
            let past = before.to_timestamp(wall).ok()?;
            zone.preceding(past.checked_add(SignedDuration::from_secs(1)).ok()?).next().map(|change| change.timestamp())
        }
        AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Fold { .. } => found.earlier().ok(),
    }
}

#[cfg(test)]
mod tests;
