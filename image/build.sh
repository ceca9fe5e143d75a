#!/usr/bin/env bash
# Lints the Dockerfile, builds the image with buildah, lets it answer one streamed chat as uid 10001, reports its size.
# Neither a daemon nor a registry is needed: without BASE, a Debian 12 base is made by debootstrap (as root).
#   DEVICE       cpu, or gpu: torch for CUDA, attention kernels, the C compiler that Triton needs; the tag ends with -gpu
#   BASE         a base image: docker.io/library/python:3.11-slim-bookworm, or one that the store has
#   BUILD_FLAGS  more flags of `buildah bud`: --build-arg TORCH_INDEX=..., or for an index or a certificate of your own
#                --volume PIP.CONF:/etc/pip.conf:ro --volume CERTIFICATES:CERTIFICATES:ro
#   STORE        where images and logs lie, default build/image
#   OUT          also write the image here, as an OCI archive
set -euo pipefail
cd "$(dirname "$0")/.."
STORE=${STORE:-$PWD/build/image}
IMAGE=localhost/tokenfleet:$(sed -n 's/^appVersion: "\(.*\)"/\1/p' charts/tokenfleet/Chart.yaml)
case ${DEVICE:-cpu} in
    cpu) DEVICE_FLAGS=() ;;
    gpu)
        IMAGE=$IMAGE-gpu
        COMPILER="gcc libc6-dev"
        [ -n "${BASE:-}" ] || COMPILER="$COMPILER libpython3.11-dev"  # Debian's python3 comes without its headers
        DEVICE_FLAGS=(--build-arg TORCH_INDEX=https://pypi.org/simple --build-arg EXTRAS=[gpu] --build-arg "COMPILER=$COMPILER")
        ;;
    *) echo "DEVICE=$DEVICE is neither cpu nor gpu" >&2; exit 2 ;;
esac
PORT=${PORT:-18000}
buildah() { command buildah --storage-driver vfs --root "$STORE/store" --runroot "$STORE/run" "$@"; }

make_base() {
    [ -e "$STORE/base/rootfs.tar" ] || {
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$STORE/rootfs" \
            >"$STORE/debootstrap.log"
        if mountpoint -q "$STORE/rootfs/proc"; then umount "$STORE/rootfs/proc"; fi  # some debootstraps leave it mounted
        mkdir -p "$STORE/base"
        tar --one-file-system -C "$STORE/rootfs" -cf "$STORE/base/rootfs.part" .
        mv "$STORE/base/rootfs.part" "$STORE/base/rootfs.tar"
        rm -r --one-file-system "$STORE/rootfs"
    }
    printf 'FROM scratch\nADD rootfs.tar /\n' >"$STORE/base/Dockerfile"
    buildah bud --quiet --isolation chroot -t localhost/debian12-python -f "$STORE/base/Dockerfile" "$STORE/base" >/dev/null
}

# What Triton does at its first launch, without a GPU: an extension module of Python, by the C compiler that is found.
try_compiler() {
    buildah run --isolation chroot "$container" -- sh -c 'echo "#include <Python.h>" | gcc -shared -fPIC \
        -I "$(python3 -c "import sysconfig; print(sysconfig.get_path(\"include\"))")" -x c -o /tmp/module.so -' \
        || { echo "no extension can be compiled: Triton could not either" >&2; return 1; }
}

try_image() {
    container=$(buildah from --pull-never "$IMAGE")
    buildah run --isolation chroot "$container" -- id -u | grep -qx 10001 || { echo "not uid 10001" >&2; return 1; }
    [ "${DEVICE:-cpu}" = cpu ] || try_compiler
    buildah run --isolation chroot "$container" -- \
        sh -c "echo \$\$ >/tmp/pid; exec tokenfleet serve --workers 2 --port $PORT --ops-port $((PORT + 1))" \
        >"$STORE/serve.log" 2>&1 &
    server=$!
    for _ in $(seq 180); do
        if python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$((PORT + 1))/readyz', timeout=1)" \
            2>/dev/null; then break; fi
        kill -0 "$server" || { cat "$STORE/serve.log" >&2; return 1; }
        sleep 1
    done
    buildah run --isolation chroot "$container" -- \
        python3 -c "$(cat charts/tokenfleet/files/streamed_chat.py)" "http://127.0.0.1:$PORT"
    kill -TERM "$(buildah run --isolation chroot "$container" -- cat /tmp/pid)"  # chroot isolation shares pids
    wait "$server"
    buildah rm "$container" >/dev/null
}

mkdir -p "$STORE"
if command -v hadolint >/dev/null; then
    hadolint image/Dockerfile
else
    echo "no hadolint here (make image installs it): the Dockerfile is not linted" >&2
fi
if [ -z "${BASE:-}" ]; then
    make_base
    BASE=localhost/debian12-python
fi
# shellcheck disable=SC2086  # flags are words
buildah bud --layers --isolation chroot --ignorefile image/.containerignore --build-arg "BASE=$BASE" \
    "${DEVICE_FLAGS[@]}" ${BUILD_FLAGS:-} \
    -t "$IMAGE" -f image/Dockerfile . >"$STORE/build.log" 2>&1 || { tail -30 "$STORE/build.log" >&2; exit 1; }
try_image
buildah images --format '{{.Name}}:{{.Tag}} {{.Size}}' "$IMAGE"
if [ -n "${OUT:-}" ]; then buildah push --quiet "$IMAGE" "oci-archive:$OUT"; fi
