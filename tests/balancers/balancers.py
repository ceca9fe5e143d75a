"""The real balancers before two fleets: their configuration as docs/operators.md asks for it, and a process each."""

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from loadtests.peers.server import free_port
from tests.integration.fleet import Fleet

START_TIMEOUT_S = 20.0
BALANCERS = ("haproxy", "nginx", "envoy")  # those that choose by themselves

HAPROXY = """
global
  maxconn 1000
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  option redispatch
frontend clients
  bind 127.0.0.1:{port}
  default_backend fleets
backend fleets
  balance leastconn
  option httpchk
  http-check send meth GET uri /readyz
  default-server check inter 200ms fall 2 rise 1
  server a {host_a}:{a} check port {ops_a}
  server b {host_b}:{b} check port {ops_b}
"""

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream fleets {{
    least_conn;
    server {host_a}:{a} max_fails=1 fail_timeout=1s;
    server {host_b}:{b} max_fails=1 fail_timeout=1s;
    keepalive 32;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://fleets;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 60s;
      proxy_next_upstream error non_idempotent;
    }}
  }}
}}
"""

_ENVOY_HEAD = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: clients
          route_config:
            virtual_hosts:
            - name: fleets
              domains: ["*"]
              routes: [{{match: {{prefix: "/"}}, route: {{cluster: fleets, timeout: 0s}}}}]
          http_filters:
"""

_ENVOY_ROUTER = """
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
"""

ENVOY = (
    _ENVOY_HEAD
    + _ENVOY_ROUTER
    + """  - name: fleets
    type: STATIC
    lb_policy: LEAST_REQUEST
    common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}
    health_checks:
    - {{timeout: 1s, interval: 0.2s, no_traffic_interval: 0.2s, unhealthy_threshold: 2, healthy_threshold: 1,
        http_health_check: {{path: /readyz}}}}
    load_assignment:
      cluster_name: fleets
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{socket_address: {{address: {host_a}, port_value: {a}}}}}
            health_check_config: {{port_value: {ops_a}}}
        - endpoint:
            address: {{socket_address: {{address: {host_b}, port_value: {b}}}}}
            health_check_config: {{port_value: {ops_b}}}
"""
)

_PICKER_FILTER = """
          - name: envoy.filters.http.ext_proc
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
              grpc_service: {{envoy_grpc: {{cluster_name: picker}}}}
              message_timeout: 5s
              failure_mode_allow: false
              mutation_rules: {{allow_all_routing: {{value: true}}}}
              processing_mode:
                request_header_mode: SEND
                response_header_mode: SKIP
                request_body_mode: NONE
                response_body_mode: NONE
                request_trailer_mode: SKIP
                response_trailer_mode: SKIP
"""

# As gateways make it of an InferencePool: the picker names the endpoint, and Envoy goes there.
ENVOY_WITH_PICKER = (
    _ENVOY_HEAD
    + _PICKER_FILTER
    + _ENVOY_ROUTER
    + """  - name: fleets
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    original_dst_lb_config: {{use_http_header: true, http_header_name: x-gateway-destination-endpoint}}
  - name: picker
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: picker
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {picker}}}}}}}
"""
)

_TEMPLATES = {"haproxy": HAPROXY, "nginx": NGINX, "envoy": ENVOY, "envoy-with-picker": ENVOY_WITH_PICKER}


def binary_or_none(name: str) -> str | None:
    """`name` is a balancer's, or Envoy's way with a picker."""
    program = name.partition("-")[0]
    return shutil.which(program) or shutil.which(program, path="/usr/sbin")


class Balancer:
    """Started on entering, when it passes requests through; ended on leaving."""

    def __init__(self, name: str, fleets: tuple[Fleet, Fleet], folder: Path, picker_port: int = 0) -> None:
        self.name, self.port, self._folder = name, free_port(), folder
        a, b = fleets
        places = {"a": a.port, "b": b.port, "ops_a": a.ops_port, "ops_b": b.ops_port, "picker": picker_port}
        hosts = {"host_a": a.host, "host_b": b.host}
        self._file = folder / f"{name}.yaml"  # Envoy goes by the suffix
        self._file.write_text(_TEMPLATES[name].format(port=self.port, folder=folder, **places, **hosts).strip() + "\n")

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Balancer":
        program = binary_or_none(self.name)
        assert program is not None
        arguments = {
            "haproxy": ["-db", "-f", str(self._file)],
            "nginx": ["-p", str(self._folder), "-c", str(self._file)],
            "envoy": ["--config-path", str(self._file), "--concurrency", "1", "--use-dynamic-base-id", "-l", "warning"],
        }[Path(program).name]
        self._log = self._folder / f"{self.name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([program, *arguments], stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(self._passes, START_TIMEOUT_S, lambda: self._log.read_text(errors="replace")[-2000:])
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _passes(self) -> bool:
        try:
            with urllib.request.urlopen(self.base_url + "/v1/models", timeout=2) as response:
                return int(response.status) == 200
        except (urllib.error.HTTPError, OSError):
            return False


def wait_until(condition: Callable[[], bool], timeout_s: float, explain: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, explain()
        time.sleep(0.05)
