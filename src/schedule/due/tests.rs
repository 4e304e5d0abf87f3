use super::*;

/// A node with a clock of its own, which can be set, and switched off. Every minute it does what the agent does when it is woken.
struct Sim {
    wall: Timestamp,
    /// Seconds since boot.
    up: u64,
    boots: u64,
    off: bool,
    blocked: Option<String>,
    fails: bool,
    schedules: Vec<Schedule>,
    /// Who ran when, by the wall clock.
    runs: Vec<(String, Timestamp)>,
    tries: usize,
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

impl Sim {
    fn new(from: &str, schedules: &[(&str, &str)]) -> Self {
        let wall = at(from);
        let schedule = |(name, expression): &(&str, &str)| Schedule {
            name: (*name).to_owned(),
            expression: (*expression).to_owned(),
            time_zone: None,
            before_upgrade: false,
            keep: 3,
            paused: false,
            created: wall,
            state: State::begin(wall),
        };
        let schedules = schedules.iter().map(schedule).collect();
        Self { wall, up: 0, boots: 1, off: false, blocked: None, fails: false, schedules, runs: Vec::new(), tries: 0 }
    }

    fn now(&self) -> Now {
        Now { moment: Moment { wall: self.wall, boot: format!("boot-{}", self.boots), seconds: self.up }, blocked: self.blocked.clone() }
    }

    fn wake(&mut self) {
        let mut done = Vec::new();
        loop {
            let now = self.now();
            for schedule in &mut self.schedules {
                settle(&mut schedule.state, &now);
            }
            let mut due: Vec<(Timestamp, usize)> = Vec::new();
            for (index, schedule) in self.schedules.iter().enumerate() {
                if let Verdict::Due(since) = judge(schedule, &now).unwrap() {
                    due.push((since, index));
                }
            }
            let Some((_, index)) = due.into_iter().min() else { return };
            let schedule = &mut self.schedules[index];
            assert!(!done.contains(&index), "{} would run twice at once", schedule.name);
            done.push(index);
            begin(schedule, &now, "b".to_owned(), true).unwrap();
            self.tries += 1;
            if self.fails {
                failed(schedule, "busy".to_owned(), "operators progress".to_owned(), self.wall);
            } else {
                succeeded(schedule, "b".to_owned(), self.wall, Some(now.moment));
                self.runs.push((schedule.name.clone(), self.wall));
            }
        }
    }

    /// So many minutes, one by one.
    fn minutes(&mut self, minutes: u64) -> &mut Self {
        for _ in 0..minutes {
            self.wall += SignedDuration::from_mins(1);
            if !self.off {
                self.up += 60;
                self.wake();
            }
        }
        self
    }

    fn until(&mut self, end: &str) -> &mut Self {
        let minutes = at(end).duration_since(self.wall).as_mins();
        self.minutes(u64::try_from(minutes).unwrap())
    }

    /// The clock is set by so many hours.
    fn set(&mut self, hours: i64) -> &mut Self {
        self.wall += SignedDuration::from_hours(hours);
        self.wake();
        self
    }

    fn power(&mut self, on: bool) -> &mut Self {
        self.off = !on;
        if on {
            self.boots += 1;
            self.up = 0;
        }
        self
    }

    fn times(&self) -> Vec<String> {
        self.runs.iter().map(|(_, time)| time.strftime("%d %H:%M").to_string()).collect()
    }

    fn verdict(&self) -> Verdict {
        judge(&self.schedules[0], &self.now()).unwrap()
    }
}

#[test]
fn the_first_run_is_at_the_next_instant_and_then_at_each() {
    let mut sim = Sim::new("2026-03-01T05:59:30Z", &[("a", "0 */6 * * *")]);
    assert_eq!(sim.verdict(), Verdict::At(at("2026-03-01T06:00:00Z")));
    sim.wake();
    assert!(sim.runs.is_empty());
    // Four months, minute by minute: 122 days of four instants, the first of which is past.
    sim.until("2026-06-30T23:59:30Z");
    assert_eq!(sim.runs.len(), 122 * 4 - 1);
    assert!(sim.runs.iter().all(|(_, time)| time.strftime("%M").to_string() == "00"));
    let mut paused = Sim::new("2026-03-01T05:59:30Z", &[("a", "0 */6 * * *")]);
    paused.schedules[0].paused = true;
    assert_eq!((paused.minutes(3000).runs.len(), paused.verdict()), (0, Verdict::Paused));
    assert_eq!(Sim::new("2026-03-01T05:59:30Z", &[("a", "0 0 31 2 *")]).verdict(), Verdict::Never);
}

#[test]
fn two_changes_of_the_clock_cost_and_give_no_run() {
    let mut sim = Sim::new("2026-03-01T12:00:00Z", &[("a", "CRON_TZ=Europe/Berlin 30 2 * * *")]);
    sim.until("2026-12-01T12:00:00Z");
    // One a day, from the 2nd of March on.
    assert_eq!(sim.runs.len(), 275);
    let days: std::collections::BTreeSet<_> =
        sim.runs.iter().map(|(_, time)| time.to_zoned(TimeZone::get("Europe/Berlin").unwrap()).date()).collect();
    assert_eq!(days.len(), 275);
}

#[test]
fn missed_runs_become_one_after_a_month_off_too() {
    let mut sim = Sim::new("2026-03-01T12:30:00Z", &[("a", "0 */6 * * *"), ("b", "15 */6 * * *"), ("c", "@every 6h")]);
    sim.until("2026-03-01T20:00:00Z");
    assert_eq!(sim.times(), ["01 18:00", "01 18:15", "01 18:30"]);
    sim.runs.clear();
    sim.power(false).until("2026-04-02T03:00:00Z").power(true).minutes(5);
    // One after the other, the longest due first.
    assert_eq!(sim.runs.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(sim.times(), ["02 03:01", "02 03:01", "02 03:01"]);
    sim.runs.clear();
    assert_eq!(sim.until("2026-04-02T10:00:00Z").times(), ["02 06:00", "02 06:15", "02 09:01"]);
}

#[test]
fn what_fails_is_tried_again_within_the_hour_and_at_the_next_instant_in_any_case() {
    let mut sim = Sim::new("2026-03-01T05:30:00Z", &[("a", "0 */6 * * *")]);
    sim.fails = true;
    sim.until("2026-03-01T06:04:00Z");
    let waits = |until: &str| Verdict::Waits { since: at("2026-03-01T06:00:00Z"), until: at(until), why: "operators progress".to_owned() };
    assert_eq!((sim.tries, sim.verdict()), (1, waits("2026-03-01T06:05:00Z")));
    sim.until("2026-03-01T06:05:00Z");
    assert_eq!((sim.tries, sim.verdict()), (2, waits("2026-03-01T06:15:00Z")));
    // 06:00, :05, :15, :35, 07:15, 08:15 … 11:15, and the instant at 12:00.
    sim.until("2026-03-01T11:59:00Z");
    assert_eq!((sim.tries, sim.verdict()), (9, waits("2026-03-01T12:00:00Z")));
    sim.until("2026-03-01T12:05:00Z");
    assert_eq!((sim.tries, sim.verdict()), (11, waits("2026-03-01T12:15:00Z")));
    // In another boot, nothing is known of how it is: at once.
    sim.power(false).minutes(1).power(true).minutes(1);
    assert_eq!(sim.tries, 12);
    sim.fails = false;
    assert_eq!(sim.until("2026-03-01T17:00:00Z").times(), ["01 12:27"]);
    assert_eq!(sim.schedules[0].state.waiting, None);
    // What comes each minute is tried each minute.
    let mut often = Sim::new("2026-03-01T05:30:00Z", &[("a", "* * * * *")]);
    often.fails = true;
    assert_eq!(often.minutes(10).tries, 10);
}

#[test]
fn what_is_in_the_way_keeps_it_waiting_and_says_so() {
    let mut sim = Sim::new("2026-03-01T05:30:00Z", &[("a", "0 */6 * * *")]);
    sim.blocked = Some("a recovery is in progress".to_owned());
    sim.until("2026-03-02T05:30:00Z");
    let (since, until) = (at("2026-03-01T06:00:00Z"), at("2026-03-02T05:35:00Z"));
    assert_eq!((sim.tries, sim.verdict()), (0, Verdict::Waits { since, until, why: "a recovery is in progress".to_owned() }));
    sim.blocked = None;
    assert_eq!(sim.minutes(90).times(), ["02 05:31", "02 06:00"]);
}

#[test]
fn a_clock_that_jumps_a_day_either_way_starts_no_storm() {
    // Forward: what is missed is one run, and not so soon after the last.
    let mut sim = Sim::new("2026-03-01T05:30:00Z", &[("a", "0 */6 * * *")]);
    sim.until("2026-03-01T06:10:00Z").set(24);
    assert_eq!(sim.times(), ["01 06:00"]);
    assert!(matches!(sim.verdict(), Verdict::Waits { why, .. } if why.contains("clock")));
    sim.until("2026-03-02T18:30:00Z");
    assert_eq!(sim.times(), ["01 06:00", "02 09:00", "02 12:00", "02 18:00"]);
    // And back: the last run is yet to come, and is not believed. No day passes without one.
    sim.set(-24);
    assert_eq!((sim.runs.len(), sim.verdict()), (4, Verdict::At(at("2026-03-02T00:00:00Z"))));
    sim.runs.clear();
    sim.until("2026-03-03T00:30:00Z");
    assert_eq!(sim.times(), ["02 00:00", "02 06:00", "02 12:00", "02 18:00", "03 00:00"]);

    // To and fro each ten minutes, for two days: never more often than twice as often as it is.
    sim.runs.clear();
    for _ in 0..144 {
        sim.minutes(10).set(24).minutes(10).set(-24);
    }
    assert!((4..=17).contains(&sim.runs.len()), "{:?}", sim.times());
    // A second back, just after it ran, is no second run.
    let mut sim = Sim::new("2026-03-01T05:59:00Z", &[("a", "0 */6 * * *")]);
    sim.minutes(1);
    sim.wall -= SignedDuration::from_secs(1);
    sim.wake();
    sim.until("2026-03-01T11:58:59Z");
    assert_eq!(sim.times(), ["01 06:00"]);
    assert_eq!(sim.minutes(2).times(), ["01 06:00", "01 12:00"]);
}

#[test]
fn a_clock_that_begins_in_1970_at_each_boot_costs_no_backup_at_each_boot() {
    let mut sim = Sim::new("2026-03-01T05:30:00Z", &[("a", "0 */6 * * *")]);
    sim.until("2026-03-01T06:10:00Z");
    for _ in 0..5 {
        let was = sim.wall;
        sim.power(false).power(true);
        sim.wall = at("1970-01-01T00:00:30Z");
        sim.minutes(5);
        // Then the time is got from the network.
        sim.wall = was + SignedDuration::from_mins(5);
        sim.wake();
        sim.minutes(5);
    }
    assert_eq!(sim.times(), ["01 06:00"]);
    // Without a network it goes on by the clock that there is.
    sim.power(false).power(true);
    sim.wall = at("1970-01-01T00:00:30Z");
    sim.minutes(800);
    assert_eq!(sim.times(), ["01 06:00", "01 06:00", "01 12:00"]);
}

#[test]
fn instants_that_come_while_a_run_is_at_work_are_left_out() {
    let after = |took: i64, by_itself: bool| {
        let mut sim = Sim::new("2026-01-01T00:00:30Z", &[("a", "*/5 * * * *")]);
        sim.wall = at("2026-01-01T00:05:00Z");
        let now = sim.now();
        begin(&mut sim.schedules[0], &now, "b".to_owned(), by_itself).unwrap();
        let ended = sim.wall + SignedDuration::from_secs(took);
        succeeded(&mut sim.schedules[0], "b".to_owned(), ended, by_itself.then_some(now.moment));
        sim.wall = ended;
        sim.verdict()
    };
    assert_eq!(after(299, true), Verdict::At(at("2026-01-01T00:10:00Z")));
    assert_eq!(after(301, true), Verdict::At(at("2026-01-01T00:15:00Z")), "one would follow the other without end");
    assert_eq!(after(1500, true), Verdict::At(at("2026-01-01T00:35:00Z")));
    assert_eq!(after(301, false), Verdict::Due(at("2026-01-01T00:10:00Z")), "that one was asked for, and takes no other's place");
}

#[test]
fn a_backup_that_is_found_a_month_after_its_run_was_cut_short_takes_the_place_of_no_other() {
    let found = |expression: &str, took: Option<u64>, by_itself: bool, on: &str| {
        let mut sim = Sim::new("2026-03-01T05:30:00Z", &[("a", expression)]);
        sim.wall = at("2026-03-01T06:00:00Z");
        let now = sim.now();
        begin(&mut sim.schedules[0], &now, "b".to_owned(), by_itself).unwrap();
        sim.power(false).until(on).power(true);
        adopted(&mut sim.schedules[0], "b".to_owned(), took.map(Duration::from_secs));
        let state = &sim.schedules[0].state;
        assert_eq!((state.waiting.is_some(), state.good.as_ref().map(|run| run.begun)), (false, Some(at("2026-03-01T06:00:00Z"))));
        sim
    };
    // A day, and a month: one run follows, and then each at its time.
    for day in ["2026-03-02", "2026-04-02"] {
        let mut sim = found("0 */6 * * *", Some(90), true, &format!("{day}T07:30:00Z"));
        assert_eq!(sim.verdict(), Verdict::Due(at("2026-03-01T12:00:00Z")), "{day}");
        assert_eq!(sim.until(&format!("{day}T12:30:00Z")).times(), ["02 07:31", "02 12:00"]);
        // A clock that is set right after that boot holds nothing back.
        let mut sim = found("0 */6 * * *", Some(90), true, &format!("{day}T07:30:00Z"));
        assert_eq!(sim.set(5).times(), ["02 12:30"]);
    }
    // Before the next instant nothing is due; and what came while it was at work is left out, as in any run.
    assert_eq!(found("0 */6 * * *", Some(90), true, "2026-03-01T11:00:00Z").verdict(), Verdict::At(at("2026-03-01T12:00:00Z")));
    assert_eq!(found("*/5 * * * *", Some(301), true, "2026-03-01T06:06:00Z").verdict(), Verdict::At(at("2026-03-01T06:10:00Z")));
    assert_eq!(found("*/5 * * * *", None, true, "2026-03-01T06:06:00Z").verdict(), Verdict::Due(at("2026-03-01T06:05:00Z")));
    // One that was asked for takes no other's place.
    assert_eq!(found("*/5 * * * *", Some(301), false, "2026-03-01T06:06:00Z").verdict(), Verdict::Due(at("2026-03-01T06:05:00Z")));
}

#[test]
fn the_timer_is_told_a_time_that_is_still_to_come() {
    let now = at("2026-03-01T05:30:00Z");
    let wake = |times: &[&str]| super::wake(times.iter().map(|time| at(time)), now);
    assert_eq!(wake(&[]), None);
    assert_eq!(wake(&["2026-03-01T06:00:00Z", "2026-03-01T05:45:00Z"]), Some(at("2026-03-01T05:45:00Z")));
    for soon in ["2026-03-01T05:30:05Z", "2026-03-01T05:29:00Z"] {
        assert_eq!(wake(&["2026-03-01T06:00:00Z", soon]), Some(at("2026-03-01T05:31:00Z")));
    }
}
