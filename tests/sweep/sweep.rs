//! A command, and faults at each place where it changes something: after each of them it ends as it is documented, nothing that was there before
//! is lost, and the same command again leads to what it leads to untroubled.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use recovery::error::EXIT_CODES;

use crate::disk::Disk;
use crate::injector::{self, Ended, Fault, Point};
use crate::subject::{Named, State, Subject, again, same};

/// The kinds of faults.
pub(crate) const KINDS: [(&str, Fault); 12] = [
    ("kill", Fault::Kill),
    ("kill-started", Fault::KillAfter),
    // A disk that is full stays so until somebody makes room.
    ("ENOSPC", Fault::FailOn(Errno::ENOSPC)),
    ("EDQUOT", Fault::Fail(Errno::EDQUOT)),
    ("EIO", Fault::Fail(Errno::EIO)),
    ("EINTR", Fault::Fail(Errno::EINTR)),
    ("short", Fault::Short),
    ("TERM", Fault::Signal(Signal::SIGTERM, 1)),
    ("INT", Fault::Signal(Signal::SIGINT, 1)),
    ("HUP", Fault::Signal(Signal::SIGHUP, 1)),
    ("INT-twice", Fault::Signal(Signal::SIGINT, 2)),
    ("TERM-thrice", Fault::Signal(Signal::SIGTERM, 3)),
];

/// In which time a signal ends a command.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How often a place is looked for.
const TIMES: usize = 3;
/// Where the numbers of a sample begin; the same for each run, so that it tries the same.
const SEED: u64 = 14;

/// How much is tried.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reach {
    /// Each place.
    All,
    /// So many of each kind at most: of every call, and of all stretches of the way.
    Sample(usize),
    /// One place.
    Only(usize),
}

/// What came of a kind of fault.
#[derive(Debug)]
struct Count {
    tried: usize,
    failed: Vec<String>,
    took: Duration,
}

/// A subject on a disk of its own, and what it leads to untroubled.
pub(crate) struct Bench {
    name: &'static str,
    pub(crate) subject: Box<dyn Subject>,
    expected: State,
    points: Vec<Point>,
    // Goes last.
    _disk: Disk,
}

impl Bench {
    pub(crate) fn new((name, make): Named) -> Result<Self> {
        let disk = Disk::make()?;
        let subject = make(disk.path())?;
        let mut bench = Self { name, subject, expected: State::new(), points: Vec::new(), _disk: disk };
        // What is not the same twice would not be noticed after a fault.
        for first in [true, false] {
            bench.subject.prepare()?;
            let ended = injector::run(&mut bench.subject.command(), None)?;
            ensure!(ended.how == Ok(0), "{name}, untroubled, ended with {:?}: {}", ended.how, ended.said);
            let state = bench.subject.state()?;
            ensure!(!state.is_empty(), "{name} leads to nothing");
            if first {
                (bench.expected, bench.points) = (state, ended.points);
            } else {
                same(&bench.expected, &state).context("untroubled, a second time")?;
            }
        }
        Ok(bench)
    }

    /// One fault. `None` where the command did not come so far: with threads, it does not do the same each time.
    fn attempt(&mut self, number: usize, fault: Fault) -> Result<Option<(Point, Result<()>)>> {
        for _ in 0..TIMES {
            self.subject.prepare().with_context(|| format!("preparing {}", self.name))?;
            let ended = injector::run(&mut self.subject.command(), Some((number, fault)))?;
            let Some(hit) = ended.hit.clone() else { continue };
            let how = || format!("it ended with {:?} and said: {}", ended.how, ended.said.trim_end());
            return Ok(Some((hit, self.judge(&ended, fault).with_context(how))));
        }
        Ok(None)
    }

    fn judge(&self, ended: &Ended, fault: Fault) -> Result<()> {
        is_documented(ended, fault)?;
        if ended.how == Ok(0) {
            let state = self.is_as_expected().context("after the end with 0");
            // What is only a warning is put right by the next run, but it has to be said.
            match fault {
                Fault::Fail(error) | Fault::FailOn(error) if state.is_err() && ended.said.contains(&words(error)) => {}
                Fault::Signal(..) if state.is_err() && ended.said.contains("interrupted by a signal") => {}
                _ => return state,
            }
        }
        self.again()
    }

    /// What there is, is what an untroubled run leads to.
    pub(crate) fn is_as_expected(&self) -> Result<()> {
        same(&self.expected, &self.subject.state()?)
    }

    /// What was there before is intact, and the command leads to what it leads to untroubled when it is run again.
    pub(crate) fn again(&self) -> Result<()> {
        again(&*self.subject, &self.expected)
    }
}

/// It ended as it is documented for such a fault.
fn is_documented(ended: &Ended, fault: Fault) -> Result<()> {
    let said = |words: &str| ended.said.contains(words);
    match (fault, ended.how) {
        (Fault::Kill | Fault::KillAfter, how) => ensure!(how == Err(Signal::SIGKILL), "it was not killed"),
        // Until it catches them, signals end it as any program.
        (Fault::Signal(signal, _), Err(by)) if signal == by => {}
        (_, Err(signal)) => bail!("{signal} ended it"),
        (Fault::Short, Ok(code)) => ensure!(code == 0, "it does not write the rest"),
        (Fault::Signal(signal, _), Ok(code)) => {
            let after = ended.after.context("no time")?;
            let goes_on = signal == Signal::SIGHUP && code == 0;
            ensure!(goes_on || after < AT_ONCE, "it ended {} ms after the signal", after.as_millis());
            ensure!([0, 75].contains(&code), "it is interrupted, and does not end with 75");
        }
        (Fault::Fail(_) | Fault::FailOn(_), Ok(0)) | (Fault::Act, Ok(_)) => {}
        (Fault::Fail(error) | Fault::FailOn(error), Ok(code)) => {
            ensure!(EXIT_CODES.iter().any(|(documented, _)| i32::from(*documented) == code), "no documented exit code");
            let full = [Errno::ENOSPC, Errno::EDQUOT].contains(&error);
            // The disk is not really full, which the agent sees: where an attribute does not fit, it says so.
            let fits = !(code == 78 && said("no room for that in one file"));
            ensure!(!full || !fits || code == 73, "the disk is full, and it does not end with 73");
            ensure!(said(&words(error)) || (full && (!fits || said("space") || said("full"))), "the cause is not named");
            ensure!(said("/"), "no path is named");
        }
    }
    Ok(())
}

/// As the standard library says it, and the agent with it.
fn words(error: Errno) -> String {
    std::io::Error::from_raw_os_error(error as i32).to_string()
}

/// What is tried of one kind: the numbers of places, of those that there are.
pub(crate) struct Chosen {
    kind: &'static str,
    exist: usize,
    numbers: Vec<usize>,
}

impl Chosen {
    /// As much as the reach says of the places that exist; each place has a name, which others of its kind have too.
    pub(crate) fn of(kind: &'static str, names: &[&str], exist: &[usize], reach: Reach) -> Self {
        let numbers = match reach {
            Reach::All => exist.to_vec(),
            Reach::Sample(most) => sample(names, exist, most),
            Reach::Only(number) => vec![number],
        };
        Self { kind, exist: exist.len(), numbers }
    }
}

/// Tries a subject with the kinds of faults that are chosen, and prints what came of it. The failures, one line each.
pub(crate) fn sweep(named: Named, kinds: &[(&'static str, Fault)], reach: Reach, threads: usize) -> Result<Vec<String>> {
    let first = Bench::new(named)?;
    let points = &first.points;
    let calls: Vec<&str> = points.iter().map(|point| point.call.name).collect();
    let chosen = kinds.iter().map(|&(kind, fault)| {
        let exist: Vec<usize> = (1..=points.len()).filter(|number| fault.can_happen(&points[number - 1])).collect();
        Chosen::of(kind, &calls, &exist, reach)
    });
    let chosen: Vec<_> = chosen.collect();
    over(named, first, &chosen, threads, &|bench, kind, number| {
        Ok(bench.attempt(number, kinds[kind].1)?.map(|(hit, survived)| (hit.to_string(), survived)))
    })
}

/// One attempt, of a kind and at a number: where it hit, and whether that was survived; `None` where it did not come so far.
type Attempt<'a> = dyn Fn(&mut Bench, usize, usize) -> Result<Option<(String, Result<()>)>> + Sync + 'a;

/// Makes all attempts that are chosen, each by its kind and number, and prints what came of them.
pub(crate) fn over(named: Named, mut first: Bench, chosen: &[Chosen], threads: usize, attempt: &Attempt<'_>) -> Result<Vec<String>> {
    let (name, _) = named;
    let count = || Mutex::new(Count { tried: 0, failed: Vec::new(), took: Duration::ZERO });
    let counts: Vec<_> = chosen.iter().map(|_| count()).collect();
    let attempts: Vec<(usize, usize)> =
        chosen.iter().enumerate().flat_map(|(kind, chosen)| chosen.numbers.iter().map(move |number| (kind, *number))).collect();
    let next = AtomicUsize::new(0);
    let work = |bench: &mut Bench| -> Result<()> {
        while let Some(&(kind, number)) = attempts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let begun = Instant::now();
            let came_to_it = attempt(bench, kind, number)?;
            let mut count = counts[kind].lock().unwrap_or_else(PoisonError::into_inner);
            count.took += begun.elapsed();
            let Some((hit, survived)) = came_to_it else { continue };
            count.tried += 1;
            if let Err(error) = survived {
                let line = format!("SWEEP_POINT='{name} {} {number}' ({hit}): {error:#}", chosen[kind].kind);
                println!("{line}");
                count.failed.push(line);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| work(&mut Bench::new(named)?))).collect();
        work(&mut first)?;
        others.into_iter().try_for_each(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let mut failed = Vec::new();
    for (Chosen { kind, exist, .. }, count) in chosen.iter().zip(counts) {
        let Count { tried, failed: mut lines, took } = count.into_inner().unwrap_or_else(PoisonError::into_inner);
        println!("| {name} | {kind} | {exist} | {tried} | {} | {:.1} |", tried - lines.len(), took.as_secs_f64());
        failed.append(&mut lines);
    }
    Ok(failed)
}

/// So many places at most: of each call in each tenth of the way one, then more of them by chance.
fn sample(names: &[&str], exist: &[usize], most: usize) -> Vec<usize> {
    let mut random = SEED;
    let mut order: Vec<(usize, u64, usize)> = Vec::new();
    let mut seen: BTreeMap<(&str, usize), usize> = BTreeMap::new();
    let mut shuffled: Vec<(u64, usize)> = exist
        .iter()
        .map(|number| {
            // Numbers that look like chance: xorshift64.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random, *number)
        })
        .collect();
    shuffled.sort_unstable();
    for (chance, number) in shuffled {
        let of_its_kind = seen.entry((names[number - 1], number * 10 / (names.len() + 1))).or_default();
        order.push((*of_its_kind, chance, number));
        *of_its_kind += 1;
    }
    order.sort_unstable();
    let mut chosen: Vec<usize> = order.into_iter().take(most).map(|(.., number)| number).collect();
    chosen.sort_unstable();
    chosen
}
