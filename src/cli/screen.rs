//! A report that is written again and again over the one before, on a terminal: also on a serial console of 24 lines, which knows little
//! more than a VT100 did.

use std::io::IsTerminal;

use super::context::to_stdout;

/// Clears the screen. Like all that is written here, it is known since the VT100 (ECMA-48; modes: DEC).
const CLEAR: &str = "\x1b[2J";
/// The size of a terminal that does not say its own, as a serial line does not.
const USUAL: (usize, usize) = (24, 80);
/// What stands for lines that are left out.
const LEFT_OUT: &str = "    ...";
/// How many lines of a row of rank 0 stay.
const MOST_LINES: usize = 8;
/// How far the second line of a text that is broken is moved in.
const FURTHER: usize = 4;

/// A line of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// What it says.
    pub(super) text: String,
    /// What does not fit on the screen is left out from the highest rank down; 0 stays. A second line has twice the rank.
    pub(super) rank: usize,
    /// It is a line of a table, which is cut off at the right edge; other lines are broken.
    pub(super) of_a_table: bool,
}

impl Row {
    pub(super) fn new(rank: usize, text: impl Into<String>) -> Self {
        Self { text: text.into(), rank, of_a_table: false }
    }

    pub(super) fn of_a_table(rank: usize, text: impl Into<String>) -> Self {
        Self { text: text.into(), rank, of_a_table: true }
    }
}

/// The rows of a report as text.
pub(super) fn text(rows: &[Row]) -> String {
    rows.iter().map(|row| format!("{}\n", row.text)).collect()
}

/// A terminal that standard output is.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The cursor can be moved on it.
    pub(super) obeys: bool,
    /// Only ASCII is shown: the bytes of any other text may be commands to it.
    ascii: bool,
    /// The size for which it was last cleared.
    cleared: Option<(usize, usize)>,
}

impl Terminal {
    /// The terminal, when standard output is one.
    pub(super) fn of_stdout() -> Option<Self> {
        let term = std::env::var("TERM").unwrap_or_default();
        std::io::stdout().is_terminal().then(|| Self::called(&term))
    }

    fn called(term: &str) -> Self {
        // `vt220` is what systemd calls a serial console; a VT220 takes some bytes of UTF-8 for commands.
        Self { obeys: !matches!(term, "" | "dumb" | "unknown" | "vt52"), ascii: term.is_empty() || term.starts_with("vt"), cleared: None }
    }

    /// Its lines and columns now.
    fn size() -> (usize, usize) {
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).map(|size| (usize::from(size.ws_row), usize::from(size.ws_col)));
        size.ok().filter(|(rows, columns)| *rows > 1 && *columns > FURTHER).unwrap_or(USUAL)
    }

    /// Writes a report over what the screen showed.
    ///
    /// # Errors
    /// As [`to_stdout`].
    pub(super) fn rewrite(&mut self, rows: &[Row]) -> std::io::Result<()> {
        let size = Self::size();
        let clear = if self.cleared.replace(size) == Some(size) { "" } else { CLEAR };
        to_stdout(&format!("{clear}{}", screen(&self.known(fit(rows, size)))))
    }

    /// Writes a report below what the screen showed, where nothing on it can be written over.
    ///
    /// # Errors
    /// As [`to_stdout`].
    pub(super) fn append(&self, rows: &[Row]) -> std::io::Result<()> {
        to_stdout(&self.known(broken(rows, Self::size().1).into_iter().map(|(_, line)| line).collect()).join("\n"))
    }

    fn known(&self, lines: Vec<String>) -> Vec<String> {
        let known = |line: String| if self.ascii { line.replace(|c: char| !c.is_ascii(), "?") } else { line };
        lines.into_iter().map(known).collect()
    }
}

/// The lines over what the screen showed, one by one: a screen that is never cleared as a whole does not flicker. Without line wrap (mode
/// 7) a line of text is a line of the screen.
fn screen(lines: &[String]) -> String {
    format!("\x1b[?7l\x1b[H{}\x1b[K\x1b[J\x1b[?7h\n", lines.join("\x1b[K\n"))
}

/// What fits: the last line of the screen is the cursor's.
fn fit(rows: &[Row], (lines, columns): (usize, usize)) -> Vec<String> {
    let mut kept: Vec<(usize, Option<String>)> = broken(rows, columns).into_iter().map(|(rank, line)| (rank, Some(line))).collect();
    loop {
        let shown = with_marks(&kept);
        if shown.len() < lines {
            return shown;
        }
        let highest =
            kept.iter().enumerate().filter(|(_, (rank, line))| *rank > 0 && line.is_some()).max_by_key(|(at, (rank, _))| (*rank, *at));
        let Some((at, _)) = highest else { return shown[shown.len() + 1 - lines..].to_vec() };
        kept[at].1 = None;
    }
}

/// The lines that are kept, with a mark for those between that are not.
fn with_marks(kept: &[(usize, Option<String>)]) -> Vec<String> {
    let groups = kept.chunk_by(|(_, a), (_, b)| a.is_some() == b.is_some());
    groups
        .flat_map(|group| match &group[0].1 {
            None => vec![LEFT_OUT.to_owned()],
            Some(_) => group.iter().filter_map(|(_, line)| line.clone()).collect(),
        })
        .collect()
}

/// The lines of the rows, at this width, with their ranks: of a row that is broken, what is further down is of less worth, and nobody reads
/// without end.
fn broken(rows: &[Row], columns: usize) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    for row in rows {
        let rank = |at| row.rank * (at + 1) + usize::from(at >= MOST_LINES);
        if row.of_a_table {
            lines.push((row.rank, row.text.chars().take(columns).collect()));
        } else {
            lines.extend(row.text.lines().flat_map(|text| wrap(text, columns)).enumerate().map(|(at, line)| (rank(at), line)));
        }
    }
    lines
}

/// A text in lines of this width, broken between words where there are any.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let (mut lines, mut rest) = (Vec::new(), text.to_owned());
    while let Some((edge, at_edge)) = rest.char_indices().nth(columns) {
        // Not at the blanks that it begins with.
        let margin = rest.len() - rest.trim_start().len();
        let blank = if at_edge == ' ' { Some(edge) } else { rest[..edge].rfind(' ') };
        let at = blank.filter(|at| *at > margin).unwrap_or(edge);
        lines.push(rest[..at].trim_end().to_owned());
        rest = format!("{:FURTHER$}{}", "", rest[at..].trim_start());
    }
    lines.push(rest);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_shows_what_fits_and_what_matters() {
        let rows: Vec<Row> = (0..9).map(|at| Row::of_a_table(if at == 4 || at == 8 { 0 } else { at + 1 }, format!("row {at}"))).collect();
        assert_eq!(fit(&rows, (24, 80)).len(), 9);
        assert_eq!(fit(&rows, (8, 80)), ["row 0", "row 1", "row 2", "row 3", "row 4", "    ...", "row 8"]);
        assert_eq!(fit(&rows, (5, 80)), ["    ...", "row 4", "    ...", "row 8"]);
        assert_eq!(fit(&rows, (3, 80)), ["    ...", "row 8"], "the end, where nothing fits");
        assert_eq!(screen(&["one".to_owned(), "two".to_owned()]), "\x1b[?7l\x1b[Hone\x1b[K\ntwo\x1b[K\x1b[J\x1b[?7h\n");
    }

    #[test]
    fn lines_are_broken_between_words_and_within_long_ones() {
        assert_eq!(wrap("failed: the API server", 12), ["failed: the", "    API", "    server"]);
        assert_eq!(wrap("exactly nine", 12), ["exactly nine"]);
        assert_eq!(wrap("abcdefghijklmnop", 10), ["abcdefghij", "    klmnop"]);
        assert_eq!(wrap("    abcdefghijkl", 10), ["    abcdef", "    ghijkl"]);
        assert_eq!(
            wrap("\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9} \u{e9}\u{e9}\u{e9}", 6),
            ["\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}", "    \u{e9}\u{e9}", "    \u{e9}"]
        );
        let long = "x".repeat(500);
        assert!(wrap(&long, 80).iter().all(|line| line.chars().count() <= 80));
        assert_eq!(wrap(&long, 80).iter().map(|line| line.trim_start()).collect::<String>(), long);
    }

    #[test]
    fn a_terminal_gets_what_it_knows() {
        assert!(!Terminal::called("dumb").obeys && !Terminal::called("").obeys && Terminal::called("vt220").obeys);
        let shown = |term| Terminal::called(term).known(vec!["caf\u{e9}".to_owned()]);
        assert_eq!((shown("vt220"), shown("xterm")), (vec!["caf?".to_owned()], vec!["caf\u{e9}".to_owned()]));
    }
}
