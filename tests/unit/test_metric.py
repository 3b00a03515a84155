"""A metric of one's own: measured wherever the loss is, shown wherever the loss is, and named when it is none."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch

from tests.runs import QUIET, run
from tests.support import await_true
from tsugi_cli.config.compose import compose
from tsugi_cli.console.report import report
from tsugi_cli.finetune.functions import import_function
from tsugi_cli.finetune.metric import Metric
from tsugi_cli.launch.consent import asked
from tsugi_cli.launch.named import check_function
from tsugi_cli.launch.request import RunRequest
from tsugi_cli.pages.gather import gather
from tsugi_cli.record.measures import besides, per_token
from tsugi_kpool.errors import ConfigError

SOURCE = '''
"""Mine."""
import torch
SEEN = []

def sure(logits, targets):
    SEEN.append(len(targets))
    assert not torch.is_grad_enabled()
    return (logits.softmax(-1).max(-1).values).mean()

def several(logits, targets):
    return {"sure": 0.25, "tokens": len(targets)}

def wordy(logits, targets):
    return {"sure": "very"}

def broken(logits, targets):
    raise KeyError("no such thing")

NOT_CALLABLE = 3
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mymetric.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return "mymetric"


def test_a_metric_is_a_mean_over_tokens_with_its_names(mine):
    logits, targets = torch.zeros(4, 8), torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        assert Metric("mymetric:sure")(logits, targets) == {"metric.sure": 0.125}
        assert Metric("mymetric:several")(logits, targets) == {"metric.sure": 0.25, "metric.tokens": 4.0}
    sums = {"loss_sum": 4.0, "loss_tokens": 2.0, "metric.sure": 0.5}
    assert per_token(sums)["metric.sure"] == 0.25
    assert besides(sums) == {"metric.sure": 0.25}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wordy", "evaluate.metric=mymetric:wordy returned 'very' for sure, where a number is wanted"),
        ("broken", "evaluate.metric=mymetric:broken raised KeyError: 'no such thing' at "),
        ("NOT_CALLABLE", "evaluate.metric=mymetric:NOT_CALLABLE: is not a function"),
    ],
)
def test_what_is_no_metric_is_named(mine, name, said):
    with pytest.raises(ConfigError) as raised:
        Metric(f"mymetric:{name}")(torch.zeros(4, 8), torch.zeros(4, dtype=torch.long))
    assert said in str(raised.value)


def test_a_metric_is_looked_for_before_anything_starts_and_not_run(mine, tmp_path):
    check_function("mymetric:sure", "evaluate.metric")
    (tmp_path / "worse.py").write_text("def f(): pass\nraise SystemExit\n")
    for target, said in (
        ("mymetric:sur", "has no function sur; did you mean sure?"),
        ("mymetrics:sure", "there is no module mymetrics here"),
        ("worse.inner:f", "cannot be imported"),
    ):
        with pytest.raises(ConfigError, match=said.replace(".", r"\.").replace("?", r"\?")):
            check_function(target, "evaluate.metric")
    with pytest.raises(ConfigError, match="did you mean sure"):
        RunRequest.read([*QUIET, "evaluate.metric=mymetric:sur"], dry_run=True)


def test_a_function_in_the_current_folder_is_found_by_the_installed_command(tmp_path, monkeypatch):
    """The `tsugi` script's own folder stands first in sys.path; workers look into the current one first."""
    (tmp_path / "beside_my_data.py").write_text("def sure(logits, targets):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    check_function("beside_my_data:sure", "evaluate.metric")
    assert import_function("beside_my_data:sure", "data.scorer")(None, None) == 0.5
    monkeypatch.delitem(sys.modules, "beside_my_data")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate.metric=sure"], 'evaluate.metric must be "package.module:function"'),
        (["evaluate.metric=a:b", "data.n_eval=0"], "has nothing to measure: data.n_eval is 0"),
        (["evaluate.metric=a:b", "train.objective=dpo"], "of pairs margin and accuracy are measured"),
    ],
)
def test_settings_that_do_not_go_with_a_metric(words, said):
    with pytest.raises(ConfigError) as raised:
        compose([*QUIET, *words])
    assert said in str(raised.value)


def test_who_joins_is_asked_before_a_metric_runs():
    (item,) = asked(compose([*QUIET, "evaluate.metric=json:dumps"]))
    assert (item.key, item.function) == ("evaluate.metric", True)


def test_it_is_measured_wherever_the_loss_is_and_shown(mine, tmp_path, monkeypatch):
    words = [*QUIET, "topology.replicas=1", "topology.min_replicas=1", "evaluate.metric=mymetric:sure",
             "train.max_steps=12", "evaluate.every=4", "kpool.min_steps=1"]  # fmt: skip
    paths = run(words, tmp_path, monkeypatch)
    await_true(lambda: paths.adapter.exists(), "the adapter")
    events = [json.loads(line) for line in paths.events.read_text().splitlines()]
    told = {each["stage"]: each["sums"] for each in events if each.get("event") == "evaluated"}
    assert {"base", "trained"} <= set(told)
    assert all(0 < besides(sums)["metric.sure"] < 1 for sums in told.values())
    facts = gather(paths)
    assert len(facts.measured["metric.sure"]) == len(told)


def test_the_end_shows_its_curve():
    summary = {
        "evaluation": {"base": {"loss": 3.0, "metric.bleu": 12.5}, "trained": {"loss": 2.0, "metric.bleu": 20.25}},
        "evaluations": [
            {"version": at, "replica": 0, "loss": 3 - at / 10, "metric.bleu": 12 + at} for at in (1, 2, 3)
        ],
    }
    out = io.StringIO()
    from rich.console import Console

    Console(file=out, width=100).print(report(summary))
    assert "metric.bleu" in out.getvalue()
    assert "12.500" in out.getvalue()
    assert "20.250" in out.getvalue()
    assert "13.000 → 15.000" in out.getvalue()
    assert ", 3 evaluations" in out.getvalue()
