"""Experiments as settings: read from YAML, overridden, checked, expanded into grids, and named by what they compute.

The settings are the arguments of load_data, of the model, of Training, Transfer, Distillation, Measurement and
Tracking. Their signatures are the one list of what exists, their docstrings the help, and their own checks say what is
allowed, of files, of the command line and of Python alike.
"""

import functools
import inspect
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from labutils import files
from labutils.data.loading import ImageData, check_data_settings, load_data
from labutils.errors import SettingError, UnknownSetting, check_choice, check_flag
from labutils.experiments.configs import StrictDumper, config_names, read_yaml
from labutils.experiments.tracking import Tracking
from labutils.identity import version
from labutils.methods.distillation import Distillation
from labutils.methods.pretrained import read_record
from labutils.methods.transfer import Transfer
from labutils.models.building import MODELS, build_model
from labutils.models.counting import parameter_count
from labutils.training.settings import Training

PROFILES = ("smoke", "laptop", "full")
# The first section that has a setting of a given bare name, such as "seed", is the one that is meant.
SECTIONS = ("training", "model", "data", "transfer", "distillation", "measurement", "tracking")
# What the data set decides, and where a run happens: no settings of an experiment.
NOT_SETTINGS = {"in_features", "in_channels", "classes", "root", "device"}
MOST_PARAMETERS = 1_000_000_000
LARGEST_GRID = 100_000  # experiments


@dataclass(frozen=True)
class Measurement:
    """What a run measures beside its history and its accuracies.

    Args:
        gradients: the gradient norm of every parameter tensor after each epoch.
        six_views: the accuracy over six views of each image (see `evaluate`), at the price of six passes more.
    """

    gradients: bool = False
    six_views: bool = False

    def __post_init__(self):
        check_flag("gradients", self.gradients)
        check_flag("six_views", self.six_views)


@dataclass(frozen=True)
class Experiment:
    """All that decides what a run computes.

    Attributes:
        name: of the config file it came from.
        data: arguments of load_data, but for root and device.
        model: kind, and the arguments of that model, but for those that the data set decides.
        training: how it is trained.
        transfer: from which pretrained network it starts, and how that is used.
        distillation: from which pretrained network it learns beside the labels.
        measurement: what is measured beside the history.
        tracking: where the run is mirrored to.
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
    measurement: Measurement = field(default_factory=Measurement)
    tracking: Tracking = field(default_factory=Tracking)
    profile: str = "laptop"

    def __post_init__(self):
        check_choice("profile", self.profile, PROFILES)
        owners = setting_owners(self.model.get("kind"))
        for section in ("data", "model"):
            with named_within(section):
                object.__setattr__(self, section, complete(getattr(self, section), owners[section]))
        with named_within("data"):
            check_data_settings(**self.data)
        with named_within("model"):
            cost_of(self.model)
        if self.transfer.backbone and self.distillation.teacher:
            raise SettingError("distillation.teacher", self.distillation.teacher, "null beside a transfer.backbone")
        if self.transfer.backbone and self.training.whitening:
            raise SettingError("training.whitening", True, "false beside a transfer.backbone, which has filters")
        if self.transfer.method != "fine_tuning" and self.measurement.gradients:
            raise SettingError("measurement.gradients", True, f"false for {self.transfer.method}, which takes no steps")

    @classmethod
    def load(cls, name_or_path: str | Path, *, profile: str | None = None, **overrides) -> "Experiment":
        """An experiment from a config file.

        Args:
            name_or_path: a config of the course, such as "mlp_mnist", or the path of a YAML file.
            profile: smoke, laptop or full; without it $LABUTILS_PROFILE, else laptop.
            overrides: settings to change: nested (model={"depth": 3}), dotted (**{"model.depth": 3}) or bare
                (depth=3; of several sections that have the name, the first of SECTIONS is meant). Another kind of model
                starts from its own defaults.

        Raises:
            SettingError: no such file, profile or setting, or a value that is not allowed.
        """
        return read_config(name_or_path, profile, overrides)[0]

    def override(self, **overrides) -> "Experiment":
        """The same experiment with other settings, given as in `load`."""
        return from_settings(overridden(self.settings(), overrides), name=self.name, profile=self.profile)

    def settings(self) -> dict[str, dict]:
        """The settings as plain values, by section; without those of a transfer or a distillation from nothing."""
        used = {
            "data": True,
            "model": True,
            "training": True,
            "transfer": self.transfer.backbone,
            "distillation": self.distillation.teacher,
            "measurement": True,
            "tracking": True,
        }
        return {section: values(getattr(self, section)) for section, wanted in used.items() if wanted}

    def bare_settings(self) -> dict[str, object]:
        """The settings of all sections but data and tracking by their bare names, such as "depth" and "lr"."""
        sections = (self.model, self.transfer, self.distillation, self.measurement, self.training)
        return {name: value for section in sections for name, value in values(section).items()}

    def to_yaml(self) -> str:
        """The experiment as a config file that `load` reads back to the same experiment."""
        import yaml

        about = f"{self.name}, as run at the {self.profile} profile"
        contents = {"about": about, **files.canonical(self.settings())}
        return yaml.dump(contents, Dumper=StrictDumper, sort_keys=False)

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

    def identity(self, data: ImageData | None, model: Mapping[str, object] | None = None) -> str:
        """What names the experiment's run on some data: 64 hexadecimal digits.

        Args:
            data: counts by what it holds, wherever it came from. None names the run that comes with the course,
                whatever data it was trained on.
            model: what a student's own model is; without it the course's counts by its version.
        """
        return run_identity(self.settings(), data, model)


def run_identity(
    settings: Mapping[str, Mapping], data: ImageData | None, model: Mapping[str, object] | None = None
) -> str:
    """What names the run of an experiment with these settings, by section; other arguments as of its `identity`."""
    decisive = {section: dict(values) for section, values in settings.items() if section != "tracking"}
    del decisive["data"]["source"]
    for section, name in (("transfer", "backbone"), ("distillation", "teacher")):
        if section in decisive:
            decisive[section][name] = read_record(decisive[section][name])["sha256"]
    model = model or {"version": version(MODELS[settings["model"]["kind"]])}
    return files.identity(what="run", settings=decisive, model=model, data=data and data.digest)


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
    grids = axes or sweep or {}
    checked = [check_axes(each, known, fixed, name_or_path) for each in (grids if isinstance(grids, list) else [grids])]
    size = sum(math.prod(len(choices) for choices in each.values()) for each in checked)
    if size > LARGEST_GRID:
        raise SettingError("sweep", f"{size:,} combinations", f"at most {LARGEST_GRID:,}")
    experiments = [
        base.override(**dict(zip(each, combination, strict=True)))
        for each in checked
        for combination in itertools.product(*each.values())
    ]
    return list({json.dumps(files.canonical(one.settings())): one for one in experiments}.values())


def check_axes(axes: Mapping[str, Sequence], known: Sequence[str], fixed: set[str], where: object) -> dict[str, list]:
    """A grid's axes by their full names, without those that are fixed."""
    if not isinstance(axes, Mapping) or not axes:
        raise SettingError("sweep", axes, f"settings with their values, in {where} or as axes")
    choices = {full_name(axis, known): values for axis, values in axes.items()}
    if len(choices) < len(axes):
        raise SettingError("sweep", list(axes), "each setting once")
    for axis, values in choices.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise SettingError(f"sweep.{axis}", values, "a list of one value or more")
    return {axis: values for axis, values in choices.items() if axis not in fixed}


def cost_of(model: Mapping[str, object]) -> int:
    """The parameters of a model with these settings, for images of one pixel; checks the settings on the way."""
    return blueprint_cost(json.dumps(model, default=repr))  # as text, because it is asked again for each seed


@functools.lru_cache(maxsize=1024)
def blueprint_cost(settings: str) -> int:
    """As `cost_of`, of settings as JSON; the model is built without the memory of its weights."""
    model = json.loads(settings)
    try:
        with torch.device("meta"):
            parameters = parameter_count(build_model(**model, image_shape=(1, 1, 1), classes=1))
    except RuntimeError as error:  # sizes whose product no number holds
        raise SettingError("settings", model, f"a model of at most {MOST_PARAMETERS:,} parameters") from error
    if parameters > MOST_PARAMETERS:
        raise SettingError("settings", f"{parameters:,} parameters", f"at most {MOST_PARAMETERS:,}")
    return parameters


def read_config(name_or_path: str | Path, profile: str | None, overrides: Mapping) -> tuple[Experiment, dict]:
    """A config file as an experiment and its sweep axes."""
    path, contents = read_yaml(name_or_path)
    profile = profile or os.environ.get("LABUTILS_PROFILE") or "laptop"
    check_choice("profile", profile, PROFILES)
    for section in contents:
        if section not in (*SECTIONS, "about", "sweep", "tuned", "profiles"):
            raise UnknownSetting(section, (*SECTIONS, "about", "sweep", "tuned", "profiles"))
    profiles = section_of(contents, "profiles")
    for name in profiles:
        check_choice("profiles", name, PROFILES)
    changes = dict(section_of(profiles, profile))
    sweep = changes.pop("sweep", contents.get("sweep") or {})

    settings = {section: section_of(contents, section) for section in SECTIONS}
    settings = expand(settings, known_settings(settings["model"].get("kind")))
    for layer in (changes, overrides):
        settings = overridden(settings, layer)
    return from_settings(settings, name=path.stem, profile=profile), sweep


def section_of(contents: Mapping[str, object], name: str) -> Mapping[str, object]:
    """A part of a config that holds settings with their values; nothing where it is absent."""
    section = contents.get(name) or {}
    if not isinstance(section, Mapping):
        raise SettingError(name, section, "settings with their values")
    return section


def from_settings(settings: Mapping[str, Mapping], *, name: str, profile: str) -> Experiment:
    """An experiment from settings by section, each checked by what it belongs to."""
    sections: dict[str, object] = {section: dict(settings[section]) for section in ("data", "model")}
    for section, owner in setting_owners(settings["model"].get("kind")).items():
        if section not in sections:
            with named_within(section):
                sections[section] = owner(**complete(settings[section], owner))
    return Experiment(name=name, profile=profile, **sections)


def setting_owners(kind: object) -> dict[str, Callable]:
    """Whose arguments the settings of each section are, for a model of this kind."""
    with named_within("model"):
        check_choice("kind", kind, MODELS)
    return {
        "training": Training,
        "model": MODELS[kind],
        "data": load_data,
        "transfer": Transfer,
        "distillation": Distillation,
        "measurement": Measurement,
        "tracking": Tracking,
    }


@functools.cache
def arguments_of(owner: Callable) -> Mapping[str, inspect.Parameter]:
    """An owner's arguments by name; kept, because to find them takes longer than to check them."""
    return inspect.signature(owner).parameters


def complete(settings: Mapping[str, object], owner: Callable) -> dict[str, object]:
    """Settings with their owner's defaults where they say nothing, in the order of its arguments.

    Raises:
        SettingError: its owner has no such setting, or one without a default is missing.
    """
    own = {"kind": settings["kind"]} if "kind" in settings else {}
    known = {name: one for name, one in arguments_of(owner).items() if name not in NOT_SETTINGS}
    for name in settings:
        if name not in (*own, *known):
            raise UnknownSetting(name, known)
    for name, parameter in known.items():
        if name in settings:
            value = settings[name]
            own[name] = value.item() if isinstance(value, np.generic) else value
        elif parameter.default is parameter.empty:
            raise SettingError(name, None, "a value; it has no default")
        else:
            own[name] = parameter.default
    return own


def values(section: object) -> dict[str, object]:
    """A section's settings by their names, in the order of its owner's arguments."""
    if isinstance(section, Mapping):
        return dict(section)
    return {name: getattr(section, name) for name in arguments_of(type(section))}


def every_setting(experiment: Experiment) -> dict[str, object]:
    """All settings by their full names, those of a transfer or a distillation from nothing among them."""
    return flatten({section: values(getattr(experiment, section)) for section in SECTIONS})


def known_settings(kind: object) -> list[str]:
    """Every setting's full name, such as "model.depth", for a model of this kind."""
    names = [
        f"{section}.{name}"
        for section, owner in setting_owners(kind).items()
        for name in arguments_of(owner)
        if name not in NOT_SETTINGS
    ]
    return ["model.kind", *names]


def full_name(name: object, known: Sequence[str]) -> str:
    """A setting's name with its section."""
    if not isinstance(name, str):
        raise SettingError("setting", name, "the name of a setting, such as depth or model.depth")
    candidates = [name] if "." in name else [f"{section}.{name}" for section in SECTIONS]
    for candidate in candidates:
        if candidate in known:
            return candidate
    raise UnknownSetting(name, known)


def expand(overrides: Mapping, known: Sequence[str]) -> dict[str, dict]:
    """Overrides, nested, dotted or bare, as settings by section."""
    settings: dict[str, dict] = {}
    for name, value in flatten(overrides).items():
        section, _, setting = full_name(name, known).partition(".")
        if setting in settings.setdefault(section, {}):
            raise SettingError(f"{section}.{setting}", value, "one value; it is given twice")
        settings[section][setting] = value
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


def overridden(settings: Mapping[str, Mapping], overrides: Mapping) -> dict[str, dict]:
    """Settings by section with overrides, nested, dotted or bare, on top; another kind of model keeps none of them."""
    old, given = settings["model"].get("kind"), flatten(overrides)
    kind = given.get("model.kind", given.get("kind", old))
    kept = settings if kind == old else {**settings, "model": {}}
    changes = expand(overrides, known_settings(kind))
    return {section: {**kept.get(section, {}), **changes.get(section, {})} for section in SECTIONS}


@contextmanager
def named_within(section: str) -> Iterator[None]:
    """Name the settings in errors raised inside with their section."""
    try:
        yield
    except UnknownSetting:
        raise
    except SettingError as error:
        raise SettingError(f"{section}.{error.setting}", error.given, error.allowed) from None
