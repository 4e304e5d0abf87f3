use super::super::api::ClusterBackupStatus;
use super::super::machine::{Seen, transition};
use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn group(spec: serde_json::Value) -> ClusterGroupBackup {
    let mut group = ClusterGroupBackup::new("g", serde_json::from_value(spec).unwrap());
    group.metadata.generation = Some(1);
    group
}

fn names(number: u32) -> BTreeSet<String> {
    (0..number).map(|n| format!("c{n:04}")).collect()
}

fn made(group: &ClusterGroupBackup, cluster: &str, attempt: u32) -> ClusterBackup {
    let mut backup = ClusterBackup::new(&format!("g-{cluster}-{attempt}"), spec(group, cluster, attempt, "image"));
    backup.metadata.uid = Some(format!("{cluster}-{attempt}"));
    backup
}

fn ended(group: &ClusterGroupBackup, cluster: &str, attempt: u32, state: State, until: Option<Timestamp>) -> ClusterBackup {
    let mut backup = made(group, cluster, attempt);
    let reason = "Because".to_owned();
    backup.status =
        Some(ClusterBackupStatus { state, good_until: until, reason, started_at: Some(at(0)), ..ClusterBackupStatus::default() });
    backup
}

fn plan_of(group: &ClusterGroupBackup, clusters: u32, tries: &[ClusterBackup], now: Timestamp) -> Plan {
    plan(group, &names(clusters), &BTreeMap::new(), &tries.iter().collect::<Vec<_>>(), now)
}

/// Reason of a condition, and whether it is true.
fn said(plan: &Plan, kind: &str) -> (String, bool) {
    let condition = plan.status.conditions.iter().find(|one| one.kind == kind).unwrap();
    (condition.reason.clone(), condition.status == "True")
}

#[test]
fn what_a_group_does_not_say_is_as_documented() {
    let group = group(serde_json::json!({"clusters": ["a"]}));
    let ClusterGroupBackupSpec { enable, max_concurrency, deadline_seconds, give_up_after_seconds, max_age, retries, keep, .. } =
        group.spec.clone();
    assert!(enable);
    assert_eq!((max_concurrency, deadline_seconds, give_up_after_seconds, retries, keep), (10, 480, 1200, 1, 3));
    assert_eq!((max_age.as_str(), group.spec.name_template.as_str()), ("24h", "{group}"));
    let one = spec(&group, "a", 2, "registry/agent:1");
    assert_eq!((one.backup_name.as_str(), one.image.as_str()), ("g", "registry/agent:1"));
}

#[test]
fn no_more_run_than_may_and_whoever_left_the_group_counts() {
    let group = group(serde_json::json!({"clusters": ["x"], "maxConcurrency": 3}));
    let tries = [made(&group, "c0000", 1), made(&group, "elsewhere", 1)];
    let plan = plan_of(&group, 5, &tries, at(0));
    assert_eq!(plan.begin, [("c0001".to_owned(), 1)]);
    assert_eq!((plan.status.counts.running, plan.status.counts.waiting), (1, 4));
    assert_eq!(said(&plan, PROGRESSING), ("InProgress".to_owned(), true));
}

#[test]
fn nothing_begins_that_is_not_enabled() {
    let group = group(serde_json::json!({"clusters": ["x"], "enable": false}));
    let plan = plan_of(&group, 2, &[], at(0));
    assert_eq!(plan.begin, []);
    assert_eq!(said(&plan, PROGRESSING), ("NotEnabled".to_owned(), false));
    assert_eq!(said(&plan, BACKUP_SUCCEEDED), ("NotEnabled".to_owned(), false));
}

#[test]
fn a_timeout_is_gone_on_with_as_often_as_said_and_an_error_never() {
    let group = group(serde_json::json!({"clusters": ["x"], "retries": 1}));
    let timeout = |attempt| ended(&group, "c0000", attempt, State::BackupTimeout, None);
    assert_eq!(plan_of(&group, 1, &[timeout(1)], at(9)).begin, [("c0000".to_owned(), 2)]);
    let plan = plan_of(&group, 1, &[timeout(1), timeout(2)], at(9));
    assert_eq!((plan.begin.len(), plan.status.counts.timeout), (0, 1));
    let plan = plan_of(&group, 1, &[ended(&group, "c0000", 1, State::UnrecoverableError, None)], at(9));
    assert_eq!((plan.begin.len(), plan.status.counts.error), (0, 1));
    // A good one between them: the count begins anew.
    let good = ended(&group, "c0000", 2, State::Succeeded, Some(at(5)));
    assert_eq!(plan_of(&group, 1, &[timeout(1), good, timeout(3)], at(9)).begin, [("c0000".to_owned(), 4)]);
}

#[test]
fn one_of_which_no_try_can_be_made_has_failed_and_holds_nobody_up() {
    let group = group(serde_json::json!({"clusters": ["x"], "maxConcurrency": 1}));
    let refused = [("c0000".to_owned(), "not a name".to_owned())].into();
    let plan = plan(&group, &names(2), &refused, &[], at(0));
    assert_eq!(plan.begin, [("c0001".to_owned(), 1)]);
    assert_eq!((plan.status.counts.failed, plan.status.counts.waiting), (1, 1));
    assert_eq!((plan.status.failed[0].name.as_str(), plan.status.failed[0].reason.as_str()), ("c0000", "Refused: not a name"));
    // Whatever number somebody has given a try, there is one after it or none; nobody falls over it.
    let huge = ended(&group, "c0000", u32::MAX, State::BackupTimeout, None);
    assert_eq!(plan_of(&group, 1, &[huge], at(9)).begin, [("c0000".to_owned(), u32::MAX)]);
}

#[test]
fn one_that_failed_and_is_deleted_is_tried_again_under_another_number() {
    let group = group(serde_json::json!({"clusters": ["x"]}));
    let mut failed = ended(&group, "c0000", 1, State::UnrecoverableError, None);
    failed.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1)));
    assert_eq!(plan_of(&group, 1, &[failed], at(9)).begin, [("c0000".to_owned(), 2)]);
}

#[test]
fn a_backup_that_grew_old_is_taken_again_but_for_a_schedule() {
    let mut group = group(serde_json::json!({"clusters": ["x"]}));
    let good = [ended(&group, "c0000", 1, State::Succeeded, Some(at(100)))];
    let plan = plan_of(&group, 1, &good, at(99));
    assert_eq!((plan.begin.len(), plan.next), (0, Some(at(100))));
    assert_eq!(said(&plan, BACKUP_SUCCEEDED), ("BackupCompleted".to_owned(), true));
    assert_eq!(plan_of(&group, 1, &good, at(100)).begin, [("c0000".to_owned(), 2)]);
    group.metadata.labels = Some([(SCHEDULE_LABEL.to_owned(), "nightly".to_owned())].into());
    let plan = plan_of(&group, 1, &good, at(100));
    assert_eq!((plan.begin.len(), plan.next), (0, None));
}

#[test]
fn the_end_of_a_group_says_who_failed() {
    let group = group(serde_json::json!({"clusters": ["x"], "retries": 0}));
    let end = |n: u32, state| ended(&group, &format!("c{n:04}"), 1, state, Some(at(100)));
    let all = |states: &dyn Fn(u32) -> State| (0..30).map(|n| end(n, states(n))).collect::<Vec<_>>();
    let plan = plan_of(&group, 30, &all(&|_| State::Succeeded), at(9));
    assert_eq!(said(&plan, BACKUP_SUCCEEDED), ("BackupCompleted".to_owned(), true));
    let plan = plan_of(&group, 30, &all(&|n| if n == 7 { State::UnrecoverableError } else { State::Succeeded }), at(9));
    assert_eq!(said(&plan, BACKUP_SUCCEEDED), ("PartiallyDone".to_owned(), true));
    assert!(plan.status.conditions[0].message.ends_with("1 failed: c0007"), "{:?}", plan.status.conditions[0]);
    // All failed is an end, too.
    let plan = plan_of(&group, 30, &all(&|_| State::BackupTimeout), at(9));
    assert_eq!(said(&plan, BACKUP_SUCCEEDED), ("Failed".to_owned(), false));
    assert_eq!(said(&plan, PROGRESSING), ("Completed".to_owned(), false));
    assert_eq!(plan.status.failed.len(), NAMED);
    assert!(plan.status.conditions[0].message.ends_with("c0019 and 10 more"), "{:?}", plan.status.conditions[0]);
}

#[test]
fn tries_that_nobody_needs_go_and_the_good_ones_stay() {
    let group = group(serde_json::json!({"clusters": ["x"], "keep": 2}));
    let one = |attempt, state| ended(&group, "c0000", attempt, state, Some(at(100)));
    let failures = [one(1, State::BackupTimeout), one(2, State::UnrecoverableError)];
    assert_eq!(plan_of(&group, 1, &failures, at(9)).forget, Vec::<String>::new());
    let mixed = [
        one(1, State::Succeeded),
        one(2, State::BackupTimeout),
        one(3, State::Succeeded),
        one(4, State::Succeeded),
        one(5, State::UnrecoverableError),
    ];
    assert_eq!(plan_of(&group, 1, &mixed, at(9)).forget, ["g-c0000-1", "g-c0000-2"]);
}

#[test]
fn a_condition_keeps_its_time_while_it_stays() {
    let mut group = group(serde_json::json!({"clusters": ["x"]}));
    let plan = plan_of(&group, 2, &[], at(1));
    group.status = Some(plan.status);
    let later = plan_of(&group, 2, &[made(&group, "c0000", 1)], at(50));
    assert_eq!(later.status.conditions[1].last_transition_time, at(1));
}

#[test]
fn a_node_whose_clock_is_ahead_gains_nothing() {
    assert_eq!(good_until("1h", at(-10), at(0), None), at(3590));
    assert_eq!(good_until("1h", at(9999), at(0), None), at(3600));
    assert_eq!(good_until("1h30m", at(0), at(0), Some(at(60))), at(60));
}

/// A number that looks random, of a seed.
fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[test]
fn a_thousand_clusters_that_do_whatever_they_like_come_to_an_end_and_never_too_many_at_once() {
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    let group = group(serde_json::json!({"clusters": ["x"], "maxConcurrency": 40, "retries": 2}));
    let clusters = names(1000);
    let mut tries: Vec<ClusterBackup> = Vec::new();
    for second in 0.. {
        assert!(second < 100_000, "it does not end");
        let plan = plan(&group, &clusters, &BTreeMap::new(), &tries.iter().collect::<Vec<_>>(), at(second));
        let counts = plan.status.counts;
        assert!(counts.running <= 40, "{counts:?}");
        assert_eq!(counts.waiting + counts.running + counts.succeeded + counts.failed, 1000);
        // With places free, nobody waits.
        assert_eq!(plan.begin.len(), (counts.waiting as usize).min(40 - counts.running as usize));
        if said(&plan, PROGRESSING) == ("Completed".to_owned(), false) {
            assert_eq!((counts.waiting, counts.running), (0, 0));
            break;
        }
        tries.extend(plan.begin.iter().map(|(cluster, attempt)| made(&group, cluster, *attempt)));
        for backup in &mut tries {
            let status = backup.status.get_or_insert_default();
            if !status.state.is_final() {
                let found = Seen::ALL[usize::try_from(random(&mut seed) % Seen::ALL.len() as u64).unwrap()];
                status.state = transition(status.state, found).unwrap();
                status.good_until = Some(at(1_000_000));
            }
        }
    }
    let mut of: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    tries.iter().for_each(|one| of.entry(&one.spec.cluster).or_default().push(one.spec.attempt));
    assert_eq!(of.len(), 1000);
    assert!(of.values().all(|attempts| attempts.iter().copied().eq(1..=u32::try_from(attempts.len()).unwrap()) && attempts.len() <= 3));
}
