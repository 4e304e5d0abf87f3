//! The programs of an emulated node, all in one: `crictl`, `systemctl`, `ostree`, `rpm-ostree`, kubelet, and the machine itself.
//!
//! It is called through links in the folder that `recovery --tools` is given, and plays the program whose name it is called by. Beside
//! that folder is what it remembers (see [`testing::place`]). Each call is noted, and can be made to go wrong ([`Fault`]). What is real and
//! what is emulated is listed in `tests/README.md`.

mod booted;
mod cluster;
mod crictl;
mod kubelet;
mod machine;
mod pods;
mod runtime;
mod soft_reboot;
mod systemctl;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testing::place::{Call, Fault, Place, Wrong};

/// A stand-in that calls itself says with this that the call is the same one, and goes well.
const GOES_WELL: &str = "EMULATED_CALL_GOES_WELL";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("stand-in: {error:#}");
            ExitCode::from(70)
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut words = std::env::args();
    let called = PathBuf::from(words.next().context("no name")?);
    let args: Vec<String> = words.collect();
    let name = called.file_name().and_then(|n| n.to_str()).context("no name")?.to_owned();
    let place = Place::new(called.parent().and_then(Path::parent).context("a stand-in is called by its full path, DIR/tools/NAME")?);
    match name.as_str() {
        // What the machine starts by itself is no call of a tool.
        "machine" => return machine::run(&place, &args),
        "inside" => return booted::inside(&place, &args),
        "rpm-ostreed" => return booted::rpm_ostreed(&place, &args),
        "kubelet" if args != ["--version"] => return kubelet::run(&place),
        "kube-apiserver" => return cluster::serve(&place, &args).map(|()| ExitCode::SUCCESS),
        "container" => return kubelet::container(),
        _ => {}
    }
    let call = Call { tool: name.clone(), args: args.join(" ") };
    let goes_well = std::env::var_os(GOES_WELL).is_some();
    let fault = if goes_well {
        None
    } else {
        place.note(&call)?;
        fault(&place, &call)?
    };
    match &fault {
        Some(Wrong::Hang) => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        Some(Wrong::Fail(text, code)) => {
            eprintln!("{text}");
            return Ok(ExitCode::from(*code));
        }
        Some(Wrong::Print(text)) => {
            print!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
        Some(Wrong::Slow(milliseconds)) => std::thread::sleep(Duration::from_millis(*milliseconds)),
        Some(Wrong::Warn(text)) => {
            println!("{text}");
            eprintln!("{text}");
        }
        Some(Wrong::Half) => return half(&called, &args),
        Some(Wrong::FailAfter(..)) | None => {}
    }
    let code = work(&place, &name, &args)?;
    if let Some(Wrong::FailAfter(text, code)) = fault {
        eprintln!("{text}");
        return Ok(ExitCode::from(code));
    }
    Ok(code)
}

/// The call again, as one that goes well, with half of what it prints.
fn half(called: &Path, args: &[String]) -> Result<ExitCode> {
    let whole = Command::new(called).args(args).env(GOES_WELL, "").stderr(Stdio::inherit()).output().context("calling it again")?;
    std::io::stdout().write_all(&whole.stdout[..whole.stdout.len() / 2]).context("printing half of it")?;
    Ok(ExitCode::from(u8::try_from(whole.status.code().unwrap_or(1))?))
}

/// What the program of this name does.
fn work(place: &Place, name: &str, args: &[String]) -> Result<ExitCode> {
    match name {
        "crictl" => crictl::run(place, args),
        "systemctl" => systemctl::run(place, args),
        "ostree" => booted::ostree(place, args),
        "rpm-ostree" => booted::rpm_ostree(place, args),
        "kubelet" => {
            println!("Kubernetes v1.29.5");
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("nobody plays {name}"),
    }
}

/// What is to go wrong with this call; counted down.
fn fault(place: &Place, call: &Call) -> Result<Option<Wrong>> {
    if !place.state("faults.json").exists() {
        return Ok(None);
    }
    place.change("faults.json", |faults: &mut Vec<Fault>| {
        let is_meant = |f: &Fault| (f.tool.is_empty() || f.tool == call.tool) && call.args.contains(&f.matching) && f.times != Some(0);
        let Some(fault) = faults.iter_mut().find(|fault| is_meant(fault)) else { return Ok(None) };
        if fault.after > 0 {
            fault.after -= 1;
            return Ok(None);
        }
        fault.times = fault.times.map(|times| times - 1);
        Ok(Some(fault.what.clone()))
    })
}
