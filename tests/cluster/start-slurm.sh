#!/usr/bin/env bash
# A real SLURM of one node on loopback (munge, slurmctld, slurmd), from Debian's packages, as root, without systemd.
#
#   start-slurm.sh DIR        configure under DIR and start what does not run yet; installs what is missing
#   . DIR/env.sh              sbatch, squeue and srun then talk to it
#   stop-slurm.sh DIR         stops what this script started, and nothing else
#
# SLURM_TEST_PORT (16917) is the first of two ports. The node pretends to have 8 CPUs, 16 GB and two GPUs. There is no
# accounting: what the tests need to know, squeue says.
set -euo pipefail
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
unset SLURM_CONF

mkdir -p "$1"; DIR=$(cd "$1" && pwd -P)
PORT=${SLURM_TEST_PORT:-16917}
HOST=$(hostname -s)

say() { printf 'start-slurm: %s\n' "$*" >&2; }
die() {
  say "FAILED: $*"
  for file in "$DIR"/log/*; do [ -s "$file" ] && { say "--- $file"; tail -n 15 "$file" >&2; }; done
  exit 1
}
[ "$(id -u)" = 0 ] || die "must run as root"
exec 9>"$DIR/.lock"; flock -w 120 9 || die "another start or stop holds $DIR/.lock"

install_missing() {
  local need=() package
  for package in slurmctld slurmd slurm-client munge; do
    dpkg-query -W -f='${Status}' "$package" 2> /dev/null | grep -q 'install ok installed' || need+=("$package")
  done
  [ ${#need[@]} = 0 ] && return
  say "installing ${need[*]}"
  # Packages must not start daemons of their own.
  local policy=/usr/sbin/policy-rc.d made=0
  if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' > $policy; chmod 755 $policy; made=1; fi
  local get=(apt-get -y --no-install-recommends -o DPkg::Lock::Timeout=300)
  { DEBIAN_FRONTEND=noninteractive "${get[@]}" install "${need[@]}" ||
    { apt-get update && DEBIAN_FRONTEND=noninteractive "${get[@]}" install "${need[@]}"; }; } > "$DIR/apt.log" 2>&1 9>&- ||
    { tail -5 "$DIR/apt.log" >&2; [ $made = 0 ] || rm -f $policy; die "apt-get install ${need[*]}"; }
  [ $made = 0 ] || rm -f $policy
}
install_missing

mkdir -p "$DIR"/{bin,dev,etc,log,munge,run,spool,state}
chmod 755 "$DIR" "$DIR/munge" "$DIR/run"; chmod 700 "$DIR/state"

alive() {  # is the process recorded in run/$1.pid still the daemon of this DIR? (a dead one may stay as a zombie)
  local pid; pid=$(cat "$DIR/run/$1.pid" 2> /dev/null) && [ -n "$pid" ] && kill -0 "$pid" 2> /dev/null &&
    tr '\0' '\n' < "/proc/$pid/cmdline" 2> /dev/null | grep -qF "$DIR/"
}
wait_for() {  # wait_for SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" > /dev/null 2>&1; do [ $SECONDS -lt $end ] || die "no $what"; sleep 0.2; done
}
daemon() {  # daemon NAME COMMAND...: in a session of its own
  alive "$1" && return
  local name=$1; shift
  setsid "$@" >> "$DIR/log/$name.out" 2>&1 < /dev/null 9>&- &
  echo $! > "$DIR/run/$name.pid"; disown
}

if ! alive slurmctld; then
  # The devices of pretended GPUs have /dev/null's number; where mknod is not allowed, counting alone schedules them.
  gpus="File=$DIR/dev/gpu[0-1]"
  for gpu in 0 1; do
    [ -c "$DIR/dev/gpu$gpu" ] || mknod -m 666 "$DIR/dev/gpu$gpu" c 1 3 2> /dev/null || gpus="Count=2 Flags=CountOnly"
  done
  echo "NodeName=$HOST Name=gpu $gpus" > "$DIR/etc/gres.conf"
  echo "CgroupAutomount=no" > "$DIR/etc/cgroup.conf"
  cat > "$DIR/etc/slurm.conf" << EOF
ClusterName=test
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.sock
CredType=cred/munge
SlurmctldPidFile=$DIR/run/slurmctld.own.pid
SlurmdPidFile=$DIR/run/slurmd.own.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.log
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerType=sched/backfill
# Answers within a second instead of half a minute.
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000,batch_sched_delay=1
SlurmctldTimeout=30
SlurmdTimeout=20
InactiveLimit=0
KillWait=2
MinJobAge=300
JobRequeue=1
# Memory is looked at every second, and a job that takes more than it asked for is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
NodeName=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 1)) CPUs=8 RealMemory=16384 Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes=$HOST Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
PartitionName=gpu Nodes=$HOST MaxTime=INFINITE DefaultTime=60 State=UP
EOF
  # Snakemake drops every SLURM_ variable before it calls srun inside a job: this srun gets its own back.
  printf '#!/bin/sh\nSLURM_CONF=%s exec /usr/bin/srun "$@"\n' "'$DIR/etc/slurm.conf'" > "$DIR/bin/srun"
  chmod 755 "$DIR/bin/srun"
  printf "export SLURM_CONF='%s' PATH='%s':\"\$PATH\"\n" "$DIR/etc/slurm.conf" "$DIR/bin" > "$DIR/env.sh"
fi
export SLURM_CONF="$DIR/etc/slurm.conf"

if ! alive munged; then
  [ -s "$DIR/munge/key" ] || (umask 077; head -c 1024 /dev/urandom > "$DIR/munge/key")
  chmod 400 "$DIR/munge/key"; rm -f "$DIR/munge/munge.sock"*
fi
daemon munged munged --foreground --force --key-file="$DIR/munge/key" --socket="$DIR/munge/munge.sock" \
  --pid-file="$DIR/run/munged.own.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed"
wait_for 20 munge sh -c "munge -S '$DIR/munge/munge.sock' -n | unmunge -S '$DIR/munge/munge.sock'"
daemon slurmctld slurmctld -D -f "$DIR/etc/slurm.conf"
wait_for 30 slurmctld sh -c 'scontrol ping | grep -q "is UP"'
daemon slurmd slurmd -D -N "$HOST" -f "$DIR/etc/slurm.conf"
if sinfo -h -N -n "$HOST" -o %t | grep -qE 'down|drain|fail'; then
  scontrol update NodeName="$HOST" State=RESUME 2> /dev/null || true  # left so by an earlier crash
fi
wait_for 60 "idle node" sh -c 'sinfo -h -N -p cpu -o %t | grep -qE "^(idle|mix|alloc)$"'
say "ready: . $DIR/env.sh"
