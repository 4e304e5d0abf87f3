"""What the agent asks of rpm-ostree, over the real libostree: status --json, rollback [-r], cleanup -p|-r; and machine-config-daemon's rebase.

Runs inside the booted deployment: that of the real node, or of the emulated one (booted.rs, which has the daemon's transactions and does
the reboot of -r itself). Messages are those of rpm-ostree 2025.1 and its daemon.
"""
import json
import os
import subprocess
import sys
import time

import gi

gi.require_version("OSTree", "1.0")
from gi.repository import GLib, OSTree

# A registry that is slow: a rebase goes on for as long as this file is there.
PULLING = "/run/slow-registry"
# What stands before a refusal of the daemon, by verb (booted.rs has the same).
REFUSED = {"cleanup": "cleanup: Invoking cleanup: GDBus.Error:org.gtk.GDBus.UnmappedGError.Quark._g_2dio_2derror_2dquark.Code26: "}


def fail(message):
    sys.exit(f"error: {message}")


def name(deployment):
    return f"{deployment.get_csum()}.{deployment.get_deployserial()}"


def row(sysroot, deployment, booted):
    """One deployment, with the keys of 2025.1."""
    _, commit, _ = sysroot.repo().load_commit(deployment.get_csum())
    metadata = commit.get_child_value(0)
    version = metadata.lookup_value("version", GLib.VariantType("s"))
    origin = deployment.get_origin()
    fields = {
        "unlocked": "none",
        "booted": booted is not None and deployment.equal(booted),
        "id": f"{deployment.get_osname()}-{name(deployment)}",
        "osname": deployment.get_osname(),
        "pinned": deployment.is_pinned(),
        "regenerate-initramfs": False,
        "checksum": deployment.get_csum(),
        "serial": deployment.get_deployserial(),
        "requested-packages": [],
        "requested-local-packages": [],
        "requested-local-fileoverride-packages": [],
        "requested-base-removals": [],
        "requested-base-local-replacements": [],
        "base-removals": [],
        "base-local-replacements": [],
        "base-remote-replacements": {},
        "base-commit-meta": metadata.unpack(),
        "origin": origin.get_string("origin", "refspec") if origin is not None else "",
        "gpg-enabled": False,
        "timestamp": OSTree.commit_get_timestamp(commit),
        "packages": [],
        "staged": deployment.is_staged(),
    }
    if version is not None:
        fields["version"] = version.get_string()
    return fields


def status(sysroot, arguments):
    if "--json" not in arguments:
        fail("only status --json is played here")
    booted = sysroot.get_booted_deployment()
    rows = [row(sysroot, deployment, booted) for deployment in sysroot.get_deployments()]
    transaction = json.loads(os.environ.get("RPM_OSTREE_TRANSACTION", "null"))
    print(json.dumps({"deployments": rows, "transaction": transaction, "cached-update": None, "update-driver": None}, indent=2, separators=(",", " : ")))


def write(sysroot, deployments):
    """Says how many more or fewer the boot loader knows; a staged one is none of them."""
    before, after = ([name(each) for each in some if not each.is_staged()] for some in (sysroot.get_deployments(), deployments))
    sysroot.write_deployments(deployments, None)
    if before != after:
        version = f"boot.{sysroot.get_bootversion()}.{sysroot.get_subbootversion()}"
        change = len(after) - len(before)
        print(f"Bootloader updated; bootconfig swap: yes; bootversion: {version}, deployment count change: {change}")


def rollback(sysroot, arguments):
    """The rollback slot becomes the first; with only a pending deployment, the booted one does."""
    deployments, booted = sysroot.get_deployments(), sysroot.get_booted_deployment()
    if booted is None:
        fail("Not currently booted into an OSTree system")
    if deployments[0].is_staged():
        fail("Staged deployment (remove with cleanup -p)")
    pending, back = sysroot.query_deployments_for(booted.get_osname())
    # The rollback slot first, also with something pending before the booted one (2025.1).
    first = back or (booted if pending is not None else None)
    if first is None:
        fail("No rollback deployment found")
    print(f"Moving '{name(first)}' to be first deployment")
    order = [first] + [other for other in deployments if not other.equal(first)]
    write(sysroot, order)
    if "-r" in arguments or "--reboot" in arguments:
        subprocess.run(["systemctl", "reboot"], check=True)


def cleanup(sysroot, arguments):
    """-p removes what is ahead of the booted deployment, -r what is behind it, in its stateroot; never one that is pinned."""
    deployments, booted = sysroot.get_deployments(), sysroot.get_booted_deployment()
    if booted is None:
        fail("Not currently booted into an OSTree system")
    at = next(i for i, deployment in enumerate(deployments) if deployment.equal(booted))
    drop = []
    for i, deployment in enumerate(deployments):
        ahead = i < at and ("-p" in arguments or "--pending" in arguments)
        behind = i > at and ("-r" in arguments or "--rollback" in arguments)
        if (ahead or behind) and deployment.get_osname() == booted.get_osname() and not deployment.is_pinned():
            drop.append(deployment)
    if not drop:
        print("Deployments unchanged.")
        return
    write(sysroot, [deployment for deployment in deployments if deployment not in drop])
    sysroot.cleanup(None)


def rebase(sysroot, arguments):
    """Stages the commit of a refspec of this repository."""
    while os.path.exists(PULLING):
        time.sleep(0.05)
    booted = sysroot.get_booted_deployment()
    refspec = arguments[0]
    _, revision = sysroot.repo().resolve_rev(refspec, False)
    sysroot.stage_tree(booted.get_osname(), revision, sysroot.origin_new_from_refspec(refspec), booted, None, None)
    print("Staging deployment...done")


def main():
    verbs = {"status": status, "rollback": rollback, "cleanup": cleanup, "rebase": rebase}
    verb, *arguments = sys.argv[1:] or fail("No command specified")
    if verb not in verbs:
        fail(f"Unknown command '{verb}'")
    sysroot = OSTree.Sysroot.new_default()
    if verb != "status":
        sysroot.initialize_with_mount_namespace(None)
    try:
        if verb != "status":
            # The daemon locks first, and does not wait; that is also when libostree makes /sysroot writable in these mounts.
            locked, acquired = sysroot.try_lock()
            if not acquired:
                fail(f"{REFUSED.get(verb, '')}System transaction in progress")
        sysroot.load(None)
        verbs[verb](sysroot, arguments)
    except GLib.Error as error:
        fail(error.message)


main()
