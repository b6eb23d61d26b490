"""torchvision imports beside a torch without CUDA and stays as it is beside one with; first scores are exact."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import geood

MODELS = Path(geood.__file__).parent / "models"
SAID = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
"""
SAID += """
LATE = ("timm", "timm.data.dataset", "timm.models", "timm.models.vgg", "torchvision", "torchvision.datasets")
LATE += ("torchvision.extension", "torchvision.transforms", "torch.onnx", "torch._dynamo", "huggingface_hub")
import contextlib, io, json
from support.bare import apart

def said(code):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(code, {"declare": declare_missing_operators, "LATE": LATE})
    return shown.getvalue().split()

cases = json.load(sys.stdin)
import torch
from geood._torch_compat import declare_missing_operators
print(json.dumps({name: apart(lambda: said(code)) for name, code in cases.items()}))
"""
CASES = {
    "missing": """
import geood._torch_compat as room
if room._operators_load():
    print("loads")
else:
    room._operators_load = lambda: False
    print(declare(), declare())
    import torch
    with room.compiler_on_demand():
        import torchvision
    print(hasattr(torch.ops.torchvision, "nms"), hasattr(torch.ops.torchvision, "qnms"))
    try:
        torch.ops.torchvision.nms(torch.rand(1, 4), torch.rand(1), 0.5)
    except NotImplementedError:
        print("no-kernel")
""",
    "present": """
import geood._torch_compat as room, torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.impl("nms", lambda dets, scores, iou: torch.tensor([7]), "CPU")
room._operators_load = lambda: True
print(declare(), room._declared is None)
print(int(torch.ops.torchvision.nms(torch.rand(1, 4), torch.rand(1), 0.5)))
""",
    "no compiler": """
import sys
from geood._torch_compat import compiler_on_demand
declare()
with compiler_on_demand():
    import torchvision, timm
print("torch._dynamo" in sys.modules)
import geood._torch_compat as room
room._declared = None
print(declare())
""",
    "compiler after all": """
import sys
from geood._torch_compat import compiler_on_demand
declare()
with compiler_on_demand():
    import torchvision
from torchvision.ops import roi_align
print(sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu"))
import torch, torch._dynamo
print(torch._dynamo.__file__ is not None, int(torch.compile(torch.nn.ReLU(), backend="eager")(torch.ones(1))))
""",
    "network": """
import sys
from geood.models.timm_files import network_maker
network_maker("resnet10t")("resnet10t", pretrained=False, features_only=True)
print(*[name for name in LATE if name in sys.modules])
""",
    "network, then all": """
import sys, torch
from geood.models.timm_files import network_maker, timm_library
make = network_maker("resnet10t")
print("torch._dynamo" in sys.modules, timm_library().is_model("vgg11"), "torch._dynamo" in sys.modules)
import timm, torchvision
print(torchvision.transforms.ToTensor.__name__, torchvision.ops.nms.__name__, torchvision.models.resnet18.__name__)
print(timm.layers.create_norm.FrozenBatchNorm2d is torchvision.ops.FrozenBatchNorm2d)
from timm.data import create_transform, IMAGENET_DEFAULT_MEAN
print(create_transform(32, mean=IMAGENET_DEFAULT_MEAN) is not None, timm.__version__ == timm.version.__version__)
print(len(timm.list_models()) > 500, timm.create_model is make, timm.models.resnet.ResNet.__name__)
by_graph = make("resnet18", pretrained=False, features_only=True, feature_cls="fx")
print(len(by_graph(torch.zeros(1, 3, 64, 64))), timm.models._builder.has_hf_hub())
""",
    "compiler asked": """
import sys
from geood._torch_compat import compiler_on_demand
with compiler_on_demand():
    import torch._dynamo as standing_in
    reset = standing_in.reset
import torch._dynamo
print(reset is torch._dynamo.reset, sys.modules["torch._dynamo"] is not standing_in)
""",
}


WHOLE = "network, then all"  # loads the whole of timm and torchvision, and takes longest
COMPILED = ("compiler after all", "compiler asked")  # load torch's compiler


def told(cases):
    """What each case prints, in a fork of one process that has loaded torch and nothing else that is heavy."""
    asked = json.dumps(cases)
    done = subprocess.run([sys.executable, "-c", SAID], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def said():
    """What each quick case prints."""
    return told({name: code for name, code in CASES.items() if name not in (WHOLE, *COMPILED)})


def test_operators_missing_are_declared_once_and_have_no_kernel(said):
    if said["missing"] == ["loads"]:
        pytest.skip("the real operators load here")
    assert said["missing"] == ["True", "True", "True", "True", "no-kernel"]


def test_operators_present_are_left_alone(said):
    assert said["present"] == ["False", "True", "7"]


@pytest.mark.parametrize("room", ["scores", "flows/flow"])
def test_the_first_exponential_of_a_process_is_on_one_thread(room, monkeypatch):
    """Rooms that use many of them make it when they are imported; what it spares is seen in the slow test below."""
    calls = []
    monkeypatch.setattr("geood._torch_compat.start_vector_functions", lambda: calls.append(room))
    runpy.run_path(str(MODELS / f"{room}.py"))
    assert calls == [room]


@pytest.mark.slow
def test_the_first_scores_of_a_process_are_as_good_as_the_second():
    """Without `start_vector_functions` one process of three fails on two cores."""
    code = """
import torch
from geood.config.sections import SegmenterConfig
from geood.models.scores import anomaly_score
from geood.models.segmenter import Segmenter

network = Segmenter(3, 3, SegmenterConfig(encoder="resnet10t", decoder_channels=16)).eval()
with torch.inference_mode():
    logits = [network(torch.rand(2, 3, 64, 96)).logits for _ in range(2)][0]
    print(torch.equal(anomaly_score(logits, "jsd"), anomaly_score(logits, "jsd")))
"""
    command, threads = [sys.executable, "-c", code], os.environ | {"OMP_NUM_THREADS": "2"}  # one alone would never fail
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=threads) for _ in range(8)]
    assert [process.communicate()[0].strip() for process in running] == ["True"] * 8


def test_torchvision_and_timm_are_imported_after_the_call_and_without_the_compiler(said):
    """And nothing is declared later."""
    assert said["no compiler"] == ["False", "False"]


@pytest.mark.slow
def test_the_compiler_is_there_when_asked_for_and_what_is_asked_meanwhile_comes_from_the_real_one():
    found = told({name: CASES[name] for name in COMPILED})
    assert found["compiler after all"] == ["True", "True", "1"]
    assert found["compiler asked"] == ["True", "True"]


def test_a_network_is_made_without_the_rest_of_timm_torchvision_and_the_hub(said):
    assert said["network"] == []


@pytest.mark.slow
def test_timm_and_torchvision_are_whole_for_whoever_uses_them_after_a_network_was_made():
    """And the whole of timm comes without the compiler."""
    assert told({WHOLE: CASES[WHOLE]})[WHOLE] == [
        *("False", "True", "False"),
        *("ToTensor", "nms", "resnet18", "True", "True", "True", "True", "True", "ResNet", "5", "True"),
    ]
