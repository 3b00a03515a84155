"""Job files: pinned as text, well-formed, and right before they are written."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
import yaml

from tsugi_cli.config import overrides
from tsugi_cli.hosts.jobs import WRITERS, Job
from tsugi_cli.launch.job_file import job_of, write_job
from tsugi_cli.record.answer import Answer
from tsugi_kpool.errors import ConfigError

GOLDEN = Path(__file__).parent / "jobs"
WORDS = ("model=tiny", "about=my run", "topology.trust_network=true")
JOBS = {
    "slurm": Job("tsugi", WORDS, 3, 8, 8, "/opt/venv/bin/tsugi", "04:00:00", "gpu"),
    "k8s": Job("tsugi", WORDS, 3, 8, 2, image="ghcr.io/me/tsugi:1", claim="runs"),
    "skypilot": Job("tsugi", WORDS, 3, 8, 1, accelerator="H100"),
}


@pytest.mark.parametrize("scheduler", list(WRITERS))
def test_a_job_file_is_the_one_that_is_pinned(scheduler):
    write, ending = WRITERS[scheduler]
    assert write(JOBS[scheduler]) == (GOLDEN / f"{scheduler}{ending}").read_text()


def lines_of(scheduler: str) -> str:
    """The command line that its tasks run."""
    write, _ = WRITERS[scheduler]
    text = write(JOBS[scheduler])
    if scheduler == "slurm":
        return text.partition("srun --kill-on-bad-exit=0 ")[2]
    documents = list(yaml.safe_load_all(text))
    if scheduler == "skypilot":
        return str(documents[0]["run"])
    (container,) = documents[1]["spec"]["template"]["spec"]["containers"]
    assert {each["name"] for each in container["env"]} == {"RANK", "WORLD_SIZE", "MASTER_ADDR", "TSUGI_SECRET"}
    return str(container["args"][0]).removeprefix("exec ")


@pytest.mark.parametrize("scheduler", list(WRITERS))
def test_its_tasks_run_what_was_typed_on_all_machines(scheduler):
    words = shlex.split(lines_of(scheduler))
    assert words[1:5] == ["finetune", *WORDS]
    assert "topology=hosts" in words
    assert overrides.read([word for word in words[2:] if "=" in word]).problems == []


def test_a_file_is_written_once_and_says_what_starts_it(tmp_path):
    job, out = Job("mine", ("model=tiny", "topology.trust_network=true"), 2), io.StringIO()
    assert write_job("slurm", job, tmp_path / "a job", False, Answer(out)) == 0
    assert f"sbatch '{tmp_path}/a job'" in out.getvalue()
    with pytest.raises(ConfigError, match="is there already"):
        write_job("slurm", job, tmp_path / "a job", False, Answer(out))


@pytest.mark.parametrize(
    ("scheduler", "job", "says"),
    [
        ("slrum", Job("a", WORDS, 2), "slrum: there are slurm, k8s, skypilot; did you mean slurm?"),
        ("slurm", Job("A b", (), 2), "--name A b: small letters"),
        ("slurm", Job("a", ("kpool.kk=1",), 2), "kpool.kk: no such key"),
        ("slurm", Job("a", ("model=tiny", "topology.data_plane=group"), 2), "topology.trust_network must be true"),
        ("slurm", Job("a", ("topology=hosts",), 2), "the job file says that by itself"),
        ("slurm", Job("a", ("data=/nowhere/mine.jsonl",), 2), "no such file"),
        ("k8s", Job("a", WORDS, 2), "--image IMAGE is needed"),
        ("skypilot", Job("a", WORDS, 2, gpus=1), "--accelerator NAME is needed"),
    ],
)
def test_what_would_end_the_job_at_once_is_said_before(scheduler, job, says):
    with pytest.raises(ConfigError) as found:
        write_job(scheduler, job, None, True, Answer(io.StringIO()))
    assert says in "\n".join(found.value.problems)


def test_files_of_a_container_are_not_looked_for_here():
    job, out = Job("a", (*WORDS, "data=/data/mine.jsonl"), 2, image="i"), io.StringIO()
    assert write_job("k8s", job, None, True, Answer(out)) == 0
    assert "data=/data/mine.jsonl" in out.getvalue()


@pytest.mark.parametrize(
    ("gpus", "workers", "asked", "replicas"), [(8, 1, None, 8), (8, 4, None, 2), (0, 1, None, 1), (8, 1, 3, 3)]
)
def test_every_gpu_gets_a_replica_unless_the_user_says_otherwise(gpus, workers, asked, replicas):
    assert job_of(Job("a", (), 2, gpus), asked, workers).replicas == replicas
