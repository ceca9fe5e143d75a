"""`tokenfleet bundle` of a real fleet that has every kind of secret, and whose log was made to hold them all."""

import gzip
import json
import ssl
import tarfile
from hashlib import sha256
from pathlib import Path

import httpx

from tests.integration.fleet import Fleet, run_to_end
from tests.integration.test_tls import make_certificate

FLAGS = ("--engine", "sim", "--sim-step-ms", "1", "--workers", "1", "--max-num-seqs", "99")
FLAG_KEY, CONFIG_KEY, FILE_KEY, HASHED_KEY = "key-of-a-flag", "key=of=config==", "key/of+file", "key-known-by-its-hash"
COLLECTOR = "http://me:collector-password@127.0.0.1:9/v1/traces"


def unpacked(archive: Path) -> dict[str, str]:
    with tarfile.open(archive) as tar:
        members = {Path(member.name).name: tar.extractfile(member) for member in tar.getmembers()}
        return {name: file.read().decode() for name, file in members.items() if file is not None}


def test_no_secret_is_in_a_bundle_and_all_else_is(tmp_path: Path) -> None:
    pem, chain = make_certificate(tmp_path)
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[a]\nkey = "{FILE_KEY}"\n[b]\nsha256 = "{sha256(HASHED_KEY.encode()).hexdigest()}"')
    (tmp_path / "fleet.toml").write_text(
        f'[server]\napi_key = ["{CONFIG_KEY}", "{FLAG_KEY}"]\nssl_keyfile = "{pem}"\nssl_certfile = "{chain}"\n'
        f'api_key_file = "{keys}"\n[ops]\notlp_traces_endpoint = "{COLLECTOR}"\n'
    )
    pem_lines = [line for line in pem.read_text().splitlines() if "-----" not in line]
    secrets = [FLAG_KEY, CONFIG_KEY, FILE_KEY, HASHED_KEY, "collector-password", *pem_lines]
    archive = tmp_path / "bundle.tar.gz"

    with Fleet(tmp_path / "log", *FLAGS, "--config", str(tmp_path / "fleet.toml")) as fleet:
        headers = {"authorization": f"Bearer {FILE_KEY}", "x-request-id": FILE_KEY}  # a client that tells its key
        tls = ssl.create_default_context(cafile=chain)
        with httpx.Client(base_url=f"https://127.0.0.1:{fleet.port}", verify=tls, headers=headers) as client:
            answer = client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 3}, timeout=30)
            assert answer.status_code == 200
        with fleet.log_path.open("a") as log:
            log.write("\n".join([*secrets, pem.read_text(), f'{{"keys":"{FILE_KEY},{HASHED_KEY}"}}', "last line\n"]))
        done = run_to_end("bundle", "--pid", str(fleet.process.pid), "--out", str(archive))

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nothing is missing
    members = unpacked(archive)
    for secret in secrets:
        assert secret not in gzip.decompress(archive.read_bytes()).decode(errors="replace"), (
            "a secret is in the archive"
        )
    settings = {row["name"]: (row["value"], row["origin"]) for row in json.loads(members["settings.json"])}
    assert settings["max_num_seqs"] == ("99", "--max-num-seqs")
    assert settings["api_key"][0] == "(2 hidden)" and "fleet.toml" in settings["api_key"][1]
    assert settings["otlp_traces_endpoint"][0] == "http://(hidden)@127.0.0.1:9/v1/traces"
    assert "vllm:num_requests_running" in members["metrics.txt"]
    assert json.loads(members["probes.json"])["/readyz"]["status"] == 200
    assert [row["state"] for row in json.loads(members["top.json"])["workers"]] == ["ready"]
    assert {process["role"] for process in json.loads(members["fleet.json"])["processes"]} >= {"worker", "engine"}
    assert json.loads(members["versions.json"])["packages"]["msgspec"]
    assert "fleet ready" in members["log.txt"] and "\nlast line\n" in members["log.txt"]
    assert archive.stat().st_mode & 0o777 == 0o600
