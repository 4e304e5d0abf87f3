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

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testing::place::{Call, Fault, Place, Wrong};

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
    place.note(&call)?;
    let fault = fault(&place, &call)?;
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
        Some(Wrong::FailAfter(..)) | None => {}
    }
    let code = match name.as_str() {
        "crictl" => crictl::run(&place, &args),
        "systemctl" => systemctl::run(&place, &args),
        "ostree" => booted::ostree(&place, &args),
        "rpm-ostree" => booted::rpm_ostree(&place, &args),
        "kubelet" => {
            println!("Kubernetes v1.29.5");
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("nobody plays {name}"),
    }?;
    if let Some(Wrong::FailAfter(text, code)) = fault {
        eprintln!("{text}");
        return Ok(ExitCode::from(code));
    }
    Ok(code)
}

/// What is to go wrong with this call; counted down.
fn fault(place: &Place, call: &Call) -> Result<Option<Wrong>> {
    if !place.state("faults.json").exists() {
        return Ok(None);
    }
    place.change("faults.json", |faults: &mut Vec<Fault>| {
        let hit = faults.iter_mut().find(|f| f.tool == call.tool && call.args.contains(&f.matching) && f.times != Some(0));
        Ok(hit.map(|fault| {
            fault.times = fault.times.map(|times| times - 1);
            fault.what.clone()
        }))
    })
}
