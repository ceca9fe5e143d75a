"""Settings from four places: precedence, origins, and one helpful line per mistake."""

from pathlib import Path

import pytest

from config.flags import FlagParser, add_setting_flags, given_settings, refuse_extras
from config.load import ConfigError, load
from config.settings import Settings


def faults(flags: dict[str, object], environ: dict[str, str], file: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(flags, environ, file)
    return caught.value.lines


def test_nothing_given_is_the_defaults() -> None:
    configuration = load({}, {})

    assert configuration.settings == Settings()
    assert set(configuration.origins.values()) == {"default"}


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("[server]\nport = 1111\nworkers = 2\n[engine]\nmax_num_seqs = 5\n")
    environ = {"TOKENFLEET_PORT": "2222", "TOKENFLEET_WORKERS": "3", "PATH": "/bin"}

    configuration = load({"port": "3333"}, environ, file)

    assert configuration.settings.server.port == 3333
    assert configuration.settings.server.workers == 3
    assert configuration.settings.engine.max_num_seqs == 5
    assert configuration.origins["port"] == "--port"
    assert configuration.origins["workers"] == "TOKENFLEET_WORKERS"
    assert str(file) in configuration.origins["max_num_seqs"]


def test_unknown_names_are_refused_with_their_neighbour(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("[engine]\nmax_num_seq = 5\n[sever]\nport = 1\n")

    lines = faults({}, {"TOKENFLEET_PROT": "1"}, file)

    assert len(lines) == 3
    assert any("max_num_seq" in line and "did you mean max_num_seqs?" in line for line in lines)
    assert any("did you mean [server]?" in line for line in lines)
    assert any("did you mean TOKENFLEET_PORT?" in line for line in lines)


def test_a_key_in_the_wrong_table_is_told_where_it_belongs(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("[server]\nmax_num_seqs = 5\n")

    assert "[engine]" in faults({}, {}, file)[0]


def test_wrong_values_name_their_origin_and_all_come_at_once() -> None:
    lines = faults({"port": "many", "max_num_seqs": "0"}, {"TOKENFLEET_DTYPE": "float7"})

    assert len(lines) == 3
    assert sorted(line.split()[0] for line in lines) == ["--max-num-seqs", "--port", "TOKENFLEET_DTYPE"]


def test_a_key_never_stands_in_an_error_line(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text('[server]\napi_key = "s3cret"\n')

    assert "s3cret" not in "".join(faults({}, {}, file))


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("[server\n")

    assert len(faults({}, {}, file)) == 1
    assert "/no/such" in faults({}, {}, Path("/no/such.toml"))[0]


def test_kubernetes_service_links_are_not_settings() -> None:
    environ = {"TOKENFLEET_PORT": "tcp://10.0.0.7:8000", "TOKENFLEET_SERVICE_HOST": "10.0.0.7"}

    assert load({}, environ).settings.server.port == 8000


def parsed(*arguments: str) -> dict[str, object]:
    parser = FlagParser()
    add_setting_flags(parser)
    namespace, extras = parser.parse_known_args(arguments)
    refuse_extras(parser, extras)
    return given_settings(namespace)


def test_every_setting_has_a_flag() -> None:
    given = parsed("--max-num-seqs", "4", "--no-enable-prefix-caching", "--api-key", "a", "--api-key", "b")

    settings = load(given, {}).settings
    assert settings.engine.max_num_seqs == 4
    assert settings.engine.enable_prefix_caching is False
    assert settings.server.api_key == ("a", "b")


def test_an_unknown_flag_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean --max-num-seqs"):
        parsed("--max-num-seqz", "4")
