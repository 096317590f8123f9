#!/usr/bin/env bash
# Boots a real systemd as pid 1 of throw-away namespaces, with the unit under test and nothing else,
# and runs PROBE in it. What it writes stays in memory: /run, /var and /etc are laid over.
#
#   unshare -mpfuinC --mount-proc --kill-child=SIGKILL tests/systemd/lab.sh UNIT_FOLDER PROBE OUTPUT
set -euo pipefail
units=$1 probe=$2 output=$3
scratch=$(dirname "$output")

mount --make-rprivate /
touch "$output"
mkdir "$scratch/layer"
mount -t tmpfs tmpfs "$scratch/layer"
for folder in etc var; do
    mkdir "$scratch/layer/$folder" "$scratch/layer/$folder.work"
    mount -t overlay overlay \
        -o "lowerdir=/$folder,upperdir=$scratch/layer/$folder,workdir=$scratch/layer/$folder.work" \
        "/$folder"
done
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /run/systemd/system
cp -r "$units"/. /run/systemd/system/
ip link set lo up
cat >/run/systemd/system/lab.target <<UNIT
[Unit]
DefaultDependencies=no
Wants=appliance.service lab-probe.service
UNIT
cat >/run/systemd/system/lab-probe.service <<UNIT
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/bash $probe
StandardOutput=file:$output
StandardError=file:$output
UNIT
exec env -i PATH="$PATH" container=lab /lib/systemd/systemd --system --unit=lab.target --log-target=null
