//! CRI-O's configuration, as far as it says what becomes of the images after a power cut.
//!
//! `crio wipe`, which OpenShift runs at every boot (`crio-wipe.service`), erases the whole store when CRI-O was not stopped in order: when the file
//! `clean.shutdown.supported` is there, and `clean.shutdown` is not. CRI-O removes the latter when it starts and writes it when it stops (seen with
//! 1.34). Its own start erases nothing.

use std::path::PathBuf;

use super::Node;

/// The unit that erases.
pub const WIPE_UNIT: &str = "crio-wipe.service";
/// `clean_shutdown_file`, where the configuration says nothing.
const DEFAULT_FILE: &str = "/var/lib/crio/clean.shutdown";
const CONFIG: &str = "/etc/crio/crio.conf";
const DROP_INS: &str = "/etc/crio/crio.conf.d";

/// The mark of an orderly stop that `crio wipe` misses now, as the node calls it: without it, all images are erased at the next boot. `None` when
/// it is there, and where CRI-O is configured to erase nothing (`clean_shutdown_file = ""`) or has never run. While CRI-O runs it is never there.
#[must_use]
pub fn missing_mark(node: &Node) -> Option<PathBuf> {
    let mark = Some(clean_shutdown_file(node)).filter(|file| !file.is_empty())?;
    let supported = node.exists(format!("{mark}.supported"));
    (supported && !node.exists(&mark)).then(|| PathBuf::from(mark))
}

/// `clean_shutdown_file`: of `crio.conf`, then of the files beside it in the order of their names; the last that says it counts.
fn clean_shutdown_file(node: &Node) -> String {
    let mut files = vec![node.real_path(CONFIG)];
    let mut more: Vec<PathBuf> =
        std::fs::read_dir(node.real_path(DROP_INS)).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect();
    more.sort();
    files.append(&mut more);
    let said = files.iter().filter_map(|file| value(&std::fs::read_to_string(file).ok()?, "clean_shutdown_file")).next_back();
    said.unwrap_or_else(|| DEFAULT_FILE.to_owned())
}

/// The string that a key has, of the last line that sets it: CRI-O's keys are unique over all tables, so the table need not be known.
fn value(text: &str, key: &str) -> Option<String> {
    let of = |line: &str| {
        let text = line.trim().strip_prefix(key)?.trim_start().strip_prefix('=')?.trim_start();
        let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        text[1..].split_once(quote).map(|(value, _)| value.to_owned())
    };
    text.lines().filter_map(of).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_erased_is_what_the_last_file_says() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let node = Node::at(root.path(), None);
        let put = |path: &str, text: &str| -> anyhow::Result<()> {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(root.path()))?;
            Ok(std::fs::write(path, text)?)
        };
        assert_eq!(missing_mark(&node), None, "it has never run");
        put("var/lib/crio/clean.shutdown.supported", "")?;
        assert_eq!(missing_mark(&node), Some(PathBuf::from(DEFAULT_FILE)));
        put("var/lib/crio/clean.shutdown", "")?;
        assert_eq!(missing_mark(&node), None, "stopped in order");
        // Elsewhere: commented lines and other keys say nothing.
        put(
            "etc/crio/crio.conf",
            "[crio]\n# clean_shutdown_file = \"\"\nclean_shutdown_file = '/var/other' # there\nclean_shutdown_files = \"\"\n",
        )?;
        assert_eq!(missing_mark(&node), None, "no file says that this place is supported");
        put("var/other.supported", "")?;
        assert_eq!(missing_mark(&node), Some(PathBuf::from("/var/other")));
        // As the telco profile has it.
        put("etc/crio/crio.conf.d/99-crio-disable-wipe.toml", "[crio]\nclean_shutdown_file = \"\"\n")?;
        put("etc/crio/crio.conf.d/00-default", "[crio]\nclean_shutdown_file = \"/var/other\"\n")?;
        assert_eq!(missing_mark(&node), None);
        Ok(())
    }
}
