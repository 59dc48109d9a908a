"""What a recipe says of the machines it is planned for (``hardware:``), and of what a paper's runs took (``paper:``)."""

from __future__ import annotations

from dataclasses import dataclass

PEAK_FLOPS = {
    "A100": 312e12,
    "L40S": 362e12,
    "H100-PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "MI300X": 1307e12,
}
"""FLOP/s of one device in bfloat16, without sparsity: the makers' data sheets (NVIDIA's give twice as much, with it). H100 and
H200 are the SXM boards, A100 is either."""


@dataclass(frozen=True)
class HardwareConfig:
    """What the hours of a plan are counted for: ``hours = FLOPs / (gpus * peak of the kind * mfu) / 3600``."""

    gpus: int
    """How many share each stage."""
    kind: str
    """Which: a name in PEAK_FLOPS."""
    mfu: float
    """Model FLOPs utilisation: which share of the peak the work is taken to reach, in (0, 1]."""

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"gpus must be at least 1, not {self.gpus}")
        _check_kind(self.kind)
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is a share of the peak, above 0 and at most 1, not {self.mfu:g}")

    def hours(self, flops: float) -> float:
        """How long so many FLOPs take."""
        return flops / (self.gpus * PEAK_FLOPS[self.kind] * self.mfu) / 3600


@dataclass(frozen=True)
class PaperConfig:
    """What the runs of a paper took, to stand beside a plan's own estimate."""

    source: str
    """Which paper, and where in it."""
    gpus: int
    """How many GPUs it used."""
    kind: str
    """Which: a name in PEAK_FLOPS."""
    hours: dict[str, float]
    """stage -> hours that the paper gives for it."""

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"gpus must be at least 1, not {self.gpus}")
        _check_kind(self.kind)
        if wrong := [name for name, hours in self.hours.items() if not hours > 0]:
            raise ValueError(f"hours: {wrong[0]} must be above 0, not {self.hours[wrong[0]]:g}")

    def mfu(self, flops: float, stage: str) -> float:
        """Which share of the peak its hours come to, if the stage was so many FLOPs."""
        return flops / (self.gpus * PEAK_FLOPS[self.kind] * 3600 * self.hours[stage])


def _check_kind(kind: str) -> None:
    if kind not in PEAK_FLOPS:
        raise ValueError(f"kind: the peak of {kind!r} is not known; there are {', '.join(PEAK_FLOPS)}")
