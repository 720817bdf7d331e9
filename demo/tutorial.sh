#!/usr/bin/env bash
# The tutorial on a real 2+2+2 cluster: one signed in-service patch goes through six hosts and back again. Every command
# is printed with its real output, and everything that the tutorial promises is checked; the first broken promise ends it
# with exit code 1. KEEP=1 leaves the cluster running.
set -euo pipefail

bin=$(cd "$(dirname "$0")/../bin" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/starpatch-demo.XXXXXX")
lab=$work/lab
id=001
package=demo-service
hosts=(controller-0 controller-1 compute-0 compute-1 storage-0 storage-1)
out=
export PATH=$bin:$PATH

if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' plain=$'\e[0m'; else bold='' green='' plain=''; fi

say() { printf '\n%s# %s%s\n' "$green" "$*" "$plain"; }

# run COMMAND...: prints the command and its output, keeps the output in $out, and ends the demo when it fails.
run() {
  printf '%s$ %s%s\n' "$bold" "$*" "$plain"
  local code=0
  out=$("$@" 2>&1) || code=$?
  [ -z "$out" ] || printf '%s\n' "$out"
  [ $code = 0 ] || fail "exit code $code"
}

fail() {
  printf '\nthe demo failed: %s\n' "$*" >&2
  exit 1
}

# equal WHAT GOT WANT
equal() { [ "$2" = "$3" ] || fail "$1 is \"$2\"; expected \"$3\""; }

# said TEXT: the last command printed it.
said() { case $out in *"$1"*) ;; *) fail "expected the output to say \"$1\"" ;; esac; }

# patch_is STATE: shows the patches; ours is in that state.
patch_is() {
  run sw-patch query
  equal "the state of patch $id" "$(awk -v id="$id" '$1 == id { print $2, $3, $4 }' <<<"$out")" "N 19.09 $1"
}

# hosts_are HOST=Yes|No...: shows the hosts; each is patch-current or not. A host that has not yet answered to the last
# change, which takes it some tenths of a second, shows Pending: it is not known to be current, so it counts as No.
hosts_are() {
  run sw-patch query-hosts
  local pair row
  for pair; do
    row=$(awk -v host="${pair%=*}" '$1 == host { print $3, $4, $5, $6 }' <<<"$out")
    equal "the row of ${pair%=*}" "${row/#Pending /No }" "${pair#*=} No 19.09 idle"
  done
}

all() { printf "%s=$1\n" "${hosts[@]}"; }

# services_are VERSION: asks every host's service over HTTP, and its package database.
services_are() {
  local host address
  for host in "${hosts[@]}"; do
    address=$(sw-patch query-hosts | awk -v host="$host" '$1 == host { print $2 }')
    run patch-lab exec --dir "$lab" controller-0 -- wget -q -O - "http://$address:9090/"
    equal "the version that $host's service tells" "$out" "$1"
    equal "the version that $host's packages say" \
      "$(rpm --root "$lab/hosts/$host/root" --dbpath /var/lib/rpm -q --qf '%{VERSION}-%{RELEASE}' $package)" "$1"
  done
}

finish() {
  local code=$?
  trap - EXIT
  if [ $code != 0 ]; then
    for log in "$lab"/log/*.log "$lab"/hosts/*/log/*.log; do
      [ ! -s "$log" ] || { printf '\n== end of %s\n' "${log#"$lab"/}"; tail -n 15 "$log"; } >&2
    done
  fi
  if [ "${KEEP:-}" = 1 ]; then
    printf '\nthe cluster runs on; look at it: eval "$(%s/patch-lab env --dir %s)"\nend it: %s/patch-lab down --dir %s\n' "$bin" "$lab" "$bin" "$lab"
  else
    patch-lab down --dir "$lab" >/dev/null || code=1
    rm -rf "$work"
  fi
  exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM
cd "$work"

say "six real hosts: two controllers, two storage hosts, two workers"
run patch-lab up --dir "$lab" --topology 2+2+2
eval "$(patch-lab env --dir "$lab")"
run patch-lab status --dir "$lab"
services_are 1.0-1

say "build a patch: version 1.0-2 of a service that runs on all of them, without a reboot"
run patch-lab rpm $package 1.0-2
run patch_build --id $id --release "$LAB_RELEASE" --status REL --reboot-required N --key "$LAB_SIGNING_KEY" \
  --summary "Demo service 1.0-2" --desc "The service tells a new version" $package-1.0-2.x86_64.rpm
said "Patch is $work/$id.patch"
run query_patch --file $id.patch --trust "$LAB_TRUST"
said "reboot_required: 'N'"

say "upload it: known to the system, on no host"
run sw-patch upload $id.patch
said "$id is now available"
patch_is Available
hosts_are $(all Yes)

say "apply it: in the repository, still on no host"
run sw-patch apply $id
said "$id is now in the repo"
patch_is Partial-Apply
hosts_are $(all No)
services_are 1.0-1

say "install it on every host; it is in service, so no host is locked or rebooted"
done_hosts=0
for host in "${hosts[@]}"; do
  run sw-patch host-install "$host"
  said "Installation was successful."
  done_hosts=$((done_hosts + 1))
  if [ $done_hosts = 1 ]; then
    hosts_are controller-0=Yes controller-1=No compute-0=No compute-1=No storage-0=No storage-1=No
    patch_is Partial-Apply
  fi
done
patch_is Applied
hosts_are $(all Yes)
services_are 1.0-2

say "remove it: out of the repository, still on every host"
run sw-patch remove $id
said "$id has been removed from the repo"
patch_is Partial-Remove
hosts_are $(all No)
services_are 1.0-2

say "and every host back to what it was"
for host in "${hosts[@]}"; do
  run sw-patch host-install "$host"
  said "Installation was successful."
done
patch_is Available
hosts_are $(all Yes)
services_are 1.0-1

say "delete it"
run sw-patch delete $id
said "$id has been deleted"
run sw-patch query
case $out in *"$id "*) fail "patch $id is still listed" ;; esac

say "done in $SECONDS seconds: $id was built, applied to six hosts, removed and deleted"
