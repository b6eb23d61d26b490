"""Laws of local gates: weights keep their places, constant maps give what they gave, far ground does not matter."""

import pytest
import torch

from geood.config.sections import SegmenterConfig
from geood.errors import ConfigError
from geood.models.encoder import check_encoder, make_encoder
from geood.models.local_gates import LocalGates, use_local_gates
from geood.models.segmenter import Segmenter


def encoder(name="mobilenetv3_small_050", **keys):
    torch.manual_seed(0)
    return make_encoder(3, SegmenterConfig(encoder=name, **keys))[0].eval()


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "regnety_002"])
def test_weights_keep_their_names_and_every_gate_is_local(name):
    plain, local = encoder(name), encoder(name, gates="local")
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in local.state_dict().items()}
    gates = [module for module in local.modules() if isinstance(module, LocalGates)]
    assert len(gates) > 5 and {gate.block for gate in gates} >= {1, 2}
    assert not use_local_gates(local, 3)  # none is left


@pytest.mark.parametrize(
    ("keys", "warned"),
    [
        ({"encoder": "mobilenetv3_small_050"}, True),
        ({"encoder": "mobilenetv3_small_050", "gates": "local"}, False),
        ({"encoder": "resnet10t"}, False),
    ],
)
def test_before_a_training_an_encoder_whose_tiles_may_show_is_warned_of_with_the_remedy(keys, warned, caplog):
    check_encoder(SegmenterConfig(**keys))
    said = [record.getMessage() for record in caplog.records if "squeeze-excitation" in record.getMessage()]
    assert len(said) == warned and all("segmenter.gates: local" in text for text in said)


def test_gates_of_other_parts_stay_global():
    assert not use_local_gates(encoder("legacy_seresnet18"), 3)


def test_on_constant_maps_the_gates_are_those_of_the_whole():
    plain, local = encoder(), encoder(gates="local")
    local.load_state_dict(plain.state_dict())
    for name, gate in local.named_modules():
        if isinstance(gate, LocalGates):
            channels = next(gate.parameters()).shape[1]
            maps = torch.rand(1, channels, 1, 1).expand(1, channels, 2 * gate.block, 4 * gate.block).contiguous()
            torch.testing.assert_close(gate(maps), plain.get_submodule(name)(maps))


def test_far_ground_does_not_matter_and_tiles_agree():
    gate = next(m for m in encoder(gates="local").modules() if isinstance(m, LocalGates) and m.block > 1)
    channels, block = next(gate.parameters()).shape[1], gate.block
    maps = torch.rand(1, channels, 3 * block, 12 * block)
    other = maps.clone()
    other[..., 8 * block :] += 5.0
    one, two = gate(maps), gate(other)
    assert torch.equal(one[..., : 6 * block], two[..., : 6 * block]) and not torch.equal(one, two)
    part = gate(maps[..., 2 * block :])
    torch.testing.assert_close(part[..., 3 * block :], one[..., 5 * block :])


def test_a_network_without_gates_is_refused_and_the_default_is_left_alone():
    with pytest.raises(ConfigError, match=r"segmenter\.gates: resnet10t has no squeeze-excitation"):
        encoder("resnet10t", gates="local")
    assert not any(isinstance(module, LocalGates) for module in encoder().modules())
    built = Segmenter(3, 2, SegmenterConfig(encoder="mobilenetv3_small_050", decoder_channels=8, gates="local"))
    assert any(isinstance(module, LocalGates) for module in built.modules())
