//! `recovery up`: whether everything is up, and what is not.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::args::UpArgs;
use super::context::Context;
use super::screen::{Row, Terminal, text};
use crate::backup::store::choose_unchanged;
use crate::backup::survey::survey;
use crate::error::FailureKind;
use crate::report::words::line;
use crate::up::{Before, Checked, Fell, Terms, Up, look, wait};

/// Those of a part that are named, when many are not up.
const MOST: usize = 10;

pub(super) fn run(context: &Context, args: &UpArgs) -> Result<ExitCode> {
    let chosen = |id| context.session().and_then(|session| choose_unchanged(&session, &survey(session.dir)?, Some(id)));
    let backup = args.backup.as_deref().map(chosen).transpose()?;
    let before = Before { manifest: backup.as_ref().map(|backup| &backup.manifest), since: None };
    let mut terminal = Terminal::of_stdout().filter(|terminal| terminal.obeys && !context.json);
    let mut said = String::new();
    let terms = Terms { hold: Duration::from_secs(args.hold), patience: context.deadline(), others: None };
    let up = wait(context.node.clock(), terms, &mut || look(&context.node, before), &mut |parts, held| {
        if let Some(terminal) = &mut terminal {
            // Nobody has to look.
            drop(terminal.rewrite(&context.rows(rows(parts, held, &[]))));
            return;
        }
        // Where nothing can be rewritten, what has changed is said.
        let down: Vec<String> = parts.iter().filter(|part| !part.is_up()).map(few).collect();
        let now = if down.is_empty() { "everything is up; it has to stay so".to_owned() } else { down.join("; ") };
        if now != said {
            context.progress.say(&now);
            said = now;
        }
    })?;
    context.print(&up, |Up { parts, held, fell, .. }| text(&rows(parts, Duration::from_secs_f64(*held), fell)))?;
    Ok(if up.up { ExitCode::SUCCESS } else { ExitCode::from(FailureKind::Unanswered.code()) })
}

/// One line for each part, and one for each of its objects that is not up; what did not stay up. On a small screen, what is up is left out
/// first.
fn rows(parts: &[Checked], held: Duration, fell: &[Fell]) -> Vec<Row> {
    let mut rows = Vec::new();
    for part in parts {
        let up = part.total - part.down.len();
        let (verdict, rank) = if part.is_up() { ("up", 30) } else { ("not up", 1) };
        rows.push(Row::of_a_table(rank, format!("{:<20} {verdict:<7} {up} of {}", part.part.to_string(), part.total)));
        for (at, one) in part.down.iter().take(MOST).enumerate() {
            let trouble = line(one.trouble.as_deref().unwrap_or_default()).into_owned();
            rows.push(Row::new(10 + at, format!("    {}: {trouble}", line(&one.name))));
        }
        if part.down.len() > MOST {
            rows.push(Row::new(10, format!("    and {} more", part.down.len() - MOST)));
        }
    }
    rows.extend(fell.iter().map(|fell| Row::new(20, line(&fell.to_string()))));
    let all_up = parts.iter().all(Checked::is_up);
    let end = if all_up { format!("everything is up, for {} s", held.as_secs()) } else { "not everything is up".to_owned() };
    rows.push(Row::new(0, end));
    rows
}

fn few(part: &Checked) -> String {
    let mut cut = part.clone();
    cut.down.truncate(MOST);
    cut.to_string()
}
