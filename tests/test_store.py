"The store: damage is found, files lie where they must, a hash is enough, leftovers go, a network leaves as its maker knows it."
import errno
import json
import os
import random
import shutil
import time
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from held import held
from safetensors.torch import load_file, save_file

from calibkd import checkpoints, store as store_module
from calibkd.calibrators import MDCA, TS
from calibkd.checkpoints import read_note, read_sealed, resume, write_sealed
from calibkd.data import Dataset
from calibkd.export import export
from calibkd.inference import logits_of
from calibkd.networks.core import network
from calibkd.places import device
from calibkd.runs import Recipe, Run, Weights, canonical
from calibkd.store import Store, faults, rebuild
from calibkd.sweep import train
from calibkd.training import Member, fit

DATA, RECIPE = Dataset("digits", train=200), Recipe(epochs=3, batch=64, precision="fp32")
RUN, OTHER = Run(DATA, "resnet8", recipe=RECIPE), Run(DATA, "resnet8", MDCA(), RECIPE)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A store with two runs, and their last checkpoints: after two epochs of three"
    folder = tmp_path_factory.mktemp("made")
    store, paths = Store(folder / "store"), {r: folder / f"{r.id}.safetensors" for r in (RUN, OTHER)}
    fit([*paths], DATA.load(), checkpoints=[*paths.values()], keep=lambda m: store.put(m, DATA.load()))
    return store, paths


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made[0].root, tmp_path / "copy")
    return Store(tmp_path / "copy")


def flip(data: bytes, draw) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1:]


HARM = {
    "a bit": flip, "cut short": lambda d, draw: d[:draw.randrange(len(d))], "empty": lambda d, draw: b"", "longer": lambda d, draw: d + b"\0",
    "zeros": lambda d, draw: bytes(len(d)), "noise": lambda d, draw: draw.randbytes(len(d)), "deep": lambda d, draw: b"[" * 100_000,
    "a list": lambda d, draw: b"[1, 2]", "a beginning": lambda d, draw: draw.randbytes(16) + d[16:],
}


def harm_entry(entry, other, draw):
    "Mangle one file of an entry in one of many ways"
    path = draw.choice(sorted(entry.iterdir()))
    kind = draw.choice([*HARM, "a bit", "a bit", "gone", "a folder", "another run's", "all another run's", "half another run's"])
    if kind in HARM: path.write_bytes(HARM[kind](path.read_bytes(), draw))
    elif kind in ("gone", "a folder"):
        path.unlink()
        if kind == "a folder": path.mkdir()
    else:
        alike = [p for p in entry.iterdir() if kind == "all another run's" or p == path or kind[0] == "h" and p.name == "manifest.json"]
        for p in alike: shutil.copy(other / p.name, p)
    return f"{path.name}: {kind}"


def test_five_hundred_mangled_entries_are_found(made, tmp_path):
    draw, store, mended = random.Random(0), Store(tmp_path / "store"), made[0].entry(RUN)
    for i in range(500):
        shutil.copytree(mended, store.entry(RUN))
        what = harm_entry(store.entry(RUN), made[0].entry(OTHER), draw)
        with pytest.warns(UserWarning, match=f"{RUN.id}.*damaged"): assert not store.holds(RUN), what
        assert not store.hashes() and not store.runs()
    assert len([*(store.root / "damaged").iterdir()]) == 500


def harmed_checkpoints(paths, tmp_path):
    "Two hundred mangled checkpoints, one after the other, with a word on what is wrong"
    draw, path, whole = random.Random(0), tmp_path / "checkpoint.safetensors", paths[RUN].read_bytes()
    tensors, note = read_sealed(paths[RUN])
    for key, value in [("epoch", e) for e in (-1, 0, 4, 10**9, 1, 2.0, "2", True, None, [2])] + [("epochs", 10**9), ("epochs", 2), ("run", OTHER.id),
                      ("run", None), ("history", []), ("history", None), ("history", note["history"] * 9)]:
        write_sealed(path, tensors, **note | {key: value})
        yield path, f"{key}={value}"
    for head in ("net.", "opt."):
        name = next(k for k, v in tensors.items() if k.startswith(head) and v.ndim > 1)
        for change in ({name: tensors[name][:-1]}, {name: tensors[name].flatten()}, {f"{head}99.odd": tensors[name]}, {f"{head}x": tensors[name]}):
            write_sealed(path, tensors | change, **note)
            yield path, f"shapes of {[*change]}"
    write_sealed(path, {k: v for k, v in tensors.items() if "bn" not in k}, **note)
    yield path, "keys are missing"
    save_file(tensors, path, {"note": json.dumps(note)})
    yield path, "no digest"
    save_file(tensors, path)
    yield path, "no note"
    path.write_bytes(paths[OTHER].read_bytes())
    yield path, "another run's"
    for i in range(173):
        kind = draw.choice([*HARM, *["a bit"] * 9])
        path.write_bytes(HARM[kind](whole, draw))
        yield path, kind


def test_two_hundred_mangled_checkpoints_are_passed_over(made, tmp_path):
    member = Member(RUN, DATA.load(), device())
    before = {k: v.clone() for k, v in member.net.state_dict().items()}
    count = 0
    for path, what in harmed_checkpoints(made[1], tmp_path):
        count, note = count + 1, read_note(path)
        assert type(note["epoch"]) is int and note["epoch"] >= 0
        with pytest.warns(UserWarning, match="passed over and training starts again"): resume(member, path)
        assert member.epoch == 0 and member.history == [] and not member.optimiser.state, what
        assert all(torch.equal(v, before[k]) for k, v in member.net.state_dict().items()), what
    assert count >= 200


def test_a_whole_checkpoint_is_gone_on_from(made):
    member = Member(RUN, DATA.load(), device())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resume(member, made[1][RUN])
    assert member.epoch == 2 and len(member.history) == 2 and member.optimiser.state


def test_training_after_a_mangled_checkpoint_gives_the_same_weights(made, tmp_path):
    store = Store(tmp_path / "store")
    write_sealed(store.checkpoint(RUN), {k: v * 0 for k, v in read_sealed(made[1][RUN])[0].items()}, **read_sealed(made[1][OTHER])[1])
    with pytest.warns(UserWarning, match="belongs to another run"): train(RUN, store, workers=1)
    assert all(torch.equal(v, made[0].weights(RUN)[k]) for k, v in store.weights(RUN).items())


def test_an_entry_under_another_name_is_damaged(copy):
    os.rename(copy.entry(RUN), copy.entry(replace(RUN, seed=1)))
    shutil.rmtree(copy.entry(OTHER))
    shutil.copytree(copy.entry(replace(RUN, seed=1)), copy.entry(OTHER))
    for run in (replace(RUN, seed=1), OTHER):
        assert f"run.json defines the run {RUN.id}" in copy.verify(run.id)
        with pytest.warns(UserWarning, match="defines the run"): assert not copy.holds(run)


def test_a_file_in_place_of_an_entry_is_moved_aside(tmp_path):
    store = Store(tmp_path)
    store.entry(RUN).write_text("not a folder")
    with pytest.warns(UserWarning, match="manifest"): assert train(RUN, store, workers=1).trained == 1


# where files lie


def test_runs_on_another_disk(made, tmp_path):
    "The folder of the entries may be a link to another file system; so may that of the damaged ones"
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev: pytest.skip("one file system only")
    other = shm / f"calibkd-test-{os.getpid()}"
    other.mkdir()
    try:
        (tmp_path / "runs").symlink_to(other)
        store = Store(tmp_path)
        assert train(RUN, store, workers=1).trained == 1 and store.hashes() == [RUN.id]
        (store.entry(RUN) / "meta.json").unlink()
        with pytest.warns(UserWarning, match="meta.json is missing"): assert not store.holds(RUN)
        assert [p.name[:16] for p in (tmp_path / "damaged").iterdir()] == [RUN.id] and not store.hashes()
    finally: shutil.rmtree(other)


def failing(code):
    def fail(*args, **more): raise OSError(code, os.strerror(code))
    return fail


@pytest.mark.parametrize("place, code", [((store_module, "save_file"), errno.ENOSPC), ((store_module.os, "rename"), errno.EXDEV), ((store_module.os, "rename"), errno.EROFS)])
def test_what_cannot_be_stored_is_told_in_a_sentence(made, tmp_path, monkeypatch, place, code):
    store = Store(tmp_path)
    member, = fit([RUN], DATA.load())
    monkeypatch.setattr(*place, failing(code))
    with pytest.raises(OSError, match=f"was not stored.*{os.strerror(code)}.*CALIBKD_STORE") as error: store.put(member, DATA.load())
    assert len(str(error.value).splitlines()) == 1 and not [*(tmp_path / "runs").iterdir()]


def test_another_who_was_first_is_no_error(copy):
    member, = fit([RUN], DATA.load())
    before = copy.entry(RUN).stat().st_mtime_ns
    copy.put(member, DATA.load())
    assert copy.holds(RUN) and copy.entry(RUN).stat().st_mtime_ns == before and not [*(copy.root / "runs").glob(".*")]


def test_a_checkpoint_that_finds_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "save_file", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="cannot be written.*No space.*CALIBKD_STORE"): train(RUN, Store(tmp_path), workers=1)
    assert not [*(tmp_path / "partial").glob("*.safetensors*")]


def test_the_root_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("here")
    monkeypatch.chdir("/")
    assert store.root == tmp_path / "here" and store.hashes() == []


def test_leftovers_go_and_what_is_in_use_stays(copy):
    stray = replace(RUN, seed=1)
    old = [copy.root / p for p in (f"runs/.{stray.id}-0", f"tmp/{stray.id}-0", f"partial/{stray.id}.safetensors.77", f"partial/{OTHER.id}.safetensors",
                                   f"partial/{OTHER.id}.lock", f"partial/.{stray.id}.safetensors.1f", f"answers/{RUN.id}/.x.safetensors.12")]
    young, busy = copy.root / f"runs/.{stray.id}-1", copy.root / f"runs/.{'b' * 16}-0"
    unfinished, damaged = copy.checkpoint(stray), copy.root / "damaged" / f"{stray.id}-0"
    for path in (*old, young, busy, unfinished, damaged):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if path.parent.name in ("runs", "tmp", "damaged") else path.write_text("")
        if path != young: os.utime(path, (0, 0))
    with ExitStack() as held:
        assert Store(copy.root).try_lock("b" * 16, held)
        copy.tidy()
        assert not any(p.exists() for p in old) and all(p.exists() for p in (young, busy, unfinished, damaged))
    copy.tidy()
    assert not busy.exists() and copy.holds(RUN) and copy.holds(OTHER) and not [*copy.root.glob("partial/*.lock")]


# a hash is enough


def test_short_hashes(copy):
    assert torch.equal(copy.logits(RUN.id[:5])[0], copy.logits(RUN)[0]) and copy.meta(RUN.id[:4]) == copy.meta(RUN)
    (copy.root / "runs" / f"{RUN.id[:5]}ffffffffffx").mkdir()
    with pytest.raises(ValueError, match=f"may be any of .*{RUN.id}.*more digits"): copy.history(RUN.id[:5])
    for wrong, why in (("", "4 digits"), ("abc", "4 digits"), ("..", "4 digits"), ("feedfeed", "no run in .* begins with 'feedfeed'")):
        with pytest.raises(ValueError, match=why): copy.network(wrong)
    with pytest.raises(ValueError, match="is not in .*train"): copy.weights(replace(RUN, seed=9))


@pytest.mark.parametrize("name", held())
def test_a_run_comes_back_from_its_definition(name):
    run = held()[name]
    assert rebuild(json.loads(json.dumps(canonical(run)))) == run


def test_a_network_from_a_hash_alone(copy):
    for a, b in zip(copy.network(RUN.id).state_dict().values(), copy.network(RUN).state_dict().values()): assert torch.equal(a, b)


def test_a_network_that_was_handed_over_needs_the_run(tmp_path):
    run = Run(DATA, network("resnet8", 10, 1), recipe=Recipe(epochs=0))
    store = train(run, Store(tmp_path), workers=1).store
    with pytest.raises(ValueError, match="cannot be made again from its hash alone.*give the Run"): store.network(run.id)
    assert len(store.logits(run.id)[0]) == len(DATA.load().test)


def test_a_method_that_is_not_known_any_more_needs_the_run(copy):
    path = copy.entry(RUN) / "run.json"
    path.write_text(path.read_text().replace('"NLL"', '"Nothing"'))
    with pytest.raises(ValueError, match="cannot be made again from its hash alone"): copy.network(RUN.id)


# what is kept beside


def test_answers_that_are_not_to_be_believed_are_asked_again(copy):
    data = replace(DATA, seed=1)
    right, path = copy.answers(RUN, data), copy.root / "answers" / RUN.id
    copy.answers(OTHER, data)
    path, = path.iterdir()
    theirs, = (copy.root / "answers" / OTHER.id).iterdir()
    tensors, note = read_sealed(path)
    for harm in (lambda: shutil.copy(theirs, path), lambda: path.write_bytes(flip(path.read_bytes(), random.Random(1))), lambda: save_file(tensors, path),
                 lambda: write_sealed(path, tensors, **note | {"data": "x"}), lambda: write_sealed(path, tensors, **note | {"weights": "x"})):
        harm()
        with pytest.warns(UserWarning, match=f"{RUN.id} are asked again"): assert torch.equal(copy.answers(RUN, data)[0], right[0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(copy.answers(RUN.id, data)[0], right[0])


def test_logits_of_the_training_split_on_demand(copy, monkeypatch):
    logits, labels = copy.logits(RUN, "train")
    data = DATA.load()
    expected = logits_of(copy.network(RUN).to(memory_format=torch.channels_last), data, data.train)
    assert torch.equal(logits, expected[0]) and torch.equal(labels, data.train.labels) and not torch.equal(labels[:20], copy.logits(RUN, "val")[1])
    monkeypatch.setattr(Store, "network", None)  # not asked again
    assert torch.equal(copy.logits(RUN.id, "train")[0], logits)
    with pytest.raises(ValueError, match="'train', 'val' or 'test', got 'all'"): copy.logits(RUN, "all")


def test_what_a_method_wants_remembered(copy, tmp_path):
    store, (member,) = Store(tmp_path), fit([RUN], DATA.load())
    assert copy.kept(RUN) == {} and not (copy.entry(RUN) / "kept.safetensors").exists() and faults(copy.entry(RUN)) == []
    member.kept = {"weights@2": torch.rand(180)}
    store.put(member, DATA.load())
    assert torch.equal(store.kept(RUN.id[:6])["weights@2"], member.kept["weights@2"]) and faults(store.entry(RUN)) == []
    shutil.copy(store.entry(RUN) / "kept.safetensors", copy.entry(RUN))
    assert "kept.safetensors is missing" in faults(copy.entry(RUN))  # in the manifest
    (store.entry(RUN) / "kept.safetensors").unlink()
    assert "kept.safetensors is missing" in faults(store.entry(RUN))


# leaving


def asked(net, about, data):
    "Logits of a plain network, from what its card says"
    test = data.load().test
    x = test.x / 255 if test.x.dtype == torch.uint8 else test.x
    mean, std = (torch.tensor(about[k]).view(-1, 1, 1) for k in ("mean", "std"))
    with torch.no_grad(): return net.eval()((x - mean) / std) / about["temperature"]


COLOUR = Dataset("textures:2x2", train=80, test=60)


def test_a_torchvision_network_leaves_as_torchvision_knows_it(tmp_path):
    trained = Run(COLOUR, "torchvision:shufflenet_v2_x0_5", recipe=Recipe(epochs=1, batch=32))
    run = replace(trained, objective=TS(), recipe=Recipe(epochs=0), init=trained)
    results = train(run, Store(tmp_path), workers=1)
    path = results.export(run, tmp_path / "out" / "net.safetensors")
    about = json.loads(path.with_suffix(".json").read_text())
    net = torchvision.models.shufflenet_v2_x0_5(num_classes=len(about["classes"]))
    net.load_state_dict(load_file(path))
    torch.testing.assert_close(asked(net, about, COLOUR), results.logits(run)[0], rtol=1e-4, atol=1e-4)
    assert about["temperature"] != 1 and about["id"] == run.id and about["input"] == [3, 16, 16]
    assert about["ece"] == results.numbers(run, ["ece"])["ece"]


def test_foreign_weights_leave_with_their_own_normalisation(tmp_path):
    save_file(network("resnet8", 4, seed=3).state_dict(), tmp_path / "theirs.safetensors")
    init = Weights(str(tmp_path / "theirs.safetensors"), None, mean=(.5, .4, .3), std=(.2, .3, .4))
    run = Run(COLOUR, "resnet8", recipe=Recipe(epochs=0), init=init)
    store = train(run, Store(tmp_path / "store"), workers=1).store
    (tmp_path / "theirs.safetensors").unlink()  # the hash is enough, though not to train it again
    about = json.loads(export(store, store.hashes()[0], tmp_path / "net.safetensors").with_suffix(".json").read_text())
    net = network(about["network"], len(about["classes"]), about["input"][0])
    net.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert about["mean"] == [.5, .4, .3] and about["temperature"] == 1
    torch.testing.assert_close(asked(net, about, COLOUR), store.logits(store.hashes()[0])[0], rtol=1e-4, atol=1e-4)


def test_weights_are_exported_as_safetensors_only(copy, tmp_path):
    with pytest.raises(ValueError, match=".safetensors, got 'net.pt'"): export(copy, RUN, tmp_path / "net.pt")


class Tied(torch.nn.Module):
    "Made up: two names for one matrix"
    def __init__(self):
        super().__init__()
        self.fc, self.twice = torch.nn.Linear(64, 10), torch.nn.Linear(64, 10)
        self.twice.weight = self.fc.weight

    def forward(self, x): return self.fc(x.flatten(1)) + self.twice(x.flatten(1)) - self.twice.bias


def test_tied_weights_are_stored_checkpointed_and_exported(tmp_path):
    torch.manual_seed(0)
    run = Run(DATA, Tied(), recipe=replace(RECIPE, lr=.01))
    results = train(run, Store(tmp_path), workers=1)
    net = results.network(run).net
    assert net.fc.weight is net.twice.weight and torch.equal(net.fc.weight, results.store.weights(run)["net.twice.weight"])
    Tied().load_state_dict(load_file(results.export(run, tmp_path / "tied.safetensors")))
