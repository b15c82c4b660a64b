"""Runs the CPU set of benchmarks and renews the measured part of RESULTS.md: `make bench`.

What stands in RESULTS.md outside the two markers is written by hand and stays.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SAMPLERS = ["plain Heun, one-hot experts", "Heun, captions read once, compiled", "DPM-Solver++(2M)"]
COMMANDS = [
    ["train_step.py", "--compile", "--rounds", "2"],
    ["attention.py", "--rounds", "3"],
    ["moe.py", "--batch", "2", "--rounds", "3"],
    ["sampling.py", "--repeats", "2", "--only", *SAMPLERS],
]


def shown(command: list[str]) -> str:
    """The command as a shell takes it."""
    return shlex.join(["python", f"benchmarks/{command[0]}", *command[1:]])


def run(command: list[str]) -> dict[str, Any]:
    """What a benchmark measured. Its own table goes to the screen as it runs."""
    print(f"\n$ {shown(command)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        subprocess.run([sys.executable, str(HERE / command[0]), *command[1:], "--json", str(record)], check=True)
        return json.loads(record.read_text())


def markdown(command: list[str], record: dict[str, Any]) -> str:
    rows: list[dict[str, str]] = record["rows"]
    lines = [
        f"### {record['title']}",
        f"`{shown(command)}`",
        "",
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *("| " + " | ".join(row.values()) + " |" for row in rows),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    records = [(command, run(command)) for command in COMMANDS]
    described = ", ".join(f"{what}: {value}" for what, value in records[0][1]["machine"].items())
    measured = "\n".join(
        [
            BEGIN,
            "Medians of the rounds, with the lowest and highest in brackets. " + described + ".",
            "",
            *(markdown(command, record) for command, record in records),
            END,
        ]
    )
    before, after = "# Results\n\n", "\n"
    if RESULTS.is_file():
        text = RESULTS.read_text()
        if BEGIN not in text or END not in text:
            raise SystemExit(f"{RESULTS} has lost its markers {BEGIN} ... {END}; put them where the tables belong")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
    RESULTS.write_text(before + measured + after)
    print(f"\nwritten to {RESULTS}")


if __name__ == "__main__":
    main()
