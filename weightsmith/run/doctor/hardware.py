"""Processors: whether torch was built for the GPU that is there, and uses as many threads as there are cores."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from weightsmith.run.doctor.check import Check
from weightsmith.run.doctor.child import Answer

TORCH = """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
         "threads": torch.get_num_threads(), "gpu": torch.cuda.is_available(), "works": "",
         "mps": torch.backends.mps.is_available(), "names": []}
if found["gpu"]:
    try:
        found["names"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        square = torch.ones(8, 8, device="cuda")
        assert float((square @ square).sum()) == 512
    except Exception as error:
        found["works"] = (str(error).splitlines() or [type(error).__name__])[0]
print(json.dumps(found))
"""

_GET = "https://pytorch.org/get-started/locally has the command"


def torch_build(answer: Answer, gpus: list[str]) -> Check:
    """The build of torch against the GPUs of the machine.

    Args:
        answer: of `TORCH`; gpus: what `gpus_there` found.
    """
    if answer.error:
        remedy = f"install it anew: {_GET}"
        return Check(name="torch", state="broken", found=f"cannot be imported: {answer.error}", remedy=remedy)
    seen = answer.entries
    build = f"CUDA {seen['cuda']}" if seen["cuda"] else f"ROCm {seen['hip']}" if seen["hip"] else "CPU"
    told = f"{seen['version']}, built for {build}"
    if seen["works"]:
        told += f"; it sees {seen['names'][0] if seen['names'] else 'a GPU'} but cannot compute there: {seen['works']}"
        remedy = f"install the build for this GPU and driver ({_GET}), or give --device cpu to every command"
        return Check(name="torch", state="broken", found=told, remedy=remedy)
    if seen["gpu"]:
        return Check(name="torch", state="fine", found=f"{told}, computes on {', '.join(seen['names'])}")
    if gpus and build == "CPU":
        remedy = f"install the build for it: {_GET}"
        return Check(name="torch", state="slow", found=f"{told}, and there is {gpus[0]}", remedy=remedy)
    if gpus:
        remedy = f"update the driver, or install the build for the driver that is there: {_GET}"
        return Check(name="torch", state="slow", found=f"{told}, and does not see {gpus[0]}", remedy=remedy)
    if seen["mps"]:
        return Check(name="torch", state="fine", found=f"{told}, computes on Apple's GPU (mps)")
    return Check(name="torch", state="fine", found=told)


def gpu(gpus: list[str]) -> Check:
    """What GPUs the machine has, whether torch uses them or not."""
    found = ", ".join(gpus) if gpus else "none: commands run on the processor, which suits small models"
    return Check(name="GPU", state="fine", found=found)


def threads(answer: Answer, cores: int) -> Check:
    """Threads of torch against cores that this process may use."""
    if answer.error:
        return Check(name="threads", state="broken", found="unknown without torch", remedy="mend torch first")
    number, asked = int(answer.entries["threads"]), os.environ.get("OMP_NUM_THREADS")
    why = f" (OMP_NUM_THREADS={asked})" if asked else ""
    told = f"torch uses {number}{why}, {cores} core{'s' * (cores > 1)} may be used"
    if number > cores:
        return Check(name="threads", state="slow", found=told, remedy=f"export OMP_NUM_THREADS={cores}")
    if asked and number < cores:
        remedy = f"unset OMP_NUM_THREADS, or export OMP_NUM_THREADS={cores}, unless other jobs share the machine"
        return Check(name="threads", state="slow", found=told, remedy=remedy)
    return Check(name="threads", state="fine", found=told)


def gpus_there() -> list[str]:
    """GPUs that the machine has, whatever torch knows of them."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        try:
            done = subprocess.run(  # noqa: S603  (a fixed command)
                [program, "--query-gpu=name", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                check=False,
                timeout=20,
            )
        except (OSError, subprocess.TimeoutExpired):
            return []
        names = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        if done.returncode == 0 and names:
            return names
    if Path("/proc/driver/nvidia/version").exists():
        return ["an NVIDIA GPU"]
    return ["an AMD GPU"] if Path("/dev/kfd").exists() else []


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, fewer where a container has a quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        limit = cores if quota == "max" else max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):
        return cores
    return min(cores, limit)
