"""From images of any size to classes: against one plain pass of the network, and loops written out."""

import functools
import itertools
import tracemalloc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg.config import default, load_config
from jaxseg.data.sources import pixel_limit
from jaxseg.errors import InputError
from jaxseg.inference import predictor, stripes
from jaxseg.inference.options import InferenceOptions
from jaxseg.inference.predictor import Predictor, predict_scores
from jaxseg.labels import LABELS
from jaxseg.ops import resize_bilinear
from jaxseg.training import parallel
from jaxseg.training.peers import restore_peers
from jaxseg.training.step import predict, to_float
from tests.runs import save_untrained

RNG = np.random.default_rng(7)


@pytest.fixture(scope="module")
def network(tiny_run):
    return jaxseg.load(tiny_run)


def picture(h, w):
    return RNG.integers(0, 256, (h, w, 3), np.uint8)


def of_pixels(function, *, multiple_px=1, activation="softmax", resize="none"):
    """A network whose logits at a pixel are a function of image [b, h, w, 3] in [0, 1], to which bytes are made there."""
    config = default()
    config.data.update({"resize": resize, "size_px": 32})
    of_all = functools.partial(jax.pmap, axis_name=parallel.AXIS, in_axes=(None, 0))
    forward = of_all(lambda _, image: function(to_float(image)))
    labels = of_all(lambda _, image: function(to_float(image)).argmax(-1).astype(np.uint8))
    peer = parallel.replicate({"nothing": np.zeros(1, np.float32)})
    return Predictor("made-up", 0, peer, forward, labels, LABELS["camvid"], config.data, multiple_px, activation)


MATRIX = np.random.default_rng(1).standard_normal((3, 11)).astype(np.float32)


def plain(image):
    return jnp.matmul(image, MATRIX, precision="highest")


def tilted(image):
    """Depends on where in the picture a pixel is: 1 at the left edge of what the network sees, falling to the right."""
    w = image.shape[2]
    ramp = 1 - jnp.arange(w) / w
    return plain(image) * ramp[None, None, :, None]


@pytest.mark.parametrize("hw", [(32, 32), (37, 50), (5, 70)])
def test_in_one_piece_is_one_pass_over_the_padded_image(network, tiny_run, hw):
    config = load_config(tiny_run)
    image = picture(*hw)
    label = network.predict(image, resize="none")
    h, w = (-(-side // 16) * 16 for side in hw)
    padded = np.pad(image, ((0, h - hw[0]), (0, w - hw[1]), (0, 0)), mode="edge")
    peer = restore_peers(config, tiny_run, "last")[1]["unet"]
    logits = np.asarray(predict(peer, jnp.asarray(padded[None] / np.float32(255))))[0, : hw[0], : hw[1]]
    assert label.shape == hw
    assert label.dtype == np.uint8
    assert (label == logits.argmax(-1)).all()
    top = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = network.probabilities(image, resize="none")
    np.testing.assert_allclose(probabilities, top / top.sum(-1, keepdims=True), atol=1e-6)


def test_as_in_training_images_are_resized_there_and_logits_back(network):
    image = picture(50, 75)
    small = np.asarray(Image.fromarray(image).resize((36, 36), Image.Resampling.BILINEAR))  # square, 36 pixels
    logits = next(predict_scores(network, [small], options=InferenceOptions(resize="none")))
    back = np.asarray(resize_bilinear(logits[None], (50, 75)))[0]
    assert (network.predict(image) == back.argmax(-1)).all()


def test_scores_are_resized_as_pytorch_does():
    logits = RNG.standard_normal((7, 9, 4)).astype(np.float32)
    for hw in ((7, 9), (20, 31), (3, 4)):
        expected = resize_bilinear(jnp.asarray(logits)[None], hw)[0]  # which test_deeplabv3 holds to PyTorch's
        np.testing.assert_allclose(resize_bilinear(logits, hw), expected, atol=1e-6)


@pytest.mark.parametrize("hw", [(40, 50), (16, 16), (9, 21)])
def test_windows_of_a_pixelwise_network_change_nothing(hw):
    image = picture(*hw)
    logits = next(
        predict_scores(of_pixels(plain), [image], options=InferenceOptions(resize="none", window_px=16, overlap=0.4))
    )
    np.testing.assert_allclose(logits, np.asarray(plain(image[None] / np.float32(255)))[0], atol=1e-5)


def test_overlapping_windows_are_blended_by_how_deep_a_pixel_lies_in_them():
    image, side = picture(24, 40), 16
    got = next(
        predict_scores(of_pixels(tilted), [image], options=InferenceOptions(resize="none", window_px=side, overlap=0.5))
    )
    depth = np.array([min(i + 1, side - i) for i in range(side)], np.float64)
    total, weights = np.zeros((24, 40, 11)), np.zeros((24, 40, 1))
    for top, left in itertools.product((0, 8), (0, 8, 16, 24)):
        here = np.s_[top : top + side, left : left + side]
        logits = np.asarray(tilted(image[here][None] / np.float32(255)))[0]
        weight = (depth[:, None] * depth)[..., None]
        total[here] += weight * logits
        weights[here] += weight
    np.testing.assert_allclose(got, total / weights, atol=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_flip_and_scales_average_probabilities(activation):
    image = picture(20, 30)
    network = of_pixels(tilted, activation=activation)
    got = network.probabilities(image, resize="none", flip=True, scales=(1.0, 1.5))

    def probability(logits):
        if activation == "sigmoid":
            return 1 / (1 + np.exp(-logits))
        return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    expected = 0
    for w, h in ((30, 20), (45, 30)):
        resized = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
        for mirrored in (False, True):
            seen = resized[:, ::-1] if mirrored else resized
            logits = np.asarray(tilted(seen[None] / np.float32(255)))
            logits = logits[:, :, ::-1] if mirrored else logits
            expected = expected + probability(np.asarray(resize_bilinear(logits, (20, 30)))[0].astype(np.float64)) / 4
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert (network.predict(image, resize="none", flip=True, scales=(1.0, 1.5)) == expected.argmax(-1)).all()


def test_many_images_are_batched_in_order_and_compiled_once_a_shape():
    shapes = []

    def forward(image):
        shapes.append(image.shape)  # runs while tracing
        return plain(image)

    images = [picture(20, 30), picture(16, 16), picture(20, 30), picture(17, 31), picture(20, 30)]
    options = InferenceOptions(resize="none", batch=3)
    got = list(predict_scores(of_pixels(forward, multiple_px=16), images, options=options))
    assert [logits.shape[:2] for logits in got] == [(20, 30), (16, 16), (20, 30), (17, 31), (20, 30)]
    for image, logits in zip(images, got, strict=True):
        np.testing.assert_allclose(logits, np.asarray(plain(image[None] / np.float32(255)))[0], atol=1e-6)
    assert sorted(set(shapes)) == [(1, 16, 16, 3), (1, 32, 32, 3)]  # a batch of 3 on 4 devices is one image each
    assert len(shapes) == 2


def test_images_may_be_files_gray_or_pillow(tmp_path, network):
    image = picture(36, 36)
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = network.predict(image)
    assert (network.predict(tmp_path / "a.png") == expected).all()
    assert (network.predict(str(tmp_path / "a.png")) == expected).all()
    assert (network.predict(Image.fromarray(image)) == expected).all()
    gray = image[..., 0]
    assert (network.predict(gray) == network.predict(np.stack([gray] * 3, -1))).all()


def test_photographs_are_turned_as_their_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90° clockwise (EXIF 2.3, 4.6.4 A)
    image = picture(4, 6)
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    assert (predictor.to_pixels(tmp_path / "a.png") == np.rot90(image, -1)).all()


def test_peers_are_chosen_by_name(tiny_mutual, tmp_path):
    run = save_untrained(tiny_mutual, tmp_path / "run")
    assert jaxseg.load(run).name == "student"
    teacher = jaxseg.load(run, peer="teacher", checkpoint=0)
    assert (teacher.name, teacher.multiple_px, teacher.step) == ("teacher", 1, 0)
    assert teacher.predict(picture(36, 36)).shape == (36, 36)
    with pytest.raises(InputError, match=r"peer 'tutor': there is none; the peers are student, teacher"):
        jaxseg.load(run, peer="tutor")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"resize": "square"}, r"resize='square'; expected run or none"),
        ({"window_px": -1}, r"window_px=-1; expected a side in pixels, or 0"),
        ({"window_px": 40}, r"window_px=40: this network takes multiples of 16"),
        ({"window_px": 32, "overlap": 1.0}, r"overlap=1.0; expected a share of the window from 0 to below 1"),
        ({"scales": (1.0, 0.0)}, r"scales=\(1.0, 0.0\); expected positive numbers"),
        ({"scales": ()}, r"scales=\(\); expected positive numbers"),
        ({"batch": 0}, r"batch=0; expected at least 1"),
        ({"window_px": "64"}, r"window_px='64'; expected a number"),
        ({"scales": "1,2"}, r"scales\[0\]='1'; expected a number"),
    ],
)
def test_views_that_cannot_be_are_refused(network, view, message):
    with pytest.raises(InputError, match=message):
        network.predict(picture(36, 36), **view)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"an image is float32\[4, 4, 3\]; expected uint8 \[h, w, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), r"an image is uint8\[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"an image is uint8\[0, 4, 3\]"),
        (Image.new("I;16", (4, 4)), r"the Pillow image: image mode I;16; expected 8-bit color or gray"),
        ("nowhere.png", r"nowhere.png: cannot be read \(No such file or directory\)"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(InputError, match=message):
        predictor.to_pixels(image)


def test_networks_show_themselves_in_a_line(network):
    assert repr(network) == "Predictor('unet', step 0, 11 classes)"
    image = picture(36, 36)
    assert (network.predict(image, scales=1.5) == network.predict(image, scales=(1.5,))).all()
    assert jaxseg.InputError is InputError


def test_what_is_no_run_is_refused(tmp_path, tiny_run):
    with pytest.raises(InputError, match="no run there"):
        jaxseg.load(tmp_path / "nowhere")
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(InputError, match=r"w.pth: a file, not a run's folder.*--config=configs/unet_voc.py"):
        jaxseg.load(tmp_path / "w.pth")
    with pytest.raises(InputError, match="no checkpoint '7'"):
        jaxseg.load(tiny_run, checkpoint=7)


@pytest.mark.parametrize("view", [{}, {"flip": True, "scales": (1.0, 2.0)}])
def test_memory_of_a_prediction_is_that_of_stripes_whatever_the_batch(monkeypatch, view):
    """Logits of 11 classes of 750×1000 pixels are 31 MiB a picture; classes and picture themselves are 3."""
    monkeypatch.setattr(stripes, "STRIPE_VALUES", 1 << 18)  # 1 MiB
    network = of_pixels(tilted, resize="square")
    images = [picture(750, 1000) for _ in range(4)]
    labels = predictor.predict_labels(network, images, options=InferenceOptions(batch=4, **view))
    next(labels)  # compiled
    tracemalloc.start()
    assert [label.shape for label in labels] == [(750, 1000)] * 3
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25 * 2**20, f"{peak / 2**20:.0f} MiB"


@pytest.mark.parametrize("view", [{"probabilities": True}, {"window_px": 320, "overlap": 0.0}, {"flip": True}])
def test_of_a_batch_only_bytes_are_held_on_the_host(monkeypatch, view):
    """A picture of 480×640 has 0.9 MiB, its logits 13: a batch of eight may take more by its pictures alone."""
    monkeypatch.setattr(stripes, "STRIPE_VALUES", 1 << 18)  # 1 MiB
    network = of_pixels(tilted)
    images = [picture(480, 640) for _ in range(16)]
    view = dict(view)
    probabilities = view.pop("probabilities", False)

    def peak(batch):
        options = InferenceOptions(resize="none", batch=batch, **view)
        found = predictor.predict_stripes(network, images, options=options, probabilities=probabilities)
        for _ in range(8):  # the first ones compile
            shares = [scores.mean() for scores in next(found)]
        tracemalloc.start()
        shares = [scores.mean() for stripes_of_image in found for scores in stripes_of_image]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, shares

    (alone, expected), (together, shares) = peak(1), peak(8)
    assert shares == expected
    copies = 3 if "flip" in view else 1  # both passes' pictures, in batches
    assert together - alone < copies * 8 * images[0].nbytes, f"{alone / 2**20:.1f} and {together / 2**20:.1f} MiB"


def test_windows_of_a_large_picture_are_forgotten_from_top_to_bottom(monkeypatch):
    """The logits are 34 MiB, those of two rows of windows 1.1."""
    monkeypatch.setattr(stripes, "STRIPE_VALUES", 1 << 18)  # 1 MiB
    image = picture(1600, 500)
    options = InferenceOptions(resize="none", window_px=16, batch=128)
    stripes_of_image = next(predictor.predict_stripes(of_pixels(plain), [image], options=options))
    first = predictor.label_map(next(stripes_of_image))  # compiled
    tracemalloc.start()
    label = np.concatenate([first, *(predictor.label_map(scores) for scores in stripes_of_image)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = np.matmul(image / np.float32(255), MATRIX).argmax(-1)
    assert (label == expected).mean() > 0.999  # some are nearly equal
    assert peak < 15 * 2**20, f"{peak / 2**20:.0f} MiB"


@pytest.mark.parametrize(("limit", "value"), [("SEEN_PX", 2 * 32 * 32), ("HELD_PX", 2 * 32 * 32), ("SEEN_PX", 1)])
def test_a_batch_of_large_pictures_is_split(monkeypatch, limit, value):
    monkeypatch.setattr(predictor, limit, value)
    images = [picture(32, 32) for _ in range(5)]
    options = InferenceOptions(resize="none", batch=16)
    chunks = [len(chunk) for chunk in predictor.chunks(of_pixels(plain), images, options)]
    assert chunks == ([1] * 5 if value == 1 else [2, 2, 1])
    for label, image in zip(predictor.predict_labels(of_pixels(plain), images, options=options), images, strict=True):
        assert (label == np.asarray(plain(image / np.float32(255))).argmax(-1)).all()


def test_programs_are_kept_for_so_many_sizes_and_compute_what_pmap_does(monkeypatch):
    """The third size makes room; the first is then compiled anew. What is computed stays, bit for bit."""
    monkeypatch.setattr(parallel, "PROGRAMS", 2)
    traced = []

    def function(peer, image):
        traced.append(image.shape[1])  # runs while tracing
        return tilted(image) * peer["factor"]

    forward = parallel.forgetting(function)
    plain_pmap = jax.pmap(
        lambda peer, image: tilted(image) * peer["factor"], axis_name=parallel.AXIS, in_axes=(None, 0)
    )
    peer = parallel.replicate({"factor": np.float32([1.5]).reshape(1, 1, 1, 1)})
    for h in (16, 32, 16, 48, 16):
        image = RNG.random((jax.local_device_count(), h, 16, 3)).astype(np.float32)
        sharded = parallel.shard({"image": image})["image"]
        expected = parallel.gather(plain_pmap(peer, sharded))
        assert (parallel.gather(forward(peer, sharded)) == expected).all()
    assert traced == [16, 32, 48, 16]


def test_scales_and_windows_have_an_upper_end(network):
    for view in ({"scales": (1e9,)}, {"window_px": 16 * 1024}):
        with pytest.raises(InputError, match="expected at most"):
            network.predict(picture(36, 36), **view)
    with pytest.raises(InputError, match="expected positive numbers"):
        network.predict(picture(36, 36), scales=(float("nan"),))
    with pixel_limit(0.1), pytest.raises(InputError, match=r"scales: 16 makes 576×576 pixels of a picture of 36×36"):
        network.predict(picture(36, 36), scales=16)


def test_the_limit_of_pixels_is_named_and_can_be_raised(tmp_path):
    Image.fromarray(picture(100, 100)).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    with pixel_limit(0.009), pytest.raises(InputError, match=r"more than 0.009 million pixels.*--max_megapixels"):
        predictor.to_pixels(tmp_path / "a.png")
    with warnings.catch_warnings(action="error"), pixel_limit(0.011):
        assert predictor.to_pixels(tmp_path / "a.png").shape == (100, 100, 3)
    assert before == Image.MAX_IMAGE_PIXELS
    for number in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="expected a positive number"), pixel_limit(number):
            pass
