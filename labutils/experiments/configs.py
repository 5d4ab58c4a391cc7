"""Config files: YAML, read strictly."""

import re
from pathlib import Path

import yaml

from labutils.errors import SettingError, UnknownSetting

CONFIGS = Path(__file__).parents[1] / "configs"
LARGEST_FILE = 1_000_000  # bytes
LONGEST_NUMBER = 300  # characters; Python writes no number of many thousand digits, and takes long to read one
MOST_VALUES = 100_000  # in a file, references to anchors counted as often as they stand there
# YAML 1.1 takes 1e-3 for text, because it has no point.
NUMBER = re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+")
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class StrictLoader(yaml.SafeLoader):
    """Refuses keys that stand twice, of which YAML itself would take the last without a word."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES:  # a few merges within merges double it each time
            raise yaml.constructor.ConstructorError(None, None, f"more than {MOST_VALUES:,} values", node.start_mark)

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        if node.tag in NUMBERS and len(node.value) > LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(None, None, "a number of too many digits", node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class StrictDumper(yaml.SafeDumper):
    """Puts text in quotes that StrictLoader would take for a number without them."""


for reader_or_writer in (StrictLoader, StrictDumper):
    reader_or_writer.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+0123456789"))


def config_names() -> list[str]:
    """The configs of the course."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def read_yaml(name_or_path: str | Path) -> tuple[Path, dict]:
    """The file a config's name or path stands for, and what it holds.

    Raises:
        SettingError: no such config or file, or one that can't be read or is no mapping.
    """
    if not isinstance(name_or_path, str | Path):
        raise SettingError("config", name_or_path, f"the path of a YAML file, or one of {', '.join(config_names())}")
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if str(name_or_path) not in config_names():
            raise UnknownSetting(str(name_or_path), config_names())
        path = CONFIGS / f"{name_or_path}.yaml"
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise SettingError("config", str(path), f"a YAML file of at most {LARGEST_FILE:,} bytes")
        contents = parse_yaml(content.decode())
    except OSError as error:
        raise SettingError("config", str(path), f"a readable YAML file ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SettingError("config", str(path), f"a YAML file in UTF-8 ({error.reason})") from error
    except ValueError as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError("config", str(path), f"a valid YAML file ({error})") from error
    if not isinstance(contents, dict):
        raise SettingError("config", str(path), "a YAML file with sections of settings")
    return path, contents


def parse_yaml(text: str) -> object:
    """What a YAML text says.

    Raises:
        ValueError: in one line, why it can't be told.
    """
    try:
        value = yaml.load(text, StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("not a value of YAML: too deeply nested") from error
    # What YAML's own constructors let through where a tag or a form does not fit its content.
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not a value of YAML: {error}") from error
    check_size(value)
    return value


def check_size(value: object) -> None:
    """Raise ValueError for more values than a config can need, as a few anchors within anchors can make."""
    waiting, seen = [value], 0
    while waiting:
        inner = waiting.pop()
        seen += 1
        if isinstance(inner, dict):
            waiting += inner.values()
        elif isinstance(inner, list | tuple | set):
            waiting += inner
        if seen + len(waiting) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values")
