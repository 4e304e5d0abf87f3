//! What `ostree admin status` prints, in both of its forms (ostree 2018.8 to 2026.4).

use anyhow::{Result, anyhow, bail};
use serde::Deserialize;

use super::deployment::{Deployment, are_names, mark_neighbours};

#[derive(Deserialize)]
struct Status {
    deployments: Vec<Row>,
}

/// The fields that nothing else can supply must be there: where this form lacks one, the text form is read instead.
#[derive(Deserialize)]
struct Row {
    checksum: String,
    stateroot: String,
    serial: u32,
    /// Printed from 2025.7 on: the place in the list.
    index: Option<usize>,
    booted: bool,
    staged: bool,
    pinned: bool,
    /// Printed by versions that know of soft reboots.
    #[serde(default, rename = "soft-reboot-target")]
    soft_reboot: bool,
    version: Option<String>,
}

/// `ostree admin status --json` (2025.3 and later).
///
/// # Errors
/// When the output is anything else.
pub fn json(bytes: &[u8]) -> Result<Vec<Deployment>> {
    let status: Status =
        serde_json::from_slice(bytes).map_err(|error| anyhow!("`ostree admin status --json` printed something else: {error}"))?;
    let deployment = |(place, row): (usize, Row)| {
        if let Some(index) = row.index.filter(|index| *index != place) {
            bail!("`ostree admin status --json` has index {index} in place {place}");
        }
        if !are_names(&row.stateroot, &row.checksum) {
            bail!(
                "`ostree admin status --json` has a deployment in place {place} that cannot be one: {:?} {:?}",
                row.stateroot,
                row.checksum
            );
        }
        Ok(Deployment {
            index: place,
            stateroot: row.stateroot,
            checksum: row.checksum,
            serial: row.serial,
            booted: row.booted,
            staged: row.staged,
            pending: false,
            rollback: false,
            pinned: row.pinned,
            soft_reboot: row.soft_reboot,
            version: row.version,
        })
    };
    let mut all = status.deployments.into_iter().enumerate().map(deployment).collect::<Result<Vec<_>>>()?;
    mark_neighbours(&mut all);
    Ok(all)
}

/// `ostree admin status`. Indentation varies, so lines are recognised by their words.
///
/// # Errors
/// When the output is anything else.
pub fn text(text: &str) -> Result<Vec<Deployment>> {
    let mut all: Vec<Deployment> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(deployment) = header(line, all.len()) {
            all.push(deployment);
        } else if let Some(deployment) = all.last_mut().filter(|_| is_detail(line)) {
            match line.split_once(':') {
                Some(("Version", version)) => deployment.version = Some(version.trim().to_owned()),
                Some(("Pinned", pinned)) => deployment.pinned = pinned.trim() == "yes",
                _ => {}
            }
        } else if line != "No deployments." {
            bail!("`ostree admin status` printed an unknown line: {line:?}");
        }
    }
    if all.is_empty() && !text.contains("No deployments.") {
        bail!("`ostree admin status` printed nothing");
    }
    mark_neighbours(&mut all);
    Ok(all)
}

/// `[*] STATEROOT CHECKSUM.SERIAL [(flag)]…`, where a flag can have two words.
fn header(line: &str, index: usize) -> Option<Deployment> {
    let (booted, rest) = line.strip_prefix("* ").map_or((false, line), |rest| (true, rest));
    let mut words = rest.split_whitespace();
    let (stateroot, identity) = (words.next()?, words.next()?);
    let (checksum, serial) = identity.split_once('.')?;
    if stateroot.ends_with(':') || !are_names(stateroot, checksum) {
        return None;
    }
    let flags: String = words.collect::<Vec<_>>().join(" ");
    Some(Deployment {
        index,
        stateroot: stateroot.to_owned(),
        checksum: checksum.to_owned(),
        serial: serial.parse().ok()?,
        booted,
        // From 2023 on, a staged deployment that waits for permission is printed as locked.
        staged: flags.contains("(staged)") || flags.contains("(finalization locked)"),
        pending: false,
        rollback: false,
        pinned: false,
        soft_reboot: flags.contains("(soft-reboot)"),
        version: None,
    })
}

/// `Version: …`, `origin refspec: …`, `GPG: …`, and the line with a commit's source title, which begins with a drawn branch.
fn is_detail(line: &str) -> bool {
    let key = line.split_once(':').map_or("", |(key, _)| key);
    matches!(key, "Version" | "Pinned" | "Unlocked" | "origin" | "origin refspec" | "GPG" | "Soft-rebooted" | "Digest")
        || line.starts_with(['`', '└'])
        // A field of a later ostree: one word and a colon.
        || (!key.is_empty() && !key.contains(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use std::path::PathBuf;

    fn folder() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ostree")
    }

    fn fixture(name: &str) -> String {
        std::fs::read_to_string(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The flags of each row, pinned among them: `*` booted, `s` staged, `p` pending, `r` rollback, `P` pinned, `S` soft reboot.
    fn shape(all: &[Deployment]) -> String {
        let row = |d: &Deployment| -> String {
            [(d.booted, '*'), (d.staged, 's'), (d.pending, 'p'), (d.rollback, 'r'), (d.pinned, 'P'), (d.soft_reboot, 'S')]
                .iter()
                .filter_map(|(is, mark)| is.then_some(*mark))
                .collect()
        };
        all.iter().map(row).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_arrangement_that_was_captured() -> Result<()> {
        let expected = [
            ("gen-01-single-booted.txt", "*"),
            ("gen-02-single-booted-pinned.txt", "*P"),
            ("gen-03-pending-refspec-booted-pinned-container.txt", "p *P"),
            ("gen-04-pending-plus-booted-pinned.txt", "p *P"),
            ("gen-05-booted-plus-pinned-rollback.txt", "* rP"),
            ("gen-06-pending-booted-pinned-older-pinned-rollback.txt", "p *P rP"),
            ("gen-07-three-booted-first-two-pinned.txt", "* rP P"),
            ("gen-08-booted-last-two-pending.txt", "p P *P"),
            ("gen-09-after-set-default.txt", "*P r P"),
            ("gen-10-origin-none.txt", "*P r P"),
            ("gen-11-lca-new-stateroot-not-booted.txt", " *P r P"),
            ("gen-12-lca-new-stateroot-booted.txt", "* P  P"),
            ("gen-13-not-booted.txt", " P  P"),
            ("gen-14-empty.txt", ""),
            ("gen-15-staged-booted-pinned.txt", "sp *P rP"),
            ("gen-16-finalization-locked.2022.7.txt", "sp *P rP"),
            ("gen-16-finalization-locked.2026.4.txt", "sp *P rP"),
            ("gen-17-unlocked-development.txt", "*P rP"),
            ("gen-18-unlocked-hotfix.txt", "*P rP P"),
            ("gpg-key-missing-fedora29.txt", "*"),
            ("lca-4.14-after-set-default.txt", " *"),
            ("lca-4.14-booted-first.txt", "* "),
            ("manpage-indented-no-version.txt", "* r"),
            ("microshift-9.8-rollback.txt", "* r"),
            ("real-13-soft-reboot-prepared.txt", "pS *P"),
            ("real-14-soft-reboot-undeployed.txt", "*P"),
            ("synthetic-soft-reboot.txt", "pS *P"),
            ("unlocked-development-rollback.txt", "* r"),
            ("unlocked-gpg-eos.txt", "*"),
        ];
        for (name, marks) in expected {
            assert_eq!(shape(&text(&fixture(name))?), marks, "{name}");
        }
        let files = std::fs::read_dir(folder())?.filter(|e| e.as_ref().is_ok_and(|e| e.path().extension().is_some_and(|x| x == "txt")));
        assert_eq!(files.count(), expected.len(), "a capture that is not looked at");
        Ok(())
    }

    /// Pending and rollback are derived from the order; ostree's own marks prove that they are derived correctly.
    #[test]
    fn the_marks_are_those_that_ostree_prints() -> Result<()> {
        for entry in std::fs::read_dir(folder())? {
            let path = entry?.path();
            let (name, content) = (path.display().to_string(), std::fs::read_to_string(&path)?);
            let is_json = path.extension().is_some_and(|extension| extension == "json");
            if !is_json && !name.contains("manpage") {
                let count = |flag: &str| content.matches(flag).count();
                let all = text(&content)?;
                assert_eq!(all.iter().filter(|d| d.rollback).count(), count("(rollback)"), "{name}");
                let staged = count("(staged)") + count("(finalization locked)");
                assert_eq!(all.iter().filter(|d| d.pending).count(), count("(pending)") + staged, "{name}");
            } else if is_json {
                let raw: serde_json::Value = serde_json::from_str(&content)?;
                for (row, ours) in raw["deployments"].as_array().expect("rows").iter().zip(json(content.as_bytes())?) {
                    assert_eq!((row["pending"].as_bool(), row["rollback"].as_bool()), (Some(ours.pending), Some(ours.rollback)), "{name}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn both_forms_say_the_same() -> Result<()> {
        let mut seen = 0;
        for entry in std::fs::read_dir(folder())? {
            let path = entry?.path();
            let name = path.file_name().expect("name").to_string_lossy().into_owned();
            let Some(case) = name.strip_prefix("json-").and_then(|n| n.strip_suffix(".json")) else { continue };
            let twin = ["gen-", "real-"]
                .into_iter()
                .flat_map(|made| [".txt", ".2026.4.txt"].map(|end| format!("{made}{case}{end}")))
                .find(|t| folder().join(t).exists());
            assert_eq!(json(&std::fs::read(&path)?)?, text(&fixture(&twin.expect("the text form")))?, "{name}");
            seen += 1;
        }
        assert_eq!(seen, 9);
        Ok(())
    }

    /// As 2025.3 to 2025.6 print it.
    #[test]
    fn the_place_in_the_list_is_the_index_that_is_not_printed() -> Result<()> {
        let whole = fixture("json-05-booted-plus-pinned-rollback.json");
        let mut earlier: serde_json::Value = serde_json::from_str(&whole)?;
        for row in earlier["deployments"].as_array_mut().expect("rows") {
            assert!(row.as_object_mut().expect("a row").remove("index").is_some());
        }
        let all = json(earlier.to_string().as_bytes())?;
        assert_eq!(all, json(whole.as_bytes())?);
        assert_eq!(all.iter().map(|d| d.index).collect::<Vec<_>>(), [0, 1]);
        earlier["deployments"][0]["index"] = 1.into();
        assert!(json(earlier.to_string().as_bytes()).is_err(), "a list in another order");
        Ok(())
    }

    #[test]
    fn a_deployment_is_read_whole() -> Result<()> {
        let all = text(&fixture("gen-18-unlocked-hotfix.txt"))?;
        assert_eq!(all[1].checksum, all[0].checksum);
        assert_eq!((all[0].serial, all[1].serial, all[1].index), (0, 1, 1));
        assert_eq!(all[2].version.as_deref(), Some("415.92.202402201450-0"));
        assert_eq!(text(&fixture("unlocked-gpg-eos.txt"))?[0].version.as_deref(), Some("6.1.0~240606-230007"));
        assert_eq!(text(&fixture("lca-4.14-booted-first.txt"))?[0].version, None);
        assert_eq!(text(&fixture("lca-4.14-booted-first.txt"))?[0].stateroot, "rhcos_4.14.7");
        Ok(())
    }

    #[test]
    fn garbage_and_torn_output_are_refused() {
        let whole = fixture("gen-05-booted-plus-pinned-rollback.txt");
        let torn = &whole[..whole.find("c77a14").expect("second") + 10];
        for bad in ["", "error: something", "rhcos", torn, "{}", "* rhcos abc.0\n", "  Pinned: yes\n"] {
            assert_eq!(exit_code(&text(bad).unwrap_err()), 1, "{bad:?}");
        }
        for bad in ["", "{}", "No deployments.", r#"{"deployments":[{"checksum":"x"}]}"#] {
            assert_eq!(exit_code(&json(bad.as_bytes()).unwrap_err()), 1, "{bad:?}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let sound = "c".repeat(64);
        for (stateroot, checksum, taken) in [
            ("rhcos", sound.as_str(), true),
            ("../../../../tmp", &sound, false),
            ("..", &sound, false),
            ("", &sound, false),
            ("rhcos", "../../x", false),
            ("rhcos", "", false),
        ] {
            let row = serde_json::json!({
                "stateroot": stateroot, "checksum": checksum, "serial": 0, "booted": true, "staged": false, "pinned": false,
            });
            assert_eq!(json(serde_json::json!({"deployments": [row]}).to_string().as_bytes()).is_ok(), taken, "{stateroot} {checksum}");
            assert_eq!(text(&format!("* {stateroot} {checksum}.0\n")).is_ok(), taken, "{stateroot} {checksum}");
        }
    }
}
