"""Other machines: which part a task has, what `topology.hosts` means, and what ssh is told. Nothing is connected."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
import threading
from dataclasses import replace

import pytest

from tests.support import await_true, hub_plan
from tsugi_cli.config.compose import compose, resolved_yaml
from tsugi_cli.config.data_plane import data_plane
from tsugi_cli.hosts.devices import named, shares, visible
from tsugi_cli.hosts.joiners import Joiner, Joiners
from tsugi_cli.hosts.leash import STOP, Leash, first_line
from tsugi_cli.hosts.machines import Machine, machine
from tsugi_cli.hosts.meeting import PORT, SECRET, Meeting
from tsugi_cli.hosts.role import Role, first_of, role_of, without_ranks
from tsugi_cli.hosts.ssh import reason_of, script, ssh, words_of_join
from tsugi_cli.launch.guest import localised
from tsugi_cli.launch.others import OWN, check_machines, commands, own_words
from tsugi_kpool.errors import ConfigError, LaunchError
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys

SLURM = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "2"}
SKY = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "job-0.job", "MASTER_PORT": "29500"}
TRUSTED = ("model=tiny", "topology.trust_network=true")


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch):
    """Whatever runs these tests has started one task."""
    for name in (*SLURM, *SKY, *TORCHRUN, SECRET):
        monkeypatch.delenv(name, raising=False)


# --- roles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "rank", "world", "master"),
    [
        (SLURM | {"SLURM_STEP_NODELIST": "gpu[07,12-20],cpu1"}, 1, 4, "gpu07"),
        (SLURM | {"SLURM_STEP_NODELIST": "a", "MASTER_ADDR": "10.0.0.9"}, 1, 4, "10.0.0.9"),
        (SKY, 0, 2, "10.0.0.1"),
        (TORCHRUN, 2, 3, "job-0.job"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 0, 1, None),
    ],
)
def test_each_scheduler_says_which_task_this_is(environ, rank, world, master):
    role = role_of(environ)
    assert (role.rank, role.world, role.master) == (rank, world, master)
    assert role.leads is (rank == 0)


def test_a_job_that_slurm_starts_again_is_another_one():
    again = SLURM | {"SLURM_RESTART_COUNT": "1"}
    assert role_of(SLURM).job != role_of(again).job
    assert role_of(SLURM | {"SLURM_PROCID": "0"}).job == role_of(SLURM).job


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, "put srun before it"),
        ({"RANK": "3", "WORLD_SIZE": "3"}, "RANK='3' and WORLD_SIZE='3'"),
        ({"RANK": "one", "WORLD_SIZE": "3"}, "no task's number"),
    ],
)
def test_what_cannot_be_is_refused_by_name(environ, says):
    with pytest.raises(ConfigError, match=says):
        role_of(environ)


def test_processes_of_a_task_are_not_told_that_they_are_one():
    told = TORCHRUN | {"LOCAL_RANK": "0", "PET_NNODES": "3", "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "1"}
    assert without_ranks(told | {"HOME": "/root", "OMP_NUM_THREADS": "2"}) == {
        "HOME": "/root",
        "OMP_NUM_THREADS": "2",
    }


def test_without_a_scheduler_there_is_no_role():
    assert role_of({"RANK": "0", "HOME": "/root"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"), [("", None), ("a1,b2", "a1"), ("r[1-2]n[03,05]", "r1n03"), ("n-3", "n-3")]
)
def test_the_first_machine_of_a_node_list(nodes, first):
    assert first_of(nodes) == first


# --- settings -----------------------------------------------------------------------------------------------


def test_named_machines_and_this_one_make_the_run():
    spec = compose([*TRUSTED, "topology.hosts=[b,user@c:8,[fd00::5]]", "topology.min_replicas=4"])
    assert (spec.topology.replicas, spec.topology.here, spec.sideband.bind) == (11, 1, "0.0.0.0")
    bound = compose([*TRUSTED, "topology.hosts=[b]", "topology.here=2", "sideband.bind=10.0.0.5"])
    assert (bound.topology.replicas, bound.topology.here, bound.sideband.bind) == (3, 2, "10.0.0.5")


def test_under_a_scheduler_every_task_brings_its_replicas(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    spec = compose([*TRUSTED, "topology=hosts", "topology.here=8"])
    assert (spec.topology.replicas, spec.topology.hosts) == (32, None)
    assert compose(["model=tiny"]).topology.replicas == 2, "who does not ask for it gets a run of this task alone"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("topology=hosts",), "none has started this process"),
        (("topology.hosts=[b]", "topology.replicas=5"), "topology.hosts and topology.here make 2; leave it out"),
        (("topology.hosts=[-oProxyCommand=x]",), "is not NAME, USER@NAME or NAME:N"),
        (("topology.hosts=[b,b]",), "names b twice; b:2 is for two"),
        (("topology.hosts=[b:65]",), "'b:65' is not NAME"),
        (("topology.hosts=[b]", "topology.ssh="), "topology.ssh must be a command"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_error(words, says):
    with pytest.raises(ConfigError, match=says):
        compose([*TRUSTED, *words])


def test_a_run_that_goes_on_keeps_its_machines_and_where_its_hub_listens(tmp_path):
    spec = compose([*TRUSTED, "topology.hosts=[b:2]", "sideband.bind=127.0.0.1"])
    (tmp_path / "config.yaml").write_text(resolved_yaml(spec))
    again = compose([f"recipe={tmp_path}/config.yaml", "topology.hosts=[b,c,d]"], resumes=True)
    assert (again.topology.replicas, again.sideband.bind) == (4, "127.0.0.1")


def test_a_machine_that_joins_starts_no_others():
    assert localised(resolved_yaml(compose([*TRUSTED, "topology.hosts=[b]"])), []).topology.hosts == []


def test_other_machines_need_a_trusted_network_where_replicas_send_to_each_other():
    with pytest.raises(ConfigError, match=r"topology\.trust_network must be true"):
        compose(["model=tiny", "topology.hosts=[b]", "topology.data_plane=group"])
    assert data_plane(compose(["model=tiny", "topology.hosts=[b]"])) == "exchange"


# --- ssh ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("b", Machine("b")),
        ("u.x@b.example.org:8", Machine("u.x@b.example.org", 8)),
        ("[fd00::5]:2", Machine("fd00::5", 2)),
        ("gpu_box", Machine("gpu_box")),
        ("b:0", None),
        ("b c", None),
        ("a@b@c", None),
        ("fd00::5", None),
        ("", None),
    ],
)
def test_an_entry_names_a_machine_or_is_none(entry, found):
    assert machine(entry) == found


def test_no_secret_is_in_any_command_line_and_files_are_those_of_this_line(tmp_path):
    (tmp_path / "it's.jsonl").write_text("{}\n")
    words = [f"data={tmp_path}/it's.jsonl", "model=org/name", "topology.hosts=[b:2]", "topology.ssh=ssh -p 2222"]
    spec = compose([*TRUSTED, *words])
    argv = commands(spec)["b"]
    assert argv[:3] == ("ssh", "-p", "2222")
    assert "BatchMode=yes" in argv
    inner = shlex.split(argv[-1])[-1]
    assert "join - --yes --plain --replicas 2" in inner
    assert shlex.quote('model.path="org/name"') in inner
    assert "it's" not in inner, "the data come from the hub"
    assert "tsugi2-" not in " ".join(argv)


def test_what_the_line_names_is_what_a_joiner_may_say():
    words = own_words(compose([*TRUSTED, "model=org/name"]), "runs/joined/b")
    assert words == ['model.path="org/name"', "runs_dir=runs/joined/b"]
    assert set(OWN) < {*OWN, "runs_dir"}


def test_the_shell_there_takes_the_first_tsugi_that_is_there_in_the_same_folder(tmp_path):
    program = tmp_path / "my tsugi"
    program.write_text('#!/bin/sh\npwd; printf "%s\\n" "$@"\n')
    program.chmod(0o755)
    there = ssh(
        "env --", Machine("b"), script(["join", "-", "a=b c"], str(tmp_path), ("/nowhere/tsugi", str(program)))
    )
    ran = subprocess.run(["sh", "-c", there[-1]], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.splitlines() == [str(tmp_path), "join", "-", "a=b c"]
    none = script(["--version"], "/nowhere", ("/nowhere/tsugi",))
    assert subprocess.run(["sh", "-c", none], timeout=60, check=False).returncode == 127


@pytest.mark.parametrize(
    ("code", "words", "says"),
    [
        (127, "", "b: there is no tsugi; install it there, or say where it is: topology.remote_tsugi=PATH"),
        (255, "x\nssh: connect to host b port 22: Connection refused\n", "Connection refused; try it: ssh b true"),
        (255, "", "b: the connection has ended"),
        (-9, "step 3", "b: the connection has ended (its ssh was killed by signal 9)"),
        (4, "error: no room on the disk\n", "b: error: no room on the disk (exit code 4)"),
    ],
)
def test_why_a_machine_takes_no_part_is_one_line(code, words, says):
    assert says in reason_of(code, words, Machine("b"))


def test_all_machines_that_refuse_are_named_before_anything_starts(tmp_path):
    refuses = tmp_path / "ssh"
    refuses.write_text("#!/bin/sh\necho 'Permission denied (publickey).' >&2; exit 255\n")
    refuses.chmod(0o755)
    spec = compose([*TRUSTED, "topology.hosts=[b,c]", f"topology.ssh={refuses}"])
    with pytest.raises(LaunchError, match=r"b: Permission denied \(publickey\)\..*\n.*c: Permission"):
        check_machines(spec)
    assert words_of_join(1, [], insecure=True) == ["join", "-", "--yes", "--plain", "--insecure"]


# --- keys ---------------------------------------------------------------------------------------------------


ROLE = Role("Slurm", 1, 2, "slurm-1", "localhost")


def test_tasks_that_share_a_folder_meet_through_a_file_for_their_user_alone(tmp_path):
    meeting = Meeting.of(ROLE, tmp_path / "runs", 0, {})
    assert meeting.own_keys() is None
    hub = HubServer(hub_plan(), own := RunKeys.generate(), lambda told: None)
    try:
        meeting.publish(replace(RunKeys.generate(), address="tcp://127.0.0.1:1"))  # an earlier job's: nobody answers
        threading.Timer(0.5, lambda: meeting.publish(hub.start("127.0.0.1", 0))).start()
        keys = meeting.await_hub(60.0)
    finally:
        hub.stop()
    assert (keys.hub_public, keys.hub_secret, keys.owner_seed) == (own.hub_public, "", "")
    assert stat.S_IMODE(meeting.path.stat().st_mode) == 0o600
    replace(meeting, role=replace(ROLE, rank=0)).withdraw()
    assert not meeting.path.exists()


def test_who_finds_no_launcher_is_told_where_it_has_looked(tmp_path):
    with pytest.raises(LaunchError, match=f"has not written .*meet-slurm-1.keys; .*set {SECRET}"):
        Meeting.of(ROLE, tmp_path, 0, {}).await_hub(0.1)


def test_a_secret_makes_all_keys_of_one_job_and_leaves_the_environment(tmp_path):
    environ = {SECRET: "s" * 64}
    meeting = Meeting.of(ROLE, tmp_path, 0, environ)
    assert environ == {}
    assert meeting.port == PORT
    other = Meeting.of(replace(ROLE, job="slurm-2"), tmp_path, 0, {SECRET: "s" * 64})
    own = meeting.own_keys()
    assert own == Meeting.of(replace(ROLE, rank=0), tmp_path, 0, {SECRET: "s" * 64}).own_keys()
    assert own.hub_public != other.own_keys().hub_public
    assert own.address == f"tcp://localhost:{PORT}", "the hub must listen where the others look for it"
    hub = HubServer(hub_plan(), own, lambda told: None)
    try:
        port = int(hub.start("127.0.0.1", 0).address.rpartition(":")[2])
        keys = replace(meeting, port=port).await_hub(60.0)
    finally:
        hub.stop()
    assert (keys.hub_secret, keys.owner_seed) == ("", "")
    meeting.publish(own)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("master", "secret", "says"), [("a", "short", "at least 32"), (None, "s" * 64, "MASTER_ADDR")]
)
def test_a_secret_that_does_not_help_is_refused(tmp_path, master, secret, says):
    with pytest.raises(ConfigError, match=says) as found:
        Meeting.of(replace(ROLE, master=master), tmp_path, 0, {SECRET: secret})
    assert secret not in str(found.value).replace(SECRET, "")


# --- processes ----------------------------------------------------------------------------------------------


def test_stop_by_standard_input_is_ctrl_c_and_its_end_is_nothing():
    into, out = os.pipe()
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        os.write(out, b"tsugi2-token\n" + STOP[:2])
        assert first_line(into) == "tsugi2-token"
        with Leash(into):
            assert heard == []
            os.write(out, STOP[2:])
            await_true(lambda: heard == [signal.SIGINT], "a stop")
            os.close(out)
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(into)
    assert heard == [signal.SIGINT]


def test_joiners_get_the_token_by_stdin_say_why_they_ended_and_none_stays(tmp_path):
    waits = 'read t; echo "got $t"; read word; echo "told $word"; exit 3'
    endless = "trap '' INT TERM; while true; do sleep 0.1; done"
    joiners = Joiners(
        [
            Joiner("a", ("sh", "-c", waits), tmp_path / "logs" / "a.log"),
            Joiner("b", ("sh", "-c", "echo no >&2; exit 7"), tmp_path / "logs" / "b.log"),
            Joiner("c", ("sh", "-c", endless), tmp_path / "logs" / "c.log"),
        ]
    )
    joiners.start("secret")
    await_true(lambda: joiners.running() == ["a", "c"], "b to end")
    (ended,) = joiners.ended()
    assert (ended.joiner.name, ended.code, ended.words) == ("b", 7, "no\n")
    assert joiners.ended() == []
    joiners.ask_to_stop()
    await_true(lambda: joiners.running() == ["c"], "a to end")
    (ended,) = joiners.ended()
    assert (ended.code, ended.words) == (3, "got secret\ntold stop\n")
    joiners.stop(0.0)
    assert joiners.running() == []


# --- devices and the size of a machine ----------------------------------------------------------------------


def test_gpus_are_shared_out():
    eight = [str(each) for each in range(8)]
    assert shares(eight, 2, 4) == [("0", "1", "2", "3"), ("4", "5", "6", "7")]
    assert shares(["0", "1"], 3, 1) == [("0",), ("1",), ("0",)]
    assert shares([], 3, 1) is None
    assert visible({"CUDA_VISIBLE_DEVICES": "3, 5"}) == ["3", "5"]
    assert named("GPU-a,GPU-b") == ["GPU-a", "GPU-b"]
    with pytest.raises(ConfigError, match="--devices names 2, but 2 replicas of 2 workers need 4"):
        shares(["0", "1"], 2, 2, named=True)
    with pytest.raises(ConfigError, match="each once"):
        named("0,0")


def test_a_machine_has_workers_and_a_micro_batch_of_its_own_and_the_step_stays():
    config = resolved_yaml(compose(["model=tiny", "train.micro_batch=8", "topology.workers=2"]))
    spec = localised(config, ["topology.workers=4", "train.micro_batch=4"])
    assert (spec.topology.workers, spec.train.micro_batch, spec.train.accumulate) == (4, 4, 2)
    assert spec.train.step_samples == 8
    with pytest.raises(ConfigError, match="a step of this run has 8 samples; it must be one of 1, 2, 4, 8"):
        localised(config, ["train.micro_batch=3"])
    with pytest.raises(ConfigError, match=r"must not be below topology\.workers"):
        localised(config, ["topology.workers=4", "train.micro_batch=2"])
