"""The house rules on imports, read from the source of the whole tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "chatgrpo"
ENTRIES = ("serve_app", "train_grpo")

# A chapter may import chapters of lower layers and its own; a module directly in the package is a chapter of one
# file.
LAYERS = (
    {"errors", "messages", "clock"},
    {"config", "overrides", "plugins"},
    {"inference", "environments", "rewards", "state", "audit", "monitoring", "resilience"},
    {"gateway", "jobs", "rollouts"},
    {"api", "training"},
    {"client", "progress", "cli_audit", "cli_keys", "reference"},
    {"cli_plan", "cli_sweeps"},
    {"top"},
    {"embedded"},
    {"cli", "demo", "compat"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# What may be imported against the direction: data without behaviour, free of torch.
ALLOWED = {
    # The platform's settings hold those of its chapters.
    ("config", "chatgrpo.gateway.config"),
    ("config", "chatgrpo.inference.vllm_config"),
    ("config", "chatgrpo.state.config"),
    ("config", "chatgrpo.monitoring.advice_config"),
    # A job request and a YAML file are the same object.
    ("api", "chatgrpo.training.config"),
    ("jobs", "chatgrpo.training.config"),
    ("rollouts", "chatgrpo.training.config"),
    # A sweep is refused where its trials would be.
    ("jobs", "chatgrpo.training.cohort_rules"),
    # What a reward judges.
    ("rewards", "chatgrpo.rollouts.episode"),
}
# Chapters of one layer that may know each other. The audit trail lies in a store; a deletion leaves a tombstone there.
SIBLINGS = {
    ("rewards", "environments"),
    ("rewards", "resilience"),
    ("environments", "resilience"),
    ("audit", "state"),
    ("state", "audit"),
}


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of everything that ships."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("actors/*.py")]:
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path
    for path in PACKAGE.rglob("*.py"):
        yield ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts), path


def imports(path: Path) -> Iterator[str]:
    """Names that a file imports, also inside functions; `from a import b` counts as a.b, which may be a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


ALL = dict(modules())


def chapter(name: str) -> str:
    """chatgrpo.api.app -> api."""
    return [*name.split("."), ""][1]


def test_only_the_house_that_was_designed() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would hide the standard library's platform"
    strangers = {chapter(name) for name in ALL if name.startswith("chatgrpo.")} - set(LEVEL) - {"__init__"}
    assert strangers == set(), "give every chapter its layer in this file"


def test_ray_stays_in_actors_and_entry_files() -> None:
    users = {name for name, path in ALL.items() for used in imports(path) if used.split(".")[0] == "ray"}
    outside = {name for name in users if not name.startswith("actors.") and name not in ENTRIES}
    assert outside == set()


def test_nothing_imports_upwards() -> None:
    wrong = [f"{name} -> {used}" for name, path in ALL.items() for used in imports(path) if is_upward(name, used)]
    assert wrong == []


def is_upward(importer: str, used: str) -> bool:
    """Entry files -> actors -> package -> its layers; outside libraries are free."""
    above, below = (name.split(".")[0] for name in (importer, used))
    if below in ENTRIES:
        return importer not in ENTRIES
    if below == "actors":
        return above == "chatgrpo"
    return above == below == "chatgrpo" and not is_downward(importer, used)


def is_downward(importer: str, used: str) -> bool:
    above, below = chapter(importer), chapter(used)
    if below not in LEVEL or above == below or above == "__init__":
        return True
    if any(above == a and (used + ".").startswith(b + ".") for a, b in ALLOWED):
        return True
    return LEVEL[below] < LEVEL[above] or (above, below) in SIBLINGS


LIGHT = sorted(
    name
    for name in ALL
    if name == "chatgrpo.cli" or name.startswith("chatgrpo.api") or name.split(".")[-1] in {"config", "seed_request"}
)


def test_api_and_configs_are_light() -> None:
    """They are imported by command lines and by replicas that never touch a tensor."""
    code = "import sys\n" + "".join(f"import {name.removesuffix('.__init__')}\n" for name in LIGHT)
    code += "print(*sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'ray', 'transformers', 'reasoning_gym'}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.split() == []


@pytest.mark.parametrize("name", ["chatgrpo.api.app", "chatgrpo.training.config", "chatgrpo.jobs.config"])
def test_the_light_list_holds_what_it_should(name: str) -> None:
    assert name in LIGHT
