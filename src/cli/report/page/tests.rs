use super::*;
use crate::cli::report::describe;
use crate::error::by_hand;
use crate::recovery::account::{FailureAccount, Reboot};
use crate::recovery::report::StepState;

/// An account with each field that it can have, in which each text is `text`.
fn account(text: &str) -> Account {
    let text = || text.to_owned();
    let time = |second: i64| Timestamp::from_second(1_763_705_000 + second).unwrap();
    let failure = FailureAccount { kind: text(), message: text(), next: Some(text()) };
    let attempt = |begun, end, failure| Attempt { begun: time(begun), ended: time(begun + 9), end, seconds: 9.0, waited: 4.0, failure };
    let attempts = vec![
        attempt(0, AttemptEnd::Failed, Some(failure)),
        attempt(20, AttemptEnd::CutShort, None),
        attempt(40, AttemptEnd::Done, None),
        attempt(60, AttemptEnd::Open, None),
    ];
    let step = StepAccount { step: text(), state: StepState::Done, tries: 4, seconds: Some(9.0), waited: Some(4.0), attempts };
    let other = StepAccount { state: StepState::Failed, seconds: None, waited: None, tries: 1, ..step.clone() };
    let reboots = vec![Reboot { asked: time(50), back: Some(time(59)) }, Reboot { asked: time(90), back: None }];
    Account {
        id: text(),
        backup: Some(text()),
        node: Some(text()),
        agent: Some(text()),
        end: End::Abandoned,
        state: Some(text()),
        begun: Some(time(0)),
        ended: Some(time(100)),
        seconds: 9.0,
        waited: 4.0,
        unfinished: 9.0,
        phases: vec![PhaseAccount { phase: text(), seconds: 9.0, waited: 4.0, unfinished: 0.0, steps: vec![step, other], reboots }],
        warnings: vec![text()],
        put_back: vec![text()],
        changed: vec![text()],
        left: Some(text()),
        without_journal: None,
        next: Some(by_hand(text())),
    }
}

fn plain(text: &str) -> String {
    text.to_owned()
}

/// Everything between `<` and `>`, and what is left over of such a pair.
fn tags(html: &str) -> Vec<&str> {
    let mut tags = Vec::new();
    let mut rest = html;
    while let Some(at) = rest.find(['<', '>']) {
        let end = rest[at..].find('>').map_or(rest.len(), |end| at + end + 1);
        tags.push(&rest[at..end]);
        rest = &rest[end..];
    }
    tags
}

/// Texts of what opens tags, ends attributes and elements, or controls a terminal, in any order.
fn hostile() -> Vec<String> {
    let pieces = [
        "<script>alert(1)</script>",
        "</style>",
        "</title>",
        "<!--",
        "-->",
        "]]>",
        "\"",
        "'",
        "`",
        "=",
        "/>",
        "<",
        ">",
        "&",
        "&lt;",
        "&#60;",
        "\0",
        "\n",
        "\r\n",
        "\x1b[31m",
        "\u{202e}",
        "\u{2028}",
        "\u{ff1c}",
        "javascript:",
        "onload=",
        "<img src=x onerror=alert(1)>",
        "%",
        "\\",
        "{",
        "}",
        " ",
        "x",
    ];
    let mut seed: usize = 1;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % pieces.len()
    };
    let mut texts: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
    texts.extend((0..500).map(|_| (0..8).map(|_| pieces[next()]).collect()));
    texts
}

#[test]
fn no_text_opens_a_tag() {
    let harmless = page(&account("x"), &plain);
    assert!(tags(&harmless).len() > 80, "{harmless}");
    for text in hostile() {
        let page = page(&account(&text), &plain);
        assert_eq!(tags(&page), tags(&harmless), "{text:?}");
        // `&` begins nothing but what the page itself writes.
        let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
        for (at, _) in page.match_indices('&') {
            assert!(known.iter().any(|entity| page[at..].starts_with(entity)), "{text:?}");
        }
        assert!(!page.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}')), "{text:?}");
    }
}

#[test]
fn no_text_of_the_report_begins_a_line() {
    let lines = |text: &str| describe(&account(text)).lines().count();
    for text in hostile() {
        assert_eq!(lines(&text), lines("x"), "{text:?}");
        assert!(!describe(&account(&text)).contains('\x1b'), "{text:?}");
    }
}

#[test]
fn nothing_is_loaded_and_no_bar_leaves_its_track() {
    let mut odd = account("x");
    // A clock that was set back, and forth by years.
    odd.phases[0].steps[0].attempts[0].begun = Timestamp::from_second(0).unwrap();
    odd.phases[0].steps[0].attempts[2].seconds = 1e12;
    for account in [account("x"), odd] {
        let page = page(&account, &plain);
        for word in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link"] {
            assert!(!page.contains(word), "{word}");
        }
        let numbers =
            |name: &str| -> Vec<f64> { page.split(name).skip(1).filter_map(|rest| rest.split_once('%')?.0.parse().ok()).collect() };
        let (left, width) = (numbers("style=\"left:"), numbers("%;width:"));
        assert_eq!((left.len(), width.len()), (18, 18), "{page}");
        for (left, width) in left.iter().zip(&width) {
            assert!(*left >= 0.0 && *width >= 0.0 && left + width <= 100.01, "{left} {width}");
        }
    }
}

#[test]
fn without_its_journal_there_is_no_track() {
    let page = page(&Account { without_journal: Some("it is gone".to_owned()), ..account("x") }, &plain);
    assert!(!page.contains("class=\"track\"") && page.contains("it is gone"), "{page}");
}
