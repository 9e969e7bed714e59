"""The instruments that come with cockpit-lite: one file each, named for what it measures.

An import line here is all it takes to add one: its ``name`` becomes known in ``instruments=[...]`` and its ``preset`` puts it
into ``"light"``, ``"standard"`` or ``"full"``.
"""

from __future__ import annotations

from cockpit_lite.instrument import Instrument
from cockpit_lite.instruments.activation_mean import ActivationMean
from cockpit_lite.instruments.activation_std import ActivationStd
from cockpit_lite.instruments.alpha import Alpha
from cockpit_lite.instruments.attention import AttentionCheck
from cockpit_lite.instruments.cabs import Cabs
from cockpit_lite.instruments.clip_ratio import Clipping
from cockpit_lite.instruments.condition import Condition
from cockpit_lite.instruments.conflicting_samples import ConflictingSamples
from cockpit_lite.instruments.curvature_along_gradient import CurvatureAlongGradient
from cockpit_lite.instruments.curvature_noise import CurvatureNoise
from cockpit_lite.instruments.dead_units import DeadUnits
from cockpit_lite.instruments.distance import Distance
from cockpit_lite.instruments.early_stopping import EarlyStopping
from cockpit_lite.instruments.effective_rank import EffectiveRank
from cockpit_lite.instruments.eigenvector_overlap import EigenvectorOverlap
from cockpit_lite.instruments.ggn_diagonal import GaussNewtonDiagonal
from cockpit_lite.instruments.ggn_trace import GaussNewtonTrace
from cockpit_lite.instruments.grad_hist_1d import GradHist1d
from cockpit_lite.instruments.grad_hist_2d import GradHist2d
from cockpit_lite.instruments.grad_norm import GradientNorm
from cockpit_lite.instruments.gradient_alignment import GradientAlignment
from cockpit_lite.instruments.gradient_noise_scale import GradientNoiseScale
from cockpit_lite.instruments.gradient_scale import GradientScale
from cockpit_lite.instruments.gsnr import GradientSignalToNoise
from cockpit_lite.instruments.hardest_samples import HardestSamples
from cockpit_lite.instruments.hessian_diagonal import HessianDiagonal
from cockpit_lite.instruments.hessian_trace import HessianTrace
from cockpit_lite.instruments.inner_product_test import InnerProductTest
from cockpit_lite.instruments.inputs import Inputs
from cockpit_lite.instruments.label_noise import LabelNoise
from cockpit_lite.instruments.labels import Labels
from cockpit_lite.instruments.layerwise_curvature import LayerwiseCurvature
from cockpit_lite.instruments.learning_rate import LearningRate
from cockpit_lite.instruments.loss import Loss
from cockpit_lite.instruments.loss_inputs import LossInputsCheck
from cockpit_lite.instruments.max_eigenvalue import MaxEigenvalue
from cockpit_lite.instruments.min_eigenvalue import MinEigenvalue
from cockpit_lite.instruments.norm_test import NormTest
from cockpit_lite.instruments.orthogonality_test import OrthogonalityTest
from cockpit_lite.instruments.overhead import Overhead
from cockpit_lite.instruments.ranks_apart import RanksApart
from cockpit_lite.instruments.residual_growth import ResidualGrowth
from cockpit_lite.instruments.saturation import Saturation
from cockpit_lite.instruments.second_moment_ratio import SecondMomentRatio
from cockpit_lite.instruments.sharpness_limit import SharpnessLimit
from cockpit_lite.instruments.spectral_density import SpectralDensity
from cockpit_lite.instruments.step_time import StepTime
from cockpit_lite.instruments.symmetric_units import SymmetricUnits
from cockpit_lite.instruments.tangent_kernel import TangentKernelDrift
from cockpit_lite.instruments.tic_diag import TakeuchiDiagonal
from cockpit_lite.instruments.tic_trace import TakeuchiTrace
from cockpit_lite.instruments.trust_ratio import TrustRatio
from cockpit_lite.instruments.update_ratio import UpdateRatio
from cockpit_lite.instruments.update_size import UpdateSize
from cockpit_lite.instruments.validation_overlap import ValidationOverlap
from cockpit_lite.instruments.weight_decay_ratio import WeightDecayRatio
from cockpit_lite.instruments.wiring import WiringCheck

#: name -> class, of everything imported above
INSTRUMENTS: dict[str, type[Instrument]] = {
    value.name: value
    for value in tuple(globals().values())
    if isinstance(value, type) and issubclass(value, Instrument) and value is not Instrument
}

__all__ = [
    "INSTRUMENTS",
    "ActivationMean",
    "ActivationStd",
    "Alpha",
    "AttentionCheck",
    "Cabs",
    "Clipping",
    "Condition",
    "ConflictingSamples",
    "CurvatureAlongGradient",
    "CurvatureNoise",
    "DeadUnits",
    "Distance",
    "EarlyStopping",
    "EffectiveRank",
    "EigenvectorOverlap",
    "GaussNewtonDiagonal",
    "GaussNewtonTrace",
    "GradHist1d",
    "GradHist2d",
    "GradientAlignment",
    "GradientNoiseScale",
    "GradientNorm",
    "GradientScale",
    "GradientSignalToNoise",
    "HardestSamples",
    "HessianDiagonal",
    "HessianTrace",
    "InnerProductTest",
    "Inputs",
    "LabelNoise",
    "Labels",
    "LayerwiseCurvature",
    "LearningRate",
    "Loss",
    "LossInputsCheck",
    "MaxEigenvalue",
    "MinEigenvalue",
    "NormTest",
    "OrthogonalityTest",
    "Overhead",
    "RanksApart",
    "ResidualGrowth",
    "Saturation",
    "SecondMomentRatio",
    "SharpnessLimit",
    "SpectralDensity",
    "StepTime",
    "SymmetricUnits",
    "TakeuchiDiagonal",
    "TakeuchiTrace",
    "TangentKernelDrift",
    "TrustRatio",
    "UpdateRatio",
    "UpdateSize",
    "ValidationOverlap",
    "WeightDecayRatio",
    "WiringCheck",
]
