//! Several threads on one pile of work, and their progress.

use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::Result;

use crate::node::clock::interrupted;

/// Called with bytes done since the last call.
pub type Tick<'a> = &'a (dyn Fn(u64) + Sync);

/// How many threads work at the same time: more would not make the disk faster, and each has buffers.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4)
}

/// A pile of work: the last item added is done first, so that the pile stays low.
pub(super) struct Pile<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    items: Vec<T>,
    busy: usize,
    failed: bool,
}

impl<T: Send> Pile<T> {
    /// Adds an item.
    pub(super) fn add(&self, item: T) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).items.push(item);
        self.changed.notify_one();
    }

    /// The next item. Waits while other workers may add some; `None` when everything is done or something failed.
    fn next(&self) -> Option<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.failed {
                return None;
            }
            if let Some(item) = state.items.pop() {
                state.busy += 1;
                return Some(item);
            }
            if state.busy == 0 {
                self.changed.notify_all();
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, failed: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.busy -= 1;
        state.failed |= failed;
        if failed || state.busy == 0 {
            self.changed.notify_all();
        }
    }
}

/// Marks an item done even when its work panics: otherwise the other threads would wait for ever, and the panic would never be seen.
struct Busy<'a, T: Send> {
    pile: &'a Pile<T>,
    failed: bool,
}

impl<T: Send> Drop for Busy<'_, T> {
    fn drop(&mut self) {
        self.pile.done(self.failed);
    }
}

/// Calls `work` for every item of `items`, the last one first, and for those that it adds; each thread has a state of its own. Returns the
/// states. The first error ends the work.
///
/// # Errors
/// The errors of `state` and `work`, and [`FailureKind::Interrupted`](crate::error::FailureKind::Interrupted) when interrupted.
pub(super) fn run<T: Send, S: Send>(
    items: Vec<T>,
    state: impl Fn() -> Result<S> + Sync,
    work: impl Fn(&mut S, T, &Pile<T>) -> Result<()> + Sync,
) -> Result<Vec<S>> {
    let pile = Pile { state: Mutex::new(State { items, busy: 0, failed: false }), changed: Condvar::new() };
    let worker = || -> Result<S> {
        let mut own = state()?;
        while let Some(item) = pile.next() {
            let mut busy = Busy { pile: &pile, failed: true };
            interrupted()?;
            work(&mut own, item, &pile)?;
            busy.failed = false;
        }
        Ok(own)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads()).map(|_| scope.spawn(worker)).collect();
        let results: Vec<Result<S>> =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect();
        results.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_added_is_done() -> Result<()> {
        let states = run(
            vec![20_u32],
            || Ok(0_u64),
            |sum, n, pile| {
                *sum += 1;
                (0..n.min(2)).for_each(|_| pile.add(n.saturating_sub(3)));
                Ok(())
            },
        )?;
        // 20 → 2 × 17 → 4 × 14 → … → 2: seven levels doubled, then zeros.
        assert_eq!(states.iter().sum::<u64>(), 1 + 2 + 4 + 8 + 16 + 32 + 64 + 128);
        Ok(())
    }

    #[test]
    fn the_first_error_ends_the_work() {
        let result = run((0..1000).collect(), || Ok(()), |(), n: u32, _| if n == 900 { anyhow::bail!("odd") } else { Ok(()) });
        assert_eq!(result.unwrap_err().to_string(), "odd");
    }
}
