"""Two processes of two simulated devices train one network, as one process of four does, and go down and on together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxseg.errors import InputError
from jaxseg.training import distributed
from tests.runs import call

LIMIT_S = 300  # for what takes half a minute on two idle cores


def start(folder, camvid_dir, *, processes, devices, more=()):
    """The main command as several processes; {process: (child, file of what it says)}."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fields = {"source_dir": camvid_dir, "dir": folder.parent / "data", "size_px": 36, "crop_px": 32, "threads": 2}
    words = ["--config=configs/unet_camvid.py", f"--workdir={folder}", "--config.model.features=4"]
    words += [f"--config.data.{name}={value}" for name, value in fields.items()]
    words += ["--config.train.batch_size=4", "--config.train.epochs=200", "--config.train.log_every_steps=1"]
    words += ["--config.eval.every_epochs=2", "--config.eval.batch_size=4"]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "COLUMNS": "80"}
    children = {}
    for process in range(processes):
        place = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={process}"]
        command = [sys.executable, "-m", "jaxseg.main", *words, *(place if processes > 1 else []), *more]
        said = folder.parent / f"{folder.name}-{process}.log"
        with said.open("w") as file:
            children[process] = subprocess.Popen(command, stdout=file, stderr=file, env=environment), said
    return children


def lines(path):
    """Whole lines of a log that another process may be writing."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def wait_for(condition, children):
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "\n".join(said.read_text() for _, said in children.values())
        assert all(child.poll() is None for child, _ in children.values()) or condition(), "\n".join(
            said.read_text() for _, said in children.values()
        )
        time.sleep(0.05)


def statuses(children, limit_s=LIMIT_S):
    try:
        return [child.wait(limit_s) for child, _ in children.values()]
    finally:
        for child, _ in children.values():
            child.kill()


def compare(found, expected):
    """Losses: the first step to float32 rounding, later ones as far as rounding grows (as for four devices and one)."""
    assert [line["step"] for line in found] == [line["step"] for line in expected[: len(found)]]
    losses, wanted = ([line["unet/loss"] for line in some] for some in (found, expected[: len(found)]))
    np.testing.assert_allclose(losses[0], wanted[0], rtol=1e-6)
    np.testing.assert_allclose(losses[1:6], wanted[1:6], rtol=2e-3)


@pytest.fixture(scope="module")
def undisturbed(camvid_dir, tmp_path_factory):
    """Lines of train.jsonl and eval.jsonl of one process with one device."""
    folder = tmp_path_factory.mktemp("hosts") / "one"
    assert statuses(start(folder, camvid_dir, processes=1, devices=1, more=["--config.train.max_steps=15"])) == [0]
    return lines(folder / "train.jsonl"), lines(folder / "eval.jsonl")


@pytest.mark.slow
def test_hosts_train_as_one_go_down_and_go_on_together(camvid_dir, tmp_path, undisturbed):
    """Slow: six processes that train, are killed and start again."""
    run, more = tmp_path / "run", ["--config.checkpoint.every_steps=2"]
    train, evaluated = undisturbed

    # One host is killed: the other one says so and ends.
    children = start(run, camvid_dir, processes=2, devices=2, more=more)
    wait_for(lambda: len(lines(run / "train.jsonl")) > 5, children)
    children[1][0].kill()
    killed = time.monotonic()
    status = statuses(children, 60)[0]
    assert time.monotonic() - killed < 60
    said = children[0][1].read_text()
    assert (
        status == 5 and "another host is gone: this one, 0 of 2, was waiting" in said
    ) or "another task died" in said
    compare(lines(run / "train.jsonl"), train)
    compared = lines(run / "eval.jsonl")[0]
    assert compared["step"] == evaluated[0]["step"] == 5
    assert abs(compared["unet/pixel_accuracy"] - evaluated[0]["unet/pixel_accuracy"]) < 0.01

    # They go on; one hears SIGTERM, and both save the same step.
    before = len(lines(run / "train.jsonl"))
    children = start(run, camvid_dir, processes=2, devices=2, more=more)
    wait_for(lambda: len(lines(run / "train.jsonl")) > before + 2, children)
    children[1][0].terminate()
    assert statuses(children) == [128 + signal.SIGTERM] * 2
    ends = {said.read_text().splitlines()[-1] for _, said in children.values()}
    last = lines(run / "train.jsonl")[-1]["step"]
    assert ends == {f"stopped: step {last} is saved in {run}; the same command goes on"}
    assert str(last) in os.listdir(run / "checkpoints")

    # Another number of processes goes on from there, in the same order of data.
    steps = last + 2
    children = start(run, camvid_dir, processes=1, devices=4, more=[*more, f"--config.train.max_steps={steps}"])
    assert statuses(children) == [0], children[0][1].read_text()
    found = lines(run / "train.jsonl")
    assert [line["step"] for line in found] == list(range(1, steps + 1))
    compare(found[: len(train)], train)


@pytest.mark.slow
def test_hosts_end_early_together(camvid_dir, tmp_path):
    """With an average, clipped; nothing is learned, but statistics move, so the best may come late. Started again, both
    leave at once. Slow: four processes that train."""
    run = tmp_path / "run"
    fields = {"optim.learning_rate": 0.0, "optim.ema_decay": 0.9, "optim.clip_norm": 1.0, "eval.patience": 1}
    more = [f"--config.{name}={value}" for name, value in (fields | {"train.max_steps": 60}).items()]
    for _ in range(2):
        children = start(run, camvid_dir, processes=2, devices=2, more=more)
        assert statuses(children) == [0, 0], "\n".join(said.read_text() for _, said in children.values())
        results = json.loads((run / "results.json").read_text())
        evaluated = [line["unet/mean_iou"] for line in lines(run / "eval.jsonl")]
        assert "in 1 evaluations (config.eval.patience=1)" in results["ended_early"]
        assert results["step"] == lines(run / "train.jsonl")[-1]["step"] == 5 * len(evaluated) < 60
        assert evaluated[-1] <= max(evaluated[:-1])


@pytest.mark.slow
def test_a_host_of_another_config_stops_all(camvid_dir, tmp_path):
    """Each says which host has what; none waits for another that has left.

    Slow: two processes that wait for each other.
    """
    one = start(tmp_path / "run", camvid_dir, processes=2, devices=1, more=["--config.train.max_steps=2"])
    one[1][0].kill()
    one[1][0].wait()
    command = [f"{word}" for word in one[1][0].args] + ["--config.optim.learning_rate=0.5"]
    with one[1][1].open("w") as file:
        environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
        one[1] = subprocess.Popen(command, stdout=file, stderr=file, env=environment), one[1][1]
    assert statuses(one) == [2, 2]
    line = "config.optim.learning_rate: 0.001 there, 0.5 now"
    for process, begins in ((0, "error: on host 1: another config than"), (1, "error: another config than")):
        said = one[process][1].read_text()
        assert begins in said
        assert line in said


PROGRAM = """
import json, sys
from jaxseg.errors import InputError
from jaxseg.training import distributed
distributed.join()
import jax
me = jax.process_index()
found = {"processes": jax.process_count(), "devices": jax.device_count(), "first": distributed.is_primary_host()}
found["broadcast_from_primary"] = distributed.broadcast_from_primary(7 + me)
found["gathered"] = distributed.gather("ü" * me)
found["raise_on_all_hosts"] = distributed.raise_on_all_hosts(lambda: 10 + me)
found["run_on_primary"] = distributed.run_on_primary(lambda: "only me")
def fail():
    if me == 1:
        raise InputError("no data here")
try:
    distributed.raise_on_all_hosts(fail)
except InputError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


def test_the_places_that_slurm_gives_and_what_hosts_agree_on():
    """SLURM's variables for two tasks on this machine; the port follows from the job's number."""
    children = []
    for task in range(2):
        job = {"JOB_ID": str(os.getpid()), "STEP_NODELIST": "127.0.0.1", "NTASKS": "2"}
        job |= {"PROCID": str(task), "LOCALID": str(task)}
        environment = os.environ | {f"SLURM_{name}": value for name, value in job.items()}
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        children.append(
            subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, env=environment)
        )
    first, second = (json.loads(child.communicate(timeout=LIMIT_S)[0].splitlines()[-1]) for child in children)
    alike = {"processes": 2, "devices": 4, "broadcast_from_primary": 7, "gathered": ["", "ü"]}
    assert first == alike | {
        "first": True,
        "raise_on_all_hosts": 10,
        "run_on_primary": "only me",
        "error": "on host 1: no data here",
    }
    assert second == alike | {"first": False, "raise_on_all_hosts": 11, "run_on_primary": None, "error": "no data here"}


def test_hosts_that_do_not_find_each_other_are_told():
    program = "from jaxseg.training import distributed; distributed.join()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "InputError: --distributed, with no more flags: the hosts did not find each other" in done.stderr
    assert "give --coordinator=HOST:PORT --processes=N --process=I." in done.stderr


def test_a_place_without_distributed_is_refused():
    done = call("jaxseg.main", "--config=configs/demo.py", "--process=1")
    assert done.returncode == 2
    assert "--process=1 without --distributed; add it, or drop it." in done.stderr


def test_one_host_alone_asks_nobody():
    assert distributed.is_primary_host()
    assert distributed.broadcast_from_primary(7) == 7
    assert distributed.raise_on_all_hosts(lambda: 3) == distributed.run_on_primary(lambda: 3) == 3
    with pytest.raises(InputError, match="mine"):
        distributed.raise_on_all_hosts(fail)


def fail():
    raise InputError("mine")
