"""The global batch follows from seed and step alone; evaluation sees every pixel once."""

import numpy as np
import pytest

from jaxseg.data import pipeline
from jaxseg.data.prepare import prepare
from jaxseg.errors import InputError

# Images of the first batch and the corners of their crops, before there was augmentation.
CROPS_OF_SEED_0 = [("train_9", [0, 1]), ("train_5", [2, 0]), ("train_3", [2, 4]), ("train_1", [1, 0])]


def take(batches, n):
    batches = pipeline.closing_iterator(batches)
    taken = [next(batches) for _ in range(n)]
    batches.close()
    return taken


def images(batch):
    return [image.tobytes() for image in batch["image"]]


def everything(batch):
    """Images and masks, as bytes."""
    return [batch[key].tobytes() for key in ("image", "label", "valid")]


@pytest.fixture
def augmented(tiny):
    """`tiny` with all that augmentation does."""
    tiny.augment.name = "usual"
    return tiny


def test_batch_is_the_contract(prepared, tiny):
    (batch,) = take(pipeline.train_batches(prepared, tiny), 1)
    assert {key: (x.shape, x.dtype.name) for key, x in batch.items()} == {
        "image": ((4, 32, 32, 3), "uint8"),
        "label": ((4, 32, 32), "uint8"),
        "valid": ((4, 32, 32), "bool"),
    }
    assert batch["image"].min() < 25 < 230 < batch["image"].max()
    assert np.array_equal(batch["valid"], batch["label"] != 255)


def test_a_pixel_is_five_bytes_and_a_crop_is_not_copied_before_the_batch(prepared, tiny):
    """Image 3, label 1, valid 1; as float32 and int32 it was 17. The crops lie in the bytes that were read."""
    (batch,) = take(pipeline.train_batches(prepared, tiny), 1)
    assert sum(x.nbytes for x in batch.values()) == 4 * 32 * 32 * pipeline.BYTES_PER_PIXEL == 4 * 32 * 32 * 5
    for i, (image, label) in enumerate(pipeline.train_pairs(prepared, tiny)[:4]):
        assert np.array_equal(image, batch["image"][i])
        assert np.array_equal(label, batch["label"][i])
        read = image
        while isinstance(read.base, np.ndarray):
            read = read.base
        assert isinstance(read.base, bytes)  # the record, of which image and label are views
        assert len(read.base) > 36 * 36 * 4
        assert np.shares_memory(label, np.frombuffer(read.base, np.uint8))


def test_starting_at_any_step_gives_the_same_batches(prepared, tiny):
    whole = take(pipeline.train_batches(prepared, tiny), 8)
    for start in (1, 5):  # 10 images, batches of 4: step 5 lies in the third epoch
        later = take(pipeline.train_batches(prepared, tiny, start_step=start), 2)
        assert [images(b) for b in later] == [images(b) for b in whole[start : start + 2]]


def test_threads_and_workers_change_nothing(prepared, tiny):
    expected = [images(b) for b in take(pipeline.train_batches(prepared, tiny), 4)]
    tiny.data.threads = 5
    assert [images(b) for b in take(pipeline.train_batches(prepared, tiny), 4)] == expected
    tiny.data.workers = 2
    assert [images(b) for b in take(pipeline.train_batches(prepared, tiny), 4)] == expected


def test_hosts_share_the_same_global_batch(prepared, tiny):
    one = take(pipeline.train_batches(prepared, tiny), 5)
    hosts = [take(pipeline.train_batches(prepared, tiny, process=p, processes=2), 5) for p in (0, 1)]
    for step in range(5):
        shares = [images(host[step]) for host in hosts]
        assert [len(share) for share in shares] == [2, 2]
        assert shares[0] + shares[1] == images(one[step])  # in its order, so that every device gets what it would


def test_augmented_batches_are_the_contract(prepared, augmented):
    batches = take(pipeline.train_batches(prepared, augmented), 10)
    for batch in batches:
        assert {key: (x.shape, x.dtype.name) for key, x in batch.items()} == {
            "image": ((4, 32, 32, 3), "uint8"),
            "label": ((4, 32, 32), "uint8"),
            "valid": ((4, 32, 32), "bool"),
        }
        assert batch["image"].min() < batch["image"].max()
        assert np.array_equal(batch["valid"], batch["label"] != 255)
    labels = np.unique(np.concatenate([record["label"].ravel() for record in prepared.records("train")]))
    assert np.isin(np.concatenate([b["label"].ravel() for b in batches]), labels).all()  # interpolated by nothing


def test_augmentation_changes_images_not_which(prepared, augmented):
    """With every range empty, a crop is a window of the image that `image_ids` names."""
    off = ("flip", "rotate_degrees", "brightness", "contrast", "saturation", "hue", "blur")
    augmented.augment.update({"scale_min": 1.0, "scale_max": 1.0} | dict.fromkeys(off, 0.0))
    records = {record["id"].decode(): record for record in prepared.records("train")}
    for step, batch in enumerate(take(pipeline.train_batches(prepared, augmented), 3)):
        for image, name in zip(batch["image"], pipeline.image_ids(prepared, augmented, step=step), strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(records[name]["image"], (32, 32, 3))
            assert (windows == image).all((-3, -2, -1)).sum() == 1


def test_augmented_batches_follow_from_seed_and_step_alone(prepared, augmented):
    """The same bits by any number of threads, worker processes and hosts, and from any step."""
    whole = [everything(b) for b in take(pipeline.train_batches(prepared, augmented), 6)]
    augmented.data.threads = 1
    assert [everything(b) for b in take(pipeline.train_batches(prepared, augmented), 6)] == whole
    augmented.data.threads = 8
    assert [everything(b) for b in take(pipeline.train_batches(prepared, augmented), 6)] == whole
    assert [everything(b) for b in take(pipeline.train_batches(prepared, augmented, start_step=4), 2)] == whole[4:]
    augmented.data.workers = 2
    assert [everything(b) for b in take(pipeline.train_batches(prepared, augmented, start_step=1), 5)] == whole[1:]
    hosts = [take(pipeline.train_batches(prepared, augmented, process=p, processes=2), 6) for p in (0, 1)]
    side_by_side = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*hosts, strict=True)]
    assert [everything(batch) for batch in side_by_side] == whole
    augmented.seed = 1
    assert [everything(b) for b in take(pipeline.train_batches(prepared, augmented), 6)] != whole


def test_augmentation_changes_an_image_anew_every_epoch(prepared, augmented):
    """10 images, one a batch: in the second epoch none comes as it came in the first."""
    augmented.train.batch_size = 1
    batches = take(pipeline.train_batches(prepared, augmented), 20)
    assert len({image for batch in batches for image in images(batch)}) == 20


def test_validation_is_never_augmented(prepared, augmented):
    for view in ("whole", "center", "random"):
        augmented.eval.view = view
        with_it = list(pipeline.closing_iterator(pipeline.eval_batches(prepared, augmented, multiple_px=16)))
        augmented.augment.name = "none"
        without = list(pipeline.closing_iterator(pipeline.eval_batches(prepared, augmented, multiple_px=16)))
        augmented.augment.name = "usual"
        assert [everything(b) for b in with_it] == [everything(b) for b in without]


def test_without_augmentation_crops_are_those_of_before(prepared, tiny):
    """The same draws as when there was no augmentation yet, so that earlier runs can be gone on with."""
    (batch,) = take(pipeline.train_batches(prepared, tiny), 1)
    names = pipeline.image_ids(prepared, tiny, step=0)
    by_name = {record["id"].decode(): record["image"] for record in prepared.records("train")}
    corners = []
    for image, name in zip(batch["image"], names, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(by_name[name], (32, 32, 3))[:, :, 0]
        corners += np.argwhere((windows == image).all((-3, -2, -1))).tolist()
    assert list(zip(names, corners, strict=True)) == CROPS_OF_SEED_0


def test_a_crop_larger_than_images_is_padded_with_void(prepared, augmented):
    """Images of 36×36 scaled by up to 1: in a crop of 48 at most 36² pixels are valid."""
    augmented.data.crop_px = 48
    augmented.augment.scale_max = 1.0
    batches = take(pipeline.train_batches(prepared, augmented), 3)
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert valid.shape[1:] == (48, 48)
    assert valid.sum((1, 2)).max() <= 36 * 36
    assert valid.any((1, 2)).all()


def test_another_seed_is_another_order(prepared, tiny):
    before = [images(b) for b in take(pipeline.train_batches(prepared, tiny), 3)]
    tiny.seed = 1
    assert [images(b) for b in take(pipeline.train_batches(prepared, tiny), 3)] != before


def test_every_epoch_sees_every_image_once_in_another_order(prepared, tiny):
    ids = [i for step in range(5) for i in pipeline.image_ids(prepared, tiny, step=step)]
    assert sorted(ids[:10]) == sorted(ids[10:20]) == sorted(f"train_{i}" for i in range(10))
    assert ids[:10] != ids[10:20]


def test_image_ids_are_those_of_the_batch(tiny, tmp_path):
    """With the whole image as crop, pixels identify the image."""
    tiny.data.update({"size_px": 32, "crop_px": 32, "dir": str(tmp_path)})
    prepared = prepare(tiny.data)
    by_pixels = {r["image"].tobytes(): r["id"] for r in prepared.records("train")}
    for step, batch in enumerate(take(pipeline.train_batches(prepared, tiny), 4)):
        assert [by_pixels[i].decode() for i in images(batch)] == pipeline.image_ids(prepared, tiny, step=step)


@pytest.mark.parametrize("view", ["whole", "center", "random"])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_every_image_once(prepared, tiny, view, processes):
    """5 images in batches of 4: the second batch is filled up with three void images."""
    tiny.eval.view = view
    hosts = [
        list(
            pipeline.closing_iterator(
                pipeline.eval_batches(prepared, tiny, multiple_px=16, process=p, processes=processes)
            )
        )
        for p in range(processes)
    ]
    assert {len(host) for host in hosts} == {2}
    valid = np.concatenate([batch["valid"] for host in hosts for batch in host])
    assert (valid.any((1, 2))).sum() == 5
    if view == "whole":
        assert valid.shape[1:] == (48, 48)  # 36 rounded up to a multiple of 16
        assert valid.sum() == prepared.valid_pixels("val")


def test_center_view_is_the_central_crop(prepared, tiny):
    tiny.eval.view = "center"
    (batch, _) = pipeline.closing_iterator(pipeline.eval_batches(prepared, tiny, multiple_px=16))
    record = prepared.records("val")[0]
    assert np.array_equal(batch["label"][0], record["label"][2:34, 2:34])


def test_random_passes_differ(prepared, tiny):
    tiny.eval.update({"view": "random", "passes": 2, "batch_size": 5})
    first, second = pipeline.closing_iterator(pipeline.eval_batches(prepared, tiny, multiple_px=16))
    assert images(first) != images(second)


def test_crop_larger_than_an_image_is_named(prepared, tiny):
    tiny.data.crop_px = 48
    with pytest.raises(
        InputError, match=r"config.data.crop_px=48 does not fit the smallest train image of camvid \(36 pixels"
    ):
        pipeline.train_batches(prepared, tiny)


def test_steps_of_epochs_round_up():
    assert pipeline.steps_of_epochs(200, images=2975, batch_size=8) == 74375
    assert pipeline.steps_of_epochs(1, images=367, batch_size=8) == 46
