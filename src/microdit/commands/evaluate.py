"""What `evaluate.py` does: metrics of a checkpoint, or of pictures that were kept, into the run's result.json."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from microdit.build import SettingsError, shown
from microdit.checkpoints.reading import CheckpointError
from microdit.commands.compose import as_texts, trusted
from microdit.commands.messages import check_device, console, tell_places
from microdit.evaluation.curve import SWEPT, Point, points_of, write_curves
from microdit.evaluation.geneval.folders import FolderSubject, is_folder_of_prompts
from microdit.evaluation.metric import Metric, built_metrics, draws_pictures, measure
from microdit.evaluation.sharing import ALONE, Ranks, join_ranks
from microdit.evaluation.subject import KeptSubject, Subject, checked_sampling, differing
from microdit.files import near_path, write_json
from microdit.kinds import Limits, check_arguments, check_kind
from microdit.pipeline import LatentDiffusion, sampling_of
from microdit.progress import VisibleConsole
from microdit.runs.differences import flat
from microdit.runs.folder import (
    EVALUATION,
    LOGS,
    PIPELINE_FILE,
    RESULT_FILE,
    checkpoints_of,
    is_checkpoint,
    places_named,
    refuse_links,
    resolved,
    run_of,
)
from microdit.runs.record import add_to_record, read_record, usual_settings
from microdit.sampling.settings import SamplingSettings

CHECKPOINT_SUFFIX = ".ckpt"


def evaluate(
    checkpoint: str | None,
    pictures: str | None,
    weights: str | Sequence[str],
    metrics: Mapping[str, Mapping[str, Any]],
    sampling: Mapping[str, Any],
    batch_size: int,
    device: str,
    console: Console,
    refresh: bool = False,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Measures and returns all numbers, by the names they have in result.json.

    `checkpoint`: a run's folder (its newest checkpoint), a file in its checkpoints/, or a folder that
    LatentDiffusion.save wrote (with one set of weights); each of `weights` ("ema", "raw") is measured. `pictures`:
    instead, a folder of kept pictures, such as RUN/evaluation, or of pictures made elsewhere. `sampling`: arguments of
    generate() that replace the metrics' own; None: as the metric says. Of a list of guidance scales each is measured,
    and curves of all numbers are drawn in RUN/evaluation/guidance.png. `refresh`: what is kept of true pictures is
    computed anew. Several `ranks` share the work, each on a GPU of its own where `device` is "cuda".

    Names say what differs from the default: `compositional/overall@raw,guidance_scale=2`, and where a metric's settings
    are not those that the run was measured with before: `frechet_1/distance@count=512`.

    Raises SettingsError for settings that cannot be meant, CheckpointError and PicturesError for what cannot be read.
    """
    device = own_device(device, ranks)
    check_device(device)
    how = How(device, batch_size, refresh, ranks, console)
    built = built_metrics(metrics)
    chosen = {name: value for name, value in sampling.items() if value is not None}
    if (checkpoint is None) == (pictures is None):
        raise SettingsError("name what to evaluate: either checkpoint=RUN or pictures=RUN/evaluation")
    if not built:
        raise SettingsError("metrics=none measures nothing: choose such as metrics=shapes_full")
    if pictures is not None:
        if chosen:
            raise SettingsError(f"pictures={pictures} are drawn already: sampling.{next(iter(chosen))} cannot change")
        return evaluate_kept(Path(pictures).expanduser(), built, metrics, how)
    assert checkpoint is not None
    weights = [weights] if isinstance(weights, str) else weights
    return evaluate_checkpoint(Path(checkpoint).expanduser(), weights, built, metrics, chosen, how)


@dataclass(frozen=True)
class How:
    """Where it is evaluated, by whom, and who is told."""

    device: str
    batch_size: int
    refresh: bool
    ranks: Ranks
    console: Console

    def tell(self, text: str) -> None:
        if self.ranks.leads:
            self.console.print(text, highlight=False)


def own_device(device: str, ranks: Ranks) -> str:
    """The device of this rank: of several each has a GPU of its own. SettingsError where all would have the same."""
    if ranks.count == 1 or device == "cpu":
        return device
    if device != "cuda":
        raise SettingsError(f"device={device} is a single one: several processes share device=cuda, or device=cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', ranks.rank)}"


def evaluate_checkpoint(
    checkpoint: Path,
    weights: Sequence[str],
    metrics: Mapping[str, Metric],
    settings: Mapping[str, Mapping[str, Any]],
    sampling: Mapping[str, Any],
    how: How,
) -> dict[str, float]:
    """Measures each of `weights` of a checkpoint with `sampling` in place of the metrics' own.

    `settings` are those that `metrics` were built from.
    """
    if not weights:
        raise SettingsError("weights is empty: choose weights=[ema], weights=[raw] or weights=[ema,raw]")
    swept = sampling.get(SWEPT)
    scales = list(swept) if isinstance(swept, list | tuple) else [swept]
    samplings = [{**sampling, SWEPT: scale} if scale is not None else sampling for scale in dict.fromkeys(scales)]
    for each in samplings:
        checked_sampling({"seed": 0, **each}, SamplingSettings())
    if not samplings:
        raise SettingsError("sampling.guidance_scale is empty: choose such as [1,1.5,2]")
    if len(samplings) > 1 and not any(map(draws_pictures, settings.values())):
        raise SettingsError(f"none of {', '.join(settings)} draws pictures, so guidance scales make no difference")
    if checkpoint.suffix == CHECKPOINT_SUFFIX and not is_checkpoint(checkpoint):
        there = ", ".join(path.name for path in checkpoints_of(checkpoint.parent.parent)) or "none"
        raise CheckpointError(f"there is no checkpoint {checkpoint}; that run has: {there}")
    run = run_of(checkpoint)
    refuse_links(run)
    if checkpoint != run and not checkpoints_of(run):
        raise CheckpointError(f"{checkpoint} is no checkpoint of a run: name a run, or a file in its checkpoints/")
    older = checkpoint != run and checkpoint.resolve() != checkpoints_of(run)[-1].resolve()
    unusual = how.ranks.of_first(lambda: unusual_settings(run, settings))
    numbers: dict[str, float] = {}
    points: list[Point] = []
    for which in weights:
        pipeline = LatentDiffusion.load(checkpoint, which).to(how.device)
        if how.ranks.leads:
            tell_places(places_named(pipeline.settings, [run]), run / PIPELINE_FILE)
        label = [*(["raw"] if which == "raw" else []), *([f"checkpoint={checkpoint.stem}"] if older else [])]
        recorder = Recorder(run, {"checkpoint": str(checkpoint), "weights": which}, settings, how.console)
        for number, each in enumerate(samplings):
            at = f", {SWEPT} {each[SWEPT]:g}" if len(samplings) > 1 else ""
            how.tell(f"{which} weights of {checkpoint}{at}")
            subject = Subject(
                pipeline, run / EVALUATION, label, each, how.batch_size, ranks=how.ranks, refresh=how.refresh
            )
            # What draws no pictures has no guidance.
            mine = {name: metric for name, metric in metrics.items() if not number or draws_pictures(settings[name])}
            found = measure(subject, mine, recorder, unusual)
            numbers |= found
            points += points_of(found, each[SWEPT]) if len(samplings) > 1 else []
    if how.ranks.leads:
        show_numbers(how.console, numbers, run)
        if points:
            how.tell(f"curves over {SWEPT}: {write_curves(run / EVALUATION, points)}")
    return numbers


def evaluate_kept(
    folder: Path,
    metrics: Mapping[str, Metric],
    settings: Mapping[str, Mapping[str, Any]],
    how: How,
) -> dict[str, float]:
    """Measures the pictures kept in `folder`; the run they belong to is the nearest folder above that is one, by the
    names of the path: a link in a run's folder leads into no other run. Pictures made elsewhere, in GenEval's layout,
    have the record in their own folder."""
    if not folder.is_dir():
        raise SettingsError(
            f"pictures={folder} is no folder{near_path(folder)}; evaluate.py checkpoint=RUN keeps them in "
            f"RUN/{EVALUATION}"
        )
    if is_folder_of_prompts(folder):
        refuse_links(folder)
        subject = FolderSubject(folder, folder / EVALUATION, how.device, how.ranks, how.refresh)
        return measured_in(folder, subject, folder, metrics, settings, how)
    run = next((above for above in Path(os.path.abspath(folder)).parents if (above / PIPELINE_FILE).is_file()), None)
    if run is not None:
        refuse_links(run)
    if run is None or not resolved(folder).is_relative_to(resolved(run)):
        raise SettingsError(
            f"{folder} lies in no run (a folder with {PIPELINE_FILE}) whose result.json could be added to, and holds "
            "no pictures made elsewhere (00000/metadata.jsonl beside 00000/samples/0000.png, ...); name it by "
            f"its place there, RUN/{EVALUATION}/..."
        )
    subject = KeptSubject(folder, how.device, sampling_of(run), how.ranks, how.refresh)
    return measured_in(run, subject, folder, metrics, settings, how)


def measured_in(
    run: Path,
    subject: Subject,
    folder: Path,
    metrics: Mapping[str, Metric],
    settings: Mapping[str, Mapping[str, Any]],
    how: How,
) -> dict[str, float]:
    """Measures pictures in `folder`, into the record of `run`."""
    recorder = Recorder(run, {"pictures": str(folder)}, settings, how.console)
    unusual = how.ranks.of_first(lambda: unusual_settings(run, settings))
    numbers = measure(subject, metrics, recorder, unusual)
    if how.ranks.leads:
        show_numbers(how.console, numbers, run)
    return numbers


def unusual_settings(run: Path, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """What of each metric's settings is not as the run was measured before, as "name=value": numbers of other settings
    are other numbers, and must not replace these. Where a judge is reached is no such difference."""
    unusual = {}
    for metric, now in settings.items():
        usual = usual_settings(run, metric)
        if usual is not None:
            was = {name: value for name, value in flat(usual) if name.rpartition(".")[2] != "address"}
            unusual[metric] = differing({name: value for name, value in flat(now) if name in was}, was)
    return unusual


class Recorder:
    """Puts each metric's numbers into the run's result.json as soon as they are there, and says what it replaced. Made
    before anything is measured: DamagedFileError for a result.json that cannot be added to."""

    def __init__(self, run: Path, making: dict[str, Any], settings: Mapping[str, Mapping[str, Any]], console: Console):
        read_record(run / RESULT_FILE)
        self.run, self.making, self.settings, self.console = run, making, settings, console

    def __call__(self, metric: str, numbers: dict[str, float], picture: Path | None) -> None:
        making = {**self.making, "metric": metric, "settings": self.settings[metric]}
        replaced = add_to_record(self.run, numbers, making)
        for name, old in replaced.items():
            was = f"{old:.6g}" if isinstance(old, float) else shown(old)
            self.console.print(f"{name} was {was}, is now {numbers[name]:.6g}", highlight=False)
        if picture is not None:
            self.console.print(f"{metric}: what was judged is in {picture}", highlight=False)


def show_numbers(console: Console, numbers: Mapping[str, float], run: Path) -> None:
    """The closing table."""
    table = Table(title=f"added to {run / RESULT_FILE}", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        table.add_row(name, f"{value:.4g}")
    console.print(table, highlight=False)


@dataclass(frozen=True)
class Devices:
    """Processes of this machine that evaluate together: each has a GPU of its own, where it is evaluated on GPUs."""

    devices: Annotated[int, Limits(1, 1000)]

    @property
    def nodes(self) -> int:
        return 1


def evaluate_command(config: DictConfig) -> None:
    """Measures what the command line asks for: here, or in a process a device."""
    settings = trusted(config)
    check_kind(settings.get("trainer"), Devices, "trainer")
    machine = Devices(**settings.pop("trainer"))
    as_texts(settings, evaluate)
    check_arguments(evaluate, settings, "", given_later=["console"])
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # torchrun started this process, and others
        ranks = join_ranks()
        evaluate(**settings, console=console if ranks.leads else VisibleConsole(quiet=True), ranks=ranks)
    elif machine.devices == 1:
        evaluate(**settings, console=console)
    else:
        evaluate_in_ranks(settings, machine)


def evaluate_in_ranks(settings: Mapping[str, Any], machine: Devices) -> None:
    """Evaluates in several processes of this machine. SettingsError where it has not as many devices."""
    import torch

    from microdit.distributed.hardware import MOST_PROCESSES_A_CORE
    from microdit.distributed.ranks import REQUEUE_CODE, Job, PreemptedError, RanksError, run_ranks

    check_device(settings["device"])
    on_gpus = settings["device"] != "cpu"
    most = torch.cuda.device_count() if on_gpus else MOST_PROCESSES_A_CORE * (os.cpu_count() or 1)
    if machine.devices > most:
        kind = "GPUs" if on_gpus else "processes"
        raise SettingsError(f"trainer.devices={machine.devices} {kind} are asked for, {most} are the most here")
    folder = Path(tempfile.mkdtemp(prefix="microdit-evaluation-"))
    then = "What was drawn and judged is kept: run the same command again"
    job = Job("microdit.commands.evaluation_rank", [str(folder / "settings.json")], "asked to stop", then)
    spoken = False
    try:
        write_json(folder / "settings.json", settings)
        run_ranks(job, folder / LOGS, machine, console)
    except RanksError:
        spoken = True  # the folder has what the ranks said
        raise
    except PreemptedError as stopped:
        console.print(str(stopped), highlight=False)
        raise SystemExit(REQUEUE_CODE) from stopped
    finally:
        if not spoken:
            shutil.rmtree(folder)
