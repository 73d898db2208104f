"Data sets: splits that mean the same everywhere, folders and zips, clear errors, the real files where they are."
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from PIL import Image

from calibkd import data
from calibkd.data import folders as image_folders
from calibkd.data import splits
from calibkd.data import Dataset, Files, Split, data_root, download, hold_out, sample_order, source, stratified, subset

REAL = Path(os.environ.get("CALIBKD_DATA", "/nowhere"))
pytestmark = pytest.mark.usefixtures("folders")


def need(name):
    "The path of a real data file, or a skip."
    if not (REAL / name).exists():
        pytest.skip(f"{REAL / name} is not there: set CALIBKD_DATA to a folder that holds it")
    return REAL / name


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setenv("CALIBKD_DATA", str(REAL))


def save(path, shape=(8, 8, 3), seed=0, mode=None):
    "A random image file."
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))
    (image.convert(mode) if mode else image).save(path)


def folder(root, train=4, test=2, classes="abc", suffix="png", **image):
    for part, n in (("train", train), ("test", test)):
        for c in classes:
            for i in range(n):
                save(root / part / c / f"{i}.{suffix}", seed=zlib.crc32(f"{part}{c}{i}".encode()), **image)
    return root


def same(a, b):
    "Whether two loaded data sets are equal."
    pairs = [(getattr(getattr(a, s), f), getattr(getattr(b, s), f)) for s in ("train", "val", "test") for f in ("x", "labels", "index")]
    return all(torch.equal(x, y) for x, y in pairs) and a.classes == b.classes


# subsets and splits

@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 99), st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_order_is_a_permutation_and_balanced(labels, seed, balanced):
    y = torch.tensor(labels)
    order = sample_order(y, seed, balanced)
    assert sorted(order.tolist()) == list(range(len(y)))
    if balanced:
        have = y.bincount()
        for n in range(1, len(y) + 1):
            got = y[order[:n]].bincount(minlength=len(have))
            assert all(got.max() - g <= 1 or g == h for g, h in zip(got, have) if h)  # a class is behind only if it is used up


@given(st.integers(2, 200), st.floats(.05, .9), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_a_held_out_split_is_stratified_and_loses_nothing(n, fraction, seed):
    y = torch.arange(n) % 3
    whole = Split(y[:, None, None, None], y, torch.arange(n))
    if not 0 < round(fraction * n) < n:
        return
    rest, held = hold_out(whole, fraction, seed)
    assert sorted(rest.index.tolist() + held.index.tolist()) == list(range(n)) and len(held) == round(fraction * n)
    assert (held.labels.bincount(minlength=3) - y.bincount(minlength=3) * fraction).abs().max() <= 1.5
    assert torch.equal(rest.x.flatten(), rest.labels) and torch.equal(rest.index, rest.index.sort().values)


@pytest.mark.parametrize("count", [0, 1, 20, 99, 100])
def test_a_part_is_stratified_seeded_and_loses_nothing(count):
    y = torch.tensor([0, 1, 1, 1, 1] * 20)
    part, rest = stratified(y, count, seed=1)
    assert len(part) == count and torch.cat([part, rest]).sort().values.tolist() == list(range(100))
    assert (part.diff() > 0).all() and (rest.diff() > 0).all() and part.equal(stratified(y, count, 1)[0])
    assert abs(int((y[part] == 0).sum()) - count / 5) < 1 and (count in (0, 100) or not part.equal(stratified(y, count, 2)[0]))


def test_two_thousand_of_ten_classes_are_two_hundred_of_each():
    y = torch.arange(10_000) % 10
    assert [y[part].bincount().tolist() for part in stratified(y, 2000, seed=1)] == [[200] * 10, [800] * 10]
    with pytest.raises(ValueError, match="101 of 100 samples were asked for: use 0 to 100"): stratified(y[:100], 101, seed=1)


def test_textures_know_their_posterior():
    loaded = Dataset("textures:2x3", train=100, test=50).load()
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (90, 10, 50) and loaded.num_classes == 6 and loaded.channels == 3
    assert loaded.train.x.dtype == torch.float32 and loaded.augment == "shift"
    for split in (loaded.train, loaded.val, loaded.test):
        torch.testing.assert_close(split.posterior.sum(1), torch.ones(len(split)))
    assert not torch.equal(loaded.train.x[:10], loaded.test.x[:10])
    assert Dataset("textures", train=100, test=50, size=12).load().test.x.shape == (50, 3, 12, 12)
    default = Dataset().load()
    assert len(default.train) + len(default.val) == 2800 and len(default.test) == 5000 and default.num_classes == 100


def test_seed_and_counts():
    a, b, c = (Dataset("digits", train=500, test=100, seed=s).load() for s in (0, 0, 1))
    assert a is b and not torch.equal(a.train.index, c.train.index)
    assert (len(a.train), len(a.val), len(a.test)) == (450, 50, 100) and a.test.labels.bincount().tolist() == [10] * 10
    for s in (a, c):
        sets = [set(split.index.tolist()) for split in (s.train, s.val, s.test)]
        assert len(sets[0] | sets[1]) == 500
    assert set(Dataset("digits", train=50, val=0).load().train.index.tolist()) < set(Dataset("digits", train=500, val=0).load().train.index.tolist())


def test_normalisation_is_torchvisions():
    loaded = Dataset("digits").load()
    want = torchvision.transforms.functional.normalize(loaded.test.x / 255, loaded.mean.tolist(), loaded.std.tolist())
    torch.testing.assert_close(loaded.normalise(loaded.test.x), want, atol=1e-6, rtol=1e-6)
    cl = loaded.test.x[:8].to(memory_format=torch.channels_last)
    torch.testing.assert_close(loaded.normalise(cl), want[:8], atol=1e-6, rtol=1e-6)
    z = loaded.normalise(loaded.train.x).double()
    assert abs(z.mean()) < 1e-5 and abs(z.std() - 1) < 1e-4


def test_a_data_set_of_ones_own_in_one_cell(monkeypatch):
    monkeypatch.setattr(splits, "SOURCES", dict(splits.SOURCES))

    @source("stripes")
    def stripes(argument, spec):
        y = torch.arange(int(argument)) % 2
        split = Split(y[:, None, None, None].float().expand(-1, 1, 4, 4), y, torch.arange(len(y)))
        return data.Raw(split, split, ["no", "yes"])

    loaded = Dataset("stripes:40", val=.25).load()
    assert len(loaded.val) == 10 and loaded.classes == ["no", "yes"] and loaded.mean.item() == .5


# torchvision's

def idx(path, array):
    "Write MNIST's format."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.array([2048 + array.ndim, *array.shape], ">i4").tobytes() + array.tobytes())


@pytest.mark.parametrize("name, official", [("mnist", "MNIST"), ("fashionmnist", "FashionMNIST")])
def test_mnists_agree_with_torchvision(name, official, folders):
    rng, raw = np.random.default_rng(0), folders / official / "raw"
    for part, n in (("train", 40), ("t10k", 20)):
        idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28), np.uint8))
        idx(raw / f"{part}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 10)
    loaded = Dataset(name, val=0).load()
    for train, split in ((True, loaded.train), (False, loaded.test)):
        want = getattr(torchvision.datasets, official)(folders, train=train)
        assert torch.equal(split.x[:, 0], want.data) and torch.equal(split.labels, want.targets) and loaded.classes == want.classes


def test_a_damaged_mnist_file_is_named(folders):
    raw = folders / "MNIST" / "raw"
    idx(raw / "train-labels-idx1-ubyte", np.zeros(3, np.uint8))
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b no gzip")
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz is damaged"):
        Dataset("mnist").load()
    (raw / "train-images-idx3-ubyte.gz").unlink()
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\10\3" + b"\0\0\0\11" * 3)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is damaged"):
        Dataset("mnist").load()
    idx(raw / "train-images-idx3-ubyte", np.zeros((2, 28, 28), np.uint8))
    for part in ("images-idx3", "labels-idx1"):
        idx(raw / f"t10k-{part}-ubyte", np.zeros((2, 28, 28)[:3 if "images" in part else 1], np.uint8))
    with pytest.raises(ValueError, match="2 images but 3 labels"):
        Dataset("mnist").load()


def test_cifar_in_its_official_layout_with_checksums(folders, monkeypatch):
    "Small stand-ins for the official files, with their checksums declared, read by torchvision."
    official, base = torchvision.datasets.CIFAR10, folders / "cifar-10-batches-py"
    base.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    batches = [dict(data=rng.integers(0, 256, (20, 3072), np.uint8), labels=[i % 10 for i in range(20)]) for _ in range(3)]
    files = [write(f"batch_{i}", b) for i, b in enumerate(batches)]
    meta = write("batches.meta", dict(label_names=[f"c{i}" for i in range(10)]))
    monkeypatch.setattr(official, "train_list", files[:2])
    monkeypatch.setattr(official, "test_list", files[2:])
    monkeypatch.setattr(official, "meta", dict(filename=meta[0], key="label_names", md5=meta[1]))
    loaded = Dataset("cifar10", val=0).load()
    assert np.array_equal(loaded.train.x.flatten(1).numpy(), np.concatenate([b["data"] for b in batches[:2]]))
    assert loaded.classes[3] == "c3" and loaded.test.labels.tolist() == batches[2]["labels"]
    torch.testing.assert_close(loaded.mean, torch.tensor([.4914, .4822, .4465]))
    torch.testing.assert_close(loaded.std, torch.tensor([.2023, .1994, .2010]))
    (base / "batch_1").write_bytes(b"cut")
    with pytest.raises(ValueError, match="incomplete or damaged"):
        Dataset("cifar10", val=0, seed=1).load()


def test_cifar_100_has_its_own_super_classes(folders, monkeypatch):
    "A stand-in for the official files, of four classes in two super-classes"
    official, base, rng = torchvision.datasets.CIFAR100, folders / "cifar-100-python", np.random.default_rng(0)
    base.mkdir()
    parts = {n: dict(data=rng.integers(0, 256, (8, 3072), np.uint8), fine_labels=[0, 1, 2, 3] * 2, coarse_labels=[1, 0, 0, 1] * 2) for n in ("train", "test")}
    parts["meta"] = dict(fine_label_names=["apple", "bee", "ant", "pear"], coarse_label_names=["insects", "fruit"])
    for name, content in parts.items():
        (base / name).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *a: True)
    loaded = Dataset("cifar100", val=0).load()
    assert loaded.classes == ["apple", "bee", "ant", "pear"] and loaded.supers == ["fruit", "insects", "insects", "fruit"]


def test_super_classes_of_embedded_data():
    assert Dataset("textures:3x2", train=20, test=6).load().supers == ["s00"] * 2 + ["s01"] * 2 + ["s02"] * 2
    assert Dataset("textures:1x4", train=20, test=6).load().supers is None and Dataset("digits").load().supers is None


@pytest.mark.parametrize("options, words", [
    (dict(train=True), "train=True is not a whole number"), (dict(test="50"), "test='50'"), (dict(size=8.), "size=8.0"), (dict(seed=None), "seed=None"),
    (dict(seed=-1), "seed=-1 is too small"), (dict(size=0), "size=0"), (dict(size=10**6), "size=1000000 is too large"), (dict(val=None), "val=None"),
    (dict(val=True), "val=True"), (dict(val="0.1"), "val='0.1'"), (dict(name=None), "name is None"), (dict(name=Path("x")), "name is"),
    (dict(corruption=3, severity=1), "no corruption called .3."), (dict(corruption="fog", severity=True), "severity=True"), (dict(train=[5]), r"train=\[5\]")])
def test_wrong_types_are_refused_at_once(options, words):
    with pytest.raises(ValueError, match=words) as error:
        Dataset(**options)
    assert len(str(error.value).splitlines()) == 1


def test_numpys_numbers_are_pythons():
    from calibkd.runs import digest
    theirs = Dataset("digits", train=np.int64(50), test=np.int32(20), val=np.float64(.2), seed=np.uint8(3), size=np.int16(8), corruption="fog", severity=np.int8(2))
    ours = Dataset("digits", train=50, test=20, val=.2, seed=3, size=8, corruption="fog", severity=2)
    assert theirs == ours and digest(theirs) == digest(ours) and repr(theirs) == repr(ours) and hash(theirs) == hash(ours)


@pytest.mark.parametrize("name, file", [
    ("mnist", "train-images-idx3-ubyte.gz"), ("fashionmnist", "FashionMNIST"), ("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python"),
    ("tiny-imagenet", "tiny-imagenet-200"), ("folder:nowhere", "nowhere"),
])
def test_missing_files_say_what_where_and_what_else(name, file, folders):
    with pytest.raises(FileNotFoundError) as error:
        Dataset(name).load()
    text = str(error.value)
    assert str(folders) in text and file in text and "CALIBKD_DATA" in text and "textures" in text and len(text.splitlines()) == 1
    assert (f"download('{name}')" in text) == (not name.startswith("folder"))
    assert not list(folders.iterdir())  # nothing was fetched or made


@pytest.mark.parametrize("name, hint", [("cifar-10", "cifar10"), ("Textures", "textures"), ("fashion-mnist", "fashionmnist"), ("qqq", "known:")])
def test_unknown_names_get_a_suggestion(name, hint):
    with pytest.raises(ValueError, match="There is no data set called") as error:
        Dataset(name).load()
    assert hint in str(error.value)


def test_only_known_names_are_downloaded():
    with pytest.raises(ValueError, match="no download for 'digits'"):
        download("digits")


# folders and zips

def test_a_folder_and_zips_of_it_are_the_same(folders):
    root = folder(folders / "pets")
    (root / "train" / "a" / ".DS_Store").write_text("junk")
    (root / "README.txt").write_text("not used")
    before = Dataset("folder:pets").fingerprint()
    shutil.make_archive(folders / "flat", "zip", root)
    shutil.make_archive(folders / "nested", "zip", folders, "pets")
    with zipfile.ZipFile(folders / "stored.zip", "w") as z:  # uncompressed, other order, junk of a Mac, a file beside the top folder
        for path in sorted(root.rglob("*.png"), reverse=True):
            z.write(path, f"x/y/{path.relative_to(root)}")
            z.writestr(f"__MACOSX/x/y/{path.relative_to(root)}", "junk")
        z.writestr("LICENSE", "x")
    names = ["folder:pets", "folder:flat.zip", "folder:nested.zip", "folder:stored", f"folder:{root}"]
    assert {Dataset(n).fingerprint() for n in names} == {before} and len(before) == 32
    first, *others = (Dataset(n, val=.25).load() for n in names)
    assert all(same(first, other) for other in others) and first.augment == "crop+flip"
    assert len(list((folders.parent / "cache" / "decoded").iterdir())) == 1  # decoded once for all five


def test_relative_to_the_current_folder_too(folders, tmp_path, monkeypatch):
    folder(tmp_path / "here" / "pets")
    monkeypatch.chdir(tmp_path / "here")
    assert Dataset("folder:pets").load().num_classes == 3
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        Dataset("folder:pets").load()


def test_the_fingerprint_follows_the_contents(folders):
    fresh = lambda name: Dataset(name).fingerprint()
    root = folder(folders / "pets")
    a = fresh("folder:pets")
    assert fresh("folder:pets") == a
    save(root / "test" / "a" / "0.png", seed=12345)
    b = fresh("folder:pets")
    (root / "test" / "a" / "0.png").rename(root / "test" / "a" / "9.png")
    c = fresh("folder:pets")
    (root / "classes.tsv").write_text("a\tapple\nb\tbanana\n")
    assert len({a, b, c, fresh("folder:pets")}) == 4 and Dataset("folder:pets").load().classes == ["apple", "banana", "c"]


def test_a_changed_folder_is_another_data_set_whatever_was_loaded_between(folders):
    root, spec = folder(folders / "pets"), Dataset("folder:pets", val=0)
    before, old = spec.fingerprint(), spec.load()
    assert spec.load() is old
    save(root / "test" / "a" / "0.png", seed=12345)
    for seed in range(5):
        Dataset("digits", train=20 + seed, val=0).load()
    assert spec.fingerprint() != before and not torch.equal(spec.load().test.x, old.test.x)
    assert spec.load().test.x[0].permute(1, 2, 0).numpy().tolist() == np.array(Image.open(root / "test/a/0.png")).tolist()


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_change_that_keeps_names_sizes_and_times_of_modification_is_seen(packed, folders):
    "What a careless copy does: same length, old mtime"
    path, spec = folders / "pets" / "train" / "a" / "0.bmp", Dataset("folder:pets" + ".zip" * packed)
    folder(folders / "pets", suffix="bmp")
    pack = lambda: shutil.make_archive(folders / "pets", "zip", folders / "pets") and folders / "pets.zip" if packed else path
    at = pack().stat()
    first, raw = spec.fingerprint(), path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    os.utime(pack(), ns=(at.st_atime_ns, at.st_mtime_ns))
    assert spec.fingerprint() != first


def test_changes_in_quick_succession_are_seen(folders):
    "Faster than the clock of the file system counts"
    root, spec, seen = folder(folders / "pets", suffix="bmp"), Dataset("folder:pets"), set()
    raw = bytearray((root / "train" / "a" / "0.bmp").read_bytes())
    for value in range(30):
        raw[-1] = value
        (root / "train" / "a" / "0.bmp").write_bytes(raw)
        seen.add(spec.fingerprint())
    assert len(seen) == 30


def test_an_edited_source_is_read_again(monkeypatch):
    monkeypatch.setattr(splits, "SOURCES", dict(splits.SOURCES))
    made = lambda value: data.Raw(*[Split.of(torch.full((4, 1, 2, 2), value), [0, 1, 0, 1])] * 2, ["a", "b"])
    for value in (1., 2.):
        source("constant")(lambda argument, spec: made(value))
        assert Dataset("constant", val=0).load().train.x.unique().tolist() == [value]


def test_super_classes_of_a_folder(folders):
    root, rows = folder(folders / "pets"), "a\tape\tmammal\nb\tbee\tinsect\nc\tcat\tmammal\n"
    assert Dataset("folder:pets").load().supers is None
    (root / "classes.tsv").write_text(rows)
    loaded = Dataset("folder:pets").load()
    assert loaded.classes == ["ape", "bee", "cat"] and loaded.supers == ["mammal", "insect", "mammal"]
    assert Dataset("folder:pets", corruption="fog", severity=1).load().supers == loaded.supers
    (root / "classes.tsv").write_text(rows.replace("\tinsect", ""))
    with pytest.raises(ValueError, match="gives b no super-class"):
        Dataset("folder:pets").load()


def test_labels_index_and_order_are_those_of_torchvisions_image_folder(folders):
    root = folder(folders / "pets", classes="ba", train=11)
    loaded, want = Dataset("folder:pets", val=0).load(), torchvision.datasets.ImageFolder(root / "train")
    assert loaded.classes == want.classes == ["a", "b"] and loaded.train.labels.tolist() == want.targets
    assert all(np.array_equal(x.permute(1, 2, 0).numpy(), np.array(im)) for x, (im, _) in zip(loaded.train.x, want))
    part = Dataset("folder:pets", train=8, val=.25).load()
    for split in (part.train, part.val):
        assert torch.equal(split.x, loaded.train.x[split.index]) and torch.equal(split.labels, loaded.train.labels[split.index])


@pytest.mark.parametrize("mode, channels", [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_every_kind_of_image_becomes_grey_or_rgb(mode, channels, folders):
    folder(folders / "pets", mode=mode)
    assert Dataset("folder:pets").load().channels == channels


def test_grey_among_coloured_becomes_rgb_and_deep_images_are_refused(folders):
    root = folder(folders / "pets", suffix="jpg")
    save(root / "train" / "a" / "0.jpg", (8, 8))
    x = Dataset("folder:pets", val=0).load().train.x
    assert x.shape[1] == 3 and torch.equal(x[0, 0], x[0, 2])
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(root / "train" / "a" / "deep.png")
    with pytest.raises(ValueError, match="deep.png.*more than 8 bits"):
        Dataset("folder:pets", seed=1).load()


def test_mixed_sizes_need_a_size(folders):
    root = folder(folders / "pets")
    save(root / "test" / "b" / "1.png", (8, 20, 3))
    with pytest.raises(ValueError, match=r"test/b/1.png.* is 20×8, .* is 8×8: give a `size`"):
        Dataset("folder:pets").load()
    assert Dataset("folder:pets", size=6).load().test.x.shape == (6, 3, 6, 6)


def test_a_colossal_folder_is_refused_before_it_fills_the_memory(folders, monkeypatch):
    folder(folders / "pets")
    monkeypatch.setattr(image_folders, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="18 images of 8×8 do not fit in memory"):
        Dataset("folder:pets").load()


BROKEN = {
    "corrupt image": (lambda r: (r / "train/a/0.png").write_bytes(b"nonsense"), "train/a/0.png .* is not a readable image"),
    "cut image": (lambda r: (r / "test/c/1.png").write_bytes((r / "test/c/1.png").read_bytes()[:60]), "test/c/1.png .* is not a readable image"),
    "empty class": (lambda r: [p.unlink() for p in (r / "train/b").iterdir()], "train/b .* has no image"),
    "class without images": (lambda r: [p.rename(p.with_suffix(".txt")) for p in (r / "test/b").iterdir()], "test/b .* has no image"),
    "class missing in test": (lambda r: shutil.rmtree(r / "test/c"), r"differ \(c only in one\)"),
    "extra class in test": (lambda r: save(r / "test/d/0.png"), r"differ \(d only in one\)"),
    "no test": (lambda r: shutil.rmtree(r / "test"), "needs images in train/<class>/ and test/<class>/, but holds train"),
    "no classes": (lambda r: [shutil.rmtree(r / "test"), save(r / "test/0.png")], "needs images in train/<class>/"),
    "two data sets": (lambda r: [shutil.copytree(r / p, r / q / p) for p in ("train", "test") for q in "xy"] + [shutil.rmtree(r / p) for p in ("train", "test")],
                      "several data sets"),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_said_to_be(what, zipped, folders):
    root, (spoil, words) = folder(folders / "pets"), BROKEN[what]
    spoil(root)
    if zipped:
        shutil.make_archive(folders / "zip", "zip", root)
    with pytest.raises(ValueError, match=words) as error:
        Dataset("folder:zip" if zipped else "folder:pets").load()
    assert len(str(error.value).splitlines()) == 1 and str(folders) in str(error.value)


def test_a_file_that_is_no_zip_and_a_damaged_member(folders):
    (folders / "a.zip").write_text("no zip")
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        Dataset("folder:a.zip").load()
    folder(folders / "pets")
    with zipfile.ZipFile(folders / "b.zip", "w") as z:
        for path in (folders / "pets").rglob("*.png"):
            z.write(path, path.relative_to(folders / "pets"))
    raw = bytearray((folders / "b.zip").read_bytes())
    at = raw.index(b"IDAT") + 6
    raw[at] ^= 255
    (folders / "b.zip").write_bytes(raw)
    with pytest.raises(ValueError, match="cannot be read.*CRC"):
        Dataset("folder:b.zip").load()
    with pytest.raises(ValueError, match="needs a path"):
        Dataset("folder:").load()


@pytest.mark.parametrize("options, words", [
    (dict(train=13), "train=13 .* 12 train"), (dict(test=0), "test=0"), (dict(val=1.), "val=1.0"), (dict(val=-.1), "val=-0.1"),
    (dict(val=.01), "empty split"), (dict(train=1, val=.4), "empty split"),
])
def test_impossible_splits_are_refused(options, words, folders):
    folder(folders / "pets")
    with pytest.raises(ValueError, match=words):
        Dataset("folder:pets", **options).load()


def test_the_cache_is_optional_and_mends_itself(folders, tmp_path, monkeypatch):
    folder(folders / "pets")
    first = Dataset("folder:pets", val=.25).load()
    kept, = (tmp_path / "cache" / "decoded").iterdir()
    assert first.train.x.shape[0] == 9 and not list(kept.parent.glob(".*"))
    kept.write_bytes(kept.read_bytes()[:100])
    splits._load.cache_clear()
    assert same(first, Dataset("folder:pets", val=.25).load()) and kept.stat().st_size > 3000  # written anew
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CALIBKD_CACHE", str(tmp_path / "file" / "cache"))
    splits._load.cache_clear()
    assert same(first, Dataset("folder:pets", val=.25).load())
    assert Dataset("folder:pets").fingerprint() == Dataset("folder:pets").fingerprint()


def test_a_decoded_image_that_was_altered_is_decoded_anew(folders, tmp_path):
    folder(folders / "pets")
    first = Dataset("folder:pets", val=.25).load()
    kept, = (tmp_path / "cache" / "decoded").iterdir()
    raw, other = kept.read_bytes(), tmp_path / "other"
    for damage in (raw[:-1] + bytes([raw[-1] ^ 1]), raw[:200] + bytes([raw[200] ^ 64]) + raw[201:], b""):
        kept.write_bytes(damage)
        splits._load.cache_clear()
        assert same(first, Dataset("folder:pets", val=.25).load()) and kept.read_bytes() == raw
    folder(folders / "more", train=5)
    Dataset("folder:more").load()
    other, = set(kept.parent.iterdir()) - {kept}
    kept.write_bytes(other.read_bytes())  # whole, with a digest that fits, but another data set's
    splits._load.cache_clear()
    assert same(first, Dataset("folder:pets", val=.25).load())


def test_remembered_digests_that_were_altered_are_computed_anew(folders, tmp_path):
    folder(folders / "pets")
    first = Dataset("folder:pets").fingerprint()
    memory, = (tmp_path / "cache" / "digests").iterdir()
    raw = memory.read_bytes()
    for damage in (raw[:-5] + (b"0" if raw[-5:-4] != b"0" else b"1") + raw[-4:], b"[]", b"", raw[:50]):
        memory.write_bytes(damage)
        image_folders._contents.cache_clear()
        assert Dataset("folder:pets").fingerprint() == first and memory.read_bytes() == raw


def test_a_warm_cache_decodes_nothing(folders, monkeypatch):
    folder(folders / "pets")
    first = Dataset("folder:pets", val=.25).load()
    splits._load.cache_clear()
    monkeypatch.setattr(image_folders, "decode", lambda *a: pytest.fail("decoded again"))
    monkeypatch.setattr(data.Files, "read", lambda *a: pytest.fail("read again"))  # the checksums are remembered as well
    assert same(first, Dataset("folder:pets", val=.25).load())


def test_another_process_draws_the_same(folders):
    code = "import torch; from calibkd.data import Dataset; d = Dataset('digits', train=300, seed=3).load(); print(d.val.index.tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert out.stdout.strip() == str(Dataset("digits", train=300, seed=3).load().val.index.tolist())


def test_importing_touches_no_file_and_the_default_root_is_per_user(folders, monkeypatch):
    monkeypatch.delenv("CALIBKD_DATA")
    assert data_root().is_absolute() and "calibkd" in str(data_root())
    monkeypatch.setenv("CALIBKD_DATA", "~/x")
    assert data_root() == Path.home() / "x"


# Tiny-ImageNet's layout

def tiny(root, wnids=("n2", "n1"), marked=None):
    for c in wnids:
        for i in range(3):
            save(root / "train" / c / "images" / f"{c}_{i}.JPEG", (64, 64, 3), seed=i)
        (root / "train" / c / f"{c}_boxes.txt").write_text("0")
    lines = [f"val_{i}.JPEG\t{c}\t0\t0\t9\t9" for i, c in enumerate(marked or wnids)]
    for i in range(len(lines)):
        save(root / "val" / "images" / f"val_{i}.JPEG", (64, 64, 3), seed=i)
    save(root / "test" / "images" / "test_0.JPEG", (64, 64, 3))
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (root / "words.txt").write_text("n1\tgoldfish, Carassius auratus\nn2\ttabby, tabby cat\nn3\tunused\n")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


def test_tiny_imagenet_folder_and_zip(folders):
    tiny(folders / "tiny-imagenet-200")
    shutil.make_archive(folders / "packed", "zip", folders, "tiny-imagenet-200")
    a, b = (Dataset(n, val=0).load() for n in ("tiny-imagenet", "tiny-imagenet:packed.zip"))
    assert same(a, b) and a.classes == ["goldfish", "tabby"] and a.test.labels.tolist() == [1, 0] and a.train.x.shape == (6, 3, 64, 64)
    assert Dataset("tiny-imagenet").fingerprint() == Dataset("tiny-imagenet:packed").fingerprint() is not None
    assert Dataset("tiny-imagenet", size=32, val=0).load().train.x.shape == (6, 3, 32, 32)


@pytest.mark.parametrize("spoil, words", [
    (lambda r: (r / "wnids.txt").unlink(), "has no wnids.txt"),
    (lambda r: (r / "wnids.txt").write_text("n1\nn2\nn3\n"), r"of wnids.txt .* differ \(n3"),
    (lambda r: (r / "val/val_annotations.txt").write_text("val_0.JPEG\tn2\n"), r"of val_annotations.txt .* differ \(n1"),
    (lambda r: (r / "val/images/val_1.JPEG").unlink(), "val_1.JPEG stands in val_annotations.txt but is missing"),
    (lambda r: [p.unlink() for p in (r / "train/n1/images").iterdir()], "train/n1 .* has no image"),
])
def test_broken_tiny_imagenet(spoil, words, folders):
    spoil(tiny(folders / "tiny-imagenet-200"))
    with pytest.raises(ValueError, match=words):
        Dataset("tiny-imagenet").load()


# CINIC-10's layout

def cinic(root):
    folder(root, train=4, test=2, classes=("bird", "airplane"), shape=(8, 8, 3))
    for c in ("bird", "airplane"): save(root / "valid" / c / "0.png", seed=99)
    return root


def test_cinic_trains_on_train_and_tests_on_test(folders):
    "Pixels and constants are those of a plain folder of the two parts; valid is not read, so its images may be anything"
    shutil.copytree(cinic(folders / "CINIC-10"), folders / "plain", ignore=shutil.ignore_patterns("valid"))
    theirs, plain = Dataset("cinic10", val=.25).load(), Dataset("folder:plain", val=.25).load()
    assert same(theirs, plain) and theirs.classes == ["airplane", "bird"] and len(theirs.test.labels) == 4
    assert torch.equal(theirs.mean, plain.mean) and torch.equal(theirs.std, plain.std) and theirs.augment == "crop+flip"
    before = Dataset("cinic10").fingerprint()
    (folders / "CINIC-10/valid/bird/0.png").write_bytes(b"no image")
    time.sleep(.1)
    assert Dataset("cinic10").fingerprint() == before
    shutil.make_archive(folders / "packed", "zip", folders, "CINIC-10")
    assert Dataset("cinic10:packed.zip").fingerprint() == before


@pytest.mark.parametrize("spoil, words", [
    (lambda r: shutil.rmtree(r / "valid"), "not CINIC-10 .* no valid/"), (lambda r: shutil.rmtree(r / "test"), "needs images in train"),
    (lambda r: (r / "valid/bird").rename(r / "valid/frog"), r"of valid .* differ \(bird, frog"),
])
def test_broken_cinic(spoil, words, folders):
    spoil(cinic(folders / "CINIC-10"))
    with pytest.raises(ValueError, match=words): Dataset("cinic10").load()


def test_missing_cinic_promises_no_download(folders):
    with pytest.raises(FileNotFoundError, match="CINIC-10 is missing") as error: Dataset("cinic10").load()
    assert "download" not in str(error.value)


# the real files

def test_the_real_fashion_mnist(real):
    need("FashionMNIST/raw/train-images-idx3-ubyte.gz")
    loaded = Dataset("fashionmnist").load()
    assert loaded.train.labels.bincount().tolist() == [5400] * 10 and loaded.val.labels.bincount().tolist() == [600] * 10
    assert loaded.test.x.shape == (10_000, 1, 28, 28) and loaded.classes[9] == "Ankle boot" and loaded.test.labels[0] == 9
    assert loaded.mean.item() == pytest.approx(.2860, abs=5e-4) and loaded.std.item() == pytest.approx(.3530, abs=5e-4)


def test_the_real_tiny_imagenet_subset(real):
    need("tiny-imagenet-200-subset.zip")
    loaded = Dataset("tiny-imagenet:tiny-imagenet-200-subset.zip").load()
    assert loaded.train.x.shape == (9000, 3, 64, 64) and loaded.test.labels.bincount().tolist() == [50] * 20
    assert loaded.classes[0] == "goldfish" and len(set(loaded.classes)) == 20 and loaded.val.labels.bincount().tolist() == [50] * 20


@pytest.mark.parametrize("file, train, test, first", [
    ("cifar10-jpeg.zip", 50_000, 10_000, "airplane"), ("imagenet32-100.zip", 50_000, 5_000, "goldfish"),
])
def test_the_real_image_folders(file, train, test, first):
    index = image_folders._folder_index(Files(need(file)))
    labels = torch.tensor([y for _, y in index.train])
    assert (len(index.train), len(index.test)) == (train, test) and index.classes[0] == first
    assert labels.bincount().unique().tolist() == [train // len(index.classes)]
    x = data.decode(Files(need(file)), [n for n, _ in index.train[::5000]])
    assert x.shape == (10, 3, 32, 32) and x.float().std() > 30
