//! `ostree admin status`, as JSON and as text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recovery::tools::ostree::{Deployment, parse};
use recovery_fuzz::deployments;

fuzz_target!(|printed: &[u8]| {
    if let Ok(all) = parse::json(printed) {
        deployments(&all);
        // Both forms say the same.
        if !all.is_empty() && all.iter().all(has_a_text) {
            let text: String = all.iter().map(in_text).collect();
            assert_eq!(parse::text(&text).expect("what ostree prints"), all, "{text}");
        }
    }
    let Ok(text) = std::str::from_utf8(printed) else { return };
    if let Ok(all) = parse::text(text) {
        deployments(&all);
    }
});

/// The text form has its fields in lines, and their edges are not seen.
fn has_a_text(deployment: &Deployment) -> bool {
    let lines = |text: &str| text.trim() == text && !text.contains('\n');
    let word = !deployment.stateroot.contains(char::is_whitespace) && !deployment.stateroot.ends_with(':') && deployment.stateroot != "*";
    word && deployment.version.as_deref().is_none_or(lines)
}

fn in_text(deployment: &Deployment) -> String {
    let Deployment { stateroot, checksum, serial, booted, staged, pinned, soft_reboot, version, .. } = deployment;
    let mark = |is: bool, mark: &'static str| if is { mark } else { "" };
    let version = version.as_ref().map_or_else(String::new, |version| format!("    Version: {version}\n"));
    format!(
        "{} {stateroot} {checksum}.{serial}{}{}\n{version}{}",
        mark(*booted, "*"),
        mark(*staged, " (staged)"),
        mark(*soft_reboot, " (soft-reboot)"),
        mark(*pinned, "    Pinned: yes\n"),
    )
}
