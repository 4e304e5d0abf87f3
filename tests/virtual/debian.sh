#!/bin/bash
# debian.sh IMAGE: a disk (ext4) with a Debian 12 that boots with SELinux enforcing, and with Debian's own policy. Three minutes; needs Debian's package
# mirror: MIRROR, or the one that this machine takes its own packages from. The kernel and its modules are the virtual machine's.
set -euo pipefail
image=$1
tree=$1.tree
# shellcheck disable=SC2016  # apt's own variables
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep -v security | head -1 || true)}
rm -rf "$tree" "$image.new"
debootstrap --variant=minbase --include=systemd,selinux-policy-default bookworm "$tree" ${mirror:+"$mirror"}
rm -rf "$tree"/var/cache/apt "$tree"/var/lib/apt "$tree"/usr/share/{doc,info,man,locale,lintian,bash-completion} "$tree"/var/log/*
sed -i 's/^SELINUX=.*/SELINUX=enforcing/' "$tree/etc/selinux/config"
: >"$tree/etc/fstab"
echo selinux >"$tree/etc/hostname"
tr -d - </proc/sys/kernel/random/uuid >"$tree/etc/machine-id"
# With everything that Debian starts by itself, a boot takes an emulated processor more than a minute.
for unit in console-getty.service dev-hugepages.mount dev-mqueue.mount getty.target kmod-static-nodes.service proc-sys-fs-binfmt_misc.automount \
  sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount systemd-binfmt.service \
  systemd-boot-system-token.service systemd-firstboot.service systemd-hwdb-update.service systemd-journal-catalog-update.service \
  systemd-logind.service systemd-machine-id-commit.service systemd-modules-load.service systemd-pcrphase-sysinit.service systemd-pcrphase.service \
  systemd-pstore.service systemd-random-seed.service systemd-remount-fs.service systemd-sysctl.service systemd-sysusers.service systemd-tmpfiles-clean.timer \
  systemd-update-done.service systemd-update-utmp.service systemd-user-sessions.service timers.target; do
  ln -s /dev/null "$tree/etc/systemd/system/$unit"
done
# Each time that unit files are read again, all of these run.
rm "$tree"/usr/lib/systemd/system-generators/*
# What a test wants done is on a disk of its own; it is done as by an administrator who has logged in.
mkdir "$tree/host"
cat >"$tree/etc/systemd/system/host.service" <<'END'
[Service]
Type=exec
ExecStart=/bin/sh /host/start
SELinuxContext=unconfined_u:unconfined_r:unconfined_t:s0
StandardOutput=file:/dev/ttyS0
StandardError=file:/dev/ttyS0
END
cat >"$tree/etc/systemd/system/default.target" <<'END'
[Unit]
Requires=basic.target
Wants=host.service kubelet.service
After=basic.target
END
# A node's kubelet and its runtime: what the agent holds and stops.
for unit in kubelet containerd; do
  printf '[Service]\nExecStart=/bin/sleep infinity\n' >"$tree/usr/lib/systemd/system/$unit.service"
done
setfiles -r "$tree" -F "$tree/etc/selinux/default/contexts/files/file_contexts" "$tree"
truncate -s 1G "$image.new"
mkfs.ext4 -q -F -d "$tree" "$image.new"
rm -rf "$tree"
mv "$image.new" "$image"
