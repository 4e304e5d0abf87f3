//! The partition in the entry of a node: `ignitionConfigOverride` of a `SiteConfig` (`ran.openshift.io/v1`) or `ClusterInstance`
//! (`siteconfig.open-cluster-management.io/v1alpha1`), in a file that people keep.
//!
//! Nothing of the file is written anew but this one value: comments, order and quotes of the rest stay byte by byte. What an edit of text could get wrong
//! is looked at afterwards: the result is read again, and has to mean the same as before with this one value changed.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use serde_saphyr::Spanned;
use serde_saphyr::options::DuplicateKeyPolicy;

use super::{LABEL, Wanted, ignition};
use crate::error::{AndNext, by_hand, damaged, is_measured, unsupported, usage};
use crate::node::recovery_mount::{self, BY_LABEL, BY_PARTLABEL, unit_name};

/// The key in a node's entry.
const KEY: &str = "ignitionConfigOverride";

/// A file with the partition in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The node's host name.
    pub node: String,
    /// The value of its `ignitionConfigOverride`.
    pub value: String,
    /// The whole file; `None` when it has all of it already.
    pub text: Option<String>,
    /// What the override says otherwise than it would be written, and was left as it is.
    pub kept: Vec<String>,
    /// The disks that the override names otherwise: one of them may be the same.
    pub others: Vec<String>,
}

// Only what leads to the nodes: everything else is left alone.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    spec: Option<Spec>,
    // A fragment, as in guides.
    nodes: Option<Vec<NodeEntry>>,
}
#[derive(Deserialize)]
struct Spec {
    clusters: Option<Vec<Cluster>>,
    nodes: Option<Vec<NodeEntry>>,
}
#[derive(Deserialize)]
struct Cluster {
    nodes: Option<Vec<NodeEntry>>,
}
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeEntry {
    host_name: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    ignition_config_override: Option<Spanned<Option<String>>>,
}

/// What is there although it is null has a place too.
fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Spanned<Option<String>>>, D::Error> {
    Spanned::deserialize(value).map(Some)
}

/// Puts the partition into the entry of `node` (the only one unless given) of the file whose text is `text`.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage) when the node cannot be told, or the partition would lie over another one;
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when the file is no YAML or the override no Ignition configuration;
/// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) for what is sound and cannot be merged or edited.
pub fn put(text: &str, node: Option<&str>, wanted: &Wanted) -> Result<Edited> {
    let documents: Vec<Option<Document>> = read(text)?;
    let entry = chosen(documents, node)?;
    let name = entry.host_name.as_ref().map_or_else(String::new, |name| name.value.clone());
    let old = entry.ignition_config_override.as_ref().and_then(|old| old.value.clone()).filter(|old| !old.trim().is_empty());
    let old =
        old.map(|old| serde_json::from_str::<Value>(&old).map_err(|error| damaged(format!("the {KEY} of {name} is not JSON: {error}"))));
    let old = old.transpose()?;
    let (new, kept) = merged(old.as_ref(), wanted).with_context(|| format!("merging with the {KEY} of {name}"))?;
    let (value, others) = (ignition::one_line(&new), other_disks(old.as_ref(), &wanted.device));
    if old.as_ref() == Some(&new) {
        return Ok(Edited { node: name, value, text: None, kept, others });
    }
    let edited = edit(text, &entry, &value).filter(|edited| means(text, edited, &name, &value).unwrap_or(false));
    let edited = edited.ok_or_else(|| {
        unsupported(format!("the entry of {name} is written in a way that is not edited in place"))
            .and_next(by_hand(format!("give it this line by hand: {KEY}: {}", quoted(&value))))
    })?;
    Ok(Edited { node: name, value, text: Some(edited), kept, others })
}

/// What a configuration uses as a disk by another name than `device`. Names of partitions and file systems, and of what is put together, are none.
fn other_disks(config: Option<&Value>, device: &str) -> Vec<String> {
    let all = |kind: &str| config.and_then(|config| config["storage"][kind].as_array()).into_iter().flatten();
    let devices = ["disks", "filesystems", "luks"].into_iter().flat_map(|kind| all(kind).map(|one| &one["device"]));
    let members = all("raid").filter_map(|raid| raid["devices"].as_array()).flatten();
    let is_disk = |name: &str| {
        let none =
            ["/dev/disk/by-partlabel/", "/dev/disk/by-partuuid/", "/dev/disk/by-label/", "/dev/disk/by-uuid/", "/dev/md", "/dev/mapper/"];
        name.starts_with("/dev/") && name != device && !none.iter().any(|prefix| name.starts_with(prefix))
    };
    let names: BTreeSet<&str> = devices.chain(members).filter_map(Value::as_str).filter(|name| is_disk(name)).collect();
    names.into_iter().map(str::to_owned).collect()
}

fn read<T: DeserializeOwned>(text: &str) -> Result<Vec<T>> {
    let mut bytes = text.as_bytes();
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::Error };
    let all: Result<Vec<T>, _> = serde_saphyr::read_with_options(&mut bytes, options).collect();
    all.map_err(|error| damaged(format!("it is no SiteConfig and no ClusterInstance: {error}")))
}

fn chosen(documents: Vec<Option<Document>>, node: Option<&str>) -> Result<NodeEntry> {
    let of = |document: Document| {
        let spec = document.spec.into_iter().flat_map(|spec| {
            let clusters = spec.clusters.into_iter().flatten().filter_map(|cluster| cluster.nodes);
            clusters.chain(spec.nodes).flatten().collect::<Vec<_>>()
        });
        document.nodes.into_iter().flatten().chain(spec).collect::<Vec<_>>()
    };
    let mut all: Vec<NodeEntry> = documents.into_iter().flatten().flat_map(of).filter(|entry| entry.host_name.is_some()).collect();
    let names = all.iter().filter_map(|entry| entry.host_name.as_ref()).map(|name| name.value.clone()).collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        return Err(unsupported("it has no node with a hostName: it is no SiteConfig and no ClusterInstance"));
    }
    all.retain(|entry| node.is_none_or(|node| entry.host_name.as_ref().is_some_and(|name| name.value == node)));
    match (all.len(), node) {
        (1, _) => all.pop().context("one of one"),
        (0, Some(node)) => Err(usage(format!("--node {node}: it is about {names}"))),
        (_, Some(node)) => Err(usage(format!("--node {node}: there are several of that name"))),
        (_, None) => Err(usage(format!("--node NAME is needed: it is about {names}"))),
    }
}

/// True when `after` means what `before` means, with the one value changed.
fn means(before: &str, after: &str, node: &str, value: &str) -> Result<bool> {
    let (mut before, after): (Vec<Value>, Vec<Value>) = (read(before)?, read(after)?);
    let lists = before.iter_mut().flat_map(|document| {
        let mut lists = Vec::new();
        let mut rest: Vec<&mut Value> = vec![document];
        while let Some(Value::Object(object)) = rest.pop() {
            for (key, value) in object {
                match (key.as_str(), value) {
                    ("nodes", Value::Array(list)) => lists.push(list),
                    ("spec", value) => rest.push(value),
                    ("clusters", Value::Array(list)) => rest.extend(list),
                    _ => {}
                }
            }
        }
        lists
    });
    for entry in lists.flatten().filter(|entry| entry["hostName"] == node) {
        entry[KEY] = value.into();
    }
    Ok(before == after)
}

/// A text in single quotes: nothing in it means anything to YAML but a quote, which is doubled.
#[must_use]
pub fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// The text with the value in it; `None` where it is not found, or not written as people write it.
fn edit(text: &str, entry: &NodeEntry, value: &str) -> Option<String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let at = |line: usize| lines[..line].iter().map(|line| line.len()).sum::<usize>();
    let line_of =
        |location: &serde_saphyr::Location| usize::try_from(location.line()).ok()?.checked_sub(1).filter(|line| *line < lines.len());
    if let Some(old) = &entry.ignition_config_override {
        // A block scalar begins below its key.
        let line = (0..=line_of(&old.defined)?).rev().take(3).find(|line| key_at(lines[*line], KEY).is_some())?;
        let (column, after) = key_at(lines[line], KEY)?;
        let start = at(line) + after;
        let end = start + length(&text[start..], column)?;
        let gone = &text[start..end];
        let line_end = ["\r\n", "\n"].into_iter().find(|end_of_line| gone.ends_with(end_of_line)).unwrap_or("");
        let head = gone.lines().next().filter(|head| head.starts_with(['|', '>'])).unwrap_or("");
        let comment = match head.find(" #") {
            Some(at) => &head[at..],
            None if text[end..].starts_with('#') => " ",
            None => "",
        };
        return Some(format!("{} {}{comment}{line_end}{}", text[..start].trim_end_matches(' '), quoted(value), &text[end..]));
    }
    let line = line_of(&entry.host_name.as_ref()?.defined)?;
    let (column, _) = key_at(lines[line], "hostName")?;
    let end = at(line) + lines[line].len();
    let is_last = !lines[line].ends_with('\n');
    let line_end = if lines[line].ends_with("\r\n") || is_last && text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut edited = text[..end].to_owned();
    if is_last {
        edited += line_end;
    }
    write!(edited, "{:column$}{KEY}: {}{line_end}", "", quoted(value)).ok()?;
    Some(edited + &text[end..])
}

/// Where a key is in a line that begins with it, perhaps after the dash of a list: its column, and where what follows its colon begins.
fn key_at(line: &str, key: &str) -> Option<(usize, usize)> {
    let begin = line.find(|c| c != ' ' && c != '-')?;
    let rest = &line[begin..];
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
    let inner = quote.map_or(Some(rest), |_| rest.get(1..))?.strip_prefix(key)?;
    let after = quote.map_or(Some(inner), |quote| inner.strip_prefix(quote))?.trim_start_matches(' ').strip_prefix(':')?;
    let blanks = after.len() - after.trim_start_matches(' ').len();
    (after.is_empty() || after.starts_with([' ', '\n', '\r'])).then(|| (begin, line.len() - after.len() + blanks))
}

/// How many bytes the scalar takes that `text` begins with; its key is in `column`.
fn length(text: &str, column: usize) -> Option<usize> {
    match text.chars().next()? {
        '\'' => {
            let mut rest = 1;
            loop {
                rest += text[rest..].find('\'')? + 1;
                if !text[rest..].starts_with('\'') {
                    return Some(rest);
                }
                rest += 1;
            }
        }
        '"' => {
            let mut escaped = false;
            let end = |(_, c): &(usize, char)| {
                let ends = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                ends
            };
            text.char_indices().skip(1).find(end).map(|(at, _)| at + 1)
        }
        '|' | '>' => {
            let mut lines = text.split_inclusive('\n');
            let head = lines.next()?;
            // Its lines are at least as far to the right as the first of them, or as the head says; a comment behind it is not.
            let said = head.split('#').next()?.chars().find_map(|c| c.to_digit(10)).map(|more| column + more as usize);
            let (mut indent, mut end, mut here) = (said, head.len(), head.len());
            for line in lines {
                here += line.len();
                if line.trim().is_empty() {
                    continue;
                }
                let at = line.len() - line.trim_start_matches(' ').len();
                if at <= column || indent.is_some_and(|indent| at < indent) {
                    break;
                }
                indent = indent.or(Some(at));
                end = here;
            }
            Some(end)
        }
        // Nothing is there but a comment.
        '#' => Some(0),
        // An anchor, an alias, a tag: not for an edit of text.
        '&' | '*' | '!' | '{' | '[' => None,
        _ => {
            let line = text.lines().next()?;
            Some(line.find(" #").map_or(line, |comment| &line[..comment]).trim_end().len())
        }
    }
}

/// The Ignition configuration `old` with the partition in it, and what of it is kept although it differs.
fn merged(old: Option<&Value>, wanted: &Wanted) -> Result<(Value, Vec<String>)> {
    let ours = ignition::config(wanted);
    let Some(old) = old else { return Ok((ours, Vec::new())) };
    let mut new = old.clone();
    let merge = || -> Result<(Value, Vec<String>)> {
        let top = new.as_object_mut().context("it is no object")?;
        version(object(top, "ignition")?)?;
        let storage = object(top, "storage")?;
        unused_as_a_whole(storage, wanted)?;
        disks(list(storage, "disks")?, wanted)?;
        let mut kept = file_systems(list(storage, "filesystems")?, wanted)?;
        let unit = ours["systemd"]["units"][0].clone();
        kept.extend(units(list(object(top, "systemd")?, "units")?, unit)?);
        Ok((new, kept))
    };
    merge().map_err(|error| if is_measured(&error) { error } else { damaged(format!("it is no Ignition configuration: {error:#}")) })
}

fn object<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Map<String, Value>> {
    let child = parent.entry(key).or_insert_with(|| json!({}));
    child.as_object_mut().with_context(|| format!("{key} is no object"))
}

fn list<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>> {
    let child = parent.entry(key).or_insert_with(|| json!([]));
    let list = child.as_array_mut().with_context(|| format!("{key} is no list"))?;
    ensure!(list.iter().all(Value::is_object), "{key} has something else than objects in it");
    Ok(list)
}

/// What is used is in every version from 3.2.0 on; an older one of the same shape is raised.
fn version(ignition: &mut Map<String, Value>) -> Result<()> {
    let have = ignition.get("version").and_then(Value::as_str).context("it does not say its version")?.to_owned();
    let mut numbers = have.split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(3)), Some(Ok(0 | 1))) => {
            ignition.insert("version".to_owned(), ignition::VERSION.into());
            Ok(())
        }
        (Some(Ok(3)), Some(Ok(_))) => Ok(()),
        _ => Err(unsupported(format!("it is of Ignition's version {have}, and only 3 is merged with"))),
    }
}

/// Puts `entry` into a list. One with the same `key` gets what it does not say; what it says otherwise is returned, as key and value, and stays.
fn set(list: &mut Vec<Value>, key: &str, entry: Value) -> Result<Vec<(String, Value)>> {
    let mut same: Vec<&mut Value> = list.iter_mut().filter(|have| have[key] == entry[key]).collect();
    ensure!(same.len() < 2, "there are two with the same {key}, {}", entry[key]);
    let Some(have) = same.pop().and_then(Value::as_object_mut) else {
        list.push(entry);
        return Ok(Vec::new());
    };
    let mut other = Vec::new();
    for (key, value) in entry.as_object().into_iter().flatten() {
        match have.get(key) {
            Some(said) if said == value => {}
            Some(said) if !said.is_null() => other.push((key.clone(), said.clone())),
            _ => drop(have.insert(key.clone(), value.clone())),
        }
    }
    Ok(other)
}

/// Refuses a disk that is used without partitions: a table on it would take what is there.
fn unused_as_a_whole(storage: &Map<String, Value>, wanted: &Wanted) -> Result<()> {
    let all = |key: &str| storage.get(key).and_then(Value::as_array).into_iter().flatten();
    let is = |device: &Value| device == wanted.device.as_str();
    let uses = [
        ("a file system", all("filesystems").any(|one| is(&one["device"]))),
        ("a RAID", all("raid").any(|one| one["devices"].as_array().is_some_and(|devices| devices.iter().any(is)))),
        ("encryption", all("luks").any(|one| is(&one["device"]))),
    ];
    match uses.into_iter().find(|(_, used)| *used) {
        Some((what, _)) => Err(unsupported(format!("it uses {} as a whole, for {what}: there is no room for a partition", wanted.device))),
        None => Ok(()),
    }
}

fn disks(disks: &mut Vec<Value>, wanted: &Wanted) -> Result<()> {
    let labelled = |disk: &Value| disk["partitions"].as_array().is_some_and(|list| list.iter().any(|part| part["label"] == LABEL));
    if let Some(other) = disks.iter().find(|disk| disk["device"] != wanted.device.as_str() && labelled(disk)) {
        return Err(unsupported(format!("it makes a partition `{LABEL}` on {} already: by that name only one is found", other["device"])));
    }
    let Some(disk) = disks.iter_mut().find(|disk| disk["device"] == wanted.device.as_str()) else {
        disks.push(ignition::disk(wanted));
        return Ok(());
    };
    let disk = disk.as_object_mut().context("a disk is no object")?;
    if disk.get("wipeTable") == Some(&Value::Bool(true)) {
        return Err(unsupported(format!(
            "it has wipeTable for {}, which takes every partition of the disk away at the installation",
            wanted.device
        ))
        .and_next(by_hand("take wipeTable out of it, when nothing on that disk is to go")));
    }
    disk.entry("wipeTable").or_insert(Value::Bool(false));
    let partitions = list(disk, "partitions")?;
    let own = |part: &Value| part["label"] == LABEL;
    partitions.iter().filter(|part| !own(part)).try_for_each(|other| apart(other, wanted))?;
    let Some(part) = partitions.iter_mut().find(|part| own(part)) else {
        partitions.push(ignition::partition(wanted));
        return Ok(());
    };
    if part["shouldExist"] == false {
        return Err(unsupported(format!("it says that there is to be no partition `{LABEL}`")));
    }
    let part = part.as_object_mut().context("a partition is no object")?;
    part.insert("sizeMiB".to_owned(), wanted.size_mib.into());
    match wanted.start_mib {
        Some(start) => drop(part.insert("startMiB".to_owned(), start.into())),
        None => drop(part.shift_remove("startMiB")),
    }
    Ok(())
}

/// Refuses to lie over another partition, or where another one is to grow.
fn apart(other: &Value, wanted: &Wanted) -> Result<()> {
    let number = |key: &str| {
        other.get(key).filter(|value| !value.is_null()).map(|value| value.as_u64().ok_or_else(|| anyhow!("{key} is no number")))
    };
    let (start, size) = (number("startMiB").transpose()?, number("sizeMiB").transpose()?);
    let name =
        || [&other["label"], &other["number"]].into_iter().find(|name| !name.is_null()).map_or_else(|| "?".to_owned(), Value::to_string);
    // Without one, too, a partition that is not there yet takes it (Ignition, "Configuration Specification v3.2.0").
    let Some(size) = size.filter(|size| *size > 0) else {
        return Err(usage(format!("the partition {} of that disk takes all the room that there is: give it a size first", name())));
    };
    let (Some(start), Some(own)) = (start.filter(|start| *start > 0), wanted.start_mib) else { return Ok(()) };
    if start < own.saturating_add(wanted.size_mib) && own < start.saturating_add(size) {
        return Err(usage(format!(
            "it would lie over the partition {} of that disk, which takes the MiB {start} to {}: choose another --start-mib or --size-mib",
            name(),
            start.saturating_add(size) - 1
        )));
    }
    Ok(())
}

fn file_systems(all: &mut Vec<Value>, wanted: &Wanted) -> Result<Vec<String>> {
    let ours = ignition::file_system(wanted);
    for other in all.iter() {
        let (same_device, same_path) = (other["device"] == ours["device"], other["path"] == ours["path"]);
        if same_device != same_path && (same_path || !other["path"].is_null()) {
            return Err(unsupported(format!(
                "it mounts {} at {}, where {} is to mount {}",
                other["device"],
                other["path"],
                unit_name(&wanted.dir),
                ours["device"]
            )));
        }
    }
    let other = set(all, "device", ours)?;
    if let Some((_, format)) = other.iter().find(|(key, _)| key == "format") {
        return Err(unsupported(format!("it makes a file system of the format {format} on {BY_PARTLABEL}, and the unit mounts XFS")));
    }
    Ok(other.into_iter().map(|(key, value)| format!("{key} of the file system stays {value}")).collect())
}

/// The unit that is there stays as it is, as long as it mounts the partition.
fn units(all: &mut Vec<Value>, unit: Value) -> Result<Vec<String>> {
    let name = unit["name"].clone();
    let masked = all.iter().any(|have| have["name"] == name && have["mask"] == true);
    let other = set(all, "name", unit)?;
    if masked || other.iter().any(|(key, _)| key == "enabled") {
        return Err(unsupported(format!("it says that {name} is not to be started at a boot")));
    }
    let mut kept = Vec::new();
    for (key, value) in other {
        let what = value.as_str().and_then(recovery_mount::setting);
        if !what.as_deref().is_some_and(|what| [BY_PARTLABEL, BY_LABEL].contains(&what)) {
            return Err(unsupported(format!("its unit {name} does not mount {BY_PARTLABEL}")));
        }
        kept.push(format!("{key} of the unit stay as they are"));
    }
    Ok(kept)
}

#[cfg(test)]
mod tests;
