"Texts as tokens: what is read, what is refused, the real files, and sentences against brute force."
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from calibkd.data import Dataset, Loaded, Raw, Split, SPECIALS, tokens_of, vocabulary_of, words_of
from calibkd.mixtures import Sentences

REAL = Path(os.environ.get("CALIBKD_DATA", "/nowhere"))
pytestmark = pytest.mark.usefixtures("folders")
TRAIN = [("good", "a fine day"), ("bad", "a grey day")] * 5
TEST = [("bad", "a grey afternoon"), ("good", "fine")]


def tsv(rows, head="label\ttext"):
    return "\n".join([head, *("\t".join(r) for r in rows)]) + "\n"


def moods(root, train=tsv(TRAIN), test=tsv(TEST), name="moods"):
    folder = root / "text" / name
    folder.mkdir(parents=True, exist_ok=True)
    for part, text in (("train", train), ("test", test)):
        (folder / f"{part}.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


# ---- tokens

@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_words_lose_nothing_but_space_and_case(text):
    assert "".join(words_of(text)) == "".join(text.lower().split()) or not text.isprintable()
    assert all(w and not any(c.isspace() for c in w) for w in words_of(text))


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=9), min_size=1, max_size=12), st.integers(0, 5), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_a_vocabulary_holds_the_most_frequent_words(texts, most, least):
    vocabulary, flat = vocabulary_of(texts, most, least), [w for t in texts for w in t]
    words = list(vocabulary)[4:]
    assert tuple(vocabulary)[:4] == SPECIALS and list(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(words) == min(most, sum(flat.count(w) >= least for w in set(flat)))
    left = [flat.count(w) for w in set(flat) - set(words) if flat.count(w) >= least]
    assert not words or not left or min(map(flat.count, words)) >= max(left)


@given(st.lists(st.lists(st.sampled_from("abxy"), min_size=1, max_size=20), min_size=1, max_size=2), st.integers(8, 40))
@settings(max_examples=100, deadline=None)
def test_a_sequence_has_its_length_and_its_marks(texts, length):
    row = tokens_of(texts, {**dict(zip(SPECIALS, range(4))), "a": 4, "b": 5}, length)
    used = [t for t in row if t]
    assert len(row) == length and row == used + [0] * (length - len(used)) and row[0] == 1 and row.count(1) == 1
    assert used[-1] == 2 and used.count(2) == 2 * len(texts) - 1
    assert [t for t in used if t > 2] == [{"a": 4, "b": 5}.get(w, 3) for text in texts for w in text[:length // len(texts) - 2]]


# ---- folders of texts

def test_a_folder_of_texts(folders):
    moods(folders)
    loaded = Dataset("text:moods", val=.2).load()
    assert loaded.classes == ["bad", "good"] and (len(loaded.train), len(loaded.val), len(loaded.test)) == (8, 2, 2)
    assert loaded.vocabulary == loaded.channels == 4 + 4 and loaded.augment == "none" and loaded.supers is None
    assert loaded.train.x.dtype == torch.int64 and loaded.test.x.tolist() == [[1, 4, 7, 3, 2], [1, 6, 2, 0, 0]]
    assert loaded.mean.shape == loaded.std.shape == (0,) and loaded.normalise(loaded.test.x) is loaded.test.x
    part = Dataset("text:moods", train=4, val=0, seed=3).load()
    assert part.vocabulary == loaded.vocabulary and part.train.labels.bincount().tolist() == [2, 2]


def test_where_a_folder_is_looked_for(folders, tmp_path, monkeypatch):
    folder = moods(folders)
    shutil.copytree(folder, folders / "beside")
    shutil.make_archive(folders / "packed", "zip", folders / "text", "moods")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "here")
    names = ["text:moods", "text:beside", "text:here", f"text:{folder}", "text:packed.zip", "text:packed"]
    assert len({Dataset(n).fingerprint() for n in names}) == 1
    first, *others = (Dataset(n, val=0).load() for n in names)
    assert all(torch.equal(first.test.x, o.test.x) for o in others)
    with pytest.raises(FileNotFoundError, match="nowhere is missing.*train.tsv and test.tsv"):
        Dataset("text:nowhere").load()
    with pytest.raises(ValueError, match="needs a path"):
        Dataset("text:").load()


def test_the_fingerprint_follows_what_is_read(folders):
    folder, spec = moods(folders), Dataset("text:moods", val=0)
    first, old = spec.fingerprint(), spec.load()
    (folder / "val.tsv").write_text("not read")
    (folder / "README").write_text("not read")
    assert spec.fingerprint() == first
    moods(folders, test=tsv(TEST[::-1]))
    assert spec.fingerprint() != first and spec.load().test.labels.tolist() == old.test.labels.tolist()[::-1]


def test_the_vocabulary_is_that_of_the_training_texts(folders):
    moods(folders, test=tsv([("bad", "endless endless endless"), ("good", "fine")]))
    assert Dataset("text:moods", val=0).load().test.x[0].tolist() == [1, 3, 3, 3, 2]


def test_pairs_and_line_ends_and_a_byte_order_mark(folders):
    rows = [("yes", "it rains", "it is wet"), ("no", "it rains", "it is dry")] * 3
    moods(folders, b"\xef\xbb\xbf" + tsv(rows, "label\ttext\tpair").replace("\n", "\r\n").encode(), tsv(rows[:2], "label\ttext\tpair"))
    loaded = Dataset("text:moods", val=0).load()
    assert loaded.train.x.shape == (6, 10) and loaded.classes == ["no", "yes"]
    assert (loaded.train.x[0] == 2).sum() == 3 and torch.equal(loaded.train.x[:2], loaded.test.x)


def test_long_texts_are_cut_and_odd_characters_stay_in_a_line(folders):
    moods(folders, tsv([("good", "fine " * 500), ("bad", "grey\u2028day\x0b\x85 grey")] * 2))
    loaded = Dataset("text:moods", val=0).load()
    assert loaded.train.x.shape == (4, 64) and (loaded.train.x[0] > 0).all() and loaded.train.x[0, -1] == 2 and (loaded.train.x[1] > 3).sum() == 3


ODD = {
    "no train": (None, tsv(TEST), "has no train.tsv"), "no test": (tsv(TRAIN), None, "has no test.tsv"), "empty": ("", tsv(TEST), "must begin with a line"),
    "only a head": ("label\ttext\n", tsv(TEST), "train.tsv .* has no text"), "no head": (tsv(TRAIN)[11:], tsv(TEST), "must begin with a line"),
    "another head": (tsv(TRAIN, "text\tlabel"), tsv(TEST), "must begin with a line"), "commas": (tsv(TRAIN).replace("\t", ","), tsv(TEST), "must begin with a line"),
    "a field too few": (tsv([*TRAIN, ("good",)]), tsv(TEST), "Line 12 of train.tsv"), "a field too many": (tsv([*TRAIN, ("good", "a", "b")]), tsv(TEST), "Line 12 of train.tsv"),
    "an empty line": (tsv(TRAIN), tsv(TEST).replace("\nbad", "\n\nbad"), "Line 2 of test.tsv"), "no label": (tsv([*TRAIN, ("", "x")]), tsv(TEST), "Line 12 of train.tsv"),
    "a blank text": (tsv([("good", "  "), *TRAIN]), tsv(TEST), "Line 2 of train.tsv"), "a class missing in test": (tsv(TRAIN), tsv(TEST[:1]), r"differ \(good only in one\)"),
    "a new class in test": (tsv(TRAIN), tsv([*TEST, ("odd", "x")]), r"differ \(odd only in one\)"), "pairs in test alone": (tsv(TRAIN), tsv([(*r, "x") for r in TEST], "label\ttext\tpair"), "other columns"),
    "no UTF-8": (tsv(TRAIN).encode() + b"good\t\xff\xfe\n", tsv(TEST), "train.tsv .* is not UTF-8"), "UTF-16": (tsv(TRAIN).encode("utf-16"), tsv(TEST), "is not UTF-8"),
    "nulls": (bytes(999), tsv(TEST), "must begin with a line"), "one class": (tsv(TRAIN[:1] * 4), tsv(TEST[1:]), "one class only"),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_odd_is_said_in_a_sentence(what, folders):
    train, test, words = ODD[what]
    folder = moods(folders, train or "", test or "")
    for part, text in (("train", train), ("test", test)):
        if text is None:
            (folder / f"{part}.tsv").unlink()
    with pytest.raises(ValueError, match=words) as error:
        Dataset("text:moods", val=0).load()
    assert len(str(error.value).splitlines()) == 1


def test_a_pipe_and_a_huge_file_are_not_read(folders):
    folder = moods(folders)
    os.truncate(folder / "train.tsv", 2 ** 27)
    with pytest.raises(ValueError, match="train.tsv .* has 134217728 bytes"):
        Dataset("text:moods").load()
    (folder / "train.tsv").unlink()
    os.mkfifo(folder / "train.tsv")
    with pytest.raises(ValueError, match="has no train.tsv"):
        Dataset("text:moods").load()


@pytest.mark.parametrize("name", ["sentences", "text:moods"])
@pytest.mark.parametrize("options, words", [(dict(size=8), "is text, which has no pixels"), (dict(corruption="fog", severity=2), "corruptions are for images")])
def test_what_is_for_images_is_refused(name, options, words, folders):
    moods(folders)
    with pytest.raises(ValueError, match=words):
        Dataset(name, train=4, test=2, val=0, **options).load()


def test_a_source_says_the_size_of_its_vocabulary():
    tokens, images = Split.of(np.ones((2, 5), int), [0, 1]), Split.of(np.ones((2, 1, 4, 4), np.uint8), [0, 1])
    for split, vocabulary in ((tokens, None), (images, 9)):
        with pytest.raises(ValueError, match="tokens .* need the size of their vocabulary"):
            Raw(split, split, ["a", "b"], vocabulary=vocabulary)


# ---- the real files

@pytest.mark.parametrize("name, sizes, classes, vocabulary, pair", [
    ("agnews", (10_001, 7_600), 4, 10_004, False), ("sst2", (6_920, 1_821), 2, None, False), ("trec", (5_452, 500), 6, None, False), ("sick", (4_500, 4_927), 3, None, True)])
def test_the_real_texts(name, sizes, classes, vocabulary, pair, monkeypatch):
    if not (REAL / "text" / name / "train.tsv").exists():
        pytest.skip(f"{REAL / 'text' / name} is not there: set CALIBKD_DATA to a folder that holds it")
    monkeypatch.setenv("CALIBKD_DATA", str(REAL))
    loaded = Dataset(f"text:{name}", val=0).load()
    assert (len(loaded.train), len(loaded.test), loaded.num_classes) == (*sizes, classes)
    x = torch.cat([loaded.train.x, loaded.test.x])
    assert x.shape[1] <= 64 and x.max() < loaded.vocabulary <= 10_004 and (vocabulary is None or loaded.vocabulary == vocabulary)
    assert (x[:, 0] == 1).all() and ((x == 2).sum(1) == (3 if pair else 1)).all()
    shown = x[x > 2]
    assert (shown == 3).double().mean() < .15 and (loaded.train.x == 3).any()
    some = Dataset(f"text:{name}", train=300, test=100).load()
    assert (len(some.train), len(some.val), len(some.test)) == (270, 30, 100) and some.vocabulary == loaded.vocabulary


# ---- embedded sentences

def test_sentences_come_between_start_and_end():
    loaded = Dataset("sentences:3", train=300, test=60, val=.1, seed=1).load()
    assert (len(loaded.train), len(loaded.val), len(loaded.test), loaded.num_classes) == (270, 30, 60, 3)
    words, labels, posterior = Sentences(3, .31).sample(60, 3)
    assert torch.equal(loaded.test.x[:, 1:-1] - 4, words) and torch.equal(loaded.test.labels, labels) and torch.equal(loaded.test.posterior, posterior)
    assert (loaded.test.x[:, 0] == 1).all() and (loaded.test.x[:, -1] == 2).all() and loaded.test.x.max() < loaded.vocabulary == 404
    assert not torch.equal(Dataset("sentences:3", train=300, test=60, seed=2).load().test.x, loaded.test.x)
    assert len(Dataset("sentences").load().test) == 4000 and Dataset("sentences").fingerprint() is None
    with pytest.raises(ValueError, match="'5'.*2-hard"):
        Dataset("sentences:5").load()
