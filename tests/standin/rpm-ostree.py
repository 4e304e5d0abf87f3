"""What the agent asks of rpm-ostree, over the real libostree: status --json, rollback [-r], cleanup -p|-r.

Runs inside the booted deployment: that of the real node, or of the emulated one (booted.rs, which does the reboot of -r itself). Messages are
those of rpm-ostree's daemon.
"""
import json
import subprocess
import sys

import gi

gi.require_version("OSTree", "1.0")
from gi.repository import GLib, OSTree


def fail(message):
    sys.exit(f"error: {message}")


def name(deployment):
    return f"{deployment.get_csum()}.{deployment.get_deployserial()}"


def row(sysroot, deployment, booted):
    """One deployment, with the keys that a container-based RHCOS has."""
    _, commit, _ = sysroot.repo().load_commit(deployment.get_csum())
    version = commit.get_child_value(0).lookup_value("version", GLib.VariantType("s"))
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
    print(json.dumps({"deployments": rows, "transaction": None, "cached-update": None, "update-driver": None}, indent=2, separators=(",", " : ")))


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
    sysroot.write_deployments(order, None)
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
    sysroot.write_deployments([deployment for deployment in deployments if deployment not in drop], None)
    sysroot.cleanup(None)
    print(f"Freed: 0 bytes (pkgcache branches: 0)\nDeployments removed: {len(drop)}")


def main():
    verbs = {"status": status, "rollback": rollback, "cleanup": cleanup}
    verb, *arguments = sys.argv[1:] or fail("No command specified")
    if verb not in verbs:
        fail(f"Unknown command '{verb}'")
    sysroot = OSTree.Sysroot.new_default()
    if verb != "status":
        sysroot.initialize_with_mount_namespace(None)
    try:
        if verb != "status":
            # The daemon locks first; that is also when libostree makes /sysroot writable in these mounts.
            sysroot.lock()
        sysroot.load(None)
        verbs[verb](sysroot, arguments)
    except GLib.Error as error:
        fail(error.message)


main()
