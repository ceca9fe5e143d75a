// Reads a JSON array of objects on standard input; prints one line per object that its CRD's published schema refuses.
// Runs in the repository's root, after charts/install_tools.sh.
import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const models = {
  PodMonitor: "prometheus-operator/monitoring.coreos.com/v1",
  ServiceMonitor: "prometheus-operator/monitoring.coreos.com/v1",
  PrometheusRule: "prometheus-operator/monitoring.coreos.com/v1",
  ScaledObject: "keda/keda.sh/v1alpha1",
  HTTPRoute: "gateway-api/gateway.networking.k8s.io/v1",
};
let faults = 0;
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const path = resolve(".tools/node_modules/@kubernetes-models", models[object.kind], object.kind);
  const file = existsSync(`${path}.mjs`) ? `${path}.mjs` : `${path}.js`;
  const Model = (await import(pathToFileURL(file)))[object.kind];
  try {
    new Model(object).validate();
  } catch (error) {
    faults += 1;
    console.log(`${object.kind} ${object.metadata?.name}: ${error.message}`);
  }
}
process.exitCode = faults ? 1 : 0;
