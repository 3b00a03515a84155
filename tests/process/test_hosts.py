"""One command on several machines: a real sshd on loopback, and a stand-in for `srun` that starts real tasks."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.process.test_finetune import TINY, WAIT_S, events, wait_for
from tests.support import await_true, free_port
from tsugi_cli.bench.links.hosts import Cables
from tsugi_cli.bench.links.namespaces import Namespaces, NoNamespace
from tsugi_cli.bench.spec import read
from tsugi_cli.config.compose import compose
from tsugi_cli.launch.others import check_machines
from tsugi_kpool.errors import LaunchError

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def keygen(path: Path) -> str:
    """A new key pair; returns the public part."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=WAIT_S)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


@pytest.fixture(scope="module")
def ssh(tmp_path_factory) -> Iterator[str]:
    """`topology.ssh` for machines b and c, which are this one behind an sshd of its own; `nobody` refuses."""
    if not Path(SSHD).exists() or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd is installed (apt-get install openssh-server)")
    folder, port = tmp_path_factory.mktemp("ssh"), free_port()
    host, _ = keygen(folder / "host"), keygen(folder / "id")
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host}\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/id.pub\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nSetEnv XDG_CACHE_HOME={folder}/cache\n"
    )
    (folder / "ssh_config").write_text(
        f"Host b c\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {folder}/id\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known\nHost nobody\n  HostName 127.0.0.1\n  Port 1\n"
    )
    if os.getuid() == 0:
        with contextlib.suppress(OSError):
            Path("/run/sshd").mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        command = f"ssh -F {folder}/ssh_config"
        await_true(lambda: answers(port) or server.poll() is not None, "sshd")
        tried = subprocess.run(
            [*command.split(), "b", "true"], capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        if tried.returncode:
            pytest.skip(f"this machine's sshd lets nobody in: {tried.stderr} {(folder / 'log').read_text()}")
        yield command
    finally:
        server.terminate()
        server.wait(timeout=30)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def digest(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def commands_with(text: str, folder: Path) -> list[psutil.Process]:
    """Processes of this folder that have it in their command line: other tests run on this machine at the same time.

    Of this folder is what names it or works in it.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if text in line and (str(folder) in line or Path(process.cwd()).is_relative_to(folder)):
                found.append(process)
    return found


def test_a_machine_that_refuses_or_has_no_tsugi_is_named_before_anything_starts(ssh):
    words = ["model=tiny", "topology.trust_network=true", f"topology.ssh={ssh}"]
    check_machines(compose([*words, "topology.hosts=[b,c]"]))
    with pytest.raises(LaunchError) as found:
        check_machines(compose([*words, "topology.hosts=[b,nobody]"]))
    (line,) = str(found.value).splitlines()[1:]
    assert line.startswith("nobody: ssh: connect to host 127.0.0.1 port 1: Connection refused")
    with pytest.raises(LaunchError, match=r"b: there is no tsugi; .*topology\.remote_tsugi=PATH"):
        check_machines(compose([*words, "topology.hosts=[b]", "topology.remote_tsugi=/nowhere/tsugi"]))


@pytest.mark.fresh
@pytest.mark.parametrize("plane", ["group", pytest.param("exchange", marks=pytest.mark.nightly)])
def test_one_line_trains_on_a_machine_behind_ssh_and_the_loss_of_the_connection_ends_nothing(ssh, tmp_path, plane):
    settings = [
        f"topology.data_plane={plane}",
        "topology.hosts=[b]",
        f"topology.ssh={ssh}",
        "sideband.bind=127.0.0.1",
        "train.max_steps=100000",
    ]
    run, said, joined = tmp_path / "runs" / "latest", tmp_path / "said", "runs/joined/b"
    command = [sys.executable, "-m", "tsugi_cli.app", "finetune", *TINY, *settings, "fault.step_s=[0:0.1,1:0.1]"]
    with said.open("wb") as out:
        launcher = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(run, "committed", launcher)
        assert commands_with("tsugi2-", tmp_path) == [], "a token in a command line can be read by every user"
        (connection,) = [each for each in commands_with(joined, tmp_path) if each.name() == "ssh"]
        connection.kill()
        await_true(lambda: "the connection has ended" in said.read_text(), "the launcher to notice")
        before = len(rounds(run))
        await_true(lambda: len(rounds(run)) >= before + 2, "rounds without the connection")
        launcher.send_signal(signal.SIGINT)
        _, wrong = launcher.communicate(timeout=WAIT_S)
    finally:
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGKILL)
            launcher.communicate()
        await_true(lambda: commands_with(joined, tmp_path) == [], "the replica there to end")
    assert launcher.returncode == 130, wrong
    told = "b: the connection has ended (its ssh was killed by signal 9); the others go on"
    assert told in said.read_text()
    assert "left" not in {event["event"] for event in events(run)}
    assert digest(run.resolve()) == digest((tmp_path / "runs" / "joined" / "b" / "latest").resolve())


def rounds(run: Path) -> list[dict]:
    return [event for event in events(run) if event["event"] == "committed"]


class Tasks:
    """What `srun` does: starts the same line once for each task, with variables that say which one it is."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, rank: int, world: int, line: list[str], inside=tuple, **variables: str) -> None:
        told = {
            "SLURM_PROCID": str(rank),
            "SLURM_STEP_NUM_TASKS": str(world),
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_ID": "0",
        }
        told |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0", "PET_NNODES": str(world)}
        command = inside([sys.executable, "-m", "tsugi_cli.app", "finetune", *line])
        pipe, environ = subprocess.PIPE, os.environ | told | variables
        self.processes.append(
            subprocess.Popen(command, cwd=self.cwd, env=environ, stdout=pipe, stderr=pipe, text=True)
        )

    def ended(self) -> list[tuple[str, str]]:
        """Output and errors of all, once they have ended well."""
        said = [each.communicate(timeout=WAIT_S) for each in self.processes]
        assert [each.returncode for each in self.processes] == [0] * len(self.processes), said
        return said


@pytest.fixture
def tasks(tmp_path) -> Iterator[Tasks]:
    made = Tasks(tmp_path)
    yield made
    for process in made.processes:
        for _ in range(2):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1.0)
    for process in made.processes:
        process.communicate(timeout=60)


def test_the_same_line_in_all_tasks_of_a_job_is_one_run(tasks, tmp_path):
    """The one that joins is there first, and brings two replicas."""
    line = [*TINY, "train.max_steps=24", "topology=hosts", "topology.here=2", "sideband.bind=127.0.0.1", "--plain"]
    for rank in (1, 0):
        tasks.start(rank, 2, line)
    (joined, _), (launched, _) = tasks.ended()
    run = (tmp_path / "runs" / "latest").resolve()
    assert "task 1 of 2 (Slurm): it joins the run of the first" in joined
    assert "this is the first of 2 tasks (Slurm); the others join it" in launched
    others = [(tmp_path / "runs" / "joined" / "1" / name / "latest").resolve() for name in ("0", "1")]
    assert len({digest(run), *map(digest, others)}) == 1
    assert {event["replica"] for event in events(run) if event["event"] == "joined"} == {0, 1, 2, 3}
    assert list((tmp_path / "runs").glob(".meet*")) == [], "the key is taken away at the end"


@pytest.mark.nightly
@pytest.mark.parametrize("plane", ["topology.trust_network=true", "topology.data_plane=exchange"])
def test_tasks_on_machines_of_their_own_need_no_common_folder_if_they_have_a_secret(tasks, tmp_path, plane):
    """Three machines with addresses of their own. Nothing but one random text is common to them."""
    scenario = read(["bench.scenario=slow_link"]).scenario
    with contextlib.ExitStack() as laid:
        try:
            cables = Cables(scenario, 3, laid.enter_context(Namespaces()))
            laid.callback(cables.tear)
            cables.lay()
        except NoNamespace as error:
            pytest.skip(str(error))
        line = [*TINY, "train.max_steps=24", "topology=hosts", plane]
        line += ["sideband.bind=0.0.0.0", "--plain"]
        for rank in range(3):
            folder = tmp_path / str(rank)
            folder.mkdir()
            tasks.cwd = folder
            variables = {"TSUGI_SECRET": "s" * 64, "MASTER_ADDR": cables.address(0)}
            tasks.start(rank, 3, line, lambda argv, at=rank: cables.inside(at, argv), **variables)
        tasks.ended()
    runs = [
        tmp_path / "0" / "runs" / "latest",
        *(tmp_path / str(r) / "runs" / "joined" / str(r) / "latest" for r in (1, 2)),
    ]
    assert len({digest(run.resolve()) for run in runs}) == 1
