"""dolly and alpaca as one file of conversations, for `data.path`.

    python benchmarks/llama3_8b_lora/data.py --dolly databricks-dolly-15k.jsonl --alpaca alpaca_data_cleaned.json

Each source is a local file, one JSON object a line or one JSON list, or a data set's name on the hub with a revision
(databricks/databricks-dolly-15k@REVISION), for which the package `datasets` must be installed. The files themselves:

    https://huggingface.co/datasets/databricks/databricks-dolly-15k   databricks-dolly-15k.jsonl
    https://huggingface.co/datasets/yahma/alpaca-cleaned              alpaca_data_cleaned.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

COLUMNS = {"dolly": ("instruction", "context", "response"), "alpaca": ("instruction", "input", "output")}
Row = dict[str, Any]


def conversation(row: Row, columns: tuple[str, str, str]) -> Row | None:
    """A row as messages; None when it asks or answers nothing.

    Raises:
        KeyError: a column is missing.
    """
    instruction, context, answer = (str(row[name] or "").strip() for name in columns)
    if not instruction or not answer:
        return None
    asked = f"{instruction}\n\n{context}" if context else instruction
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def convert(rows: Iterable[Row], columns: tuple[str, str, str]) -> tuple[list[Row], int]:
    """Conversations, and how many rows were left out because they were empty.

    Raises:
        SystemExit: a row lacks a column; says which row, what it has and what is expected.
    """
    found, empty = [], 0
    for number, row in enumerate(rows, start=1):
        try:
            made = conversation(row, columns)
        except KeyError as error:
            expected = ", ".join(columns)
            text = f"row {number} has no column {error}: it has {', '.join(row)}; expected {expected}"
            raise SystemExit(text) from None
        if made is None:
            empty += 1
        else:
            found.append(made)
    return found, empty


def read(source: str) -> Iterator[Row]:
    """The rows of a local file or of a data set on the hub.

    Raises:
        SystemExit: there is no such file, and it is no name on the hub that could be asked for.
    """
    path = Path(source).expanduser()
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        yield from (
            json.loads(text) if text.lstrip().startswith("[") else map(json.loads, filter(None, text.splitlines()))
        )
        return
    name, _, revision = source.partition("@")
    if not revision:
        raise SystemExit(f"{source}: no such file; a data set on the hub is written NAME@REVISION")
    try:
        from datasets import load_dataset
    except ImportError:
        raise SystemExit(f"{source}: pip install datasets, or fetch the file and give its path") from None
    yield from load_dataset(name, revision=revision, split="train")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in COLUMNS:
        parser.add_argument(f"--{name}", help="file, or NAME@REVISION on the hub")
    parser.add_argument("--out", type=Path, default=Path("dolly_alpaca.jsonl"))
    arguments = parser.parse_args()
    sources = {name: source for name in COLUMNS if (source := getattr(arguments, name))}
    if not sources:
        parser.error("give --dolly, --alpaca or both")
    with arguments.out.open("w", encoding="utf-8") as file:
        for name, source in sources.items():
            made, empty = convert(read(source), COLUMNS[name])
            file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in made)
            print(f"{name}: {len(made)} conversations, {empty} empty rows left out")
    print(f"wrote {arguments.out}; `data.seed` shuffles it, then eval and train are cut off")
    return 0


if __name__ == "__main__":
    sys.exit(main())
