"Some 250 odd images, folders and zips: each is one sentence or a correct image, in bounded memory and time."
import io
import os
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibkd.data import Dataset, Files, decode, folders as image_folders

pytestmark = pytest.mark.usefixtures("folders")
RNG = np.random.default_rng(0)
COLOUR, GREY = RNG.integers(0, 256, (10, 12, 3), np.uint8), RNG.integers(0, 256, (10, 12), np.uint8)
SMOOTH = np.add.outer(np.arange(24) * 4, np.arange(32) * 4).astype(np.uint8)[..., None].repeat(3, 2)
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


def saved(image, kind, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth=8, colour=2, rows=b""):
    "A PNG by hand"
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def good():
    "name -> (bytes, the picture (H, W, 3), how far a pixel may be off)"
    rgb, three = Image.fromarray(COLOUR), GREY[..., None].repeat(3, 2)
    alpha, clear = Image.fromarray(np.dstack([COLOUR, GREY])), Image.fromarray(np.dstack([GREY, GREY.T.reshape(10, 12)]), "LA")
    palette = rgb.quantize(16)
    colours = np.array(palette.convert("RGB"))
    bits = Image.fromarray(GREY > 127)
    black = np.array(bits.convert("RGB"))
    deep = b"".join(b"\0" + b"".join(struct.pack(">H", int(v) * 256 + 77) for v in row.ravel()) for row in COLOUR)
    cmyk = Image.fromarray(np.dstack([COLOUR, GREY]), "CMYK")
    inks = np.dstack([COLOUR, GREY]).astype(int)
    printed = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    exact = {
        **{f"rgb {k}": (saved(rgb, k), COLOUR) for k in ("PNG", "BMP", "TIFF", "PPM")},
        **{f"grey {k}": (saved(GREY, k), three) for k in ("PNG", "BMP", "TIFF", "PPM", "GIF")},
        **{f"palette {k}": (saved(palette, k), colours) for k in ("PNG", "BMP", "TIFF", "GIF")},
        **{f"black and white {k}": (saved(bits, k), black) for k in ("PNG", "BMP", "TIFF", "PPM")},
        **{f"tiff {c}": (saved(rgb, "TIFF", compression=c), COLOUR) for c in ("tiff_lzw", "tiff_adobe_deflate", "packbits")},
        "alpha png": (saved(alpha, "PNG"), COLOUR), "alpha tiff": (saved(alpha, "TIFF"), COLOUR), "grey alpha png": (saved(clear, "PNG"), three),
        "lossless webp": (saved(rgb, "WEBP", lossless=True), COLOUR), "grey with a clear level": (saved(GREY, "PNG", transparency=int(GREY[0, 0])), three),
        "rgb with a clear colour": (saved(rgb, "PNG", transparency=tuple(map(int, COLOUR[0, 0]))), COLOUR),
        "palette with clear entries": (saved(palette, "PNG", transparency=bytes(range(0, 256, 16))), colours),
        "palette with one clear entry": (saved(palette, "GIF", transparency=3), colours), "16-bit rgb": (png(12, 10, 16, 2, deep), COLOUR),
        "animated gif": (saved(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]), colours),
        "animated png": (saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)]), COLOUR),
        "animated webp": (saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)], lossless=True), COLOUR),
        "two-page tiff": (saved(rgb, "TIFF", save_all=True, append_images=[rgb.rotate(180)]), COLOUR),
        "junk behind png": (saved(rgb, "PNG") + b"junk" * 99, COLOUR), "one pixel": (saved(COLOUR[:1, :1], "PNG"), COLOUR[:1, :1]),
        "one row": (saved(COLOUR[:1], "PNG"), COLOUR[:1]), "png with a text": (png(12, 10, 8, 2, b"".join(b"\0" + r.tobytes() for r in COLOUR)), COLOUR),
    }
    near = {
        **{f"jpeg {q}": (saved(SMOOTH, "JPEG", quality=q), SMOOTH) for q in (70, 95)}, "progressive jpeg": (saved(SMOOTH, "JPEG", progressive=True, quality=95), SMOOTH),
        "grey jpeg": (saved(SMOOTH[..., 0], "JPEG", quality=95), SMOOTH), "webp": (saved(SMOOTH, "WEBP", quality=95), SMOOTH), "cmyk tiff": (saved(cmyk, "TIFF"), printed),
        "cmyk jpeg": (saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95), SMOOTH), "junk behind jpeg": (saved(SMOOTH, "JPEG", quality=95) + b"\0" * 99, SMOOTH),
    }
    return {n: (d, w, 0) for n, (d, w) in exact.items()} | {n: (d, w, 12) for n, (d, w) in near.items()}


def foreign():
    "name -> bytes of what Pillow would read, or hand to another program, under the name of an image; and of no image at all"
    kinds = {k: saved(COLOUR, k) for k in ("EPS", "PDF", "ICO", "PCX", "TGA", "SGI", "DDS", "IM", "JPEG2000")}
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(/etc/passwd) (r) file\nshowpage\n%%EOF\n"
    return kinds | {
        "PostScript": script, "EPS with a DOS head": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(script)) + b"\0" * 18 + script, "empty": b"", "one byte": b"\x89",
        "text": b"not an image\n" * 9, "HTML": b"<html><body>404</body></html>", "zip": b"PK\x03\x04" + bytes(40), "ELF": b"\x7fELF" + bytes(99), "nulls": bytes(5000),
        "XBM": saved(Image.new("1", (8, 8)), "XBM"), "XPM": b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #000000",\n"a"};', "FITS": b"SIMPLE  =                    T" + b" " * 2900,
        "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(99), "MPEG": b"\0\0\1\xb3" + bytes(40), "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "newlines": b"\n\r\n\0" * 50,
        "16-bit grey png": saved(GREY.astype(np.uint16) * 256, "PNG"), "16-bit tiff": saved(GREY.astype(np.uint16) * 256, "TIFF"), "32-bit tiff": saved(GREY.astype(np.int32), "TIFF"),
        "float tiff": saved(GREY.astype(np.float32), "TIFF"), "16-bit pgm": b"P5 12 10 65535\n" + GREY.astype(">u2").tobytes(),
    }


def huge():
    "name -> bytes of a small file that says it is a huge image, or is one"
    tiff = saved(COLOUR, "TIFF")
    wide = lambda data, at, n, code: data[:at] + struct.pack(code, *([n] * (len(code) - 1))) + data[at + struct.calcsize(code):]
    entry = lambda data, tag, n: (lambda at: data[:at + 2] + struct.pack("<HII", 4, 1, n) + data[at + 12:])(data.index(struct.pack("<H", tag), 8))
    jpeg = saved(COLOUR, "JPEG")
    return {
        **{f"png of {n}": png(n, n) for n in (0, 6_000, 50_000, 2 ** 31 - 1)}, "png of one row": png(2 ** 31 - 1, 1), "white page": png(30_000, 30_000, 1, 0, bytes(30_000 * 3751)),
        **{f"bmp of {n}": wide(saved(COLOUR, "BMP"), 18, n, "<ii") for n in (0, 30_000, 2 ** 31 - 1)}, "gif": wide(saved(GREY, "GIF"), 6, 65_535, "<HH"),
        "jpeg": wide(jpeg, jpeg.index(b"\xff\xc0") + 5, 65_500, ">HH"), "ppm": b"P6 99999 99999 255\n" + bytes(99), "pgm of nothing": b"P5 0 0 255\n", "pbm": b"P4 2000000000 2000000000\n",
        "tiff": entry(entry(tiff, 256, 2 ** 30), 257, 2 ** 30), "tiff of nothing": entry(entry(tiff, 256, 0), 257, 0),
        "webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff" + bytes(4),
    }


def cut():
    whole = {k: saved(SMOOTH, k) for k in FORMATS}
    return {f"{k} cut at {share:.0%}": whole[k][:int(share * len(whole[k]))] for k in FORMATS for share in (.02, .1, .3, .5, .7, .9)}


def mangled():
    "Three bytes of the first 60 changed"
    found = {}
    for k in FORMATS:
        for seed in range(10):
            data, draw = bytearray(saved(SMOOTH, k)), np.random.default_rng(seed)
            for at in draw.integers(0, 60, 3):
                data[at] ^= int(draw.integers(1, 256))
            found[f"{k} mangled {seed}"] = bytes(data)
    return found


def read(data, folder):
    "(picture, None) or (None, the sentence)"
    (folder / "x.png").write_bytes(data)
    try:
        return decode(Files(folder), ["x.png"])[0], None
    except ValueError as error:
        return None, str(error)


def told(sentence, *words):
    assert sentence and len(sentence.splitlines()) == 1 and sentence.isprintable() and len(sentence) < 400, sentence
    assert all(w in sentence for w in words), sentence


@pytest.mark.filterwarnings("ignore")
def test_two_hundred_odd_images(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    start, count = time.process_time(), 0
    for name, (data, want, off) in good().items():
        got, sentence = read(data, tmp_path)
        assert sentence is None, (name, sentence)
        picture = got.expand(3, -1, -1).permute(1, 2, 0).numpy().astype(float)
        assert picture.shape == want.shape and np.abs(picture - want).max() <= off, name
        count += 1
    for name, data in (foreign() | huge()).items():
        got, sentence = read(data, tmp_path)
        assert got is None, name
        told(sentence, "x.png", str(tmp_path))
        count += 1
    for name, data in (cut() | mangled()).items():
        got, sentence = read(data, tmp_path)
        if got is None:
            told(sentence, "x.png", str(tmp_path))
        else:
            assert got.dtype == image_folders.torch.uint8 and got.shape[1] * got.shape[2] <= image_folders.MAX_PIXELS, name
        count += 1
    assert count >= 200 and not started, "no other program may be started"
    assert time.process_time() - start < 20


BOMBS = """
import re, sys, zipfile
from pathlib import Path
from calibkd.data import Dataset, Files, decode
import test_odd_files as odd
folder, images = Path(sys.argv[1]), odd.huge()
said = lambda what: int(re.search(what + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
    for part, size in (("train", 150), ("test", 1)):
        with z.open(f"{part}/a/0.png", "w") as file:
            for _ in range(size): file.write(bytes(2 ** 20))
try: Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
except OSError: pass
before = said("VmRSS")
for data in images.values(): assert odd.read(data, folder)[0] is None
try: Dataset(f"folder:{folder}/bomb.zip", val=0).load()
except ValueError as error: assert "has 157286400 bytes, unpacked" in str(error)
else: assert False
print(said("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak of memory is read from Linux's /proc")
def test_what_says_it_is_huge_takes_no_memory(tmp_path):
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert not out.returncode, out.stderr
    assert float(out.stdout.split()[-1]) < 60, "MiB; the white page alone would take 2,700, the zip 150"


# ---- folders and zips

def pets(root):
    for name in ("train/a/0.png", "train/a/1.png", "train/b/0.png", "test/a/0.png", "test/b/0.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(saved(COLOUR + len(name), "PNG"))
    return root


def packed(root, path, **more):
    with zipfile.ZipFile(path, "w") as z:
        for file in sorted(root.rglob("*.png")):
            z.write(file, file.relative_to(root))
        for name, data in more.items():
            z.writestr(name, data)
    return path


def a_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path.name)
    os.chdir(here)


PASSED_OVER = {
    "a loop": lambda r: os.symlink("..", r / "train/a/loop"), "a loop to itself": lambda r: os.symlink("self", r / "train/a/self"),
    "two that lead to each other": lambda r: (os.symlink("q", r / "train/a/p"), os.symlink("p", r / "train/a/q")), "a link to nowhere": lambda r: os.symlink("nowhere", r / "train/b/9.png"),
    "a loop by way of another folder": lambda r: ((r.parent / "way").mkdir(), os.symlink(r, r.parent / "way/back"), os.symlink(r.parent / "way", r / "train/a/way")), "a pipe": lambda r: os.mkfifo(r / "train/a/9.png"), "a pipe for a table": lambda r: os.mkfifo(r / "classes.tsv"),
    "a device": lambda r: os.symlink("/dev/zero", r / "test/b/9.png"), "a socket": lambda r: a_socket(r / "train/b/9.png"), "a folder like an image": lambda r: (r / "train/a/9.png").mkdir(),
    "deep folders": lambda r: (r / "train/a" / "/".join("d" * 300)).mkdir(parents=True), "junk": lambda r: (r / "train/a/._9.png").write_bytes(b"\n"),
    "other files": lambda r: (r / "train/a/notes.txt").write_bytes(b"\0"), "a file at the top": lambda r: (r / "9.png").write_bytes(b""),
}


@pytest.mark.parametrize("what", PASSED_OVER)
def test_what_is_no_regular_file_is_passed_over(what, folders):
    want = Dataset(f"folder:{pets(folders / 'plain')}", val=0).load()
    PASSED_OVER[what](pets(folders / "odd"))
    got = Dataset("folder:odd", val=0).load()
    assert np.array_equal(got.train.x, want.train.x) and np.array_equal(got.test.x, want.test.x) and got.classes == want.classes


def test_a_link_to_a_folder_or_an_image_counts(folders):
    root = pets(folders / "odd")
    os.symlink("a", root / "train" / "c")
    os.symlink(root / "train/a/0.png", root / "train/b/9.png")
    os.symlink("../train/a", root / "test/c")
    loaded = Dataset("folder:odd", val=0).load()
    assert loaded.train.labels.tolist() == [0, 0, 1, 1, 2, 2] and loaded.test.labels.tolist() == [0, 1, 2, 2]


REFUSED = {
    "a newline in a name": (lambda r: (r / "train/a/x\ny.png").write_bytes(b""), r"x\ny.png"), "an escape in a name": (lambda r: (r / "train/a/\x1b[2J.png").write_bytes(b""), r"\x1b[2J"),
    "a name that is not UTF-8": (lambda r: Path(os.fsdecode(os.fsencode(r) + b"/train/a/\xff.png")).write_bytes(b""), r"\udcff.png"),
    "a class with a newline": (lambda r: ((r / "train/c\n").mkdir(), (r / "test/c\n").mkdir()), r"c\n"), "a table that is not UTF-8": (lambda r: (r / "classes.tsv").write_bytes(b"a\t\xff\n"), "classes.tsv"),
    "a huge file": (lambda r: os.truncate(r / "train/a/0.png", 2 ** 27), "train/a/0.png"), "train is a file": (lambda r: [(r / "train").rename(r / "x"), (r / "train").write_text("")], "train/<class>/"),
    "nothing": (lambda r: [(r / p).rename(r / f".{p}") for p in ("train", "test")], "holds nothing"), "a pipe for an only image": (lambda r: [(r / "test/b/0.png").unlink(), os.mkfifo(r / "test/b/0.png")], "test/b"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_safely_is_refused(what, folders):
    spoil, words = REFUSED[what]
    spoil(pets(folders / "odd"))
    with pytest.raises(ValueError) as error:
        Dataset("folder:odd", val=0).load()
    told(str(error.value), words, "odd")


@pytest.mark.parametrize("make", [os.mkfifo, lambda p: os.symlink("/dev/zero", p), a_socket, lambda p: p.write_bytes(b"PK")], ids=["pipe", "device", "socket", "file"])
def test_a_path_that_is_neither_folder_nor_zip(make, folders):
    make(folders / "odd.zip")
    with pytest.raises(ValueError) as error:
        Dataset("folder:odd.zip").load()
    told(str(error.value), "neither a folder nor a zip")


def test_limits_of_listings(folders, monkeypatch):
    pets(folders / "odd"), packed(folders / "odd", folders / "odd.zip")
    for name, value, words in (("MAX_NAMES", 4, "more than 4 files"), ("MAX_TOTAL", 99, "more than 99 bytes")):
        with monkeypatch.context() as patch:
            patch.setattr(image_folders, name, value)
            for path in ("odd", "odd.zip"):
                with pytest.raises(ValueError, match=words):
                    Dataset(f"folder:{path}").load()


ZIPS = {  # name -> how to write it, words of the sentence; None: it is read as if nothing were odd
    "names that lead out": (lambda r, p: packed(r, p, **{"../../evil.png": b"", "/train/a/../../b.png": b""}), None), "a Windows name": (lambda r, p: packed(r, p, **{"C:\\x.png": b""}), None),
    "a newline": (lambda r, p: packed(r, p, **{"train/a/x\ny.png": b""}), r"x\ny.png"), "an escape": (lambda r, p: packed(r, p, **{"train/a/\x1b.png": b""}), r"\x1b"),
    "a folder twice": (lambda r, p: packed(r, p, **{"train/": b"", "train/a/": b""}), None), "a zip in it": (lambda r, p: packed(r, p, **{"inner.zip": packed(r, p.with_name("i.zip")).read_bytes()}), None),
    "cut": (lambda r, p: p.write_bytes(packed(r, p).read_bytes()[:-40]), "neither a folder nor a zip"), "cut in the middle": (lambda r, p: p.write_bytes(packed(r, p).read_bytes()[:300]), "neither"),
    "encrypted": (lambda r, p: p.write_bytes(flagged(packed(r, p).read_bytes(), 8, 1)), "cannot be read"), "packed in an unknown way": (lambda r, p: p.write_bytes(flagged(packed(r, p).read_bytes(), 10, 97)), "cannot be read"),
    "no UTF-8": (lambda r, p: p.write_bytes(flagged(packed(r, p).read_bytes().replace(b"train/a/0.png", b"train/a/\xff.png"), 8, 0x800)), "neither"),
    "names that disagree": (lambda r, p: p.write_bytes(packed(r, p).read_bytes().replace(b"train/a/0.png", b"train/a/7.png", 1)), None),
    "a size that lies": (lambda r, p: p.write_bytes(sized(packed(r, p).read_bytes(), 7)), "cannot be read"), "a huge size": (lambda r, p: p.write_bytes(sized(packed(r, p).read_bytes(), 2 ** 31)), "bytes, unpacked"),
    "nothing": (lambda r, p: zipfile.ZipFile(p, "w").close(), "holds nothing"),
}


def flagged(raw, at, value):
    "Every entry of the central directory with another number"
    out, here = bytearray(raw), raw.find(b"PK\1\2")
    while here >= 0:
        out[here + at:here + at + 2] = struct.pack("<H", value)
        here = raw.find(b"PK\1\2", here + 4)
    return bytes(out)


def sized(raw, size):
    "The first member with another unpacked size"
    at = raw.find(b"PK\1\2") + 24
    return raw[:at] + struct.pack("<I", size) + raw[at + 4:]


@pytest.mark.parametrize("what", ZIPS)
def test_odd_zips(what, folders):
    make, words = ZIPS[what]
    make(pets(folders / "plain"), folders / "odd.zip")
    if words is None and what != "names that disagree":
        got, want = (Dataset(f"folder:{n}", val=0).load() for n in ("odd.zip", "plain"))
        assert np.array_equal(got.train.x, want.train.x) and got.classes == want.classes
        assert not (folders.parent / "evil.png").exists()
        return
    with pytest.raises(ValueError) as error:
        Dataset("folder:odd.zip", val=0).load()
    told(str(error.value), words or "cannot be read")
