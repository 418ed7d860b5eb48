"""What `scripts.aot` reads of a program, against bytes counted by hand, and two compiled steps."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxseg.config import default
from jaxseg.errors import InputError
from jaxseg.files import read_json
from jaxseg.models import UNet
from scripts.aot import hlo
from scripts.aot.floor import by_operation
from scripts.aot.programs import every_step, lower, recipes, steps_of
from scripts.aot.targets import find_target, missing_packages
from tests import ROOT

# One instruction of each kind. Arrays: x f32[8,64] has 2,048 bytes, big f32[100,64] 25,600, row f32[1,64] and s f32[64] 256.
TEXT = """HloModule small, is_scheduled=true

%summed (p0: f32[8,64]) -> f32[64] {
  %p0 = f32[8,64]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %sum = f32[64]{0} reduce(%p0, %zero), dimensions={0}, to_apply=%plus
}

%sliced (p0.1: f32[100,64]) -> f32[1,64] {
  %p0.1 = f32[100,64]{1,0} parameter(0)
  %flat = f32[100,64]{1,0} bitcast(%p0.1)
  %cut = f32[1,64]{1,0} slice(%flat), slice={[3:4], [0:64]}
  ROOT %twice = f32[1,64]{1,0} add(%cut, %cut)
}

%updated (p0.2: f32[100,64], p1.2: f32[1,64], p2.2: s32[]) -> f32[100,64] {
  %p0.2 = f32[100,64]{1,0} parameter(0)
  %p1.2 = f32[1,64]{1,0} parameter(1)
  %p2.2 = s32[] parameter(2)
  ROOT %put = f32[100,64]{1,0} dynamic-update-slice(%p0.2, %p1.2, %p2.2, %p2.2)
}

%turned (p0.3: f32[8,64]) -> f32[64,8] {
  %p0.3 = f32[8,64]{1,0} parameter(0)
  ROOT %t = f32[64,8]{1,0} transpose(%p0.3), dimensions={1,0}
}

%two (p0.4: f32[8,64]) -> (f32[64], f32[64]) {
  %p0.4 = f32[8,64]{1,0} parameter(0)
  %zero.1 = f32[] constant(0)
  ROOT %sums = (f32[64]{0}, f32[64]{0}) reduce(%p0.4, %p0.4, %zero.1, %zero.1), dimensions={0}, to_apply=%plus_two
}

%plus (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%body (state: (s32[], f32[64])) -> (s32[], f32[64]) {
  %state = (s32[], f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %v = f32[64]{0} get-tuple-element(%state), index=1
  %w = f32[64]{0} negate(%v)
  ROOT %next = (s32[], f32[64]{0}) tuple(%i, %w)
}

%condition (state.1: (s32[], f32[64])) -> pred[] {
  %state.1 = (s32[], f32[64]{0}) parameter(0)
  ROOT %always = pred[] constant(true)
}

ENTRY %main (x: f32[8,64], big: f32[100,64], n: s32[]) -> f32[64] {
  %x = f32[8,64]{1,0} parameter(0)
  %big = f32[100,64]{1,0} parameter(1), metadata={op_name="params[\\'kernel (of one)\\']"}
  %n = s32[] parameter(2)
  %s = f32[64]{0} fusion(%x), kind=kInput, calls=%summed, metadata={op_name="jit(step)/jvp(UNet)/norm1/reduce_sum"}
  %pair = (f32[64]{0}, f32[64]{0}) fusion(%x), kind=kInput, calls=%two
  %row = f32[1,64]{1,0} fusion(%big), kind=kLoop, calls=%sliced
  %kept = f32[100,64]{1,0} fusion(%big, %row, %n), kind=kLoop, calls=%updated
  %xt = f32[64,8]{1,0} fusion(%x), kind=kLoop, calls=%turned
  %both = (f32[8,64]{1,0}, u8[0]{0}) custom-call(%x, %xt), custom_call_target="__cudnn$convForward"
  %factor = (f32[8,8]{1,0}, s32[1]{0}) custom-call(%x), custom_call_target="cusolver_potrf_ffi"
  %begun = (f32[64]{0}, f32[64]{0}) all-reduce-start(%s), channel_id=1, to_apply=%plus
  %ended = f32[64]{0} all-reduce-done(%begun)
  %start = (s32[], f32[64]{0}) tuple(%n, %ended)
  %loop = (s32[], f32[64]{0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[64]{0} get-tuple-element(%loop), index=1
}
"""


@pytest.fixture(scope="module")
def program():
    return hlo.read_program(TEXT)


def test_bytes_of_every_instruction(program):
    """Operands once and results once: s 2048 + 256; row takes one row and writes one; kept reads the row and n, and writes
    the row in place; the loop's body moves 256 + 256 bytes in each of five runs."""
    moved = {one.name: one for one in hlo.read_moved(program)}
    assert {name: (one.kind, one.bytes) for name, one in moved.items()} == {
        "s": ("reduction", 2304),
        "pair": ("reduction", 2048 + 256 + 256),
        "row": ("element-wise", 512),
        "kept": ("slice, gather, scatter", 256 + 4 + 256),
        "xt": ("layout copy", 4096),
        "both": ("convolution", 2048 + 2048 + 2048),
        "factor": ("Cholesky, triangular", 2048 + 256 + 4),
        "begun": ("collective", 256),
        "ended": ("collective", 256),
        "w": ("element-wise", 5 * 512),
    }
    assert moved["s"].source == "jit(step)/jvp(UNet)/norm1/reduce_sum"
    assert (
        sum(one.times for one in moved.values() if one.starts) == 13
    )  # seven, the all-reduce once, the body five times


def test_sums(program):
    moved = hlo.read_moved(program)
    assert hlo.sum_by_kind(moved)["element-wise"] == 512 + 5 * 512
    assert hlo.collectives(program) == {"all-reduce": {"count": 1, "bytes": 256}}
    assert [one.name for one in hlo.copies(moved, above_bytes=4095)] == ["xt"]
    assert hlo.copies(moved, above_bytes=4096) == []
    assert hlo.largest_argument(program) == 25_600


def test_what_must_not_be_there_is_found(program):
    assert hlo.loops(program) == [{"source": "", "times": 5}]
    assert hlo.leaves_device(program) == []
    assert "f64" not in hlo.dtypes(program)
    calls = TEXT.replace("cusolver_potrf_ffi", "xla_ffi_python_gpu_callback").replace("f32[8,8]", "f64[8,8]")
    assert hlo.leaves_device(hlo.read_program(calls)) == ["xla_ffi_python_gpu_callback"]
    assert "f64" in hlo.dtypes(hlo.read_program(calls))


def test_what_a_tpu_fetches_ahead():
    """A quarter of 32·128 numbers, read from memory onto the chip, and a map of 8·128, written back to memory."""
    text = """
ENTRY %main (x: f32[32,128], y: f32[8,128]) -> f32[8,128] {
  %x = f32[32,128]{1,0:T(8,128)} parameter(0)
  %y = f32[8,128]{1,0:T(8,128)S(1)} parameter(1)
  %cut = ((f32[32,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:8], [0:128]}
  %cut.1 = f32[8,128]{1,0:T(8,128)S(1)} slice-done(%cut)
  %z = f32[8,128]{1,0:T(8,128)S(1)} add(%cut.1, %y)
  %sum = f32[8,128]{1,0:T(8,128)S(1)} all-reduce(%z), channel_id=1
  %back = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%sum)
  ROOT %back.1 = f32[8,128]{1,0:T(8,128)} copy-done(%back)
}
"""
    program = hlo.read_program(text)
    moved = hlo.read_moved(program)
    assert hlo.sum_by_kind(moved) == {"transfer": 4096 + 4096}
    assert sum(one.times for one in moved if one.starts) == 4
    assert hlo.collectives(program) == {"all-reduce": {"count": 1, "bytes": 4096}}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[2,3,32]{2,1,0}", 2 * 3 * 32 * 4),
        ("f32[2,3,32]{2,1,0:T(8,128)}", 2 * 8 * 128 * 4),  # a TPU's tiles: 3 rows are 8, 32 columns 128
        ("bf16[2,3,32]{0,2,1:T(8,128)(2,1)}", 3 * 32 * 128 * 2),  # the first dimension varies fastest, then the last
        ("f32[2,3,32]{2,1,0:T(8,128)S(1)}", 0),  # on the chip
        ("f32[8]{0:T(256)}", 256 * 4),
        ("pred[]", 1),
    ],
)
def test_bytes_of_an_array(shape, size):
    assert hlo.read_shape(shape)[0].bytes() == size


def test_own_program_of_this_machine():
    """x @ w: reads 4·(8·16 + 16·32) bytes, writes 4·8·32, whatever the compiler for CPUs makes of it."""
    shapes = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 32), jnp.float32)
    text = jax.jit(jnp.matmul).lower(*shapes).compile().as_text()
    moved = hlo.read_moved(hlo.read_program(text))
    assert hlo.sum_by_kind(moved) == {"matrix product": 4 * (8 * 16 + 16 * 32 + 8 * 32)}


def test_torch_floor_by_hand():
    """A U-Net of one feature on one image of 16×16: channels 1 to 16 on sides 16 to 1; 4 bytes a number, p = side²."""
    floor = by_operation(UNet(num_classes=2, features=1), (1, 16, 16), training=True)
    level = {f: (16 // f) ** 2 for f in (1, 2, 4, 8, 16)}  # features -> pixels
    blocks = [f * p for f, p in level.items()] + [
        f * p for f, p in level.items() if f < 16
    ]  # encoder and below, decoder
    assert floor["normalization"] == 4 * sum(2 * 8 * y for y in blocks)  # two a block: 3 maps forward, 5 backward
    assert floor["relu"] == 4 * sum(2 * 5 * y for y in blocks)
    pooled = [f * p for f, p in level.items() if f < 16]
    assert floor["max pooling"] == sum(2 * (4 * y + 4 * y // 4 + 8 * y // 4) for y in pooled)
    assert floor["concatenation"] == 4 * sum(2 * 2 * y for y in pooled)
    assert floor["sum of gradients"] == 4 * sum(3 * y for y in pooled)  # each skip: of pooling and of concatenation
    convolutions = [(3, 1, 256, 256, 27)]  # channels in and out, pixels in and out, weights of a kernel
    for f, p in level.items():
        convolutions += [(f // 2, f, p, p, 9 * f * f // 2)] if f > 1 else []
        convolutions += [(f, f, p, p, 9 * f * f)]
        if f < 16:
            convolutions += [
                (2 * f, f, p // 4, p, 4 * 2 * f * f),
                (2 * f, f, p, p, 9 * 2 * f * f),
                (f, f, p, p, 9 * f * f),
            ]
    convolutions += [(1, 2, 256, 256, 2)]
    passes = [2] + [3] * (len(convolutions) - 1)  # the image needs no gradient
    moved = [n * (c * p + d * q + w) for n, (c, d, p, q, w) in zip(passes, convolutions, strict=True)]
    assert floor["convolution"] == 4 * sum(moved)


def test_every_network_and_loss_has_a_step():
    names = [step.name for step in every_step()]
    assert len(names) == len(set(names))
    assert names[:3] == ["unet/float32/train", "unet/bfloat16/train", "unet+rmi/float32/train"]
    networks = ("unet", "deeplabv3", "deeplabv3plus", "fcn", "fpn", "pspnet", "resnet_unet")
    assert {f"{network}/bfloat16/{kind}" for network in networks for kind in ("train", "eval")} <= set(names)
    losses = {make().loss.name for make in recipes().values()} | {make().loss.pixel for make in recipes().values()}
    assert losses >= {"pixel_and_rmi", "rmi", "dice", "tversky", "lovasz", "sigmoid", "focal", "softmax"}


def test_dtype_is_that_of_every_peer():
    mutual = recipes()["mutual"]()
    step = next(step for step in steps_of("mutual", mutual) if step.name == "mutual/bfloat16/train")
    assert (step.config.model.dtype, step.config.peers.teacher.model.dtype) == ("bfloat16", "bfloat16")
    assert mutual.model.dtype == "float32"


def test_a_step_is_lowered_for_the_devices_given(four_devices):
    config = default()
    config.model.features, config.data.crop_px = 2, 16
    training, _, scoring, _ = steps_of("small", config)
    for step in (training, scoring):
        assert "stablehlo.all_reduce" in lower(step, batch_size=1, devices=tuple(jax.devices()[:2])).as_text()


def test_targets():
    assert find_target("h100:8").num_devices == 8
    assert find_target("v5e:2x4").num_devices == 8
    for wrong in ("h101", "h100:2x2", "v5e", "v5e:x"):
        with pytest.raises(InputError, match=f"--target={wrong}"):
            find_target(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "platform"), [("h100:2", "cuda"), ("v5e:2x2", "tpu")])
def test_compiled_for(tmp_path, target, platform):
    """Slow: XLA's compilers for GPUs and TPUs take minutes for a U-Net with RMI, over several devices."""
    if missing := missing_packages(platform):
        pytest.skip(f"not installed: {', '.join(missing)}")
    output = tmp_path / "programs.json"
    words = [f"--target={target}", "--config=configs/rmi_cityscapes.py", "--only=*/float32/train", "--batch=2"]
    # At this size a map of the first level, 1.6 MB, is larger than any kernel, 0.6 MB, and than the images.
    words += ["--config.model.features=8", "--config.data.crop_px=160", f"--output={output}"]
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": python_path}
    command = [sys.executable, "-m", "scripts.aot", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (program,) = read_json(output)["programs"].values()
    assert not program["float64"]
    assert program["host_calls"] == []
    assert program["loops"] == []  # RMI takes all classes at once
    assert program["collectives"]["all-reduce"]["count"] > 0
    assert program["bytes_by_kind"]["convolution"] > 0
    assert program["large_copies"] == [] or platform == "tpu"  # XLA lays maps out anew for a TPU's convolutions
