"""Reads `config.toml`: a text becomes one frozen `Config`, or an error that names every mistake."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from appliance.config.check import Problem, disagreements
from appliance.config.describe import explain
from appliance.config.positions import KeyPath, line_numbers, line_of
from appliance.config.schema import Config
from appliance.errors import ConfigError
from appliance.types import Json

TEXT_BYTES_MAX = 4 << 20
"""A configuration for 1,000 agents takes a quarter of this."""

_TOML_LINE = re.compile(r"\s*\(at (?:line (\d+), column \d+|end of document)\)$")


def load(path: Path) -> Config:
    """The configuration in this file, with the prompt files it names read in.

    Raises `ConfigError` whose message has one line `FILE:LINE: KEY: WHAT; HINT` per mistake and
    whose `details["problems"]` has the same as JSON.
    """
    text = read_text(path)
    config = parse(text, path)
    return _with_prompt_files(config, path, text)


def read_text(path: Path) -> str:
    """The text of the file. Raises `ConfigError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(TEXT_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}",
            hint="name another folder with --home, or let `appliance --home DIR serve` write one",
        ) from error
    if len(content) > TEXT_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {TEXT_BYTES_MAX >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _error(path, [(line, Problem((), "not UTF-8", "save the file as UTF-8"))]) from None


def parse(text: str, path: Path) -> Config:
    """The configuration this text says; `path` only names it in errors. Reads no file."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _error(path, [_syntax_problem(str(error), text)]) from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise _error(path, [(1, Problem((), f"not valid TOML: {what}"))]) from None
    lines = line_numbers(text)
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise _error(path, _placed(_problems(error.errors(), raw), lines)) from None
    if problems := list(disagreements(config)):
        raise _error(path, _placed(problems, lines))
    return config


def _with_prompt_files(config: Config, path: Path, text: str) -> Config:
    """Puts the content of each `system_prompt_file` in the place of `system_prompt`."""
    agents = dict(config.agents)
    problems = []
    for name, agent in config.agents.items():
        if not agent.system_prompt_file:
            continue
        try:
            prompt = (path.parent / agent.system_prompt_file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            key = ("agents", name, "system_prompt_file")
            problems.append(Problem(key, f"{agent.system_prompt_file}: {reason}"))
        else:
            agents[name] = agent.model_copy(update={"system_prompt": prompt})
    if problems:
        raise _error(path, _placed(problems, line_numbers(text)))
    return config.model_copy(update={"agents": agents})


def _problems(errors: Sequence[ErrorDetails], raw: Mapping[str, Json]) -> list[Problem]:
    """One problem per key: a union that fits in no way is one mistake, not several."""
    found: dict[KeyPath, Problem] = {}
    for error in errors:
        problem = explain(error, raw)
        found.setdefault(problem.path, problem)
    return list(found.values())


def _placed(problems: Iterable[Problem], lines: Mapping[KeyPath, int]) -> list[tuple[int, Problem]]:
    placed = [(line_of(problem.path, lines), problem) for problem in problems]
    return sorted(placed, key=lambda entry: entry[0])


def _syntax_problem(message: str, text: str) -> tuple[int, Problem]:
    match = _TOML_LINE.search(message)
    line = int(match[1]) if match and match[1] else text.count("\n") + 1
    what = _TOML_LINE.sub("", message)
    return line, Problem((), f"not valid TOML: {what}", 'a text stands in quotes: key = "text"')


def _error(path: Path, problems: Sequence[tuple[int, Problem]]) -> ConfigError:
    rows = [
        {
            "file": str(path),
            "line": line,
            "key": dotted(problem.path),
            "what": problem.what,
            "hint": problem.hint,
        }
        for line, problem in problems
    ]
    text = "\n".join(
        f"{path.name}:{row['line']}: "
        + (f"{row['key']}: " if row["key"] else "")
        + f"{row['what']}"
        + (f"; {row['hint']}" if row["hint"] else "")
        for row in rows
    )
    return ConfigError(text, hint=f"appliance config check {path}", details={"problems": rows})


def dotted(path: KeyPath) -> str:
    """`agents.qa.models[0]` for `("agents", "qa", "models", 0)`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
