#!/usr/bin/env bash
# Stops the SLURM that start-slurm.sh started under DIR, and nothing else.
set -euo pipefail
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
[ -d "$1/run" ] || exit 0
DIR=$(cd "$1" && pwd -P)
exec 9>"$DIR/.lock"; flock -w 120 9
alive() { kill -0 "$1" 2> /dev/null && tr '\0' '\n' < "/proc/$1/cmdline" 2> /dev/null | grep -qF "$DIR/"; }
export SLURM_CONF="$DIR/etc/slurm.conf"
timeout 10 scancel -u root 2> /dev/null || true
for _ in $(seq 20); do [ -z "$(timeout 5 squeue -h 2> /dev/null)" ] && break; sleep 0.25; done
for name in slurmctld slurmd munged; do
  pid=$(cat "$DIR/run/$name.pid" 2> /dev/null) || continue
  alive "$pid" || continue
  kill "$pid"
  for _ in $(seq 50); do alive "$pid" || break; sleep 0.1; done
  if alive "$pid"; then kill -9 "$pid" || true; fi
done
