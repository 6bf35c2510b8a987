"""The command for the first user with several cards, rehearsed on gloo: it passes, and it says what is wrong."""

import json
import os
import socket
import time

import pytest

from brine.training.parallel import cluster_numerics as cluster_math
from brine.training.parallel.check_cluster import main, table
from brine.training.parallel.distributed import World
from tests.forked import Command

pytestmark = pytest.mark.slow


def start(size: int, *options: str, code: str = "", ranks: list[int] | None = None) -> list[Command]:
    """Ranks as torchrun starts them, without its seconds; code: run in each before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    main = f"sys.exit(check_cluster.main({list(options)!r}))"
    run = f"import sys; from brine.training.parallel import check_cluster; {code or None}; {main}"
    found = []
    for rank in range(size) if ranks is None else ranks:
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        found.append(Command(["-c", run], env=environment, errors_apart=True))
    return found


def ended(processes: list[Command]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=150)
        found.append((process.returncode, out, err))
    return found


def test_four_ranks_on_gloo_pass(tmp_path):
    file = tmp_path / "check.json"
    found = ended(start(4, "--device", "cpu", "--json", str(file)))
    assert [code for code, _, _ in found] == [0] * 4, found
    out = found[0][1]
    assert not any("Warning" in err for _, _, err in found), found
    assert out.count("PASS") == 4 and "FAIL" not in out and all(not each for _, each, _ in found[1:])
    assert f"rank 3: {socket.gethostname()}" in out and "gloo" in out
    report = json.loads(file.read_text())
    assert report["passed"] and [check["passed"] for check in report["checks"]] == [True] * 4
    speeds = report["links"]["pairs_gb_per_s"]
    assert len(speeds) == 12 and all(speed > 0 for each in speeds.values() for speed in each.values())
    assert json.loads(out.splitlines()[-1]) == {"passed": True, "ranks": 4, "checks": 4}


def test_a_wrong_sum_of_two_ranks_fails_and_the_other_checks_go_on():
    """Rank 1's part of each reduce_scatter is diverged, until the model's."""
    code = (
        "import torch.distributed as dist; true, calls = dist.reduce_scatter_tensor, []; "
        "dist.reduce_scatter_tensor = lambda out, *a, **k: "
        "(true(out, *a, **k), calls.append(1), out.add_(dist.get_rank()) if len(calls) == 1 else None)[0]"
    )
    found = ended(start(2, "--device", "cpu", code=code))
    assert [code for code, _, _ in found] == [1, 1], found
    lines = found[0][1].splitlines()
    (failed,) = [line for line in lines if line.startswith("FAIL")]
    assert "rank 1: reduce_scatter of float32 gave wrong numbers" in failed
    assert sum(line.startswith("PASS") for line in lines) == 3 and "rank 0:" not in failed


def test_a_rank_that_hangs_is_named():
    code = (
        "import time; true = check_cluster.collectives; "
        "check_cluster.collectives = lambda world, device: "
        "time.sleep(99) if world.rank == 1 else true(world, device)"
    )
    began = time.monotonic()
    found = ended(start(2, "--device", "cpu", "--no-links", "--timeout", "6", code=code))
    assert found[0][0] != 0 and time.monotonic() - began < 90
    told = found[0][2] + found[1][2]
    assert "FAIL  checking collectives give the right numbers: did not end in 6 s" in told
    assert "last seen" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--timeout", "-1"], "give seconds"), (["--json", "/proc/none/x.json"], "cannot be written")],
)
def test_a_mistake_in_the_command_is_told_before_anything_is_checked(words, told, capsys):
    assert main(words) == 2 and told in capsys.readouterr().err


def test_a_wrong_ring_is_found(monkeypatch):
    """The same comparison in one process: what is compared must be right, and close to what one rank gives."""
    assert cluster_math.ring_errors(World(), "cpu") is None and cluster_math.sharding_errors(World(), "cpu") is None
    true = cluster_math._attended
    calls = []

    def spoilt(inputs, spans, **options):
        found = true(inputs, spans, **options)
        calls.append(options)
        # truth, one rank, all ranks
        return [x + 1e-6 * (len(calls) == 3) for x in found]

    monkeypatch.setattr(cluster_math, "_attended", spoilt)
    assert "out of one document, float64: error" in cluster_math.ring_errors(World(), "cpu")


def test_a_rank_alone_is_told_what_to_start(capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main(["--device", "cpu"]) == 2
    assert "needs at least two ranks: torchrun --nproc-per-node 2" in capsys.readouterr().err


def test_the_table_has_every_pair():
    links = {
        "pairs_gb_per_s": {"0->1": {"4096": 1.25, "262144": 2.5}, "1->0": {"4096": 1.0, "262144": 40.126}},
        "all_reduce_bus_gb_per_s": {"4096": 0.5, "262144": 3.0},
    }
    lines = table(links, 2)
    assert lines[0] == "GB/s from rank (down) to rank (across), 0.25 MiB:"
    assert lines[2].split() == ["0", "-", "2.50"] and lines[3].split() == ["1", "40.13", "-"]


def test_help_names_the_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and "--nproc-per-node 8 -m brine check-cluster --json" in text
    for option in ("--device", "--timeout", "--no-links", "--json"):
        assert option in text


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--devise", "cpu"])
    assert left.value.code == 2 and "--devise" in capsys.readouterr().err
