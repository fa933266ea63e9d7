#!/usr/bin/env bash
# A machine that reaches no image registry can still build and run our images for real: this makes sure that a Docker
# engine runs and that the image `finetune-test-cuda` is there, which stands in for the CUDA base (a bare Debian with
# the same user on id 1000 as Ubuntu 24.04 has). Prints one line on stdout: the docker client to use.
#
#   tests/docker/base.sh              as root, starts an installed engine; ends with the reason where that can't be done
#   tests/docker/base.sh --install    also installs the engine and debootstrap with apt (as root; for CI)
#
# PIP_FIND_LINKS (a folder of wheels) and PIP_CERT or SSL_CERT_FILE, where set, hold inside the images as well.
set -euo pipefail
export DOCKER_BUILDKIT=1
say() { echo "$*" >&2; }
fail() { say "docker tests can't run: $*"; exit 1; }

# A `docker` on PATH may be a client without an engine, or one of version 23+ without its buildx plugin. Only building
# something tells; an empty image costs well under a second.
client() {
  local docker probe
  while read -r docker; do
    if probe=$(printf 'FROM scratch\nLABEL finetune.probe=1\n' | timeout 20 "$docker" build -q - 2>/dev/null); then
      "$docker" rmi "$probe" >/dev/null
      echo "$docker"
      return
    fi
  done < <(type -aP docker | awk '!seen[$0]++')
  return 1
}

missing=()
command -v dockerd >/dev/null || missing+=(docker.io iptables)
command -v debootstrap >/dev/null || missing+=(debootstrap)
if [[ ${1:-} == --install && ${#missing[@]} -gt 0 ]]; then
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2 || fail "apt-get failed"
fi

if ! docker=$(client); then
  command -v dockerd >/dev/null || fail "no Docker engine (as root: tests/docker/base.sh --install)"
  [[ $(id -u) == 0 ]] || fail "no Docker engine answers, and only root can start one"
  log=$(mktemp --tmpdir dockerd.XXXXXX.log)
  setsid dockerd >"$log" 2>&1 </dev/null &  # stays: the next run starts at once
  say "started dockerd, process $!, log $log"
  for _ in $(seq 30); do docker=$(client) && break; sleep 1; done
  [[ $docker ]] || { tail -n 5 "$log" >&2; fail "dockerd did not start, see $log"; }
fi

# The recipe is this file and the wheels: an image made from another recipe is made again.
wheels=${PIP_FIND_LINKS:-}
compgen -G "$wheels/*.whl" >/dev/null || wheels=
cert=${PIP_CERT:-${SSL_CERT_FILE:-}}
recipe=$({ cat "${BASH_SOURCE[0]}"; echo "$cert"; [[ -z $wheels ]] || ls -l "$wheels"; } | sha256sum | cut -c1-16)
label='{{index .Config.Labels "finetune.recipe"}}'
have=$("$docker" image inspect finetune-test-cuda --format "$label" 2>/dev/null || true)
if [[ $have != "$recipe" ]]; then
  command -v debootstrap >/dev/null || fail "no debootstrap (as root: tests/docker/base.sh --install)"
  [[ $(id -u) == 0 ]] || fail "only root can run debootstrap"
  say "making finetune-test-cuda (a minute or two)"
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  debootstrap --variant=minbase --include=ca-certificates bookworm "$root" >"$root.log" 2>&1 \
    || { tail -n 5 "$root.log" >&2; fail "debootstrap failed, see $root.log"; }
  rm -rf "$root.log" "$root"/var/cache/apt/archives/*.deb
  chroot "$root" useradd --create-home --uid 1000 ubuntu
  changes=(-c "LABEL finetune.recipe=$recipe")
  if [[ -f $cert ]]; then
    cp "$cert" "$root/etc/ssl/certs/ca-certificates.crt"
    changes+=(-c "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt")
  fi
  if [[ $wheels ]]; then
    mkdir "$root/wheels" && cp "$wheels"/*.whl "$root/wheels/"
    changes+=(-c "ENV PIP_FIND_LINKS=/wheels")
  fi
  tar -C "$root" -c . | "$docker" import "${changes[@]}" - finetune-test-cuda >/dev/null
fi
echo "$docker"
