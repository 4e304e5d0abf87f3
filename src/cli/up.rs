//! `recovery up`: whether everything is up, and what is not.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::args::UpArgs;
use super::context::{Context, to_stdout};
use super::status;
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
    let rows = status::rows_to_rewrite().filter(|_| !context.json && std::io::stdout().is_terminal());
    let mut said = String::new();
    let terms = Terms { hold: Duration::from_secs(args.hold), patience: context.deadline(), others: None };
    let up = wait(context.node.clock(), terms, &mut || look(&context.node, before), &mut |parts, held| {
        if let Some(rows) = rows {
            let text = describe(parts, held, &[]);
            // Nobody has to look.
            drop(to_stdout(&status::screen(&text, rows)));
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
    context.print(&up, |Up { parts, held, fell, .. }| describe(parts, Duration::from_secs_f64(*held), fell))?;
    Ok(if up.up { ExitCode::SUCCESS } else { ExitCode::from(FailureKind::Unanswered.code()) })
}

/// One line for each part, and one for each of its objects that is not up; what did not stay up.
fn describe(parts: &[Checked], held: Duration, fell: &[Fell]) -> String {
    let mut text = String::new();
    for part in parts {
        let up = part.total - part.down.len();
        let verdict = if part.is_up() { "up" } else { "not up" };
        text += &format!("{:<20} {verdict:<7} {up} of {}\n", part.part.to_string(), part.total);
        for one in part.down.iter().take(MOST) {
            text += &format!("    {}: {}\n", line(&one.name), line(one.trouble.as_deref().unwrap_or_default()));
        }
        if part.down.len() > MOST {
            text += &format!("    and {} more\n", part.down.len() - MOST);
        }
    }
    fell.iter().for_each(|fell| text += &format!("{}\n", line(&fell.to_string())));
    let all_up = parts.iter().all(Checked::is_up);
    text + &if all_up { format!("everything is up, for {} s\n", held.as_secs()) } else { "not everything is up\n".to_owned() }
}

fn few(part: &Checked) -> String {
    let mut cut = part.clone();
    cut.down.truncate(MOST);
    cut.to_string()
}
