#!/bin/bash
# Runs layout.sh in an overlay over a root. Called as the first process of mount,
# process, network and host name namespaces of its own, so nothing of it outlives
# it. Arguments: the root, the folder to work in (holds layout/, gets layer/: what
# the layout adds, to be laid over the root again).
set -euo pipefail
base=$1 work=$2
mkdir "$work"/{layer,overlay,root}
root=$work/root
mount -t overlay -o "lowerdir=$base,upperdir=$work/layer,workdir=$work/overlay" overlay "$root"

cp -r "$work/layout/root/." "$root/"
chmod 755 "$root"/usr/{bin,sbin}/{consul,xivo}-* 2>/dev/null || true
install -m 755 "$work/layout/bin/"* "$root/usr/bin/"

mkdir "$root/layout"
mount --bind "$work/layout" "$root/layout"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -m 1777 "$root/run/lock"
install -d -o "$(chroot "$root" id -u postgres)" -g "$(chroot "$root" id -g postgres)" -m 2775 "$root/run/postgresql"
chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 VERSION="$VERSION" /layout/layout.sh
umount --recursive "$root"/{proc,dev,run,layout}
rmdir "$root/layout"
umount "$root"
