"""Every recipe for a file of one's own trains, with the tiny model for a large one: its settings agree."""

from __future__ import annotations

import json

import pytest
import yaml

from tests import runs
from tests.support import await_true
from tsugi_cli.config import overrides

TURNS = [{"role": "user", "content": "Switch it on."}, {"role": "assistant", "content": "It is on."}]
CALL = {"id": "1", "type": "function", "function": {"name": "switch", "arguments": {"thing": "lamp"}}}
TOOL = {"name": "switch", "description": "Switch a thing on.",
        "parameters": {"type": "object", "properties": {"thing": {"type": "string"}}}}  # fmt: skip
ROWS = {
    "continued_pretraining": {"text": "The lamp in the hall is on. " * 4},
    "tool_calling": {
        "messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}],
        "tools": [{"type": "function", "function": TOOL}],
    },
}
"""Recipe -> a row of its data; the others take conversations."""
ONE_REPLICA = (
    "topology.replicas=1", "topology.here=null", "topology.spare=0", "topology.workers=1", "topology.inside=ddp",
    "topology.min_replicas=1", "data.n_train=0", "data.n_eval=2", "train.micro_batch=2", "train.max_steps=3",
    "evaluate.max_new_tokens=2",
)  # fmt: skip


def takes_a_file(name: str) -> bool:
    recipe = yaml.safe_load((overrides.recipes_dir() / f"{name}.yaml").read_text(encoding="utf-8"))
    return {"override data": "jsonl"} in recipe["defaults"]


@pytest.mark.nightly
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [each for each in overrides.recipe_names() if takes_a_file(each)])
def test_a_recipe_trains(name, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "WAIT_S", 240.0)
    file = tmp_path / "mine.jsonl"
    row = ROWS.get(name, {"messages": TURNS})
    file.write_text("".join(json.dumps({**row, "id": at}) + "\n" for at in range(12)), encoding="utf-8")
    template = ["model.chat_template=chatml_tools"] if name == "tool_calling" else []
    paths = runs.run([f"recipe={name}", "model=tiny", f"data={file}", *template, *ONE_REPLICA], tmp_path, monkeypatch)
    await_true(paths.adapter.exists, "the adapter")
    events = [json.loads(line) for line in paths.events.read_text(encoding="utf-8").splitlines()]
    assert {"finished", "evaluated"} <= {each["event"] for each in events}
