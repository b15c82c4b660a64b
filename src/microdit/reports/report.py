"""What `report.py` does: runs, or the results.csv made from them, to tables and figures in one folder."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from microdit.files import replacing, write_whole
from microdit.kinds import SettingsError
from microdit.reports.figures import loss_curves, quality_against_cost, save_figure
from microdit.reports.layout import read_layout
from microdit.reports.results import FIRST_COLUMNS, collect, curves, read_csv, write_csv
from microdit.reports.sample_grid import side_by_side
from microdit.reports.tables import OF_PAIRS, as_csv, differences, latex, markdown, published, summarise
from microdit.runs.folder import find_runs, refuse_links, runs_below

RESULTS_FILE, CURVES_FILE, README_FILE = "results.csv", "curves.csv", "README.md"
TABLE_BEGINS, TABLE_ENDS = "<!-- table -->\n", "<!-- /table -->"


def report(folder: Path, run_folders: Sequence[Path], console: Console) -> list[Path]:
    """Writes FOLDER's tables and figures and returns what was written.

    With `run_folders` (runs, or sweeps of runs) results.csv and curves.csv are made anew from these runs, as is the
    grid of their samples; without, tables and figures are made again from the two files, as they were committed. A
    `folder` that has runs in it, such as runs/sweep_..., is read anew each time: more of them may have finished.

    Raises SettingsError when there is nothing to report, when a run links to files outside it, or when rows cannot be
    told apart; NoRoomError where the disk is full: each file is then the new one or the one that was there.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder} is no folder: name one of experiments/, or a folder of runs")
    refuse_links(folder)
    if not run_folders and (runs_below(folder) or not (folder / RESULTS_FILE).is_file()):
        run_folders = [folder]
    runs, grid = find_runs(run_folders), None
    for run in runs:
        refuse_links(run)  # what it leads to would be copied into what is committed
    if runs:
        # What may refuse comes first: a report that cannot be made leaves the one that was there.
        results = collect(runs)
        grid = side_by_side(runs, summarise(results, read_layout(folder, results)))
        write_csv(results, folder / RESULTS_FILE)
        write_curves(runs, folder / CURVES_FILE)
    written = remake(folder)
    if grid is not None:
        with replacing(folder / "samples.png", "wb") as file:
            grid.save(file, "png")
        written.append(folder / "samples.png")
    console.print((folder / "table.md").read_text(encoding="utf-8"), highlight=False, markup=False)
    tell_problems(folder, console)
    for path in written:
        console.print(f"wrote {path}", highlight=False)
    return written


def remake(folder: Path) -> list[Path]:
    """Tables and figures of FOLDER from its results.csv, curves.csv and report.yaml: the same files every time."""
    results, readme = read_csv(folder / RESULTS_FILE, FIRST_COLUMNS), readme_in(folder)
    layout = read_layout(folder, results)
    rows = summarise(results, layout)
    shown = [*rows, *published(layout)]
    texts = {"table.md": markdown(shown, layout), "table.csv": as_csv(shown, layout), "table.tex": latex(shown, layout)}
    compared, of_differences = differences(results, layout)
    if compared:
        texts["table.md"] += "\n" + markdown(compared, of_differences, OF_PAIRS)
        texts["differences.csv"] = as_csv(compared, of_differences)
        texts["differences.tex"] = latex(compared, of_differences)
    for name, text in texts.items():
        write_whole(folder / name, text)
    written = [folder / name for name in texts]
    logged = read_csv(folder / CURVES_FILE, ("run", "step")) if (folder / CURVES_FILE).is_file() else []
    figures = {"figure.png": quality_against_cost(rows, layout), "curves.png": loss_curves(logged, rows, layout)}
    for name, figure in figures.items():
        if figure is not None:
            with replacing(folder / name, "wb") as file:
                save_figure(figure, file)
            written.append(folder / name)
    before, begins, rest = readme.partition(TABLE_BEGINS)
    _, ends, after = rest.partition(TABLE_ENDS)
    if ends:
        write_whole(folder / README_FILE, f"{before}{begins}{texts['table.md']}{ends}{after}")
        written.append(folder / README_FILE)
    return written


def readme_in(folder: Path) -> str:
    """The README.md of a folder, which the table is put into; empty where there is none. SettingsError for no UTF-8."""
    path = folder / README_FILE
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 ({error}); save it as UTF-8, or move it away") from error


def write_curves(runs: Sequence[Path], path: Path) -> None:
    """The curves of these runs; where they logged none, no file."""
    points = curves(runs)
    if points:
        write_csv(points, path)
    else:
        path.unlink(missing_ok=True)


def tell_problems(folder: Path, console: Console) -> None:
    """Names every run that did not finish, and why."""
    for run in read_csv(folder / RESULTS_FILE, FIRST_COLUMNS):
        if run["status"] != "finished":
            console.print(
                f"{run['run']}: {run['status']}. {run['error']}", highlight=False, markup=False, style="yellow"
            )
