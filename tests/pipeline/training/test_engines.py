"""The environment of DeepSpeed's engines."""

import os
import subprocess
import sys

from pipeline import ROOT

CODE = """
import torch, torch.distributed
from torch import nn
from pipeline.training.deepspeed_engine import EngineOptions, initialize
torch.distributed.init_process_group("gloo", init_method="file://STORE", rank=0, world_size=1)
model = nn.Linear(3, 2)
engine = initialize(model, list(model.parameters()), 0.1, EngineOptions(2, 1, 1.0, 2))
before = model.weight.detach().clone()
engine.backward(engine(torch.ones(2, 3)).square().mean())
engine.step()
assert not torch.equal(before, model.weight)
"""


def test_an_engine_trains_without_compiling_an_op(tmp_path):
    extensions = tmp_path / "extensions"
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(extensions), "LOCAL_RANK": "0", "CXX": "/nowhere/c++"}
    code = CODE.replace("STORE", str(tmp_path / "store"))
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=300)
    assert not list(extensions.rglob("*"))
