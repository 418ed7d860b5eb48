"""What `torch.save` wrote is read bit for bit, without PyTorch, and nothing of it is executed."""

import pickle
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import InputError
from jaxseg.models.torch_files import STORAGES, load_torch_file
from jaxseg.models.weights_io import read_state_dict
from tests.torch_files import Call, Global, Tensor, archive, pickled, stream, tensors

WRITERS = pytest.mark.parametrize("write", [archive, stream])
DRAWN = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails, as where it is not installed


@pytest.fixture
def weights(tmp_path):
    """content -> a file of it."""

    def write(content: bytes):
        (tmp_path / "weights.pth").write_bytes(content)
        return tmp_path / "weights.pth"

    return write


def test_a_file_of_pytorch_is_read_bit_for_bit(golden, shared):
    """shared/golden/unet_f8_c21.pth, which PyTorch wrote, against the rules that its values were drawn by."""
    loaded, drawn = read_state_dict(shared / "golden/unet_f8_c21.pth"), golden("unet_f8_c21")["weights"]
    assert loaded.keys() == drawn.keys()
    for name, array in drawn.items():
        assert loaded[name].shape == array.shape
        counter = name.endswith("num_batches_tracked")
        assert loaded[name].dtype == (np.int64 if counter else np.float32)
        assert np.array_equal(loaded[name], array)


@WRITERS
def test_every_type_and_an_empty_tensor(weights, write):
    """Both formats; signs, halves and bits as they were."""
    arrays = {name: (50 * DRAWN.standard_normal((3, 5))).astype(dtype) for name, dtype in STORAGES.items()}
    arrays |= {"scalar": np.array(7, np.int64), "empty": np.zeros((0, 3), np.float32)}
    read = read_state_dict(weights(write(tensors(arrays))))
    assert read.keys() == arrays.keys()
    assert STORAGES["BFloat16Storage"] == jnp.bfloat16
    for name, array in arrays.items():
        assert (read[name].shape, read[name].dtype) == (array.shape, array.dtype), name
        assert read[name].tobytes() == array.tobytes(), name


@WRITERS
def test_tensors_that_share_a_storage(weights, write):
    """A transpose and a slice, as PyTorch stores them: the same elements by other strides, counted by hand."""
    elements = np.arange(24, dtype=np.float32)
    whole = elements.reshape(2, 3, 4)
    saved = {
        "transposed": Tensor("0", elements, (4, 3, 2), (1, 4, 12)),
        "slice": Tensor("0", elements, (2, 2), (12, 4), offset=6),
    }
    read = read_state_dict(weights(write(saved)))
    assert np.array_equal(read["transposed"], whole.transpose(2, 1, 0))
    assert np.array_equal(read["slice"], whole[:, 1:, 2])
    assert np.array_equal(read["slice"], [[6, 10], [18, 22]])
    assert all(array.flags.c_contiguous and array.flags.writeable for array in read.values())


@WRITERS
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
def test_checkpoints_around_a_state_dict(weights, write, key):
    arrays = {"conv.weight": np.ones((2, 3), np.float32)}
    inside = Call(Global("collections", "OrderedDict"), ()) if key else None
    saved = tensors(arrays) if key is None else {"epoch": 3, "optimizer": inside, key: tensors(arrays)}
    assert np.array_equal(read_state_dict(weights(write(saved)))["conv.weight"], arrays["conv.weight"])


@WRITERS
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "open"),
        ("os", "mkdir"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("numpy", "ndarray"),
        ("torch._utils", "_rebuild"),
    ],
)
def test_nothing_is_called(weights, write, tmp_path, monkeypatch, module, name):
    monkeypatch.chdir(tmp_path)
    arguments = ("open('harm', 'w')",) if name == "eval" else ("harm", *(["w"] if name == "open" else []))
    path = weights(write({"conv.weight": Call(Global(module, name), arguments)}))
    with pytest.raises(InputError, match=rf"weights.pth: it holds {module}.{name}; nothing but tensors"):
        read_state_dict(path)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]


def test_what_a_file_may_name_stays_as_it_is(weights):
    """A storage's type cannot be called, and attributes that a file gives to a function are gone with it."""
    with pytest.raises(InputError, match="cannot be read"):
        read_state_dict(weights(archive({"a": Call(Global("torch", "FloatStorage"), (3,))})))
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    with_attribute = pickled(rebuild)[:-1] + pickle.dumps({"a": 1}, 2)[2:-1] + b"b."  # b: BUILD
    named = load_torch_file(weights(archive(with_attribute)))
    assert named.a == 1
    assert not hasattr(load_torch_file(weights(archive(rebuild))), "a")


@WRITERS
@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((7,), (1,), 0), ((3,), (1,), 4), ((2,), (1,), -1), ((2, 2), (6, 1), 0), ((2,), (-1,), 0)],
)
def test_tensors_that_reach_beyond_their_storage(weights, write, shape, strides, offset):
    saved = {"a": Tensor("0", np.arange(6, dtype=np.float32), shape, strides, offset)}
    with pytest.raises(
        InputError, match=r"weights.pth: (it holds a tensor \[7\] with fewer|cannot be read \(ValueError)"
    ):
        read_state_dict(weights(write(saved)))


@WRITERS
@pytest.mark.parametrize("claimed", [5, 7, 1 << 50])
def test_storages_of_another_size(weights, write, claimed):
    saved = {"a": Tensor("0", np.arange(6, dtype=np.float32), (2,), (1,), claimed=claimed)}
    with pytest.raises(InputError, match=r"weights.pth: its storage 0 "):
        read_state_dict(weights(write(saved)))


@WRITERS
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(weights, write, share):
    content = write(tensors({"conv.weight": np.ones((2, 3), np.float32), "conv.bias": np.ones(3, np.float32)}))
    with pytest.raises(InputError, match=r"weights.pth: "):
        read_state_dict(weights(content[: int(share * len(content))]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text", "no whole file of torch.save"),
        (b"cos\nmkdir\n(S'harm'\ntR.", "no whole file of torch.save"),  # a pickle alone
        (archive(tensors({"a": np.ones(2)}), byte_order=b"big"), "big-endian"),
        (stream(tensors({"a": np.ones(2)}), little_endian=False), "big-endian"),
        (stream({}, version=1002), "version is 1002; expected 1001"),
        (archive(3), "holds a int, not a state dict"),
        (stream({"model": 3, "epoch": 1}), "holds a dict, not a state dict"),
        (archive({1: Tensor("0", np.ones(2), (2,), (1,))}), "holds a dict, not a state dict"),
    ],
)
def test_other_files(weights, content, words):
    with pytest.raises(InputError, match=words):
        read_state_dict(weights(content))


def test_archives_of_before_the_byte_order_was_written(weights):
    assert (
        read_state_dict(weights(archive(tensors({"a": np.ones(2)}), byte_order=None, root="archive")))["a"].sum() == 2
    )
