"""Composing the configuration with Hydra: of a new run, of a resumed one (resumed.py), of every stage of a chain."""

import difflib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.text import Text

from microdit.build import trust
from microdit.commands.help import CONF, asked_for_a_list, groups_told
from microdit.commands.messages import errors, failed_jobs, is_ours, run_told, tell_and_exit
from microdit.commands.resumed import NAME_ALONE, changed_values, check_saved, plain
from microdit.files import InUseError, new_folder, read_yaml
from microdit.kinds import (
    ArgumentsOf,
    Limits,
    SettingsError,
    check_arguments,
    check_kind,
    check_names,
    is_of,
    kinds_of,
    told_with,
)
from microdit.runs.folder import (
    CONFIG_FILE,
    RESULT_FILE,
    STAGES_FILE,
    read_config,
    refuse_links,
    run_to_resume,
)
from microdit.runs.older import todays_config

# Bundles, of which a later one has the last word whatever the order they are typed in: what is compared (experiment),
# and a whole way to train (recipe), hold at every size (scale), also where both choose a group.
BUNDLES = ("scale", "recipe", "experiment")
UNKNOWN_KEY = re.compile(r"Could not override '([^']+)'")


def run_folder(resume: str | None, output_root: str, new: str) -> str:
    """Where a run writes: into the run it resumes, else into a new folder, which is made at once so that no other
    process takes it too. All processes of torchrun get the same answer. Raises SettingsError when there is nothing to
    resume."""
    if resume is not None:
        return agreed(str(run_to_resume(resume, output_root)), is_new=False)
    return agreed(str(Path(output_root) / new), is_new=True)


def sweep_folder(path: str) -> str:
    """Where a new sweep writes: a folder of its own, made at once."""
    return agreed(path, is_new=True)


@cache
def agreed(folder: str, is_new: bool) -> str:
    """The folder, made if it is new. Rank zero's where torchrun started this process, because every process has a clock
    of its own."""
    if is_new and os.environ.get("RANK", "0") == "0":
        folder = str(new_folder(Path(folder)))
    if "TORCHELASTIC_USE_AGENT_STORE" not in os.environ:
        return folder
    import torch

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = torch.distributed.TCPStore(*place, is_master=False)  # pyright: ignore[reportPrivateImportUsage]
    key = f"microdit/folder/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if os.environ["RANK"] == "0":
        store.set(key, folder)
    return store.get(key).decode()


def share_of(share: float, whole: int) -> int:
    """A share of a number of steps, at least one."""
    return max(1, round(share * whole))


def ask(question: str) -> str:
    """For a value that a file of conf/ cannot know: reading it raises SettingsError, with the question."""
    raise SettingsError(question)


def times(*factors: float) -> float:
    """A product, such as a multiple of the stage's learning rate."""
    return math.prod(factors)


def name_of_sweep() -> str | None:
    """The name of the folder of the sweep that this run is a job of, if it is."""
    inside = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return output_folder().parent.name if inside else None


OmegaConf.register_new_resolver("name_of_sweep", name_of_sweep, replace=True)
OmegaConf.register_new_resolver("ask", ask, replace=True)
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
# Kept with the configuration, from which a scheduler's jobs read it.
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True, use_cache=True)
OmegaConf.register_new_resolver("share_of", share_of, replace=True)
OmegaConf.register_new_resolver("times", times, replace=True)
OmegaConf.register_new_resolver("groups_told", groups_told, replace=True)  # in --help


def trusted(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain dictionaries, without `trust`: from here on settings may name what the
    packages in it hold, and those that this command line or conf/ name themselves."""
    settings = plain(config)
    trust(*as_list(settings.pop("trust", [])), *packages_named(settings))
    return settings


def as_texts(settings: dict[str, Any], kinds: Callable[..., Any], below: str = "") -> None:
    """Puts back, as it was typed, what a text is asked for and the command line took for a number or a truth: a folder
    called 2024_06, a prompt that is 42. `kinds`: the class, function or TypedDict whose arguments the settings are;
    `below`: their group. SettingsError where it can no longer be told what was typed."""
    wanted = kinds_of(kinds)
    for override in OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)):
        name = override.key_or_group.removeprefix(f"{below}." if below else "")
        if name not in wanted or name not in settings or (below and name == override.key_or_group):
            continue
        value, kind, typed = settings[name], wanted[name][0], (override.input_line or "").partition("=")[2]
        if isinstance(value, int | float) and not is_of(value, kind) and is_of(typed, kind):
            settings[name] = typed
        elif isinstance(value, list) and any(isinstance(one, int | float) for one in value):
            texts = [json.dumps(one) if isinstance(one, int | float) else one for one in value]
            try:
                check_kind(value, kind, override.key_or_group)
            except SettingsError:
                if lost := [one for one in texts if isinstance(one, str) and one.lower() not in typed.lower()]:
                    raise SettingsError(
                        f"{override.key_or_group}: a text in it was taken for the number {lost[0]}; put each in "
                        f"""quotes, such as {override.key_or_group}='["one", "2024_06"]'"""
                    ) from None
                settings[name] = texts


def as_list(told: Any) -> list[Any]:
    return [told] if isinstance(told, str) else list(told)


def packages_named(settings: Any) -> set[str]:
    """The packages of all classes that settings name."""
    if not isinstance(settings, Mapping | list):
        return set()
    inside = settings.values() if isinstance(settings, Mapping) else settings
    target = settings.get("_target_") if isinstance(settings, Mapping) else None
    own = {target.partition(".")[0]} if isinstance(target, str) else set()
    return own.union(*map(packages_named, inside))


def choices() -> dict[str, str]:
    """Which file of `conf/` was chosen in each group, wherever it was put."""
    chosen = HydraConfig.get().runtime.choices
    return {
        str(k).partition("@")[0]: str(v) for k, v in chosen.items() if not str(k).startswith("hydra/") and v is not None
    }


def composed(config: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration and the choices behind it: those of the command line, or of the run it resumes."""
    if config.resume is None:
        return trusted(config), choices()
    trust(*as_list(config.trust))
    folder = output_folder()
    refuse_links(folder)
    saved = read_config(folder)
    check_saved(saved, folder / CONFIG_FILE)
    resumed, chosen = changed_values(saved, list(HydraConfig.get().overrides.task), config, folder)
    return {**resumed, "resume": config.resume}, chosen


class Stage(NamedTuple):
    """A run's configuration and choices, and the name of its folder."""

    name: str
    config: dict[str, Any]
    choices: dict[str, str]


class Chain(NamedTuple):
    """What stages.yaml holds: stages, and the MFU to plan with."""

    stages: Annotated[list[Annotated[dict[str, Any], ArgumentsOf(Stage)]], Limits(1, 100)]
    expected_mfu: Annotated[float, Limits(0.0001, 1)]


def is_chain(config: DictConfig) -> bool:
    """Whether several stages are asked for, or a chain of them is resumed."""
    return "stages" in config or (output_folder() / STAGES_FILE).is_file()


def composed_stages(config: DictConfig) -> tuple[list[Stage], float]:
    """Every stage, and the MFU to plan with: of this command line, or of the chain
    that it resumes."""
    folder = output_folder()
    if config.resume is None:
        stages = []
        for changed in config.stages[name_of_stages(config.stages, choices())]:
            stage, chosen = with_choices("stages", {**changed, "name": changed.resolution_stage})
            own = {key: value for key, value in stage.items() if key not in ("stages", "expected_mfu", "trust")}
            trust(*as_list(config.trust), *packages_named(own))
            stages.append(Stage(changed.resolution_stage, own, {k: v for k, v in chosen.items() if k in choices()}))
        return stages, config.expected_mfu
    trust(*as_list(config.trust))
    refuse_links(folder)
    content = read_yaml(folder / STAGES_FILE, "put a copy in its place, or go on with one stage: resume=FOLDER/1-...")
    overrides = list(HydraConfig.get().overrides.task)
    stages = [
        Stage(name, *changed_values(saved, overrides, config, folder))
        for name, saved in check_chain(content, folder / STAGES_FILE)
    ]
    return stages, content["expected_mfu"]


def check_chain(content: Mapping[str, Any], file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The name of each stage in a stages.yaml, and what its run's config.yaml would hold. SettingsError, which names
    `file`, for anything else."""
    with told_with(file):
        check_arguments(Chain, content, where="")
        found = []
        for stage in content["stages"]:
            if Path(stage["name"]).name != stage["name"] or not NAME_ALONE.fullmatch(stage["name"]):
                raise SettingsError(f"{stage['name']} is no name of a stage's folder")
            saved = todays_config({**stage["config"], "choices": stage["choices"]})
            check_saved(saved, file)
            found.append((stage["name"], saved))
        return found


def name_of_stages(known: Collection[str], chosen: Mapping[str, str]) -> str:
    """Which of the lists of stages is meant: that of scale and recipe, SCALE_RECIPE, where there is one, or the
    scale's."""
    scale = chosen.get("scale", "laptop")
    of_recipe = f"{scale}_{chosen.get('recipe')}"
    return of_recipe if of_recipe in known else scale


def with_choices(config_name: str, changed: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration of this command line with other choices of some groups, and all the choices behind it.

    Raises SettingsError where this command line chose something else in one of these groups: it would have no effect.
    """
    refuse_other_choices(config_name, changed)
    overrides = [*HydraConfig.get().overrides.task, *(f"{group}={choice}" for group, choice in changed.items())]
    config = hydra.compose(config_name, overrides)
    return plain(config), {**choices(), **changed}


def refuse_other_choices(config_name: str, changed: Mapping[str, str]) -> None:
    """Raises SettingsError where one of `changed` replaces what this command line, or a file it names, chose."""
    given = list(HydraConfig.get().overrides.task)
    parsed = OverridesParser.create().parse_overrides(given)
    bundles = [text for text, one in zip(given, parsed, strict=True) if one.key_or_group in ("scale", "recipe")]
    composed_alone = hydra.compose(config_name, bundles, return_hydra_config=True)
    usual = composed_alone.hydra.runtime.choices
    for group, choice in changed.items():
        chosen = choices().get(group)
        if group in usual and chosen not in (usual[group], choice):
            name = name_of_stages(composed_alone.stages, choices())
            raise SettingsError(
                f"{group}={chosen} has no effect here: the stages of scale {name} choose {group} themselves (one of "
                f"them {choice}). Change the stage, such as stages.{name}.0.{group}={chosen} for the first, or run one "
                "stage alone with train.py"
            )


def output_folder() -> Path:
    """The folder of this run."""
    return Path(HydraConfig.get().runtime.output_dir)


@contextmanager
def told_in_a_sweep(config: DictConfig, write_failure: Callable[..., None]) -> Iterator[None]:
    """Around a job: in a sweep its failure is told at once, because the other jobs still run before the sweep ends, and
    is in its result.json, by `write_failure`, also if its configuration cannot be resolved."""
    try:
        yield
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            if not isinstance(error, InUseError) and not (output_folder() / RESULT_FILE).exists():
                write_failure(error, {"seed": OmegaConf.select(config, "seed")}, choices(), output_folder())
            failed_jobs.append(output_folder().name)
            errors.print(Text.assemble(("failed:", "red"), f" {output_folder().name}: {error}"))
        raise


def run_entry_point(main: Callable[[], None], config_name: str) -> None:
    """Calls a Hydra main, of that file of conf/. A mistake of the user ends the process with one message and exit code
    1; Ctrl-C with 130."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing: the message is ours to write
    sys.argv[1:] = bundles_in_order(sys.argv[1:])

    def told() -> None:
        try:
            if not asked_for_a_list(sys.argv[1:]):
                refuse_repeated(sys.argv[1:])
                main()
        except (HydraException, OmegaConfBaseException) as error:
            tell_and_exit(composition_message(error, lambda: default_config(config_name)), error)

    run_told(told)


def bundles_in_order(arguments: Sequence[str]) -> list[str]:
    """A command line whose bundles stand in the order of BUNDLES, because of two that choose the same group the last
    one counts."""

    def place(argument: str) -> int | None:
        return next((n for n, name in enumerate(BUNDLES) if argument.startswith(f"+{name}=")), None)

    bundles = iter(sorted((a for a in arguments if place(a) is not None), key=lambda a: place(a) or 0))
    return [argument if place(argument) is None else next(bundles) for argument in arguments]


def refuse_repeated(arguments: Sequence[str]) -> None:
    """Raises SettingsError where a command line gives one setting two values, of which the last alone would count."""
    given: dict[str, list[str]] = {}
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if equals and not argument.startswith("-"):
            given.setdefault(key.lstrip("+~"), []).append(argument)
    for key, typed in given.items():
        if len(set(typed)) > 1:
            values = ",".join(one.partition("=")[2] for one in typed)
            raise SettingsError(
                f"{key} is given {len(typed)} times ({typed[0]}, {typed[1]}{', ...' if len(typed) > 2 else ''}), of "
                f"which the last alone would count. Type it once. If the shell made them of braces, keep these with "
                f"""two pairs of quotes, as in '{key}="a/{{0..9}}.tar"'; to run each of them: -m {key}={values[:100]}"""
            )


def how_to_quote(arguments: Sequence[str]) -> str:
    """What to type instead of the first setting whose value Hydra would read as more than a text; "" without one."""
    swept = "-m" in arguments or "--multirun" in arguments
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and not argument.startswith("-") and not reads_as_typed(argument, swept):
            inside = value.strip("'\"").replace("\\", "\\\\").replace('"', '\\"')
            return (
                f"""\nA text with commas, =, brackets, braces or letters with accents needs two pairs of quotes: """
                f"""'{key}="{inside}"' (docs/data.md)"""
            )
    return ""


def reads_as_typed(argument: str, swept: bool) -> bool:
    """Whether Hydra takes an argument for one setting, with one value unless settings are swept over."""
    try:
        return swept or not OverridesParser.create().parse_override(argument).is_sweep_override()
    except HydraException:
        return False


def default_config(config_name: str) -> DictConfig:
    """The configuration without overrides, to list the keys there are."""
    with hydra.initialize_config_module(CONF, version_base="1.3"):
        return hydra.compose(config_name)


def composition_message(error: Exception, default_config: Callable[[], DictConfig]) -> str:
    """What is wrong with the command line. For a choice that does not exist, also which there are; for a key, which
    keys: with the choices that Hydra had made when it met the key, else with the defaults."""
    behind: BaseException | None = error
    while behind is not None:  # what one of our resolvers raised, OmegaConf tells in its own words
        if is_ours(behind):
            return str(behind)
        behind = behind.__cause__ or behind.__context__
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        near = difflib.get_close_matches(choice, error.options, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        told = f"{group} has no choice '{choice}'{hint} It knows: {', '.join(error.options)}"
        return told + how_to_quote(sys.argv[1:])
    found = UNKNOWN_KEY.search(str(error))
    if found is None:
        return f"{error}{how_to_quote(sys.argv[1:])}"
    key = found.group(1)
    at_fault = getattr(error.__cause__, "parent_node", None)
    # Hydra has emptied a single value that was taken for a group: there the defaults know more.
    node: Any = at_fault._get_root() if at_fault else default_config()
    path = key.split(".")
    if path[0] in BUNDLES and path[0] not in node and "variation" in node:
        return f"{path[0]} is a bundle, added with a plus: +{path[0]}=CHOICE"
    for depth, name in enumerate(path):
        try:
            check_names(
                [name], [str(k) for k in node if k != "hydra"], where=".".join(path[:depth]) or "the configuration"
            )
        except SettingsError as unknown:
            return str(unknown)
        node = node[name]
        if not isinstance(node, DictConfig):
            return f"{'.'.join(path[: depth + 1])} is a single value, it has no setting below it ({key})"
    return str(error)
