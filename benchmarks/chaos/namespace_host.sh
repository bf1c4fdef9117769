#!/bin/bash
# Makes a host of new namespaces: a name, an account `ray`, the environment in ~/venv, an ssh server, and its own /home, /tmp,
# /etc, /run and /dev/shm, which end with it. Runs as process 1 of `unshare`.
#
#   bash namespace_host.sh NAME PYTHON VENV HOME_FILES
#
# PYTHON is the interpreter's folder, VENV the environment of packages; HOME_FILES is copied to /home/ray.
set -euo pipefail
name=$1 python=$2 venv=$3 home_files=$4
layers=/home/.layers

overlay() { # NAME LOWER TARGET: mounts a writable copy of a folder
  mkdir -p "$layers/$1/upper" "$layers/$1/work" "$3"
  mount -t overlay overlay -o "lowerdir=$2,upperdir=$layers/$1/upper,workdir=$layers/$1/work" "$3"
}

hostname "$name"
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs /home
overlay etc /etc /etc
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/sshd /run/lock

# An account as Debian makes it. The wheels in its home are the only package index that the host reaches.
useradd --create-home --shell /bin/bash --password '*' ray
cp -r "$home_files/." /home/ray
mkdir -p /home/ray/.local/bin /home/ray/venv /home/ray/.cache
ln -s "$python/bin/python3.11" /home/ray/.local/bin/python3.11
chown -R ray:ray /home/ray
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" > /etc/hosts
rm -rf /etc/xdg/pip
printf '[global]\nno-index = true\nfind-links = /home/ray/wheels\n' > /etc/pip.conf
mkdir -p /etc/uv
printf 'no-index = true\nfind-links = ["/home/ray/wheels"]\n' > /etc/uv/uv.toml

# The environment is a writable copy, as if the commands of the setup had made it there.
overlay venv "$venv" /home/ray/venv
grep -lIsE -d skip '^#!.*python' /home/ray/venv/bin/* | xargs sed -i '1s|^#!.*python.*|#!/home/ray/venv/bin/python|'
chown -h ray:ray /home/ray/venv /home/ray/venv/{bin,bin/*,pyvenv.cfg,lib,lib/python*,lib/python*/site-packages}
chown -R ray:ray /home/ray/venv/lib/python*/site-packages/{pip,setuptools,wheel}{,-[0-9]*}

# Nothing else of this machine's users is seen.
mkdir "$layers/python"
mount --bind "$python" "$layers/python"
mount -t tmpfs -o mode=755 tmpfs "$(dirname "$venv")"
mount -t tmpfs -o mode=755 tmpfs /root
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p "$python"
mount --bind "$layers/python" "$python"

ssh-keygen -A > /dev/null
/usr/sbin/sshd -e
touch /run/ready
sleep infinity & # bash waits, as process 1 has to for the processes whose parents ended
wait
