"""The command line: `serve [MODEL]`, `check`, `reload`, `wiretap`, `top`, `bundle`. A fault is one line on standard error."""
# ruff: noqa: E402  what is refused must be refused before it is imported

from ops.own_packages import refuse_shadowed_packages

refuse_shadowed_packages()

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from config.checks import faults_of, faults_with_model
from config.flags import FlagParser, add_setting_flags, given_settings, refuse_extras
from config.load import ConfigError, Configuration, load
from config.model_folder import ModelFolder, ModelFolderError, read_model_folder
from engine_core.model_source import ModelSource, find_model
from ops import exit_codes, logs
from ops.gpu_defaults import with_gpu_defaults
from ops.listeners import CannotListen
from ops.run_folder import CannotUseFolder, WhichFleet, the_fleet


def main(argv: Sequence[str] | None = None) -> None:
    """Ends the process with one of ops.exit_codes."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    try:
        parser = _parser()
        own, passed_on = _split_at_dashes(argv)
        arguments, extras = parser.parse_known_args(own)
        refuse_extras(arguments.parser, extras)
        if passed_on and arguments.command not in ("serve", "check"):
            raise ConfigError([f"unexpected argument {passed_on[0]!r}"])
        arguments.passed_on = passed_on
        return _COMMANDS[arguments.command](arguments)
    except ConfigError as error:
        return _fail(*error.lines, code=exit_codes.MISUSED)
    except (ModelFolderError, CannotListen, CannotUseFolder, WhichFleet) as error:
        return _fail(str(error), code=exit_codes.FAILED)
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def _split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is ours, and what stands behind the first `--`."""
    if "--" not in argv:
        return list(argv), []
    at = list(argv).index("--")
    return list(argv[:at]), list(argv[at + 1 :])


def _fail(*lines: str, code: int) -> int:
    for line in lines:
        print(f"tokenfleet: {line}", file=sys.stderr)
    return code


def _parser() -> FlagParser:
    parser = FlagParser(
        prog="tokenfleet", description="An OpenAI-compatible LLM server: a fleet of workers, one engine."
    )
    parser.add_argument("--version", action="version", version=f"tokenfleet {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("serve", "serve a model"),
        ("check", "load and cross-check the configuration, print every value"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("positional_model", nargs="?", metavar="MODEL", help="model folder or .gguf file")
        command.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
        add_setting_flags(command)
        command.set_defaults(parser=command)
    wiretap = commands.add_parser("wiretap", help="print the messages and ring records of a running fleet")
    wiretap.add_argument("--pid", type=int, help="supervisor of the fleet; needed when several run")
    wiretap.set_defaults(parser=wiretap)
    top = commands.add_parser("top", help="watch a running fleet: workers, engines, slowest requests")
    top.add_argument("--url", help="its ops port; needed for another host, or when several fleets run here")
    top.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks")
    top.add_argument("--once", action="store_true", help="print one screen and end")
    top.add_argument("--json", action="store_true", help="with --once: as JSON")
    top.add_argument("--svg", type=Path, metavar="FILE", help="write one screen as a picture and end")
    top.set_defaults(parser=top)
    reload = commands.add_parser("reload", help="read the settings again and replace every worker, losing nothing")
    reload.add_argument("--pid", type=int, help="supervisor of the fleet; needed when several run")
    reload.set_defaults(parser=reload)
    text = "write an archive for whoever helps: settings, metrics, versions, log; no secrets"
    bundle = commands.add_parser("bundle", help=text, description=text)
    bundle.add_argument("--pid", type=int, help="supervisor of the fleet; needed when several run")
    bundle.add_argument("--log", type=Path, metavar="FILE", help="its log; found by itself when stderr is a file")
    bundle.add_argument("--out", type=Path, metavar="FILE", help="default: named by the time; -: standard output")
    bundle.set_defaults(parser=bundle)
    return parser


def _version() -> str:
    try:
        return version("tokenfleet")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "(not installed)"


def _configuration(arguments: object) -> Configuration:
    flags = given_settings(arguments)  # type: ignore[arg-type]  # an argparse.Namespace
    positional = getattr(arguments, "positional_model", None)
    if positional is not None:
        if "model" in flags:
            raise ConfigError(["the model was given twice: as MODEL and as --model"])
        flags["model"] = positional
    if passed_on := getattr(arguments, "passed_on", ()):
        flags["vllm_args"] = [*flags.get("vllm_args", ()), *passed_on]
    configuration = with_gpu_defaults(load(flags, os.environ, getattr(arguments, "config", None)))
    faults = faults_of(configuration)
    if faults:
        raise ConfigError(faults)
    return configuration


def _checked_model(configuration: Configuration, source: ModelSource) -> ModelFolder:
    settings = configuration.settings
    model = read_model_folder(source.path, settings.model, default_name=source.default_name)
    faults = faults_with_model(settings, model)
    if faults:
        raise ConfigError(faults)
    return model


def _serve(arguments: object) -> int:
    from ops.resources import Resources  # the heavier half of the supervisor: `check` needs none of it
    from ops.supervisor import Supervisor

    configuration = _configuration(arguments)
    settings = configuration.settings
    logs.configure("supervisor", level=settings.ops.log_level, log_format=settings.ops.log_format)
    source = find_model(settings.model)
    if source.gguf is None:
        _checked_model(configuration, source)  # before anything is bound or converted
    resources = Resources(settings, _num_workers(configuration))
    try:
        resources.record(configuration)
        _become_supervisor()
        supervisor = Supervisor(settings, resources, os.getpid(), lambda: _configuration(arguments))
        return asyncio.run(supervisor.run(source, lambda: _checked_model(configuration, source)))
    finally:
        resources.remove()


def _become_supervisor() -> None:
    from setproctitle import setproctitle  # reads /proc at import: only where the title is set

    setproctitle("tokenfleet: supervisor")


def _num_workers(configuration: Configuration) -> int:
    from ops.cores import default_num_workers, usable_cores

    settings = configuration.settings
    return settings.server.workers or default_num_workers(settings.engine.engines, usable_cores())


def _check(arguments: object) -> int:
    """Every value with its origin; 0 when the configuration and the model folder can be served."""
    configuration = _configuration(arguments)
    source = find_model(configuration.settings.model)
    if source.is_ready:
        _checked_model(configuration, source)
    from ops.settings_table import show

    show(configuration, source)
    return exit_codes.OK


def _reload(arguments: object) -> int:
    """As `kill -HUP` of the supervisor. How it went is in the fleet's log."""
    import signal

    fleet = the_fleet(getattr(arguments, "pid", None))
    os.kill(fleet.supervisor_pid, signal.SIGHUP)
    print(f"fleet {fleet.supervisor_pid} reloads")
    return exit_codes.OK


def _wiretap(arguments: object) -> int:
    from ops import wiretap

    code: int = wiretap.run(getattr(arguments, "pid", None))
    return code


def _top(arguments: argparse.Namespace) -> int:
    from ops import top

    return top.run(
        arguments.url,
        interval_s=arguments.interval,
        is_once=arguments.once,
        is_json=arguments.json,
        svg=arguments.svg,
    )


def _bundle(arguments: argparse.Namespace) -> int:
    from ops import bundle

    return bundle.run(arguments.pid, arguments.log, arguments.out)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "check": _check,
    "reload": _reload,
    "wiretap": _wiretap,
    "top": _top,
    "bundle": _bundle,
}
