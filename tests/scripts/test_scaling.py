"""What `scripts.bench.scaling` counts and models, against hand counts."""

import pytest

from jaxseg.config import default, use_rmi
from jaxseg.files import read_json
from scripts.bench import scaling
from scripts.bench.scaling import all_reduces, compiled_step, modelled, small_config
from tests import ROOT

RESULTS = ROOT / "results"


def test_all_reduces_of_a_program():
    program = """
      %a = f32[3,4]{1,0} all-reduce(%x), channel_id=1
      %b = (f32[], bf16[8]{0}) all-reduce(%y, %z), channel_id=2
      %c = (f32[2]{0}, f32[2]{0}) all-reduce-start(%v), channel_id=3
      %d = f32[2]{0} all-reduce-done(%c)
      %e = f32[100]{0} all-gather(%w)
    """
    assert all_reduces(program) == [48, 20, 16, 400]


@pytest.mark.parametrize(("model", "terms"), [("unet", 1), ("rmi", 4)])
def test_bytes_are_gradients_normalisation_and_logged_terms(four_devices, model, terms):
    """By hand, 4 features: every BatchNorm gathers 3 numbers a channel and device forward and all-reduces 2 backward; its
    channels are 2 · (4 + 8 + 16 + 32) down, 2 · 64 below and 2 · (32 + 16 + 8 + 4) up, in 18 layers. Beside: the count of
    valid pixels and the logged terms: the loss, which is the pixel term; with RMI pixel, rmi and rmi_present beside it.
    Each of the 18 exchanges twice; gradients and terms go together, and the count ahead of them."""
    config = small_config(model, scaling.STUDY | {"features": 4})
    found = all_reduces(compiled_step(config, devices=4).as_text())
    params = 122_183  # as a run of 19 classes says of itself
    channels = 2 * (2 * (4 + 8 + 16 + 32) + 64)
    assert sum(found) == 4 * (params + (4 * 3 + 2) * channels + 1 + terms)
    assert len(found) == 2 * 18 + 2


def test_models_are_those_of_the_study():
    config = default()
    use_rmi(config)
    assert small_config("rmi", scaling.STUDY).loss == config.loss
    assert list(small_config("mutual", scaling.STUDY).peers) == ["teacher"]


def test_modelled_by_hand():
    """8 devices: bytes go 2 · 7/8 times over the link; 10 all-reduces wait 20 µs each."""
    machine = scaling.MACHINES[0]
    counted = {"bytes": 225e6, "all_reduces": 10}
    row = modelled("unet", counted, machine, 1)
    assert row["bytes_ms"] == pytest.approx(1.75)
    assert row["latency_ms"] == pytest.approx(0.2)
    total_ms = row["compute_ms"] + 1.95
    assert row["efficiency"] == pytest.approx(row["compute_ms"] / total_ms)
    assert row["host_images_per_s"] == pytest.approx(8 * 1e3 / total_ms)


def test_tables_of_the_committed_page_are_of_the_committed_numbers():
    committed = (RESULTS / "scaling_cpu.md").read_text()
    made = scaling.document(read_json(RESULTS / "scaling_cpu.json"))
    tables = [[line for line in page.splitlines() if line.startswith("|")] for page in (committed, made)]
    assert len(tables[0]) > 20
    assert tables[0] == tables[1]
