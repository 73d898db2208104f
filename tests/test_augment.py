"Views against PIL and torchvision, mixing against the formulas, the same numbers on every device."
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torchvision.transforms import functional as TF

from calibkd.augment import VIEWS, Samples, Views, beta, cutmix, cutout, mixup, views


def images(n=12, c=3, h=32, w=32, seed=0):
    return torch.randint(256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("h, w, pad", [(32, 32, 4), (28, 28, 3), (9, 12, 2)])
def test_crop_and_flip_equal_pil_and_torchvision(h, w, pad):
    x, g = images(h=h, w=w), torch.Generator().manual_seed(1)
    v, index = Views(x, pad=pad, flip=True), torch.randint(12, (40,), generator=g)
    draws = v.draw(40, g)
    mean, std = [.49, .48, .45], [.2, .3, .25]
    got = (v.take(index, draws).float() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    for y, i, (dy, dx, flip, *_) in zip(got, index, draws.T.tolist()):
        pil = TF.crop(TF.pad(Image.fromarray(x[i].permute(1, 2, 0).numpy()), pad), dy, dx, h, w)
        want = TF.normalize(TF.to_tensor(TF.hflip(pil) if flip else pil), mean, std)
        torch.testing.assert_close(y, want, atol=1e-6, rtol=1e-6)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.sampled_from(["zeros", "circular"]), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_uint8_and_float_stores_agree_in_every_mode(h, w, pad, mode, flip, hole):
    x, options = images(5, 2, h, w), dict(pad=pad, mode=mode, flip=flip, cutout=3 * hole, fill=torch.tensor([3, 4]))
    index, g = torch.tensor([4, 0, 0, 2]), torch.Generator()
    a, b = (Views(t, **options)(index, g.manual_seed(5)) for t in (x, x.float()))
    assert a.dtype == torch.uint8 and b.dtype == torch.float32 and a.shape == (4, 2, h, w) and torch.equal(a.float(), b)


def test_circular_views_only_shift():
    x = images(3, 1, 7, 6)
    out = views(x, "shift")(torch.arange(3).repeat(20), torch.Generator().manual_seed(0))
    for y, i in zip(out, torch.arange(3).repeat(20)):
        assert any(torch.equal(y, x[i].roll((a, b), (1, 2))) for a in range(7) for b in range(6))


def test_every_named_kind_runs_on_every_usual_size():
    g = torch.Generator().manual_seed(0)
    for kind in VIEWS:
        for c, side in ((1, 8), (3, 16), (1, 28), (3, 64)):
            assert views(images(4, c, side, side), kind)(torch.tensor([0, 3]), g).shape == (2, c, side, side)


def test_views_of_anything_are_the_samples_and_other_kinds_need_images():
    g = torch.Generator().manual_seed(0)
    before = g.get_state()
    for x in (torch.arange(12).reshape(4, 3), torch.rand(4), torch.rand(4, 2, 3), images(4)):
        assert torch.equal(views(x, "none")(torch.tensor([2, 0]), g), x[[2, 0]]) and len(views(x, "none")) == 4
    assert torch.equal(g.get_state(), before)
    for kind in {*VIEWS} - {"none"}:
        with pytest.raises(ValueError, match=rf"{re.escape(repr(kind))} are of images .* shape \(4, 3\) use augment='none'"):
            views(torch.arange(12).reshape(4, 3), kind)
    with pytest.raises(ValueError, match="crop\\+flip"): views(images(4), "crop+flop")


def test_no_view_at_all_is_the_same_as_the_samples():
    x, index = images(5), torch.tensor([4, 1, 1])
    a, b = (make(x)(index, torch.Generator()) for make in (Samples, Views))
    assert torch.equal(a, b) and a.stride() == b.stride()


def test_views_of_a_whole_epoch_are_those_of_its_batches():
    v, index = Views(images(), pad=2, flip=True, cutout=3), torch.arange(12)
    g, same = (torch.Generator().manual_seed(5) for _ in range(2))
    draws = torch.cat([v.draw(len(rows), g) for rows in index.split(5)], 1)
    for rows, part in zip(index.split(5), draws.split(5, 1)): assert torch.equal(v.take(rows, part), v(rows, same))


def test_the_store_is_not_copied_per_window():
    x = images(10)
    v = Views(x, pad=4)
    assert v.windows.untyped_storage().nbytes() == 10 * 3 * 40 * 40 and len(v) == 10


def test_views_do_not_touch_the_store_or_the_global_generator():
    x = images()
    kept, state = x.clone(), torch.get_rng_state()
    views(x, "none")(torch.arange(12), torch.Generator().manual_seed(0)).zero_()
    views(x, "crop+flip+cutout")(torch.arange(12), torch.Generator().manual_seed(0)).zero_()
    assert torch.equal(x, kept) and torch.equal(state, torch.get_rng_state())


def test_random_windows_and_flips_are_uniform():
    draws = Views(images(), pad=4, flip=True, cutout=8).draw(81_000, torch.Generator().manual_seed(0))
    for row, values in zip(draws, (9, 9, 2, 32, 32)):
        counts = row.bincount(minlength=values).double()
        assert len(counts) == values and ((counts / 81_000 * values - 1).abs() < .1).all()


def test_cutout_in_views_is_one_clipped_square_of_the_mean():
    x = images(50)
    v = Views(x, cutout=16)
    changed = (v(torch.arange(50), torch.Generator().manual_seed(0)) != x).any(1)
    hidden = np.array([m.sum().item() for m in changed])
    assert hidden.max() <= 256 and hidden.min() >= 40 and np.array_equal(v.fill, x.float().mean((0, 2, 3)).round().byte())


@given(st.floats(0, 1), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_cutmix_share_is_that_of_the_pixels(lam, seed):
    x, perm = torch.stack([torch.zeros(1, 9, 7), torch.ones(1, 9, 7)]), torch.tensor([1, 0])
    out, share = cutmix(x, lam, perm, torch.Generator().manual_seed(seed))
    assert out[0].mean().item() == pytest.approx(1 - share, abs=1e-6) and 1 - out[1].mean().item() == pytest.approx(1 - share, abs=1e-6)
    assert share >= lam - 1e-9


def test_mixing_refuses_pixels_and_impossible_shares():
    x, perm, g = images(2), torch.tensor([1, 0]), torch.Generator()
    for bad in (lambda: mixup(x, .5, perm), lambda: cutmix(x, .5, perm, g), lambda: mixup(x.float(), 1.5, perm), lambda: beta(-1, g)):
        with pytest.raises(ValueError):
            bad()


def test_holes_differ_between_the_samples_of_a_batch():
    y = cutout(torch.ones(20, 2, 16, 16), 6, torch.Generator().manual_seed(0))
    assert len({tuple(m.flatten().tolist()) for m in y[:, 0]}) > 10 and torch.equal(y[:, 0], y[:, 1])


def test_beta_is_a_function_of_the_generator_alone():
    a, b = ([beta(.4, torch.Generator().manual_seed(s)) for s in range(50)] for _ in range(2))
    assert a == b and all(0 <= v <= 1 for v in a) and len(set(a)) == 50


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_views():
    x, index = images(), torch.arange(12)
    for kind in VIEWS:
        a, b = (views(t, kind)(index, torch.Generator().manual_seed(3)) for t in (x, x.cuda()))
        assert b.is_cuda and torch.equal(a, b.cpu())
