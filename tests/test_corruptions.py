"Corruptions against independent references, and corrupted data sets, published or computed."
import hashlib
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage, signal
from torch.nn import functional as F

from calibkd import corruptions, data
from calibkd.corruptions import EXTRA, SEVERITY, STANDARD, corrupt
from calibkd.data import Dataset

REAL = Path(os.environ.get("CALIBKD_DATA", "/nowhere"))
pytestmark = pytest.mark.usefixtures("folders")
# Their constants do not rise in one direction, or a stronger one acts on a milder place: so in the published arrays as well
NOT_MONOTONE = {"glass_blur", "frost", "elastic_transform", "spatter", "saturate"}


def photos(n, channels=3, size=32, seed=0):
    "Images whose amplitudes fall as 1/f, as in photographs, with correlated channels."
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    f[0, 0] = np.inf
    z = rng.standard_normal((n, 1, size, size)) + .5 * rng.standard_normal((n, channels, size, size))
    z = np.fft.irfft2(np.fft.rfft2(z) / f, (size, size))
    z = 120 + rng.normal(0, 30, (n, 1, 1, 1)) + 50 * z / z.std((1, 2, 3), keepdims=True)
    return torch.from_numpy(z.clip(0, 255).astype(np.uint8))


def unit(x):
    return x.numpy().astype(float) / 255


def close(got, want, mean=.6, worst=1.01):
    "Bytes of a corruption against a reference in [0, 1], up to truncation and rounding."
    gap = np.abs(got.numpy() - np.floor(np.clip(want, 0, 1) * 255 + 1e-3))
    assert gap.max() <= worst and gap.mean() <= mean, (gap.max(), gap.mean())


def distances(x, kind):
    return [(corrupt(x, kind, s).double() - x).square().mean().sqrt().item() for s in range(1, 6)]


# ---- what was published

def test_the_constants_are_those_of_the_32_pixel_benchmark():
    "As they stand in make_cifar_c.py; where it has expressions, they are evaluated"
    side = 32
    published = dict(
        gaussian_noise=[0.04, 0.06, .08, .09, .10], shot_noise=[500, 250, 100, 75, 50], impulse_noise=[.01, .02, .03, .05, .07],
        defocus_blur=[(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        glass_blur=[(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        motion_blur=[(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        snow=[(0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
              (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)],
        frost=[(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)], fog=[(.2, 3), (.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        brightness=[.05, .1, .15, .2, .3], contrast=[.75, .5, .4, .3, 0.15],
        pixelate=[0.95, 0.9, 0.85, 0.75, 0.65], jpeg_compression=[80, 65, 58, 50, 40],
        speckle_noise=[.06, .1, .12, .16, .2], gaussian_blur=[.4, .6, 0.7, .8, 1],
        spatter=[(0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0), (0.65, 0.3, 1, 0.69, 0.5, 0),
                 (0.65, 0.1, 0.7, 0.69, 0.6, 1), (0.65, 0.1, 0.5, 0.68, 0.6, 1)],
        saturate=[(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)])
    for kind, values in published.items():
        assert list(SEVERITY[kind]) == values, kind
    elastic = [(side*0, side*0, side*0.08), (side*0.05, side*0.2, side*0.07), (side*0.08, side*0.06, side*0.06),
               (side*0.1, side*0.04, side*0.05), (side*0.1, side*0.03, side*0.03)]
    np.testing.assert_allclose(np.array(SEVERITY["elastic_transform"]) * side, elastic)
    zooms = [np.arange(1, 1.06, 0.01), np.arange(1, 1.11, 0.01), np.arange(1, 1.16, 0.01), np.arange(1, 1.21, 0.01), np.arange(1, 1.26, 0.01)]
    for end, want in zip(SEVERITY["zoom_blur"], zooms):
        np.testing.assert_array_equal(np.arange(1, end, .01), want)
    assert {*published, "elastic_transform", "zoom_blur"} == set(SEVERITY)


def test_names_are_those_of_the_published_files():
    assert STANDARD == ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
                        "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression")
    assert set(EXTRA) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"} and set(corruptions.CORRUPTIONS) == {*STANDARD, *EXTRA}


# ---- every kind

@pytest.mark.parametrize("kind", SEVERITY)
def test_every_severity_harms_and_a_higher_one_more(kind):
    far = distances(photos(250), kind)
    assert min(far) > .5
    if kind not in NOT_MONOTONE:
        assert far == sorted(far) and far[4] > 1.15 * far[0], far
    else:
        assert max(far) < 8 * min(far), far


@pytest.mark.parametrize("kind", SEVERITY)
def test_the_result_depends_on_image_seed_kind_and_severity_alone(kind):
    x = photos(7)
    kept, y = x.clone(), corrupt(x, kind, 4, seed=1)
    order = torch.tensor([3, 6, 0])
    assert torch.equal(x, kept) and y.dtype == torch.uint8 and y.shape == x.shape
    assert torch.equal(corrupt(x[order], kind, 4, seed=1), y[order])
    assert torch.equal(corrupt(x[2:3], kind, 4, seed=1), y[2:3])
    strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(corrupt(strided, kind, 4, seed=1), y)
    fixed = kind in {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur", "saturate"}
    assert torch.equal(corrupt(x, kind, 4, seed=2), y) == fixed
    assert not torch.equal(corrupt(x, kind, 5, seed=1), y)


def test_chunks_leave_no_seam():
    x = photos(2 ** 20 // (3 * 32 * 32) + 5)
    assert torch.equal(corrupt(x, "fog", 2)[-9:], corrupt(x[-9:], "fog", 2))


def test_another_process_draws_the_same():
    code = "import hashlib, torch; from calibkd.corruptions import SEVERITY, corrupt; x = torch.arange(3072).reshape(1, 3, 32, 32).byte();" \
           "print(hashlib.md5(b''.join(corrupt(x, k, 5).numpy().tobytes() for k in SEVERITY)).hexdigest())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    x = torch.arange(3072).reshape(1, 3, 32, 32).byte()
    assert there == hashlib.md5(b"".join(corrupt(x, k, 5).numpy().tobytes() for k in SEVERITY)).hexdigest()


@pytest.mark.parametrize("kind", SEVERITY)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(shape=st.tuples(st.integers(1, 3), st.sampled_from((1, 3)), st.integers(8, 40), st.integers(8, 40)),
       severity=st.integers(1, 5), value=st.sampled_from((0, 255, None)))
def test_any_shape_and_black_and_white(kind, shape, severity, value):
    x = torch.full(shape, value, dtype=torch.uint8) if value is not None else torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with np.errstate(all="raise", under="ignore"):
        y = corrupt(x, kind, severity)
    assert y.shape == x.shape and y.dtype == torch.uint8


@pytest.mark.parametrize("kind", SEVERITY)
def test_grey_images_are_as_equal_channels(kind):
    grey = photos(60, channels=1)
    y = corrupt(grey, kind, 3)
    if kind == "saturate":  # no colour to saturate
        assert torch.equal(y, grey)
        return
    assert (y != grey).any((1, 2, 3)).all()
    far, as_rgb = ((corrupt(x, kind, 3).double() - x).square().mean().sqrt() for x in (grey, grey.expand(-1, 3, -1, -1).contiguous()))
    assert abs(far / as_rgb - 1) < .15


# ---- against others' implementations

@pytest.mark.parametrize("severity", range(1, 6))
def test_gaussian_blur_is_torchvisions_with_the_border_repeated(severity):
    x, sigma = photos(4), SEVERITY["gaussian_blur"][severity - 1]
    r = int(4 * sigma + .5)
    padded = F.pad(torch.from_numpy(unit(x)), [r] * 4, "replicate")
    want = torchvision.transforms.functional.gaussian_blur(padded, [2 * r + 1] * 2, [sigma] * 2)[..., r:-r, r:-r]
    close(corrupt(x, "gaussian_blur", severity), want.numpy(), mean=.02)


@pytest.mark.parametrize("severity", range(1, 6))
def test_defocus_is_a_convolution_with_the_full_disk(severity):
    x, (radius, sigma) = photos(4), SEVERITY["defocus_blur"][severity - 1]
    L = np.arange(-8, 9)
    disk = ((L[:, None] ** 2 + L ** 2) <= radius ** 2).astype(float)
    soft = np.exp(-np.hypot(*np.mgrid[-1:2, -1:2]) ** 2 / (2 * sigma ** 2))
    kernel = signal.convolve2d(disk / disk.sum(), soft / soft.sum(), mode="same")
    padded = np.pad(unit(x), [(0, 0), (0, 0), (8, 8), (8, 8)], "reflect")
    want = np.stack([[signal.correlate2d(c, kernel, mode="valid") for c in image] for image in padded])
    close(corrupt(x, "defocus_blur", severity), want, mean=.02)


@pytest.mark.parametrize("severity", range(1, 6))
def test_zoom_blur_is_scipys_zoom(severity):
    x, total = photos(3), 0
    zooms = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1], .01)
    for zoom in zooms:
        cut = int(np.ceil(32 / zoom))
        top = (32 - cut) // 2
        large = ndimage.zoom(unit(x)[:, :, top:top + cut, top:top + cut], (1, 1, zoom, zoom), order=1)
        trim = (large.shape[2] - 32) // 2
        total = total + large[:, :, trim:trim + 32, trim:trim + 32]
    close(corrupt(x, "zoom_blur", severity), (unit(x) + total) / (len(zooms) + 1), mean=.02)


@pytest.mark.parametrize("radius,sigma,angle", [(6, 1, 30.), (9, 2.5, -45.), (14, 12, -100.), (8, 3, 135.)])
def test_motion_blur_reads_pixel_after_pixel_along_the_line(radius, sigma, angle):
    x = unit(photos(1, channels=1))[0, 0]
    k = np.exp(-np.arange(2 * radius + 1) ** 2 / (2 * sigma ** 2))
    want = np.zeros_like(x)
    for y in range(32):
        for col in range(32):
            for i, weight in enumerate(k / k.sum()):
                dy, dx = (int(np.ceil(i * f(np.deg2rad(angle)) - .5)) for f in (np.sin, np.cos))
                want[y, col] += weight * x[min(max(y + dy, 0), 31), min(max(col + dx, 0), 31)]
    got = corruptions._streak(x[None, None].astype(np.float32), radius, sigma, np.array([angle]))[0, 0]
    lost = want * 255 - got * 255
    assert -.003 < lost.min() and lost.max() < 1 and .4 < lost.mean() < .55  # truncated: rounded, it would be 0 on average


def test_glass_takes_each_pixel_from_the_upper_left():
    x = photos(3)
    y = corrupt(x, "glass_blur", 1)  # sigma .05: no blur
    assert torch.equal(y[:, :, :2], x[:, :, :2]) and torch.equal(y[:, :, :, :2], x[:, :, :, :2])
    near = torch.stack([x.roll((i, j), (2, 3)) for i in (0, 1) for j in (0, 1)])
    hit = (y == near).all(2)[:, :, 2:, 2:]
    assert hit.any(0).all() and all(.15 < h.double().mean() < .45 for h in hit)


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("channels", (1, 3))
def test_jpeg_is_pillows(severity, channels, tmp_path):
    x = photos(5, channels)
    y = corrupt(x, "jpeg_compression", severity)
    quality = (80, 65, 58, 50, 40)[severity - 1]
    for image, got in zip(x, y):
        pixels = image.permute(1, 2, 0).numpy().squeeze()
        Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=quality)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "x.jpg")), got.permute(1, 2, 0).numpy().squeeze())
        other = torchvision.io.decode_jpeg(torchvision.io.encode_jpeg(image, quality))
        assert (other.int() - got.int()).abs().double().mean() < 1  # another libjpeg


@pytest.mark.parametrize("severity", range(1, 6))
def test_pixelate_has_blocks(severity):
    x = photos(3)
    small = int(32 * (.95, .9, .85, .75, .65)[severity - 1])
    y = corrupt(x, "pixelate", severity)
    rows = (y[:, :, 1:] == y[:, :, :-1]).all((0, 1, 3))
    assert rows.sum() == 32 - small  # so many rows repeat the one above
    assert abs(y.double().mean() - x.double().mean()) < 1.5


@pytest.mark.parametrize("severity", range(1, 6))
def test_brightness_and_saturation_are_matplotlibs_hsv(severity):
    x = torch.cat([photos(3), torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))])
    hsv = rgb_to_hsv(unit(x).transpose(0, 2, 3, 1))
    bright, vivid = hsv.copy(), hsv.copy()
    bright[..., 2] = np.clip(hsv[..., 2] + (.05, .1, .15, .2, .3)[severity - 1], 0, 1)
    factor, more = ((.3, 0), (.1, 0), (1.5, 0), (2, .1), (2.5, .2))[severity - 1]
    vivid[..., 1] = np.clip(hsv[..., 1] * factor + more, 0, 1)
    for kind, want in (("brightness", bright), ("saturate", vivid)):
        close(corrupt(x, kind, severity), hsv_to_rgb(want).transpose(0, 3, 1, 2), mean=.02)


@pytest.mark.parametrize("severity", range(1, 6))
def test_contrast_keeps_the_mean_and_scales_the_rest(severity):
    x, c = photos(5), (.75, .5, .4, .3, .15)[severity - 1]
    y = corrupt(x, "contrast", severity).double() + .5  # truncation
    torch.testing.assert_close(y.mean((2, 3)), x.double().mean((2, 3)), atol=.3, rtol=0)
    torch.testing.assert_close(y.std((2, 3)), c * x.double().std((2, 3)), atol=.2, rtol=0)


def test_noise_has_its_distribution():
    x = (torch.arange(60, dtype=torch.uint8) + 90)[:, None, None, None].repeat(1, 3, 32, 32)
    shot = corrupt(x, "shot_noise", 5)[0]  # so few photons that their number can be told from the byte
    photons = torch.ceil(shot.double() / 255 * 50 - .01).flatten().numpy()
    rate = 90 / 255 * 50
    assert abs(photons.mean() - rate) < .5 and abs(photons.var() / rate - 1) < .1
    gauss = (corrupt(x, "gaussian_noise", 3).double() - x + .5) / 255 / .08
    assert abs(gauss.mean()) < .01 and abs(gauss.std() - 1) < .01 and abs((gauss.abs() > 1.96).double().mean() - .05) < .003
    speckle = ((corrupt(x, "speckle_noise", 2) + .5) / x - 1) / .1
    assert abs(speckle.mean()) < .02 and abs(speckle.std() - 1) < .03
    impulse = corrupt(x, "impulse_noise", 4)
    assert all(abs((impulse == v).double().mean() - .025) < .002 for v in (0, 255)) and ((impulse == x) | (impulse == 0) | (impulse == 255)).all()
    assert abs(np.corrcoef(gauss[:, 0].flatten(), gauss[:, 1].flatten())[0, 1]) < .02  # channels are independent


def test_fog_lies_between_its_bounds_and_is_smooth():
    x = torch.full((50, 3, 32, 32), 200, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.arange(50) + 100  # unequal images: equal ones get equal fog
    for (density, _), severity in zip(SEVERITY["fog"], range(1, 6)):
        y = corrupt(x, "fog", severity)[:, 1].double()
        top = 200 / 255
        assert (y.amin((1, 2)) - 200 * top / (top + density)).abs().max() < 1.1 and (y.amax((1, 2)) - 200).abs().max() < 1.1
    assert (y[:, 1:] - y[:, :-1]).abs().mean() < .5 * y.std()


def test_snow_falls_on_both_halves_and_brightens():
    x = torch.zeros(20, 1, 32, 32, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.arange(20)
    for severity in range(1, 6):
        y = corrupt(x, "snow", severity)[:, 0, :, :].int()
        ground = int((1 - SEVERITY["snow"][severity - 1][6]) / 2 * 255 + 1e-3)
        y[:, 0, 0] = y[:, -1, -1]  # the marked corner
        assert (y - y.flip(1, 2)).abs().max() <= 1 and y.min() == ground and y.amax((1, 2)).double().mean() > ground + 20


def test_frost_has_the_spectrum_of_the_photographs():
    "Shares of power above .3 cycles per pixel of 400 crops of each of the five photographs, as the benchmark scales them"
    photographs = (.345, .454, .457, .521, .440)
    f = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32))
    y = np.concatenate([corrupt(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), "frost", 5, seed=s).numpy()[0] for s in range(400)])
    power = np.abs(np.fft.fft2(y - y.mean((1, 2), keepdims=True))) ** 2
    shares = power[:, f > .3].sum(1) / power.sum((1, 2))
    assert abs(shares.mean() - np.mean(photographs)) < .03 and shares.std() > .05
    low = power.mean(0)[(f > .01) & (f < .05)].mean() / power.mean(0)[f > 0].mean()
    assert 12 < low < 30  # 13 to 39 in the photographs


def test_elastic_of_severity_1_is_affine():
    ramp = (torch.arange(32)[:, None] * 3 + torch.arange(32) * 2 + 40).byte()
    x = (ramp + torch.arange(20)[:, None, None].byte())[:, None]
    y = corrupt(x, "elastic_transform", 1).double()[:, 0, 10:22, 10:22]
    assert max(y.diff(n=2, dim=d).abs().max() for d in (1, 2)) <= 2  # truncation alone
    assert (y.diff(dim=2).mean((1, 2)) - 2).abs().max() > .1  # but another slope
    rough = corrupt(x, "elastic_transform", 5).double()[:, 0, 10:22, 10:22]
    assert rough.diff(n=2, dim=2).abs().mean() > 2 * y.diff(n=2, dim=2).abs().mean()


@pytest.mark.parametrize("severity", range(1, 6))
def test_elastic_is_two_interpolations_of_scipy(severity):
    x = photos(3)
    rngs = corruptions._streams(x.numpy(), f"0/elastic_transform/{severity}")
    shift, sigma, jitter = (32 * share for share in SEVERITY["elastic_transform"][severity - 1])
    rows, cols = corruptions._affine(rngs, 32, 32, jitter)
    want = []
    for image, row, col, g in zip(unit(x), rows, cols, rngs):
        dy, dx = (ndimage.gaussian_filter(2. * u - 1, sigma, mode="reflect", truncate=3) * shift for u in g.random((2, 32, 32), np.float32))
        y, z = np.mgrid[:32, :32]
        first = [ndimage.map_coordinates(c, (row, col), order=1, mode="mirror") for c in image]
        want.append([ndimage.map_coordinates(c, (y + dy, z + dx), order=1, mode="reflect") for c in first])
    close(corrupt(x, "elastic_transform", severity), np.array(want), mean=.02)


def test_frost_has_the_photographs_colours():
    x = torch.zeros(300, 3, 32, 32, dtype=torch.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = torch.arange(300) % 250, torch.arange(300) // 250
    for severity, (_, weight) in enumerate(SEVERITY["frost"], 1):
        rgb = (corrupt(x, "frost", severity).double() + .5).mean((0, 2, 3)) / weight
        torch.testing.assert_close(rgb, torch.tensor([144., 165., 177.]).double(), atol=10, rtol=0)


def test_water_is_turquoise_and_mud_brown():
    x = torch.zeros(30, 3, 32, 32, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.arange(30)
    water = corrupt(x, "spatter", 3)[:, :, 1:].double()
    wet = water[:, 1] > 60
    assert wet.any() and ((water[:, 0] / water[:, 1])[wet] - 175 / 238).abs().max() < .03 and torch.equal(water[:, 1], water[:, 2])
    mud = corrupt(255 - x, "spatter", 5)[:, :, 1:]
    assert .05 < (mud[:, 0] < 200).double().mean() < .6 and (mud.amin((0, 2, 3)).int() - torch.tensor([63, 42, 20])).abs().max() <= 6


@pytest.mark.parametrize("args,words", [
    ((photos(1), "frosty"), ("'frosty'", "did you mean 'frost'")), ((photos(1), "Gaussian_Noise"), ("did you mean 'gaussian_noise'",)),
    ((photos(1), "fog", 0), ("fog", "1 (mild) to 5 (strong)", "0")), ((photos(1), "fog", 6), ("6",)), ((photos(1), "fog", 2.), ("2.0",)),
    ((photos(1), "fog", True), ("True",)), ((photos(1), ["fog"]), ("['fog']",)), ((photos(1), "zzzzzz"), ("known: gaussian_noise",)),
    ((photos(1).float(), "fog"), ("uint8", "torch.float32")), ((photos(1)[0], "fog"), ("(3, 32, 32)",)),
    ((photos(1)[:, :2], "fog"), ("one or three channels", "(1, 2, 32, 32)")), ((photos(1)[..., :7], "fog"), ("8×8",)),
    ((np.zeros((1, 3, 8, 8), np.uint8), "fog"), ("ndarray",))])
def test_bad_input_is_one_sentence(args, words):
    with pytest.raises(ValueError) as error:
        corrupt(*args)
    assert all(w in str(error.value) for w in words) and "\n" not in str(error.value)


# ---- data sets

def test_a_corrupted_data_set_differs_in_its_test_images_alone():
    clean, foggy = Dataset("digits", test=50), Dataset("digits", test=50, corruption="fog", severity=2)
    a, b = clean.load(), foggy.load()
    assert all(torch.equal(getattr(a.train, k), getattr(b.train, k)) and torch.equal(getattr(a.val, k), getattr(b.val, k)) for k in ("x", "labels", "index"))
    assert torch.equal(a.test.labels, b.test.labels) and torch.equal(a.test.index, b.test.index)
    assert torch.equal(b.test.x, corrupt(a.test.x, "fog", 2)) and b.augment == "none" and torch.equal(a.mean, b.mean)
    whole = Dataset("digits", corruption="fog", severity=2).load().test
    where = torch.searchsorted(whole.index, b.test.index)
    assert torch.equal(whole.x[where], b.test.x)  # a subset of the corrupted is the corrupted subset
    assert not torch.equal(Dataset("digits", test=50, corruption="fog", severity=3).load().test.x, b.test.x)


def test_float_images_keep_their_range():
    clean = Dataset(train=300, test=100).load()
    low, high = clean.train.x.aminmax()
    for kind in ("contrast", "brightness", "gaussian_noise"):
        rough = Dataset(train=300, test=100, corruption=kind, severity=4).load()
        assert rough.test.x.dtype == torch.float32 and rough.test.posterior is None and rough.train.posterior is not None
        assert low - 1e-4 <= rough.test.x.min() and rough.test.x.max() <= high + 1e-4
    mild = Dataset(train=300, test=100, corruption="gaussian_blur", severity=1).load()
    inside = clean.test.x.clamp(low, high)
    assert 0 < (mild.test.x - inside).square().mean() < .05 * inside.var()


@pytest.mark.parametrize("options,words", [
    (dict(corruption="fogg", severity=1), "did you mean 'fog'"), (dict(corruption="fog"), "fog needs an integer severity"),
    (dict(corruption="fog", severity=9), "not 9"), (dict(severity=3), "needs a corruption")])
def test_a_wrong_spec_is_refused_before_anything_is_loaded(options, words):
    with pytest.raises(ValueError, match=words):
        Dataset("nowhere", **options)


def test_old_runs_keep_their_identity():
    from calibkd.runs import canonical
    assert set(canonical(Dataset())) == {"type", "name", "val", "seed"}
    assert canonical(Dataset(corruption="fog", severity=2)) == canonical(Dataset()) | {"corruption": "fog", "severity": 2}


# ---- the published arrays

def arrays(root, name="CIFAR-10-C", n=6, classes=10, kind="fog"):
    "Miniature files in the official layout; byte 0 of an image is its position"
    folder = root / name
    folder.mkdir(exist_ok=True)
    x = np.random.default_rng(0).integers(0, 256, (5 * n, 32, 32, 3), np.uint8)
    x[:, 0, 0, 0] = np.arange(5 * n)
    np.save(folder / f"{kind}.npy", x)
    np.save(folder / "labels.npy", np.tile(np.arange(n) % classes, 5).astype(np.uint8))
    return x


@pytest.mark.parametrize("name,folder,classes", [("cifar10-c", "CIFAR-10-C", 10), ("cifar100-c", "CIFAR-100-C", 100)])
def test_published_arrays_without_the_training_data(name, folder, classes, folders):
    x = arrays(folders, folder)
    for severity in range(1, 6):
        loaded = Dataset(name, corruption="fog", severity=severity).load()
        want = x[6 * (severity - 1):6 * severity].transpose(0, 3, 1, 2)
        assert np.array_equal(loaded.test.x.numpy(), want) and loaded.test.labels.tolist() == list(range(6))
        assert loaded.test.index.tolist() == list(range(6)) and loaded.test.labels.dtype == torch.int64
        assert (len(loaded.train), len(loaded.val), loaded.num_classes, loaded.channels) == (0, 0, classes, 3)
        torch.testing.assert_close(loaded.mean, torch.tensor(data.CIFAR_STATS[name[:-2]][0]))
    assert loaded.normalise(loaded.test.x).isfinite().all() and loaded.train.x.dtype == torch.uint8


def test_options_of_the_published_arrays(folders):
    arrays(folders, n=20)
    some = Dataset("cifar10-c", corruption="fog", severity=2, test=10, train=500, val=.2, seed=1).load()  # as a training's spec may say
    assert some.test.labels.tolist() == some.test.labels.sort().values.tolist() or len(some.test.labels.unique()) == 10
    assert torch.equal(some.test.x[:, 0, 0, 0].long(), 20 + some.test.index) and len(some.train) == 0
    assert Dataset("cifar10-c", corruption="fog", severity=2, size=16).load().test.x.shape == (20, 3, 16, 16)
    with pytest.raises(ValueError, match="test=21.*20 test samples"):
        Dataset("cifar10-c", corruption="fog", severity=2, test=21).load()
    with pytest.raises(ValueError, match="cifar10-c needs a corruption and a severity"):
        Dataset("cifar10-c").load()
    assert Dataset("cifar10-c", corruption="fog", severity=2).fingerprint() is None


def test_only_the_severity_that_is_wanted_is_read(folders, monkeypatch):
    x, seen = arrays(folders), []
    load = np.load
    monkeypatch.setattr(np, "load", lambda *a, **k: seen.append(k) or load(*a, **k))
    loaded = Dataset("cifar10-c", corruption="fog", severity=4).load()
    assert all(k == dict(mmap_mode="r", allow_pickle=False) for k in seen) and len(seen) == 2
    assert loaded.test.x.untyped_storage().nbytes() == x.nbytes // 5


def test_the_training_data_are_cifars_where_they_are(folders, monkeypatch):
    x = arrays(folders)
    rng, files = np.random.default_rng(1), torchvision.datasets.CIFAR10
    base = folders / files.base_folder
    base.mkdir()
    for batch, _ in (*files.train_list, *files.test_list):
        content = {"data": rng.integers(0, 256, (10, 3072), np.uint8), "labels": list(range(10))}
        (base / batch).write_bytes(pickle.dumps(content))
    (base / files.meta["filename"]).write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *a: True)
    foggy, clean = Dataset("cifar10-c", corruption="fog", severity=1, train=40, test=5).load(), Dataset("cifar10", train=40).load()
    assert torch.equal(foggy.train.x, clean.train.x) and torch.equal(foggy.val.labels, clean.val.labels) and len(foggy.train) == 36
    assert foggy.classes == list("abcdefghij") and len(foggy.test) == 5 and set(foggy.test.x[:, 0, 0, 0].tolist()) < set(range(6))
    again = Dataset("cifar10-c", corruption="fog", severity=2, train=40).load()
    assert again.train is foggy.train  # shared, not loaded anew


def archive(path):
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    path.with_suffix(".npz").rename(path)


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]), "empty": lambda path: path.write_bytes(b""),
    "web page": lambda path: path.write_text("<html>404</html>"), "archive": archive,
    "cut archive": lambda path: path.write_bytes(b"PK\x03\x04 and no more"), "pickle": lambda path: path.write_bytes(pickle.dumps(np.zeros(3))),
    "objects": lambda path: np.save(path, np.array([{}], object), allow_pickle=True),
    "no colour": lambda path: np.save(path, np.zeros((30, 32, 32), np.uint8)), "29 images": lambda path: np.save(path, np.zeros((29, 32, 32, 3), np.uint8)),
    "float images": lambda path: np.save(path, np.zeros((30, 32, 32, 3), np.float32)),
    "no image": lambda path: np.save(path, np.zeros((0, 32, 32, 3), np.uint8)), "a number": lambda path: np.save(path, np.uint8(3)),
    "label 10": lambda path: np.save(path, np.full(30, 10)), "label -1": lambda path: np.save(path, np.full(30, -1)),
    "float labels": lambda path: np.save(path, np.zeros(30)), "29 labels": lambda path: np.save(path, np.zeros(29, np.uint8)),
}


@pytest.mark.parametrize("file", ["fog.npy", "labels.npy"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_with_its_origin(file, damage, folders):
    arrays(folders)
    DAMAGE[damage](folders / "CIFAR-10-C" / file)
    with pytest.raises(ValueError) as error:
        Dataset("cifar10-c", corruption="fog", severity=1).load()
    assert str(folders / "CIFAR-10-C" / file) in str(error.value) and "zenodo.org/records/2535967" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name,folder,record", [("cifar10-c", "CIFAR-10-C", "2535967"), ("cifar100-c", "CIFAR-100-C", "3555552")])
def test_a_missing_file_is_named_with_its_place_and_origin(name, folder, record, folders):
    for part in ("fog.npy", "labels.npy"):
        with pytest.raises(FileNotFoundError) as error:
            Dataset(name, corruption="fog", severity=1).load()
        assert all(w in str(error.value) for w in (str(folders / folder / part), f"zenodo.org/records/{record}", "CALIBKD_DATA")), error.value
        arrays(folders, folder)
        (folders / folder / "labels.npy").unlink()


def test_the_real_images(monkeypatch):
    if not (REAL / "cifar10-jpeg.zip").exists():
        pytest.skip(f"{REAL / 'cifar10-jpeg.zip'} is not there: set CALIBKD_DATA to a folder that holds it")
    monkeypatch.setenv("CALIBKD_DATA", str(REAL))
    spec = Dataset("folder:cifar10-jpeg.zip", train=200, test=50)
    x = spec.load().test.x
    assert x.shape == (50, 3, 32, 32)
    for kind in SEVERITY:
        far = distances(x, kind)
        assert far == sorted(far) or kind in NOT_MONOTONE, (kind, far)
        assert torch.equal(replace(spec, corruption=kind, severity=5).load().test.x, corrupt(x, kind, 5)), kind
