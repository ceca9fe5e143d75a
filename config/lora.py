"""`--lora-modules`: adapters that clients ask for by name, of the engine vllm."""

from collections.abc import Iterable


def lora_paths(modules: Iterable[str]) -> dict[str, str]:
    """Folders by name, in the order given. Raises ValueError with what is wrong."""
    paths: dict[str, str] = {}
    for module in modules:
        name, _, path = module.partition("=")
        if not name or not path:
            raise ValueError(f"{module} is not NAME=PATH")
        if name in paths:
            raise ValueError(f"{name} is named twice")
        paths[name] = path
    return paths
