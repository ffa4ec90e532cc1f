"""Stores on disk: opened again, shared between processes, damaged, copied; and the command that looks at them."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from serl_fast.replay import ReplayStore, Schema
from serl_fast.replay.__main__ import main
from tests.replay.test_large import LINUX, resident_bytes


@pytest.fixture
def schema(step):
    return Schema.from_example(step(0))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def written(path, schema, step):
    """The path of a closed store of capacity 10 that holds the steps 7 … 16, the 11th truncated."""
    with ReplayStore.open(path, schema, 10, seed=5) as store:
        for at in range(17):
            store.append(step(at, truncated=at == 11))
        store.sample(4)
    return path


def flip(file, offset):
    with open(file, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))


def append_all(store, transitions):
    for transition in transitions:
        store.append(transition)


def same_future(one, two, step):
    for at in (17, 18, 40):
        np.testing.assert_array_equal(one.sample(32)["rewards"], two.sample(32)["rewards"])
        one.append(step(at))
        two.append(step(at))
    a, b = one.state_dict(), two.state_dict()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], key)


def test_an_opened_store_goes_on(written, schema, step, check):
    memory = ReplayStore(schema, 10, seed=5)
    for at in range(17):
        memory.append(step(at, truncated=at == 11))
    memory.sample(4)
    with ReplayStore.open(written) as store:
        assert (len(store), store.capacity, store.appended, store.seed, store.draws) == (10, 10, 17, 5, 1)
        assert store.schema == schema
        check(store.batch_at(range(10)), range(7, 17))
        same_future(store, memory, step)
    with ReplayStore.open(written, schema, 10) as store:
        assert store.appended == 20


def test_what_is_given_must_agree(written, schema, step, tmp_path):
    other = Schema.from_example(step(0, labels=1))
    with pytest.raises(ValueError, match="field 'labels'"):
        ReplayStore.open(written, other)
    with pytest.raises(ValueError, match=r"the capacity is 11; the store in .* has 10"):
        ReplayStore.open(written, schema, 11)
    with pytest.raises(FileNotFoundError, match="needs a schema and a capacity"):
        ReplayStore.open(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="there is no replay store"):
        ReplayStore.open(tmp_path / "none", schema, 10, mode="r")
    assert os.listdir(tmp_path) == ["store"]
    for argument, value in [("mode", "w"), ("sync", "always"), ("verify", True), ("damaged", "ignore")]:
        with pytest.raises(ValueError, match=f"{argument} is "):
            ReplayStore.open(written, **{argument: value})
    with pytest.raises(ValueError, match="sync_interval is 0"):
        ReplayStore.open(written, sync_interval=0)
    with pytest.raises(ValueError, match="the capacity is 0"):
        ReplayStore.open(tmp_path / "none", schema, 0)


def test_on_request_and_stacks_are_kept(path, step):
    frames = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)

    def stacked(t):
        look, after = ({"front": frames[t + s : t + s + 3]} for s in (0, 1))
        return {**step(t, truncated=t == 5), "observations": look, "next_observations": after}

    schema = Schema.from_example(stacked(0), frame_stack=3, on_request=("front",))
    memory = ReplayStore(schema, 6)
    with ReplayStore.open(path, schema, 6) as store:
        for t in range(9):
            store.append(stacked(t))
            memory.append(stacked(t))
    with ReplayStore.open(path) as store:
        assert store.schema.on_request == schema.on_request
        one, two = (each.sampler(fields=("observations",)).batch_at(range(6)) for each in (store, memory))
        np.testing.assert_array_equal(one["observations"]["front"], two["observations"]["front"])


def test_one_writes_many_read(path, schema, step, check):
    store = ReplayStore.open(path, schema, 10)
    store.append(step(0))
    with pytest.raises(BlockingIOError, match="this process writes to the store already"):
        ReplayStore.open(path)
    with ReplayStore.open(path, mode="r") as reader:
        for at in range(1, 30):
            store.append(step(at))
        check(reader.batch_at(range(10)), range(20, 30))
        assert reader.sample(4)["rewards"].min() >= 20
        for change in (lambda: reader.append(step(30)), lambda: reader.relabel("rewards", [25], [1.0])):
            with pytest.raises(ValueError, match="opened for reading"):
                change()
        with pytest.raises(ValueError, match=r"opened for reading .*; change it in the process"):
            reader.prioritize()
    code = f"from serl_fast.replay import ReplayStore; ReplayStore.open({os.fspath(path)!r})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"process {os.getpid()} writes to the store already" in other.stderr
    store.close()
    with pytest.raises(ValueError, match="was closed"):
        store.append(step(30))
    ReplayStore.open(path).close()


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_forked_child_samples_but_does_not_append(path, schema, step):
    store = ReplayStore.open(path, schema, 10)
    for at in range(15):
        store.append(step(at))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "no error"
        try:
            rewards = store.batch_at(range(10))["rewards"].tolist()
            try:
                store.append(step(15))
            except ValueError as error:
                answer = str(error)
        finally:
            os.write(write, json.dumps([rewards, answer]).encode())
            os._exit(0)
    os.waitpid(child, 0)
    rewards, answer = json.loads(os.read(read, 10000))
    os.close(read)
    os.close(write)
    assert rewards == list(range(5, 15))
    assert f"is written by process {os.getpid()}, of which this one is a fork" in answer
    store.append(step(15))
    store.close()


def test_spawned_processes_open_the_path(path, schema, step):
    store = ReplayStore.open(path, schema, 10)
    store.append(step(3))
    with pytest.raises(TypeError, match=r"ReplayStore\.open\(path, mode='r'\)"):
        pickle.dumps(store)
    code = (
        "import sys; from serl_fast.replay import ReplayStore\n"
        "store = ReplayStore.open(sys.argv[1], mode='r'); print(store.sample(2)['rewards'].tolist(), flush=True)\n"
        "input(); print(store.batch_at([1])['rewards'].tolist(), flush=True)"
    )
    command = [sys.executable, "-c", code, os.fspath(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline().strip() == "[3.0, 3.0]"
        store.append(step(4))
        assert child.communicate("\n")[0].strip() == "[4.0]"
    store.close()


def test_relabelled_values_stay_and_states_are_refused(written, step):
    with ReplayStore.open(written) as store:
        assert store.relabel("rewards", [8, 9, 1], [80.0, 90.0, 10.0]) == 2
        with pytest.raises(ValueError, match="a store in files takes no state"):
            store.load_state_dict(store.state_dict())
        store.prioritize()
        assert store.sampler(order="prioritized").sample(4)["weights"].shape == (4,)
    with ReplayStore.open(written, verify="all") as store:
        np.testing.assert_array_equal(store.batch_at([1, 2, 3])["rewards"], [80, 90, 10])


@pytest.mark.parametrize("sync", ["none", "interval", "each"])
def test_sync_levels(path, schema, step, check, sync):
    with ReplayStore.open(path, schema, 10, sync=sync, sync_interval=0.001) as store:
        for at in range(25):
            store.append(step(at))
        store.flush()
        check(store.batch_at(range(10)), range(15, 25))
    ReplayStore.open(path, verify="all").close()


def test_a_full_disk(path, schema, step, check):
    """A limit on the size of files stands for the end of the disk."""
    store = ReplayStore.open(path, schema, 100000)
    store.append(step(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"there is no room for \d+ more bytes; nothing was stored"):
            append_all(store, map(step, range(1, 100000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    at = len(store)
    assert 100 < at < 100000
    check(store.batch_at(range(at)), range(at))
    store.append(step(at))
    store.close()
    with ReplayStore.open(path, verify="all") as store:
        check(store.batch_at(range(at + 1)), range(at + 1))


def test_damage_is_named_or_skipped(written, check):
    flip(written / "records.0", 128 + 3)
    with (
        ReplayStore.open(written) as store,
        pytest.raises(ValueError, match=r"records\.0, byte 128: .*; open the store with damaged='skip'"),
    ):
        store.batch_at(range(10))
    with pytest.raises(ValueError, match="so step"):
        ReplayStore.open(written, verify="all")
    with pytest.raises(ValueError, match="so step"):
        ReplayStore.load(written)
    with ReplayStore.open(written, damaged="skip") as store:
        lost = {damage.id for damage in store.verify()}
        assert 1 <= len(lost) <= 2
        for sampler in (store.sampler(), store.sampler(order="epoch")):
            rewards = sampler.sample(200)["rewards"]
            assert set(rewards.tolist()) == set(range(7, 17)) - lost
        (age, *_) = (id - store.first_id for id in lost)
        for ask in (lambda: store.batch_at(range(10)), lambda: store[age]):
            with pytest.raises(ValueError, match=r"so step .*; samplers pass over such steps"):
                ask()
        store.prioritize()
        assert not lost & set(store.sampler(order="prioritized").sample(300)["ids"].tolist())
        store.snapshot(written.with_name("copy"))
    loaded = ReplayStore.load(written.with_name("copy"))
    check(loaded.batch_at(range(len(loaded))), [at for at in range(7, 17) if at not in lost])


def test_nothing_left(path, schema, step):
    with ReplayStore.open(path, schema, 10) as store:
        store.append(step(0))
    flip(path / "journal", 3)
    with (
        ReplayStore.open(path, damaged="skip") as store,
        pytest.raises(ValueError, match="every transition of the store is damaged"),
    ):
        store.sample(2)


def test_no_sequence_left(path, schema, step):
    with ReplayStore.open(path, schema, 10) as store:
        for at in range(9):
            store.append(step(at))
    for at in (2, 5, 8):
        flip(path / "journal", at * 32)
    with ReplayStore.open(path, damaged="skip") as store:
        store.sample(2)
        for sampler in (store.sampler(sequence_length=3), store.sampler(order="epoch", sequence_length=3)):
            with pytest.raises(ValueError, match="no sequence of 3 undamaged transitions"):
                sampler.sample(2)


def test_damaged_checksums_are_named(written):
    flip(written / "checksums", 4 * 3)
    with ReplayStore.open(written, mode="r", damaged="skip") as store:
        found = store.verify()
    assert {(damage.file, damage.offset) for damage in found} == {("checksums", 12)}
    assert "the checksum of observation record 3 is damaged" in found[0].what


def test_a_path_with_a_zero_byte(schema, step, tmp_path):
    store = ReplayStore(schema, 10)
    bad = f"{tmp_path}/a\0b"
    for use in (lambda: ReplayStore.open(bad, schema, 10), lambda: ReplayStore.load(bad), lambda: store.snapshot(bad)):
        with pytest.raises(ValueError, match="zero byte"):
            use()
    assert os.listdir(tmp_path) == []


def test_an_unknown_format(written):
    content = bytearray((written / "header").read_bytes())
    content[8] = content[len(content) // 2 + 8] = 9
    (written / "header").write_bytes(content)
    with pytest.raises(ValueError, match="it has format 9; this version of serl_fast reads format 1"):
        ReplayStore.open(written)


def test_snapshots_go_on_exactly(schema, step, tmp_path):
    store = ReplayStore(schema, 10, seed=5)
    for at in range(17):
        store.append(step(at, truncated=at == 11))
    store.sample(4)
    store.snapshot(tmp_path / "snapshot")
    store.snapshot(str(tmp_path / "snapshot"))  # over the old one
    assert os.listdir(tmp_path) == ["snapshot"]
    loaded = ReplayStore.load(tmp_path / "snapshot")
    assert (loaded.capacity, loaded.schema, loaded.draws) == (10, schema, 1)
    same_future(store, loaded, step)
    with ReplayStore.open(tmp_path / "snapshot") as opened:
        assert opened.appended == 17


def test_a_snapshot_replaces_stores_alone(schema, step, tmp_path, path):
    store = ReplayStore(schema, 10)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match="is no replay store; a snapshot does not replace it"):
            store.snapshot(tmp_path / name)
    with (
        ReplayStore.open(path, schema, 10) as other,
        pytest.raises(BlockingIOError, match="take the snapshot to another path"),
    ):
        other.snapshot(path)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder) if (folder / name).is_file()}


def refuses(store, path, message):
    before = contents(path)
    with pytest.raises(ValueError, match=message):
        store.snapshot(path)
    assert contents(path).keys() >= before.keys()
    assert all(contents(path)[name] == content for name, content in before.items())


def test_a_snapshot_spares_what_is_not_one(schema, step, tmp_path):
    store = ReplayStore(schema, 10)
    store.append(step(0))
    foreign = tmp_path / "run2"
    foreign.mkdir()
    (foreign / "header").write_text("SERL")
    (foreign / "keep").write_text("1")
    refuses(store, foreign, "is no replay store: .* does not replace it: give another path")
    assert sorted(os.listdir(foreign)) == ["header", "keep"]  # not even a lock was made there
    mine = tmp_path / "mine"
    store.snapshot(mine)
    (mine / "notes.txt").write_text("mine")
    refuses(store, mine, "holds 'notes.txt', which is no file of a replay store; .* move 'notes.txt' away")
    (mine / "notes.txt").unlink()
    (mine / "checkpoints").mkdir()
    refuses(store, mine, "holds 'checkpoints'")
    (mine / "checkpoints").rmdir()
    store.snapshot(mine)
    for place in (200, (mine / "header").stat().st_size // 2 + 200):
        flip(mine / "header", place)
    refuses(store, mine, "header: its checksum is wrong; a snapshot does not replace it")
    assert sorted(os.listdir(tmp_path)) == ["mine", "run2"]


def test_a_snapshot_spares_other_stores(schema, step, tmp_path, written):
    store = ReplayStore(schema, 10)
    store.append(step(0))
    refuses(store, written, "a store that open.. made .* does not replace it: give another path")
    other = ReplayStore(Schema.from_example(step(0, labels=1)), 10)
    other.append(step(0, labels=1))
    other.snapshot(tmp_path / "other")
    refuses(store, tmp_path / "other", "has a field 'labels', .* does not replace it")
    store.snapshot(tmp_path / "mine")
    ReplayStore.open(tmp_path / "mine").close()
    ReplayStore.open(tmp_path / "mine", mode="r").close()
    store.snapshot(tmp_path / "mine")  # it was looked at and is what it was
    with ReplayStore.open(tmp_path / "mine") as opened:
        opened.append(step(1))
    refuses(store, tmp_path / "mine", "changed since its snapshot")
    store.snapshot(tmp_path / "second")
    with ReplayStore.open(tmp_path / "second") as opened:
        opened.relabel("rewards", [0], [1.0])
    refuses(store, tmp_path / "second", "changed since its snapshot")


def test_a_snapshot_follows_links(schema, step, tmp_path):
    store = ReplayStore(schema, 10)
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to("disk/snapshot")
    with pytest.raises(FileNotFoundError, match="a symbolic link that leads nowhere"):
        store.snapshot(link)
    store.snapshot(tmp_path / "disk" / "snapshot")
    store.append(step(0))
    store.snapshot(link)
    assert link.is_symlink()
    assert len(ReplayStore.load(tmp_path / "disk" / "snapshot")) == 1
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]
    assert os.listdir(tmp_path / "disk") == ["snapshot"]


def test_snapshots_while_another_thread_reads_them(schema, step, tmp_path):
    store = ReplayStore(schema, 10)
    store.append(step(0))
    store.snapshot(tmp_path / "snapshot")
    stop = threading.Event()

    def look():
        while not stop.is_set():
            main(["inspect", os.fspath(tmp_path / "snapshot")])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(30):
            store.snapshot(tmp_path / "snapshot")  # a reader that is just opening it is no writer
    finally:
        stop.set()
        thread.join()


def test_left_overs_are_removed_but_for_strange_files(schema, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for number, name in enumerate(("records.0", "keep")):
        folder = tmp_path / f".snapshot.{child.pid}.{number}.tmp"
        folder.mkdir()
        (folder / name).write_text("")
    ReplayStore(schema, 10).snapshot(tmp_path / "snapshot")
    assert sorted(os.listdir(tmp_path)) == [f".snapshot.{child.pid}.1.tmp", "snapshot"]


def test_a_snapshot_that_fails_leaves_the_old_one(schema, step, tmp_path):
    store = ReplayStore(schema, 5000)
    store.append(step(0))
    store.snapshot(tmp_path / "snapshot")
    for at in range(1, 3000):
        store.append(step(at))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="no room"):
            store.snapshot(tmp_path / "snapshot")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["snapshot"]
    assert ReplayStore.load(tmp_path / "snapshot").appended == 1


def test_a_snapshot_while_training_goes_on(schema, step, tmp_path):
    store = ReplayStore(schema, 200)
    stop = threading.Event()

    def train():
        at = 0
        while not stop.is_set():
            store.append(step(at))
            store.sample(8)
            at += 1

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(10):
            store.snapshot(tmp_path / "snapshot")
            rewards = ReplayStore.load(tmp_path / "snapshot").state_dict()["steps/rewards"]
            np.testing.assert_array_equal(np.diff(rewards), 1)
            time.sleep(0.02)
    finally:
        stop.set()
        thread.join()


@LINUX
def test_reopening_reads_no_column(path, step):
    """400 of 20 000 image transitions, 20 MB: only the small files are read."""
    observation = np.zeros((128, 128, 3), np.uint8)
    example = step(0) | {"observations": {"front": observation}, "next_observations": {"front": observation}}
    with ReplayStore.open(path, Schema.from_example(example), 20000) as store:
        columns = {
            key: np.broadcast_to(np.asarray(value), (100, *np.shape(value)))
            for key, value in example.items()
            if "observations" not in key
        }
        frames = {"front": np.zeros((100, *observation.shape), np.uint8)}
        for _ in range(4):
            store.extend({**columns, "observations": frames, "next_observations": frames})
        size = (path / "records.0").stat().st_size
        assert size < 30e6  # files grow with what they hold
    del store
    before = resident_bytes()
    with ReplayStore.open(path, mode="r") as store:
        assert len(store) == 400
        assert resident_bytes() - before < 10e6


def test_truncated_and_missing_files(written, tmp_path, capsys):
    refused = []
    for name in sorted(os.listdir(written)):
        size = (written / name).stat().st_size
        for length in (None, 0, 1, size // 3, max(size - 1, 0)):
            bad = tmp_path / "bad"
            shutil.rmtree(bad, ignore_errors=True)
            shutil.copytree(written, bad)
            if length is None:
                (bad / name).unlink()
            else:
                os.truncate(bad / name, length)
            for mode in ("r", "a"):
                try:
                    store = ReplayStore.open(bad, mode=mode, damaged="skip")
                except (ValueError, OSError) as error:
                    refused.append(str(error))
                    continue
                lost = {damage.id for damage in store.verify()}
                if len(lost) < len(store):
                    assert not lost & set(store.sampler(ids=True).sample(50)["ids"].tolist())
                store.close()
            main(["verify", os.fspath(bad)])
    assert all(os.fspath(tmp_path / "bad") in message for message in refused)
    capsys.readouterr()


def test_the_command(written, tmp_path, capsys, check):
    assert main(["inspect", os.fspath(written)]) == 0
    said = capsys.readouterr().out
    for part in ("observations/front", "uint8 (4, 5, 3)", "10 of 10 transitions, 17 ever", "2 episodes", "closed by"):
        assert part in said
    assert main(["verify", os.fspath(written)]) == 0
    assert "0 of 10 transitions are damaged" in capsys.readouterr().out
    assert main(["export", os.fspath(written), os.fspath(tmp_path / "all.npz")]) == 0
    with np.load(tmp_path / "all.npz") as arrays:
        np.testing.assert_array_equal(arrays["rewards"], range(7, 17))
        np.testing.assert_array_equal(arrays["next_observations/state"][:, 0], range(8, 18))
        assert arrays["observations/front"].shape == (10, 4, 5, 3)
        assert "masks" in arrays
        assert "discounts" not in arrays  # nobody gave a discount
    assert main(["export", os.fspath(written), os.fspath(tmp_path / "all.npz")]) == 1
    assert "all.npz exists; give the path of a new file" in capsys.readouterr().err
    for name in ("new/folder/all.NPZ", "new/other/store"):
        assert main(["export", os.fspath(written), os.fspath(tmp_path / name)]) == 0
    with np.load(tmp_path / "new/folder/all.NPZ") as arrays:
        assert len(arrays["rewards"]) == 10
    assert len(ReplayStore.load(tmp_path / "new/other/store")) == 10
    flip(written / "journal", 12 * 32)
    assert main(["verify", os.fspath(written)]) == 1
    said = capsys.readouterr().out
    assert "transition 12: journal, byte 384: the entry of the step is damaged" in said
    assert main(["export", os.fspath(written), os.fspath(tmp_path / "good")]) == 0
    assert "9 of 10 transitions are in" in capsys.readouterr().out
    loaded = ReplayStore.load(tmp_path / "good")
    check(loaded.batch_at(range(9)), [7, 8, 9, 10, 11, 13, 14, 15, 16])
    assert main(["export", os.fspath(written), os.fspath(tmp_path / "good")]) == 1
    assert "exists; give the path of a new folder" in capsys.readouterr().err


def test_the_command_tells_a_damaged_header(written, schema, tmp_path, capsys):
    half = (written / "header").stat().st_size // 2
    for place in (200, half + 200):
        flip(written / "header", place)
        assert main(["verify", os.fspath(written)]) == 1
        said = capsys.readouterr().out
        assert f"header, byte {place - 200}: this copy of the header is damaged" in said
        assert "0 of 10 transitions are damaged" in said
        assert main(["inspect", os.fspath(written)]) == 0
        said = capsys.readouterr().out
        assert "this copy of the header is damaged" in said
        assert "killed" not in said
        flip(written / "header", place)
    flip(written / "header", 200)
    ReplayStore.open(written).close()  # writes both copies
    assert main(["verify", os.fspath(written)]) == 0
    with ReplayStore.open(tmp_path / "new", schema, 10):
        assert main(["verify", os.fspath(tmp_path / "new")]) == 0
    capsys.readouterr()


def test_the_command_on_garbage(tmp_path, capsys):
    for name, content in (("empty", b""), ("text", b"hello"), ("zeros", bytes(10000))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "header").write_bytes(content)
        for command in ("inspect", "verify"):
            assert main([command, os.fspath(folder)]) == 1
            said = capsys.readouterr().err
            assert said.startswith(f"error: {folder} is no replay store")
    (tmp_path / "foreign").mkdir()
    for command in (["inspect"], ["verify"], ["export"]):
        more = [os.fspath(tmp_path / "all.npz")] if command == ["export"] else []
        assert main([*command, os.fspath(tmp_path / "foreign"), *more]) == 1
        assert capsys.readouterr().err == f"error: {tmp_path / 'foreign'} is no replay store\n"
    assert main(["inspect", os.fspath(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent'} does not exist\n"


def test_a_killed_process_is_told_from_one_that_closed(path, schema, capsys):
    code = (
        "import sys, os, signal; from serl_fast.replay import ReplayStore, Schema\n"
        "store = ReplayStore.open(sys.argv[1], Schema.from_json(sys.argv[2]), 10)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, os.fspath(path), schema.to_json()]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert main(["inspect", os.fspath(path)]) == 0
    assert "not closed: its last writer was killed" in capsys.readouterr().out
