//! The report of a recovery as one page: nothing is loaded, and no script runs. All text in it is escaped by one function, through which it has to pass:
//! what is not escaped is `'static`, or a number.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::{elapsed, ended, facts, instant, length, lists, state};
use crate::recovery::account::{Account, Attempt, AttemptEnd, End, PhaseAccount, StepAccount};
use crate::report::words::line;

/// What a browser makes of it. The policy keeps it from loading anything, were an element ever smuggled in.
const HEAD: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
"#;
const STYLE: &str = include_str!("page.css");

/// The page. `typed` has the commands in a text as they have to be typed here.
pub(super) fn page(account: &Account, typed: &dyn Fn(&str) -> String) -> String {
    let mut page = Page { html: HEAD.to_owned(), typed };
    page.raw("<title>Recovery ").text(&account.id).raw("</title>\n<style>\n").raw(STYLE).raw("</style>\n</head>\n<body>\n<main>\n");
    page.raw("<h1>Recovery <code>").text(&account.id).raw("</code></h1>\n");
    let class = match account.end {
        End::Open => "<p class=\"end open\">",
        End::Finished => "<p class=\"end finished\">",
        End::Abandoned | End::Replaced => "<p class=\"end other\">",
    };
    page.raw(class).text(ended(account)).raw("</p>\n<dl>\n");
    for (what, value) in facts(account) {
        page.raw("<dt>").text(what).raw("</dt><dd>").text(&value).raw("</dd>\n");
    }
    page.raw("</dl>\n");
    if let Some(next) = &account.next {
        page.raw("<p class=\"next\"><b>next:</b> ").text(&next.to_string()).raw("</p>\n");
    }
    page.timeline(account);
    for (title, lines) in lists(account) {
        page.raw("<h2>").text(title).raw("</h2>\n<ul>\n");
        for one in lines {
            page.raw("<li>").text(&one).raw("</li>\n");
        }
        page.raw("</ul>\n");
    }
    page.raw("</main>\n</body>\n</html>\n");
    page.html
}

struct Page<'a> {
    html: String,
    typed: &'a dyn Fn(&str) -> String,
}

/// From when to when the timeline is.
#[derive(Clone, Copy)]
struct Axis {
    begin: Timestamp,
    seconds: f64,
}

/// What a bar stands for.
#[derive(Clone, Copy)]
enum Bar {
    Own,
    Waiting,
    Failed,
    CutShort,
    Open,
    Reboot,
}

impl Page<'_> {
    /// What is part of the page itself.
    fn raw(&mut self, html: &'static str) -> &mut Self {
        self.html.push_str(html);
        self
    }

    /// Text, whatever is in it.
    fn text(&mut self, text: &str) -> &mut Self {
        for c in line(&(self.typed)(text)).chars() {
            match c {
                '&' => self.html.push_str("&amp;"),
                '<' => self.html.push_str("&lt;"),
                '>' => self.html.push_str("&gt;"),
                '"' => self.html.push_str("&quot;"),
                '\'' => self.html.push_str("&#39;"),
                c => self.html.push(c),
            }
        }
        self
    }

    fn timeline(&mut self, account: &Account) {
        if account.phases.is_empty() {
            return;
        }
        self.raw("<h2>Timeline</h2>\n");
        let axis = Axis::of(account).filter(|_| account.without_journal.is_none());
        if let Some(axis) = axis {
            self.raw("<p class=\"legend\" aria-hidden=\"true\">");
            for (bar, what) in [
                (Bar::Own, "its own work"),
                (Bar::Waiting, "waiting for others (drawn at the end of its step)"),
                (Bar::Failed, "failed"),
                (Bar::CutShort, "cut short"),
                (Bar::Reboot, "reboot"),
            ] {
                self.raw("<span><i class=\"").raw(bar.class()).raw("\"></i> ").text(what).raw("</span>");
            }
            self.raw("</p>\n<p class=\"axis\"><span>").text(&instant(axis.begin)).raw("</span><span>");
            self.text(&format!("{} later", length(axis.seconds))).raw("</span></p>\n");
        }
        for phase in &account.phases {
            self.phase(phase, axis);
        }
    }

    fn phase(&mut self, phase: &PhaseAccount, axis: Option<Axis>) {
        let unfinished = if phase.unfinished < 0.05 { String::new() } else { format!(", {} in vain", length(phase.unfinished)) };
        let sum = if phase.has_begun() { took(phase.seconds, phase.waited) + &unfinished } else { "not begun".to_owned() };
        self.raw("<section>\n<h3>").text(&phase.phase).raw(" <small>").text(&sum).raw("</small></h3>\n");
        for step in &phase.steps {
            self.step(step, axis);
        }
        for reboot in &phase.reboots {
            let back = reboot.back.map(|back| length(back.duration_since(reboot.asked).as_secs_f64().max(0.0)));
            self.row("reboot", &back.unwrap_or_else(|| "not back yet".to_owned()));
            if let Some(axis) = axis {
                let end = reboot.back.unwrap_or(reboot.asked);
                self.track(|page| page.bar(axis, Bar::Reboot, reboot.asked, end.duration_since(reboot.asked).as_secs_f64(), 0.0));
            }
            self.raw("</div>\n");
        }
        self.raw("</section>\n");
    }

    fn step(&mut self, step: &StepAccount, axis: Option<Axis>) {
        let how = match step.seconds {
            Some(seconds) => took(seconds, step.waited.unwrap_or(0.0)),
            None => state(step).to_owned(),
        };
        let tries = if step.tries > 1 { format!(", {} tries", step.tries) } else { String::new() };
        self.row(&step.step, &format!("{how}{tries}"));
        if let Some(axis) = axis {
            self.track(|page| step.attempts.iter().for_each(|attempt| page.attempt(axis, attempt)));
        }
        self.raw("</div>\n");
    }

    /// The beginning of a row: its name, and how long it took.
    fn row(&mut self, name: &str, time: &str) {
        self.raw("<div class=\"row\"><span class=\"name\">").text(name).raw("</span><span class=\"time\">").text(time).raw("</span>");
    }

    fn track(&mut self, bars: impl FnOnce(&mut Self)) {
        self.raw("<span class=\"track\" aria-hidden=\"true\">");
        bars(self);
        self.raw("</span>");
    }

    fn attempt(&mut self, axis: Axis, attempt: &Attempt) {
        let bar = match attempt.end {
            AttemptEnd::Done => Bar::Own,
            AttemptEnd::Failed => Bar::Failed,
            AttemptEnd::CutShort => Bar::CutShort,
            AttemptEnd::Open => Bar::Open,
        };
        let own = (attempt.seconds - attempt.waited).max(0.0);
        self.bar(axis, bar, attempt.begun, own, 0.0);
        if attempt.waited > 0.0 {
            self.bar(axis, Bar::Waiting, attempt.begun, attempt.waited, own);
        }
    }

    /// A bar of so many seconds, which begins so many `after` a time. The clock can have been set: no bar leaves the track.
    fn bar(&mut self, axis: Axis, bar: Bar, begun: Timestamp, seconds: f64, after: f64) {
        let percent = |seconds: f64| (seconds / axis.seconds * 100.0).clamp(0.0, 100.0);
        // At the very end there is room for the least that can be seen.
        let left = percent(begun.duration_since(axis.begin).as_secs_f64() + after).min(99.5);
        let width = percent(seconds).min(100.0 - left);
        self.raw("<i class=\"").raw(bar.class());
        write!(self.html, "\" style=\"left:{left:.2}%;width:{width:.2}%\"></i>").ok();
    }
}

impl Axis {
    fn of(account: &Account) -> Option<Self> {
        let seconds = elapsed(account).filter(|seconds| *seconds > 0.0)?;
        Some(Self { begin: account.begun?, seconds })
    }
}

impl Bar {
    fn class(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
            Self::CutShort => "cut-short",
            Self::Open => "at-work",
            Self::Reboot => "reboot",
        }
    }
}

fn took(seconds: f64, waited: f64) -> String {
    if waited >= 0.05 { format!("{}, {} of it waiting", length(seconds), length(waited)) } else { length(seconds) }
}

#[cfg(test)]
mod tests;
