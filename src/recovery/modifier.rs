//! The rules of a resource modifier, run over the snapshot of the backup that is restored: what they would change is known before anything is
//! touched, and is what is put into etcd later.
//!
//! Nothing is kept of a snapshot but what the rules are about: a snapshot can hold more objects than memory does.

mod ahead;
mod report;

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::archive::Archive;
use crate::backup::{Backup, ETCD, STATIC_PODS};
use crate::error::{AndNext, by_hand, damaged, unsupported};
use crate::etcd;
use crate::modifiers::{Applied, Form, Key, Outcome, Rules, Target, raise_generation_by, raises_generation};
use crate::node::profile::Profile;
use crate::node::static_pod::{Manifest, etcd_prefix};
use crate::report::Progress;

pub use ahead::DROP_DESIRED_UPDATE;
pub(super) use report::{Looked, look};
pub use report::{ModifierReport, ObjectReport, RuleReport};

/// How many bytes of keys and values are looked at together: enough that handing them over does not count.
const BATCH: usize = 256 << 10;
/// How many threads look at objects, at most.
const THREADS: usize = 4;
/// How many objects are patched through the API server, at most: of three requests each.
const MOST_SERVED: usize = 1000;

/// The objects of a backup: its etcd snapshot, unpacked once for all that looks at it.
pub(super) struct Objects {
    snapshot: etcd::Snapshot,
    prefix: String,
    backup: String,
}

/// An object that rules are about.
pub(super) struct Object {
    /// Its key in etcd.
    pub key: Vec<u8>,
    /// Which it is.
    pub target: Target,
    /// Its value in the snapshot.
    pub value: Vec<u8>,
    /// What the rules do to it, and the object that they make of it.
    pub applied: Applied,
    /// They make another of it.
    pub changed: bool,
    /// Its generation then, when that is raised.
    pub generation: Option<i64>,
}

impl Object {
    /// The value that it gets.
    pub(super) fn wanted(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(&self.applied.object).context("writing a patched object")?;
        // As the API server's encoder ends it.
        if self.value.ends_with(b"\n") {
            bytes.push(b'\n');
        }
        Ok(bytes)
    }
}

/// An object that rules are about and that etcd has in a form that is not read here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Served {
    /// Which it is.
    pub target: Target,
    /// The version of its API that it is stored in.
    pub api_version: String,
    /// The rules that are about it.
    rules: Vec<usize>,
}

/// What rules are about.
enum Found {
    /// What is read from the snapshot, of which nobody asks where it changes: which it is, and what each rule that is about it does.
    Judged(Target, Vec<(usize, Outcome)>),
    /// What is read from the snapshot, and patched in etcd.
    Read(Object),
    /// What is read from the API server and patched there.
    Served(Served),
}

/// Reads rules, as they stand in the journal or in a file.
pub(super) fn rules(text: &str) -> Result<Rules> {
    Rules::parse(text).context("reading the resource modifier's rules")
}

impl Objects {
    /// Opens those of a backup.
    ///
    /// # Errors
    /// Those of reading the backup.
    pub(super) fn of(backup: &Backup, progress: &Progress) -> Result<Self> {
        let prefix = prefix(backup)?;
        let file = backup.file(ETCD);
        let task = progress.task("reading the backup's etcd snapshot", file.metadata().ok().map(|meta| meta.len()));
        let snapshot = etcd::Snapshot::open(&file, &|bytes| task.add(bytes)).with_context(|| format!("reading backup {}", backup.id))?;
        Ok(Self { snapshot, prefix, backup: backup.id.clone() })
    }

    /// Calls `each` with every object that a rule is about and that is patched in etcd, the one that was last written first.
    ///
    /// # Errors
    /// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) for an object that a rule may be about and that cannot be patched,
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) for one that is no object; those of reading the snapshot, and of `each`.
    pub(super) fn run(&self, rules: &Rules, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        self.walk(Some(rules), &[], &mut |_, _| (), &Look { briefly: &|_| false, kept: &|found| found }, &mut |found| match found {
            Found::Read(object) => each(object),
            Found::Judged(..) | Found::Served(_) => Ok(()),
        })
    }

    /// Every object that a rule is about and that is patched through the API server, in the same order.
    ///
    /// # Errors
    /// As [`Objects::run`].
    pub(super) fn served(&self, rules: &Rules) -> Result<Vec<Served>> {
        let mut all = Vec::new();
        self.walk(Some(rules), &[], &mut |_, _| (), &Look { briefly: &|_| false, kept: &|found| found }, &mut |found| {
            if let Found::Served(object) = found {
                all.push(object);
                few_enough(all.len())?;
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Calls `each` with what is kept of all that a rule is about, which is looked at on all processors; and `also` with key and value of each of the
    /// `others` that is there, whatever the rules.
    fn walk<T: Send>(
        &self,
        rules: Option<&Rules>,
        others: &[Vec<u8>],
        also: &mut dyn FnMut(&[u8], &[u8]),
        look: &Look<'_, T>,
        each: &mut dyn FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let mut meant = rules.map(|rules| Meant { rules, prefix: &self.prefix, kinds: HashMap::new(), by_name: rules.choose_by_name() });
        let is_other = |key: &[u8]| others.iter().any(|other| other == key);
        let mut is_meant = |key: &[u8]| meant.as_mut().is_some_and(|meant| meant.by_key(key));
        let mut wanted = |key: &[u8]| is_other(key) || is_meant(key);
        let Some(rules) = rules else {
            return self.snapshot.live(&mut wanted, &mut |key, value| {
                also(key, value);
                Ok(())
            });
        };
        let result = thread::scope(|scope| {
            let mut desk = Desk::open(scope, |batch| batch.looked_at(&self.prefix, rules, look));
            self.snapshot.live(&mut wanted, &mut |key, value| {
                if is_other(key) {
                    also(key, value);
                }
                desk.add(key, value, each)
            })?;
            desk.close(each)
        });
        result.with_context(|| format!("running the rules on backup {}", self.backup))
    }

    /// The key of what is below the prefix.
    fn key(&self, below: &str) -> Vec<u8> {
        format!("{}/{below}", self.prefix).into_bytes()
    }
}

/// Which keys are of objects that the rules may be about.
struct Meant<'a> {
    rules: &'a Rules,
    prefix: &'a str,
    kinds: HashMap<String, bool>,
    /// Some rule is about some objects of a kind and not about others, by their names.
    by_name: bool,
}

impl Meant<'_> {
    fn by_key(&mut self, key: &[u8]) -> bool {
        let Some(key) = Key::parse(self.prefix, key) else { return false };
        let known = self.kinds.get(key.kind()).copied();
        known.unwrap_or_else(|| *self.kinds.entry(key.kind().to_owned()).or_insert_with(|| key.may_be_meant(self.rules)))
            // Most objects of a kind are ruled out by their name.
            && (!self.by_name || key.target().is_none_or(|target| self.rules.about_unread(&target).is_some()))
    }
}

/// How objects are looked at.
struct Look<'a, T> {
    /// Nobody asks where one changes that these rules may be about.
    briefly: &'a (dyn Fn(&[usize]) -> bool + Sync),
    /// What is kept of one: small, so that all else of it goes where it was made, before the next one is made.
    kept: &'a (dyn Fn(Found) -> T + Sync),
}

/// Keys and values that are looked at together, one behind the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// How long each key is, and each value.
    lengths: Vec<(usize, usize)>,
}

impl Batch {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.lengths.push((key.len(), value.len()));
    }

    fn looked_at<T>(&self, prefix: &str, rules: &Rules, look: &Look<'_, T>) -> Vec<Result<T>> {
        let mut rest = &self.bytes[..];
        let found = self.lengths.iter().filter_map(|(key, value)| {
            let (key, behind) = rest.split_at(*key);
            let (value, behind) = behind.split_at(*value);
            rest = behind;
            object(prefix, key, value, rules, look.briefly).map(|found| found.map(look.kept)).transpose()
        });
        found.collect()
    }
}

/// Where batches wait for a thread that looks at them, and what came of them for being asked for, in their order.
struct Desk<T> {
    next: Batch,
    batches: mpsc::SyncSender<(Batch, mpsc::SyncSender<Vec<Result<T>>>)>,
    looked: VecDeque<mpsc::Receiver<Vec<Result<T>>>>,
    threads: usize,
}

impl<T: Send> Desk<T> {
    /// Starts the threads, which end when the desk is gone.
    fn open<'scope>(scope: &'scope thread::Scope<'scope, '_>, look: impl Fn(&Batch) -> Vec<Result<T>> + Send + Copy + 'scope) -> Self
    where
        T: 'scope,
    {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS);
        let (batches, taken) = mpsc::sync_channel::<(Batch, mpsc::SyncSender<_>)>(threads);
        let taken = Arc::new(Mutex::new(taken));
        for _ in 0..threads {
            let taken = Arc::clone(&taken);
            scope.spawn(move || {
                let next = || taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
                while let Ok((batch, answer)) = next() {
                    // Nobody waits for it any more when something else failed.
                    answer.send(look(&batch)).ok();
                }
            });
        }
        Self { next: Batch::default(), batches, looked: VecDeque::new(), threads }
    }

    fn add(&mut self, key: &[u8], value: &[u8], each: &mut dyn FnMut(T) -> Result<()>) -> Result<()> {
        self.next.add(key, value);
        if self.next.bytes.len() < BATCH { Ok(()) } else { self.hand_in(each) }
    }

    /// Hands in what was added, and takes what was looked at when as much as the threads can do lies there.
    fn hand_in(&mut self, each: &mut dyn FnMut(T) -> Result<()>) -> Result<()> {
        let (answer, looked) = mpsc::sync_channel(1);
        // Without a thread there is no answer either.
        self.batches.send((std::mem::take(&mut self.next), answer)).ok();
        self.looked.push_back(looked);
        if self.looked.len() > 2 * self.threads { self.take(each) } else { Ok(()) }
    }

    fn take(&mut self, each: &mut dyn FnMut(T) -> Result<()>) -> Result<()> {
        let Some(looked) = self.looked.pop_front() else { return Ok(()) };
        looked.recv().context("a thread that looks at objects has ended")?.into_iter().try_for_each(|one| each(one?))
    }

    /// Takes all that is left.
    fn close(mut self, each: &mut dyn FnMut(T) -> Result<()>) -> Result<()> {
        self.hand_in(each)?;
        while !self.looked.is_empty() {
            self.take(each)?;
        }
        Ok(())
    }
}

/// Refuses rules that are about more objects than can be patched through the API server while the controllers wait.
fn few_enough(served: usize) -> Result<()> {
    if served <= MOST_SERVED {
        return Ok(());
    }
    Err(unsupported(format!(
        "the rules are about more than {MOST_SERVED} objects of built-in kinds, which are patched through the API server while the rest of the control plane \
         waits"
    ))
    .and_next(by_hand("name fewer in groupResource, namespaces and resourceNameRegex")))
}

/// The object of a key, when a rule is about it.
fn object(prefix: &str, key: &[u8], value: &[u8], rules: &Rules, briefly: &dyn Fn(&[usize]) -> bool) -> Result<Option<Found>> {
    let Some(read) = Key::parse(prefix, key) else { return Ok(None) };
    let form = Form::of(value);
    let target = match read.target() {
        Some(target) if form == Form::Json => target,
        _ => match read.built_in(value) {
            Some((target, api_version)) => return served(rules, target, api_version, form),
            // Not even what it is can be read.
            None => return read.meant_unread(rules, value).map_or(Ok(None), |(rule, target)| Err(not_read(rule, rules, &target, form))),
        },
    };
    let about: Vec<usize> = rules.all_about_unread(&target).collect();
    let briefly = briefly(&about);
    let original = if briefly { rules.part(&about, value) } else { serde_json::from_slice(value) };
    let original: Value = original.map_err(|error| damaged(format!("{target} is no JSON in etcd: {error}")))?;
    let says = |path: &str| original.pointer(path).and_then(Value::as_str);
    if says("/metadata/name") != Some(&target.name) || says("/metadata/namespace") != target.namespace.as_deref() {
        return Err(damaged(format!("{target} has another name in etcd than its key")));
    }
    if briefly {
        let outcomes = rules.judge(about, original);
        return Ok((!outcomes.is_empty()).then(|| Found::Judged(target, outcomes)));
    }
    let mut applied = rules.apply_to(&target, original);
    if applied.outcomes.is_empty() {
        return Ok(None);
    }
    let mut changing = applied.outcomes.iter().filter_map(|(_, outcome)| match outcome {
        Outcome::Changed { changes } => Some(changes),
        _ => None,
    });
    let (changed, raises) = match (changing.next(), changing.next()) {
        (None, _) => (false, false),
        (Some(changes), None) => (true, raise_generation_by(changes)),
        // A rule may take back what another has changed.
        (Some(_), Some(_)) => {
            let original: Value = serde_json::from_slice(value).context("reading an object again")?;
            (applied.object != original, raises_generation(&original, &applied.object))
        }
    };
    let generation = if raises { raise_generation(&mut applied.object) } else { None };
    Ok(Some(Found::Read(Object { key: key.to_owned(), target, value: value.to_owned(), applied, changed, generation })))
}

/// An object of a built-in kind, when a rule is about it.
fn served(rules: &Rules, target: Target, api_version: &str, form: Form) -> Result<Option<Found>> {
    let about: Vec<usize> = rules.all_about_unread(&target).collect();
    if let Some(rule) = about.iter().find(|rule| rules.looks_inside(**rule)) {
        let (number, group_resource) = (rule + 1, rules.group_resource(*rule));
        return Err(unsupported(format!(
            "rule {number} ({group_resource}) may be about {target}, which is {} in etcd: what it holds is not known before the recovery begins, and \
             labelSelector and matches look at that",
            form.words()
        ))
        .and_next(by_hand(format!("choose in rule {number} by namespaces and resourceNameRegex alone, or name custom resources in groupResource"))));
    }
    let object = |rules| Found::Served(Served { target, api_version: api_version.to_owned(), rules });
    Ok((!about.is_empty()).then(|| object(about)))
}

/// Raises an object's generation, as the API server would: whoever compares it with the status's `observedGeneration` must not take the old status for one
/// of the new object.
fn raise_generation(object: &mut Value) -> Option<i64> {
    let Some(Value::Number(number)) = object.pointer_mut("/metadata/generation") else { return None };
    let raised = number.as_i64()?.checked_add(1)?;
    *number = raised.into();
    Some(raised)
}

fn not_read(rule: usize, rules: &Rules, target: &Target, form: Form) -> anyhow::Error {
    let (rule, group_resource) = (rule + 1, rules.group_resource(rule));
    unsupported(format!(
        "rule {rule} ({group_resource}) is, or may be, about {target}, which is {} in etcd: neither what it is nor what the rule would do to it can be known \
         before the recovery begins",
        form.words()
    ))
    .and_next(by_hand(format!("name others in groupResource of rule {rule}, and patch {target} with kubectl after the recovery")))
}

/// Where the API server of the backup keeps its objects.
pub(super) fn prefix(backup: &Backup) -> Result<String> {
    let profile: &Profile = backup.manifest.profile.profile();
    let path = profile.manifest(profile.api_server());
    let in_archive =
        path.strip_prefix(profile.kubernetes).map_err(|_| anyhow!("{} is not below {}", path.display(), profile.kubernetes))?;
    let archive = Archive::open(&backup.file(STATIC_PODS)).with_context(|| format!("opening {STATIC_PODS} of backup {}", backup.id))?;
    let text = archive.read_file(in_archive)?.with_context(|| format!("backup {} has no {}", backup.id, path.display()))?;
    let manifest = Manifest::parse(&String::from_utf8_lossy(&text))
        .map_err(|why| damaged(format!("{} of backup {} is no manifest of a pod: {why:#}", path.display(), backup.id)))?;
    etcd_prefix(profile, &manifest)
}

/// The SHA-256 of a value, hex.
pub(super) fn digest(value: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(value))
}
