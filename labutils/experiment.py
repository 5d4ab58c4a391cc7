"""Experiments as settings: read from YAML, overridden, checked, expanded into grids, named by a hash.

The settings are the arguments of load_data, of the model, of Training and of Tracking: their signatures are the one
list of what exists, their docstrings the help, and their checks say what is allowed. jsonargparse reads all three
from the code, for files and for the command line alike. Hydra and pydantic would want them declared a second time.
"""

import argparse
import functools
import hashlib
import inspect
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from labutils.backbones import read_record
from labutils.data import check_data_settings, load_data
from labutils.distillation import Distillation
from labutils.errors import SettingError, UnknownSetting, check_choice
from labutils.models import MODELS, build_model
from labutils.tracking import Tracking
from labutils.training import Training
from labutils.transfer import Transfer

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

CONFIGS = Path(__file__).parent / "configs"
PROFILES = ("smoke", "laptop", "full")
SECTIONS = ("data", "model", "training", "transfer", "distillation", "tracking")
FORMAT = 2  # of a run's folder and of what its hash covers
# Where a setting is looked for that is named without its section, first match first.
BARE_NAMES = ("training", "model", "data", "transfer", "distillation", "tracking")
# What the data set decides, and where a run happens: no settings of an experiment.
NOT_SETTINGS = {"in_features", "in_channels", "classes", "root", "device"}


@dataclass(frozen=True)
class Experiment:
    """All that decides what a run computes.

    Attributes:
        name: of the config file it came from.
        data: arguments of load_data, but for root and device.
        model: kind, and the arguments of that model, but for those that the data set decides.
        training: how it is trained.
        transfer: from which trained network it starts, and how that is taken over.
        distillation: from which trained network it learns beside the labels.
        tracking: what is logged beside the history, and where to.
        profile: smoke, laptop or full: which version of the config file it is.

    Raises:
        SettingError: a setting that is not allowed, named with its section, as in "model.depth".
    """

    name: str
    data: dict
    model: dict
    training: Training
    transfer: Transfer = field(default_factory=Transfer)
    distillation: Distillation = field(default_factory=Distillation)
    tracking: Tracking = field(default_factory=Tracking)
    profile: str = "laptop"

    def __post_init__(self):
        check_choice("profile", self.profile, PROFILES)
        with named_within("data"):
            check_data_settings(**self.data)
        with named_within("model"):
            blueprint(self.model)
        if self.transfer.backbone and self.distillation.teacher:
            raise SettingError("distillation.teacher", self.distillation.teacher, "null beside a transfer.backbone")
        if self.transfer.method != "fine_tuning" and self.tracking.gradients:
            raise SettingError("tracking.gradients", True, f"false for {self.transfer.method}, which takes no steps")

    @classmethod
    def load(cls, name_or_path: str | Path, *, profile: str | None = None, **overrides) -> "Experiment":
        """An experiment from a config file.

        Args:
            name_or_path: a config of the course, such as "mlp_mnist", or the path of a YAML file.
            profile: smoke, laptop or full; without it $LABUTILS_PROFILE, else laptop.
            overrides: settings to change: nested (model={"depth": 3}), dotted (**{"model.depth": 3}) or bare
                (depth=3; looked for in training, model, data, transfer, distillation and tracking, in that order).

        Raises:
            SettingError: no such file, profile or setting, or a value that is not allowed.
        """
        return read_config(name_or_path, profile, overrides)[0]

    def override(self, **overrides) -> "Experiment":
        """The same experiment with other settings, given as in `load`."""
        settings = merge(self.settings(), expand(overrides, known_settings(self.model["kind"])))
        return from_settings(settings, name=self.name, profile=self.profile)

    def settings(self) -> dict[str, dict]:
        """The settings as plain values, by section; without those of a transfer or a distillation from nothing."""
        transfer = {"transfer": asdict(self.transfer)} if self.transfer.backbone else {}
        distillation = {"distillation": asdict(self.distillation)} if self.distillation.teacher else {}
        return {
            "data": dict(self.data),
            "model": dict(self.model),
            "training": asdict(self.training),
            **transfer,
            **distillation,
            "tracking": asdict(self.tracking),
        }

    def bare_settings(self) -> dict[str, object]:
        """The settings of all sections but data and tracking by their bare names, such as "depth" and "lr"."""
        return self.model | asdict(self.transfer) | asdict(self.distillation) | asdict(self.training)

    def to_yaml(self) -> str:
        """The experiment as a config file that `load` reads back to the same experiment."""
        import yaml

        about = f"{self.name}, as run at the {self.profile} profile"
        return yaml.safe_dump({"about": about, **self.settings()}, sort_keys=False)

    def to_code(self) -> str:
        """The expression that loads it: its config by name, and what differs from it.

        Of a config that is not the course's, and so may lie anywhere, the expression gives every setting.
        """
        own = self.name not in config_names()
        config = {} if own else every_setting(Experiment.load(self.name, profile=self.profile))
        changed = {
            name: value for name, value in every_setting(self).items() if name not in config or value != config[name]
        }
        known = known_settings(self.model["kind"])
        bare = {name for name in changed if full_name(name.partition(".")[2], known) == name}
        arguments = [repr(f"{self.name}.yaml" if own else self.name), f"profile={self.profile!r}"]
        arguments += [f"{name.partition('.')[2]}={value!r}" for name, value in changed.items() if name in bare]
        dotted = {name: value for name, value in changed.items() if name not in bare}
        return f"lab.Experiment.load({', '.join(arguments + [f'**{dotted!r}'] * bool(dotted))})"

    def hash(self, data_title: str) -> str:
        """What names a run: 16 hexadecimal digits of all settings that decide its result.

        Settings that have their defaults are left out, so that a setting which is new does not rename the runs from
        before it. A default that changes needs a new FORMAT.

        Args:
            data_title: what the data really are; counts in place of where they were to be looked for.
        """
        settings = self.settings()
        settings["data"]["source"] = data_title
        settings["tracking"] = {"gradients": self.tracking.gradients, "six_views": self.tracking.six_views}
        owners = setting_owners(self.model["kind"])
        settings = {section: without_defaults(values, owners[section]) for section, values in settings.items()}
        for section, name in (("transfer", "backbone"), ("distillation", "teacher")):
            if section in settings:
                settings[section][name] = read_record(settings[section][name])["sha256"]
        text = json.dumps({"format": FORMAT, **settings}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def grid(
    name_or_path: str | Path,
    *,
    profile: str | None = None,
    axes: Mapping[str, Sequence] | list[Mapping[str, Sequence]] | None = None,
    **overrides,
) -> list[Experiment]:
    """Every combination of some settings' values.

    Args:
        name_or_path: the config they start from.
        profile: as in `Experiment.load`.
        axes: the values of each setting, or a list of several such grids, one after the other; without it the
            config's `sweep` section.
        overrides: settings for all of them, as in `Experiment.load`; one that is an axis replaces that axis.

    Returns:
        The experiments, each once, the last axis changing fastest.

    Raises:
        SettingError: as in `Experiment.load`, or no axis, or an axis without values.
    """
    base, sweep = read_config(name_or_path, profile, overrides)
    known = known_settings(base.model["kind"])
    fixed = set(flatten(expand(overrides, known)))
    grids = axes or sweep
    experiments = [
        base.override(**dict(zip(values, combination, strict=True)))
        for grid_axes in (grids if isinstance(grids, list) else [grids])
        for values in [check_axes(grid_axes, known, fixed, name_or_path)]
        for combination in itertools.product(*values.values())
    ]
    return list({json.dumps(experiment.settings()): experiment for experiment in experiments}.values())


def check_axes(axes: Mapping[str, Sequence], known: Sequence[str], fixed: set[str], where: object) -> dict[str, list]:
    """A grid's axes by their full names, without those that are fixed."""
    if not isinstance(axes, Mapping) or not axes:
        raise SettingError("sweep", axes, f"settings with their values, in {where} or as axes")
    values = {full_name(axis, known): choices for axis, choices in axes.items()}
    for axis, choices in values.items():
        if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
            raise SettingError(f"sweep.{axis}", choices, "a list of one value or more")
    return {axis: choices for axis, choices in values.items() if axis not in fixed}


def blueprint(settings: Mapping[str, object]) -> torch.nn.Module:
    """A model of an experiment's model settings, for images of one pixel and without the memory of its weights."""
    with torch.device("meta"):
        return build_model(**settings, image_shape=(1, 1, 1), classes=1)


def config_names() -> list[str]:
    """The configs of the course."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def read_config(name_or_path: str | Path, profile: str | None, overrides: Mapping) -> tuple[Experiment, dict]:
    """A config file as an experiment and its sweep axes."""
    path, contents = read_yaml(name_or_path)
    profile = profile or os.environ.get("LABUTILS_PROFILE") or "laptop"
    check_choice("profile", profile, PROFILES)
    for section in contents:
        if section not in (*SECTIONS, "about", "sweep", "profiles"):
            raise UnknownSetting(section, (*SECTIONS, "about", "sweep", "profiles"))
    profiles = contents.get("profiles") or {}
    for name in profiles:
        check_choice("profiles", name, PROFILES)
    changes = dict(profiles.get(profile) or {})
    sweep = changes.pop("sweep", contents.get("sweep") or {})

    settings = {section: contents.get(section) or {} for section in SECTIONS}
    kind = (changes.get("model") or {}).get("kind", settings["model"].get("kind"))
    known = known_settings(overrides.get("model.kind", kind))
    for layer in (settings, changes, overrides):
        settings = merge(settings, expand(layer, known))
    return from_settings(settings, name=path.stem, profile=profile), sweep


def read_yaml(name_or_path: str | Path) -> tuple[Path, dict]:
    """The file a config's name or path stands for, and what it holds."""
    import yaml

    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if str(name_or_path) not in config_names():
            raise UnknownSetting(str(name_or_path), config_names())
        path = CONFIGS / f"{name_or_path}.yaml"
    try:
        contents = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError("config", str(path), f"a readable YAML file ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise SettingError("config", str(path), f"a valid YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(contents, dict):
        raise SettingError("config", str(path), f"a YAML file with the sections {', '.join(SECTIONS)}")
    return path, contents


def from_settings(settings: dict[str, dict], *, name: str, profile: str) -> Experiment:
    """An experiment from settings by section; types are checked here, ranges by what the settings belong to."""
    kind = settings["model"].get("kind")
    model = {key: value for key, value in settings["model"].items() if key != "kind"}
    try:
        parsed = cached_parser(kind).parse_object(settings | {"model": model}).as_dict()
    except argparse.ArgumentError as error:
        raise type_error(error, settings, kind) from error
    with named_within("training"):
        training = Training(**parsed["training"])
    with named_within("transfer"):
        transfer = Transfer(**parsed["transfer"])
    with named_within("distillation"):
        distillation = Distillation(**parsed["distillation"])
    with named_within("tracking"):
        tracking = Tracking(**parsed["tracking"])
    return Experiment(
        name=name,
        data=parsed["data"],
        model={"kind": kind, **parsed["model"]},
        training=training,
        transfer=transfer,
        distillation=distillation,
        tracking=tracking,
        profile=profile,
    )


def settings_parser(kind: str, **options) -> "ArgumentParser":
    """A parser that knows every setting of an experiment whose model is of this kind."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    for section, owner in setting_owners(kind).items():
        add = parser.add_class_arguments if inspect.isclass(owner) else parser.add_function_arguments
        add(owner, section, skip=NOT_SETTINGS & set(inspect.signature(owner).parameters))
    return parser


cached_parser = functools.cache(settings_parser)


def setting_owners(kind: str) -> dict[str, Callable]:
    """Whose arguments the settings of each section are, for a model of this kind."""
    with named_within("model"):
        check_choice("kind", kind, MODELS)
    return {
        "data": load_data,
        "model": MODELS[kind],
        "training": Training,
        "transfer": Transfer,
        "distillation": Distillation,
        "tracking": Tracking,
    }


def every_setting(experiment: Experiment) -> dict[str, object]:
    """All settings by their full names, those of a transfer or a distillation from nothing among them."""
    return flatten({section: getattr(experiment, section) for section in ("data", "model")}) | flatten(
        {
            section: asdict(getattr(experiment, section))
            for section in ("training", "transfer", "distillation", "tracking")
        }
    )


def without_defaults(settings: Mapping[str, object], owner: Callable) -> dict[str, object]:
    """Those settings that are not as they would be if they had not been given."""
    arguments = inspect.signature(owner).parameters
    defaults = {
        name: argument.default for name, argument in arguments.items() if argument.default is not argument.empty
    }
    return {
        name: value
        for name, value in settings.items()
        if name not in defaults or json.dumps(value) != json.dumps(defaults[name])
    }


def known_settings(kind: str) -> list[str]:
    """Every setting's full name, such as "model.depth", for a model of this kind."""
    names = (
        f"{section}.{name}"
        for section, owner in setting_owners(kind).items()
        for name in inspect.signature(owner).parameters
    )
    return ["model.kind", *(name for name in names if name.partition(".")[2] not in NOT_SETTINGS)]


def full_name(name: str, known: Sequence[str]) -> str:
    """A setting's name with its section."""
    candidates = [name] if "." in name else [f"{section}.{name}" for section in BARE_NAMES]
    for candidate in candidates:
        if candidate in known:
            return candidate
    raise UnknownSetting(name, known)


def expand(overrides: Mapping, known: Sequence[str]) -> dict[str, dict]:
    """Overrides, nested, dotted or bare, as settings by section."""
    settings: dict[str, dict] = {}
    for name, value in flatten(overrides).items():
        section, _, setting = full_name(name, known).partition(".")
        settings.setdefault(section, {})[setting] = value
    return settings


def flatten(settings: Mapping) -> dict[str, object]:
    """Nested settings under their dotted names."""
    flat = {}
    for name, value in settings.items():
        if name in SECTIONS:
            if not isinstance(value, Mapping):
                raise SettingError(name, value, "settings with their values")
            flat |= {f"{name}.{setting}": inner for setting, inner in value.items()}
        else:
            flat[name] = value
    return flat


def merge(settings: dict[str, dict], changes: dict[str, dict]) -> dict[str, dict]:
    """Settings by section, with changes on top."""
    return {section: {**settings.get(section, {}), **changes.get(section, {})} for section in SECTIONS}


@contextmanager
def named_within(section: str) -> Iterator[None]:
    """Name the settings in errors raised inside with their section."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"{section}.{error.setting}", error.given, error.allowed) from None


TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def type_error(error: argparse.ArgumentError, settings: dict[str, dict], kind: str) -> SettingError:
    """jsonargparse's complaint about a value of the wrong type, or a missing one, in this course's words."""
    name = next((name for name in known_settings(kind) if re.search(rf"\b{name}\b", str(error))), None)
    if name is None:
        return SettingError("settings", settings, str(error))
    section, _, setting = name.partition(".")
    hint = inspect.signature(setting_owners(kind)[section]).parameters[setting].annotation
    options = get_args(hint) or (hint,)
    allowed = " or ".join(TYPES.get(option, str(option)) for option in options)
    if setting not in settings[section]:
        return SettingError(name, None, f"{allowed}; it has no default")
    return SettingError(name, settings[section][setting], allowed)
