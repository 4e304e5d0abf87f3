//! Programs that hang and lie: at each call that the agent makes of one, counted, it goes wrong once. The agent ends as is documented, nothing that
//! was there before is lost, and the same command again leads to what it leads to untroubled.

use anyhow::{Context, Result, ensure};
use recovery::error::EXIT_CODES;
use testing::place::{Call, Wrong};

use crate::subject::Named;
use crate::sweep::{Bench, Chosen, Reach, over};

/// What a program says that is none: it clears the screen, sets its title, and nests deeper than any stack.
fn hostile() -> String {
    format!("\u{1b}[2J\u{1b}]0;mine\u{7}{}\n", "[".repeat(100_000))
}

/// A kind by its name, and what it does to a call.
pub(crate) type Kind = (&'static str, fn() -> Wrong);

pub(crate) const KINDS: [Kind; 6] = [
    ("tool-hangs", || Wrong::Hang),
    ("tool-fails-after", || Wrong::FailAfter("as told".to_owned(), 1)),
    ("tool-lies", || Wrong::Print(String::new())),
    ("tool-half", || Wrong::Half),
    ("tool-hostile", || Wrong::Print(hostile())),
    ("tool-warns", || Wrong::Warn("W1130 10:00:00.000000 1 main.go:12] this option is deprecated".to_owned())),
];

/// Tries a subject on an emulated node with the kinds that are chosen, and prints what came of it. The failures, one line each.
pub(crate) fn sweep(named: Named, kinds: &[Kind], reach: Reach, threads: usize) -> Result<Vec<String>> {
    let mut first = Bench::new(named)?;
    let calls = calls(&mut first)?;
    let words: Vec<String> = calls.iter().map(shown).collect();
    let all: Vec<usize> = (1..=calls.len()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let chosen: Vec<_> = kinds.iter().map(|(kind, _)| Chosen::of(kind, &words, &all, reach)).collect();
    over(named, first, &chosen, threads, &|bench, kind, number| attempt(bench, number, kinds[kind].1()))
}

/// The calls of an untroubled run.
fn calls(bench: &mut Bench) -> Result<Vec<Call>> {
    bench.subject.prepare()?;
    let before = bench.subject.node().context("it is on no emulated node")?.calls()?.len();
    let output = bench.subject.command().output()?;
    ensure!(output.status.success(), "{output:?}");
    let calls = bench.subject.node().context("no node")?.calls()?.into_iter().skip(before);
    // The node does not reboot.
    Ok(calls.filter(|call| !(call.tool == "systemctl" && call.args.contains("reboot"))).collect())
}

/// A call by its program and its verb.
fn shown(call: &Call) -> String {
    let verb: Vec<&str> = call.args.split(' ').filter(|word| !word.starts_with('-') && !word.contains('/')).take(2).collect();
    format!("{} {}", call.tool, verb.join(" "))
}

/// One call goes wrong. `None` where the agent did not come to it.
fn attempt(bench: &mut Bench, number: usize, what: Wrong) -> Result<Option<(String, Result<()>)>> {
    bench.subject.prepare()?;
    let node = bench.subject.node().context("it is on no emulated node")?;
    let before = node.calls()?.len();
    let is_warned = matches!(what, Wrong::Warn(_));
    node.fault_at(u32::try_from(number)?, what)?;
    let mut command = bench.subject.command();
    let output = command.output()?;
    let calls = node.calls()?.into_iter().skip(before).filter(|call| !(call.tool == "systemctl" && call.args.contains("reboot")));
    let Some(hit) = calls.into_iter().nth(number - 1) else { return Ok(None) };
    let said = String::from_utf8_lossy(&output.stderr);
    let judge = || {
        let code = output.status.code().context("a signal ended it")?;
        ensure!(EXIT_CODES.iter().any(|(documented, _)| i32::from(*documented) == code), "no documented exit code");
        ensure!(!said.contains('\u{1b}'), "what a program says reaches the terminal as it is");
        if code == 0 {
            return bench.is_as_expected().context("after the end with 0");
        }
        // ostree's list is no JSON: a line in it that is not known may be of a deployment, and none is guessed.
        ensure!(!is_warned || hit.tool == "ostree", "it takes a warning for an answer");
        ensure!(said.contains(&*hit.tool), "the program is not named");
        bench.again()
    };
    let survived = judge().with_context(|| format!("it ended with {} and said: {}", output.status, said.trim_end()));
    Ok(Some((format!("{} {}", hit.tool, hit.args), survived)))
}
